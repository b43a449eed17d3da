"""What picture files say beside their pixels and Pillow does not tell: PNG chunks, boxes of AVIF, BMP's profile.

Every reader takes whole files of strangers: it stops at the first thing that does not fit and returns what it has.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Largest ICC profile that is unpacked from a PNG, in bytes; those of printers take 1 to 4 MB.
MAX_PROFILE_BYTES = 16 * 2**20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


# ---------------------------------------------------------------------------------------------- PNG


@dataclass(frozen=True, kw_only=True)
class PngFacts:
    """Chunks of a PNG that stand before its pixels (Portable Network Graphics, third edition)."""

    depth: int = 8
    colour_type: int = 6
    chunks: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def colour_key(self) -> tuple[int, ...] | None:
        """The samples (one grey, or red, green, blue) at the file's depth that are transparent; None: no such key."""
        key, size = self.chunks.get(b"tRNS", b""), {0: 2, 2: 6}.get(self.colour_type, 0)
        if not size or len(key) < size:
            return None
        # More bits than the depth has are to be ignored (section 11.3.1.1).
        return tuple(sample & ((1 << self.depth) - 1) for sample in struct.unpack(f">{size // 2}H", key[:size]))

    @property
    def cicp(self) -> tuple[int, int, int, int] | None:
        """Primaries, transfer, matrix (code points of ITU-T H.273) and the full-range flag."""
        code_points = self.chunks.get(b"cICP", b"")
        return struct.unpack("4B", code_points) if len(code_points) == 4 else None

    @property
    def profile(self) -> bytes | None:
        """The unpacked ICC profile; empty where it is damaged or larger than `MAX_PROFILE_BYTES`."""
        packed = self.chunks.get(b"iCCP")
        if packed is None:
            return None
        unpacker = zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(packed[packed.index(b"\0") + 2 :], MAX_PROFILE_BYTES)
        except (ValueError, zlib.error):
            return b""
        return b"" if unpacker.unconsumed_tail else unpacked

    @property
    def is_srgb(self) -> bool:
        """Whether the sRGB chunk is there."""
        return b"sRGB" in self.chunks

    @property
    def gamma(self) -> float | None:
        """Exponent from light to sample (1/2.2 for most), or None."""
        value = self.chunks.get(b"gAMA", b"")
        if len(value) != 4 or not 1_000 <= (times_100000 := int(struct.unpack(">I", value)[0])) <= 1_000_000:
            return None
        return times_100000 / 100_000

    @property
    def chromaticities(self) -> tuple[float, ...] | None:
        """x and y of white, red, green and blue (CIE 1931), or None."""
        values = self.chunks.get(b"cHRM", b"")
        return tuple(v / 100_000 for v in struct.unpack(">8I", values)) if len(values) == 32 else None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every chunk's content, until the file ends or does not fit."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        yield kind, place + 8, place + 8 + length
        place += 12 + length


def png_facts(data: bytes) -> PngFacts:
    """What the chunks before the pixels say; later ones say nothing of colours (section 5.6)."""
    chunks: dict[bytes, bytes] = {}
    for kind, start, end in _png_chunks(data):
        if kind in (b"IDAT", b"fdAT"):
            break
        if kind not in _TEXTS:
            chunks.setdefault(kind, data[start:end])
    header = chunks.get(b"IHDR", b"")
    if len(header) < 10:
        return PngFacts(chunks=chunks)
    return PngFacts(depth=header[8], colour_type=header[9], chunks=chunks)


def png_without_texts(data: bytes) -> bytes:
    """A PNG without its text chunks and packed profile, which Pillow refuses whole pictures for when they are long."""
    parts = [PNG_SIGNATURE]
    for kind, start, end in _png_chunks(data):
        if kind not in (*_TEXTS, b"iCCP"):
            parts.append(data[start - 8 : end + 4])
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------- AVIF, HEIF


def brands(data: bytes) -> tuple[bytes, ...]:
    """Brands of an ISO base media file (ISO/IEC 14496-12), the major one first; empty for other files."""
    if data[4:8] != b"ftyp":
        return ()
    end = min(struct.unpack(">I", data[:4])[0], len(data), 512)
    return (data[8:12], *(data[place : place + 4] for place in range(16, end - 3, 4)))


def nclx(data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer (ITU-T H.273) that the primary item's `colr` box of an AVIF or HEIF file names."""
    try:
        return _nclx(data)
    except (struct.error, IndexError):
        return None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of every box between `start` and `end`."""
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", data[start + 8 : start + 16]), 16
        stop = end if size == 0 else start + size
        if (size and size < head) or stop > end:
            return
        yield kind, start + head, stop
        start = stop


def _inner(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int] | None:
    return next(((at, stop) for found, at, stop in _boxes(data, start, end) if found == kind), None)


def _nclx(data: bytes) -> tuple[int, int] | None:
    meta = _inner(data, b"meta", 0, len(data))
    if meta is None:
        return None
    meta = meta[0] + 4, meta[1]  # a full box: version and flags first
    primary_box, properties = _inner(data, b"pitm", *meta), _inner(data, b"iprp", *meta)
    if primary_box is None or properties is None:
        return None
    container, associations = _inner(data, b"ipco", *properties), _inner(data, b"ipma", *properties)
    if container is None or associations is None:
        return None
    wide = data[primary_box[0]] > 0
    primary = struct.unpack(">I" if wide else ">H", data[primary_box[0] + 4 : primary_box[0] + (8 if wide else 6)])[0]
    listed = list(_boxes(data, *container))
    for index in _associated(data, associations[0], primary):
        kind, start, end = listed[index - 1]
        if kind == b"colr" and data[start : start + 4] == b"nclx" and end - start >= 10:
            return struct.unpack(">HH", data[start + 4 : start + 8])
    return None


def _associated(data: bytes, place: int, item: int) -> list[int]:
    """Numbers (from 1) of the properties of `item` in the `ipma` box whose content begins at `place`."""
    version, wide = data[place], data[place + 3] & 1
    count = struct.unpack(">I", data[place + 4 : place + 8])[0]
    place += 8
    for _ in range(min(count, 65_536)):
        size = 4 if version else 2
        number = struct.unpack(">I" if version else ">H", data[place : place + size])[0]
        properties = data[place + size]
        place += size + 1
        found = []
        for _ in range(properties):
            found.append(struct.unpack(">H", data[place : place + 2])[0] & 0x7FFF if wide else data[place] & 0x7F)
            place += 2 if wide else 1
        if number == item:
            return [index for index in found if index]
    return []


# ---------------------------------------------------------------------------------------------- BMP


def bmp_profile(data: bytes) -> bytes | None:
    """The ICC profile that a BMP with a BITMAPV5HEADER (wingdi.h) carries, or None."""
    if len(data) < 138 or struct.unpack("<I", data[14:18])[0] != 124 or data[70:74] != b"DEBM":
        return None
    start, size = struct.unpack("<II", data[126:134])
    return data[14 + start : 14 + start + size]
