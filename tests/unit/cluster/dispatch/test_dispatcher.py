"""The real dispatcher on a real store. Renderers are a pool whose every event the test sends; time is the test's too.

Nothing sleeps: `Farm.until` looks again whenever the store was used or a renderer was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa

from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.dispatch.protocol import (
    Assignment,
    CardFree,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    Fate,
    RendererDiedError,
    RendererLostError,
    StepDone,
    Verdict,
)
from cluster.fleet.cards import CardState
from cluster.jobs.model import Job, JobState, StoredCheckpoint, checkpoint_key
from cluster.jobs.outcomes import Completed, Crashed, Ended, Errored, OutOfMemory, Overflow, Stopped
from cluster.scheduling.interactive import InteractiveTerms
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore, Stretch
from cluster.store.office import OFFICE_S
from pipeline.memory.footprint import footprint
from pipeline.units import GIB
from tests.building import FLEET, Clock, Truth, beat, card, draft, objects, spec

#: Looks at the store at every turn, so that a test can await what the dispatcher would do.
TIMING = Timing(poll_s=0.005, look_s=0, sweep_s=0, renew_s=1, lease_s=10, silent_s=5)


@dataclass(kw_only=True)
class Call:
    """A renderer at work: the test says what it reports."""

    assignment: Assignment
    changed: Callable[[], None]
    events: asyncio.Queue[Event | Exception | None] = field(default_factory=asyncio.Queue)
    closed: bool = False

    @property
    def job(self) -> str:
        return str(self.assignment.row["number"])

    def report(self, event: Event | Exception | None) -> None:
        self.events.put_nowait(event)

    def complete(self) -> None:
        self.report(Completed(objects=objects(self.assignment.attempt_id)))


class Pool:
    """A `RendererPool` of any number of renderers that do what the test says."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.calls: list[Call] = []
        #: What is said of renderers that cannot be reached; None: nothing.
        self.fates: dict[str, Fate | None] = {}
        self._changed = changed

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        call = Call(assignment=assignment, changed=self._changed)
        self.calls.append(call)
        self._changed()
        try:
            # None ends the stream, as a connection that breaks off does.
            while (event := await call.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            call.closed = True
            self._changed()

    async def fate(self, renderer: str) -> Fate | None:
        return self.fates.get(renderer, Fate(died=False, detail="its node was lost"))

    @property
    def open(self) -> list[Call]:
        return [call for call in self.calls if not call.closed]


class TellingStore(DispatchStore):
    """The real store; says whenever it was used, and can be told to do something in the middle of a start."""

    def __init__(self, database: Database, used: Callable[[str], None]) -> None:
        super().__init__(database)
        self._used = used
        self.before_start: Callable[[], None] = lambda: None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("take_office", "waiting", "start", "renew", "expired", "finish_each", "refuse", "record_cards"):
            return self._telling(name, found)
        return found

    def _telling(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            if name == "start":
                self.before_start()
            try:
                return call(*args)
            finally:
                self._used(name)

        return called


class Farm:
    """One dispatcher, its pool and its store."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        holder: str = "first",
        storage: Storage | None = None,
        timing: Timing = TIMING,
        name: str = "",
        interactive: InteractiveTerms | None = None,
    ) -> None:
        self.clock, self.batch_store, self.truth = clock, BatchStore(database), Truth(database)
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self.turns = 0
        self.pool = Pool(self._changed.set)
        self.dispatch_store = TellingStore(database, lambda name: self._loop.call_soon_threadsafe(self._used, name))
        self.dispatcher = Dispatcher(
            self.dispatch_store,
            self.pool,
            FLEET,
            holder=holder,
            farm=name,
            clock=clock,
            timing=timing,
            storage=storage,
            interactive=interactive,
        )
        self.task: asyncio.Task[None] | None = None

    def _used(self, name: str) -> None:
        self.turns += name == "waiting"
        self._changed.set()

    def open(self) -> Farm:
        self.task = asyncio.create_task(self.dispatcher.run())
        return self

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await self._changed.wait()
                self._changed.clear()

    async def looks_again(self, times: int = 3) -> None:
        """Return when the dispatcher has looked at the store some more times: what it would do, it has done."""
        seen = self.turns
        await self.until(lambda: self.turns >= seen + times)

    async def goes_on(self, seconds: float, *beats: Any) -> dict[str, Verdict]:
        """Let time pass in steps of a second, the renderers of `beats` being heard all the while."""
        verdicts: dict[str, Verdict] = {}
        for _ in range(int(seconds)):
            self.clock.now += 1
            for one in beats:
                verdicts |= self.dispatcher.beat(one)
            await self.looks_again()
        return verdicts

    def submit(self, *drafts: Any, **options: Any) -> str:
        batch_id, _ = self.batch_store.open_batch("local", name="catalog", **options)
        self.batch_store.add("local", batch_id, drafts)
        self.batch_store.seal("local", batch_id)
        self.dispatcher.nudge()
        return batch_id

    def job(self, batch_id: str, number: int = 1) -> Job:
        return next(job for job in self.batch_store.jobs("local", batch_id) if job.number == number)

    async def called(self, number: int = 1) -> Call:
        """The `number`th call of a renderer."""
        await self.until(lambda: len(self.pool.calls) >= number)
        return self.pool.calls[number - 1]

    async def reaches(self, batch_id: str, state: JobState, number: int = 1) -> Job:
        await self.until(lambda: self.job(batch_id, number).state is state)
        return self.job(batch_id, number)

    async def close(self) -> None:
        if self.task is not None and not self.task.done():
            await self.dispatcher.stop(0)
            await self.task


@pytest.fixture
def clock(sqlite_database):
    return Clock().set_on(sqlite_database)


@pytest.fixture
async def farm(sqlite_database, clock):
    farm = Farm(sqlite_database, clock).open()
    yield farm
    await farm.close()


# -- rendering -------------------------------------------------------------------------------------------------


async def test_a_row_becomes_a_clip(farm):
    made = draft(1, "key", spec=spec("i2vgen-xl", steps=30), row={"number": 1, "extra": {"brand": "Aria"}})
    batch_id = farm.submit(made)
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    assert call.assignment == Assignment(
        attempt_id=call.assignment.attempt_id,
        job_id=farm.job(batch_id).id,
        renderer="renderer-gpu0",
        card_class="c8",
        owner="local",
        still=made.still,
        spec=made.spec,
        content_key="key",
        row=made.row,
    )
    assert (farm.job(batch_id).state, farm.job(batch_id).steps) == (JobState.RUNNING, 30)
    call.report(StepDone(step=7, steps=30))
    await farm.goes_on(2, beat("gpu0"))
    assert (farm.job(batch_id).step, farm.job(batch_id).steps) == (7, 30)
    call.complete()
    job = await farm.reaches(batch_id, JobState.COMPLETED)
    (clip,) = farm.batch_store.clips_of("local", batch_id).values()
    assert job.clip_id == clip.id
    assert clip.objects == objects(call.assignment.attempt_id)
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    assert call.closed


async def test_progress_shows_before_the_first_step(farm):
    batch_id = farm.submit(draft(1, spec=spec("i2vgen-xl", steps=30)))
    farm.dispatcher.beat(beat())
    await farm.called()
    await farm.goes_on(2, beat())
    assert (farm.job(batch_id).step, farm.job(batch_id).steps) == (0, 30)


async def test_a_card_takes_the_next_clip_when_its_frames_are_off_it(farm):
    batch_id = farm.submit(draft(1), draft(2), draft(3))
    farm.dispatcher.beat(beat())
    first = await farm.called()
    await farm.looks_again()
    assert len(farm.pool.calls) == 1, "one clip on the card at a time"
    first.report(CardFree())
    second = await farm.called(2)
    assert farm.job(batch_id).state is JobState.RUNNING, "the first is still being published"
    await farm.looks_again()
    assert len(farm.pool.calls) == 2
    # The first one's end must not free the card under the second.
    first.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    await farm.looks_again()
    assert len(farm.pool.calls) == 2
    second.complete()
    assert (await farm.called(3)).job == "3"


async def test_every_card_gets_work_and_small_clips_leave_large_cards_free(farm):
    farm.submit(draft(1), draft(2, needs_bytes=10 * GIB), draft(3), draft(4, needs_bytes=10 * GIB))
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    await farm.called(2)
    by_renderer = {c.assignment.renderer: c for c in farm.pool.calls}
    assert by_renderer["renderer-small"].job == "1"
    assert by_renderer["renderer-large"].job == "2"


@pytest.mark.parametrize("state", [CardState.DRAINING, CardState.STARTING])
async def test_a_card_that_is_not_ready_gets_nothing(farm, state):
    farm.submit(draft(1))
    farm.dispatcher.beat(beat(state=state))
    await farm.looks_again()
    assert farm.pool.calls == []
    farm.dispatcher.beat(beat(state=CardState.IDLE))
    await farm.called()


async def test_a_job_that_fits_nowhere_is_refused_with_numbers(farm):
    # 2.8 GiB of weights without the encoders, and for 1024p × 16 frames, of which this is nine, 2.42 GiB of activations
    # and 0.63 of a workspace.
    largest = spec("i2vgen-xl", width=1536, height=1536, frames=64)
    batch_id = farm.submit(draft(1, needs_bytes=46 * GIB, spec=largest), draft(2))
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert job.reason == "no_card_fits"
    for number in ("1536×1536", "28.2 GiB", "21.0 GiB"):
        assert number in job.problems[0].message
    assert job.attempts == 0
    assert farm.job(batch_id, 2).state is JobState.QUEUED


async def test_a_clip_no_card_holds_in_its_fastest_layout_runs_in_a_leaner_one(farm):
    # 25.3 GiB with guidance batched, 15.0 GiB split: only the leaner fits the fleet's 21 GiB.
    clip = spec("i2vgen-xl", width=1024, height=1024, frames=32)
    batch_id = farm.submit(draft(1, needs_bytes=footprint(clip).peak_bytes, spec=clip))
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    call = await farm.called()
    assert call.assignment.renderer == "renderer-large"
    call.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)


async def test_a_clip_waits_for_the_card_of_its_fastest_layout_where_there_is_one(farm):
    # 7.2 GiB batched, 5.9 GiB split: it would fit the idle small card, but with other frames than on the large one.
    clip = spec("i2vgen-xl", width=512, height=512, frames=16)
    batch_id = farm.submit(draft(1, needs_bytes=footprint(clip).peak_bytes, spec=clip), draft(2))
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    other = await farm.called()
    assert farm.job(batch_id, 1).state is JobState.QUEUED
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    call = await farm.called(2)
    assert call.assignment.renderer == "renderer-large"
    other.complete()
    call.complete()


async def test_a_clip_too_big_for_its_card_goes_to_a_larger_one(farm):
    batch_id = farm.submit(draft(1, needs_bytes=GIB))
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    small = await farm.called()
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    small.report(OutOfMemory(usable_bytes=7 * GIB, stage="denoise"))
    large = await farm.called(2)
    assert large.assignment.renderer == "renderer-large"
    large.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)


# -- renderers that go away ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "attempts", "outcome"),
    [
        (RendererDiedError("signal 9"), 1, "crashed"),
        (RendererLostError("no route"), 0, "lost"),
        (None, 0, "lost"),
        (ValueError("garbled message"), 1, "error"),
    ],
)
async def test_what_becomes_of_the_job_when_its_renderer_is_gone(farm, event, attempts, outcome):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat("gpu0"))
    (await farm.called()).report(event)
    await farm.reaches(batch_id, JobState.QUEUED)
    (ended,) = (a for a in farm.truth.attempts() if a.outcome)
    assert ended.outcome == outcome
    job = farm.job(batch_id)
    assert (job.attempts, job.releases) == (attempts, 1 - attempts)
    farm.dispatcher.beat(beat("gpu1"))
    second = await farm.called(2)
    second.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)


@pytest.mark.parametrize("event", [RendererDiedError("signal 9"), RendererLostError("no route")])
async def test_a_renderer_that_is_gone_gets_nothing_until_it_is_heard_again(farm, event):
    farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    (await farm.called()).report(event)
    await farm.until(lambda: farm.pool.calls[0].closed)
    await farm.looks_again()
    assert len(farm.pool.calls) == 1
    # Of one that died a last beat may still be on its way.
    farm.clock.now += 11 if isinstance(event, RendererDiedError) else 0
    farm.dispatcher.beat(beat())
    await farm.called(2)


async def test_a_row_that_kills_its_renderers_ends(farm):
    batch_id = farm.submit(draft(1))
    for number in (1, 2, 3):
        farm.dispatcher.beat(beat(f"gpu{number}"))
        (await farm.called(number)).report(RendererDiedError("signal 11"))
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert (job.reason, job.attempts) == ("crashed", 3)


async def test_a_silent_renderer_loses_its_job_to_another(farm):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat("silent"))
    frozen = await farm.called()
    other = beat("other")
    await farm.goes_on(9, other)
    assert not frozen.closed, "a dispatcher's restart takes as long: it is waited for"
    await farm.goes_on(8, other)
    await farm.until(lambda: frozen.closed)
    successor = await farm.called(2)
    assert successor.assignment.renderer == "renderer-other"
    assert successor.assignment.attempt_id != frozen.assignment.attempt_id
    # It wakes up: whatever it still does is void.
    zombie = beat("silent", state=CardState.BUSY, steps={frozen.assignment.attempt_id: (3, 8)})
    assert farm.dispatcher.beat(zombie) == {frozen.assignment.attempt_id: Verdict.STOP}
    successor.complete()
    job = await farm.reaches(batch_id, JobState.COMPLETED)
    assert (job.attempts, job.releases) == (1, 1)
    assert len(farm.truth.clips()) == 1


async def test_a_renderer_silent_for_a_while_keeps_its_job_but_gets_no_other(farm):
    farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    await farm.goes_on(6)
    first.report(CardFree())
    await farm.looks_again()
    assert len(farm.pool.calls) == 1
    farm.dispatcher.beat(beat("gpu0"))
    await farm.called(2)
    assert not first.closed


async def test_a_renderer_back_from_silence_has_still_one_clip_on_its_card(farm):
    farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat())
    first = await farm.called()
    await farm.goes_on(5, beat())
    # Struck off the roster after ten seconds of silence; the lease runs five seconds longer.
    await farm.goes_on(12)
    assert not first.closed
    back = beat(steps={first.assignment.attempt_id: (2, 8)})
    assert farm.dispatcher.beat(back) == {first.assignment.attempt_id: Verdict.GO_ON}
    await farm.looks_again()
    assert len(farm.pool.calls) == 1
    first.report(CardFree())
    await farm.called(2)


async def test_a_new_renderer_of_a_card_takes_the_place_of_the_old(farm):
    """An idle renderer that is killed tells nobody; its successor holds the same card."""
    farm.dispatcher.beat(beat("gpu0", renderer="old"))
    farm.dispatcher.beat(beat("gpu0", renderer="new"))
    farm.submit(draft(1), draft(2))
    assert (await farm.called()).assignment.renderer == "new"
    await farm.looks_again()
    assert len(farm.pool.calls) == 1


async def test_an_attempt_nobody_knows_is_told_to_stop(farm):
    assert farm.dispatcher.beat(beat(steps={"attempt_old": (3, 8)})) == {"attempt_old": Verdict.STOP}


async def test_an_ending_that_cannot_be_written_costs_the_clip_not_the_farm(farm):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    (await farm.called()).report(Completed(objects=None))
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    assert farm.job(batch_id).state is JobState.RUNNING
    await farm.goes_on(12, beat())
    (await farm.called(2)).complete()
    await farm.reaches(batch_id, JobState.COMPLETED)


# -- cancelling ------------------------------------------------------------------------------------------------


async def test_cancelling_reaches_the_renderer(farm):
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    farm.batch_store.cancel("local", batch_id)
    await farm.goes_on(2, beat("gpu0"))
    await farm.until(lambda: farm.batch_store.batch("local", batch_id).status == "cancelled")
    assert call.closed
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    verdicts = farm.dispatcher.beat(beat("gpu0", steps={call.assignment.attempt_id: (1, 8)}))
    assert verdicts == {call.assignment.attempt_id: Verdict.STOP}
    other = farm.submit(draft(3))
    await farm.looks_again()
    assert len(farm.pool.calls) == 1, "its thread is still in a step: another clip would wait behind it"
    farm.dispatcher.beat(beat("gpu0"))
    (await farm.called(2)).complete()
    await farm.reaches(other, JobState.COMPLETED, 3)


# -- checkpoints -----------------------------------------------------------------------------------------------


def resumable(number: int = 1, key: str | None = None, **changes: Any) -> Any:
    return draft(number, key, spec=spec("i2vgen-xl-tiny", steps=50), **changes)


def saved(call: Call, step: int) -> StoredCheckpoint:
    """The call's renderer did `step` steps and put a checkpoint aside."""
    checkpoint = StoredCheckpoint(checkpoint_key(call.assignment.job_id, call.assignment.attempt_id, step), step)
    call.report(StepDone(step=step, steps=50))
    call.report(CheckpointSaved(checkpoint))
    return checkpoint


@pytest.mark.parametrize("event", [RendererDiedError("signal 9"), RendererLostError("no route"), None])
async def test_a_clip_goes_on_from_its_last_checkpoint_elsewhere(farm, event):
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    assert first.assignment.resume is None
    saved(first, 20)
    checkpoint = saved(first, 30)
    first.report(StepDone(step=33, steps=50))
    first.report(event)
    job = await farm.reaches(batch_id, JobState.QUEUED)
    assert (job.checkpoint, job.step, job.steps) == (checkpoint, 30, 50), "what is lost is no progress"
    farm.dispatcher.beat(beat("gpu1"))
    second = await farm.called(2)
    assert second.assignment.resume == checkpoint
    stretch = Stretch(step=30, attempt=first.assignment.attempt_id, card="gpu0", card_class="c8")
    assert second.assignment.done == (stretch,)
    assert farm.job(batch_id).step == 30
    # And once more: the provenance of the clip names everyone who worked on it.
    third_from = saved(second, 40)
    second.report(RendererLostError("no route"))
    farm.dispatcher.beat(beat("gpu2"))
    third = await farm.called(3)
    assert third.assignment.resume == third_from
    attempt = second.assignment.attempt_id
    assert third.assignment.done == (stretch, Stretch(step=40, attempt=attempt, card="gpu1", card_class="c8"))
    third.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    made = farm.batch_store.attempts_of("local", batch_id)
    assert [a.resumed_step for a in made] == [0, 30, 40]
    assert [a.resumed_from for a in made] == [None, made[0].id, made[1].id]


@pytest.mark.parametrize("fault", [RendererDiedError("signal 11"), Errored(detail="not finite")])
async def test_a_checkpoint_that_ends_badly_is_not_gone_on_from_again(farm, fault):
    farm.submit(resumable())
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    checkpoint = saved(first, 30)
    first.report(fault)
    farm.dispatcher.beat(beat("gpu1"))
    second = await farm.called(2)
    assert second.assignment.resume == checkpoint
    saved(second, 40)  # made out of the one before, so no better
    second.report(fault)
    farm.dispatcher.beat(beat("gpu2"))
    third = await farm.called(3)
    assert (third.assignment.resume, third.assignment.done) == (None, ())


async def test_a_clip_out_of_memory_goes_on_on_a_larger_card(farm):
    farm.submit(resumable())
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    small = await farm.called()
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    last = StoredCheckpoint(checkpoint_key(small.assignment.job_id, small.assignment.attempt_id, 50), 50)
    small.report(OutOfMemory(usable_bytes=7 * GIB, stage="decode", checkpoint=last))
    large = await farm.called(2)
    assert (large.assignment.renderer, large.assignment.resume) == ("renderer-large", last)


async def test_a_renderer_can_name_nothing_but_its_own_checkpoints(farm):
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    foreign = StoredCheckpoint("clips/video_1/attempt_1/video.mp4", 30)
    first.report(CheckpointSaved(foreign))
    first.report(CheckpointFailed(step=40, detail="no space is left"))
    first.report(Stopped(checkpoint=foreign))
    assert (await farm.reaches(batch_id, JobState.QUEUED)).checkpoint is None


async def test_a_refused_checkpoint_shows_in_progress_and_in_the_attempt(farm):
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat("gpu0"))
    first = await farm.called()
    saved(first, 30)
    first.report(RendererLostError("no route"))
    farm.dispatcher.beat(beat("gpu1"))
    second = await farm.called(2)
    for step in (30, 0, 1):
        second.report(StepDone(step=step, steps=50))
    await farm.goes_on(2, beat("gpu1"))
    assert farm.job(batch_id).step == 1
    second.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    last = farm.batch_store.attempts_of("local", batch_id)[-1]
    assert (last.resumed_step, last.resumed_from) == (0, None)


async def test_a_preempted_clip_is_saved_given_back_and_goes_on(farm):
    batch_id = farm.submit(resumable())
    job_id = farm.job(batch_id).id
    assert not farm.dispatcher.preempt(job_id), "it does not run"
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    busy = beat("gpu0", steps={call.assignment.attempt_id: (7, 50)})
    assert set(farm.dispatcher.beat(busy).values()) == {Verdict.GO_ON}
    assert farm.dispatcher.preempt(job_id)
    assert set(farm.dispatcher.beat(busy).values()) == {Verdict.CHECKPOINT}
    checkpoint = saved(call, 8)
    call.report(Stopped(checkpoint=checkpoint))
    again = await farm.called(2)
    assert again.assignment.resume == checkpoint
    job = farm.job(batch_id)
    assert (job.attempts, job.releases) == (0, 1)
    assert farm.truth.tally("preemptions", outcome="preempt") == 1
    # Its frames are there: from here on it is quicker to let it end.
    again.report(CardFree())
    await farm.looks_again()
    assert not farm.dispatcher.preempt(job_id)
    again.complete()
    await farm.reaches(batch_id, JobState.COMPLETED)
    assert farm.batch_store.attempts_of("local", batch_id)[0].outcome == "stopped"


async def test_a_clip_that_cannot_be_resumed_is_not_preempted(farm):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    assert not farm.dispatcher.preempt(farm.job(batch_id).id)
    assert farm.dispatcher.beat(beat(steps={call.assignment.attempt_id: (1, 8)})) == {
        call.assignment.attempt_id: Verdict.GO_ON
    }


async def test_a_renderer_that_never_gets_to_leave_is_stopped_in_the_end(farm):
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat())
    call = await farm.called()
    assert farm.dispatcher.preempt(farm.job(batch_id).id)
    busy = beat(steps={call.assignment.attempt_id: (7, 50)})
    await farm.goes_on(29, busy)
    assert not call.closed
    await farm.goes_on(3, busy)
    await farm.until(lambda: call.closed)
    assert farm.truth.attempts()[0].outcome == "stopped"


