"""Where a still shows its product: a mask and a box, by classical segmentation of what is not background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.inspection.background import Background, Pixels, background_of, largest

Mask = NDArray[np.bool_]
#: Left, top, right, bottom as shares of a picture's sides.
Box = tuple[float, float, float, float]

#: Longest side at which a product is looked for.
SEARCH_SIDE = 320
#: Levels (of 255) by which a product differs from its background, whatever lies between.
_LEVELS = 14
#: Background that lies in a light or a soft shadow is reached from the border without a step: so many levels from a
#: pixel to the next at most, and so many from the surface that the borders tell.
_STEP, _FAR_LEVELS = 3.0, 90
#: A shadow has the background's colour and this share of its brightness at least; its edge may be harder.
_SHADOW_SHARE, _TINT, _SHADOW_STEP = 0.33, 10.0, 8.0
#: Share of the border that such a region has to touch: less is a product that ends there.
_TOUCHES = 0.04
#: Least share of the picture that a part of a product covers, and least pixels in a row or column of its box.
_SPECK, _BOX_LEAST = 0.0003, 2


@dataclass(frozen=True, kw_only=True)
class ProductArea:
    """Where a picture shows its product, at `SEARCH_SIDE` or its own size where that is smaller."""

    #: True where the product is, (height, width); holes in it are filled.
    mask: Mask
    #: Colours of the picture at that size, (height, width, 3), levels from 0 to 255.
    pixels: Pixels
    background: Background
    #: Labels from 1 of the parts that hang together, (height, width), 0 elsewhere; and how many there are.
    labels: NDArray[np.int32]
    parts: int

    @property
    def box(self) -> Box | None:
        """Box around the product as shares of the picture's sides; None where there is none."""
        height, width = self.mask.shape
        across, down = (np.flatnonzero(self.mask.sum(axis=axis) >= _BOX_LEAST) for axis in (0, 1))
        if not len(across) or not len(down):
            return None
        return (
            float(across[0] / width),
            float(down[0] / height),
            float((across[-1] + 1) / width),
            float((down[-1] + 1) / height),
        )


def product_area(image: Image.Image) -> ProductArea:
    """Where `image` (RGB) shows something else than background, shadows and lights on it left out.

    Background is what comes close to the smooth surface between the borders, and what is reached from a border
    without a step; so gradients, vignettes and soft shadows are background, and a product of their colour is told by
    its outline. Where the borders show no plain background the mask is a guess: `Background.plain` tells.
    """
    scale = min(1.0, SEARCH_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image if size == image.size else image.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    background = background_of(pixels)
    surface = background.surface()
    away = largest(np.abs(pixels - surface))
    plain = (away <= _LEVELS) | _reached(pixels, surface, background, away)
    mask = scipy.ndimage.binary_fill_holes(~plain)
    mask = _without_specks(mask)
    labels, parts = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    return ProductArea(mask=mask, pixels=pixels, background=background, labels=labels, parts=int(parts))


def product_box(image: Image.Image) -> Box | None:
    """Box around the product of `image` (RGB) as shares of its sides: left, top, right, bottom.

    A point in the middle where all is background; None where a border shows more than that, so that nobody can tell.
    """
    area = product_area(image)
    if not all(area.background.plain):
        return None
    return area.box or (0.5, 0.5, 0.5, 0.5)


def shadowed(pixels: Pixels, surface: Pixels, *, least: float = _SHADOW_SHARE, tint: float = _TINT) -> Mask:
    """Where `pixels` (…, 3) are the background `surface` (…, 3), dimmed to a share of `least` of it at the most.

    `tint`: levels of 255 by which a channel may be off the dimmed colour.
    """
    weights = np.full(3, 1 / 3, np.float32)
    dimmed = (pixels @ weights) / np.maximum(surface @ weights, 1)
    off = largest(np.abs(pixels - dimmed[..., None] * surface))
    found: Mask = (dimmed > least) & (off <= tint)
    return found


def _reached(pixels: Pixels, surface: Pixels, background: Background, away: Pixels) -> Mask:
    """Where one gets from a border's background without a step, through soft shadows as well."""
    step = np.zeros(pixels.shape[:2], np.float32)
    across = largest(np.abs(np.diff(pixels, axis=1)))
    down = largest(np.abs(np.diff(pixels, axis=0)))
    step[:, 1:], step[:, :-1] = across, np.maximum(step[:, :-1], across)
    step[1:], step[:-1] = np.maximum(step[1:], down), np.maximum(step[:-1], down)
    shadow = shadowed(pixels, surface)
    smooth = ((step <= _STEP) & (shadow | (away <= _FAR_LEVELS))) | ((step <= _SHADOW_STEP) & shadow)
    labels, count = scipy.ndimage.label(smooth)
    left, top, right, bottom = (
        largest(np.abs(edge - curve)) <= _LEVELS
        for edge, curve in zip(background.edges, background.curves, strict=True)
    )
    touched = np.concatenate([labels[:, 0][left], labels[0][top], labels[:, -1][right], labels[-1][bottom]])
    lengths = np.bincount(touched, minlength=count + 1)
    lengths[0] = 0
    reached: Mask = (lengths >= _TOUCHES * 2 * sum(step.shape))[labels]
    return reached


def _without_specks(mask: Mask) -> Mask:
    labels, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    kept = sizes >= max(3, _SPECK * mask.size)
    kept[0] = False
    found: Mask = kept[labels]
    return found
