"""What people say of batches, jobs and cards reaches the renderers: a dispatcher, a store, and no engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.dispatch.protocol import RendererDiedError, StepDone, Verdict
from cluster.fleet.cards import CardState
from cluster.fleet.quarantine import FAULTS, REST_S
from cluster.jobs.commands import FARM, CardVerb
from cluster.jobs.model import JobState, Limits, StoredCheckpoint, checkpoint_key, stored_priority
from cluster.jobs.outcomes import MADE_ROOM, Invalid, Stopped
from cluster.jobs.transitions import Verb
from cluster.scheduling.interactive import InteractiveTerms
from cluster.store.batches import Terms
from cluster.store.commands import CommandStore
from pipeline.clips.clip import ResolutionClass
from tests.building import Clock, beat, draft, spec
from tests.unit.cluster.dispatch.test_dispatcher import Call, Farm

ME = "local"


@pytest.fixture
def clock(sqlite_database):
    return Clock().set_on(sqlite_database)


@pytest.fixture
async def farm(sqlite_database, clock):
    farm = Farm(sqlite_database, clock).open()
    yield farm
    await farm.close()


@pytest.fixture
def verbs(sqlite_database) -> CommandStore:
    return CommandStore(sqlite_database)


def resumable(number: int = 1):
    return draft(number, spec=spec("i2vgen-xl-tiny", steps=50))


def leave(call: Call, step: int) -> StoredCheckpoint:
    """What a renderer does when its clip is preempted."""
    saved = StoredCheckpoint(checkpoint_key(call.assignment.job_id, call.assignment.attempt_id, step), step)
    call.report(Stopped(checkpoint=saved))
    return saved


async def test_a_paused_batch_leaves_its_cards_and_comes_back_where_it_was(farm, verbs):
    batch_id = farm.submit(resumable(), resumable(2))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    attempt = first.assignment.attempt_id
    busy = beat("gpu0", state=CardState.BUSY, steps={attempt: (20, 50)})
    verbs.batch(ME, batch_id, Verb.PAUSE)
    assert (await farm.goes_on(2, busy))[attempt] is Verdict.CHECKPOINT
    saved = leave(first, 21)
    await farm.reaches(batch_id, JobState.HELD)
    await farm.goes_on(3, beat("gpu0"))
    assert len(farm.pool.calls) == 1, "the card is idle and stays so"
    assert (farm.job(batch_id).reason, farm.job(batch_id).attempts, farm.job(batch_id).releases) == ("paused", 0, 0)
    verbs.batch(ME, batch_id, Verb.RESUME)
    second = await farm.called(2)
    assert second.assignment.resume == saved


async def test_one_paused_job_gives_its_card_to_the_next(farm, verbs):
    batch_id = farm.submit(resumable(), resumable(2))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    verbs.job(ME, first.assignment.job_id, Verb.PAUSE)
    await farm.goes_on(2, beat("gpu0"))
    leave(first, 5)
    second = await farm.called(2)
    assert second.job == "2"
    assert farm.job(batch_id, 1).state is JobState.HELD


async def test_a_clip_that_cannot_be_saved_is_finished(farm, verbs):
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    attempt = call.assignment.attempt_id
    verbs.batch(ME, batch_id, Verb.PAUSE)
    verdicts = await farm.goes_on(2, beat("gpu0", steps={attempt: (0, 1)}))
    assert verdicts[attempt] is Verdict.GO_ON
    call.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    assert farm.job(batch_id, 2).state is JobState.HELD


async def test_a_locked_card_finishes_its_clip_and_gets_no_other(farm, verbs):
    batch_id = farm.submit(resumable(), resumable(2))
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    attempt = call.assignment.attempt_id
    verbs.order("gpu0", CardVerb.LOCK, by="ann")
    verdicts = await farm.goes_on(2, beat("gpu0", state=CardState.BUSY, steps={attempt: (1, 50)}))
    assert verdicts[attempt] is Verdict.GO_ON
    call.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    await farm.goes_on(3, beat("gpu0"))
    assert len(farm.pool.calls) == 1
    verbs.order("gpu0", CardVerb.RELEASE)
    await farm.goes_on(2, beat("gpu0"))
    assert (await farm.called(2)).job == "2"


async def test_a_drained_card_s_clip_goes_on_elsewhere(farm, verbs):
    farm.submit(resumable())
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    attempt = first.assignment.attempt_id
    verbs.order("gpu0", CardVerb.DRAIN, by="ann")
    busy = beat("gpu0", state=CardState.BUSY, steps={attempt: (9, 50)})
    assert (await farm.goes_on(2, busy))[attempt] is Verdict.CHECKPOINT
    saved = leave(first, 10)
    farm.dispatcher.beat(beat("gpu1"))
    second = await farm.called(2)
    assert (second.assignment.renderer, second.assignment.resume) == ("renderer-gpu1", saved)
    assert farm.truth.tally("preemptions", outcome="drain") == 1


async def test_a_batch_stops_at_its_failures(farm):
    batch_id = farm.submit(*(draft(n) for n in range(1, 5)), terms=Terms(limits=Limits(failures=1)))
    farm.dispatcher.beat(beat("gpu0"))
    (await farm.called()).report(Invalid(detail="no picture"))
    await farm.called(2)
    await farm.goes_on(2, beat("gpu0"))
    assert farm.batch_store.batch(ME, batch_id).status == "held"
    farm.pool.calls[1].complete()
    await farm.reaches(batch_id, JobState.COMPLETED, 2)
    await farm.goes_on(3, beat("gpu0"))
    assert len(farm.pool.calls) == 2


@pytest.mark.parametrize("others", [True, False])
async def test_a_card_that_breaks_its_renderers_is_set_aside_unless_it_is_the_last(farm, verbs, clock, others):
    # Of several kinds: a breaker keeps those of one kind away before the card is to blame.
    sizes = [size for size in ResolutionClass for _ in range(2)]
    if others:
        farm.dispatcher.beat(beat("gpu1"))
        farm.submit(draft(99))
        await farm.called()
    farm.submit(*(draft(n, spec=spec(resolution_class=size)) for n, size in enumerate(sizes, start=1)))
    broken: set[str] = set()
    for turn in range(60):
        await farm.goes_on(1, beat("gpu0", renderer=f"r{turn}"), *([beat("gpu1", state=CardState.BUSY)] * others))
        for call in [call for call in farm.pool.open if call.assignment.renderer.startswith("r") and call.job != "99"]:
            call.report(RendererDiedError("Xid 79"))
            await farm.until(lambda call=call: call.closed)
            broken.add(call.job)
        if len(broken) >= FAULTS:
            break
    await farm.until(lambda: farm.dispatcher.running_count() <= others)
    if not others:
        assert verbs.orders() == {}, "the farm has no other card"
        return
    order = verbs.orders()["gpu0"]
    assert (order.kind, order.given_by, order.until) == (CardVerb.QUARANTINE, FARM, int(clock.now) + REST_S)
    assert "Xid 79" in order.reason
    calls = len(farm.pool.calls)
    await farm.goes_on(3, beat("gpu0", renderer="fresh"), beat("gpu1", state=CardState.BUSY))
    assert len(farm.pool.calls) == calls


# -- interactive clips ------------------------------------------------------------------------------------------------


def waited_for(number: int = 1):
    return replace(resumable(number), priority=stored_priority(0, interactive=True), content_key=f"mine{number}")


async def test_a_clip_of_a_batch_makes_room_for_one_that_somebody_waits_for_and_goes_on(farm):
    batch_id = farm.submit(resumable(1), resumable(2))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    attempt = first.assignment.attempt_id
    first.report(StepDone(step=20, steps=50))
    busy = beat("gpu0", state=CardState.BUSY, family="i2vgen-xl-tiny", steps={attempt: (20, 50)})
    assert (await farm.goes_on(1, busy))[attempt] is Verdict.GO_ON
    mine = farm.submit(waited_for())
    await farm.looks_again()
    assert (await farm.goes_on(1, busy))[attempt] is Verdict.CHECKPOINT
    saved = leave(first, 21)
    second = await farm.called(2)
    assert second.assignment.content_key == "mine1", "it goes before row 2, which came earlier"
    job = farm.job(batch_id)
    assert (job.state, job.attempts, job.releases) == (JobState.QUEUED, 0, 0)
    assert farm.truth.tally("preemptions", outcome="interactive") == 1
    (ended,) = [one for one in farm.truth.attempts() if one.id == attempt]
    assert ended.detail.startswith(MADE_ROOM)
    second.complete()
    await farm.reaches(mine, JobState.COMPLETED)
    farm.dispatcher.beat(beat("gpu0", family="i2vgen-xl-tiny"))
    third = await farm.called(3)
    assert (third.assignment.content_key, third.assignment.resume) == ("key1", saved)


async def test_two_that_wait_have_two_cards_and_no_third_clip_is_stopped(farm):
    farm.submit(*(resumable(n) for n in range(1, 4)))
    names = ["gpu0", "gpu1", "gpu2"]
    for number, name in enumerate(names, start=1):
        farm.dispatcher.beat(beat(name))
        await farm.called(number)
    attempts = {call.assignment.attempt_id: name for call, name in zip(farm.pool.calls, names, strict=True)}
    beats = [beat(name, state=CardState.BUSY, steps={one: (5, 50)}) for one, name in attempts.items()]
    for call in farm.pool.calls:
        call.report(StepDone(step=5, steps=50))
    await farm.goes_on(1, *beats)
    farm.submit(waited_for(1), waited_for(2))
    for _ in range(3):
        farm.dispatcher.nudge()
        verdicts = await farm.goes_on(1, *beats)
    assert sorted(verdicts.values()) == sorted([Verdict.CHECKPOINT, Verdict.CHECKPOINT, Verdict.GO_ON])


async def test_room_that_was_made_is_used_though_making_it_used_up_the_share(sqlite_database, clock):
    # Of one card's time a hundredth of a second: to make room takes longer.
    farm = Farm(sqlite_database, clock, interactive=InteractiveTerms(share=0.01 / 3600)).open()
    farm.submit(resumable(1))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    attempt = first.assignment.attempt_id
    first.report(StepDone(step=20, steps=50))
    busy = beat("gpu0", state=CardState.BUSY, family="i2vgen-xl-tiny", steps={attempt: (20, 50)})
    await farm.goes_on(1, busy)
    farm.submit(waited_for())
    await farm.looks_again()
    assert (await farm.goes_on(1, busy))[attempt] is Verdict.CHECKPOINT
    leave(first, 21)
    assert (await farm.called(2)).assignment.content_key == "mine1", "the clip that made room has its card again"
    await farm.close()


async def test_a_share_that_is_used_up_has_interactive_clips_wait_as_others(sqlite_database, clock):
    farm = Farm(sqlite_database, clock, interactive=InteractiveTerms(share=0)).open()
    farm.submit(resumable(1), resumable(2))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    clock.now += 10
    farm.submit(waited_for())
    attempt = first.assignment.attempt_id
    busy = beat("gpu0", state=CardState.BUSY, steps={attempt: (20, 50)})
    assert (await farm.goes_on(3, busy))[attempt] is Verdict.GO_ON
    first.complete()
    assert (await farm.called(2)).assignment.content_key == "key2"
    await farm.close()
