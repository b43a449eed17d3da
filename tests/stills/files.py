"""Picture files written by the byte: what Pillow cannot write, it must still read."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[Any]

#: Passes of Adam7: first column and row, and the steps (PNG, 8.1).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(samples: Pixels, depth: int, order: str = ">") -> bytes:
    """(height, width, bands) as rows of `depth` bits a sample, each row filled up to whole bytes."""
    if depth == 32:
        return samples.astype(f"{order}f4").tobytes()
    if depth == 16:
        return samples.astype(f"{order}u2").tobytes()
    flat = samples.reshape(len(samples), -1).astype(np.uint8)
    bits = np.unpackbits(flat[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(len(samples), -1), axis=-1).tobytes()


def png(
    samples: Pixels, depth: int, colour_type: int, *, before: Sequence[bytes] = (), interlaced: bool = False
) -> bytes:
    """A PNG of `samples` (height, width, bands); `before`: chunks between the header and the pixels."""
    height, width = samples.shape[:2]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            rows, size = packed(part, depth), (part.shape[1] * part.shape[2] * depth + 7) // 8
            raw += b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(len(part)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def iccp(profile: bytes, name: bytes = b"sRGB") -> bytes:
    """An iCCP chunk; by its name every profile here claims to be sRGB."""
    return chunk(b"iCCP", name + b"\0\0" + zlib.compress(profile))


def xmp(orientation: int) -> bytes:
    """An XMP packet that says nothing but the orientation."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


@dataclass(frozen=True, kw_only=True)
class Page:
    """One image of a TIFF."""

    samples: Pixels
    depth: int
    photometric: int
    #: Further tags: number to values of type SHORT, or bytes of type UNDEFINED, or tuples (type, count, bytes).
    tags: dict[int, tuple[int, ...] | bytes] = field(default_factory=dict)
    deflate: bool = False


def tiff(*pages: Page, order: str = "<") -> bytes:
    """A TIFF of one strip a page, in the byte order `order`."""
    out = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 42)
    body, place = b"", 8
    patches: list[tuple[int, int]] = []  # where each directory begins, and where its link to the next one is
    for page in pages:
        height, width, bands = page.samples.shape
        data = packed(page.samples, page.depth, order)
        data = zlib.compress(data) if page.deflate else data
        tags: dict[int, tuple[int, ...] | bytes] = {
            256: (width,), 257: (height,), 258: (page.depth,) * bands, 259: (8 if page.deflate else 1,),
            262: (page.photometric,), 277: (bands,), 278: (height,), 339: (3 if page.depth == 32 else 1,) * bands,
        }  # fmt: skip
        tags |= page.tags
        entries, extra = [], b""
        start = place + len(data) + len(data) % 2
        directory_size = 2 + 12 * (len(tags) + 2) + 4
        for number, values in sorted([*tags.items(), (273, (place,)), (279, (len(data),))], key=lambda item: item[0]):
            if isinstance(values, bytes):
                kind, count, content = 7, len(values), values
            elif number in (273, 279):
                kind, count, content = 4, 1, struct.pack(f"{order}I", values[0])
            else:
                kind, count, content = 3, len(values), struct.pack(f"{order}{len(values)}H", *values)
            if len(content) > 4:
                offset = start + directory_size + len(extra)
                extra += content + b"\0" * (len(content) % 2)
                content = struct.pack(f"{order}I", offset)
            entries.append(struct.pack(f"{order}HHI", number, kind, count) + content.ljust(4, b"\0"))
        patches.append((start, start + directory_size - 4))
        body += data + b"\0" * (len(data) % 2)
        body += struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + extra
        place = 8 + len(body)
    whole = bytearray(out + struct.pack(f"{order}I", patches[0][0]) + body)
    for (_, link), (following, _) in itertools.pairwise(patches):
        whole[link : link + 4] = struct.pack(f"{order}I", following)
    return bytes(whole)


def exif(entries: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """A little-endian EXIF block of raw entries: tag, type, count, 4 bytes of content."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def orientation_entry(value: int) -> tuple[int, int, int, bytes]:
    """EXIF's tag of the orientation."""
    return 0x0112, 3, 1, struct.pack("<H", value)


def adobe_rgb_exif(orientation: int) -> bytes:
    """EXIF of DCF 2.0's Adobe RGB: uncalibrated colours, and `R03` in the interoperability directory."""
    # Directories one after the other: the first of 2 entries at 8, Exif's of 2 at 38, the interoperability's at 68.
    first = struct.pack("<H", 2) + struct.pack("<HHII", 0x0112, 3, 1, orientation)
    first += struct.pack("<HHII", 0x8769, 4, 1, 38) + bytes(4)
    second = struct.pack("<H", 2) + struct.pack("<HHII", 0xA001, 3, 1, 0xFFFF)
    second += struct.pack("<HHII", 0xA005, 4, 1, 68) + bytes(4)
    third = struct.pack("<HHHI4s", 1, 1, 2, 4, b"R03\0") + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + third


# ---------------------------------------------------------------------------------------------- profiles


def lcms_srgb() -> bytes:
    """sRGB as LittleCMS makes it."""
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def vips_profile(name: str) -> bytes:
    """One of libvips' own profiles: `srgb`, `p3`, `cmyk`."""
    return bytes(pyvips.Operation.call("profile_load", name))


def changed_srgb(*, gamma: float | None = None, swapped: bool = False) -> bytes:
    """LittleCMS's sRGB, still called so, with a plain gamma for its curve, or red and green exchanged."""
    profile = bytearray(lcms_srgb())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    if gamma is not None:
        for kind in (b"rTRC", b"gTRC", b"bTRC"):
            start = struct.unpack(">I", profile[places[kind] + 4 : places[kind] + 8])[0]
            assert profile[start : start + 4] == b"para"
            numbers = (gamma, 1.0, 0.0, 0.0, 0.0)
            profile[start + 12 : start + 32] = struct.pack(">5i", *(round(n * 65_536) for n in numbers))
    if swapped:
        red, green = places[b"rXYZ"], places[b"gXYZ"]
        profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """A grey profile (version 2) of a plain gamma."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63_190, 65_536, 54_061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"sRGB\0" + bytes(78)
    text += bytes(-len(text) % 4)
    table, body = struct.pack(">I", 4), b""
    for kind, content in ((b"desc", text), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"wtpt", white), (b"kTRC", curve)):
        table += struct.pack(">4sII", kind, 128 + 4 + 48 + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", 180 + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + white[8:]
    return header.ljust(128, b"\0") + table + body


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """`image` as Pillow writes it."""
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()
