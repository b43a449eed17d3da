"""Changes to a file at places of its own: all bytes around them stay what they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.feeds.text import Buffer

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Bytes from `begin` up to, and without, `behind` become `new`; where both are equal, `new` is put in."""

    begin: int
    behind: int
    new: bytes


def edited(data: Buffer, edits: Iterable[Edit]) -> Iterator[bytes]:
    """`data` with its edits, piece by piece. Raises `ValueError` for edits that are not in order, or overlap."""
    at = 0
    for edit in edits:
        if not at <= edit.begin <= edit.behind <= len(data):
            raise ValueError(f"an edit at {edit.begin} to {edit.behind} comes behind {at}")
        yield from _pieces(data, at, edit.begin)
        if edit.new:
            yield edit.new
        at = edit.behind
    yield from _pieces(data, at, len(data))


def _pieces(data: Buffer, begin: int, behind: int) -> Iterator[bytes]:
    for at in range(begin, behind, _CHUNK):
        yield data[at : min(at + _CHUNK, behind)]
