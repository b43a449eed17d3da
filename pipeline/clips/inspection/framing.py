"""What a still's frame holds: bars, a product that it cuts, several products, things behind them, letters over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.inspection.background import Background, Pixels, largest
from pipeline.clips.inspection.product import Mask, ProductArea, shadowed
from pipeline.clips.inspection.tones import levels_from

# -- bars ------------------------------------------------------------------------------------------------------------

#: Levels (of 255) within which a bar is one colour, and by which the picture beside it differs.
_BAR_LEVELS, _STEP_LEVELS = 10, 12
#: Share of a row's pixels that may be of another colour within a bar, and that have to be of another one beside it.
_BAR_SPECKS, _BESIDE_SHARE = 0.02, 0.8
#: Least depth of a bar as a share of the side, and in pixels; the largest of two bars, and of a frame.
_BAR_DEPTH, _BAR_PIXELS, _LARGEST_BAR, _LARGEST_FRAME = 0.012, 3, 0.38, 0.18
#: A frame that is brighter is the background of a product with straight sides.
_LIGHT_FRAME_LEVEL = 225


@dataclass(frozen=True, kw_only=True)
class Bars:
    """How deep the bars of one colour are that a picture has at its sides, in pixels; 0 where it has none."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))


def bars(image: Image.Image) -> Bars:
    """The bars of `image` (RGB): above and below, at both sides, or all around.

    A bar is of one colour and ends in a straight line, beside which nearly all is of another colour; so the plain
    background of a product is none. Nor are bars at one side alone, which a floor may be, frames of a light colour and
    deep ones: they are what products with straight sides lie on.
    """
    width, height = image.size
    least_x, least_y = (max(_BAR_PIXELS, round(_BAR_DEPTH * side)) for side in (width, height))
    if width <= 4 * least_x or height <= 4 * least_y:
        return Bars()
    borders = np.asarray(image.crop((0, 0, width, 2))), np.asarray(image.crop((0, 0, 2, height)))
    for colour in (np.median(line, axis=(0, 1)).astype(int) for line in borders):
        away = np.asarray(levels_from(image, colour))
        differs = away > _BAR_LEVELS
        rows, columns = (np.flatnonzero(differs.mean(axis=axis) > _BAR_SPECKS) for axis in (1, 0))
        if not len(rows) or not len(columns):
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        if bottom - top < 8 or right - left < 8:
            continue
        inside = away[top:bottom, left:right] > _STEP_LEVELS
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
        shares = [depth / side for depth, side in zip(found, (width, height) * 2, strict=True)]
        across, down = bool(found[0] and found[2]), bool(found[1] and found[3])
        is_frame = across and down
        if is_frame and (max(shares) > _LARGEST_FRAME or colour.min() > _LIGHT_FRAME_LEVEL):
            continue
        if (across or down) and max(shares) <= _LARGEST_BAR:
            return Bars(left=found[0] * across, right=found[2] * across, top=found[1] * down, bottom=found[3] * down)
    return Bars()


# -- the product's edge ----------------------------------------------------------------------------------------------

#: Levels by which a product at the border differs from the background there, and the darkest a shadow may be.
_AT_BORDER_LEVELS, _DARKEST_SHADOW, _SHADOW_TINT = 25, 0.3, 14.0
#: Beside the border products have edges, shadows have none: pixels looked at inward and along it, levels of an edge.
_INWARD, _ALONG, _EDGE_LEVELS = 10, 9, 12
#: Something thin with hard edges counts twice its width: levels of its edges, and its least width in pixels.
_HARD_LEVELS, _THIN_PIXELS = 90, 3
#: Share of a side from which a product is told that fills so much of it that the side's own curve follows the product.
_WIDE_SHARE = 0.12


def cut_share(area: ProductArea) -> float:
    """Largest share of a side of the frame along which the product goes on beyond it; shadows on the floor do not."""
    pixels, mask, background = area.pixels, area.mask, area.background
    # Each side as a band whose first row is the border.
    turned = (pixels.swapaxes(0, 1), pixels, pixels[:, ::-1].swapaxes(0, 1), pixels[::-1])
    lines = (mask[:, 0], mask[0], mask[:, -1], mask[-1])
    shares = [
        _beyond(line, band[:_INWARD], edge, curve)
        for line, band, edge, curve in zip(lines, turned, background.edges, background.curves, strict=True)
    ]
    # Where a side is no plain background its corners tell what is.
    wide = [
        _beyond(np.ones(len(edge), np.bool_), band[:_INWARD], edge, curve)
        for band, edge, curve, plain in zip(
            turned, background.edges, _between_corners(background), background.plain, strict=True
        )
        if not plain
    ]
    return max(*shares, *(share for share in wide if share >= _WIDE_SHARE))


