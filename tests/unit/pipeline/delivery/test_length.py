"""How long a file is, at which rate, and that its end leads to its beginning."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.delivery.length import MOST_SPEED_CHANGE, ends_as_it_begins, plan_time, shown
from pipeline.delivery.profiles import Lengthening, built_in
from pipeline.problems import BadInputError
from tests.unit.pipeline.delivery.clips import profile


def ramp(count: int) -> np.ndarray:
    """Frames that differ by equal steps."""
    return np.stack([np.full((4, 4, 3), 10 + 4 * number, np.uint8) for number in range(count)])


def wave(count: int) -> np.ndarray:
    """Frames of a loop: the one after the last is the first."""
    levels = 120 + 90 * np.sin(2 * np.pi * np.arange(count) / count)
    return np.stack([np.full((4, 4, 3), round(level), np.uint8) for level in levels])


def largest_step(frames: list[np.ndarray]) -> float:
    """The largest change from a frame to the next, the last to the first among them."""
    pairs = itertools.pairwise([*frames, frames[0]])
    return max(float(np.abs(one.astype(int) - other.astype(int)).mean()) for one, other in pairs)


@pytest.mark.parametrize("how", [Lengthening.AUTO, Lengthening.PING_PONG, Lengthening.CROSS_FADE, Lengthening.LOOP])
@pytest.mark.parametrize("frames", [ramp(16), wave(16)], ids=["ramp", "wave"])
def test_what_is_lengthened_has_no_jump_anywhere(how: Lengthening, frames: np.ndarray) -> None:
    own = max(float(np.abs(a.astype(int) - b).mean()) for a, b in itertools.pairwise(frames.astype(int)))
    timeline = plan_time(16, 24, profile(), seamless=ends_as_it_begins(frames), wish=how)
    assert timeline.seamless
    assert 1 <= timeline.seconds <= 4
    # A fade goes from the end to the beginning in its frames: for a ramp that takes larger steps than the ramp's.
    assert largest_step(list(shown(frames, timeline))) <= own * (4 if how is Lengthening.CROSS_FADE else 1.01)


def test_a_clip_that_ends_as_it_begins_is_known() -> None:
    assert ends_as_it_begins(wave(16))
    assert not ends_as_it_begins(ramp(16))
    assert ends_as_it_begins(np.repeat(ramp(1), 5, axis=0))


def test_a_loop_is_repeated_and_a_ramp_goes_there_and_back() -> None:
    assert plan_time(16, 24, profile(), seamless=True).lengthening is Lengthening.LOOP
    there_and_back = plan_time(16, 24, profile(), seamless=False)
    assert there_and_back.lengthening is Lengthening.PING_PONG
    assert [step[0] for step in there_and_back.order] == [*range(16), *range(14, 0, -1)]


def test_no_turning_point_stands_twice() -> None:
    order = [step[0] for step in plan_time(16, 24, profile(min_seconds=3), seamless=False).order]
    assert all(one != other for one, other in itertools.pairwise([*order, order[0]]))


@pytest.mark.parametrize(
    ("fps", "rates", "rate", "repeat"),
    [(8, (24, 30), 24, 3), (24, (30, 24), 24, 1), (10, (24, 30), 30, 3), (16, (24, 30), 30, 2), (25, (24, 25), 25, 1)],
)
def test_frames_stand_equally_long_where_a_rate_allows_it(
    fps: int, rates: tuple[int, ...], rate: int, repeat: int
) -> None:
    timeline = plan_time(48, fps, profile(rates=rates, max_seconds=20), seamless=False)
    assert (timeline.fps, timeline.repeat) == (rate, repeat)
    assert abs(timeline.speed - 1) <= MOST_SPEED_CHANGE
    assert all(share == 0 for _, _, share in timeline.order)


def test_where_no_rate_does_neighbours_are_mixed_and_the_speed_stays() -> None:
    timeline = plan_time(18, 18, profile(rates=(24,), max_seconds=20), seamless=False)
    assert timeline.speed == 1
    assert timeline.repeat == 1
    assert timeline.seconds == pytest.approx(1, abs=0.05)
    levels = [float(frame.mean()) for frame in shown(ramp(18), timeline)]
    assert levels == sorted(levels)


@settings(max_examples=400, deadline=None)
@given(
    count=st.integers(1, 200),
    fps=st.integers(1, 60),
    name=st.sampled_from(built_in().names),
    seamless=st.booleans(),
    wish=st.sampled_from(Lengthening),
)
def test_every_timeline_is_within_its_profile(
    count: int, fps: int, name: str, seamless: bool, wish: Lengthening
) -> None:
    rules = built_in().named(name)
    if count / fps * (1 + MOST_SPEED_CHANGE) * 2 > rules.max_seconds - rules.min_seconds:
        return
    timeline = plan_time(count, fps, rules, seamless=seamless, wish=wish)
    assert rules.min_seconds - 1e-9 <= timeline.seconds <= rules.max_seconds + 1e-9
    assert timeline.fps in rules.rates
    assert {index for index, _, _ in timeline.order} <= set(range(count))
    assert timeline.lengthening is None or timeline.seamless


def test_a_clip_that_is_too_long_is_refused_with_both_lengths() -> None:
    with pytest.raises(BadInputError, match=r"the clip of 8\.00 s makes 8\.00 s, and it takes 1 to 4 s"):
        plan_time(192, 24, profile(), seamless=False)
