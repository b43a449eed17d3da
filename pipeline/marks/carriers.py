"""Files that carry marks, MP4, JPEG and PNG, as their parts: boxes, segments, chunks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from pipeline.marks.problems import NotMarkableError

#: Begins a box of a type of one's own (ISO/IEC 14496-12, 11.1), here of XMP (ISO 16684-3) and of C2PA.
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
#: What XMP begins with in a JPEG's APP1, and what names it in a PNG.
XMP_JPEG, XMP_PNG = b"http://ns.adobe.com/xap/1.0/\0", b"XML:com.adobe.xmp"

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
#: Parts of a file that are looked at; a file of ours has tens.
_MOST_PARTS = 100_000
_SCAN, _END = 0xDA, 0xD9
#: Markers without a length (ITU-T T.81, B.1.1.3): TEM, restarts, start and end of image.
_BARE = frozenset({0x01, *range(0xD0, 0xDA)})


class Carrier(StrEnum):
    """Kinds of files that are marked, by their media types."""

    MP4 = "video/mp4"
    JPEG = "image/jpeg"
    PNG = "image/png"


@dataclass(frozen=True)
class Part:
    """A box, a segment or a chunk, from `start` to `stop` in bytes; its content begins at `body`."""

    #: The box's or chunk's type, or the segment's marker (one byte).
    kind: bytes
    start: int
    body: int
    stop: int


def carrier_of(file: BinaryIO, name: str = "the file") -> Carrier:
    """What a file is, by its first bytes. Raises `NotMarkableError`."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(_JPEG):
        return Carrier.JPEG
    if head.startswith(_PNG):
        return Carrier.PNG
    if head[4:8] == b"ftyp":
        return Carrier.MP4
    remedy = "Mark files that clipmill made; convert others with a program of your choice."
    raise NotMarkableError(f"{name} is neither MP4, JPEG nor PNG", remedy)


def parts_of(file: BinaryIO, carrier: Carrier, name: str = "the file") -> list[Part]:
    """The parts of a file in their order; those of a JPEG up to its first scan. Raises `NotMarkableError`."""
    size = file.seek(0, 2)
    reader = {Carrier.MP4: _boxes, Carrier.JPEG: _segments, Carrier.PNG: _chunks}[carrier]
    found = []
    try:
        for part in reader(file, 0, size):
            found.append(part)
            if part.stop > size or len(found) > _MOST_PARTS:
                raise ValueError("a part goes beyond the end")
    except (ValueError, struct.error) as error:
        raise NotMarkableError(f"{name} is damaged: {error}", "Fetch or render it again.") from error
    return found


def boxes_within(file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    """The boxes of an MP4 between two places. Raises `ValueError` where they do not fit in there."""
    for number, part in enumerate(_boxes(file, start, stop)):
        if part.stop > stop or number > _MOST_PARTS:
            raise ValueError("a box is longer than what it is in")
        yield part


def is_uuid(file: BinaryIO, part: Part, uuid: bytes) -> bool:
    """Whether a box is one of this type of one's own."""
    if part.kind != b"uuid" or part.stop - part.body < len(uuid):
        return False
    file.seek(part.body)
    return file.read(len(uuid)) == uuid


def content_of(file: BinaryIO, part: Part) -> bytes:
    """The content of a part."""
    file.seek(part.body)
    return file.read(part.stop - part.body)


def open_carrier(path: Path) -> BinaryIO:
    """The file, to be read. Raises `NotMarkableError` where there is none, and `OSError`."""
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotMarkableError(f"{path} is no file", "Check the path.") from error


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    while start < stop:
        file.seek(start)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", head[8:16])[0], start + 16
        elif size == 0:
            size = stop - start
        if start + size < body:
            raise ValueError(f"a box at byte {start} is shorter than its head")
        yield Part(kind, start, body, start + size)
        start += size


def _segments(file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    start += len(_JPEG)
    while start < stop:
        file.seek(start)
        head = file.read(4)
        if head[0] != 0xFF:
            raise ValueError(f"no marker is at byte {start}")
        marker = head[1]
        if marker == 0xFF:
            # Fill bytes may come before any marker.
            start += 1
            continue
        if marker == _END:
            raise ValueError("it ends before its picture")
        if marker in _BARE:
            start += 2
            continue
        length = struct.unpack(">H", head[2:4])[0]
        yield Part(bytes([marker]), start, start + 4, start + 2 + length)
        if marker == _SCAN:
            return
        start += 2 + length
    raise ValueError("it has no picture")


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[Part]:
    start += len(_PNG)
    while start < stop:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        # With its checksum of four bytes.
        yield Part(kind, start, start + 8, start + 12 + size)
        start += 12 + size
