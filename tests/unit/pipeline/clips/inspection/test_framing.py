"""Pictures beside each other are told from pictures whose things have straight edges too."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.clips.inspection.framing import is_collage
from tests.stills.spoilt import product_picture

SIDE = 480


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32)


def beside(count: int, *, ground: int = 0) -> Image.Image:
    """So many pictures in a row without a gap, between `ground` rows of white above and below."""
    wide = SIDE // count
    sheet = Image.new("RGB", (SIDE, wide + 2 * ground), "white")
    for place in range(count):
        sheet.paste(product_picture(seed=place).resize((wide, wide)), (place * wide, ground))
    return sheet


@pytest.mark.parametrize("ground", [0, 40])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_pictures_in_a_row_are_a_collage(count: int, ground: int) -> None:
    assert is_collage(pixels(beside(count, ground=ground)))


@pytest.mark.parametrize("seed", range(6))
def test_one_product_is_one_picture(seed: int) -> None:
    assert not is_collage(pixels(product_picture(seed)))


def test_doors_horizons_and_textures_are_no_seams() -> None:
    wardrobe = Image.new("RGB", (SIDE, SIDE), (150, 110, 70))
    draw = ImageDraw.Draw(wardrobe)
    for number in (1, 2):
        draw.line([(number * SIDE // 3, 0), (number * SIDE // 3, SIDE)], (40, 30, 20), 2)
    assert not is_collage(pixels(wardrobe))
    floor = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    ImageDraw.Draw(floor).rectangle([0, SIDE // 2, SIDE, SIDE], (120, 90, 60))
    assert not is_collage(pixels(floor))
    noise = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)
    assert not is_collage(noise)
    assert not is_collage(pixels(Image.new("RGB", (SIDE, SIDE), "white")))
    assert not is_collage(pixels(Image.new("RGB", (40, 30), "white")))