async def test_a_farm_that_closes_has_its_clips_saved_first(farm):
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat())
    call = await farm.called()
    stopping = asyncio.create_task(farm.dispatcher.stop(grace_s=0))
    busy = beat(steps={call.assignment.attempt_id: (7, 50)})
    await asyncio.sleep(0)
    assert set(farm.dispatcher.beat(busy).values()) == {Verdict.CHECKPOINT}
    checkpoint = saved(call, 8)
    call.report(Stopped(checkpoint=checkpoint))
    await stopping
    job = farm.job(batch_id)
    assert (job.state, job.checkpoint, job.attempts) == (JobState.QUEUED, checkpoint, 0)
    assert farm.truth.tally("preemptions", outcome="drain") == 1


async def test_a_farm_that_closes_waits_for_no_renderer_for_ever(sqlite_database, clock):
    farm = Farm(sqlite_database, clock, timing=replace(TIMING, farewell_s=0.01)).open()
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat())
    call = await farm.called()
    checkpoint = saved(call, 8)
    await farm.until(call.events.empty)
    async with asyncio.timeout(20):
        await farm.dispatcher.stop(grace_s=0)
    assert call.closed
    assert farm.job(batch_id).checkpoint == checkpoint, "the last one it told of"


# -- checkpoints nobody needs ------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "storage")


