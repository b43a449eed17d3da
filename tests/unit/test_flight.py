"""When a clip hangs that was told to stop, and what is told of weights that are loaded for it."""

from __future__ import annotations

import pytest

import serve.flight
from cluster.renderers import Assignment
from serve.flight import Flight
from tests.building import spec

STALL_S = 1800.0


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(serve.flight, "time", made)
    return made


@pytest.fixture
def flight(clock) -> Flight:
    assignment = Assignment(
        attempt_id="attempt_1", job_id="video_1", renderer="r", card_class="c8", owner="local", still="ab" * 32,
        spec=spec(), content_key="k", row={},
    )  # fmt: skip
    return Flight(assignment, lambda _event: None)


def test_a_clip_that_nobody_told_to_stop_never_hangs(flight, clock):
    clock.now += 10 * STALL_S
    assert not flight.hangs(STALL_S)


def test_patience_counts_from_the_word_and_from_the_last_step_whichever_is_later(flight, clock):
    """A fetch of weights that takes an hour is not ended at the moment at which it is told to stop."""
    clock.now += 2 * STALL_S
    flight.stop()
    assert not flight.hangs(STALL_S)
    clock.now += STALL_S - 1
    flight.stop(checkpoint=True)
    flight.report(1, 5)
    clock.now += STALL_S - 1
    assert not flight.hangs(STALL_S), "it did a step after the word"
    clock.now += 2
    assert flight.hangs(STALL_S)


def test_weights_on_their_way_are_progress_and_are_told_while_they_come(flight, clock):
    flight.stop()
    clock.now += STALL_S - 1
    flight.loads("fetching a/b: 1.00 of 31.00 GiB")
    assert flight.loading == "fetching a/b: 1.00 of 31.00 GiB"
    clock.now += STALL_S - 1
    assert not flight.hangs(STALL_S)
    assert flight.loading == "", "nothing was heard of it for long: the farm's own patience counts"
    flight.loads("loading unet (1 of 5)")
    flight.report(1, 5)
    assert flight.loading == ""
