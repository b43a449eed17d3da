"""Clips that come one by one: many end early, the last hardly later than it could, and few are moved."""

from __future__ import annotations

import importlib
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.estimates.times import TimeEstimates
from cluster.scheduling.placement import place
from cluster.scheduling.priority import AGEING_S
from cluster.scheduling.snapshot import Running, Start
from cluster.scheduling.tail.arrivals import LATER, come_one_by_one, end_early
from cluster.scheduling.tail.bound import shortest
from cluster.scheduling.tail.planner import Planner, is_worth_planning
from cluster.scheduling.tail.schedule import Place
from cluster.scheduling.tail.search import least_s
from tests.unit.cluster.scheduling.test_planner import CARDS, Steady, a_card, a_job, look
from tests.unit.cluster.scheduling.test_tail import cases, check, task

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
INF = math.inf

# -- what comes one by one ------------------------------------------------------------------------------------------


def at(number: int, when: int, batch: str = "batch"):
    return a_job(number, created_at=when, batch_id=batch)


def test_a_batch_does_not_come_one_by_one_and_several_at_different_times_do():
    assert not come_one_by_one([])
    assert not come_one_by_one([at(0, 5)]), "alone, it is the last as well"
    assert not come_one_by_one([at(n, 5) for n in range(9)])
    assert come_one_by_one([at(n, 5 + n) for n in range(2)])
    assert come_one_by_one([at(n, 5, f"batch{n}") for n in range(4)])
    half = [at(n, 5) for n in range(4)]
    assert come_one_by_one([*half, *(at(n, 9) for n in range(4, 8))])
    assert not come_one_by_one([*half, *(at(n, 9) for n in range(4, 7))]), "a batch and what came besides"


# -- the schedule ---------------------------------------------------------------------------------------------------


def ends(played) -> dict[int, float]:
    """When each task ends."""
    found: dict[int, float] = {}
    for piece, (_, end) in zip(played.schedule, played.times, strict=True):
        found[piece.task] = max(end, found.get(piece.task, 0.0))
    return found


@settings(max_examples=25, deadline=None)
@given(cases(), st.data())
def test_a_schedule_is_sound_and_cuts_no_clip_that_cannot_be_stopped(case, data):
    tasks, places = case
    tasks = [replace(t, movable=t.at is not None or data.draw(st.booleans())) for t in tasks]
    bound_s = least_s(tasks, places)
    played = end_early(tasks, places, bound_s)
    assert check(played, tasks, places) >= bound_s * (1 - 1e-6) - 1e-6
    for index, one in enumerate(tasks):
        assert one.movable or sum(piece.task == index for piece in played.schedule) == 1


@settings(max_examples=10, deadline=None)
@given(cases(costs=st.just(1e5)))
def test_nothing_moves_where_moves_are_dear(case):
    tasks, places = case
    played = end_early(tasks, places, INF)
    assert all(sum(piece.task == index for piece in played.schedule) == 1 for index in range(len(tasks)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1, 50), min_size=1, max_size=9), st.integers(1, 4))
