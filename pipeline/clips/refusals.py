"""Why a file is no still: the true reason, and what to do."""

from __future__ import annotations

import io
import struct

from PIL import Image, TiffImagePlugin, features

from pipeline.clips.colour import BROKEN_METADATA
from pipeline.clips.containers import brands
from pipeline.problems import BadInputError

#: Largest still that is decoded, in pixels. Larger ones are refused from their header alone.
MAX_STILL_PIXELS = 100_000_000
#: Smallest side of a still, in pixels.
MIN_STILL_SIDE = 16
#: Formats that are read, in words.
READABLE = "PNG, JPEG, WebP, TIFF, BMP" + (", AVIF" if features.check("avif") else "")

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AS_JPEG = "Export it as JPEG or PNG."
#: First bytes, letters small, of files that are handed in for pictures, and what they are.
_OTHERS = {
    b"%pdf": ("a PDF document", "Export the page as PNG or JPEG."),
    b"\0\0\0\x0cjxl ": ("a JPEG XL picture, which is not read", _AS_JPEG),
    b"\xff\x0a": ("a JPEG XL picture, which is not read", _AS_JPEG),
    b"\0\0\0\x0cjp  ": ("a JPEG 2000 picture, which is not read", _AS_JPEG),
    b"\xff\x6f\xff\x71": ("a JPEG 2000 picture, which is not read", _AS_JPEG),
    b"8bps": ("a Photoshop document, which is not read", "Export it as PNG, JPEG or TIFF."),
    b"\x76\x2f\x31\x01": ("an OpenEXR picture, which is not read", "Export it as 16-bit PNG or TIFF."),
    b"pk\x03\x04": ("a ZIP archive or office document", "Give the picture in it."),
    b"<!doctype html": ("a web page", "Its link leads to a page: save the picture itself."),
    b"<html": ("a web page", "Its link leads to a page: save the picture itself."),
}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_PHOTOMETRICS = {
    0: "grey",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "ink",
    6: "YCbCr",
    8: "L*a*b*",
    9: "L*a*b*",
    10: "L*a*b*",
    32803: "sensor",
    34892: "sensor",
}
#: A tag that every DNG has.
_DNG_VERSION = 50_706


def refuse_by_signature(data: bytes) -> None:
    """Refuse what is known by its first bytes to be something else than a picture that is read.

    Raises `BadInputError`.
    """
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!--", b"<!doctype")) and b"<svg" in head):
        raise BadInputError(
            "image", "the file is an SVG drawing, not a picture of pixels", "Export it as PNG or JPEG, 1024 px or more."
        )
    start = data[:32].lower()
    for signature, (what, remedy) in _OTHERS.items():
        if head.startswith(signature) or start.startswith(signature):
            raise BadInputError("image", f"the file is {what}", remedy)
    named = set(brands(data))
    if named & {b"avif", b"avis"}:
        if not features.check("avif"):
            raise BadInputError("image", "the file is an AVIF picture, which this Pillow does not read", _AS_JPEG)
    elif named & _HEIF:
        raise BadInputError("image", "the file is a HEIC photo, which is not read", _AS_JPEG)
    elif b"crx " in named:
        raise _raw()
    elif named:
        raise BadInputError("image", "the file is a video", "Give one frame of it as PNG or JPEG.")


def check_begins(head: bytes) -> None:
    """Refuse a file by its first bytes, of which 4,096 are enough, unless it begins as a picture that is read.

    Raises `BadInputError`.
    """
    if not head:
        raise BadInputError("image", "the file is empty (0 bytes)", "Upload or export the picture again.")
    refuse_by_signature(head)
    if not _is_known(head):
        raise BadInputError("image", "the file is not a picture", f"Give a {READABLE} file.")


def refuse_raw(image: Image.Image) -> None:
    """Refuse a camera's raw file, whose previews alone would be seen. Raises `BadInputError`."""
    if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", {}):
        raise _raw()


def _raw() -> BadInputError:
    return BadInputError("image", "the file is a camera's raw file, which is not developed here", _AS_JPEG)


def check_size(size: tuple[int, int]) -> None:
    """Refuse a picture of too few or too many pixels. Raises `BadInputError`."""
    width, height = size
    if width * height > MAX_STILL_PIXELS:
        raise too_many_pixels(f"{width}×{height} pixels")
    if min(width, height) < MIN_STILL_SIDE:
        raise BadInputError(
            "image",
            f"the picture is too small ({width}×{height} pixels)",
            f"Give one of at least {MIN_STILL_SIDE} pixels a side; 512 or more look good.",
        )


def too_many_pixels(what: str) -> BadInputError:
    """The refusal of a picture that is too large; `what` says how large it is."""
    limit = f"the limit is {MAX_STILL_PIXELS // 1_000_000} megapixels"
    return BadInputError("image", f"the picture is too large ({what}; {limit})", "Scale it down, 4096 px are plenty.")


def unreadable(data: bytes, reason: str) -> BadInputError:
    """Why `data` is not read: no picture, of a kind that is not read, or damaged; a decoder said `reason`."""
    if not _is_known(data):
        return BadInputError("image", f"the file ({len(data):,} bytes) is not a picture", f"Give a {READABLE} file.")
    try:
        kind = _unread_tiff(data) if data.startswith(_TIFF) else _unread_jpeg(data)
    except BROKEN_METADATA:
        kind = None
    if kind is not None:
        return BadInputError("image", f"the picture is whole, but of a kind that is not read: {kind}", _AS_JPEG)
    return BadInputError(
        "image", f"the picture is truncated or damaged ({len(data):,} bytes: {reason})", "Upload or export it again."
    )


def _is_known(data: bytes) -> bool:
    return bool(data.startswith(_PICTURES) or brands(data) or _is_webp(data))


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"[: len(data[8:12])]


def _unread_tiff(data: bytes) -> str | None:
    """What a TIFF holds whose samples all lie within the file; None where some are missing."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2] == 43 or data[3] == 43 else data[:8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    places = directory.get(273) or directory.get(324) or ()
    sizes = directory.get(279) or directory.get(325) or ()
    if not places or len(places) != len(sizes) or max(p + s for p, s in zip(places, sizes, strict=True)) > len(data):
        return None
    bits = directory.get(258, (1,))
    numbers = "float" if directory.get(339, (1,))[0] == 3 else "whole numbers"
    meaning = _PHOTOMETRICS.get(directory.get(262, -1), "unknown")
    compression = TiffImagePlugin.COMPRESSION_INFO.get(directory.get(259, 1), "unknown compression")
    return f"a TIFF of {len(bits)} {meaning} samples of {bits[0]} bits ({numbers}, {compression})"


def _unread_jpeg(data: bytes) -> str | None:
    """What is unusual about a JPEG's coding (ITU-T T.81, table B.1); None where nothing is."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 5 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], struct.unpack(">H", data[place + 2 : place + 4])[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if data[place + 4] != 8:
                return f"a JPEG of {data[place + 4]} bits a sample"
            return "a lossless or hierarchical JPEG" if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) else None
        place += 2 + length
    return None
