"""The boxes of an MP4 file (ISO/IEC 14496-12) that say how it can be played while it is loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: Boxes that hold boxes, on the way to those that are looked for.
_HOLDERS = frozenset({b"moov", b"trak", b"edts", b"mdia"})
#: More boxes than these are no film of ours.
_MOST = 10_000


def index_first(path: Path) -> bool:
    """Whether the index (`moov`) stands before the pictures (`mdat`), so that playing begins before all is loaded.

    Raises `ValueError` for a file that has no such boxes.
    """
    with path.open("rb") as file:
        order = [kind for kind, _, _ in _boxes(file, 0, path.stat().st_size)]
    if b"moov" not in order or b"mdat" not in order:
        raise ValueError(f"{path.name} is no MP4 file: it has no index, or no pictures")
    return order.index(b"moov") < order.index(b"mdat")


def has_edit_list(path: Path) -> bool:
    """Whether a track of the file has an edit list (`elst`)."""
    with path.open("rb") as file:
        return _holds(file, 0, path.stat().st_size, b"elst")


def _holds(file: BinaryIO, start: int, end: int, wanted: bytes) -> bool:
    for kind, begin, stop in list(_boxes(file, start, end)):
        if kind == wanted or (kind in _HOLDERS and _holds(file, begin, stop, wanted)):
            return True
    return False


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte of the content, end) of each box from `start` to `end`; stops at what is none."""
    for _ in range(_MOST):
        file.seek(start)
        header = file.read(8)
        if len(header) < 8 or start >= end:
            return
        length, kind = struct.unpack(">I4s", header)
        begin = start + 8
        if length == 1:
            wide = file.read(8)
            if len(wide) < 8:
                return
            (length,) = struct.unpack(">Q", wide)
            begin += 8
        elif length == 0:
            length = end - start
        stop = start + length
        if stop < begin or stop > end:
            return
        yield kind, begin, stop
        start = stop
