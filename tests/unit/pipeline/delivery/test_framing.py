"""What a delivered frame shows: the product whole, in every frame, and nothing that was not asked for beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.clips.inspection.framing import bars
from pipeline.delivery.framing import ProductTrack, plan_frame, reframe, reframed_size, track_product
from pipeline.delivery.profiles import BackgroundFill, SafeArea
from pipeline.problems import BadInputError
from tests.unit.pipeline.delivery.clips import busy_clip, product_clip, profile

ALL_PLAIN = (True, True, True, True)
SHAPES = [(192, 108), (108, 192), (120, 120)]


def red_pixels(frame: np.ndarray) -> int:
    levels = frame.astype(int)
    return int(((levels[..., 0] > 120) & (levels[..., 1] < 90) & (levels[..., 2] < 90)).sum())


def test_the_product_is_followed_through_all_frames() -> None:
    track = track_product(product_clip(box=(20, 50, 60, 120), drift=(70, -30)))
    assert track.found
    assert track.plain == ALL_PLAIN
    assert np.allclose(track.box, (20 / 160, 20 / 160, 130 / 160, 120 / 160), atol=0.02)


def test_where_nobody_can_tell_the_whole_frame_is_product() -> None:
    track = track_product(busy_clip())
    assert not track.found
    assert track.box == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("drift", [(0, 0), (25, 0), (-20, 30)])
@pytest.mark.parametrize("size", [(160, 160), (240, 136), (136, 240)])
def test_no_pixel_of_the_product_is_lost_in_any_frame(
    shape: tuple[int, int], drift: tuple[int, int], size: tuple[int, int]
) -> None:
    x, y = size[0] // 2 - 15, size[1] // 2 - 20
    clip = product_clip(size, (x, y, x + 30, y + 40), frames=5, drift=drift)
    plan = plan_frame(track_product(clip), size, profile(width=shape[0], height=shape[1], most_continued=0.9))
    assert plan.width / plan.height == pytest.approx(shape[0] / shape[1])
    for frame in clip:
        shown = reframe(frame, plan)
        assert shown.shape[:2] == reframed_size(plan)[::-1]
        assert red_pixels(shown) == red_pixels(frame)
        assert not bars(Image.fromarray(shown))


@settings(max_examples=300, deadline=None)
@given(
    x=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    y=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.sampled_from([(160, 160), (240, 136), (136, 240), (300, 100)]),
    shape=st.sampled_from(SHAPES),
)
def test_every_plan_holds_the_product_and_touches_the_clip(
    x: tuple[float, float], y: tuple[float, float], size: tuple[int, int], shape: tuple[int, int]
) -> None:
    box = (min(x), min(y), max(x) + 1e-3, max(y) + 1e-3)
    track = ProductTrack(box=tuple(min(1.0, share) for share in box), found=True, plain=ALL_PLAIN)  # type: ignore[arg-type]
    plan = plan_frame(track, size, profile(width=shape[0], height=shape[1], most_continued=0.99))
    assert plan.air >= -1e-9
    assert plan.width / plan.height == pytest.approx(shape[0] / shape[1])
    if plan.background is None:
        assert plan.left >= -1e-6
        assert plan.top >= -1e-6
        assert plan.right <= size[0] + 1e-6
        assert plan.bottom <= size[1] + 1e-6
        assert plan.continued == pytest.approx(0)
    else:
        # Never more background than it takes: on one axis the clip fills the frame.
        assert plan.width <= size[0] + 1e-6 or plan.height <= size[1] + 1e-6


def test_a_product_stands_where_the_marketplaces_signs_leave_it_free() -> None:
    signs = SafeArea(bottom=0.4)
    clip = product_clip(box=(60, 70, 100, 120))
    track = track_product(clip)
    tall = profile(width=108, height=192, safe_area=signs)
    shown, plain = plan_frame(track, (160, 160), tall), plan_frame(track, (160, 160), profile(width=108, height=192))
    assert (shown.product[1] + shown.product[3]) / 2 < (plain.product[1] + plain.product[3]) / 2 + 1e-9
    wide = plan_frame(track, (160, 160), profile(safe_area=signs))
    assert (wide.product[1] + wide.product[3]) / 2 < 0.45
    assert wide.air > 0


def test_a_small_product_is_cropped_round_and_a_large_one_is_not() -> None:
    small = plan_frame(track_product(product_clip(box=(70, 70, 90, 100))), (160, 160), profile())
    large = plan_frame(track_product(product_clip(box=(70, 20, 90, 140))), (160, 160), profile())
    assert small.background is None
    assert large.background is BackgroundFill.PLAIN


def test_a_continued_background_goes_on_without_a_seam() -> None:
    clip = product_clip(box=(50, 15, 110, 145))
    shown = reframe(clip[0], plan_frame(track_product(clip), (160, 160), profile()))
    beside = np.concatenate([shown[:, :20].reshape(-1, 3), shown[:, -20:].reshape(-1, 3)])
    assert np.abs(beside.astype(int) - (214, 216, 220)).max() <= 2


def test_a_product_that_leaves_the_clip_leaves_the_frame_there_and_the_other_side_goes_on() -> None:
    clip = product_clip(box=(60, 30, 160, 130))
    track = track_product(clip)
    assert track.continuable == (True, True, False, True)
    plan = plan_frame(track, (160, 160), profile(backgrounds=["plain"]))
    assert plan.right == pytest.approx(160)
    assert plan.left < 0
    shown = reframe(clip[0], plan)
    assert red_pixels(shown[:, -4:]) > 0


def test_a_soft_shadow_at_a_border_is_continued_where_the_product_ends_before_it() -> None:
    sides = {"found": True, "plain": (True, True, False, True), "smooth": (1.0, 1.0, 0.9, 1.0)}
    assert ProductTrack(box=(0.2, 0.1, 0.9, 0.9), **sides).continuable == ALL_PLAIN
    assert ProductTrack(box=(0.2, 0.1, 1.0, 0.9), **sides).continuable == (True, True, False, True)


def test_behind_a_busy_clip_lies_the_clip_itself_blurred() -> None:
    clip = busy_clip()
    plan = plan_frame(track_product(clip), (160, 160), profile())
    assert plan.background is BackgroundFill.BLURRED
    shown = reframe(clip[0], plan)
    side = (shown.shape[1] - 160) // 2
    assert side > 40
    assert np.array_equal(shown[:, side : side + 160], clip[0])
    # Where the clip ends nothing is seen of it: the next pixel is its own, mirrored.
    assert np.abs(shown[:, side - 1].astype(int) - clip[0][:, 0]).max() <= 4
    assert np.abs(np.diff(shown[:, : side - 40].astype(int), axis=1)).max() <= 6
    assert not bars(Image.fromarray(shown))


def test_a_profile_that_takes_no_blur_refuses_it_and_names_the_sides() -> None:
    with pytest.raises(BadInputError, match=r"small: .*plain background.*left, right"):
        plan_frame(track_product(busy_clip()), (160, 160), profile(backgrounds=["plain"]))


def test_9_to_16_from_a_3_to_1_banner_without_cutting_is_refused_with_numbers() -> None:
    track = ProductTrack(box=(0.02, 0.1, 0.98, 0.9), found=True, plain=ALL_PLAIN)
    with pytest.raises(BadInputError) as raised:
        plan_frame(track, (300, 100), profile(width=108, height=192))
    assert raised.value.problem.field == "deliver"
    assert "9:16 from a clip of 3:1" in raised.value.problem.message
    assert "81% of the frame" in raised.value.problem.message
    assert "96% of the clip's width" in raised.value.problem.message
    assert "aspect" in raised.value.problem.remedy
