"""Checks of the pixels of a finished clip before it is published."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.notes import Note

#: Brightest level (of 255) that still counts as black.
_BLACK_LEVEL = 8
#: Spread between the darkest and the brightest level of a frame (of 255) that a person sees as one flat colour.
_FLAT_SPREAD = 3


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
