"""Pictures beside each other are told from pictures whose things have straight edges too."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.clips.inspection import framing
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


def test_quick_medians_are_those_of_numpy() -> None:
    lines = np.random.default_rng(1).integers(0, 256, (40, 90, 3)).astype(np.float32)
    begins = np.array([0, 5, 6, 80])
    expected = np.stack([np.median(lines[:, begin : begin + 6], axis=1) for begin in begins], axis=1)
    assert np.array_equal(framing._medians(lines, begins), expected)


def test_plain_rows_are_those_whose_colours_lie_about_their_median() -> None:
    draw = np.random.default_rng(2)
    rows = np.stack([level + draw.integers(0, spread, (64, 3)) for level in (0, 90, 240) for spread in range(1, 12)])
    rows = rows.astype(np.float32)
    expected = np.abs(rows - np.median(rows, axis=1, keepdims=True)).max(axis=(1, 2)) <= 3
    assert expected.any()
    assert not expected.all()
    assert np.array_equal(framing._plain_rows(rows), expected)
