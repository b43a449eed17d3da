"""Checks of pixels: of a still before its clip is made, and of a finished clip before it is published."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note

#: Brightest level (of 255) that still counts as black.
_BLACK_LEVEL = 8
#: Spread between the darkest and the brightest level of a frame (of 255) that a person sees as one flat colour.
_FLAT_SPREAD = 3
#: Longest side, in pixels, at which a still is judged: about what the smaller classes show of it.
_STILL_SIDE = 512
#: A still of one colour: all but this percentage of it lies within so many levels (of 255) of the most common one.
_PLAIN_PERCENT, _PLAIN_LEVELS = 0.1, 10
#: A very dark still: but for half a percent of it, nothing is brighter than this level.
_DARK_LEVEL, _HIGHLIGHTS_PERCENT = 64, 0.5
#: A blurred still: its sharpest edges, a quarter of a percent of it, are as soft as a Gaussian of so many pixels makes
#: them. Product pictures have 0.2 to 0.35, such pictures blurred by 2 of 512 pixels 0.9 and more. Of pictures
#: smaller than these it cannot be told, and how far they are enlarged is noted anyway.
_BLUR_SIGMA, _EDGES_PERCENT = 0.85, 0.25
_LEAST_JUDGED_SIDE = 256


def review(frames: NDArray[np.uint8]) -> list[Note]:
    """What looks wrong with `frames` (frames, height, width, 3): `black`, `uniform`, `no_motion`; empty where nothing.

    Black and uniform are said of a clip only if all of its frames are; a black clip is not called uniform as well.
    """
    findings = []
    spread = 0
    brightest = 0
    for frame in frames:
        brightest = max(brightest, int(frame.max()))
        spread = max(spread, int(np.ptp(frame, axis=(0, 1)).max()))
        if spread > _FLAT_SPREAD and brightest > _BLACK_LEVEL:
            break
    if brightest <= _BLACK_LEVEL:
        findings.append(Note(code="black", message=f"all {len(frames)} frames are black"))
    elif spread <= _FLAT_SPREAD:
        findings.append(Note(code="uniform", message=f"all {len(frames)} frames are one flat colour"))
    if len(frames) > 1 and all(np.array_equal(frame, frames[0]) for frame in frames[1:]):
        findings.append(Note(code="no_motion", message=f"all {len(frames)} frames are the same picture"))
    return findings


def judge_still(still: Image.Image) -> list[Note]:
    """What of `still` (RGB, upright) gives a bad clip: the first of `still_dark`, `still_uniform`, `still_blurred`.

    Judged at 512 pixels a side, or at its own size where that is smaller. Rules of thumb: noise and blocks of JPEGs
    hide a blur. Empty where nothing was found.
    """
    if (scale := _STILL_SIDE / max(still.size)) < 1:
        size = (max(1, round(still.width * scale)), max(1, round(still.height * scale)))
        still = still.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(still, np.float32)
    grey = np.asarray(still.convert("L"), np.float32)
    brightest = float(np.percentile(grey, 100 - _HIGHLIGHTS_PERCENT))
    if brightest < _DARK_LEVEL:
        text = f"the still is very dark: its brightest parts have {brightest:.0f} of 255. Brighten it, or take another"
        return [Note(code=StillNoteCode.STILL_DARK, message=text)]
    away = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=2)
    if np.mean(away > _PLAIN_LEVELS) * 100 < _PLAIN_PERCENT:
        text = (
            "the still is nearly one colour, and nothing else is to be seen in it: check that it is the right picture"
        )
        return [Note(code=StillNoteCode.STILL_UNIFORM, message=text)]
    if max(still.size) >= _LEAST_JUDGED_SIDE and edge_softness(grey) > _BLUR_SIGMA:
        text = f"the still is blurred: even its sharpest edges are soft at {_STILL_SIDE} pixels. Give a sharper one"
        return [Note(code=StillNoteCode.STILL_BLURRED, message=text)]
    return []


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