@pytest.fixture
async def storing(sqlite_database, clock, storage):
    farm = Farm(sqlite_database, clock, storage=storage).open()
    yield farm
    await farm.close()


def kept(storage: Storage, call: Call, step: int) -> StoredCheckpoint:
    """As `saved`, with an object in storage."""
    checkpoint = saved(call, step)
    storage.put_bytes(checkpoint.key, b"latents")
    return checkpoint


async def lost_half_way(storing: Farm, storage: Storage) -> tuple[str, StoredCheckpoint]:
    """A batch whose clip waits again, and the checkpoint that it goes on from."""
    batch_id = storing.submit(resumable())
    storing.dispatcher.beat(beat("gpu0"))
    call = await storing.called()
    checkpoint = kept(storage, call, 10)
    call.report(RendererLostError("no route"))
    await storing.reaches(batch_id, JobState.QUEUED)
    return batch_id, checkpoint


async def goes_on_from_another(storing: Farm, shared: StoredCheckpoint) -> tuple[str, Call]:
    """A batch with an equal clip, which runs first and goes on from where the other was lost."""
    batch_id = storing.submit(resumable(priority=5))
    await storing.looks_again()
    storing.dispatcher.beat(beat("gpu1"))
    call = await storing.called(2)
    assert call.assignment.job_id == storing.job(batch_id).id
    assert call.assignment.resume == shared
    return batch_id, call


