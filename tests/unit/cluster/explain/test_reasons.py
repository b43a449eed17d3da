"""Why a job waits: every change that is told is made here, by these tests themselves, and placement starts the job."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.estimates.times import TimeEstimates
from cluster.explain.reasons import Known, RemedyKind, explain
from cluster.fleet.breakers import route_of
from cluster.fleet.cards import Card, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.commands import CardOrder, CardVerb
from cluster.jobs.model import (
    INTERACTIVE_PRIORITY,
    Attempt,
    Batch,
    BatchCounts,
    HoldReason,
    Job,
    JobState,
    Limits,
    Outcome,
)
from cluster.jobs.outcomes import MADE_ROOM
from cluster.scheduling.interactive import InteractiveTerms
from cluster.scheduling.placement import place
from cluster.scheduling.priority import AGEING_S
from cluster.scheduling.snapshot import Running, Snapshot, Start, Wait, WaitReason
from cluster.scheduling.tail.plan import PlannedPart, TailPlan
from pipeline.families import family_named
from pipeline.memory.footprint import footprint
from pipeline.problems import Problem
from pipeline.units import GIB
from tests.building import spec

NOW = 1_000_000.0
FLEET = Fleet(usable_bytes={"c4": 4 * GIB, "c8": 8 * GIB, "c24": 24 * GIB})
SIZE = {4 * GIB: "c4", 8 * GIB: "c8", 24 * GIB: "c24"}
CLIP = spec("i2vgen-xl", width=512, height=512, frames=16, steps=50, guidance=9.0)
FULL = footprint(CLIP).peak_bytes


def job(number: int, **changes) -> Job:
    values = {
        "id": f"video_{number}",
        "owner": "ann",
        "batch_id": "batch_1",
        "number": number,
        "name": f"row{number}",
        "state": JobState.QUEUED,
        "row": {},
        "created_at": int(NOW),
        "spec": CLIP,
        "content_key": f"key{number}",
        "needs_bytes": FULL,
    }
    return Job(**(values | changes))


def card(name: str, gib: int = 24, *, idle: bool = True, family: str | None = None) -> Card:
    return Card(
        renderer=f"renderer-{name}",
        card=name,
        card_class=SIZE[gib * GIB],
        kind="NVIDIA L4",
        usable_bytes=gib * GIB,
        idle=idle,
        family=family,
    )


def busy(number: int, on: Card, **changes) -> Running:
    return Running(job=job(number, state=JobState.RUNNING, **changes), card=on.card, step=0)


@st.composite
def farms(draw):
    """A farm of a few cards and jobs of two owners, and one job of it that waits."""
    cards, running = [], []
    for n in range(draw(st.integers(0, 4))):
        found = card(f"gpu{n}", draw(st.sampled_from([4, 8, 24])), idle=draw(st.booleans()))
        cards.append(found)
        if not found.idle and draw(st.booleans()):
            # By its own content; some equal to what waits.
            running.append(busy(100 + n, found, owner=draw(st.sampled_from(["ann", "bob"]))))
    waiting = [
        job(
            n,
            owner=(owner := draw(st.sampled_from(["ann", "bob"]))),
            # A batch has one owner.
            batch_id=f"batch_{owner}_{draw(st.integers(1, 3))}",
            created_at=int(NOW) - draw(st.sampled_from([0, 5, AGEING_S, 5 * AGEING_S])),
            priority=draw(st.integers(-2, 2)),
            content_key=f"key{draw(st.integers(0, 20))}",
            needs_bytes=draw(st.sampled_from([GIB, FULL, FULL, 20 * GIB])),
        )
        for n in range(draw(st.integers(1, 6)))
    ]
    owners = {"ann": OwnerShare(max_running=draw(st.sampled_from([0, 1, 2])))} if draw(st.booleans()) else {}
    locked = frozenset(c.card for c in cards if draw(st.integers(0, 3)) == 0)
    blocked = frozenset(route_of(CLIP, c.card, c.usable_bytes) for c in cards if draw(st.integers(0, 5)) == 0)
    snapshot = Snapshot.of(
        waiting=waiting, cards=cards, fleet=FLEET, running=running, owners=owners, locked=locked, blocked=blocked
    )
    return snapshot, draw(st.sampled_from(waiting))


def starts(snapshot: Snapshot, wanted: str, on=None) -> bool:
    return any(
        isinstance(d, Start) and d.job.id == wanted and (on is None or d.card.card in on) for d in place(snapshot, NOW)
    )


def changed(snapshot: Snapshot, job_id: str, **changes) -> Snapshot:
    waiting = [replace(one, **changes) if one.id == job_id else one for one in snapshot.waiting]
    return replace(snapshot, waiting=waiting)


def applied(snapshot: Snapshot, waits: Job, change) -> Snapshot:
    """`snapshot` as it is once somebody has done what `change` says."""
    match change.kind:
        case RemedyKind.RELEASE:
            return snapshot.but(locked=snapshot.locked - {change.command.split()[-1]})
        case RemedyKind.LEANER:
            return changed(snapshot, waits.id, needs_bytes=change.needs_bytes)
        case RemedyKind.RAISE:
            return changed(snapshot, waits.id, priority=change.priority)
        case RemedyKind.LOWER:
            lower = [
                replace(one, priority=change.priority) if one.batch_id == change.batch else one
                for one in snapshot.waiting
            ]
            # `prioritize` sets all of a batch, also what was below; that is none of this job's business.
            kept = [
                new if new.priority < old.priority else old for new, old in zip(lower, snapshot.waiting, strict=True)
            ]
            return replace(snapshot, waiting=kept)
        case RemedyKind.LIMIT:
            owners = {**snapshot.owners, waits.owner: OwnerShare(max_running=change.number)}
            return replace(snapshot, owners=owners)
        case RemedyKind.ADD:
            usable = FLEET.usable_bytes[change.card_class]
            more = [card(f"new{n}", usable // GIB) for n in range(change.number)]
            return snapshot.but(cards=[*snapshot.cards, *more])
        case RemedyKind.FEWER:
            fewer = CLIP.model_copy(update={"frames": change.frames})
            return changed(snapshot, waits.id, spec=fewer, needs_bytes=change.needs_bytes, content_key="other")
        case RemedyKind.SMALLER:
            return changed(snapshot, waits.id, needs_bytes=change.needs_bytes, content_key="other")
        case _:
            raise AssertionError(change.kind)


@settings(max_examples=60, deadline=None)
@given(farms())
def test_every_change_that_is_told_starts_the_job(farm):
    snapshot, waits = farm
    answer = explain(waits, snapshot, NOW, TimeEstimates())
    decision = next(d for d in place(snapshot, NOW) if d.job.id == waits.id)
    if isinstance(decision, Start):
        assert (answer.reason, answer.changes) == ("starts_now", ())
        assert decision.card.card in answer.text
    elif isinstance(decision, Wait):
        assert answer.reason == decision.reason.name.lower()
    order = list(RemedyKind)
    kinds = [change.kind for change in answer.changes]
    assert kinds == sorted(set(kinds), key=order.index), "one of each kind, the cheapest first"
    for change in answer.changes:
        if change.starts and change.at is None:
            assert starts(applied(snapshot, waits, change), waits.id), change
        elif change.at is not None:
            assert change.at >= NOW


@settings(max_examples=40, deadline=None)
@given(farms())
def test_nothing_cheaper_than_the_first_change_would_have_started_it(farm):
    """All releases, raises and lowerings are tried: none that is not told works."""
    snapshot, waits = farm
    answer = explain(waits, snapshot, NOW, TimeEstimates())
    # Whoever gets the clip of an equal job need not start.
    assume(answer.reason not in ("starts_now", "leaner_soon", "no_card_fits", "equal_clip_running"))
    by_kind = {change.kind: change for change in answer.changes if change.at is None and change.starts}
    releases = [name for name in snapshot.locked if starts(snapshot.but(locked=snapshot.locked - {name}), waits.id)]
    assert bool(releases) == (RemedyKind.RELEASE in by_kind)
    priorities = range(waits.priority + 1, 12)
    raises = [p for p in priorities if starts(changed(snapshot, waits.id, priority=p), waits.id)]
    assert (raises[0] if raises else None) == (
        by_kind[RemedyKind.RAISE].priority if RemedyKind.RAISE in by_kind else None
    )
    sizes = {footprint(CLIP, layout).peak_bytes for layout in family_named("i2vgen-xl").layouts}
    small = {c.card for c in snapshot.cards if c.usable_bytes < waits.needs_bytes}
    leaner = [
        n
        for n in sizes
        if n < waits.needs_bytes and starts(changed(snapshot, waits.id, needs_bytes=n), waits.id, on=small)
    ]
    # What was raised after an attempt failed is not lowered again.
    leaner = leaner if waits.needs_bytes == FULL else []
    assert bool(leaner) == (RemedyKind.LEANER in by_kind)
    if leaner:
        assert by_kind[RemedyKind.LEANER].needs_bytes in leaner
    others = {one.batch_id for one in snapshot.waiting if one.owner == waits.owner} - {waits.batch_id}
    lowered = [
        batch
        for batch in others
        if starts(
            replace(
                snapshot,
                waiting=[
                    replace(one, priority=-1000) if one.batch_id == batch and one.owner == waits.owner else one
                    for one in snapshot.waiting
                ],
            ),
            waits.id,
        )
    ]
    assert bool(lowered) == (RemedyKind.LOWER in by_kind)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([4, 8, 24]), st.integers(0, 49), st.booleans()), min_size=1, max_size=5))
def test_a_job_that_waits_alone_starts_when_it_is_said_to(farm):
    """Its start is the first end of a clip on a card that it fits, reckoned here without looking ahead."""
    cards = [card(f"gpu{n}", gib, idle=False) for n, (gib, _, _) in enumerate(farm)]
    running = [
        replace(busy(100 + n, on), step=step) for n, (on, (_, step, _)) in enumerate(zip(cards, farm, strict=True))
    ]
    locked = frozenset(on.card for on, (_, _, out) in zip(cards, farm, strict=True) if out)
    answer = explained(job(1), cards=cards, running=running, locked=locked)
    ends = {
        r.card: NOW + TimeEstimates().clip_seconds(CLIP, "NVIDIA L4", usable_bytes=on.usable_bytes, from_step=r.step)
        for r, on in zip(running, cards, strict=True)
        if on.card not in locked and on.usable_bytes >= FULL
    }
    found = [change for change in answer.changes if change.kind is RemedyKind.WAIT]
    if not ends:
        assert not found
        return
    assert answer.reason == "all_fitting_cards_busy"
    assert found[0].at == pytest.approx(min(ends.values()))
    assert ends[found[0].card] == min(ends.values())


# -- each reason in words ---------------------------------------------------------------------------------------


def explained(waits: Job, *others: Job, known: Known | None = None, **facts):
    snapshot = Snapshot.of(**({"waiting": [*others, waits], "fleet": FLEET} | facts))
    return explain(waits, snapshot, NOW, TimeEstimates(), known)


def hour(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))


def test_no_card_of_this_size_names_both_sizes_and_the_class():
    answer = explained(job(1, needs_bytes=20 * GIB), cards=[card("a", 8)])
    assert answer.reason == "no_card_of_this_size"
    assert "20.0 GiB" in answer.text
    assert "(a) has 8.0 GiB" in answer.text
    assert "c24" in answer.text
    kinds = [change.kind for change in answer.changes]
    assert RemedyKind.LEANER not in kinds, "a need that was raised after a failure is no prediction"
    assert kinds[0] is RemedyKind.ADD
    assert explained(job(1), cards=[card("a", 4)]).changes[0].kind is RemedyKind.LEANER
    assert next(c for c in answer.changes if c.kind is RemedyKind.ADD).text == "one c24 card"


def test_without_any_card_it_says_how_to_start_a_farm():
    answer = explained(job(1))
    assert answer.reason == "no_card_of_this_size"
    assert "clipmill up" in answer.text
    assert answer.changes == ()


def test_a_leaner_layout_is_told_in_words_with_its_slow_down():
    working = card("large", 24, idle=False)
    answer = explained(job(1), cards=[card("small", 4), working], running=[busy(9, working)])
    assert answer.reason == "all_fitting_cards_busy"
    assert f"{FULL / GIB:.1f} GiB" in answer.text
    assert "large is busy" in answer.text
    assert "4.0 GiB" in answer.text
    first = answer.changes[0]
    assert (first.kind, first.card, first.card_class) == (RemedyKind.LEANER, "small", "c4")
    assert "chunked feed-forward" in first.text
    # The fastest of those that fit, not the leanest.
    fits = [layout for layout in family_named("i2vgen-xl").layouts if footprint(CLIP, layout).peak_bytes <= 4 * GIB]
    assert first.layout == str(fits[0])
    assert 1.0 <= first.slowdown < 2.0


def test_a_leaner_layout_can_begin_when_a_smaller_card_is_free():
    large, small = card("large", 24, idle=False), card("small", 4, idle=False)
    soon = Running(job=job(8, state=JobState.RUNNING), card="small", step=49)
    answer = explained(job(1), cards=[large, small], running=[busy(9, large), soon])
    first, wait = answer.changes[0], next(c for c in answer.changes if c.kind is RemedyKind.WAIT)
    assert (first.kind, first.card) == (RemedyKind.LEANER, "small")
    assert NOW < first.at < wait.at
    assert f"from about {hour(first.at)}" in first.text
    assert wait.card == "large"


def test_cards_out_of_use_are_named_with_who_and_why():
    order = CardOrder(card="a", kind=CardVerb.LOCK, reason="fan", given_by="eve", since=1, until=int(NOW) + 600)
    answer = explained(job(1), cards=[card("a")], locked=frozenset({"a"}), known=Known(orders={"a": order}))
    assert answer.reason == "fitting_cards_locked"
    assert "a locked by eve until" in answer.text
    assert "(fan)" in answer.text
    assert (answer.changes[0].command, answer.changes[0].at) == ("clipmill cards release a", None)
    wait = next(c for c in answer.changes if c.kind is RemedyKind.WAIT)
    assert wait.at == NOW + 600


def test_a_locked_card_that_works_still_is_released_for_later():
    working = card("a", idle=False)
    answer = explained(job(1), cards=[working], locked=frozenset({"a"}), running=[busy(9, working)])
    assert answer.reason == "fitting_cards_locked"
    release = answer.changes[0]
    assert (release.kind, release.starts) == (RemedyKind.RELEASE, True)
    assert release.at > NOW
    assert RemedyKind.WAIT not in [c.kind for c in answer.changes], "nothing unlocks it by itself"


def test_breakers_say_until_when():
    route = route_of(CLIP, "a", 24 * GIB)
    known = Known(blocked_until={route: NOW + 900})
    answer = explained(job(1), cards=[card("a")], blocked=frozenset({route}), known=known)
    assert answer.reason == "fitting_cards_failed"
    assert hour(NOW + 900) in answer.text
    assert next(c for c in answer.changes if c.kind is RemedyKind.WAIT).at == NOW + 900


def test_its_own_time_is_waited_for():
    answer = explained(job(1, not_before=int(NOW) + 3600), cards=[card("a")])
    assert (answer.reason, [c.kind for c in answer.changes]) == ("not_before", [RemedyKind.WAIT])
    assert (answer.changes[0].at, answer.changes[0].card) == (NOW + 3600, "a")
    assert hour(NOW + 3600) in answer.text


def test_an_owner_s_limit_is_told_with_numbers():
    working = card("a", idle=False)
    answer = explained(
        job(1), cards=[working, card("b")], running=[busy(9, working)], owners={"ann": OwnerShare(max_running=1)}
    )
    assert answer.reason == "owner_at_limit"
    assert "ann has 1 clip on cards and may have 1" in answer.text
    assert [c.kind for c in answer.changes] == [RemedyKind.WAIT, RemedyKind.LIMIT]
    assert answer.changes[1].number == 2


def test_an_equal_clip_is_waited_for():
    working = card("a", idle=False)
    answer = explained(job(1, content_key="key9"), cards=[working, card("b")], running=[busy(9, working)])
    assert answer.reason == "equal_clip_running"
    assert "video_9" in answer.text
    (wait,) = answer.changes
    assert (wait.kind, wait.starts) == (RemedyKind.WAIT, False)
    ends_s = TimeEstimates().clip_seconds(CLIP, "NVIDIA L4", usable_bytes=24 * GIB)
    assert wait.at == pytest.approx(NOW + ends_s)


def test_a_plan_says_where_and_when():
    parts = (
        PlannedPart(job="video_2", card="a", first=0, last=50, begins_at=NOW, ends_at=NOW + 300),
        PlannedPart(job="video_1", card="a", first=0, last=50, begins_at=NOW + 300, ends_at=NOW + 600),
    )
    answer = explained(job(1), job(2), cards=[card("a"), card("b")], plan=TailPlan(parts=parts))
    assert answer.reason == "planned_later"
    (wait,) = answer.changes
    assert (wait.kind, wait.card, wait.at) == (RemedyKind.WAIT, "a", NOW + 300)


def test_behind_others_counts_them_and_says_what_overtakes_them():
    urgent = job(2, priority=5, batch_id="batch_2")
    answer = explained(job(1), urgent, cards=[card("a")])
    assert answer.reason == "behind_others"
    assert "a is idle and holds it" in answer.text
    assert "1 job goes before it, 1 of a higher priority" in answer.text
    by_kind = {c.kind: c for c in answer.changes}
    # The row before it in its own batch; it came at the same time.
    assert by_kind[RemedyKind.RAISE].priority in (5, 6)
    assert by_kind[RemedyKind.RAISE].command.startswith("clipmill prioritize video_1 ")
    assert by_kind[RemedyKind.LOWER].batch == "batch_2"
    assert by_kind[RemedyKind.ADD].text.startswith("one ")
    known = Known(ahead=10_001, ahead_most=10_001)
    assert "more than 10000 jobs go before it" in explained(job(1), urgent, cards=[card("a")], known=known).text


def test_what_another_owner_handed_in_is_not_proposed_to_be_lowered():
    answer = explained(job(1), job(2, priority=5, batch_id="batch_2", owner="bob"), cards=[card("a")])
    assert RemedyKind.LOWER not in [c.kind for c in answer.changes]


def test_a_batch_is_lowered_only_where_all_that_would_come_up_is_seen():
    others = [job(n, priority=5, batch_id="batch_2") for n in range(2, 5)]
    assert RemedyKind.LOWER in [c.kind for c in explained(job(1), *others, cards=[card("a")]).changes]
    cut = explained(job(1), *others, cards=[card("a")], known=Known(per_queue=3))
    assert RemedyKind.LOWER not in [c.kind for c in cut.changes]


def test_negative_priorities_are_written_as_the_command_line_takes_them():
    answer = explained(job(1, priority=-9), job(2, priority=-5), cards=[card("a")])
    raised = next(c for c in answer.changes if c.kind is RemedyKind.RAISE)
    assert raised.command in ("clipmill prioritize video_1 -- -5", "clipmill prioritize video_1 -- -4")


def test_fewer_frames_and_a_smaller_class_fit_what_is_idle():
    def sized(side: int, frames: int = 32):
        changes = {"width": side, "height": side, "frames": frames, "resolution_class": f"{side}p"}
        return type(CLIP).model_validate(CLIP.model_dump(mode="json") | changes)

    def fits(clip) -> bool:
        # Resident: that fits a card which the farm can have, so clips are not laid out leaner by themselves.
        return footprint(clip).peak_bytes <= 8 * GIB

    waits = job(1, spec=sized(1024), needs_bytes=footprint(sized(1024)).peak_bytes)
    fleet = Fleet(usable_bytes={"c8": 8 * GIB, "c80": 80 * GIB})
    by_kind = {c.kind: c for c in explained(waits, cards=[card("a", 8)], fleet=fleet).changes}
    assert by_kind[RemedyKind.ADD].card_class == "c80"
    largest = max(side for side in (256, 512, 768) if fits(sized(side)))
    assert by_kind[RemedyKind.SMALLER].resolution_class == f"{largest}p"
    assert by_kind[RemedyKind.FEWER].frames == max(n for n in range(2, 32) if fits(sized(1024, n)))
    waits = job(1, spec=sized(512, 64), needs_bytes=footprint(sized(512, 64)).peak_bytes)
    by_kind = {c.kind: c for c in explained(waits, cards=[card("a", 8)], fleet=fleet).changes}
    assert by_kind[RemedyKind.FEWER].frames == max(n for n in range(2, 64) if fits(sized(512, n)))


def test_a_job_that_no_class_holds_is_told_what_comes():
    lean = explained(job(1), cards=[card("a", 4)], fleet=Fleet(usable_bytes={"c4": 4 * GIB}))
    assert lean.reason == "leaner_soon"
    none = explained(job(1), cards=[], fleet=Fleet(usable_bytes={"c4": GIB // 4}))
    assert none.reason == "no_card_fits"
    assert "fewer frames" in none.text


def test_the_wait_behind_unseen_jobs_is_an_estimate():
    others = [job(n) for n in range(2, 4)]
    working = card("a", idle=False)
    known = Known(ahead=100, hidden=True, per_queue=2)
    answer = explained(job(1), *others, cards=[working], running=[busy(9, working)], known=known)
    wait = next(c for c in answer.changes if c.kind is RemedyKind.WAIT)
    each_s = TimeEstimates().clip_seconds(CLIP, "NVIDIA L4", usable_bytes=24 * GIB)
    assert 100 * each_s <= wait.at - NOW <= 130 * (each_s + 60)
    assert "100 jobs before it" in wait.text


def test_nothing_is_promised_beyond_the_last_job_that_is_seen_of_a_longer_queue():
    """A queue of ten, of which two are seen: they start one after the other, and then others would."""
    others = [job(n, batch_id="batch_2", needs_bytes=GIB) for n in range(2, 4)]
    facts = {"cards": [card("a", idle=False)], "running": [busy(9, card("a"))]}
    late = job(1, created_at=int(NOW) + 1)
    assert RemedyKind.WAIT in [c.kind for c in explained(late, *others, **facts).changes]
    answer = explained(late, *others, **facts, known=Known(per_queue=2))
    assert RemedyKind.WAIT not in [c.kind for c in answer.changes]
    assert RemedyKind.ADD not in [c.kind for c in answer.changes]


# -- other states -----------------------------------------------------------------------------------------------


def batch(**changes) -> Batch:
    values = {
        "id": "batch_1",
        "owner": "ann",
        "name": "catalog",
        "created_at": 1,
        "sealed": True,
        "source": "c.csv",
        "attended_until": None,
        "counts": BatchCounts(by_state={JobState.HELD: 1}),
        "attempts": 0,
    }
    return Batch(**(values | changes))


def held(reason: HoldReason, **changes) -> Job:
    return job(1, state=JobState.HELD, reason=reason.value, **changes)


@pytest.mark.parametrize(
    ("reason", "of_batch", "kind", "command"),
    [
        (HoldReason.APPROVAL, {}, RemedyKind.APPROVE, "clipmill approve video_1"),
        (HoldReason.PAUSED, {}, RemedyKind.RESUME, "clipmill resume video_1"),
        (HoldReason.PAUSED, {"held": HoldReason.PAUSED}, RemedyKind.RESUME, "clipmill resume batch_1"),
        (
            HoldReason.FAILURES,
            {"held": HoldReason.FAILURES, "limits": Limits(failures=3)},
            RemedyKind.RESUME,
            "clipmill resume batch_1 --max-failures 13",
        ),
        (
            HoldReason.BUDGET,
            {"held": HoldReason.BUDGET, "limits": Limits(gpu_seconds=7200)},
            RemedyKind.RESUME,
            "clipmill resume batch_1 --max-gpu-hours 4",
        ),
        (
            HoldReason.BUDGET,
            {"held": HoldReason.BUDGET, "limits": Limits(cost=5.0)},
            RemedyKind.RESUME,
            "clipmill resume batch_1 --max-cost 10.00",
        ),
    ],
)
def test_what_is_held_says_who_lets_it_go_and_whether_that_is_enough(reason, of_batch, kind, command):
    known = Known(batch=batch(**of_batch))
    answer = explained(held(reason), cards=[card("a")], known=known)
    assert (answer.state, answer.reason) == (JobState.HELD, reason.value)
    assert [(c.kind, c.command, c.starts) for c in answer.changes] == [(kind, command, True)]
    # With no card free that is not enough: what has to follow is told too.
    working = card("a", idle=False)
    answer = explained(held(reason), cards=[working], running=[busy(9, working)], known=known)
    assert (answer.changes[0].kind, answer.changes[0].starts) == (kind, False)
    assert "After that:" in answer.text
    assert any(c.kind is RemedyKind.WAIT and c.starts for c in answer.changes)


def test_a_row_that_waits_for_another_says_what_that_one_needs():
    first = job(2, state=JobState.HELD, reason="approval")
    answer = explained(held(HoldReason.AFTER, after="video_2"), cards=[card("a")], known=Known(after=first))
    assert "row2 (video_2)" in answer.text
    assert answer.changes[0].command == "clipmill approve video_2"
    assert not answer.changes[0].starts
    running = explained(held(HoldReason.AFTER, after="video_2"), known=Known(after=job(2, state=JobState.RUNNING)))
    assert "clipmill why video_2" in running.text
    unsealed = explained(held(HoldReason.AFTER, after="row2"))
    assert "row2, which is not known yet" in unsealed.text


def test_an_abandoned_batch_says_which_command_to_run_again():
    answer = explained(job(1), cards=[card("a")], known=Known(batch=batch(attended_until=1, abandoned=True)))
    assert answer.reason == "abandoned"
    assert "clipmill render c.csv" in answer.text


def test_a_running_job_says_where_and_until_when():
    working = card("a", idle=False)
    one = Running(job=job(1, state=JobState.RUNNING, steps=50), card="a", step=25, step_s=10.0)
    answer = explain(
        one.job, Snapshot.of(waiting=[], cards=[working], fleet=FLEET, running=[one]), NOW, TimeEstimates()
    )
    decode_s = TimeEstimates().cost_within(CLIP, "NVIDIA L4", 24 * GIB).decode_s
    assert "on a (c24, NVIDIA L4), step 25 of 50" in answer.text
    assert hour(NOW + 250 + decode_s) in answer.text
    assert answer.changes == ()


def test_what_has_ended_says_what_to_do():
    problem = Problem(field="image", message="it is no picture", remedy="Give a PNG.")
    invalid = explained(job(1, state=JobState.FAILED, reason="invalid", spec=None, problems=(problem,)))
    assert "it is no picture" in invalid.text
    assert "Give a PNG" in invalid.text
    assert "hand it in again" in invalid.text
    assert invalid.changes == ()
    crashed = explained(job(1, state=JobState.FAILED, reason="crashed", attempts=3))
    assert "3 attempts" in crashed.text
    assert crashed.changes[0].command == "clipmill retry video_1"
    after = explained(job(1, state=JobState.FAILED, reason="after_failed"))
    assert "retry that one" in after.text
    cancelled = explained(job(1, state=JobState.CANCELLED))
    assert cancelled.changes[0].command == "clipmill retry video_1"
    assert explained(job(1, state=JobState.COMPLETED)).reason == "completed"


def test_every_reason_has_words():
    """A new reason without words would be an error here, not at whoever asks."""
    from cluster.explain.trial import Trial
    from cluster.explain.wait_words import WaitWords

    snapshot = Snapshot.of(waiting=[job(1)], cards=[card("a", idle=False)], fleet=FLEET)
    for reason in WaitReason:
        words = WaitWords(Trial(job(1), snapshot, NOW, TimeEstimates(), Known())).of(reason)
        assert words.endswith(".")


# -- interactive jobs -------------------------------------------------------------------------------------------------


def waits_for_room(*, first: bool, **changes):
    """One that somebody waits for, beside a clip of a batch on the only card."""
    own = job(9, priority=INTERACTIVE_PRIORITY)
    runs = replace(busy(1, card("a", idle=False)), movable=True, step=10, step_s=1.0, **changes)
    admitted = frozenset({own.id}) if first else frozenset()
    return own, Snapshot.of(
        waiting=[own], cards=[card("a", idle=False)], running=[runs], fleet=FLEET, admitted=admitted
    )


def test_who_makes_room_is_named():
    own, snapshot = waits_for_room(first=True)
    found = explain(own, snapshot, NOW)
    assert found.reason == "making_room"
    assert "row1 (video_1) on a saves a checkpoint" in found.text
    # Whether they had more is not known here.
    assert "while such clips have less than 20% of an hour" in found.text


def test_an_interactive_job_is_told_whether_it_goes_first():
    own, snapshot = waits_for_room(first=True, leaving=True)
    assert "less than 20% of an hour" in explain(own, snapshot, NOW).text
    own, snapshot = waits_for_room(first=False)
    found = explain(own, snapshot, NOW)
    assert found.reason == "all_fitting_cards_busy"
    assert "of each owner 4 such clips go before batches" in found.text
    none = Known(interactive=InteractiveTerms(share=0))
    assert "lets no clip go before others" in explain(own, snapshot, NOW, known=none).text
    assert "nteractive" not in explain(job(9), snapshot, NOW).text


def test_a_clip_that_made_room_says_so():
    stopped = Attempt(
        id="attempt_1", job_id="video_9", owner="ann", fence=1, renderer="r", card="a", card_class="c24",
        outcome=Outcome.STOPPED, detail=f"{MADE_ROOM} (told to stop)",
    )  # fmt: skip
    _, snapshot = waits_for_room(first=False)
    text = explain(job(9, step=21), snapshot, NOW, known=Known(attempt=stopped)).text
    assert text.endswith("It made room for an interactive clip, and goes on after step 21.")
