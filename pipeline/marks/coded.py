"""The coded pictures of a file, apart from all that is around them: by them one tells whether its pixels are the same.

A decoder makes the same pixels of the same coded pictures (H.264 and its successors leave no freedom there), so a
digest of them outlives marking, other metadata and another container, and nothing that touches a pixel.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.marks.carriers import Carrier, Part, boxes_within, carrier_of, content_of, open_carrier, parts_of
from pipeline.marks.problems import NotMarkableError

#: Hex digits of a part's digest: enough to see which of them differ, and no proof of anything.
PART_DIGITS = 8
#: What a video decoder is set up by, within a track's sample entry: H.264, H.265, AV1, VP9.
_SET_UP = frozenset({b"avcC", b"hvcC", b"av1C", b"vpcC"})
#: Bytes of a sample entry of video before its boxes (ISO/IEC 14496-12, 12.1.3).
_ENTRY_BYTES = 78
_MOST_SAMPLES = 1 << 20
#: A picture's data is cut into so many pieces for `CodedPictures.parts`, of so many bytes at least.
_PIECES, _PIECE_BYTES = 64, 64
#: Segments of a JPEG that change no pixel: APP0 to APP15, and comments.
_BESIDE = frozenset({*range(0xE0, 0xF0), 0xFE})
#: Chunks of a PNG by which its pixels are made.
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


@dataclass(frozen=True, kw_only=True)
class CodedPictures:
    """Digests of the coded pictures of a file."""

    #: SHA-256 (hex) over what sets the decoder up and all pictures, each with its length before it.
    sha256: str
    #: First digits of the SHA-256 of each picture of a video, or of each piece of a still picture's data.
    parts: tuple[str, ...]

    def shared(self, parts: Iterable[str]) -> int:
        """How many of `parts`, at their places, are here too."""
        return sum(mine == theirs for mine, theirs in zip(self.parts, parts, strict=False))


def coded_pictures(path: Path) -> CodedPictures:
    """Read the digests of a file's coded pictures. Raises `NotMarkableError` and `OSError`."""
    with open_carrier(path) as file:
        carrier = carrier_of(file, path.name)
        parts = parts_of(file, carrier, path.name)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _digests(_pieces(file, data, carrier, parts))
            except (ValueError, struct.error, IndexError) as error:
                message = f"{path.name} is damaged: {error or 'its tables are cut short'}"
                raise NotMarkableError(message, "Fetch or render it again.") from error


def _digests(pieces: Iterator[bytes]) -> CodedPictures:
    whole, parts = hashlib.sha256(), []
    for number, piece in enumerate(pieces):
        whole.update(len(piece).to_bytes(8, "big"))
        whole.update(piece)
        # The first one is what sets the decoder up.
        if number:
            parts.append(hashlib.sha256(piece).hexdigest()[:PART_DIGITS])
    return CodedPictures(sha256=whole.hexdigest(), parts=tuple(parts))


def _pieces(file: BinaryIO, data: mmap.mmap, carrier: Carrier, parts: list[Part]) -> Iterator[bytes]:
    if carrier is Carrier.MP4:
        yield from _video(file, data, parts)
        return
    if carrier is Carrier.JPEG:
        kept = [part for part in parts if part.kind[0] not in _BESIDE]
        scan = kept.pop()
        yield b"".join(data[part.start : part.stop] for part in kept)
        # Progressive pictures have more scans, with tables between them.
        coded = data[scan.start :]
    else:
        yield b"".join(data[part.start : part.stop] for part in parts if part.kind in _PNG_PIXELS - {b"IDAT", b"IEND"})
        coded = b"".join(data[part.body : part.stop - 4] for part in parts if part.kind == b"IDAT")
    size = max(_PIECE_BYTES, -(-len(coded) // _PIECES))
    for start in range(0, len(coded), size):
        yield coded[start : start + size]


def _video(file: BinaryIO, data: mmap.mmap, parts: list[Part]) -> Iterator[bytes]:
    tables = next(_video_tables(file, parts), None)
    if tables is None:
        raise ValueError("it has no track of video")
    entry = content_of(file, tables[b"stsd"])
    first = tables[b"stsd"].body + 8
    length = struct.unpack(">I", entry[8:12])[0]
    inner = boxes_within(file, first + 8 + _ENTRY_BYTES, first + length)
    yield b"".join(content_of(file, part) for part in list(inner) if part.kind in _SET_UP)
    places = list(_samples({kind: content_of(file, part) for kind, part in tables.items() if kind != b"stsd"}))
    if not places:
        # Fragments have their tables with them: what they hold is then one part each.
        places = [(part.body, part.stop - part.body) for part in parts if part.kind == b"mdat"]
    for start, size in places:
        if start + size > len(data):
            raise ValueError("a picture goes beyond the end")
        yield data[start : start + size]


def _video_tables(file: BinaryIO, parts: list[Part]) -> Iterator[dict[bytes, Part]]:
    for moov in parts:
        if moov.kind != b"moov":
            continue
        for track in boxes_within(file, moov.body, moov.stop):
            if track.kind != b"trak":
                continue
            media = _child(file, track, b"mdia")
            if content_of(file, _child(file, media, b"hdlr"))[8:12] != b"vide":
                continue
            table = _child(file, _child(file, media, b"minf"), b"stbl")
            yield {part.kind: part for part in boxes_within(file, table.body, table.stop)}


def _child(file: BinaryIO, parent: Part, kind: bytes) -> Part:
    for part in boxes_within(file, parent.body, parent.stop):
        if part.kind == kind:
            return part
    raise ValueError(f"{kind.decode()} is missing")


def _samples(tables: dict[bytes, bytes]) -> Iterator[tuple[int, int]]:
    """Place and length of each picture, in the order of decoding (ISO/IEC 14496-12, 8.7)."""
    sizes = _sizes(_named(tables, b"stsz"))
    chunks = _offsets(tables)
    runs = _table(_named(tables, b"stsc"), ">III")
    sample = 0
    for number, (first, each, _) in enumerate(runs):
        end = runs[number + 1][0] if number + 1 < len(runs) else len(chunks) + 1
        for chunk in range(first - 1, end - 1):
            place = chunks[chunk]
            for size in sizes[sample : sample + each]:
                yield place, size
                place += size
            sample += each
    if sample < len(sizes):
        raise ValueError("its tables do not name all pictures")


def _sizes(table: bytes) -> list[int]:
    each, count = struct.unpack(">II", table[4:12])
    if count > _MOST_SAMPLES:
        raise ValueError(f"it names {count} pictures")
    return [each] * count if each else [size for (size,) in struct.iter_unpack(">I", _cut(table[12:], 4, count))]


def _offsets(tables: dict[bytes, bytes]) -> list[int]:
    if b"co64" in tables:
        return [place for (place,) in _table(tables[b"co64"], ">Q")]
    return [place for (place,) in _table(_named(tables, b"stco"), ">I")]


def _table(table: bytes, form: str) -> list[tuple[int, ...]]:
    count = struct.unpack(">I", table[4:8])[0]
    return list(struct.iter_unpack(form, _cut(table[8:], struct.calcsize(form), count)))


def _cut(table: bytes, each: int, count: int) -> bytes:
    if len(table) < each * count:
        raise ValueError("a table is cut short")
    return table[: each * count]


def _named(tables: dict[bytes, bytes], kind: bytes) -> bytes:
    if kind not in tables:
        raise ValueError(f"{kind.decode()} is missing")
    return tables[kind]
