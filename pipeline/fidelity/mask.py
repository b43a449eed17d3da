"""Where a still shows its product: by its plain background, by a model where there is one, by GrabCut, or unknown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from PIL import Image

from pipeline.clips.inspection.product import Mask, ProductArea, product_area
from pipeline.fidelity.libraries import opencv

#: Sides of a picture that show plain background, for the product to be what differs from it.
LEAST_PLAIN_SIDES = 3
#: Shares of a picture that a product may cover: less is a speck, more leaves no background to tell it from.
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.9
#: Longest side, in pixels, at which GrabCut works, and how often it does.
_CUT_SIDE, _CUT_ROUNDS = 160, 3
#: Share of the sides that is taken for background, and the most of it that a product which was cut out may touch.
_BORDER, _MOST_TOUCHED = 0.04, 0.35
#: Least distance between the mean colours of product and background, in levels of 255: below it is a guess.
_LEAST_APART = 18.0


class MaskSource(StrEnum):
    """How a product was told from what is behind it."""

    BACKGROUND = "background"
    MODEL = "model"
    GRABCUT = "grabcut"
    #: Nobody can tell: the mask is the whole picture.
    UNKNOWN = "unknown"


class Segmenter(Protocol):
    """A model that finds products, where somebody has its weights."""

    def __call__(self, image: Image.Image) -> Mask | None:
        """True where `image` (RGB) shows its product, (height, width); None where it cannot tell."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProductMask:
    """Where a picture shows its product."""

    #: True where the product is, (height, width).
    pixels: Mask
    source: MaskSource
    #: Whether at least `LEAST_PLAIN_SIDES` of its sides show plain background.
    plain: bool

    @property
    def known(self) -> bool:
        """Whether product and background were told apart."""
        return self.source is not MaskSource.UNKNOWN

    @property
    def share(self) -> float:
        """Share of the picture that the product covers."""
        return float(self.pixels.mean())


def product_mask(image: Image.Image, segmenter: Segmenter | None = None) -> ProductMask:
    """Where `image` (RGB, 320 pixels a side at the most) shows its product.

    A model goes first; then what differs from a plain background; then GrabCut (Rother, Kolmogorov & Blake, 2004),
    which is believed only where its two sides have different colours and the product lies off the border.
    """
    area = product_area(image)
    plain = sum(area.background.plain) >= LEAST_PLAIN_SIDES
    if segmenter is not None and (found := segmenter(image)) is not None and _sensible(found):
        return ProductMask(pixels=found, source=MaskSource.MODEL, plain=plain)
    if plain and _sensible(area.mask):
        return ProductMask(pixels=area.mask, source=MaskSource.BACKGROUND, plain=True)
    cut = _grabcut(np.asarray(image), area)
    if cut is not None:
        return ProductMask(pixels=cut, source=MaskSource.GRABCUT, plain=plain)
    everywhere = np.ones((image.height, image.width), bool)
    return ProductMask(pixels=everywhere, source=MaskSource.UNKNOWN, plain=plain)


def _sensible(mask: Mask) -> bool:
    return _LEAST_SHARE <= float(mask.mean()) <= _MOST_SHARE


def _grabcut(pixels: np.ndarray, area: ProductArea) -> Mask | None:
    cv2 = opencv()
    height, width = pixels.shape[:2]
    scale = min(1.0, _CUT_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    guess = cv2.resize(area.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    border = _border(guess.shape)
    labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[border] = cv2.GC_BGD
    if not (labels == cv2.GC_PR_FGD).any():
        return None
    cv2.setRNGSeed(1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, *models, _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if not _sensible(found) or found.all():
        return None
    ring = cv2.dilate(border.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if float(found[ring & ~border].mean()) > _MOST_TOUCHED:
        return None
    apart = np.linalg.norm(small[found].mean(axis=0) - small[~found].mean(axis=0))
    if float(apart) < _LEAST_APART:
        return None
    mask: Mask = cv2.resize(found.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return mask


def _border(shape: tuple[int, ...]) -> Mask:
    border = np.ones(shape, bool)
    y, x = (max(2, round(_BORDER * side)) for side in shape)
    border[y:-y, x:-x] = False
    return border