def test_on_equal_cards_the_sum_of_all_ends_is_the_least_there_is(seconds, cards):
    """Shortest first is best there: the k-th last clip of each card counts k times."""
    tasks = [task(f"task{n}", 1, s) for n, s in enumerate(seconds)]
    played = end_early(tasks, [Place(kind=0) for _ in range(cards)], INF)
    longest = sorted(seconds, reverse=True)
    assert sum(ends(played).values()) == pytest.approx(sum(s * (1 + n // cards) for n, s in enumerate(longest)))


def pieces(played):
    return [(piece.task, piece.place, piece.steps) for piece in played.schedule]


def test_a_clip_moves_up_to_a_faster_card_that_is_free():
    slow = task("slow", 60, 1.0, 4.0, cost=0.5, at=1, begun=True)
    played = end_early([slow], [Place(kind=0), Place(kind=1)], INF)
    assert pieces(played) == [(0, 0, 60)]
    little = replace(slow, steps=1)
    assert pieces(end_early([little], [Place(kind=0), Place(kind=1)], INF)) == [(0, 1, 1)], "not for a step"
    alike = replace(slow, step_s=(1.0, 1.1))
    assert pieces(end_early([alike], [Place(kind=0), Place(kind=1)], INF)) == [(0, 1, 60)], "nor for little"


def test_a_clip_that_waits_for_a_fast_card_begins_on_a_slow_one_meanwhile():
    clip = task("clip", 60, 1.0, 4.0, cost=0.5)
    places = [Place(kind=0, free_s=80.0), Place(kind=1)]
    assert pieces(end_early([clip], places, INF)) == [(0, 1, 20), (0, 0, 40)]
    rigid = replace(clip, movable=False)
    assert pieces(end_early([rigid], places, INF)) == [(0, 0, 60)], "unless it cannot be moved"
    soon = [Place(kind=0, free_s=5.0), Place(kind=1)]
    assert pieces(end_early([clip], soon, INF)) == [(0, 0, 60)], "nor where that is soon"


def test_a_clip_that_would_end_too_late_takes_the_fast_card_of_one_that_has_time():
    short = task("short", 100, 1.0, 2.0, cost=0.5, at=0, begun=True)
    long = task("long", 300, 1.0, 2.0, cost=0.5)
    places = [Place(kind=0), Place(kind=1)]
    at_leisure = end_early([short, long], places, INF)
    assert ends(at_leisure)[0] == pytest.approx(100), "nobody disturbs it"
    bound_s = least_s([short, long], places)
    assert bound_s * (1 + LATER) < at_leisure.makespan_s
    hurried = end_early([short, long], places, bound_s)
    assert hurried.makespan_s <= bound_s * (1 + LATER)
    assert ends(hurried)[0] > 100


def test_in_a_crowd_a_long_clip_is_first_when_it_is_time_and_not_before():
    """While more clips than cards are left nothing is lost by short ones, and the long one still ends in time."""
    short = [task(f"short{n}", 20, 1.0, 3.0, cost=0.5) for n in range(8)]
    tasks, places = [*short, task("long", 150, 1.0, 3.0, cost=0.5)], [Place(kind=0), Place(kind=1)]
    at_leisure, bound_s = end_early(tasks, places, INF), least_s(tasks, places)
    assert bound_s * 1.2 < at_leisure.makespan_s
    in_time = end_early(tasks, places, bound_s)
    assert in_time.makespan_s <= bound_s * (1 + LATER)
    begins_s = next(begin for piece, (begin, _) in zip(in_time.schedule, in_time.times, strict=True) if piece.task == 8)
    before = {index: end for index, end in ends(at_leisure).items() if end <= begins_s}
    assert len(before) >= 4
    assert {index: ends(in_time)[index] for index in before} == pytest.approx(before)


def test_a_clip_that_fits_on_no_card_is_named():
    with pytest.raises(ValueError, match="nowhere fits on none of 1 cards"):
        end_early([task("nowhere", 3, INF)], [Place(kind=0)], INF)


# -- the planner ----------------------------------------------------------------------------------------------------


def test_who_comes_is_planned_at_once_and_goes_where_it_ends_first():
    planner = Planner(Steady(), variants=1)
    first = planner.update(look([at(0, 0), at(1, 1)], CARDS), 1.0)
    assert {first.of_job["job0"][0].card, first.of_job["job1"][0].card} == {"x", "y"}
    running = [
        Running(job=at(n, n), card=card, step=2, step_s=1.0, movable=True) for n, card in enumerate(("x", "y"))
    ]  # fmt: skip
    busy = [c.model_copy(update={"idle": c.card == "s"}) for c in CARDS]
    again = planner.update(look([at(2, 4)], busy, running), 4.0)
    assert again.jobs == {"job0", "job1", "job2"}, "no five seconds are waited for"
    assert [part.card for part in again.of_job["job2"]][-1] in ("x", "y")
    assert planner.update(look([at(2, 4)], busy, running), 4.0) is again
    assert not planner.is_stale(look([at(2, 4)], busy, running), 4.0)


def test_however_few_come_one_by_one_they_are_planned():
    cards = [a_card(name, "NVIDIA L4") for name in ("x", "y")]
    estimates = TimeEstimates()
    assert not is_worth_planning(look([at(0, 0)], cards), estimates)
    assert is_worth_planning(look([at(0, 0), at(1, 3)], cards), estimates)
    unknown = [a_card(name, "unheard of") for name in ("x", "y")]
    assert not is_worth_planning(look([at(0, 0), at(1, 3)], unknown), estimates)


def test_short_clips_that_keep_coming_do_not_keep_a_long_one_waiting_for_ever():
    long = at(0, 0)
    brief = [replace(at(n, 1000 + n), spec=long.spec.model_copy(update={"steps": 5})) for n in (1, 2, 3)]
    for now, begins in (AGEING_S - 1, "job1"), (AGEING_S, "job0"):
        snapshot = look([long, *brief], CARDS[:1])
        plan = Planner(Steady(), variants=1).update(snapshot, now)
        (start,) = (one for one in place(replace(snapshot, plan=plan), now) if isinstance(one, Start))
        assert start.job.id == begins


# -- on a farm in virtual time --------------------------------------------------------------------------------------


@pytest.fixture
def interactive(monkeypatch):
    """`benchmarks/interactive.py`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("report", "traces", "policies", "arrival_bound", "makespan", "interactive")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("interactive")
    for name in names:
        sys.modules.pop(name, None)


def test_twenty_that_come_one_by_one_end_as_early_as_with_the_best_of_others(interactive):
    """The frozen traces, as `benchmarks/interactive.py` judges them, others being played by it in the same run."""
    found = [t for t in interactive.traces.frozen()[1] if t.name.startswith("20-poisson")]
    played = [interactive.one_by_one(one, variants=1) for one in found]
    small = statistics.mean(p.small_p95_s for p in played) / statistics.mean(p.rival_p95_s for p in played)
    assert small <= interactive.SMALL
    assert statistics.mean(p.ratio for p in played) <= interactive.LAST
    assert statistics.mean(p.moves_per_job for p in played) <= interactive.MOVES


# -- the bound that they are measured by ----------------------------------------------------------------------------

some_jobs = st.lists(st.tuples(st.floats(0, 100), st.floats(1, 50)), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_jobs)
def test_on_one_card_the_last_can_end_when_all_that_came_since_some_moment_are_done(interactive, jobs):
    least_end_s = interactive.makespan.least_end_s
    arrivals, seconds = [at for at, _ in jobs], [[s] for _, s in jobs]
    expected = max(begin + sum(s for at, s in jobs if at >= begin) for begin, _ in jobs)
    assert least_end_s(seconds, arrivals, [1]) == pytest.approx(expected)
    assert least_end_s(seconds, arrivals, [1], most_intervals=2) <= expected * (1 + 1e-9), (
        "fewer intervals, a lower one"
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_jobs, st.integers(1, 3))
def test_no_clip_ends_sooner_than_it_takes_and_all_at_once_are_the_known_program(interactive, jobs, cards):
    least_end_s = interactive.makespan.least_end_s
    seconds = [[s, 2 * s] for _, s in jobs]
    together = least_end_s(seconds, [0.0] * len(jobs), [cards, 1])
    assert together == pytest.approx(shortest(seconds, [cards, 1])[0])
    spread = least_end_s(seconds, [at for at, _ in jobs], [cards, 1])
    assert max(together, max(at + s for at, s in jobs)) <= spread * (1 + 1e-9)
    assert spread <= max(at for at, _ in jobs) + together + 1e-6


def test_a_clip_cannot_be_on_two_cards_at_once_while_others_are_awaited(interactive):
    """Two cards, one long clip from the start, one more at 10: the first has had one card only until then."""
    assert interactive.makespan.least_end_s([[30.0], [20.0]], [0.0, 10.0], [2]) == pytest.approx(30.0)
    assert interactive.makespan.least_end_s([[30.0], [20.0], [20.0]], [0.0, 10.0, 10.0], [2]) == pytest.approx(40.0), (
        "not 35, half of all"
    )
