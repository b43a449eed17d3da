"""Levels and sharpness of a still: dark, burnt out, pale, of one colour, blurred, noisy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageChops

from pipeline.clips.inspection.view import StillView

#: Percentage of a picture that its brightest parts are, that is left out at either end of its levels (little, for a
#: product may be small), and that is taken for its sharpest edges.
_HIGHLIGHTS_PERCENT, _ENDS_PERCENT, _EDGES_PERCENT = 0.5, 0.05, 0.25
#: A blur up to this sigma can be sharpened away; of a stronger one nothing is left to sharpen.
MENDABLE_SIGMA = 1.1
#: Levels from which a channel is taken for cut, and from which a highlight begins.
_CUT_LEVEL, _LIGHT_LEVEL = 253, 235
#: Noise is not seen where it is cut.
_NOISE_BETWEEN, _NOISE_SEEN = (5, 250), 0.35
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def brightest_level(view: StillView) -> float:
    """The level that half a percent of a still reaches in its brightest channel."""
    return _levels_at(view.brightest, 100 - _HIGHLIGHTS_PERCENT)[0]


def _levels_at(grey: Image.Image, *percents: float) -> list[float]:
    """Percentiles of an 8-bit grey picture, from its histogram."""
    below = np.cumsum(grey.histogram()) / (grey.width * grey.height) * 100
    return [float(np.searchsorted(below, percent)) for percent in percents]


def unlike_share(view: StillView, levels: int) -> float:
    """Share of a still that lies further than so many levels from the median of its colours, in any channel."""
    colour = [int(_levels_at(channel, 50)[0]) for channel in view.image.split()]
    return float(np.mean(np.asarray(levels_from(view.image, colour)) > levels))


def levels_from(image: Image.Image, colour: Sequence[int]) -> Image.Image:
    """By how many levels the pixels of `image` (RGB) differ from a colour, in the channel where it is most."""
    away = ImageChops.difference(image, Image.new("RGB", image.size, (colour[0], colour[1], colour[2])))
    red, green, blue = away.split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


@dataclass(frozen=True, kw_only=True)
class LevelRange:
    """Levels (of 255) between which all of a picture's luma lies, but for a twentieth of a percent at either end."""

    darkest: float
    brightest: float

    @property
    def contrast(self) -> float:
        """From the darkest to the brightest."""
        return self.brightest - self.darkest


def level_range(view: StillView) -> LevelRange:
    """The range of levels of a still."""
    darkest, brightest = _levels_at(view.luma, _ENDS_PERCENT, 100 - _ENDS_PERCENT)
    return LevelRange(darkest=darkest, brightest=brightest)


def burnt_share(view: StillView) -> float:
    """Share of the product whose brightest channel is cut at white, beyond what a highlight has that was exposed well.

    Light that rolls off leaves more just below white than at white; of light that was cut it is the other way round.
    Backgrounds count for nothing: those of packshots are to be pure white.
    """
    if view.area.box is None:
        return 0.0
    mask = np.asarray(Image.fromarray(view.area.mask).resize(view.image.size, Image.Resampling.NEAREST))
    brightest = np.asarray(view.brightest)[mask]
    cut = float(np.mean(brightest >= _CUT_LEVEL))
    light = float(np.mean((brightest >= _LIGHT_LEVEL) & (brightest < _CUT_LEVEL)))
    return max(0.0, cut - 0.5 * light)


def cut_white_share(view: StillView) -> float:
    """Share of all of a still whose brightest channel is cut at white."""
    return sum(view.brightest.histogram()[_CUT_LEVEL:]) / (view.image.width * view.image.height)


def edge_softness(grey: NDArray[np.float32]) -> float:
    """Sigma in pixels of the Gaussian that makes edges as soft as the sharpest of `grey` (height, width) are.

    Of an edge blurred by sigma, the slope is at most height ÷ (sigma·√2π), and the curvature height ÷ (sigma²·√2πe):
    their ratio tells sigma, whatever the contrast. 0 for a picture of less than 3 pixels a side or without edges.
    """
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    slope = np.hypot(across, down) / 2
    curvature = np.abs(grey[1:-1, 2:] + grey[1:-1, :-2] + grey[2:, 1:-1] + grey[:-2, 1:-1] - 4 * inner)
    steepest, sharpest = (float(np.percentile(one, 100 - _EDGES_PERCENT)) for one in (slope, curvature))
    return float(np.exp(-0.5)) * steepest / sharpest if sharpest > 0 else 0.0


def noise_sigma(grey: NDArray[np.float32]) -> float:
    """Sigma in levels of the grain of `grey` (height, width); 0 where too little of it is neither black nor white.

    Immerkær, Fast noise variance estimation, 1996, with the median in place of the mean, so that edges count little.
    """
    if min(grey.shape) < 5:
        return 0.0
    inner = grey[2:-2, 2:-2]
    residue = np.abs(scipy.ndimage.convolve(grey, _NOISE_KERNEL))[2:-2, 2:-2]
    seen = (inner > _NOISE_BETWEEN[0]) & (inner < _NOISE_BETWEEN[1])
    # Where little else than the product is left, its own texture would be taken for grain.
    if np.mean(seen) < _NOISE_SEEN:
        return 0.0
    # 0.6745: the median of a normal distribution's distance from its mean, in sigmas; 6: the kernel's own norm.
    return float(np.median(residue[seen])) / 0.6745 / 6
