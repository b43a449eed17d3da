"""Placement as properties of any snapshot, and examples of each rule."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.estimates.memory import MemoryEstimates, MemoryKey, MemoryMeasurements, key_of
from cluster.fleet.breakers import route_of
from cluster.fleet.cards import Card, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import Job, JobState
from cluster.scheduling.placement import WARM_WINDOW_S, place
from cluster.scheduling.priority import AGEING_S, effective_priority
from cluster.scheduling.snapshot import (
    Move,
    Refuse,
    Relax,
    Running,
    ShowMore,
    Snapshot,
    Start,
    Suit,
    Wait,
    WaitReason,
    work_kind,
)
from cluster.scheduling.tail.plan import PlannedPart, TailPlan
from tests.building import card, spec

FLEET = Fleet(usable_bytes={"c8": 8, "c16": 16, "c24": 24})
CLASSES = (("c8", 8), ("c16", 16), ("c24", 24))
CAMERA, I2V = "camera", "i2vgen-xl"


def job(number: int, **changes) -> Job:
    values = {
        "id": f"video_{number}", "owner": "local", "batch_id": "batch_1", "number": number, "name": str(number),
        "state": JobState.QUEUED, "row": {}, "created_at": 0, "spec": spec(), "content_key": f"key{number}",
        "needs_bytes": 1,
    }  # fmt: skip
    return Job(**(values | changes))


def a_card(name: str, usable: int = 8, *, kind: str = "test", idle: bool = True, family: str | None = None) -> Card:
    of_class = next(name for name, most in CLASSES if usable <= most)
    return card(name, usable, idle=idle, family=family).model_copy(update={"card_class": of_class, "kind": kind})


def look(waiting, cards, **changes) -> Snapshot:
    return Snapshot.of(waiting=waiting, cards=cards, **({"fleet": FLEET} | changes))


def starts_of(snapshot: Snapshot, now: float = 0.0) -> dict[int, str]:
    """The card of each job that starts, by number."""
    return {d.job.number: d.card.card for d in place(snapshot, now) if isinstance(d, Start)}


def reason_of(snapshot: Snapshot, number: int, now: float = 0.0) -> WaitReason:
    (wait,) = [d for d in place(snapshot, now) if isinstance(d, Wait) and d.job.number == number]
    return wait.reason


NOW = 10_000


@st.composite
def snapshots(draw):
    waiting = [
        job(
            number,
            owner=draw(st.sampled_from(["ann", "bob"])),
            batch_id=draw(st.sampled_from(["batch_1", "batch_2"])),
            created_at=NOW - draw(st.sampled_from([0, 1, 50, 100, AGEING_S, 3 * AGEING_S])),
            priority=draw(st.integers(-1, 1)),
            content_key=f"key{draw(st.integers(0, 12))}",
            needs_bytes=draw(st.integers(0, 30)),
            spec=spec(draw(st.sampled_from([CAMERA, I2V]))),
            not_before=draw(st.sampled_from([None, None, None, NOW - 1, NOW + 1])),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    cards = [
        a_card(
            f"gpu{i}", draw(st.sampled_from([5, 8, 12, 16, 20, 24])), kind=draw(st.sampled_from(["a", "b"])),
            idle=draw(st.booleans()), family=draw(st.sampled_from([None, CAMERA, I2V])),
        )
        for i in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    busy = [c for c in cards if not c.idle]
    running = [
        Running(job=job(100 + n, owner=draw(st.sampled_from(["ann", "bob"])), content_key=f"key{n}"), card=c.card)
        for n, c in enumerate(busy)
    ]
    names = [c.card for c in cards]
    chosen = frozenset(name for name in names if draw(st.integers(0, 4)) == 0)
    blocked = frozenset(
        route_of(spec(draw(st.sampled_from([CAMERA, I2V]))), c.card, c.usable_bytes)
        for c in cards
        if draw(st.integers(0, 4)) == 0
    )
    owners = {"ann": OwnerShare(weight=draw(st.sampled_from([1, 3])), max_running=draw(st.sampled_from([None, 0, 2])))}
    kinds = {work_kind(j) for j in waiting}
    suits = {
        kind: Suit(card_kinds=frozenset(draw(st.sampled_from([["a"], ["b"], ["a", "b"]]))), seconds=1.0)
        for kind in sorted(kinds)
        if draw(st.integers(0, 3)) == 0
    }
    return look(
        draw(st.permutations(waiting)),
        cards,
        running=running,
        locked=chosen,
        blocked=blocked,
        owners=owners,
        suits=suits,
    )


def able(snapshot: Snapshot, j: Job, c: Card) -> bool:
    """Whether nothing about the card forbids the job."""
    route = route_of(j.spec, c.card, c.usable_bytes)
    return c.usable_bytes >= j.needs_bytes and c.card not in snapshot.locked and route not in snapshot.blocked


def sorted_out(snapshot):
    decisions = place(snapshot, NOW)
    assert sorted(d.job.id for d in decisions) == sorted(j.id for j in snapshot.waiting), "one decision for every job"
    starts = [d for d in decisions if isinstance(d, Start)]
    return starts, [d for d in decisions if isinstance(d, Wait)], [d for d in decisions if isinstance(d, Refuse)]


def count_after(snapshot, starts) -> Counter:
    return Counter(r.job.owner for r in snapshot.running) + Counter(s.job.owner for s in starts)


def could_start(snapshot, starts, j: Job) -> bool:
    """Whether only cards keep a waiting job from starting after all of `starts`."""
    keys = {(r.job.owner, r.job.content_key) for r in snapshot.running}
    keys |= {(s.job.owner, s.job.content_key) for s in starts}
    most = snapshot.owners.get(j.owner, OwnerShare()).max_running
    under = most is None or count_after(snapshot, starts)[j.owner] < most
    return under and (j.owner, j.content_key) not in keys and (j.not_before is None or j.not_before <= NOW)


@settings(deadline=None, max_examples=60)
@given(snapshots())
def test_who_starts_may_start_there(snapshot):
    starts, _, refused = sorted_out(snapshot)
    for start in starts:
        assert start.card.idle
        assert start.card in snapshot.cards
        assert able(snapshot, start.job, start.card)
        assert start.job.not_before is None or start.job.not_before <= NOW
    cards = [start.card.card for start in starts]
    keys = [(s.job.owner, s.job.content_key) for s in starts] + [
        (r.job.owner, r.job.content_key) for r in snapshot.running
    ]
    assert len(set(cards)) == len(cards)
    assert len(set(keys)) == len(keys), "a clip is rendered once at a time"
    already = Counter(r.job.owner for r in snapshot.running)
    for owner, count in count_after(snapshot, starts).items():
        most = snapshot.owners.get(owner, OwnerShare()).max_running
        assert most is None or count <= max(most, already[owner])
    assert {r.job.id for r in refused} == {j.id for j in snapshot.waiting if j.needs_bytes > 24}


@settings(deadline=None, max_examples=60)
@given(snapshots())
def test_no_card_idles_while_a_job_that_may_have_it_waits(snapshot):
    starts, waits, _ = sorted_out(snapshot)
    used = {start.card.card for start in starts}
    left = [c for c in snapshot.cards if c.idle and c.card not in used]
    for wait in waits:
        if could_start(snapshot, starts, wait.job):
            assert not [c for c in left if able(snapshot, wait.job, c)]


@settings(deadline=None, max_examples=60)
@given(snapshots())
def test_no_lower_priority_has_a_card_that_a_higher_one_waits_for(snapshot):
    starts, waits, _ = sorted_out(snapshot)
    for wait in waits:
        for start in starts:
            if effective_priority(start.job, NOW) >= effective_priority(wait.job, NOW):
                continue
            others = [s for s in starts if s is not start]
            # Without that start the one that waits could have had the card.
            higher = [s for s in others if effective_priority(s.job, NOW) >= effective_priority(wait.job, NOW)]
            if could_start(snapshot, higher, wait.job):
                assert not able(snapshot, wait.job, start.card)


@settings(deadline=None, max_examples=60)
@given(snapshots())
def test_a_small_clip_has_a_larger_card_only_where_no_larger_clip_of_its_priority_waits_for_it(snapshot):
    snapshot = replace(snapshot, suits={}, owners={}, blocked=frozenset())
    starts, waits, _ = sorted_out(snapshot)
    usable = [c for c in snapshot.cards if c.card not in snapshot.locked]

    def own(j: Job) -> int:
        """Nominal size of the smallest class with a card that it fits."""
        return min((int(c.card_class[1:]) for c in usable if c.usable_bytes >= j.needs_bytes), default=0)

    for wait in waits:
        if not could_start(snapshot, starts, wait.job):
            continue
        for start in starts:
            same = effective_priority(start.job, NOW) == effective_priority(wait.job, NOW)
            if same and able(snapshot, wait.job, start.card):
                assert own(start.job) >= own(wait.job) or start.card.card_class == f"c{own(start.job)}"


def few_long_queues(rng: random.Random) -> Snapshot:
    """As the store shows them: nothing of equal content to what runs, by priority, then age."""
    # One family: which cards are kept for a warm start depends on who waits besides.
    waiting = [
        job(
            number, owner=rng.choice(["ann", "bob"]), priority=rng.choice([0, 0, 1]),
            created_at=NOW - rng.choice([0, 60, AGEING_S]), needs_bytes=rng.choice([5, 5, 14, 20]),
            content_key=f"key{rng.randrange(40)}",
        )
        for number in range(rng.randrange(5, 40))
    ]  # fmt: skip
    cards = [
        a_card(f"gpu{i:02}", rng.choice([5, 8, 16, 24]), kind=rng.choice("ab"), idle=rng.random() < 0.8)
        for i in range(rng.randrange(3, 20))
    ]
    kinds = sorted({work_kind(j) for j in waiting})
    return look(
        sorted(waiting, key=lambda j: (-j.priority, j.created_at, j.batch_id, j.number)),
        cards,
        locked=frozenset(c.card for c in cards if rng.random() < 0.1),
        blocked=frozenset(route_of(spec(), c.card, c.usable_bytes) for c in cards if rng.random() < 0.1),
        owners={"ann": OwnerShare(weight=rng.choice([1, 3]), max_running=rng.choice([None, None, 4]))},
        suits={kind: Suit(card_kinds=frozenset(rng.choice("ab")), seconds=1.0) for kind in kinds if rng.random() < 0.2},
    )


@pytest.mark.parametrize("seed", range(60))
def test_look_by_look_with_few_of_each_queue_the_same_starts_as_with_all_at_once(seed):
    rng = random.Random(seed)
    snapshot, shown = few_long_queues(rng), rng.randrange(1, 4)
    at_once = starts_of(snapshot, NOW)
    found: dict[int, str] = {}
    while True:
        place_in_queue = Counter()
        seen = []
        for j in snapshot.waiting:
            place_in_queue[j.queue] += 1
            if place_in_queue[j.queue] <= shown:
                seen.append(j)
        decisions = place(replace(snapshot, waiting=seen, shown=shown), NOW, reasons=False)
        starts = {d.job.id: d for d in decisions if isinstance(d, Start)}
        found |= {d.job.number: d.card.card for d in starts.values()}
        if ShowMore() not in decisions:
            break
        assert starts, "or it would go on for ever"
        taken = {d.card.card for d in starts.values()}
        running = {(d.job.owner, d.job.content_key) for d in starts.values()}
        left = [j for j in snapshot.waiting if (j.owner, j.content_key) not in running]
        snapshot = replace(snapshot, waiting=left).but(
            cards=[c.model_copy(update={"idle": c.idle and c.card not in taken}) for c in snapshot.cards],
            running=[*snapshot.running, *(Running(job=d.job, card=d.card.card) for d in starts.values())],
        )
    assert found == at_once


def test_what_comes_behind_a_queue_that_ran_out_waits_for_the_next_look():
    urgent = [job(n, priority=1) for n in range(3)]
    later = job(9)
    cards = [a_card(name) for name in "xyz"]
    assert place(look([*urgent[:2], later], cards, shown=2), reasons=False) == [
        Start(urgent[0], cards[0]), Start(urgent[1], cards[1]), ShowMore(),
    ]  # fmt: skip
    assert set(starts_of(look([*urgent[:2], later], cards, shown=3))) == {0, 1, 9}, "two of three: there are no more"


@settings(deadline=None, max_examples=60)
@given(snapshots())
def test_without_reasons_everything_else_is_decided_alike(snapshot):
    everything = place(snapshot, NOW)
    assert place(snapshot, NOW, reasons=False) == [d for d in everything if not isinstance(d, Wait)]


@settings(deadline=None, max_examples=60)
@given(snapshots(), st.randoms())
def test_the_order_of_the_snapshot_changes_nothing(snapshot, shuffler):
    waiting, cards, running = list(snapshot.waiting), list(snapshot.cards), list(snapshot.running)
    for items in (waiting, cards, running):
        shuffler.shuffle(items)
    other = place(replace(snapshot, waiting=waiting).but(cards=cards, running=running), NOW)
    # Of those that wait the order is that of the snapshot.
    assert {d.job.id: d for d in place(snapshot, NOW)} == {d.job.id: d for d in other}


def test_priority_then_age_then_the_row():
    jobs = [job(1, created_at=5), job(2, created_at=1), job(0, created_at=1), job(9, created_at=9, priority=1)]
    order = []
    while jobs:
        (number,) = starts_of(look(jobs, [a_card("x")]))
        order.append(number)
        jobs = [j for j in jobs if j.number != number]
    assert order == [9, 0, 2, 1]


@pytest.mark.parametrize("seed", range(3))
def test_whoever_waits_gets_old_enough_to_start(seed):
    """A stream of urgent clips that fills the only card for ever, and one clip of lower priority."""
    rng = random.Random(seed)
    gap, lower = 5, rng.randrange(1, 4)
    patient, now = job(0, priority=-lower, created_at=0), 0.0
    while True:
        now += 60
        rush = [job(n + 1, created_at=int(now) - rng.randrange(300)) for n in range(gap)]
        if 0 in starts_of(look([*rush, patient], [a_card("x")]), now):
            break
        assert now < (lower + 1) * AGEING_S
    assert now >= lower * AGEING_S


def simulate(owners: dict[str, OwnerShare], cards: int, moments: int, seed: int, *, used: bool) -> dict[str, float]:
    """Shares of the card seconds of owners that all have enough to do; what a clip takes differs by owner."""
    rng = random.Random(seed)
    ends: list[tuple[float, Job]] = []
    had: dict[str, float] = dict.fromkeys(owners, 0.0)
    number, now = 0, 0.0
    for _ in range(moments):
        running = [Running(job=j, card=f"gpu{n}") for n, (_, j) in enumerate(ends)]
        idle = [a_card(f"idle{n}") for n in range(cards - len(ends))]
        waiting = []
        for owner in owners:
            for _ in range(2):
                number += 1
                waiting.append(job(number, owner=owner, created_at=0))
        found = place(look(waiting, idle, running=running, owners=owners, used_s=had if used else {}), 0.0)
        for d in found:
            if isinstance(d, Start):
                took = rng.expovariate(1 / (1 + 3 * (len(d.job.owner) % 3)))
                had[d.job.owner] += took
                ends.append((now + took, d.job))
        ends.sort(key=lambda end: end[0])
        now, _ = ends.pop(0)
    return {owner: seconds / sum(had.values()) for owner, seconds in had.items()}


@pytest.mark.parametrize("seed", range(3))
def test_owners_share_cards_by_weight_whatever_their_clips_take(seed):
    owners = {"al": OwnerShare(weight=1), "bob": OwnerShare(weight=2), "cleo": OwnerShare(weight=5)}
    shares = simulate(owners, cards=24, moments=1500, seed=seed, used=False)
    for owner, share in owners.items():
        # Cards are whole, so that an owner may be one of 24 off.
        assert shares[owner] == pytest.approx(share.weight / 8, abs=1 / 24 + 0.01)


def test_with_fewer_cards_than_owners_nobody_is_left_out():
    owners = {name: OwnerShare(weight=1) for name in ("al", "bob", "cleo")}
    shares = simulate(owners, cards=2, moments=900, seed=1, used=True)
    assert all(share == pytest.approx(1 / 3, abs=0.04) for share in shares.values())
    weights = {"al": OwnerShare(weight=1), "bob": OwnerShare(weight=3)}
    shares = simulate(weights, cards=1, moments=900, seed=1, used=True)
    assert shares["bob"] == pytest.approx(0.75, abs=0.03)


def test_equal_clips_of_two_owners_are_rendered_for_each():
    ann, bob = job(1, owner="ann", content_key="same"), job(2, owner="bob", content_key="same")
    assert starts_of(look([ann, bob], [a_card("a"), a_card("b")])).keys() == {1, 2}


def test_a_card_with_two_renderers_on_the_roster_is_one_card():
    old, new = a_card("gpu0"), a_card("gpu0").model_copy(update={"renderer": "renderer-new"})
    assert len(starts_of(look([job(1), job(2)], [old, new]))) == 1


def test_a_card_with_another_family_loaded_waits_for_that_family_a_minute():
    warm, cold = a_card("a", family=I2V), a_card("b")

    def taken(late_s: int, cards=(warm, cold)):
        first, second = job(1, created_at=0), job(2, created_at=late_s, spec=spec(I2V))
        return starts_of(look([first, second], cards))

    assert taken(WARM_WINDOW_S) == {1: "b", 2: "a"}
    assert taken(WARM_WINDOW_S, [warm]) == {2: "a"}
    assert taken(WARM_WINDOW_S + 1, [warm]) == {1: "a"}, "it need not wait for one that came later"
    assert taken(-1000) == {1: "b", 2: "a"}
    assert taken(10, [warm]) == {2: "a"}
    # Where the other one cannot have it, it is not kept.
    large = job(2, spec=spec(I2V), needs_bytes=20)
    assert starts_of(look([job(1), large], [warm, a_card("c", 24, idle=False)])) == {1: "a"}


def test_of_equal_cards_a_warm_one_is_taken():
    assert starts_of(look([job(1, spec=spec(I2V))], [a_card("a"), a_card("b", family=I2V)])) == {1: "b"}
    small = a_card("a", 5)
    assert starts_of(look([job(1, spec=spec(I2V))], [small, a_card("b", family=I2V)])) == {1: "a"}, "size comes first"


def test_a_large_clip_has_the_large_card_although_it_came_later():
    old_small, new_large = job(1), job(2, created_at=100, needs_bytes=12)
    busy = a_card("own", 16, idle=False)
    cards = [a_card("small", 8, idle=False), busy, a_card("large", 24)]
    assert starts_of(look([old_small, new_large], cards)) == {2: "large"}
    assert starts_of(look([old_small], cards)) == {1: "large"}
    assert starts_of(look([old_small, new_large], cards), AGEING_S + 50) == {1: "large"}, "until it is old"


def test_suits_are_followed_and_the_longest_of_a_batch_goes_first():
    short, long = job(1, needs_bytes=2), job(2, needs_bytes=3)
    cards = [a_card("a", 8, kind="slow"), a_card("b", 8, kind="fast")]

    def suits(*kinds):
        return {
            work_kind(short): Suit(card_kinds=frozenset(kinds), seconds=5.0),
            work_kind(long): Suit(card_kinds=frozenset({"fast"}), seconds=50.0),
        }

    assert starts_of(look([short], cards, suits=suits("fast"))) == {1: "b"}
    assert starts_of(look([short, long], cards, suits=suits("slow", "fast"))) == {1: "a", 2: "b"}
    assert starts_of(look([short, long], cards[1:], suits=suits("fast"))) == {2: "b"}
    assert starts_of(look([short, long], cards[1:])) == {1: "b"}
    other = replace(long, batch_id="batch_2")
    assert starts_of(look([short, other], cards[1:], suits=suits("fast"))) == {1: "b"}, "of one batch only"
    assert starts_of(look([short], cards[:1], suits=suits("fast"))) == {1: "a"}, "no card is kept for it"


def test_a_card_behind_a_breaker_gets_other_clips_only():
    small, large, other = a_card("gpu0", 8), a_card("gpu1", 24), job(2, spec=spec(I2V))
    blocked = frozenset({route_of(spec(), "gpu0", 8)})

    def decided(waiting, *cards, blocked=blocked):
        return place(look(waiting, cards, blocked=blocked))

    assert decided([job(1)], small, large) == [Start(job(1), large)], "another card is there"
    assert decided([other], small, large) == [Start(other, small)], "another family is not concerned"
    assert decided([job(1)], small) == [Wait(job(1), WaitReason.FITTING_CARDS_FAILED)]
    busy = large.model_copy(update={"idle": False})
    assert decided([job(1)], small, busy) == [Wait(job(1), WaitReason.ALL_FITTING_CARDS_BUSY)]
    resting = small.model_copy(update={"idle": False})
    assert decided([job(1)], resting) == [Wait(job(1), WaitReason.FITTING_CARDS_FAILED)]
    assert decided([job(1)], small, blocked=frozenset()) == [Start(job(1), small)]


def test_reasons_from_the_hardest():
    assert all(a < b for a, b in pairwise(WaitReason))
    j = job(1, needs_bytes=5, created_at=0)
    x, busy = a_card("x"), a_card("x", idle=False)
    shut = frozenset({route_of(spec(), "x", 8)})
    equal = [Running(job=job(7, content_key="key1"), card="x")]
    none = {"local": OwnerShare(max_running=0)}
    tail = TailPlan(
        parts=(PlannedPart(job="video_8", card="x", first=0, last=1), PlannedPart(job=j.id, card="x", first=0, last=1))
    )
    at_once = {"blocked": shut, "locked": frozenset({"x"}), "owners": none, "plan": tail}
    assert reason_of(look([j], [a_card("y", 4)], **at_once), 1) == WaitReason.NO_CARD_OF_THIS_SIZE
    assert reason_of(look([j], [x], **at_once), 1) == WaitReason.FITTING_CARDS_FAILED
    at_once["blocked"] = frozenset()
    assert reason_of(look([j], [x], **at_once), 1) == WaitReason.FITTING_CARDS_LOCKED
    later = replace(j, not_before=10)
    assert reason_of(look([later], [x], **at_once), 1) == WaitReason.NOT_BEFORE
    assert starts_of(look([later], [x]), 10.0) == {1: "x"}
    at_once["locked"] = frozenset()
    assert reason_of(look([j], [busy], running=equal, **at_once), 1) == WaitReason.EQUAL_CLIP_RUNNING
    assert reason_of(look([j], [x], **at_once), 1) == WaitReason.OWNER_AT_LIMIT
    at_once["owners"] = {}
    assert reason_of(look([job(8), j], [x], **at_once), 1) == WaitReason.PLANNED_LATER
    assert reason_of(look([job(0), j], [x]), 1) == WaitReason.BEHIND_OTHERS
    assert reason_of(look([j], [busy]), 1) == WaitReason.ALL_FITTING_CARDS_BUSY


# -- experience -----------------------------------------------------------------------------------------------------


def test_lessons_move_a_clip_and_relax_it_but_refuse_nothing():
    from pipeline.memory.footprint import leanest, plan
    from pipeline.units import GIB

    clip = spec(I2V, steps=50, frames=16)
    layout, predicted = plan(clip, 100 * GIB)
    need = predicted.peak_bytes
    fleet = Fleet(usable_bytes={"c8": 2 * need})
    j = job(1, spec=clip, needs_bytes=need)
    fits, large = (
        a_card("x").model_copy(update={"usable_bytes": need}),
        a_card("y").model_copy(update={"usable_bytes": 2 * need}),
    )
    key: MemoryKey = key_of(clip, layout, "test")
    dearer = MemoryEstimates((_measured(key, 1.5),))
    assert place(look([j], [fits, large], fleet=fleet)) == [Start(j, fits)]
    assert place(look([j], [fits, large], fleet=fleet, memory=dearer)) == [Start(j, large)]
    assert place(look([j], [fits], fleet=Fleet(usable_bytes={"c8": need}), memory=dearer)) == [Relax(j)]
    least = replace(j, needs_bytes=leanest(clip)[1].peak_bytes)
    only = fits.model_copy(update={"usable_bytes": least.needs_bytes})
    lean_key = key_of(clip, plan(clip, least.needs_bytes)[0], "test")
    tried = look(
        [least],
        [only],
        fleet=Fleet(usable_bytes={"c8": least.needs_bytes}),
        memory=MemoryEstimates((_measured(lean_key, 1.5),)),
    )
    assert place(tried) == [Start(least, only)], "experience refuses nothing"
    assert place(look([replace(j, needs_bytes=3 * need)], [large], fleet=fleet)) == [
        Refuse(replace(j, needs_bytes=3 * need))
    ]


def _measured(key: MemoryKey, factor: float) -> MemoryMeasurements:
    return MemoryMeasurements(key=key, prior=key.prior, ooms=1, largest=factor, recent=(factor,))


# -- plans ----------------------------------------------------------------------------------------------------------


def parts(*given_: tuple[int, str, int, int]) -> TailPlan:
    return TailPlan(parts=tuple(PlannedPart(job=f"video_{n}", card=c, first=a, last=b) for n, c, a, b in given_))


CLIP = spec(I2V, steps=20)
TAIL = parts((1, "x", 0, 10), (2, "y", 0, 20), (1, "y", 10, 20), (3, "x", 0, 20))


def on(number: int, where: str, step: int, **changes) -> Running:
    return Running(job=job(number, spec=CLIP), card=where, step=step, movable=True, **changes)


def test_a_plan_is_followed():
    one, two, three = (job(n, spec=CLIP) for n in (1, 2, 3))
    cards = [a_card("x"), a_card("y"), a_card("z")]
    assert starts_of(look([three, two, one], cards, plan=TAIL)) == {1: "x", 2: "y"}, "not on `z`, which it leaves free"
    assert starts_of(look([three, two, one, job(9, created_at=5)], cards, plan=TAIL)) == {1: "x", 2: "y", 9: "z"}
    # `y` is kept for `1`, which is still on `x`.
    kept = look([job(9)], [a_card("x", idle=False), a_card("y")], plan=TAIL, running=[on(1, "x", 4)])
    assert starts_of(kept) == {}
    assert reason_of(kept, 9) == WaitReason.BEHIND_OTHERS


def test_a_plan_moves_at_the_split_only():
    def moves(step: int, **changes):
        busy = [a_card("x", idle=False), a_card("y")]
        found = place(look([], busy, plan=TAIL, running=[on(1, "x", step)], **changes))
        return [(d.job.number, d.source, d.to) for d in found if isinstance(d, Move)]

    assert moves(9) == []
    assert moves(10) == moves(12) == [(1, "x", "y")]
    assert moves(12, locked=frozenset({"y"})) == [], "that card is out of use"
    assert moves(12, blocked=frozenset({route_of(CLIP, "y", 8)})) == [], "and behind a breaker"
    stays = replace(on(1, "x", 12), movable=False)
    assert place(look([], [a_card("x", idle=False), a_card("y")], plan=TAIL, running=[stays])) == []
    one = job(1, spec=CLIP, step=10)
    assert starts_of(look([one], [a_card("x"), a_card("y")], plan=TAIL)) == {1: "y"}


def test_no_plan_keeps_an_urgent_clip_waiting():
    urgent = job(9, priority=1, created_at=5)
    one = job(1, spec=CLIP)
    assert starts_of(look([one, urgent], [a_card("x")], plan=TAIL)) == {9: "x"}
    kept = [a_card("x", idle=False), a_card("y")]
    assert starts_of(look([urgent], kept, plan=TAIL, running=[on(1, "x", 4)])) == {9: "y"}


def test_a_plan_that_cannot_be_kept_holds_nobody_up():
    """The card is behind a breaker for that clip, or out of use, or too small by now."""
    one = job(1, spec=CLIP)
    cards = [a_card("x"), a_card("y")]
    tail = parts((1, "x", 0, 10), (1, "y", 10, 20))
    for changes in ({"blocked": frozenset({route_of(CLIP, "x", 8)})}, {"locked": frozenset({"x"})}):
        assert starts_of(look([one], cards, plan=tail, **changes)) == {1: "y"}
        # And it is not sent back.
        there = [cards[0], a_card("y", idle=False)]
        assert place(look([], there, plan=tail, running=[on(1, "y", 0)], **changes)) == []
    larger = replace(one, needs_bytes=7)
    assert starts_of(look([larger], [a_card("x", 5), a_card("y")], plan=tail)) == {1: "y"}


# -- size -----------------------------------------------------------------------------------------------------------


def calls_of(snapshot: Snapshot) -> int:
    """Python functions called, generators resumed and C functions called by `place`."""
    count = 0

    def seen(_frame, event, _arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        place(snapshot, 100.0)
    finally:
        sys.setprofile(None)
    return count


def crowd(situation: str, n: int) -> Snapshot:
    """`2 n` heads and `n` idle cards."""
    sizes = [5, 8, 16, 24]
    cards = [a_card(f"gpu{i:05}", sizes[i % 4], kind="ab"[i % 2]) for i in range(n)]
    jobs = [
        job(i, needs_bytes=1 + i % 20, owner=f"owner{i % 7}", spec=spec([CAMERA, I2V][i % 2])) for i in range(2 * n)
    ]
    changes = {}
    if situation == "all cards of another family, which waits for larger ones":
        cards = [c.model_copy(update={"family": I2V, "usable_bytes": 8}) for c in cards] + [
            a_card("big", 24, idle=False)
        ]
        jobs = [job(0, spec=spec(I2V), needs_bytes=20)] + [job(i, created_at=5) for i in range(1, 2 * n)]
    elif situation == "a breaker on the first card":
        cards = [c.model_copy(update={"usable_bytes": 8}) for c in cards]
        jobs = [job(i) for i in range(2 * n)]
        changes["blocked"] = frozenset({route_of(spec(), "gpu00000", 8)})
    elif situation == "every card of another size":
        cards = [c.model_copy(update={"usable_bytes": 10**6 + i}) for i, c in enumerate(cards)]
        changes["fleet"] = Fleet(usable_bytes={"c8": 10**7})
    elif situation == "nobody fits what is idle":
        jobs = [job(i, needs_bytes=20) for i in range(2 * n)]
        cards = [c.model_copy(update={"usable_bytes": 8}) for c in cards] + [a_card("big", 24, idle=False)]
    elif situation == "all locked":
        changes["locked"] = frozenset(c.card for c in cards)
    return look(jobs, cards, **changes)


@pytest.mark.parametrize(
    "situation",
    [
        "mixed",
        "all cards of another family, which waits for larger ones",
        "a breaker on the first card",
        "every card of another size",
        "nobody fits what is idle",
        "all locked",
    ],
)
def test_work_grows_with_jobs_and_cards_not_with_their_product(situation):
    small, large = calls_of(crowd(situation, 250)), calls_of(crowd(situation, 1000))
    assert large < 5.5 * small, "four times as many, and a logarithm"
    assert large < 300 * 3000


def test_twenty_thousand_heads_and_ten_thousand_cards():
    snapshot = crowd("mixed", 10_000)
    assert len(starts_of(snapshot, 100.0)) == 10_000