def _between_corners(background: Background) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """The background along each side as a straight line between its corners, as the sides beside it have them."""
    left, top, right, bottom = background.curves

    def line(begin: Pixels, end: Pixels, length: int) -> Pixels:
        found: Pixels = begin + (end - begin) * np.linspace(0, 1, length, dtype=np.float32)[:, None]
        return found

    return (
        line(top[0], bottom[0], len(left)),
        line(left[0], right[0], len(top)),
        line(top[-1], bottom[-1], len(right)),
        line(left[-1], right[-1], len(bottom)),
    )


def _beyond(line: Mask, band: Pixels, edge: Pixels, curve: Pixels) -> float:
    away = line & (largest(np.abs(edge - curve)) > _AT_BORDER_LEVELS)
    steps = np.zeros(len(line), np.float32)
    if len(band) > 1 and len(line) > 1:
        steps = largest(np.abs(np.diff(band, axis=0))).max(axis=0)
        steps[1:] = np.maximum(steps[1:], largest(np.abs(np.diff(band, axis=1))).max(axis=0))
    has_edges = scipy.ndimage.maximum_filter1d(steps, _ALONG) >= _EDGE_LEVELS
    dimmed = shadowed(edge, curve, least=_DARKEST_SHADOW, tint=_SHADOW_TINT)
    share = float((away & has_edges & ~dimmed).mean())
    labels, count = scipy.ndimage.label(away)
    for part in scipy.ndimage.find_objects(labels, max_label=count):
        first, last = part[0].start, part[0].stop
        if last - first >= _THIN_PIXELS and min(_step(edge, first), _step(edge, last - 1)) >= _HARD_LEVELS:
            share = max(share, 2 * (last - first) / len(line))
    return share


def _step(edge: Pixels, at: int) -> float:
    """The steepest change of colour along an edge near `at`, in levels over three pixels; 255 at the end of it."""
    if at <= 2 or at >= len(edge) - 3:
        return 255.0
    near = edge[max(0, at - 4) : at + 5]
    return float(np.abs(near[3:] - near[:-3]).max()) if len(near) > 3 else 0.0


# -- several ---------------------------------------------------------------------------------------------------------

#: Gap that parts of one product may have between them, as a share of the picture's side.
_GAP = 0.02
#: Share of the largest part's area from which another part is a product of its own.
_OTHER_SHARE = 0.15
#: Two parts that are alike, a pair, are one product: sizes, share of colours in common, proportions (as a logarithm).
_PAIR_SIZES, _PAIR_COLOURS, _PAIR_SHAPES = 0.7, 0.8, 0.15
_COLOUR_BINS = 4


def products(area: ProductArea) -> int:
    """How many products a picture shows apart from each other: 0 where it shows none, 1 for a pair that is alike."""
    mask = area.mask
    near = scipy.ndimage.binary_dilation(mask, iterations=max(1, round(_GAP * max(mask.shape) / 2)))
    labels, count = scipy.ndimage.label(near)
    labels *= mask
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    if not count or not sizes.max():
        return 0
    large = np.flatnonzero(sizes >= _OTHER_SHARE * sizes.max()) + 1
    if len(large) == 2 and _is_pair(area, *(labels == one for one in large)):
        return 1
    return len(large)


def _is_pair(area: ProductArea, one: Mask, other: Mask) -> bool:
    sizes = sorted((int(one.sum()), int(other.sum())))
    if sizes[0] < _PAIR_SIZES * sizes[1]:
        return False
    colours, shapes = [], []
    for part in (one, other):
        found = np.histogramdd(area.pixels[part], bins=(_COLOUR_BINS,) * 3, range=[(0, 256)] * 3)[0]
        colours.append(found / found.sum())
        rows, columns = np.nonzero(part)
        shapes.append(float(np.log((np.ptp(rows) + 1) / (np.ptp(columns) + 1))))
    in_common = float(np.minimum(*colours).sum())
    return in_common >= _PAIR_COLOURS and abs(shapes[0] - shapes[1]) <= _PAIR_SHAPES


# -- pictures beside each other ---------------------------------------------------------------------------------------

#: Pictures that a collage has beside each other, by which its width is parted evenly.
_PARTS = (2, 3, 4)
#: Levels (of 255) by which colours step more from one picture to the next than within either of them, and share of the
#: height, and of its first and last tenth, at which they do: a product ends before.
_SEAM_LEVELS, _SEAM_SHARE, _SEAM_ENDS = 3.0, 0.75, 0.75
#: Pixels by which a seam may be off, and how many at either side are compared.
_SEAM_OFF, _COMPARED = 2, 6
#: Levels within which a picture's rows are the plain ground that a collage lies on.
_GROUND_LEVELS = 3.0


