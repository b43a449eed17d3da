"""Mending stills: only what is wrong, only what was asked for, once; and what of it a row reads."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.clips.clip import Autofix, ClipSpec, autofixes_of, content_key
from pipeline.clips.inspection.autofix import fix_still, guided_filter, still_amiss, with_autofix
from pipeline.clips.inspection.judge import judge_still
from pipeline.clips.stills import open_still
from pipeline.notes import Note
from tests.stills import files
from tests.stills.spoilt import FAULTS, product_picture

MENDED = {
    "still_bordered": Autofix.CROP,
    "still_dark": Autofix.EXPOSURE,
    "still_low_contrast": Autofix.CONTRAST,
    "still_noisy": Autofix.DENOISE,
    "still_blurred": Autofix.SHARPEN,
}


def spoilt(code: str, seed: int = 0, strength: int = 0) -> Image.Image:
    if code == "still_blurred":
        return product_picture(seed).filter(ImageFilter.GaussianBlur(0.9))
    found = FAULTS[code](product_picture(seed), strength, random.Random(seed), [])
    assert found is not None
    return found


def codes(still: Image.Image) -> set[str]:
    return {str(note.code) for note in judge_still(still)}


def error(still: Image.Image, of: Image.Image) -> float:
    return float(np.abs(np.asarray(still, np.float64) - np.asarray(of.resize(still.size), np.float64)).mean())


@pytest.mark.parametrize(("code", "fix"), MENDED.items())
def test_what_is_wrong_is_mended_and_nothing_is_left_to_mend(code: str, fix: Autofix) -> None:
    bad = spoilt(code)
    assert code in codes(bad)
    mended = fix_still(bad, [fix])
    assert [note.code for note in mended.notes] == ["still_fixed"]
    assert not mended.notes[0].worth_a_look
    assert code not in codes(mended.image)
    again = fix_still(mended.image, [fix])
    assert again.image is mended.image
    assert again.notes == ()


@pytest.mark.parametrize("code", ["still_bordered", "still_dark", "still_low_contrast", "still_noisy"])
def test_a_mended_picture_is_nearer_to_the_good_one(code: str) -> None:
    bad, good = spoilt(code, strength=1), product_picture(0)
    mended = fix_still(bad, list(Autofix)).image
    if code == "still_bordered":
        assert error(mended, good) < 6
    else:
        assert error(mended, good) < error(bad, good)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 50), wanted=st.sets(st.sampled_from(list(Autofix))))
def test_a_good_picture_is_left_alone_whatever_was_asked_for(seed: int, wanted: set[Autofix]) -> None:
    still = product_picture(seed, 300)
    fixed = fix_still(still, wanted)
    assert fixed.image is still
    assert fixed.notes == ()


def test_nothing_is_done_that_was_not_asked_for() -> None:
    bad = spoilt("still_dark")
    assert fix_still(bad, []).image is bad
    assert fix_still(bad, [Autofix.CROP, Autofix.CONTRAST]).notes == ()


@pytest.mark.parametrize("still", [Image.new("RGB", (64, 64)), Image.new("RGB", (300, 300), (3, 3, 3))])
def test_of_a_black_picture_nothing_is_brought_out(still: Image.Image) -> None:
    assert fix_still(still, list(Autofix)).image is still


def test_a_strong_blur_stays_and_is_told() -> None:
    blurred = product_picture().filter(ImageFilter.GaussianBlur(4))
    assert fix_still(blurred, [Autofix.SHARPEN]).image is blurred
    assert codes(blurred) == {"still_blurred"}


def test_a_picture_on_its_side_and_one_that_is_transparent_are_mended_as_they_are_seen() -> None:
    """EXIF turns and alpha is laid over white before anything is mended: bars are cut at the sides that are seen."""
    framed = Image.new("RGB", (480, 640), (10, 10, 10))
    framed.paste(product_picture(1), (0, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_still(files.saved(framed.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    cropped = fix_still(turned, [Autofix.CROP]).image
    assert cropped.size == fix_still(framed, [Autofix.CROP]).image.size
    assert cropped.width == 480
    assert 474 <= cropped.height <= 480
    dim = product_picture(1).point(lambda level: level * 0.3)
    alpha = dim.copy()
    alpha.putalpha(255)
    seen = fix_still(open_still(files.saved(alpha, "PNG")), [Autofix.EXPOSURE]).image
    np.testing.assert_array_equal(seen, fix_still(dim, [Autofix.EXPOSURE]).image)


def test_bars_of_a_large_picture_are_cut_to_within_two_pixels_of_its_judged_size() -> None:
    large = Image.new("RGB", (1800, 1800), (0, 0, 0))
    large.paste(product_picture(3).resize((1800, 1400)), (0, 200))
    cropped = fix_still(large, [Autofix.CROP]).image
    assert cropped.width == 1800
    assert 1400 - 4 * 1800 / 512 <= cropped.height <= 1400


def test_the_guided_filter_keeps_an_edge_and_smooths_what_is_beside_it() -> None:
    noise = np.random.default_rng(0).normal(0, 8, (80, 80, 3))
    step = np.where(np.arange(80)[None, :, None] < 40, 60.0, 200.0)
    smooth = guided_filter((step + noise).astype(np.float32), 3, 24.0**2)
    assert (smooth - step)[:, 5:35].std() < 4
    assert float(smooth[:, 41].mean() - smooth[:, 38].mean()) > 120


def test_fixes_are_read_from_lists_and_texts_in_one_order() -> None:
    assert autofixes_of("sharpen, crop") == autofixes_of(["crop", "SHARPEN"]) == (Autofix.CROP, Autofix.SHARPEN)
    assert autofixes_of("none") == autofixes_of("") == autofixes_of([]) == ()
    assert autofixes_of("all") == tuple(Autofix)
    for wrong in ("brighten", 7, [1]):
        with pytest.raises(ValueError, match="crop"):
            autofixes_of(wrong)


def test_a_row_reads_what_is_left_and_a_fix_that_keeps_what_it_has() -> None:
    dark = Note(code="still_dark", message="dark", fix={"autofix": "exposure"})
    soft = Note(code="still_blurred", message="soft", fix={"autofix": "sharpen"})
    cut = Note(code="still_cut_off", message="cut")
    assert still_amiss([dark, soft, cut], ()) == [dark, soft, cut]
    left = still_amiss([dark, soft, cut], (Autofix.EXPOSURE,))
    assert [(note.code, dict(note.fix)) for note in left] == [
        ("still_blurred", {"autofix": "exposure, sharpen"}),
        ("still_cut_off", {}),
    ]
    assert with_autofix([soft], ()) == [soft]


def test_a_clip_of_a_mended_still_is_another_clip_and_one_of_none_is_that_of_before(clip_spec: ClipSpec) -> None:
    assert "autofix" not in clip_spec.model_dump(mode="json")
    mended = clip_spec.model_copy(update={"autofix": (Autofix.CROP,)})
    assert mended.model_dump(mode="json")["autofix"] == ["crop"]
    assert content_key("0" * 64, mended) != content_key("0" * 64, clip_spec)
    assert ClipSpec.model_validate(mended.model_dump(mode="json")) == mended


@pytest.fixture
def clip_spec() -> ClipSpec:
    return ClipSpec(
        family="camera",
        revision="1",
        prompt="pan left",
        resolution_class="256p",
        width=256,
        height=256,
        frames=9,
        fps=8,
        steps=1,
        guidance=1.0,
        seed=0,
    )
