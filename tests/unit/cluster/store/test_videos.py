"""Jobs as videos, on both stores."""

from __future__ import annotations

import pytest

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.store import BatchStore, DispatchStore
from cluster.store.commands import CommandStore
from cluster.store.lookup import NoSuchJobError
from cluster.store.videos import video, videos
from tests.building import FLEET, claim_one, completed, draft

OWNER = "local"


@pytest.fixture
def batch_store(database) -> BatchStore:
    return BatchStore(database)


def submit(batch_store: BatchStore, rows: int, key: str, owner: str = OWNER, source: str = "") -> list[str]:
    batch_id, _ = batch_store.open_batch(owner, name="catalog", source=source)
    batch_store.add(owner, batch_id, [draft(n, f"{key}{n:02}".ljust(64, "0")) for n in range(1, rows + 1)])
    batch_store.seal(owner, batch_id)
    return [job.id for job in batch_store.jobs(owner, batch_id)]


def test_a_video_is_its_job_with_clip_and_newest_attempt(database, batch_store) -> None:
    (job_id,) = submit(batch_store, 1, "a", source="shop")
    found = video(database, OWNER, job_id)
    assert (found.job, found.source) == (batch_store.job(OWNER, job_id), "shop")
    assert (found.clip, found.started_at, found.card) == (None, None, None)
    dispatch_store = DispatchStore(database)
    dispatch_store.take_office("x")
    claim = claim_one(dispatch_store, found.job)
    running = video(database, OWNER, job_id)
    assert (running.job.state, running.card, running.ended_at) == (JobState.RUNNING, claim.card, None)
    assert running.started_at is not None
    ended = completed(claim)
    dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
    done = video(database, OWNER, job_id)
    assert done.job == batch_store.job(OWNER, job_id)
    assert done.clip == batch_store.clips(OWNER, [str(done.job.clip_id)])[str(done.job.clip_id)]
    # A row that shares the clip has it too, and made no attempt.
    (again,) = submit(batch_store, 1, "a")
    shared = video(database, OWNER, again)
    assert (shared.clip, shared.started_at) == (done.clip, None)


def test_a_queued_job_of_a_paused_batch_is_held(database, batch_store) -> None:
    (job_id,) = submit(batch_store, 1, "a")
    CommandStore(database).batch(OWNER, batch_store.job(OWNER, job_id).batch_id, Verb.PAUSE)
    found = video(database, OWNER, job_id).job
    assert (found.state, found.reason) == (JobState.HELD, "paused")
    assert found == batch_store.job(OWNER, job_id)


def test_pages_are_in_the_order_of_handing_in(database, batch_store) -> None:
    mine = [*submit(batch_store, 3, "a"), *submit(batch_store, 2, "b")]
    submit(batch_store, 4, "c", owner="other")
    for newest_first, order in ((False, sorted(mine)), (True, sorted(mine, reverse=True))):
        read, after = [], None
        while page := videos(database, OWNER, after=after, limit=2, newest_first=newest_first):
            read += [one.job.id for one in page]
            after = read[-1]
        assert read == order


def test_anothers_video_is_not_there(database, batch_store) -> None:
    (job_id,) = submit(batch_store, 1, "a", owner="other")
    with pytest.raises(NoSuchJobError):
        video(database, OWNER, job_id)


def test_stills_of_an_owner(database, batch_store) -> None:
    names = sorted(f"{n:x}" * 64 for n in range(5))
    for name in names:
        batch_store.record_still(OWNER, name, (4, 3))
    batch_store.record_still("other", "f" * 64, (4, 3))
    assert [name for name, _ in batch_store.stills(OWNER, limit=3)] == names[:3]
    assert [name for name, _ in batch_store.stills(OWNER, after=names[2])] == names[3:]
    assert batch_store.still_at(OWNER, names[0]) is not None
    assert batch_store.still_at(OWNER, "f" * 64) is None
    assert batch_store.forget_still(OWNER, names[0])
    assert not batch_store.forget_still(OWNER, names[0])
    assert not batch_store.forget_still(OWNER, "f" * 64)
    assert batch_store.still_at("other", "f" * 64) is not None
    assert batch_store.still_size(OWNER, names[0]) is None
