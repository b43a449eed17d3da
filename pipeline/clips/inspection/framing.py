"""What a still's frame holds: bars, a product that it cuts, several products, things behind them, letters over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.clips.inspection.product import Mask, ProductArea, shadowed
from pipeline.clips.inspection.view import StillView

# -- bars ------------------------------------------------------------------------------------------------------------

#: Levels (of 255) within which a bar is one colour, and by which the picture beside it differs.
_BAR_LEVELS, _STEP_LEVELS = 10, 12
#: Share of a row's pixels that may be of another colour within a bar, and that have to be of another one beside it.
_BAR_SPECKS, _BESIDE_SHARE = 0.02, 0.8
#: Least depth of a bar as a share of the side, and in pixels.
_BAR_DEPTH, _BAR_PIXELS = 0.012, 3


@dataclass(frozen=True, kw_only=True)
class Bars:
    """How deep the bars of one colour are that a picture has at its sides, in pixels; 0 where it has none."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))


def bars(pixels: NDArray[np.float32]) -> Bars:
    """The bars of a picture of (height, width, 3) levels: above and below, at both sides, or all around.

    A bar is of one colour and ends in a straight line, beside which nearly all is of another colour; so the plain
    background of a product is none. Bars at one side alone are none: a floor may be one.
    """
    height, width = pixels.shape[:2]
    least_x, least_y = (max(_BAR_PIXELS, round(_BAR_DEPTH * side)) for side in (width, height))
    if width <= 4 * least_x or height <= 4 * least_y:
        return Bars()
    for colour in (np.median(pixels[:2], axis=(0, 1)), np.median(pixels[:, :2], axis=(0, 1))):
        differs = np.abs(pixels - colour).max(axis=2) > _BAR_LEVELS
        rows, columns = (np.flatnonzero(differs.mean(axis=axis) > _BAR_SPECKS) for axis in (1, 0))
        if not len(rows) or not len(columns):
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        if bottom - top < 8 or right - left < 8:
            continue
        inside = np.abs(pixels[top:bottom, left:right] - colour).max(axis=2) > _STEP_LEVELS
        beside = [
            # A pixel further in: the line itself may be half of either.
            max(float(line.mean()) for line in lines)
            for lines in (inside[:, 1:3].T, inside[1:3], inside[:, -3:-1].T, inside[-3:-1])
        ]
        found = [
            int(depth) if depth >= least and share >= _BESIDE_SHARE else 0
            for depth, least, share in zip(
                (left, top, width - right, height - bottom), (least_x, least_y) * 2, beside, strict=True
            )
        ]
        across, down = bool(found[0] and found[2]), bool(found[1] and found[3])
        if across or down:
            return Bars(
                left=found[0] * across, right=found[2] * across, top=found[1] * down, bottom=found[3] * down
            )
    return Bars()


# -- the product's edge ----------------------------------------------------------------------------------------------

#: Levels by which a product at the border differs from the background there, and the darkest a shadow may be.
_AT_BORDER_LEVELS, _DARKEST_SHADOW, _SHADOW_TINT = 25, 0.3, 14.0
#: Something thin with hard edges counts more than its width: levels of its edges.
_HARD_LEVELS, _THIN_PIXELS = 90, 3


def cut_share(area: ProductArea) -> float:
    """Largest share of a side of the frame along which the product goes on beyond it; shadows on the floor do not."""
    edges_of_mask = (area.mask[:, 0], area.mask[0], area.mask[:, -1], area.mask[-1])
    background = area.background
    return max(
        _beyond(line, edge, curve)
        for line, edge, curve in zip(edges_of_mask, background.edges, background.curves, strict=True)
    )


def _beyond(line: Mask, edge: NDArray[np.float32], curve: NDArray[np.float32]) -> float:
    away = np.abs(edge - curve).max(axis=1)
    product = line & (away > _AT_BORDER_LEVELS) & ~shadowed(edge, curve, least=_DARKEST_SHADOW, tint=_SHADOW_TINT)
    share = float(product.mean())
    labels, count = ndimage.label(line & (away > _AT_BORDER_LEVELS))
    for part in ndimage.find_objects(labels, max_label=count):
        first, last = part[0].start, part[0].stop
        if last - first >= _THIN_PIXELS and min(_step(edge, first), _step(edge, last - 1)) >= _HARD_LEVELS:
            share = max(share, 2 * (last - first) / len(line))
    return share


def _step(edge: NDArray[np.float32], at: int) -> float:
    """The steepest change of colour along an edge near `at`, in levels over three pixels; 255 at the end of it."""
    if at <= 2 or at >= len(edge) - 3:
        return 255.0
    near = edge[max(0, at - 4) : at + 5]
    return float(np.abs(near[3:] - near[:-3]).max()) if len(near) > 3 else 0.0


# -- several ---------------------------------------------------------------------------------------------------------

#: Gap that parts of one product may have between them, as a share of the picture's side.
_GAP = 0.02
#: Share of the largest part's area from which another part is a product of its own.
_OTHER_SHARE = 0.12


def products(area: ProductArea) -> list[tuple[int, float]]:
    raise NotImplementedError


# -- what is behind --------------------------------------------------------------------------------------------------

#: Levels beyond which a border's colours do not follow a smooth curve.
_UNRULY_LEVELS = 14


def unruly_share(area: ProductArea) -> float:
    """Share of three sides of the frame or more at which something else than a smooth background is seen.

    Two sides may be crossed by the product or by a shadow.
    """
    shares = sorted(
        float(np.mean(np.abs(edge - curve).max(axis=1) > _UNRULY_LEVELS))
        for edge, curve in zip(area.background.edges, area.background.curves, strict=True)
    )
    return shares[1]
