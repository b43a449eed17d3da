"""Frames of a clip between the network and the files."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: (frames, height, width, 3) uint8 RGB.
Frames = NDArray[np.uint8]


class FrameSink(Protocol):
    """Takes a clip's frames while later ones are still made. What it raises ends the clip."""

    def begin(self, frames: Frames) -> None:
        """The clip will be made in `frames`, which holds nothing yet; what came of an earlier try is void."""
        ...

    def filled(self, count: int) -> None:
        """The first `count` frames are there, and stay as they are."""
        ...
