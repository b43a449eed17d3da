"""The one call by which a file is marked, as the last thing that is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.marks.facts import ClipFacts
from pipeline.marks.marker import Marker


def mark(
    path: Path,
    facts: ClipFacts,
    marker: Marker,
    *,
    still: bytes = b"",
    profile: str = "",
    actions: Sequence[str] = (),
    target: Path | None = None,
) -> Path:
    """Mark a finished MP4, JPEG or PNG file, in place or as `target`, whole or not at all; give the marked file's path.

    The pictures in it stay what they are, to the bit. A mark that it had is replaced. `facts` are of the clip
    (`facts_of` reads them from its provenance), `still` is the file it was made from, whose own manifest is kept.
    `profile` names what a delivery was made for, and `actions` what was done to the clip's frames besides, by C2PA's
    names (`c2pa.cropped`, `c2pa.resized`, `c2pa.transcoded`, `c2pa.edited`, …); with `c2pa.placed` or `c2pa.edited` it
    is a composite.

    Raises `NotMarkableError` for a file that is none of these or is damaged, `SigningError` where it cannot be signed,
    and `OSError`. Asks nothing of a network but the marker's timestamp authority, where it has one.
    """
    raise NotImplementedError
