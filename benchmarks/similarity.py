"""How alike two clips are, in numbers with names; nothing here says which one looks better."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.frames import Frames

#: ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114])


def psnr(one: Frames, other: Frames) -> float:
    """Peak signal-to-noise ratio in dB of two clips of equal shape (ITU-T J.340); infinite where they are equal.

    Raises `ValueError` for different shapes.
    """
    if one.shape != other.shape:
        raise ValueError(f"clips of shapes {one.shape} and {other.shape} cannot be compared pixel by pixel")
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def motion_correlation(one: Frames, other: Frames) -> float:
    """Pearson correlation, -1 to 1, of how luma changes from frame to frame in two clips of any sizes and lengths.

    The larger clip is averaged down to the smaller one's size, and the one with more frames is sampled where the
    other's frames lie on a common clock from first to last frame. 1: the same things move, brighten and darken at
    the same times. A clip without any change has no motion to correlate: 0 then, as for unrelated ones.
    """
    height = min(one.shape[1], other.shape[1])
    width = min(one.shape[2], other.shape[2])
    count = min(len(one), len(other))
    changes = [np.diff(_luma(clip, count, width, height), axis=0).ravel() for clip in (one, other)]
    if any(float(change.std()) == 0 for change in changes):
        return 0.0
    return float(np.corrcoef(changes[0], changes[1])[0, 1])


def _luma(clip: Frames, count: int, width: int, height: int) -> NDArray[np.float64]:
    """(count, height, width): luma at evenly spaced frames, averaged down."""
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    small = [np.asarray(Image.fromarray(clip[i]).resize((width, height), Image.Resampling.BOX)) for i in chosen]
    luma: NDArray[np.float64] = np.stack(small).astype(np.float64) @ _LUMA
    return luma
