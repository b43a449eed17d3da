"""Breakers under a clock that the test moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.breakers import FAULTS, REST_S, Blame, Breakers, Route, blame, route_of
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Completed, Errored
from pipeline.units import GIB
from tests.building import Clock, ended_with, objects, spec

ROUTE = Route("i2vgen-xl", "512p", "layout", "gpu0")
OTHER = ROUTE._replace(card="gpu1")


def made() -> tuple[Breakers, Clock]:
    clock = Clock()
    return Breakers(clock), clock


def attempt(breakers: Breakers, number: int, verdict: Blame, route: Route = ROUTE, job: str = "") -> None:
    breakers.started(route, f"attempt_{number}")
    breakers.ended(route, f"attempt_{number}", job or f"video_{number}", verdict)


def opened() -> tuple[Breakers, Clock]:
    breakers, clock = made()
    for number in range(FAULTS):
        assert breakers.blocked() == frozenset()
        attempt(breakers, number, Blame.CARD)
    assert breakers.blocked() == {ROUTE}
    return breakers, clock


def test_it_opens_after_three_jobs_failed_and_rests():
    breakers, clock = opened()
    clock.now += REST_S - 1
    assert breakers.blocked() == {ROUTE}
    clock.now += 1
    assert breakers.blocked() == frozenset(), "one may try"


def test_one_job_that_fails_again_and_again_says_nothing_of_the_card():
    breakers, _ = made()
    for number in range(3 * FAULTS):
        attempt(breakers, number, Blame.CARD, job="video_poison")
    assert breakers.blocked() == frozenset()


def test_a_success_between_them_begins_the_count_anew():
    breakers, _ = made()
    for number in range(FAULTS - 1):
        attempt(breakers, number, Blame.CARD)
    attempt(breakers, 10, Blame.NONE)
    for number in range(20, 20 + FAULTS - 1):
        attempt(breakers, number, Blame.CARD)
    assert breakers.blocked() == frozenset()
    attempt(breakers, 30, Blame.CARD)
    assert breakers.blocked() == {ROUTE}


def test_one_probe_at_a_time_and_its_success_closes_it():
    breakers, clock = opened()
    clock.now += REST_S
    breakers.started(ROUTE, "probe")
    assert breakers.blocked() == {ROUTE}, "nobody beside the probe"
    clock.now += 10 * REST_S
    assert breakers.blocked() == {ROUTE}
    breakers.ended(ROUTE, "probe", "video_probe", Blame.NONE)
    assert breakers.blocked() == frozenset()
    attempt(breakers, 50, Blame.CARD)
    assert breakers.blocked() == frozenset(), "closed is as new"


def test_a_failing_probe_opens_it_for_another_rest():
    breakers, clock = opened()
    clock.now += REST_S
    # Also where it is a job that had failed before.
    attempt(breakers, 0, Blame.CARD)
    clock.now += REST_S - 1
    assert breakers.blocked() == {ROUTE}
    clock.now += 1
    assert breakers.blocked() == frozenset()


def test_a_probe_that_was_cancelled_lets_another_try():
    breakers, clock = opened()
    clock.now += REST_S
    attempt(breakers, 40, Blame.UNKNOWN)
    assert breakers.blocked() == frozenset()
    breakers.started(ROUTE, "next")
    assert breakers.blocked() == {ROUTE}


def test_an_attempt_that_was_there_before_it_opened_is_no_probe():
    breakers, clock = made()
    breakers.started(ROUTE, "early")
    for number in range(FAULTS):
        attempt(breakers, number, Blame.CARD)
    clock.now += REST_S / 2
    breakers.ended(ROUTE, "early", "video_early", Blame.CARD)
    clock.now += REST_S / 2
    assert breakers.blocked() == frozenset(), "it rests from the third failure on"


endings = st.tuples(
    st.sampled_from([ROUTE, OTHER]), st.integers(0, 5), st.sampled_from(Blame), st.integers(0, 2 * int(REST_S))
)


@given(st.lists(endings, max_size=40))
def test_whatever_happened_a_closed_route_is_offered_again(history):
    breakers, clock = made()
    for number, (route, job, verdict, seconds) in enumerate(history):
        if route not in breakers.blocked():
            attempt(breakers, number, verdict, route, f"video_{job}")
        clock.now += seconds
    clock.now += REST_S
    assert breakers.blocked() == frozenset()


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(Blame)), max_size=30))
def test_what_one_card_does_is_not_held_against_another(history):
    breakers, _ = made()
    for number, (job, verdict) in enumerate(history):
        attempt(breakers, number, verdict, ROUTE, f"video_{job}")
    assert OTHER not in breakers.blocked()


def test_what_an_ending_says_about_the_card():
    assert blame(Completed(objects=objects())) is Blame.NONE
    for outcome in (Outcome.OOM, Outcome.CRASHED):
        assert blame(ended_with(outcome)) is Blame.CARD
    assert blame(Errored(sticky=True)) is Blame.CARD
    for outcome in (Outcome.ERROR, Outcome.TOO_BIG, Outcome.INVALID, Outcome.LOST, Outcome.STOPPED):
        assert blame(ended_with(outcome)) is Blame.UNKNOWN


def test_routes_differ_by_family_class_layout_and_card():
    clip = spec("i2vgen-xl", width=512, height=512, frames=16)
    large, small = route_of(clip, "gpu0", 21 * GIB), route_of(clip, "gpu0", 6 * GIB)
    assert (large.family, large.resolution_class, large.card) == ("i2vgen-xl", "256p", "gpu0")
    assert "guidance=batched" in large.layout
    assert "guidance=split" in small.layout
    assert route_of(clip, "gpu1", 21 * GIB) == large._replace(card="gpu1")
    assert route_of(clip, "gpu0", 1).layout, "also where nothing fits"
