"""The pixels a still must show, by libvips as the reader and by published formulas for what libvips leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]
#: From samples (height, width, 1, 3 or 4), 0 to 1, to encoded sRGB (height, width, 3), 0 to 1.
Formula = Callable[[Floats], Floats]

# Matrices of CSS Color Module Level 4, section 18: linear RGB to XYZ of D65, and D50 to D65.
SRGB = np.array([[506752 / 1228815, 87881 / 245763, 12673 / 70218],
                 [87098 / 409605, 175762 / 245763, 12673 / 175545],
                 [7918 / 409605, 87881 / 737289, 1001167 / 1053270]])  # fmt: skip
P3 = np.array([[608311 / 1250200, 189793 / 714400, 198249 / 1000160],
               [35783 / 156275, 247089 / 357200, 198249 / 2500400],
               [0, 32229 / 714400, 5220557 / 5000800]])  # fmt: skip
REC2020 = np.array([[63426534 / 99577255, 20160776 / 139408157, 47086771 / 278816314],
                    [26158966 / 99577255, 472592308 / 697040785, 8267143 / 139408157],
                    [0, 19567812 / 697040785, 295819943 / 278816314]])  # fmt: skip
ADOBE = np.array([[573536 / 994567, 263643 / 1420810, 187206 / 994567],
                  [591459 / 1989134, 6239551 / 9945670, 374412 / 4972835],
                  [53769 / 1989134, 351524 / 4972835, 4929758 / 4972835]])  # fmt: skip
_D50_TO_D65 = np.array([[0.955473421488075, -0.02309845494876471, 0.06325924320057072],
                        [-0.0283697093338637, 1.0099953980813041, 0.021041441191917323],
                        [0.012314014864481998, -0.020507649298898964, 1.330365926242124]])  # fmt: skip
#: Orientation as turns of an array (EXIF 2.32): transposed first, then flipped up-down, then left-right.
_TURNS = {
    1: (0, 0, 0),
    2: (0, 0, 1),
    3: (0, 1, 1),
    4: (0, 1, 0),
    5: (1, 0, 0),
    6: (1, 0, 1),
    7: (1, 1, 1),
    8: (1, 1, 0),
}


def decoded_srgb(encoded: Floats) -> Floats:
    """sRGB's curve (IEC 61966-2-1), from samples to light."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encoded_srgb(light: Floats) -> Floats:
    """sRGB's curve, from light to samples."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def rgb_formula(to_xyz: NDArray[np.float64], curve: Callable[[Floats], Floats]) -> Formula:
    """From an RGB space of white D65 to sRGB."""

    def shown(samples: Floats) -> Floats:
        light = curve(np.broadcast_to(samples, (*samples.shape[:2], 3)))
        return encoded_srgb(light @ (np.linalg.inv(SRGB) @ to_xyz).T)

    return shown


def gamma_curve(gamma: float) -> Callable[[Floats], Floats]:
    """From samples to light by a plain exponent."""
    return lambda samples: samples**gamma


def plain(samples: Floats) -> Floats:
    """sRGB or grey as they are."""
    return np.broadcast_to(samples, (*samples.shape[:2], 3))


def inks(samples: Floats) -> Floats:
    """Cyan, magenta, yellow and black without a profile (CSS Color 5, 10.1: naive conversion)."""
    return (1 - samples[..., :3]) * (1 - samples[..., 3:4])


def lab_d50(samples: Floats) -> Floats:
    """CIE L*a*b* of D50 (CIE 15:2004) given as L/100, and a and b as offsets of 128 in 255."""
    lightness, a, b = samples[..., 0] * 100, samples[..., 1] * 255 - 128, samples[..., 2] * 255 - 128
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    d50 = np.array([0.3457 / 0.3585, 1.0, (1 - 0.3457 - 0.3585) / 0.3585])
    return encoded_srgb((xyz * d50) @ _D50_TO_D65.T @ np.linalg.inv(SRGB).T)


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels as a viewer turns them."""
    transposed, up_down, left_right = _TURNS[orientation]
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    pixels = pixels[::-1] if up_down else pixels
    return pixels[:, ::-1] if left_right else pixels


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What each pixel may be, (height, width, 3); both the same unless readers may round differently."""

    low: Levels
    high: Levels

    def distance(self, shown: Levels) -> NDArray[np.int64]:
        """By how many levels each sample of `shown` leaves the bounds."""
        values = shown.astype(np.int64)
        return np.asarray(np.maximum(np.maximum(self.low - values, values - self.high), 0))


def by_libvips(
    data: bytes, formula: Formula | None, profile: bytes | None, *, orientation: int | None = None, rounding: int = 0
) -> Expected:
    """Read, turn and convert by libvips; `formula` takes the place of its colours, `orientation` of what it reads.

    `rounding`: levels by which another reader's samples may differ before a formula spreads them.
    """
    image = pyvips.Image.new_from_buffer(data, "")
    if orientation is None:
        return _shown(image.autorot(), formula, profile, rounding)
    stored = _shown(image, formula, profile, rounding)
    return Expected(low=turned(stored.low, orientation), high=turned(stored.high, orientation))


def by_samples(
    samples: Floats,
    alpha: Floats | None,
    orientation: int,
    formula: Formula | None,
    profile: bytes | None,
    *,
    rounding: int = 0,
) -> Expected:
    """The same from the samples that were put into the file, (height, width, bands), 0 to 1."""
    whole = samples if alpha is None else np.concatenate([samples, alpha[..., None]], axis=-1)
    upright = np.ascontiguousarray(turned(whole, orientation))
    if profile is not None:
        numbers: NDArray[Any] = np.rint(upright * 255).astype(np.uint8)
        space = {1: "b-w", 3: "srgb", 4: "cmyk"}[samples.shape[-1]]
    else:
        numbers = np.rint(upright * 65_535).astype(np.uint16)
        space = {1: "grey16", 3: "rgb16", 4: "cmyk"}[samples.shape[-1]]
    return _shown(pyvips.Image.new_from_array(numbers, interpretation=space), formula, profile, rounding)


def _shown(image: pyvips.Image, formula: Formula | None, profile: bytes | None, rounding: int) -> Expected:
    alpha = None
    if image.hasalpha():
        alpha = image[image.bands - 1].numpy().astype(np.float64)[..., None] / _white(image)
        image = image.extract_band(0, n=image.bands - 1)

    def finished(colours: Floats) -> Floats:
        flat = np.broadcast_to(colours.reshape(image.height, image.width, -1), (image.height, image.width, 3))
        return flat if alpha is None else flat * alpha + 1 - alpha

    if profile is not None:
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        options = {"embedded": True, "intent": "relative", "black_point_compensation": True, "depth": 8}
        all_colours = [finished(image.icc_transform("srgb", **options).numpy() / 255.0)]
    elif formula is not None:
        numbers = image.numpy().reshape(image.height, image.width, image.bands).astype(np.float64)
        steps = itertools.product((-rounding, rounding), repeat=image.bands) if rounding else [(0,) * image.bands]
        moved = (numbers / _white(image) + np.array(step) / 255 for step in steps)
        all_colours = [finished(formula(np.clip(samples, 0, 1))) for samples in moved]
    else:
        all_colours = [finished(image.colourspace("srgb").numpy() / 255.0)]
    levels = np.rint(np.clip(np.stack(all_colours), 0, 1) * 255).astype(np.uint8)
    return Expected(low=levels.min(axis=0), high=levels.max(axis=0))


def _white(image: pyvips.Image) -> float:
    if image.format == "float":
        return 1.0
    return 65_535.0 if image.interpretation in ("rgb16", "grey16") or image.format == "ushort" else 255.0
