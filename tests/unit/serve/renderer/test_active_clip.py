"""When a clip hangs that was asked to end, and what is reported of weights that are loaded for it."""

from __future__ import annotations

import pytest

import serve.renderer.active_clip
from cluster.dispatch.protocol import Assignment
from serve.renderer.active_clip import ActiveClip
from tests.building import spec

STALL_S = 1800.0


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(serve.renderer.active_clip, "time", made)
    return made


@pytest.fixture
def clip(clock) -> ActiveClip:
    assignment = Assignment(
        attempt_id="attempt_1", job_id="video_1", renderer="r", card_class="c8", owner="local", still="ab" * 32,
        spec=spec(), content_key="k", row={},
    )  # fmt: skip
    return ActiveClip(assignment, lambda _event: None)


def test_a_clip_that_nobody_told_to_stop_never_hangs(clip, clock):
    clock.now += 10 * STALL_S
    assert not clip.hangs(STALL_S)


def test_patience_counts_from_the_word_and_from_the_last_step_whichever_is_later(clip, clock):
    """A fetch of weights that takes an hour is not ended at the moment at which it is told to stop."""
    clock.now += 2 * STALL_S
    clip.stop()
    assert not clip.hangs(STALL_S)
    clock.now += STALL_S - 1
    clip.preempt()
    clip.report(1, 5)
    clock.now += STALL_S - 1
    assert not clip.hangs(STALL_S), "it did a step after the word"
    clock.now += 2
    assert clip.hangs(STALL_S)


def test_weights_on_their_way_are_progress_and_are_told_while_they_come(clip, clock):
    clip.stop()
    clock.now += STALL_S - 1
    clip.loads("fetching a/b: 1.00 of 31.00 GiB")
    assert clip.loading == "fetching a/b: 1.00 of 31.00 GiB"
    clock.now += STALL_S - 1
    assert not clip.hangs(STALL_S)
    assert clip.loading == "", "nothing was heard of it for long: the farm's own patience counts"
    clip.loads("loading unet (1 of 5)")
    clip.report(1, 5)
    assert clip.loading == ""


def test_a_clip_that_stands_still_between_quick_steps_is_given_up_sooner(clip, clock):
    """Its dispatcher gives it up by the same rule: this process has to follow before the next clip waits behind it."""
    for step in range(3):
        clip.report(step, 5)
        clock.now += 2.0
    clip.stop()
    clock.now += 299
    assert not clip.hangs(STALL_S)
    clock.now += 2
    assert clip.hangs(STALL_S)


def test_slow_steps_and_decodes_are_given_their_time(clip, clock):
    for step in range(3):
        clip.report(step, 5)
        clock.now += 20.0
    clip.stop()
    clock.now += 599 - 20
    assert not clip.hangs(STALL_S), "thirty of its own steps"
    clip.report(5, 5)
    clock.now += STALL_S - 1
    assert not clip.hangs(STALL_S), "a decode has no pace of its own"
