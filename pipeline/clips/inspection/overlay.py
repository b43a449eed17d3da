"""Marks laid over a still's background again and again, as watermarks are: letters of one size and one contrast."""

from __future__ import annotations

import numpy as np
import scipy

from pipeline.clips.inspection.background import Pixels
from pipeline.clips.inspection.product import Mask, ProductArea

#: Part of the picture's area from which a part is a product, around which nothing is looked for, and how far around.
_PRODUCT_SHARE, _AROUND_PIXELS = 0.02, 4
#: Widest stroke, as a share of the side; levels (of 255) by which a mark stands out somewhere and everywhere.
_STROKE, _LEAST_LEVELS, _PEAK_LEVELS = 0.04, 6.0, 12.0
#: Least and largest size of a mark as shares of the side, and how much of its box it fills at the most.
_SMALLEST, _LARGEST, _FILLED = 0.012, 0.25, 0.75
#: Marks of one overlay differ in contrast by less than this factor.
_ALIKE = 1.28
_BORDER = 3


def letters_laid_over(area: ProductArea) -> int:
    """How many marks of one contrast there are on the background of a still.

    Strokes are what a morphological closing fills and an opening takes away (top hats: Meyer, 1979); of a
    translucent overlay on a plain background all of them have one contrast, which shadows, dust and floors have not.
    A line of letters on the product alone is not found so.
    """
    grey = area.pixels @ np.full(3, 1 / 3, np.float32)
    side = max(grey.shape)
    width = int(_STROKE * side) | 1
    free = _background(area)
    # Dark marks and light ones.
    dark = scipy.ndimage.grey_closing(grey, size=(width, width)) - grey
    light = grey - scipy.ndimage.grey_opening(grey, size=(width, width))
    return max(_alike(hat, free, side) for hat in (dark, light))


def _background(area: ProductArea) -> Mask:
    sizes = np.bincount(area.labels.ravel(), minlength=area.parts + 1)
    sizes[0] = 0
    product = (sizes >= _PRODUCT_SHARE * area.mask.size)[area.labels]
    free: Mask = ~scipy.ndimage.binary_dilation(product, iterations=_AROUND_PIXELS)
    free[:_BORDER] = free[-_BORDER:] = False
    free[:, :_BORDER] = free[:, -_BORDER:] = False
    return free


def _alike(hat: Pixels, free: Mask, side: int) -> int:
    labels, count = scipy.ndimage.label((hat > _LEAST_LEVELS) & free, structure=np.ones((3, 3)))
    if not count:
        return 0
    places = scipy.ndimage.find_objects(labels)
    heights = np.array([place[0].stop - place[0].start for place in places])
    widths = np.array([place[1].stop - place[1].start for place in places])
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    # `scipy.ndimage.maximum` sorts the whole picture for it.
    marked = labels > 0
    contrast = np.zeros(count, hat.dtype)
    np.maximum.at(contrast, labels[marked] - 1, hat[marked])
    longest = np.maximum(heights, widths)
    marks = (longest >= _SMALLEST * side) & (longest <= _LARGEST * side) & (np.minimum(heights, widths) >= 2)
    marks &= (sizes <= _FILLED * heights * widths + 4) & (sizes >= 6) & (contrast >= _PEAK_LEVELS)
    levels = np.sort(contrast[marks])
    if not len(levels):
        return 0
    return int((np.searchsorted(levels, levels * _ALIKE) - np.arange(len(levels))).max())