async def test_only_the_newest_checkpoint_is_kept_and_none_of_a_finished_clip(storing, storage):
    batch_id = storing.submit(resumable())
    storing.dispatcher.beat(beat("gpu0"))
    call = await storing.called()
    first = kept(storage, call, 10)
    await storing.goes_on(2, beat("gpu0"))
    assert storing.job(batch_id).checkpoint == first
    assert storage.exists(first.key)
    second = kept(storage, call, 20)
    await storing.goes_on(2, beat("gpu0"))
    await storing.until(lambda: not storage.exists(first.key))
    assert storage.exists(second.key)
    call.report(RendererLostError("no route"))
    storing.dispatcher.beat(beat("gpu1"))
    call = await storing.called(2)
    assert storage.exists(second.key), "what it goes on from"
    kept(storage, call, 30)
    call.complete()
    await storing.reaches(batch_id, JobState.COMPLETED)
    await storing.goes_on(2, beat("gpu1"))
    await storing.until(lambda: storing.job(batch_id).checkpoint is None)
    assert storage.names_under("checkpoints") == []


async def test_a_checkpoint_under_suspicion_is_deleted(storing, storage):
    storing.submit(resumable())
    storing.dispatcher.beat(beat("gpu0"))
    call = await storing.called()
    bad = kept(storage, call, 10)
    call.report(RendererDiedError("signal 11"))
    storing.dispatcher.beat(beat("gpu1"))
    call = await storing.called(2)
    assert storage.exists(bad.key)
    call.report(RendererDiedError("signal 11"))
    await storing.until(lambda: not storage.exists(bad.key))


