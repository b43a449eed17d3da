"""ICC profiles for colour spaces that files name instead of describing: by code points, chromaticities or a gamma."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_D65 = (0.3127, 0.3290)
_ILLUMINANT_C = (0.310, 0.316)
#: D50 as the profile connection space has it (ICC.1:2022, 7.2.16).
_PCS_WHITE = np.array([0.9642, 1.0, 0.8249])
#: Bradford's cone responses (ICC.1:2022, annex E.3).
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Chromaticity = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """From a sample to light, both 0 to 1: (a·x + b)^gamma from `d` on, c·x below it (ICC.1:2022, 10.18, type 3)."""

    gamma: float
    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0


#: IEC 61966-2-1.
SRGB_CURVE = Curve(gamma=2.4, a=1 / 1.055, b=0.055 / 1.055, c=1 / 12.92, d=0.04045)


@dataclass(frozen=True, kw_only=True)
class RgbSpace:
    """An additive RGB space: chromaticities (CIE 1931 x, y) of its primaries and white, and its curve."""

    red: Chromaticity
    green: Chromaticity
    blue: Chromaticity
    white: Chromaticity = _D65
    curve: Curve = SRGB_CURVE

    def to_xyz(self) -> NDArray[np.float64]:
        """(3, 3): linear RGB to CIE XYZ relative to the space's own white of Y = 1 (SMPTE RP 177).

        Raises `numpy.linalg.LinAlgError` where the primaries span no colours, `ZeroDivisionError` where a y is 0.
        """
        columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in (self.red, self.green, self.blue)]).T
        x, y = self.white
        return np.asarray(columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y])))


SRGB = RgbSpace(red=(0.640, 0.330), green=(0.300, 0.600), blue=(0.150, 0.060))
#: Adobe RGB (1998) colour image encoding, 4.3.
ADOBE_RGB = RgbSpace(red=(0.640, 0.330), green=(0.210, 0.710), blue=(0.150, 0.060), curve=Curve(gamma=2 + 51 / 256))

#: Primaries by their code point (ITU-T H.273, table 2). 2, unspecified, and those left out: as in sRGB.
_PRIMARIES = {
    4: RgbSpace(red=(0.67, 0.33), green=(0.21, 0.71), blue=(0.14, 0.08), white=_ILLUMINANT_C),
    5: RgbSpace(red=(0.64, 0.33), green=(0.29, 0.60), blue=(0.15, 0.06)),
    6: RgbSpace(red=(0.630, 0.340), green=(0.310, 0.595), blue=(0.155, 0.070)),
    7: RgbSpace(red=(0.630, 0.340), green=(0.310, 0.595), blue=(0.155, 0.070)),
    8: RgbSpace(red=(0.681, 0.319), green=(0.243, 0.692), blue=(0.145, 0.049), white=_ILLUMINANT_C),
    9: RgbSpace(red=(0.708, 0.292), green=(0.170, 0.797), blue=(0.131, 0.046)),
    11: RgbSpace(red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060), white=(0.314, 0.351)),
    12: RgbSpace(red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060)),
    22: RgbSpace(red=(0.630, 0.340), green=(0.295, 0.605), blue=(0.155, 0.077)),
}
#: Curves by their code point (table 3). The cameras' curves of television (1, 6, 14, 15) describe how light becomes a
#: signal, not how the signal is shown; viewers show stills of theirs as sRGB, and so they are left out here.
_CURVES = {4: Curve(gamma=2.2), 5: Curve(gamma=2.8), 8: Curve(gamma=1.0)}
#: Code points of transfers that mean more than a screen's white: PQ and HLG.
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}


def space_of_code_points(primaries: int, transfer: int) -> RgbSpace:
    """The space that two code points of ITU-T H.273 name; what they leave open, or do not know, is as in sRGB."""
    named = _PRIMARIES.get(primaries, SRGB)
    curve = _CURVES.get(transfer, SRGB_CURVE)
    return RgbSpace(red=named.red, green=named.green, blue=named.blue, white=named.white, curve=curve)


@lru_cache(maxsize=64)
def profile_of(space: RgbSpace) -> bytes:
    """`space` as an ICC profile of three colorants and one curve (version 4, display device).

    Raises `numpy.linalg.LinAlgError`, `ZeroDivisionError`, `ValueError` or `struct.error` where `space` is no space of
    colours that numbers of a profile can hold.
    """
    to_xyz = space.to_xyz()
    white = to_xyz.sum(axis=1)
    if not np.isfinite(to_xyz).all() or white.min() <= 0:
        raise ValueError(f"no colour space has the white {space.white}")
    scale = (_BRADFORD @ _PCS_WHITE) / (_BRADFORD @ white)
    colorants = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ to_xyz
    curve = space.curve
    trc = _tag(b"para", struct.pack(">HH", 3, 0) + _fixed(curve.gamma, curve.a, curve.b, curve.c, curve.d))
    text = _tag(b"mluc", struct.pack(">II2s2sII", 1, 12, b"en", b"US", 16, 28) + "clipmill".encode("utf-16-be"))
    tags = [(b"desc", text), (b"cprt", text), (b"wtpt", _tag(b"XYZ ", _fixed(*_PCS_WHITE)))]
    tags += [(kind, _tag(b"XYZ ", _fixed(*colorants[:, i]))) for i, kind in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(kind, trc) for kind in (b"rTRC", b"gTRC", b"bTRC")]
    table, body = struct.pack(">I", len(tags)), b""
    for kind, content in tags:
        table += struct.pack(">4sII", kind, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_PCS_WHITE)
    return header.ljust(128, b"\0") + table + body


def _tag(kind: bytes, content: bytes) -> bytes:
    return kind + bytes(4) + content


def _fixed(*values: float) -> bytes:
    """Numbers as s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))
