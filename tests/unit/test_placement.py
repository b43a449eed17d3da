from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.breaker import route_of
from cluster.cards import Fleet
from cluster.jobs import Job, JobState
from cluster.placement import Refuse, Snapshot, Start, Wait, WaitReason, place
from tests.building import card, spec

FLEET = Fleet(usable_bytes={"c8": 8, "c24": 24})


def job(number: int, **changes) -> Job:
    values = {
        "id": f"video_{number}",
        "owner": "local",
        "batch_id": "batch_1",
        "number": number,
        "name": str(number),
        "state": JobState.QUEUED,
        "row": {},
        "created_at": 0,
        "spec": spec(),
        "content_key": f"key{number}",
        "needs_bytes": 1,
    }
    return Job(**(values | changes))


@st.composite
def snapshots(draw):
    waiting = [
        job(
            number,
            owner=draw(st.sampled_from(["ann", "bob"])),
            batch_id=draw(st.sampled_from(["batch_1", "batch_2"])),
            created_at=draw(st.integers(0, 3)),
            priority=draw(st.integers(-1, 1)),
            content_key=f"key{draw(st.integers(0, 6))}",
            needs_bytes=draw(st.integers(0, 30)),
            spec=spec(draw(st.sampled_from(["camera", "i2vgen-xl"]))),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    cards = [
        card(
            f"gpu{i}",
            draw(st.integers(1, 26)),
            idle=draw(st.booleans()),
            family=draw(st.sampled_from([None, "camera", "i2vgen-xl"])),
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    return Snapshot(waiting=draw(st.permutations(waiting)), cards=cards, fleet=FLEET)


def split(snapshot):
    decisions = place(snapshot)
    assert sorted(d.job.id for d in decisions) == sorted(j.id for j in snapshot.waiting), "one decision for every job"
    kinds = {Start: [], Wait: [], Refuse: []}
    for decision in decisions:
        kinds[type(decision)].append(decision)
    return kinds[Start], kinds[Wait], kinds[Refuse]


@given(snapshots())
def test_a_job_starts_only_on_an_idle_card_that_holds_it(snapshot):
    starts, _, _ = split(snapshot)
    for start in starts:
        assert start.card.idle
        assert start.card in snapshot.cards
        assert start.card.usable_bytes >= start.job.needs_bytes


@given(snapshots())
def test_a_card_takes_one_job_and_a_clip_is_rendered_once(snapshot):
    starts, _, _ = split(snapshot)
    cards = [start.card.card for start in starts]
    keys = [(start.job.owner, start.job.content_key) for start in starts]
    assert len(set(cards)) == len(cards)
    assert len(set(keys)) == len(keys)


@given(snapshots())
def test_refused_is_what_no_class_of_the_fleet_holds(snapshot):
    _, _, refused = split(snapshot)
    assert {r.job.id for r in refused} == {j.id for j in snapshot.waiting if j.needs_bytes > 24}


@given(snapshots())
def test_each_start_takes_the_smallest_card_still_idle(snapshot):
    starts, _, _ = split(snapshot)
    idle = {c.card: c for c in snapshot.cards if c.idle}
    for start in starts:
        del idle[start.card.card]
        spared = [c for c in idle.values() if start.job.needs_bytes <= c.usable_bytes < start.card.usable_bytes]
        assert not spared, "a smaller idle card would have held it"
        if start.card.family != start.job.spec.family:
            warm = [
                c
                for c in idle.values()
                if c.usable_bytes == start.card.usable_bytes and c.family == start.job.spec.family
            ]
            assert not warm, "an equal card had the model loaded"


@given(snapshots())
def test_no_card_idles_while_a_job_that_fits_it_waits(snapshot):
    starts, waits, _ = split(snapshot)
    used = {start.card.card for start in starts}
    left = [c for c in snapshot.cards if c.idle and c.card not in used]
    started = {(s.job.owner, s.job.content_key) for s in starts}
    for wait in waits:
        if wait.reason is WaitReason.EQUAL_CLIP_RUNNING:
            assert (wait.job.owner, wait.job.content_key) in started
            continue
        assert all(c.usable_bytes < wait.job.needs_bytes for c in left)
        somewhere = any(c.usable_bytes >= wait.job.needs_bytes for c in snapshot.cards)
        assert (wait.reason is WaitReason.ALL_FITTING_CARDS_BUSY) == somewhere


@given(snapshots())
def test_nobody_is_overtaken_by_an_equal_that_came_later(snapshot):
    """Of two jobs of the same size, the one of higher priority, then the older, starts first."""
    starts, waits, _ = split(snapshot)
    twins = {w.job.id for w in waits if w.reason is WaitReason.EQUAL_CLIP_RUNNING}
    started = {s.job.id for s in starts}

    def rank(j: Job) -> tuple[int, int]:
        return (-j.priority, j.created_at)

    for waiting in (w.job for w in waits if w.job.id not in twins):
        for other in snapshot.waiting:
            if other.id in started and other.needs_bytes >= waiting.needs_bytes:
                assert rank(other) <= rank(waiting)


@given(snapshots(), st.randoms())
def test_the_order_of_the_snapshot_changes_nothing(snapshot, random):
    waiting, cards = list(snapshot.waiting), list(snapshot.cards)
    random.shuffle(waiting)
    random.shuffle(cards)
    assert place(snapshot) == place(Snapshot(waiting=waiting, cards=cards, fleet=FLEET))


def test_priority_then_age_then_the_row():
    late = job(1, created_at=5)
    early = job(2, created_at=1)
    first_row, urgent = job(0, created_at=1), job(9, created_at=9, priority=1)
    decisions = place(Snapshot(waiting=[late, early, first_row, urgent], cards=[], fleet=FLEET))
    assert [d.job.number for d in decisions] == [9, 0, 2, 1]


def test_equal_clips_of_two_owners_are_rendered_for_each():
    ann, bob = job(1, owner="ann", content_key="same"), job(2, owner="bob", content_key="same")
    starts, _, _ = split(Snapshot(waiting=[ann, bob], cards=[card("a", 8), card("b", 8)], fleet=FLEET))
    assert len(starts) == 2


def test_a_card_with_two_renderers_on_the_roster_is_one_card():
    old, new = card("gpu0", 8), card("gpu0", 8).model_copy(update={"renderer": "renderer-new"})
    starts, waits, _ = split(Snapshot(waiting=[job(1), job(2)], cards=[old, new], fleet=FLEET))
    assert (len(starts), len(waits)) == (1, 1)


def test_reasons_are_ordered_from_the_hardest():
    assert all(a < b for a, b in pairwise(WaitReason))
    empty = place(Snapshot(waiting=[job(1, needs_bytes=20)], cards=[card("a", 8)], fleet=FLEET))
    assert empty == [Wait(job(1, needs_bytes=20), WaitReason.NO_CARD_OF_THIS_SIZE)]


def test_a_card_behind_a_breaker_gets_other_clips_only():
    small, large, other = card("gpu0", 8), card("gpu1", 24), job(2, spec=spec("i2vgen-xl"))
    closed = frozenset({route_of(spec(), "gpu0", 8)})

    def decided(waiting, *cards, closed=closed):
        return place(Snapshot(waiting=waiting, cards=cards, fleet=FLEET, closed=closed))

    assert decided([job(1)], small, large) == [Start(job(1), large)], "another card is there"
    assert decided([other], small, large) == [Start(other, small)], "another family is not concerned"
    assert decided([job(1)], small) == [Wait(job(1), WaitReason.FITTING_CARDS_FAILED)]
    busy = large.model_copy(update={"idle": False})
    assert decided([job(1)], small, busy) == [Wait(job(1), WaitReason.ALL_FITTING_CARDS_BUSY)]
    resting = small.model_copy(update={"idle": False})
    assert decided([job(1)], resting) == [Wait(job(1), WaitReason.FITTING_CARDS_FAILED)]
    assert decided([job(1)], small, closed=frozenset()) == [Start(job(1), small)]
