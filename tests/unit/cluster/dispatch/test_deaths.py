"""A renderer that died is told from one that is lost, and the clip it died of from those that stood beside."""

from __future__ import annotations

import pytest

from cluster.dispatch.protocol import CardFree, Fate, RendererDiedError, RendererLostError, StepDone
from cluster.fleet.cards import CardState
from cluster.jobs.model import MAX_RELEASES, JobState
from cluster.jobs.outcomes import Errored
from tests.building import beat, draft
from tests.unit.cluster.dispatch.test_dispatcher import Call, Farm, clock, farm  # noqa: F401

#: As Ray reports every death first.
UNAVAILABLE = "ActorUnavailableError: the actor is unavailable"
DIED = Fate(died=True, detail="killed by signal 9")


def breaks_off(call: Call, *, accepted: bool = True) -> None:
    call.report(RendererLostError(UNAVAILABLE, accepted=accepted))


async def ends(farm: Farm, call: Call) -> str:  # noqa: F811
    """How the attempt of a call ended."""

    def ended() -> str | None:
        return next(a.outcome for a in farm.truth.attempts() if a.id == call.assignment.attempt_id)

    await farm.until(ended)
    return str(ended())


async def test_a_renderer_that_cannot_be_reached_is_dead_once_somebody_says_so(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    farm.pool.fates[beat().renderer] = None
    farm.dispatcher.beat(beat())
    call = await farm.called()
    call.report(StepDone(step=3, steps=8))
    breaks_off(call)
    await farm.until(lambda: call.closed)
    await farm.looks_again()
    assert farm.job(batch_id).state is JobState.RUNNING, "nobody knows yet"
    farm.pool.fates[beat().renderer] = DIED
    assert await ends(farm, call) == "crashed"
    assert farm.job(batch_id).attempts == 1


async def test_without_evidence_an_attempt_is_lost_when_its_lease_ends(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    farm.pool.fates[beat().renderer] = None
    farm.dispatcher.beat(beat())
    call = await farm.called()
    breaks_off(call)
    await farm.until(lambda: call.closed)
    await farm.goes_on(8)
    assert farm.job(batch_id).state is JobState.RUNNING
    await farm.goes_on(4)
    assert await ends(farm, call) == "lost"
    job = farm.job(batch_id)
    assert (job.attempts, job.releases) == (0, 1)


@pytest.mark.parametrize(
    ("boot", "outcome"), [("boot-1", "crashed"), ("boot-2", "lost"), ("", "lost")], ids=["same", "other", "unknown"]
)
@pytest.mark.parametrize("told", [True, False])
async def test_a_successor_on_the_same_start_of_the_host_shows_a_death(farm, boot, outcome, told):  # noqa: F811
    """Whether the stream says that it broke off, or hangs."""
    farm.submit(draft(1))
    old, new = beat(renderer="old", boot="boot-1", pid=11), beat(renderer="new", boot=boot, pid=12)
    farm.pool.fates["old"] = None
    farm.dispatcher.beat(old)
    call = await farm.called()
    if told:
        breaks_off(call)
        await farm.until(lambda: call.closed)
    farm.clock.now += 4
    farm.dispatcher.beat(new)
    if outcome == "lost":
        await farm.goes_on(12, new)
    assert await ends(farm, call) == outcome
    again = await farm.called(2)
    assert again.assignment.renderer == "new"


async def test_two_renderers_that_beat_by_turns_for_one_card_are_both_alive(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    one, other = beat(renderer="one", boot="boot-1"), beat(renderer="other", boot="boot-1")
    farm.dispatcher.beat(one)
    call = await farm.called()
    for _ in range(4):
        farm.clock.now += 0.5
        farm.dispatcher.beat(other)
        farm.dispatcher.beat(one)
    await farm.looks_again()
    assert not call.closed
    assert farm.job(batch_id).state is JobState.RUNNING


async def test_a_renderer_that_beats_on_is_alive_and_its_clip_lost_at_once(farm):  # noqa: F811
    farm.submit(draft(1))
    farm.pool.fates[beat().renderer] = None
    farm.dispatcher.beat(beat())
    call = await farm.called()
    breaks_off(call)
    await farm.until(lambda: call.closed)
    working = beat(state=CardState.BUSY, steps={call.assignment.attempt_id: (2, 8)})
    farm.dispatcher.beat(working)
    await farm.looks_again()
    assert farm.dispatcher.running_count() == 1, "that beat may have been on its way"
    farm.clock.now += 2
    farm.dispatcher.beat(working)
    assert await ends(farm, call) == "lost"


async def beside(farm: Farm, *, released: bool = True) -> tuple[str, Call, Call]:  # noqa: F811
    """A batch of two rows at one renderer: the first is being encoded, the second has the card."""
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat())
    first = await farm.called()
    first.report(StepDone(step=8, steps=8))
    first.report(CardFree())
    second = await farm.called(2)
    return batch_id, first, second


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("said", [True, False])
async def test_the_clip_on_the_card_is_to_blame_and_no_other_pays(farm, order, said):  # noqa: F811
    batch_id, first, second = await beside(farm)
    second.report(StepDone(step=2, steps=8))
    farm.pool.fates[beat().renderer] = DIED
    for index in order:
        call = (first, second)[index]
        call.report(RendererDiedError("signal 9")) if said else breaks_off(call)
        await farm.until(lambda call=call: call.closed)
    assert (await ends(farm, first), await ends(farm, second)) == ("lost", "crashed")
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    innocent, blamed = farm.job(batch_id, 1), farm.job(batch_id, 2)
    assert (innocent.attempts, innocent.releases) == (0, 0)
    assert (blamed.attempts, blamed.releases) == (1, 0)


async def test_a_clip_being_encoded_is_to_blame_where_none_is_on_the_card(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    call.report(StepDone(step=8, steps=8))
    call.report(CardFree())
    farm.pool.fates[beat().renderer] = DIED
    breaks_off(call)
    assert await ends(farm, call) == "crashed"
    assert farm.job(batch_id).attempts == 1


@pytest.mark.parametrize("waits", ["for memory", "for another's thread", "in vain"])
async def test_a_clip_that_had_not_come_on_the_card_is_not_to_blame(farm, waits):  # noqa: F811
    batch_id, first, second = await beside(farm)
    told = {first.assignment.attempt_id: (8, 8), second.assignment.attempt_id: (0, 8)}
    facts = {
        "for memory": {"waiting_for": "needs 3 GiB"},
        "for another's thread": {"on_card": "attempt_gone"},
        "in vain": {"on_card": first.assignment.attempt_id},
    }[waits]
    farm.dispatcher.beat(beat(boot="boot-1", steps=told, **facts))
    farm.pool.fates[beat().renderer] = DIED
    breaks_off(second, accepted=waits != "in vain")
    breaks_off(first)
    assert (await ends(farm, first), await ends(farm, second)) == ("crashed", "lost")
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    innocent = farm.job(batch_id, 2)
    assert (innocent.attempts, innocent.releases) == (0, 0)


async def test_a_row_beside_any_number_of_deaths_does_not_run_out(farm):  # noqa: F811
    """Sent to renderers that are dead by the time it arrives, more often than a row may be lost."""
    batch_id = farm.submit(draft(1))
    for n in range(MAX_RELEASES + 3):
        farm.pool.fates[f"r{n}"] = DIED
        farm.dispatcher.beat(beat(renderer=f"r{n}"))
        breaks_off(await farm.called(n + 1), accepted=False)
        await farm.until(lambda: farm.dispatcher.running_count() == 0)
    farm.dispatcher.beat(beat(renderer="well"))
    (await farm.called(MAX_RELEASES + 4)).complete()
    job = await farm.reaches(batch_id, JobState.COMPLETED)
    assert job.releases == 0


async def test_a_row_that_kills_whatever_renders_it_ends_after_three_deaths_with_the_whole_story(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    for n in (1, 2, 3):
        farm.pool.fates[f"r{n}"] = DIED
        farm.dispatcher.beat(beat(f"gpu{n}", renderer=f"r{n}"))
        call = await farm.called(n)
        if n > 1:
            call.report(StepDone(step=n, steps=8))
        breaks_off(call)
        await farm.until(lambda: farm.dispatcher.running_count() == 0)
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert (job.reason, job.attempts, job.releases) == ("crashed", 3, 0)
    (problem,) = job.problems
    for said in (
        "died 3 times",
        "renderer r1 on card gpu1 (c8) died while the clip's model was loaded: killed by signal 9",
        "renderer r2 on card gpu2 (c8) died in denoising, step 3 of 8",
        "renderer r3 on card gpu3 (c8) died in denoising, step 4 of 8",
    ):
        assert said in problem.message


async def test_a_process_that_one_clip_broke_takes_the_other_with_it_at_no_cost(farm):  # noqa: F811
    batch_id, first, second = await beside(farm)
    second.report(Errored(detail="an illegal memory access was encountered", sticky=True))
    assert await ends(farm, second) == "error"
    farm.pool.fates[beat().renderer] = DIED
    breaks_off(first)
    assert await ends(farm, first) == "lost"
    await farm.until(lambda: first.assignment.attempt_id not in farm.dispatcher._roster.running)
    innocent = farm.job(batch_id, 1)
    assert (innocent.attempts, innocent.releases) == (0, 0)


async def dies(farm: Farm, call: Call, *others: Call) -> None:  # noqa: F811
    """The renderer of these calls dies, and nothing runs there any more."""
    farm.pool.fates[call.assignment.renderer] = DIED
    for one in (call, *others):
        breaks_off(one)
    await farm.until(lambda: farm.dispatcher.running_count() == 0)


async def test_a_row_that_kills_its_renderers_while_it_is_encoded_ends_after_three_deaths(farm):  # noqa: F811
    """The first is laid to the clip on the card; from then on either is alone at its renderer."""
    batch_id, poison, innocent = await beside(farm)
    innocent.report(StepDone(step=2, steps=8))
    await dies(farm, poison, innocent)
    deaths = 0
    for n in range(3, 3 + 4):
        farm.dispatcher.beat(beat(renderer=f"r{n}"))
        call = await farm.called(n)
        call.report(StepDone(step=8, steps=8))
        call.report(CardFree())
        await farm.looks_again()
        assert len(farm.pool.calls) == n, "another clip came beside one under suspicion"
        if call.job == "2":
            call.complete()
            await farm.reaches(batch_id, JobState.COMPLETED, 2)
            continue
        deaths += 1
        await dies(farm, call)
    assert deaths == 3
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert (job.reason, job.attempts, job.releases) == ("crashed", 3, 0)
    (problem,) = job.problems
    assert problem.message.count("while the clip was encoded, no other being on the card") == 3
    other = await farm.reaches(batch_id, JobState.COMPLETED, 2)
    assert (other.attempts, other.releases) == (2, 0), "it paid once for what was not its fault, and never again"


async def test_a_row_under_suspicion_waits_until_what_is_encoded_has_ended(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat(renderer="r1"))
    await dies(farm, await farm.called())
    other_id = farm.submit(draft(2, priority=10))
    await farm.looks_again()
    farm.dispatcher.beat(beat(renderer="r2"))
    other = await farm.called(2)
    assert other.job == "2"
    other.report(CardFree())
    await farm.reaches(batch_id, JobState.RUNNING)
    await farm.looks_again()
    assert len(farm.pool.calls) == 2, "it came beside a clip that is encoded"
    other.complete()
    call = await farm.called(3)
    await farm.reaches(other_id, JobState.COMPLETED, 2)
    call.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)


async def test_a_death_while_a_row_waits_to_be_alone_is_not_laid_to_it(farm):  # noqa: F811
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat(renderer="r1"))
    await dies(farm, await farm.called())
    other_id = farm.submit(draft(2, priority=10))
    await farm.looks_again()
    farm.dispatcher.beat(beat(renderer="r2"))
    other = await farm.called(2)
    other.report(CardFree())
    await farm.until(lambda: farm.dispatcher.running_count() == 2)
    await dies(farm, other)
    assert len(farm.pool.calls) == 2, "it was sent to a renderer that is dead"
    waited, died = farm.job(batch_id), farm.job(other_id, 2)
    assert ((waited.attempts, waited.releases), (died.attempts, died.releases)) == ((1, 0), (1, 0))
