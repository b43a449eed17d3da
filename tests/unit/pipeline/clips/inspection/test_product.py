"""Where the product is: against masks that are known because the picture was made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.clips.inspection.product import product_area, product_box


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & expected).sum() / (found | expected).sum())


def scene(colour: tuple[int, int, int], ground: str, side: int = 300) -> tuple[Image.Image, np.ndarray]:
    """A disc with a hard outline, and its mask."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    level = {"white": np.full_like(x, 255), "slope": 190 + 50 * (x + y), "vignette": 245 - 160 * (x**2 + y**2)}[ground]
    pixels = np.repeat(level[..., None], 3, axis=2)
    mask = (x - 0.03) ** 2 + (y + 0.02) ** 2 < 0.25**2
    pixels[mask] = np.array(colour) + 10 * np.sin(60 * x[mask])[:, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mask


@settings(max_examples=15, deadline=None)
@given(
    colour=st.tuples(*[st.integers(0, 150)] * 3),
    ground=st.sampled_from(["white", "slope", "vignette"]),
)
def test_the_mask_is_the_product_whatever_its_colour_and_its_background(
    colour: tuple[int, int, int], ground: str
) -> None:
    still, expected = scene(colour, ground)
    assert overlap(product_area(still).mask, expected) > 0.95


@settings(max_examples=10, deadline=None)
@given(times=st.integers(1, 4), turns=st.integers(0, 3), mirrored=st.booleans())
def test_box_and_mask_turn_with_the_picture_and_do_not_depend_on_its_size(
    times: int, turns: int, mirrored: bool
) -> None:
    still, _ = scene((90, 40, 20), "slope")
    pixels = np.rot90(np.asarray(still), turns)
    pixels = pixels[:, ::-1] if mirrored else pixels
    turned = Image.fromarray(np.ascontiguousarray(pixels)).resize((300 * times, 300 * times), Image.Resampling.BICUBIC)
    expected = np.rot90(product_area(still).mask, turns)
    expected = expected[:, ::-1] if mirrored else expected
    found = product_area(turned).mask
    resized = np.asarray(Image.fromarray(found).resize((300, 300), Image.Resampling.NEAREST))
    assert overlap(resized, expected) > 0.95


def test_holes_are_filled_and_a_shadow_is_background() -> None:
    still, mask = scene((60, 60, 70), "white")
    pixels = np.asarray(still).copy()
    pixels[140:150, 150:170] = 255
    y, x = np.mgrid[0:300, 0:300]
    shade = 1 - 0.3 * np.exp(-(((y - 245) / 14) ** 2) - ((x - 190) / 60) ** 2)
    pixels[~mask] = (pixels[~mask] * shade[~mask][:, None]).astype(np.uint8)
    assert overlap(product_area(Image.fromarray(pixels)).mask, mask) > 0.95


def test_specks_are_no_product_and_a_small_product_is_one() -> None:
    specks = np.full((300, 300, 3), 240, np.uint8)
    specks[20::40, 20::40] = 0
    assert product_box(Image.fromarray(specks)) == (0.5, 0.5, 0.5, 0.5)
    small = np.full((300, 300, 3), 240, np.uint8)
    small[100:115, 200:215] = 20
    assert product_box(Image.fromarray(small)) == pytest.approx((200 / 300, 100 / 300, 215 / 300, 115 / 300))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (16, 16), (3, 400)])
def test_the_tiniest_pictures_have_an_area(size: tuple[int, int]) -> None:
    assert product_area(Image.new("RGB", size, (200, 10, 10))).box is None
