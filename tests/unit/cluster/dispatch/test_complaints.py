"""What users of other farms complain of, each as a test on the real dispatcher and store.

Pausing and saving a queue, N images being N jobs, cancelling that frees the card, and a status that says what is: these
four run against a whole farm, in `tests/acceptance/test_verbs.py`.
"""

from __future__ import annotations

import sqlalchemy as sa

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.dispatch.protocol import RendererDiedError, RendererLostError, StepDone
from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm as Owner
from cluster.fleet.cards import CardState
from cluster.jobs.model import JobState
from cluster.jobs.outcomes import Errored, Invalid, OutOfMemory, TooBig
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import attempts, jobs
from pipeline.units import GIB
from tests.building import FLEET, beat, card, completed, draft, still_png
from tests.unit.cluster.dispatch.test_dispatcher import clock, farm  # noqa: F401  # fixtures

OOM = OutOfMemory(stage="denoise", detail="out of memory", usable_bytes=FLEET.largest_bytes)


async def test_one_clip_out_of_memory_does_not_end_the_night(farm):  # noqa: F811
    """A batch used to stop at its first OOM; here the clip ends with its story and all others are rendered."""
    farm.dispatcher.beat(beat("a", usable_bytes=21 * GIB))
    batch_id = farm.submit(*[draft(n) for n in range(1, 7)])
    handled = 0
    while not farm.batch_store.batch("local", batch_id).done:
        await farm.until(
            lambda seen=handled: len(farm.pool.calls) > seen or farm.batch_store.batch("local", batch_id).done
        )
        for call in farm.pool.calls[handled:]:
            handled += 1
            if call.job == "3":
                call.report(OOM)
            else:
                call.complete()
            await farm.until(lambda call=call: call.closed)
        farm.dispatcher.beat(beat("a", usable_bytes=21 * GIB))
    states = {job.number: job.state for job in farm.batch_store.jobs("local", batch_id)}
    assert states.pop(3) is JobState.FAILED
    assert set(states.values()) == {JobState.COMPLETED}
    assert farm.job(batch_id, 3).problems[0].remedy


async def test_memory_decides_where_a_clip_runs_not_the_number_of_cards(farm):  # noqa: F811
    """Ray counts GPUs; two free small ones are no place for a large clip."""
    for name in ("small1", "small2"):
        farm.dispatcher.beat(beat(name, usable_bytes=7 * GIB))
    batch_id = farm.submit(draft(1, needs_bytes=20 * GIB), draft(2, needs_bytes=GIB))
    call = await farm.called()
    assert call.job == "2"
    await farm.looks_again(5)
    assert [c.job for c in farm.pool.calls] == ["2"]
    farm.dispatcher.beat(beat("large", usable_bytes=21 * GIB))
    large = await farm.called(2)
    assert (large.job, large.assignment.renderer) == ("1", beat("large").renderer)
    call.complete()
    large.complete()
    await farm.reaches(batch_id, JobState.COMPLETED, 1)


async def test_a_backend_that_died_is_offered_nothing(farm):  # noqa: F811
    """A dead renderer used to go on accepting jobs, and each was lost in it."""
    farm.dispatcher.beat(beat("dead"))
    batch_id = farm.submit(*[draft(n) for n in range(1, 5)])
    (await farm.called()).report(RendererDiedError("gone"))
    await farm.until(lambda: not farm.pool.open)
    await farm.looks_again(5)
    assert len(farm.pool.calls) == 1, "the others wait for a card that is there"
    farm.dispatcher.beat(beat("alive"))
    second = await farm.called(2)
    assert second.assignment.renderer == beat("alive").renderer
    second.complete()
    assert farm.job(batch_id, 4).state is JobState.QUEUED


async def test_no_ending_leaves_a_reservation_behind(farm):  # noqa: F811
    """Reservations used to leak with hosts that died in the wrong moment; here nothing is held after any ending."""
    endings = [
        Errored(detail="broke"),
        Invalid(detail="bad row"),
        OOM,
        TooBig(usable_bytes=1),
        RendererDiedError("gone"),
        RendererLostError("cut off"),
        None,
    ]
    batch_id = farm.submit(*[draft(n) for n in range(1, len(endings) + 1)])
    for number, ending in enumerate(endings):
        name = f"card{number}"
        farm.dispatcher.beat(beat(name, usable_bytes=21 * GIB))
        call = await farm.called(number + 1)
        call.report(StepDone(step=1, steps=8))
        # Its card is going away: what is preempted waits for another one.
        attempt = {call.assignment.attempt_id: (1, 8)}
        farm.dispatcher.beat(beat(name, usable_bytes=21 * GIB, state=CardState.DRAINING, steps=attempt))
        call.report(ending)
        await farm.until(lambda: farm.dispatcher.running_count() == 0)
        farm.dispatcher.beat(beat(name, usable_bytes=21 * GIB, state=CardState.DRAINING))
    assert farm.dispatcher.roster() == {}
    open_attempts = farm.truth.rows(sa.select(attempts).where(attempts.c.outcome.is_(None)))
    assert open_attempts == []
    running = farm.truth.rows(sa.select(jobs).where(jobs.c.state == JobState.RUNNING.value))
    assert running == [], [job.number for job in running]
    assert farm.batch_store.batch("local", batch_id).counts.total == len(endings)


def test_a_result_is_known_to_every_replica_and_never_stale(tmp_path, sqlite_database):
    """A clip used to exist only on the replica that made it, and stayed completed after its file was gone."""
    storage = Storage(str(tmp_path / "storage"))
    one, other = BatchStore(sqlite_database), BatchStore(Database(sqlite_database.url))
    owner = Owner(one, storage)
    still = owner.put_still(still_png())
    rows = [
        IncomingRow(
            position=1,
            number=1,
            name="cup",
            still=still,
            row=Row(number=1, id="cup", image="cup.png", prompt="camera panning left"),
        )
    ]
    batch = owner.submit(rows, Defaults(model="camera"), name="catalog")
    dispatch_store = DispatchStore(sqlite_database)
    dispatch_store.take_office("test")
    (claim,) = dispatch_store.start([(job, card("gpu")) for job in dispatch_store.waiting(1)], 10)
    ended = completed(claim)
    assert ended.objects is not None
    storage.put_bytes(ended.objects.video, b"mp4")
    assert dispatch_store.finish(claim, ended, after_attempt(claim.job, ended, FLEET))
    (found,) = other.jobs("local", batch.id)
    assert found.state is JobState.COMPLETED
    video = other.clips_of("local", batch.id)[found.clip_id].objects.video
    assert storage.exists(video)
    # The file is lost: the same row is rendered again, not said to be done.
    storage.delete(video)
    again = Owner(other, storage).submit(rows, Defaults(model="camera"), name="catalog")
    assert one.jobs("local", again.id)[0].state is JobState.QUEUED
