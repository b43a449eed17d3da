"""Judgements of stills: each fault is told, and told alone where it can be; nothing is said of a good picture."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.clips.clip import Autofix
from pipeline.clips.inspection import framing, tones
from pipeline.clips.inspection.judge import judge_still
from pipeline.clips.inspection.product import product_area
from pipeline.clips.inspection.view import StillView
from pipeline.clips.stills import open_still
from tests.stills.spoilt import FAULTS, UNDECIDED, product_picture

CATALOG = Path(__file__).parents[6] / "shared/catalog/pics"
#: What has no fault of its own that is told of the picture alone.
TOLD = sorted(set(FAULTS) - UNDECIDED - {"enlarged"})


def codes(still: Image.Image) -> set[str]:
    return {str(note.code) for note in judge_still(still)}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_a_good_picture_of_any_size(seed: int) -> None:
    still = product_picture(seed)
    assert codes(still) == codes(still.resize((1500, 1500), Image.Resampling.LANCZOS)) == set()


@pytest.mark.parametrize("code", TOLD)
def test_a_picture_made_bad_on_purpose_is_told(code: str) -> None:
    for seed, strength in ((0, 1), (1, 2)):
        others = [product_picture(100 + other) for other in range(3)]
        spoilt = FAULTS[code](product_picture(seed), strength, random.Random(seed), others)
        assert spoilt is not None
        assert code in codes(spoilt), (seed, strength)


def test_a_fix_is_named_with_the_column_that_asks_for_it() -> None:
    fixes = {
        "still_dark": Autofix.EXPOSURE,
        "still_low_contrast": Autofix.CONTRAST,
        "still_noisy": Autofix.DENOISE,
        "still_bordered": Autofix.CROP,
    }
    for code, fix in fixes.items():
        spoilt = FAULTS[code](product_picture(), 1, random.Random(0), [])
        (note,) = [note for note in judge_still(spoilt) if note.code == code]
        assert (note.field, note.fix) == ("image", {"autofix": str(fix)})
        assert note.worth_a_look


def test_nothing_that_cannot_be_mended_is_offered_to_be() -> None:
    for code in ("still_cut_off", "still_busy_background"):
        spoilt = FAULTS[code](product_picture(), 2, random.Random(1), [])
        assert [note.fix for note in judge_still(spoilt) if note.code == code] == [{}]
    assert [note.fix for note in judge_still(Image.new("RGB", (300, 300)))] == [{}]


def test_what_lies_within_bars_is_judged_without_them() -> None:
    noisy = FAULTS["still_noisy"](product_picture(), 2, random.Random(0), [])
    framed = Image.new("RGB", (480, 640))
    framed.paste(noisy, (0, 80))
    assert codes(framed) == {"still_bordered", "still_noisy"}


@pytest.mark.parametrize("colour", ["black", "white", (20, 90, 160)])
@pytest.mark.parametrize("bars", [(0, 60), (45, 0), (30, 30)])
def test_bars_are_measured_to_the_pixel(colour: object, bars: tuple[int, int]) -> None:
    inner = Image.new("RGB", (480 - 2 * bars[0], 480 - 2 * bars[1]), (130, 170, 60))
    inner.paste((90, 20, 20), (100, 100, 200, 300))
    framed = Image.new("RGB", (480, 480), colour)  # type: ignore[arg-type]
    framed.paste(inner, bars)
    found = framing.bars(framed)
    # A light frame all around is what a product with straight sides lies on.
    expected = (0, 0) if colour == "white" and all(bars) else bars
    assert (found.left, found.right) == (expected[0],) * 2
    assert (found.top, found.bottom) == (expected[1],) * 2


@pytest.mark.parametrize("size", [(120, 200), (300, 300), (440, 90)])
def test_a_product_with_straight_sides_has_no_bars(size: tuple[int, int]) -> None:
    still = Image.new("RGB", (480, 480), (250, 250, 250))
    still.paste((120, 30, 30), ((480 - size[0]) // 2, (480 - size[1]) // 2, (480 + size[0]) // 2, (480 + size[1]) // 2))
    assert not framing.bars(still)


@pytest.mark.parametrize("sigma", [5.0, 10.0, 20.0])
def test_grain_is_measured_as_it_was_made(sigma: float) -> None:
    grain = np.random.default_rng(3).normal(128, sigma, (256, 256)).astype(np.float32)
    assert tones.noise_sigma(grain) == pytest.approx(sigma, rel=0.1)


def test_a_soft_shadow_that_leaves_the_frame_does_not_cut_the_product() -> None:
    still = np.asarray(product_picture(2), np.float64).copy()
    y, x = np.mgrid[0:480, 0:480]
    still *= (1 - 0.35 * np.exp(-(((y - 400) / 40) ** 2)) * (x > 240) * np.minimum(1, (x - 240) / 120))[..., None]
    shadowy = Image.fromarray(np.clip(still, 0, 255).astype(np.uint8))
    assert framing.cut_share(product_area(shadowy)) == 0


def test_a_pair_is_one_product_and_two_things_are_two() -> None:
    pair, two = (Image.new("RGB", (480, 480), (240, 240, 240)) for _ in range(2))
    for place in ((80, 160), (280, 160)):
        pair.paste((40, 60, 120), (*place, place[0] + 110, place[1] + 200))
    two.paste((40, 60, 120), (80, 160, 190, 360))
    two.paste((200, 60, 20), (280, 260, 420, 380))
    assert framing.products(product_area(pair)) == 1
    assert framing.products(product_area(two)) == 2
    assert framing.products(product_area(Image.new("RGB", (300, 300), "white"))) == 0


def test_a_white_product_before_pure_white_that_is_not_cut_is_not_burnt_out() -> None:
    y, x = np.mgrid[0:400, 0:400] / 200 - 1
    light = np.where(x**2 + y**2 < 0.4, 205 + 40 * np.sqrt(np.maximum(0, 1 - 2.5 * (x**2 + y**2))), 255)
    still = Image.fromarray(np.repeat(light[..., None], 3, axis=2).astype(np.uint8))
    assert tones.burnt_share(StillView(still)) < 0.03


@pytest.mark.skipif(not CATALOG.is_dir(), reason="the shared catalog is not here")
def test_pictures_of_a_real_catalog_are_told_from_spoilt_ones() -> None:
    """Four of the half that no threshold was chosen on; `benchmarks/pictures.py` takes all of it."""
    stills = [open_still((CATALOG / f"{number}.webp").read_bytes()) for number in (10, 28, 50, 64)]
    assert [codes(still) for still in stills] == [set()] * 4
    for code in sorted(set(TOLD) - {"still_cut_off"}):
        spoilt = [FAULTS[code](still, 2, random.Random(number), stills[::-1]) for number, still in enumerate(stills)]
        found = [code in codes(one) for one in spoilt if one is not None]
        assert sum(found) >= min(len(found), 3), code
