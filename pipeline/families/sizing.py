"""From a resolution class and an aspect ratio to a size in pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from pipeline.clips.clip import ResolutionClass
from pipeline.problems import BadInputError

#: The widest (and, inverted, the tallest) aspect ratio a clip may have.
MAX_ASPECT = 3.0

#: Aspect ratios this near (as a logarithm) are the same to the eye.
_NEAR = 0.05

_RATIO = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*[:/x]\s*(\d+(?:\.\d+)?)\s*$")


def parse_aspect(text: str) -> float:
    """Width ÷ height from `16:9`, `4/5`, `1080x1920`, however wide. Raises `BadInputError` for another form."""
    match = _RATIO.match(text)
    ratio = float(match[1]) / float(match[2]) if match and float(match[2]) else 0.0
    if not 0 < ratio < math.inf:
        raise BadInputError("aspect", f"{text!r} is not an aspect ratio", "Write it as 16:9, between 1:3 and 3:1.")
    return ratio


def size_for(
    resolution_class: ResolutionClass, aspect: float, stride: int, native: Sequence[tuple[int, int]] = ()
) -> tuple[int, int]:
    """(width, height) of the class's pixel budget at `aspect` (width ÷ height), in multiples of `stride`.

    A size of `native` is taken where it is of this class and within a twentieth of the aspect: models do worse beside
    the sizes they were trained at.

    Of the stride-aligned sizes near the ideal one it takes the one closest in aspect that stays within the
    class's area, so a class never costs more memory at another aspect.
    """
    return _size_for(resolution_class, aspect, stride, tuple(native))


@lru_cache(maxsize=4096)  # rows of a batch share a few shapes
def _size_for(
    resolution_class: ResolutionClass, aspect: float, stride: int, native: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
    budget = resolution_class.pixels
    smaller = max((c.pixels for c in ResolutionClass if c.pixels < budget), default=0)
    trained = [(w, h) for w, h in native if smaller < w * h <= budget and abs(math.log(w / h / aspect)) < _NEAR]
    if trained:
        return min(trained, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))
    aspect = min(max(aspect, 1 / MAX_ASPECT), MAX_ASPECT)
    ideal_width = math.sqrt(budget * aspect)

    def candidates(length: float, span: int) -> list[int]:
        middle = int(length // stride)
        return [stride * n for n in range(max(1, middle - span), middle + span + 1)]

    sizes = [
        (w, h)
        for w in candidates(ideal_width, 3)
        for h in candidates(ideal_width / aspect, 3)
        if 0.85 * budget <= w * h <= budget
    ] or [(max(stride, int(ideal_width // stride) * stride), max(stride, int(ideal_width / aspect // stride) * stride))]
    # Aspect first; a hundredth of aspect error is worth as much as a tenth of the area.
    return min(sizes, key=lambda s: abs(math.log(s[0] / s[1] / aspect)) + 0.1 * (1 - s[0] * s[1] / budget))