def is_collage(pixels: Pixels) -> bool:
    """Whether `pixels` (height, width, 3) are pictures beside each other without a gap.

    Told by a straight step of colour over all of the height, at an even part of the width: a product's own edge is
    shorter or elsewhere, a door's gap has one colour at both sides, and a horizon lies level.
    """
    lines = _without_ground(pixels)
    height, width = lines.shape[:2]
    if height < 8 * _COMPARED or width < 24 * _COMPARED:
        return False
    places = {round(width * number / parts) for parts in _PARTS for number in range(1, parts)}
    return any(_is_seam(lines, place) for place in places)


def _without_ground(pixels: Pixels) -> Pixels:
    """The rows between those that are of one colour from side to side, as above and below a collage on white."""
    if not _plain_rows(pixels[[0, -1]]).all():
        return pixels
    shown = np.flatnonzero(~_plain_rows(pixels))
    if not len(shown):
        return pixels
    strip = pixels[shown[0] : shown[-1] + 1]
    # A product on its ground ends before the sides, a strip of pictures at them.
    ground = np.median(pixels[0], axis=0)
    sides = largest(np.abs(np.stack([strip[:, 1], strip[:, -2]]) - ground)) > _GROUND_LEVELS
    return strip if sides.mean() >= _SEAM_SHARE else pixels


def _plain_rows(rows: Pixels) -> Mask:
    """Which of `rows` (count, width, 3) are of one colour: within `_GROUND_LEVELS` of the median of their own."""
    # Medians are dear: they are taken of rows alone whose colours lie close enough together.
    close = np.ptp(rows, axis=1).max(axis=1) <= 2 * _GROUND_LEVELS
    some = rows[close]
    plain: Mask = close.copy()
    plain[close] = np.abs(some - np.median(some, axis=1, keepdims=True)).max(axis=(1, 2)) <= _GROUND_LEVELS
    return plain


def _is_seam(lines: Pixels, at: int) -> bool:
    places = range(at - _SEAM_OFF, at + _SEAM_OFF + 1)
    before, after, *steps = _steps(lines, (at - 3 * _COMPARED, at + 3 * _COMPARED, *places)).T
    within = np.maximum(before, after) + _SEAM_LEVELS
    end = max(1, len(lines) // 10)
    for step in steps:
        seen = step >= within
        if seen.mean() >= _SEAM_SHARE and min(seen[:end].mean(), seen[-end:].mean()) >= _SEAM_ENDS:
            return True
    return False


def _steps(lines: Pixels, places: Sequence[int]) -> Pixels:
    """By how many levels colours differ from one side of some columns to the other, (height, columns).

    Medians, so that a line is no step: it has one colour at both sides.
    """
    at = np.asarray(places)
    before, after = (_medians(lines, begin) for begin in (at - 2 - _COMPARED, at + 2))
    return largest(np.abs(before - after))


#: Pairs of places that put six values in order, if the smaller of each two goes to the first (Knuth, The Art of
#: Computer Programming 3, section 5.3.4).
_SORT_SIX = ((0, 5), (1, 3), (2, 4), (1, 2), (3, 4), (0, 3), (2, 5), (0, 1), (2, 3), (4, 5), (1, 2), (3, 4))


def _medians(lines: Pixels, begins: NDArray[np.int_]) -> Pixels:
    """Medians of `_COMPARED` columns from each of `begins` on: (height, begins, 3).

    A network of comparisons of whole columns: `np.median` takes ten times as long for so few values each.
    """
    values = [lines[:, begins + number] for number in range(_COMPARED)]
    for one, other in _SORT_SIX:
        values[one], values[other] = np.minimum(values[one], values[other]), np.maximum(values[one], values[other])
    found: Pixels = (values[2] + values[3]) * np.float32(0.5)
    return found


# -- what is behind --------------------------------------------------------------------------------------------------

#: Levels beyond which a border's colours do not follow a smooth curve.
_UNRULY_LEVELS = 14
#: Pixels along a border that are averaged.
_GRAIN = 7


def unruly_share(area: ProductArea) -> float:
    """Share of three sides of the frame or more at which something else than a smooth background is seen.

    Two sides may be crossed by the product or by a shadow.
    """
    shares = sorted(
        # Grain is smoothed away: it is no thing that is seen there.
        float(np.mean(largest(np.abs(scipy.ndimage.uniform_filter1d(edge, _GRAIN, axis=0) - curve)) > _UNRULY_LEVELS))
        for edge, curve in zip(area.background.edges, area.background.curves, strict=True)
    )
    return shares[1]