async def test_a_checkpoint_that_an_equal_clip_goes_on_from_too_is_left(storing, storage):
    """The second job goes on from where the first was lost, and ends badly: the first still has what it had."""
    _, shared = await lost_half_way(storing, storage)
    second, call = await goes_on_from_another(storing, shared)
    call.report(RendererDiedError("signal 11"))
    await storing.until(lambda: storing.job(second).checkpoint is None)
    storing.batch_store.cancel("local", second)
    storing.dispatcher.beat(beat("gpu2"))
    call = await storing.called(3)
    assert call.assignment.resume == shared
    await storing.goes_on(2, beat("gpu2"))
    assert storage.exists(shared.key)


async def test_a_checkpoint_that_only_an_equal_clip_names_goes_with_that_one(storing, storage):
    first, shared = await lost_half_way(storing, storage)
    second, call = await goes_on_from_another(storing, shared)
    call.report(RendererLostError("no route"))
    await storing.reaches(second, JobState.QUEUED)
    storing.batch_store.cancel("local", second)
    storing.dispatcher.beat(beat("gpu2"))
    call = await storing.called(3)
    assert (call.assignment.job_id, call.assignment.resume) == (storing.job(first).id, shared)
    call.report(RendererDiedError("signal 11"))
    await storing.until(lambda: storing.job(first).checkpoint is None)
    assert storage.exists(shared.key), "the cancelled one could be handed in again, and go on from it"
    storing.batch_store.cancel("local", first)
    await storing.goes_on(12)
    await storing.until(lambda: not storage.exists(shared.key))


async def test_nothing_goes_on_from_a_checkpoint_that_is_being_swept(storing, storage):
    """Storage is slow, and an equal clip is handed in while the first one's checkpoint is deleted."""
    first, swept = await lost_half_way(storing, storage)
    asked = []

    def slowly(prefix: str, *only) -> None:
        if not asked:
            asked.append(storing.submit(resumable()))
            claimed = storing.dispatch_store.start([(storing.job(asked[0]), card())], 60)
            asked.append(claimed[0])
        Storage.delete_under(storage, prefix, *only)

    storage.delete_under = slowly
    storing.batch_store.cancel("local", first)
    await storing.goes_on(12)
    await storing.until(lambda: not storage.exists(swept.key))
    assert (asked[1].resume, asked[1].resumed_step) == (None, 0)


