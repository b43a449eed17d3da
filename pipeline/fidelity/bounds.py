"""From measures to scores: where each is as good as can be, and from where on it is told.

The bounds were chosen on one half of a catalog's stills, on good camera clips and on clips with faults that were made
on purpose; `benchmarks/fidelity.py` says what they find on the other half, and `--fit` what it would choose today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.fidelity.score import FidelityPart


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Where a measure, of which less is better, begins to cost score, and where it is told."""

    #: Up to here the score is 1.
    good: float
    #: Here it is 0.5, and from here on it is told.
    told: float

    def score(self, value: float) -> float:
        """0 to 1, by straight lines through `good` and `told`."""
        return min(1.0, max(0.0, 1 - 0.5 * (value - self.good) / (self.told - self.good)))


BOUNDS: Mapping[FidelityPart, Bound] = MappingProxyType(
    {
        # Mean difference of all channels, 0 to 1.
        FidelityPart.FIRST_FRAME: Bound(good=0.015, told=0.04),
        # Share of the frames in which the still was not found.
        FidelityPart.TRACK: Bound(good=0.0, told=0.2),
        # CIEDE2000.
        FidelityPart.COLOUR: Bound(good=1.0, told=3.0),
        # 1 - intersection over union.
        FidelityPart.OUTLINE: Bound(good=0.05, told=0.15),
        # 1 - contrast and structure of SSIM, over the worst squares.
        FidelityPart.STRUCTURE: Bound(good=0.1, told=0.3),
        # Share of the still's words that cannot be read any more.
        FidelityPart.TEXT: Bound(good=0.1, told=0.4),
        # Levels of 255.
        FidelityPart.FLICKER: Bound(good=0.4, told=1.5),
        # Share of the clip that is one picture.
        FidelityPart.FROZEN: Bound(good=0.1, told=0.3),
        # Share of the frames that are black: one of a hundred is enough.
        FidelityPart.BLACK: Bound(good=0.0, told=0.005),
        # Share of the frame's diagonal.
        FidelityPart.CUT: Bound(good=0.015, told=0.03),
        # Share of the product's area.
        FidelityPart.SECOND_PRODUCT: Bound(good=0.005, told=0.025),
        # How far the move is off what was asked for (`pipeline.fidelity.motion.MotionVerdict`).
        FidelityPart.MOTION: Bound(good=0.0, told=0.1),
    }
)
