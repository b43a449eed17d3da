"""Interactive jobs: what they may take, who makes room for them, and that placement does both, as properties."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fleet.cards import Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import INTERACTIVE_PRIORITY, Job, JobState, stored_priority
from cluster.scheduling.interactive import InteractiveBudget, InteractiveTerms, admitted
from cluster.scheduling.placement import place
from cluster.scheduling.preemption import LAST_STEPS, MOST_PREEMPTIONS
from cluster.scheduling.priority import AGEING_S
from cluster.scheduling.snapshot import Preempt, Running, Snapshot, Start, Wait
from cluster.scheduling.tail.plan import PlannedPart, TailPlan
from cluster.scheduling.tail.planner import Planner
from tests.building import card, spec

FLEET = Fleet(usable_bytes={"c8": 8, "c24": 24})
HERE, ELSEWHERE = "i2vgen-xl", "svd-xt"


class Known:
    """A clip takes a second a step on every card, a load 20 s, and to save or to go on a second."""

    def clip_seconds(self, clip, kind, *, usable_bytes=None, from_step=0):
        return float(clip.total_steps - from_step)

    def gap_seconds(self, family, kind):
        return 0.0

    def load_seconds(self, family, kind):
        return 20.0

    def move_costs(self, clip, kind, *, warm):
        return 1.0, 1.0, 2.0


def a_job(number: int, *, waits: bool = False, family: str = HERE, **changes) -> Job:
    values = {
        "id": f"job{number}", "owner": "ann", "batch_id": "batch", "number": number, "name": str(number),
        "state": JobState.QUEUED, "row": {}, "created_at": 0, "spec": spec(family, steps=50),
        "content_key": f"key{number}", "needs_bytes": 1, "priority": stored_priority(0, interactive=waits),
    }  # fmt: skip
    return Job(**(values | changes))


def runs(job: Job, on: str, **changes) -> Running:
    values = {"step": 10, "step_s": 1.0, "since_step_s": 0.25, "movable": True}
    return Running(job=job, card=on, **(values | changes))


def farm(waiting, running, *, idle=(), first=None, usable: int = 8, **changes) -> Snapshot:
    """Each running clip on its card, and idle cards besides; all interactive jobs are admitted if nothing is said."""
    cards = [card(r.card, usable, idle=False, family=r.job.spec.family) for r in running]
    cards += [card(name, usable) for name in idle]
    first = frozenset(job.id for job in waiting if job.interactive) if first is None else first
    return Snapshot.of(
        waiting=waiting, cards=cards, running=running, fleet=FLEET, admitted=first, **({"pace": Known()} | changes)
    )


def preempted(snapshot: Snapshot) -> list[tuple[str, str]]:
    """(card, for which job) of the clips that make room."""
    return [(one.card, one.waits.id) for one in place(snapshot) if isinstance(one, Preempt)]


# -- what is interactive, and what it may take --------------------------------------------------------------------


@given(st.integers(-1000, 1000), st.booleans())
def test_a_job_tells_its_mark_and_its_owner_s_priority_apart(priority, waits):
    job = a_job(1, priority=stored_priority(priority, interactive=waits))
    assert (job.interactive, job.own_priority) == (waits, priority)


def test_no_waiting_makes_a_job_interactive():
    oldest = a_job(1, priority=1000)
    assert not oldest.interactive
    assert INTERACTIVE_PRIORITY > 4 * (1000 + 10 * 365 * 86400 // AGEING_S)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 400), st.integers(0, 5), st.booleans(), st.floats(0, 50)), max_size=30),
    st.sampled_from([60.0, 600.0]),
)
def test_the_budget_counts_what_a_sum_over_all_time_counts(spans, window_s):
    """Beside a list of all that ever was, of which what ended within the window is added up."""
    terms = InteractiveTerms(share=0.25, window_s=window_s)
    now, budget = 1000.0, InteractiveBudget(terms, 1000.0)
    counted: list[tuple[float, float]] = []
    for seconds, running, contended, more in spans:
        budget.note(now, running=running, contended=contended)
        now += seconds
        if contended:
            counted.append((now, running * seconds))
        budget.note(now, running=running, contended=contended)
        budget.charge(now, more)
        counted.append((now, more))
    part_s = window_s / 60
    least = sum(each for at, each in counted if at > now - window_s)
    most = sum(each for at, each in counted if at > now - window_s - 2 * part_s)
    assert least - 1e-6 <= budget.used_s(now) <= most + 1e-6
    assert budget.left_s(now, 8) == pytest.approx(0.25 * window_s * 8 - budget.used_s(now))


def test_what_nobody_else_waits_for_costs_nothing():
    budget = InteractiveBudget(InteractiveTerms(), 0.0)
    budget.note(0.0, running=3, contended=False)
    budget.note(100.0, running=3, contended=True)
    assert budget.used_s(100.0) == 0
    budget.note(110.0, running=0, contended=True)
    assert budget.used_s(110.0) == 30


@pytest.mark.parametrize("wrong", [{"share": 1.1}, {"share": -0.1}, {"per_owner": -1}, {"window_s": 0}])
def test_terms_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="share is from 0 to 1"):
        InteractiveTerms(**wrong)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.booleans()), max_size=20),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)),
    st.integers(0, 4),
    st.floats(-10, 200),
)
def test_who_is_admitted(asked, running, per_owner, left_s):
    waiting = [a_job(n, owner=owner, created_at=at, waits=waits) for n, (owner, at, waits) in enumerate(asked)]
    terms = InteractiveTerms(per_owner=per_owner)
    found = admitted(waiting, running, terms, left_s, lambda job: 10.0)
    by_id = {job.id: job for job in waiting}
    assert all(by_id[one].interactive for one in found)
    taken = Counter(by_id[one].owner for one in found)
    assert all(running.get(owner, 0) + count <= per_owner for owner, count in taken.items())
    # The last may take more than is left, and no other.
    assert 10.0 * (len(found) - 1) < left_s or not found
    for job in waiting:
        if job.interactive and job.id not in found and running.get(job.owner, 0) + taken[job.owner] < per_owner:
            assert 10.0 * len(found) >= left_s, "it is left out for nothing"
            assert all(
                (other.created_at, other.number) < (job.created_at, job.number)
                for other in map(by_id.__getitem__, found)
                if other.owner == job.owner
            )
    assert not admitted(waiting, running, InteractiveTerms(share=0), 1e9, lambda job: 1.0)


def test_owners_take_turns():
    many = [a_job(n, owner="ann", waits=True) for n in range(4)] + [a_job(9, owner="bob", waits=True, created_at=50)]
    assert admitted(many, {}, InteractiveTerms(), 15.0, lambda job: 10.0) == {"job0", "job9"}


# -- who makes room -----------------------------------------------------------------------------------------------


def test_the_one_that_ends_its_step_first_makes_room():
    running = [runs(a_job(n), f"gpu{n}", since_step_s=0.1 + 0.2 * n) for n in range(3)]
    assert preempted(farm([a_job(9, waits=True)], running)) == [("gpu2", "job9")]


def test_a_loaded_family_goes_before_everything():
    warm = runs(a_job(1), "gpu1", step_s=9.0, since_step_s=0.0, preempted=MOST_PREEMPTIONS - 1)
    cold = runs(a_job(2, family=ELSEWHERE), "gpu2", since_step_s=0.9)
    assert preempted(farm([a_job(9, waits=True)], [cold, warm])) == [("gpu1", "job9")]
    assert preempted(farm([a_job(9, waits=True, family=ELSEWHERE)], [cold, warm])) == [("gpu2", "job9")]


def test_whoever_made_room_is_spared_while_others_have_not():
    again = runs(a_job(1), "gpu1", since_step_s=0.9, preempted=1)
    assert preempted(farm([a_job(9, waits=True)], [again, runs(a_job(2), "gpu2")])) == [("gpu2", "job9")]
    assert preempted(farm([a_job(9, waits=True)], [again])) == [("gpu1", "job9")]
    tired = replace(again, preempted=MOST_PREEMPTIONS)
    assert preempted(farm([a_job(9, waits=True)], [tired])) == []


@pytest.mark.parametrize(
    "what",
    [
        {"movable": False},
        {"step": 50 - LAST_STEPS},
        {"step": 50},
        {"job": a_job(1, waits=True)},
        {"leaving": True},
        {"step": 40, "step_s": 0.1},
    ],
)
def test_some_never_make_room(what):
    snapshot = farm([a_job(9, waits=True)], [replace(runs(a_job(1), "gpu1"), **what)])
    assert preempted(snapshot) == []


def test_a_clip_whose_equal_is_waited_for_makes_no_room():
    somebody_waits_for_it = a_job(1, content_key="same")
    equal, other = a_job(3, waits=True, content_key="same"), a_job(4, waits=True)
    on_cards = [runs(somebody_waits_for_it, "gpu0"), runs(a_job(2), "gpu1", preempted=1)]
    assert preempted(farm([other], on_cards)) == [("gpu0", "job4")], "else it is the one to go"
    assert preempted(farm([equal, other], on_cards)) == [("gpu1", "job4")]
    assert preempted(farm([equal, other], on_cards[:1])) == [], "not even where no other can"
    # Of another owner it is another clip, and one that is not admitted waits as any other.
    bobs = replace(equal, owner="bob")
    assert preempted(farm([bobs, other], on_cards)) == [("gpu0", "job3"), ("gpu1", "job4")]
    assert preempted(farm([equal, other], on_cards, first=frozenset({"job4"}))) == [("gpu0", "job4")]


def test_a_card_that_becomes_free_anyway_is_waited_for_by_one_job_only():
    running = [runs(a_job(1), "gpu1", leaving=True), runs(a_job(2), "gpu2")]
    assert preempted(farm([a_job(8, waits=True), a_job(9, waits=True)], running)) == [("gpu2", "job9")]


def test_room_that_is_promised_is_waited_for_also_when_its_clip_has_left():
    both = [a_job(8, waits=True), a_job(9, waits=True)]
    snapshot = farm(both, [runs(a_job(2), "gpu2")], promised=frozenset({"job8"}))
    assert preempted(snapshot) == [("gpu2", "job9")]
    running = [runs(a_job(1), "gpu1", leaving=True), runs(a_job(2), "gpu2")]
    assert preempted(farm(both, running, promised=frozenset({"job9"}))) == [("gpu2", "job8")], "the first in turn"


@pytest.mark.parametrize("changes", [{"locked": frozenset({"gpu1"})}, {"unavailable": frozenset({"gpu1"})}])
def test_nobody_leaves_a_card_that_nobody_gets(changes):
    assert preempted(farm([a_job(9, waits=True)], [runs(a_job(1), "gpu1")], **changes)) == []
    large = a_job(9, waits=True, needs_bytes=9)
    assert preempted(farm([large], [runs(a_job(1), "gpu1")])) == [], "it does not fit there"


def test_an_owner_at_the_limit_has_room_where_a_clip_of_theirs_goes():
    running = [runs(a_job(1, owner="bob"), "gpu1"), runs(a_job(2), "gpu2", step_s=5.0)]
    owners = {"ann": OwnerShare(max_running=1)}
    assert preempted(farm([a_job(9, waits=True)], running, owners=owners)) == [("gpu2", "job9")]


def test_who_is_not_admitted_waits_as_any_other():
    running = [runs(a_job(1), "gpu1")]
    late = a_job(9, waits=True, created_at=100)
    assert preempted(farm([late], running, first=frozenset())) == []
    snapshot = farm([late, a_job(2, created_at=50)], running, idle=["gpu2"], first=frozenset())
    assert [one.job.id for one in place(snapshot) if isinstance(one, Start)] == ["job2"]
    assert [one.job.id for one in place(replace(snapshot, admitted=frozenset({"job9"}))) if isinstance(one, Start)] == [
        "job9"
    ]


def test_without_times_it_is_told_by_families_alone():
    running = [runs(a_job(1, family=ELSEWHERE), "gpu1"), runs(a_job(2), "gpu2")]
    assert preempted(farm([a_job(9, waits=True)], running, pace=None)) == [("gpu2", "job9")]


# -- beside a plan ------------------------------------------------------------------------------------------------


def part(job: Job, on: str) -> PlannedPart:
    return PlannedPart(job=job.id, card=on, first=0, last=50)


def test_a_card_that_a_plan_keeps_is_for_whoever_is_waited_for():
    planned, waits = a_job(1), a_job(9, waits=True)
    plan = TailPlan(parts=(part(a_job(5), "gpu0"), part(planned, "gpu0")))
    running = [runs(a_job(5), "gpu5")]
    snapshot = farm([planned, waits], running, idle=["gpu0"], plan=plan)
    assert [(one.job.id, one.card.card) for one in place(snapshot) if isinstance(one, Start)] == [("job9", "gpu0")]


def test_a_job_of_the_plan_that_is_admitted_now_starts_once():
    waits = a_job(9, waits=True)
    plan = TailPlan(parts=(part(waits, "gpu1"),))
    snapshot = farm([waits], [], idle=["gpu0", "gpu1"], plan=plan)
    assert [one.job.id for one in place(snapshot) if isinstance(one, Start)] == ["job9"]


def test_no_plan_is_made_for_admitted_jobs_and_none_moves_interactive_ones():
    fast = [card(f"gpu{n}", 8, idle=False, family=HERE) for n in range(2)]
    running = [runs(a_job(1), "gpu0"), runs(a_job(2, waits=True), "gpu1")]
    waiting = [a_job(3), a_job(4, waits=True)]
    snapshot = Snapshot.of(waiting=waiting, cards=fast, running=running, fleet=FLEET, admitted=frozenset({"job4"}))
    planner = Planner(Known(), variants=1)
    plan = planner.update(snapshot, 0.0)
    assert plan is not None
    assert plan.jobs == {"job1", "job3"}


# -- placement as a whole -----------------------------------------------------------------------------------------


@st.composite
def farms(draw):
    running = [
        runs(
            a_job(100 + n, owner=draw(st.sampled_from(["ann", "bob"])), waits=draw(st.integers(0, 3)) == 0,
                  family=draw(st.sampled_from([HERE, ELSEWHERE]))),
            f"gpu{n}",
            step=draw(st.integers(0, 50)),
            step_s=draw(st.sampled_from([None, 0.2, 1.0, 5.0])),
            since_step_s=draw(st.floats(0, 0.2)),
            movable=draw(st.integers(0, 4)) > 0,
            leaving=draw(st.integers(0, 4)) == 0,
            preempted=draw(st.integers(0, MOST_PREEMPTIONS)),
        )
        for n in range(draw(st.integers(0, 6)))
    ]  # fmt: skip
    waiting = [
        a_job(
            n, owner=draw(st.sampled_from(["ann", "bob"])), waits=draw(st.booleans()),
            created_at=draw(st.integers(0, 9)),
            needs_bytes=draw(st.sampled_from([1, 1, 1, 9])), family=draw(st.sampled_from([HERE, ELSEWHERE])),
        )
        for n in range(draw(st.integers(0, 6)))
    ]  # fmt: skip
    idle = [f"free{n}" for n in range(draw(st.integers(0, 2)))]
    first = frozenset(job.id for job in waiting if job.interactive and draw(st.integers(0, 4)) > 0)
    owners = {"ann": OwnerShare(max_running=draw(st.sampled_from([None, 1, 3])))}
    locked = frozenset(r.card for r in running if draw(st.integers(0, 5)) == 0)
    return farm(waiting, running, idle=idle, first=first, owners=owners, locked=locked)


@settings(max_examples=300, deadline=None)
@given(farms())
def test_room_is_made_for_those_who_find_none_and_for_nobody_else(snapshot):
    decisions = place(snapshot)
    starts = {one.job.id: one for one in decisions if isinstance(one, Start)}
    made = [one for one in decisions if isinstance(one, Preempt)]
    running = {r.job.id: r for r in snapshot.running}
    assert len({one.waits.id for one in made}) == len({one.job.id for one in made}) == len(made)
    for one in made:
        r = running[one.job.id]
        assert one.waits.id in snapshot.admitted
        assert one.waits.id not in starts
        assert r.movable
        assert not r.leaving
        assert not r.job.interactive
        assert r.preempted < MOST_PREEMPTIONS
        assert r.job.spec.total_steps - r.step > LAST_STEPS
        assert r.card == one.card
        assert one.card not in snapshot.locked
        assert one.waits.needs_bytes <= 8
        assert one.cost_s >= 2
    # A batch's job starts only where no admitted one could.
    late = [job for job in snapshot.waiting if job.id in snapshot.admitted and job.id not in starts]
    for job in late:
        most = snapshot.owners["ann"].max_running if job.owner == "ann" else None
        have = sum(r.job.owner == job.owner for r in snapshot.running) + sum(
            one.job.owner == job.owner for one in starts.values()
        )
        if job.needs_bytes <= 8 and (most is None or have < most):
            assert not any(one.job.id not in snapshot.admitted for one in starts.values())
    assert len([one for one in decisions if isinstance(one, Start | Wait)]) == len(snapshot.waiting)
