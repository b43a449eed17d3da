"""Storage that cannot be written pauses the farm, costs nobody anything, and the farm goes on by itself."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from cluster.dispatch.protocol import StepDone
from cluster.fleet.cards import storage_fault
from cluster.jobs.model import MAX_RELEASES, JobState
from cluster.jobs.outcomes import Errored
from tests.building import Clock, beat, draft
from tests.quota import quota_storage, set_room
from tests.unit.cluster.dispatch.test_dispatcher import Farm

CARDS = [beat(f"gpu{n}") for n in range(3)]


@pytest.fixture
async def farm(sqlite_database):
    clock = Clock().set_on(sqlite_database)
    storage = quota_storage()
    farm = Farm(sqlite_database, clock, storage=storage)
    # A try a millisecond: the test waits for what follows from it, not for time.
    farm.dispatcher._storage_watch._pauses_s = (0.001, 0.001)
    yield farm.open()
    set_room(2**40)
    await farm.close()


async def passing(farm: Farm, holds: Callable[[], object]) -> None:
    """Let seconds pass, all cards being heard, until it holds: a farm that is paused looks at little but its leases."""
    async with asyncio.timeout(20):
        while True:
            farm.clock.now += 1
            for one in CARDS:
                farm.dispatcher.beat(one)
            if holds():
                return
            await asyncio.sleep(0.002)


DENIED = PermissionError(errno.EACCES, "denied")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
SERVER = RuntimeError("An error occurred (503) when calling PutObject: SlowDown")


@pytest.mark.parametrize("error", [None, DENIED, READ_ONLY, SERVER], ids=["full", "denied", "read-only", "503"])
async def test_a_batch_outlives_a_storage_that_cannot_be_written(farm, error):
    batch_id = farm.submit(*(draft(n) for n in range(1, 21)))
    for one in CARDS:
        farm.dispatcher.beat(one)
    # Whatever was started before it was known ends so, on every card.
    calls = [await farm.called(n) for n in (1, 2, 3)]
    set_room(0, error)
    for call in calls:
        call.report(StepDone(step=8, steps=8))
        call.report(Errored(detail="could not be written", storage=True))
        await farm.until(lambda call=call: call.closed)
    await passing(farm, lambda: not farm.dispatcher.running_count())
    for _ in range(10):
        farm.dispatcher.nudge()
        await passing(farm, lambda: storage_fault(farm.batch_store.cards()))
    assert len(farm.pool.calls) == 3, "nothing starts"
    jobs = farm.batch_store.jobs("local", batch_id)
    assert {(job.state, job.attempts, job.releases) for job in jobs} == {(JobState.QUEUED, 0, 0)}
    set_room(2**40)
    while not farm.batch_store.batch("local", batch_id).done:
        await passing(farm, lambda: farm.pool.open or farm.batch_store.batch("local", batch_id).done)
        for call in farm.pool.open:
            call.complete()
            await farm.until(lambda call=call: call.closed)
    jobs = farm.batch_store.jobs("local", batch_id)
    assert {(job.state, job.attempts, job.releases) for job in jobs} == {(JobState.COMPLETED, 1, 0)}
    assert len(farm.pool.calls) == 23, "each is rendered once, but for those that had begun"
    await passing(farm, lambda: not storage_fault(farm.batch_store.cards()))


async def test_a_card_whose_renderer_alone_cannot_write_gets_nothing_until_it_can(farm):
    farm.submit(draft(1), draft(2))
    farm.dispatcher.beat(beat("gpu0", storage_fault="its mount is read-only"))
    farm.dispatcher.beat(beat("gpu1"))
    first = await farm.called()
    assert first.assignment.renderer == "renderer-gpu1"
    await farm.looks_again(5)
    assert len(farm.pool.calls) == 1
    farm.dispatcher.beat(beat("gpu0"))
    assert (await farm.called(2)).assignment.renderer == "renderer-gpu0"


async def test_a_row_that_only_itself_cannot_be_written_ends_and_says_why(farm):
    """Say one larger than what the quota leaves: the farm can write, and it is rendered again and again."""
    batch_id = farm.submit(draft(1))
    for n in range(1, MAX_RELEASES + 1):
        farm.dispatcher.beat(beat())
        call = await farm.called(n)
        call.report(Errored(detail="no room for 2 GiB", storage=True))
        await farm.until(lambda: farm.dispatcher.running_count() == 0)
    job = await farm.reaches(batch_id, JobState.FAILED)
    assert (job.reason, job.attempts) == ("error", 1)
    assert "no room for 2 GiB" in job.problems[0].message
