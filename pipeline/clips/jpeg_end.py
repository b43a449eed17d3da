"""A JPEG without its last two bytes: whether nothing but the end marker is missing.

Some cameras, and programs that cut files at a block of their disk, leave it out, and every viewer shows such a picture
whole. Pillow refuses it in the words that it has for half a picture.
"""

from __future__ import annotations

import hashlib
import io
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

_END = b"\xff\xd9"
#: Coefficients of a block (ITU-T T.81, A.3.6), all of them with all their bits.
_COEFFICIENTS = 64
#: Scans that are looked at; encoders write ten.
_MOST_SCANS = 200
#: What is put where data would go on: bits that a decoder which still wants some cannot take for the same picture.
_FILLINGS = (b"", b"\x55" * 512, b"\xaa" * 512)
_FIRST_RESTART, _RESTARTS = 0xD0, 8


def with_end(data: bytes) -> bytes | None:
    """`data` with the end marker, where nothing else is missing of this JPEG; else None.

    Nothing else is missing where its scans bring every bit of every coefficient, and the last one is complete: then
    bits that follow it change no pixel.
    """
    whole = data[:-1] if data.endswith(b"\xff") else data
    if not data.startswith(b"\xff\xd8") or not _scans_are_complete(whole):
        return None
    try:
        # Where the next part between restarts is missing, only one that begins with its marker is taken for it.
        fillings = (*_FILLINGS, _next_restart(whole) + _FILLINGS[1])
        found = {_pixels(whole + filling + _END) for filling in fillings}
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return None
    return whole + _END if len(found) == 1 else None


def _next_restart(data: bytes) -> bytes:
    """The restart marker (T.81, B.1.1.3) that would follow the last one."""
    begin = data.rfind(b"\xff\xda")
    places = [data.rfind(bytes((0xFF, _FIRST_RESTART + number)), begin) for number in range(_RESTARTS)]
    number = (places.index(max(places)) + 1) % _RESTARTS if max(places) > 0 else 0
    return bytes((0xFF, _FIRST_RESTART + number))


def _pixels(data: bytes) -> bytes:
    """SHA-256 of all samples."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
        return hashlib.sha256(np.ascontiguousarray(np.asarray(opened)).data).digest()


def _scans_are_complete(data: bytes) -> bool:
    """Whether the scans bring all coefficients of all components (T.81, B.2.3 and G.1.1.1)."""
    components: set[int] = set()
    #: Bits that are still missing below the ones that came; by component and coefficient.
    low: dict[tuple[int, int], int] = {}
    place, scans = 2, 0
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            # Samples: they end at a marker that is neither a stuffed byte nor a restart.
            place = data.find(b"\xff", place)
            if place < 0:
                break
        marker = data[place + 1] if place + 1 < len(data) else 0
        if marker == 0xFF:
            place += 1
            continue
        if marker == 0 or 0xD0 <= marker <= 0xD7:
            place += 2
            continue
        if marker == 0xD9 or place + 4 > len(data):
            break
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        segment = data[place + 4 : place + 2 + length]
        if 0xC0 <= marker <= 0xC2 and len(segment) >= 6:
            components = set(segment[6 : 6 + 3 * segment[5] : 3])
        if marker == 0xDA and segment:
            scans += 1
            if scans > _MOST_SCANS or len(segment) < 1 + 2 * segment[0] + 3:
                return False
            start, stop, bits = segment[1 + 2 * segment[0] :][:3]
            for component in segment[1 : 1 + 2 * segment[0] : 2]:
                low.update({(component, k): bits & 15 for k in range(start, min(stop, 63) + 1)})
        place += 2 + length
    return bool(components) and all(
        low.get((component, k)) == 0 for component in components for k in range(_COEFFICIENTS)
    )