async def test_cancelling_a_waiting_job_deletes_what_it_would_have_gone_on_from(storing, storage):
    batch_id, checkpoint = await lost_half_way(storing, storage)
    assert storage.exists(checkpoint.key)
    storing.batch_store.cancel("local", batch_id)
    await storing.goes_on(2)
    await storing.until(lambda: not storage.exists(checkpoint.key))


async def test_what_no_store_ever_heard_of_goes_when_a_dispatcher_takes_office(
    storing, sqlite_database, clock, storage
):
    batch_id = storing.submit(resumable(1), resumable(2))
    storing.dispatcher.beat(beat())
    call = await storing.called()
    call.complete()
    await storing.reaches(batch_id, JobState.COMPLETED)
    waiting = storing.job(batch_id, 2).id
    await storing.close()
    # A zombie wrote after its job had ended; the others may be needed, or be another farm's.
    for job_id in (call.assignment.job_id, waiting, "video_of_another_store"):
        storage.put_bytes(checkpoint_key(job_id, "attempt_x", 5), b"latents")
    second = Farm(sqlite_database, clock, "second", storage=storage).open()
    await second.until(lambda: len(storage.names_under("checkpoints")) == 2)
    assert storage.names_under("checkpoints") == sorted([waiting, "video_of_another_store"])
    await second.close()


# -- the dispatcher's own end ----------------------------------------------------------------------------------


async def test_stopping_lets_clips_finish_and_starts_no_more(farm):
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    stopping = asyncio.create_task(farm.dispatcher.stop(grace_s=1000))
    # Longer than a lease: it must be renewed while the farm drains.
    for _ in range(30):
        farm.clock.now += 1
        farm.dispatcher.beat(beat(steps={call.assignment.attempt_id: (1, 8)}))
        renewals = farm.truth.attempts()[0].lease_until
        await farm.until(lambda seen=renewals: farm.truth.attempts()[0].lease_until > seen)
    assert not call.closed
    assert not stopping.done()
    call.complete()
    await stopping
    await farm.task
    assert farm.job(batch_id).state is JobState.COMPLETED
    assert farm.job(batch_id, 2).state is JobState.QUEUED
    assert len(farm.pool.calls) == 1


async def test_stopping_without_grace_gives_clips_back(farm):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    await farm.dispatcher.stop(grace_s=0)
    assert farm.task.done()
    assert call.closed
    job = farm.job(batch_id)
    assert (job.state, job.attempts, job.releases) == (JobState.QUEUED, 0, 1)
    assert farm.truth.attempts()[0].outcome == "stopped"


async def test_stopping_in_the_middle_of_a_start_leaves_nothing_running(farm):
    loop, stopping = asyncio.get_running_loop(), []

    def stop() -> None:
        stopping.append(asyncio.ensure_future(farm.dispatcher.stop(grace_s=0)))

    # On the store's thread; the loop gets to it before the claims come back.
    farm.dispatch_store.before_start = lambda: loop.call_soon_threadsafe(stop)
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat("gpu0"))
    farm.dispatcher.beat(beat("gpu1"))
    await farm.until(lambda: stopping)
    await stopping[0]
    assert farm.pool.open == []
    assert farm.dispatcher.running_count() == 0
    assert [j.state for j in farm.batch_store.jobs("local", batch_id)] == [JobState.QUEUED, JobState.QUEUED]


async def test_a_dispatcher_stopped_before_it_ran_returns(sqlite_database, clock):
    async with asyncio.timeout(5):
        await Farm(sqlite_database, clock).dispatcher.stop(grace_s=0)


async def test_a_second_dispatcher_takes_over_and_nothing_runs_twice(farm, sqlite_database, clock):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat("gpu0"))
    old_call = await farm.called()
    second = Farm(sqlite_database, clock, "second").open()
    try:
        await second.until(lambda: second.job(batch_id).state is JobState.QUEUED)
        clock.now += 2
        async with asyncio.timeout(20):
            await farm.task
        assert old_call.closed
        zombie = beat("gpu0", steps={old_call.assignment.attempt_id: (1, 8)})
        assert second.dispatcher.beat(zombie) == {old_call.assignment.attempt_id: Verdict.STOP}
        await second.looks_again()
        assert second.pool.calls == [], "the card is still the zombie's"
        second.dispatcher.beat(beat("gpu0"))
        new_call = await second.called()
        assert [a.outcome for a in second.truth.attempts()] == ["lost", None]
        new_call.complete()
        job = await second.reaches(batch_id, JobState.COMPLETED)
        assert (job.attempts, job.releases) == (1, 1)
        assert len(farm.pool.calls) == len(second.pool.calls) == 1
    finally:
        await second.close()


@pytest.fixture
async def two_farms(sqlite_database, clock):
    """One in office, and another on the same store that has been refused the office."""
    first = Farm(sqlite_database, clock, "first", name="one").open()
    await first.looks_again()
    second = Farm(sqlite_database, clock, "second", name="two").open()
    try:
        await second.until(lambda: second.dispatcher.stands_by)
        yield first, second
    finally:
        await first.close()
        await second.close()


async def test_another_farm_stands_by_while_the_first_is_heard(two_farms, clock):
    first, second = two_farms
    assert second.dispatcher.stands_by == "first of farm one is in office"
    batch_id = first.submit(draft(1))
    second.dispatcher.beat(beat("gpu1", renderer="its"))
    first.dispatcher.beat(beat("gpu0"))
    call = await first.called()
    for _ in range(OFFICE_S + 2):
        clock.now += 1
        first.dispatcher.beat(beat("gpu0", steps={call.assignment.attempt_id: (1, 8)}))
        second.dispatcher.nudge()
        await first.looks_again()
    assert second.dispatcher.stands_by
    assert second.pool.calls == []
    call.complete()
    job = await first.reaches(batch_id, JobState.COMPLETED)
    assert (job.attempts, job.releases) == (1, 0)


