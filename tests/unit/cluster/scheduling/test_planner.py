"""When a plan is made, kept and given up; and the whole of it in a farm in virtual time."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.estimates.memory import MemoryEstimates
from cluster.fleet.breakers import route_of
from cluster.fleet.cards import Card, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import Job, JobState
from cluster.scheduling.snapshot import Running, Snapshot, work_kind
from cluster.scheduling.tail.plan import TailPlan
from cluster.scheduling.tail.planner import Planner, suited
from cluster.scheduling.tail.search import MOST_LISTED
from tests.building import card, spec

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"

# -- when a plan is made --------------------------------------------------------------------------------------------

FLEET = Fleet(usable_bytes={"c8": 8, "c24": 24})
LARGE = 20


class Steady:
    """Ten seconds of decoding; a step takes 4 s, on a large card 1 s. A move costs everybody 2 s."""

    def clip_seconds(self, clip, kind, *, usable_bytes=None, from_step=0):
        return (clip.total_steps - from_step) * (4.0 if kind == "slow" else 1.0) + 10.0

    def gap_seconds(self, family, kind):
        return 0.0

    load_seconds = gap_seconds

    def move_costs(self, clip, kind, *, warm):
        return 2.0, 2.0, 2.0


def a_job(number: int, **changes) -> Job:
    values = {
        "id": f"job{number}", "owner": "ann", "batch_id": "batch", "number": number, "name": str(number),
        "state": JobState.QUEUED, "row": {}, "created_at": 0, "spec": spec("i2vgen-xl", steps=50),
        "content_key": f"key{number}", "needs_bytes": 1,
    }  # fmt: skip
    return Job(**(values | changes))


def a_card(name: str, kind: str = "fast", usable: int = 24, *, idle: bool = True) -> Card:
    return card(name, usable, idle=idle).model_copy(update={"kind": kind, "card_class": f"c{usable}"})


def look(jobs, cards, running=(), **changes) -> Snapshot:
    return Snapshot.of(waiting=jobs, cards=cards, fleet=FLEET, running=running, **changes)


CARDS = [a_card("x"), a_card("y"), a_card("s", "slow", 8)]


def planned(count: int = 4, cards=CARDS):
    planner = Planner(Steady(), variants=1)
    jobs = [a_job(n) for n in range(count)]
    return planner, jobs, planner.update(look(jobs, cards), 0.0)


def started(plan: TailPlan, jobs, now: float, pace: float = 1.0):
    """(waiting, running, cards) when every card has done what it was to do in `pace` times `now` seconds."""
    by_id = {job.id: job for job in jobs}
    running = []
    for name in ("x", "y", "s"):
        first = plan.of_card[name][0]
        each = 4.0 if name == "s" else 1.0
        steps, within = divmod(now * pace, each)
        running.append(
            Running(
                job=by_id[first.job],
                card=name,
                step=int(steps),
                step_s=each / pace,
                since_step_s=within / pace,
                movable=True,
            )
        )
    busy = {r.job.id for r in running}
    cards = [c.model_copy(update={"idle": False}) for c in CARDS]
    return [job for job in jobs if job.id not in busy], running, cards


def steps_of(plan: TailPlan) -> dict[str, int]:
    """Steps that the plan does of each job, which must follow each other."""
    done: dict[str, int] = {}
    for p in plan.parts:
        assert p.first == done.get(p.job, p.first)
        assert p.last > p.first
        done[p.job] = p.last
    return done


def test_a_plan_is_kept_while_nothing_changes():
    planner, jobs, plan = planned()
    assert steps_of(plan) == {job.id: 50 for job in jobs}
    assert {p.card for p in plan.parts} == {"x", "y", "s"}
    assert planner.update(look(jobs, CARDS), 0.0) is plan
    waiting, running, cards = started(plan, jobs, 8.25)
    assert planner.update(look(waiting, cards, running), 8.25) is plan


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_plan_does_not_depend_on_which_card_was_heard_first(order):
    """Equal cards are told apart by name alone."""
    cards = [a_card("x"), a_card("y"), a_card("z")]
    _, _, plan = planned(1, [cards[n] for n in order])
    assert [part.card for part in plan.parts] == ["x"]


def test_a_new_job_a_new_card_and_a_lost_one_are_planned():
    planner, jobs, plan = planned()
    assert planner.update(look([*jobs, a_job(9)], CARDS), 0.5) is plan, "not for each one that comes"
    more = planner.update(look([*jobs, a_job(9)], CARDS), 60.0)
    assert steps_of(more).keys() == steps_of(plan).keys() | {"job9"}
    fewer = planner.update(look([*jobs, a_job(9)], CARDS[1:]), 61.0)
    assert {p.card for p in fewer.parts} == {"y", "s"}
    again = planner.update(look([*jobs, a_job(9)], [*CARDS, a_card("z")]), 62.0)
    assert {p.card for p in again.parts} == {"x", "y", "s", "z"}
    assert again.ends_at < fewer.ends_at
    locked = planner.update(look([*jobs, a_job(9)], [*CARDS, a_card("z")], locked=frozenset({"z"})), 63.0)
    assert {p.card for p in locked.parts} == {"x", "y", "s"}


def test_a_card_that_comes_alone_is_no_longer_overlooked():
    planner, jobs, plan = planned()
    waiting, running, cards = started(plan, jobs, 8.25)
    found = planner.update(look(waiting, [*cards, a_card("z")], running), 8.25)
    assert "z" in {p.card for p in found.parts}
    assert found.ends_at < plan.ends_at


def test_a_run_that_is_late_is_planned_anew_when_a_clip_waits_beyond_its_time():
    planner, jobs, plan = planned(5)
    waiting, running, cards = started(plan, jobs, 40.0, pace=0.4)
    assert any(plan.part_of(job.id, job.step).begins_at < 30 for job in waiting)
    assert planner.is_stale(look(waiting, cards, running), 40.0)
    found = planner.update(look(waiting, cards, running), 40.0)
    assert found is not plan
    assert found.ends_at > plan.ends_at
    assert planner.update(look(waiting, cards, running), 41.0) is found, "not at every look"


def test_a_run_that_is_late_is_planned_anew_when_a_job_has_ended():
    planner, jobs, plan = planned(5)
    waiting, running, cards = started(plan, jobs, 20.0, pace=0.4)
    assert planner.update(look(waiting, cards, running), 20.0) is plan, "nothing has ended, and nothing is to begin"
    found = planner.update(look(waiting, cards, [r for r in running if r.card != "s"]), 20.0)
    assert found is not plan
    assert found.ends_at > plan.ends_at
    # One that is as expected is kept when one ends.
    planner, jobs, plan = planned(5)
    waiting, running, cards = started(plan, jobs, 40.0)
    ended = plan.of_card["s"][0].job
    if len(plan.of_job[ended]) == 1:
        assert planner.update(look(waiting, cards, [r for r in running if r.card != "s"]), 40.0) is plan


def test_what_is_planned_anew_counts_on_the_step_that_a_clip_is_in():
    planner, jobs, _ = planned(1, CARDS[:1])
    on = Running(job=jobs[0], card="x", step=10, step_s=1.0, since_step_s=0.25, movable=True)
    found = planner.update(look([a_job(5)], CARDS[:1], [on]), 10.25)
    assert found.of_job["job0"][0].first == 11, "that one it ends where it is"
    assert found.ends_at == pytest.approx(10.25 + 0.75 + 39 + 10 + 50 + 10)


def test_a_clip_whose_steps_are_done_is_decoded_by_plan():
    """Its renderer died while it decoded: the checkpoint has all steps."""
    planner = Planner(Steady(), variants=1)
    jobs = [a_job(0, step=50), a_job(1)]
    found = planner.update(look(jobs, CARDS[:1]), 0.0)
    assert found.jobs == {"job0", "job1"}
    # Ten seconds, and two to fetch it; the other is sixty.
    assert found.ends_at == pytest.approx(72.0, abs=2.0)
    assert planner.update(look(jobs, CARDS[:1]), 0.0) is found


def test_no_plan_while_owners_compete_or_too_much_waits():
    planner = Planner(Steady(), variants=1)
    two = [a_job(n, owner="ann" if n % 2 else "bob") for n in range(4)]
    assert planner.update(look(two, CARDS), 0.0) is None
    assert planner.update(look(two[:3], CARDS), 0.0) is not None, "there is a card for each"
    assert planner.update(look(two[:2], CARDS, unseen=1), 0.0) is None
    assert planner.update(look([a_job(n) for n in range(MOST_LISTED + 1)], CARDS), 0.0) is None
    assert planner.update(look([], CARDS), 0.0) is None
    assert planner.update(look(two[:1], []), 0.0) is None
    limited = {"ann": OwnerShare(max_running=1)}
    assert planner.update(look([a_job(0), a_job(1)], CARDS, owners=limited), 0.0) is None, "not on all those cards"
    assert planner.update(look([a_job(0)], CARDS, owners=limited), 0.0) is not None


def test_only_what_may_start_is_planned():
    planner = Planner(Steady(), variants=1)
    jobs = [
        a_job(0), a_job(1, priority=-1), a_job(2, not_before=100), a_job(3, content_key="key0"),
        a_job(4, needs_bytes=30),
    ]  # fmt: skip
    plan = planner.update(look(jobs, CARDS), 0.0)
    assert plan.jobs == {"job0"}
    assert planner.update(look(jobs, CARDS), 1.0) is plan, "one that fits no card keeps nobody from planning"
    on = Running(job=a_job(7, content_key="key0"), card="x", movable=True)
    assert planner.update(look(jobs, CARDS, [on]), 60.0).jobs == {"job7"}, "an equal clip is being rendered"


def test_a_job_that_needs_more_than_was_thought_is_planned_anew():
    planner, jobs, plan = planned(3)
    on_small = plan.of_card["s"][0].job
    jobs = [replace(job, needs_bytes=LARGE) if job.id == on_small else job for job in jobs]
    found = planner.update(look(jobs, CARDS), 0.0)
    assert {p.card for p in found.of_job[on_small]} <= {"x", "y"}
    small = [a_card("x", usable=10), *CARDS[1:]]
    again = planner.update(look(jobs, small), 0.0)
    assert {p.card for p in again.of_job[on_small]} == {"y"}, "and so is what a card has less"


def test_a_card_behind_a_breaker_is_planned_for_other_clips_only():
    planner = Planner(Steady(), variants=1)
    other = spec("i2vgen-xl", steps=50, width=512, height=512, resolution_class="512p")
    jobs = [a_job(0), a_job(1), a_job(2, spec=other)]
    blocked = frozenset({route_of(jobs[0].spec, "x", 24)})
    before = planner.update(look(jobs, CARDS[:2]), 0.0)
    assert {p.card for p in before.parts if p.job != "job2"} == {"x", "y"}
    plan = planner.update(look(jobs, CARDS[:2], blocked=blocked), 0.0)
    assert {p.card for p in plan.parts if p.job != "job2"} == {"y"}
    assert "x" in {p.card for p in plan.of_job["job2"]}


def test_large_clips_belong_to_large_cards_where_capacity_demands_it():
    cards = [a_card("x"), a_card("s0", "slow", 8), a_card("s1", "slow", 8)]
    large, small = a_job(0, needs_bytes=LARGE), a_job(1)
    many = {work_kind(large): 100, work_kind(small): 10}
    suits = suited(many, [large, small], cards, Steady(), MemoryEstimates())
    assert suits[work_kind(large)].card_kinds == {"fast"}
    assert suits[work_kind(small)].card_kinds == {"slow"}
    few = {work_kind(large): 1, work_kind(small): 100}
    assert "fast" in suited(few, [large, small], cards, Steady(), MemoryEstimates())[work_kind(small)].card_kinds
    assert suits[work_kind(large)].seconds == pytest.approx(60)
    assert suited(many, [a_job(3, needs_bytes=30)], cards, Steady(), MemoryEstimates()) == {}


# -- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture
def farm(monkeypatch):
    """`benchmarks/traces.py` and `benchmarks/policies.py`: a farm in virtual time, and our placement as it sees it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    found = []
    for name in ("traces", "policies"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        found.append(importlib.import_module(name))
    yield found
    for name in ("traces", "policies"):
        sys.modules.pop(name, None)


def some_trace(traces, seed: int, count: int, late: bool = False):
    rng = random.Random(seed)
    arrivals = tuple(round(rng.uniform(0, 100), 3) if late and n else 0.0 for n in range(count))
    return traces.Trace(name="some", arrivals=arrivals, shapes=tuple(rng.choices(range(4, 12), k=count)))


def few_rigs(traces, monkeypatch):
    rigs = [traces.Rig(index=index, kind=kind) for index, kind in enumerate((0, 1, 2, 2, 3))]
    monkeypatch.setattr(traces, "rigs", lambda: [replace(rig) for rig in rigs])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_executed_is_what_was_predicted(farm, monkeypatch, seed):
    traces, policies = farm
    few_rigs(traces, monkeypatch)
    shapes, _ = traces.frozen()
    own = policies.Clipmill(shapes, 0.5, variants=2)
    plans = []

    def watched(world):
        decisions = list(own(world))
        if own.plan is not None and (not plans or plans[-1] is not own.plan):
            plans.append(own.plan)
        return decisions

    outcome = traces.run(shapes, some_trace(traces, seed, 8), watched, own.boundaries, move_s=0.5)
    assert len(plans) == 1, "nothing was disturbed"
    assert outcome.makespan_s == pytest.approx(plans[0].ends_at, abs=1e-6)
    assert outcome.moves > 0


@pytest.mark.parametrize("seed", range(3))
def test_what_is_planned_in_the_middle_of_steps_is_executed_as_well(farm, monkeypatch, seed):
    """Jobs arrive at odd times. No plan promises too little; a job may be ready before a whole step of its pause."""
    traces, policies = farm
    few_rigs(traces, monkeypatch)
    shapes, _ = traces.frozen()
    own = policies.Clipmill(shapes, 5.0, variants=1)
    outcome = traces.run(shapes, some_trace(traces, seed, 8, late=True), own, own.boundaries, move_s=5.0)
    assert own.plan is None or outcome.makespan_s <= own.plan.ends_at + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_and_a_lost_card_everything_ends(farm, monkeypatch, seed):
    traces, policies = farm
    few_rigs(traces, monkeypatch)
    shapes, _ = traces.frozen()
    own = policies.Clipmill(shapes, 0.5, variants=1)
    rng = random.Random(seed)
    trace = some_trace(traces, seed, 9, late=seed == 2)
    worlds = []

    def watched(world):
        worlds.append(world)
        on = [work.on for work in world.work if work.on is not None]
        assert len(set(on)) == len(on)
        assert {rig.job for rig in world.rigs if rig.job is not None} == {
            w.index for w in world.work if w.on is not None
        }
        assert not set(world.waiting) & {w.index for w in world.work if w.on is not None}
        return list(own(world))

    outcome = traces.run(
        shapes, trace, watched, own.boundaries, move_s=0.5, factors=[rng.uniform(0.8, 1.2) for _ in trace.shapes],
        deaths={rng.randrange(1, 5): rng.uniform(10, 60)},
    )  # fmt: skip
    assert all(work.ended is not None for work in worlds[-1].work)
    assert all(work.step == work.shape.spec.total_steps for work in worlds[-1].work)
    # What the least loaded order of all would take on the one fastest card is far more than this.
    alone = sum(min(map(shapes[s].seconds, range(5))) for s in trace.shapes) * 1.2
    assert outcome.makespan_s < alone + 100
