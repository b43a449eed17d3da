"""How well one colour stands out from another (WCAG 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: What letters need (success criterion 1.4.3), and what signs such as a logo need (1.4.11).
LEAST_CONTRAST, LEAST_SIGN_CONTRAST = 4.5, 3.0


def luminance(levels: NDArray[np.uint8] | Sequence[int]) -> NDArray[np.float64]:
    """Relative luminance, 0 to 1, of sRGB levels from 0 to 255: (…, 3) to (…). WCAG 2.2, "relative luminance"."""
    share = np.asarray(levels, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    found: NDArray[np.float64] = linear @ np.array([0.2126, 0.7152, 0.0722])
    return found


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """The contrast ratio of two colours, 1 to 21."""
    return ratio_of(float(luminance(one)), float(luminance(other)))


def ratio_of(one: float, other: float) -> float:
    """The contrast ratio of two luminances."""
    bright, dark = max(one, other), min(one, other)
    return (bright + 0.05) / (dark + 0.05)