async def test_another_farm_takes_over_at_once_when_the_first_leaves(two_farms):
    first, second = two_farms
    batch_id = first.submit(draft(1))
    first.dispatcher.beat(beat("gpu0"))
    call = await first.called()
    await first.close()
    second.dispatcher.nudge()
    second.dispatcher.beat(beat("gpu1", renderer="its"))
    (await second.called()).complete()
    job = await second.reaches(batch_id, JobState.COMPLETED)
    assert call.closed
    assert (job.attempts, job.releases) == (1, 1)
    assert not second.dispatcher.stands_by


async def test_another_farm_takes_over_when_the_first_falls_silent(sqlite_database, clock):
    DispatchStore(sqlite_database).take_office("first", "one")
    second = Farm(sqlite_database, clock, "second", name="two").open()
    try:
        batch_id = second.submit(draft(1))
        clock.now += OFFICE_S - 1
        await second.until(lambda: second.dispatcher.stands_by)
        clock.now += 1
        second.dispatcher.nudge()
        second.dispatcher.beat(beat("gpu1"))
        (await second.called()).complete()
        await second.reaches(batch_id, JobState.COMPLETED)
    finally:
        await second.close()


async def test_a_farm_that_stands_by_can_be_closed(two_farms):
    first, second = two_farms
    async with asyncio.timeout(20):
        await second.close()
    batch_id = first.submit(draft(1))
    first.dispatcher.beat(beat("gpu0"))
    (await first.called()).complete()
    await first.reaches(batch_id, JobState.COMPLETED)


async def test_a_completion_under_a_closed_epoch_is_void(farm, sqlite_database):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    DispatchStore(sqlite_database).take_office("second")
    call.complete()
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    assert farm.truth.clips() == []
    assert farm.job(batch_id).state is JobState.RUNNING, "its end is the next dispatcher's to write"


async def test_a_broken_store_ends_the_loop_with_its_error(sqlite_database, clock):
    farm = Farm(sqlite_database, clock)
    farm.dispatch_store.waiting = lambda _per_kind: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await farm.dispatcher.run()
    async with asyncio.timeout(5):
        await farm.dispatcher.stop(0)


# -- cards that fail again and again -----------------------------------------------------------------------------


async def failing(farm, count: int, ended: Ended, first: int = 1) -> None:
    """`count` calls from the `first` on, each of another job, end so."""
    for number in range(first, first + count):
        call = await farm.called(number)
        call.report(ended)
        await farm.until(lambda call=call: call.closed and farm.dispatcher.running_count() == 0)
        farm.dispatcher.beat(beat())


async def test_a_card_that_breaks_clips_rests_and_is_then_probed(farm):
    batch_id = farm.submit(*(draft(number, priority=9 - number) for number in range(1, 4)))
    farm.dispatcher.beat(beat())
    broken = Errored(sticky=True, detail="illegal address")
    # The first job is the first of the queue each time: it fails for good before the others are tried.
    await failing(farm, 7, broken)
    assert [call.job for call in farm.pool.calls] == ["1", "1", "1", "2", "2", "2", "3"]
    await farm.looks_again()
    assert len(farm.pool.calls) == 7, "three jobs failed on it: the third waits"
    assert farm.job(batch_id, 3).state is JobState.QUEUED
    farm.clock.now += 15 * 60
    farm.dispatcher.beat(beat())
    (await farm.called(8)).complete()
    await farm.reaches(batch_id, JobState.COMPLETED, 3)


async def test_while_a_card_rests_another_takes_its_clips(farm):
    farm.submit(*(draft(number, priority=9 - number) for number in range(1, 4)))
    farm.dispatcher.beat(beat())
    await failing(farm, 7, Crashed())
    farm.dispatcher.beat(beat("gpu1"))
    call = await farm.called(8)
    assert (call.job, call.assignment.renderer) == ("3", "renderer-gpu1")


async def test_a_renderer_about_to_exit_gets_nothing_more(farm):
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    call.report(Errored(sticky=True, detail="illegal address"))
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    await farm.looks_again()
    assert len(farm.pool.calls) == 1, "its last beat said that it was idle"
    farm.dispatcher.beat(beat(state=CardState.DRAINING, steps={"attempt_beside": (3, 5)}))
    await farm.looks_again()
    assert len(farm.pool.calls) == 1
    assert farm.job(batch_id).attempts == 1
    farm.dispatcher.beat(beat(renderer="successor"))
    assert (await farm.called(2)).assignment.renderer == "successor"


async def test_a_clip_that_fits_no_card_after_all_tells_all_it_was_tried_on(farm):
    def ended(card: str, usable_bytes: int) -> Ended:
        overflow = Overflow(
            stage="denoise",
            layout="guidance=split",
            step=2,
            predicted_bytes=GIB,
            measured_bytes=2 * GIB,
            usable_bytes=usable_bytes,
            card=card,
        )
        return OutOfMemory(usable_bytes=usable_bytes, detail="full", overflows=(overflow,))

    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat("small", usable_bytes=7 * GIB))
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    (await farm.called(1)).report(ended("small", 7 * GIB))
    (await farm.called(2)).report(ended("large", 21 * GIB))
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert (job.reason, job.attempts) == ("out_of_memory", 1)
    assert job.problems[0].message.index("on small") < job.problems[0].message.index("on large")


# -- a store that does not answer --------------------------------------------------------------------------------


class Outage:
    """The database of a farm goes away and comes back: every new cursor fails as a lost server's would."""

    def __init__(self, database: Database) -> None:
        self.out = False
        self.refused = 0
        sa.event.listen(database.engine, "before_cursor_execute", self._refuse)

    def _refuse(self, *_args: Any) -> None:
        if self.out:
            self.refused += 1
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("the server closed the connection"))


