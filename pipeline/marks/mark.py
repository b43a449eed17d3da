"""The one call by which a file is marked, as the last thing that is done to it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.marks.carriers import C2PA_UUID, Carrier, carrier_of, is_uuid, open_carrier, parts_of
from pipeline.marks.coded import coded_pictures
from pipeline.marks.facts import ClipFacts
from pipeline.marks.likeness import likeness_of_file
from pipeline.marks.marker import Marker
from pipeline.marks.problems import NotMarkableError
from pipeline.marks.signing import MarkClaim, sign
from pipeline.marks.source_type import source_type_of
from pipeline.marks.xmp import packet, with_packet

#: Actions after which a clip is more than its model's frames.
_COMPOSING = frozenset({"c2pa.edited", "c2pa.drawing", "c2pa.addedText"})
#: Actions for which C2PA wants to know what was opened, placed or removed, which nobody says here.
_OF_INGREDIENTS = frozenset({"c2pa.opened", "c2pa.placed", "c2pa.removed"})
_APP11, _PNG_C2PA = 0xEB, b"caBX"


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

    The pictures in it stay what they are, to the bit. A mark that it had is replaced, but a signed one by a signed one
    only. `facts` are of the clip (`facts_of` reads them from its provenance), `still` is the file it was made from,
    whose own manifest is kept. `profile` names what a delivery was made for, and `actions` what was done to the clip's
    frames besides, by C2PA's names (`c2pa.cropped`, `c2pa.resized`, `c2pa.trimmed`, `c2pa.transcoded`, …); with
    `c2pa.edited`, `c2pa.drawing` or `c2pa.addedText`, such as a logo or a price over it, it is a composite.

    Raises `ValueError` for an action that needs an ingredient of its own, `NotMarkableError` for a file that is none of
    these or is damaged, `SigningError` where it cannot be signed, and `OSError`. Asks nothing of a network but the
    marker's timestamp authority, where it has one.
    """
    if wrong := sorted(_OF_INGREDIENTS.intersection(actions)):
        raise ValueError(f"{wrong[0]} needs an ingredient; say c2pa.edited, c2pa.drawing or c2pa.addedText")
    target = target or path
    with open_carrier(path) as file:
        carrier = carrier_of(file, path.name)
        signed = is_signed(path)
        source_type = source_type_of(facts.family, composite=is_composite(actions), still=still)
        words = packet(facts, source_type, signed=marker.identity is not None)
        splice = with_packet(file, carrier, words, path.name)
        if signed and marker.identity is None:
            if target == path:
                return path
            raise NotMarkableError(f"{path.name} is signed, and there is no certificate", "Copy it as it is.")
        plain = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
        done = plain.with_suffix(".signed")
        try:
            with plain.open("xb") as written:
                splice.write(file, written)
            if marker.identity is not None:
                coded = coded_pictures(plain)
                # What was recorded of the master is not what a delivery looks like.
                own = facts.likeness if coded.sha256 == facts.stream_sha256 else ""
                claim = MarkClaim(
                    facts=facts,
                    source_type=source_type,
                    coded=coded,
                    likeness=own or likeness_of_file(plain),
                    profile=profile,
                    actions=tuple(actions),
                )
                sign(plain, done, carrier, claim, marker.identity, still)
            _put(done if marker.identity is not None else plain, path, target)
        finally:
            plain.unlink(missing_ok=True)
            done.unlink(missing_ok=True)
    return target


def is_composite(actions: Sequence[str]) -> bool:
    """Whether actions, by C2PA's names, make a clip more than its model's frames."""
    return not _COMPOSING.isdisjoint(actions)


def is_signed(path: Path) -> bool:
    """Whether a file carries a C2PA manifest, whatever it is worth. Raises `NotMarkableError` and `OSError`."""
    with open_carrier(path) as file:
        carrier = carrier_of(file, path.name)
        for part in parts_of(file, carrier, path.name):
            if carrier is Carrier.MP4 and is_uuid(file, part, C2PA_UUID):
                return True
            if carrier is Carrier.PNG and part.kind == _PNG_C2PA:
                return True
            if carrier is Carrier.JPEG and part.kind[0] == _APP11:
                file.seek(part.body)
                # JPEG XT's box format (ISO/IEC 18477-3), which JUMBF uses.
                if file.read(2) == b"JP":
                    return True
    return False


def _put(made: Path, path: Path, target: Path) -> None:
    shutil.copymode(path, made)
    with made.open("rb") as written:
        os.fsync(written.fileno())
    made.replace(target)
