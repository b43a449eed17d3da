"""Steps that are reported: enough to take times from, few enough to cost nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch.protocol import CardFree, StepDone
from cluster.estimates.timing import Stopwatch
from pipeline.families.layouts import RESIDENT
from serve.renderer.active_clip import StepReports


def sent(times: list[float], first: int = 0, every_s: float = 0.2) -> list[tuple[int, float]]:
    """Which steps are sent of a clip whose steps, `first` being the one it begins at, end at `times`."""
    reports, last = StepReports(every_s), first + len(times) - 1
    numbered = enumerate(times, start=first)
    return [(step, now) for step, now in numbered if reports.passes(StepDone(step=step, steps=last), now)]


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60), st.integers(0, 40))
def test_times_taken_from_what_is_sent_are_those_of_all_steps(gaps, first):
    times = [100.0 + sum(gaps[:n]) for n in range(len(gaps) + 1)]
    every, few = Stopwatch(99.0), Stopwatch(99.0)
    for step, now in enumerate(times, start=first):
        every.step(step, now)
    for step, now in sent(times, first):
        few.step(step, now)
    assert few.timed(1000.0, RESIDENT) == every.timed(1000.0, RESIDENT)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=80))
def test_nobody_waits_long_for_news_and_nobody_gets_a_flood(gaps):
    times = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    passed = sent(times)
    for (_, earlier), (_, later) in itertools.pairwise(passed[1:-1]):
        assert later - earlier >= 0.2
    for step, now in enumerate(times):
        newest = max(when for number, when in passed if number <= step)
        assert now - newest < 0.2


def test_slow_steps_are_all_sent():
    assert [step for step, _ in sent([0.0, 1.0, 2.0, 3.0, 4.0])] == [0, 1, 2, 3, 4]


def test_a_clip_that_begins_anew_says_so_at_once():
    reports = StepReports()
    assert reports.passes(StepDone(step=7, steps=50), 1.0)
    assert reports.passes(StepDone(step=0, steps=50), 1.01)
    assert reports.passes(StepDone(step=1, steps=50), 1.02)
    assert not reports.passes(StepDone(step=2, steps=50), 1.03)


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_everything_but_steps_is_sent(seconds):
    reports = StepReports()
    assert all(reports.passes(CardFree(), number * seconds) for number in range(20))