@pytest.fixture
def outage(sqlite_database, monkeypatch):
    monkeypatch.setattr("cluster.dispatch.store_calls._RETRY_S", (0.005, 0.02))
    return Outage(sqlite_database)


async def test_a_store_that_is_away_ends_nothing(farm, outage, sqlite_database):
    batch_id = farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    outage.out = True
    await farm.until(lambda: outage.refused >= 5)
    busy = beat(steps={call.assignment.attempt_id: (3, 8)})
    assert farm.dispatcher.beat(busy) == {call.assignment.attempt_id: Verdict.GO_ON}, "clips go on meanwhile"
    call.complete()
    refused = outage.refused
    await farm.until(lambda: outage.refused >= refused + 5)
    assert not farm.task.done()
    outage.out = False
    await farm.reaches(batch_id, JobState.COMPLETED)
    ended = {a.outcome for a in farm.truth.attempts()} - {None}
    assert ended == {"completed"}, "its end was written once the store was back"
    second = await farm.called(2)
    assert second.job == "2"
    second.complete()
    await farm.reaches(batch_id, JobState.COMPLETED, 2)


async def test_leases_that_ran_out_while_the_store_was_away_are_renewed_first(farm, outage):
    farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    outage.out = True
    await farm.until(lambda: outage.refused >= 3)
    farm.clock.now += 60
    outage.out = False
    busy = beat(steps={call.assignment.attempt_id: (3, 8)})
    await farm.goes_on(3, busy)
    assert not call.closed
    assert farm.truth.attempts()[0].outcome is None


async def test_whoever_took_office_during_the_outage_stays_in_it(farm, outage, sqlite_database, clock):
    farm.submit(draft(1))
    farm.dispatcher.beat(beat("gpu0"))
    call = await farm.called()
    outage.out = True
    await farm.until(lambda: outage.refused >= 3)
    outage.out = False
    second = Farm(sqlite_database, clock, "second").open()
    clock.now += 2
    async with asyncio.timeout(20):
        await farm.task
    assert call.closed
    # It answers beats until its process is gone, and must not stop what its successor started.
    known_to_the_second = beat("gpu0", steps={"attempt_of_the_second": (1, 8)})
    assert farm.dispatcher.beat(known_to_the_second) == {"attempt_of_the_second": Verdict.GO_ON}
    await second.close()


async def test_closing_waits_for_no_store_for_ever(sqlite_database, clock, outage):
    farm = Farm(sqlite_database, clock, timing=replace(TIMING, farewell_s=0.05)).open()
    batch_id = farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    outage.out = True
    await farm.until(lambda: outage.refused >= 3)
    async with asyncio.timeout(20):
        await farm.dispatcher.stop(grace_s=0)
        await farm.task
    assert call.closed
    outage.out = False
    assert farm.job(batch_id).state is JobState.RUNNING, "the next dispatcher finds it, or its lease runs out"


async def test_a_table_that_is_missing_is_no_outage(sqlite_database, clock):
    farm = Farm(sqlite_database, clock)
    with sqlite_database.engine.begin() as c:
        c.execute(sa.text("DROP TABLE cards"))
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        await farm.dispatcher.run()


# -- renderers that hang -----------------------------------------------------------------------------------------


async def test_a_renderer_that_hangs_loses_its_clip_and_gets_no_other(farm):
    batch_id = farm.submit(draft(1), draft(2))
    hung = beat("gpu0")
    farm.dispatcher.beat(hung)
    call = await farm.called()
    at_work = beat("gpu0", steps={call.assignment.attempt_id: (3, 8)})
    call.report(StepDone(step=3, steps=8))
    await farm.until(call.events.empty)
    await farm.looks_again()
    for _ in range(4):
        farm.clock.now += TIMING.stall_s / 4 - 1
        farm.dispatcher.beat(at_work)
        await farm.looks_again(2)
        assert not call.closed
    farm.clock.now += 20
    farm.dispatcher.beat(at_work)
    await farm.until(lambda: call.closed)
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    job = farm.job(batch_id)
    assert (job.state, job.attempts) == (JobState.QUEUED, 1)
    assert "hangs" in farm.truth.attempts()[0].detail
    # Its thread is still in that step: whatever is sent there would wait behind it.
    assert farm.dispatcher.beat(at_work) == {call.assignment.attempt_id: Verdict.STOP}
    await farm.looks_again()
    assert len(farm.pool.calls) == 1
    farm.dispatcher.beat(beat("gpu1"))
    assert (await farm.called(2)).assignment.renderer == "renderer-gpu1"
    farm.dispatcher.beat(beat("gpu0"))
    assert (await farm.called(3)).assignment.renderer == "renderer-gpu0"


async def test_a_clip_that_waits_for_memory_is_no_clip_that_hangs(farm):
    farm.submit(draft(1))
    farm.dispatcher.beat(beat())
    call = await farm.called()
    for _ in range(3):
        farm.clock.now += TIMING.stall_s - 10
        farm.dispatcher.beat(beat(steps={call.assignment.attempt_id: (0, 8)}, waiting_for="denoise needs 9 GiB"))
        await farm.looks_again(2)
    assert not call.closed


# -- how often the store is asked --------------------------------------------------------------------------------


async def test_a_roster_that_does_not_change_is_written_seldom(sqlite_database, clock):
    farm = Farm(sqlite_database, clock)
    written: list[list[str]] = []
    record_cards = farm.dispatch_store.record_cards
    farm.dispatch_store.record_cards = lambda beats: (written.append([b.renderer for b in beats]), record_cards(beats))[
        1
    ]
    farm.open()
    try:
        await farm.goes_on(17, beat("gpu0"), beat("gpu1"))
        quiet = len(written)
        assert 3 <= quiet <= 5, "once in five seconds"
        changed = beat("gpu1", usable_bytes=GIB)
        await farm.goes_on(2, beat("gpu0"), changed)
        assert ["renderer-gpu1"] in written[quiet:], "what changed is written at once, and nothing else"
        assert len(farm.batch_store.cards()) == 2
    finally:
        await farm.close()
