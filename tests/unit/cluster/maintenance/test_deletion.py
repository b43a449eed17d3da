"""Batches that are over are deleted, with what only they show; whatever breaks it off, and beside a dispatcher."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import JobState, StoredCheckpoint
from cluster.jobs.outcomes import Invalid
from cluster.jobs.transitions import RefusedError, Verb
from cluster.maintenance import deletion
from cluster.maintenance.audit import check
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from cluster.storage import Storage, StorageError
from cluster.store import deletion as statements
from cluster.store.lookup import NoSuchBatchError
from cluster.store.schema import batches, clips, idempotency_keys, jobs
from cluster.store.unsealed import UNSEALED_S
from tests.building import FLEET, PROBLEM, Clock, bad_draft, card, draft, spec
from tests.unit.cluster.maintenance.test_retention import (
    DAY,
    ME,
    Kept,
    hand_in,
    lose,
    publish,
    start,
    write,
)

CLIP = spec("i2vgen-xl-tiny", steps=50)


@pytest.fixture
def storage(tmp_path, clock) -> Kept:
    return Kept(tmp_path / "storage", clock)


@pytest.fixture
def farm(batch_store, storage) -> Farm:
    return Farm(batch_store, storage)


def render(batch_store, dispatch_store, storage, *keys: str) -> str:
    batch_id = hand_in(batch_store, *(draft(n, key) for n, key in enumerate(keys, 1)))
    for job in dispatch_store.waiting(1000):
        publish(storage, dispatch_store, start(dispatch_store, job.content_key))
    return batch_id


def test_a_batch_goes_with_its_clips_and_nothing_else_does(farm, database, batch_store, dispatch_store, storage, truth):
    kept = render(batch_store, dispatch_store, storage, "a", "shared")
    before, there = truth.everything(), storage.names()
    gone = render(batch_store, dispatch_store, storage, "shared", "b", "c")
    storage.put_bytes("clips/notes/mine", b"somebody's")
    counted = {name: truth.tally(name) for name in ("clips", "attempts", "gpu_seconds")}

    plan = farm.delete_batch(gone, dry_run=True)
    assert (plan.deleted, plan.rows, plan.clips, plan.shared) == (False, 3, 2, 1)
    assert plan.freed_bytes == 2000, "the videos alone"
    assert len(batch_store.batches(ME)) == 2, "nothing went"

    done = farm.delete_batch(gone)
    assert (done.deleted, done.rows, done.clips, done.shared, done.freed_bytes) == (True, 3, 2, 1, 2006)
    assert storage.names() == there | {"clips/notes/mine"}
    assert [batch.id for batch in batch_store.batches(ME, everything=True)] == [kept]
    after = truth.everything()
    for table in ("batches", "jobs", "attempts", "stills", "cards"):
        assert after[table] == before[table], table
    assert {name: truth.tally(name) for name in counted} == counted, "counters never fall"
    assert check(database, storage) == []
    with pytest.raises(NoSuchBatchError):
        farm.delete_batch(gone)


def test_the_clip_that_a_deleted_batch_rendered_stays_for_those_who_share_it(
    farm, database, batch_store, dispatch_store, storage
):
    first = render(batch_store, dispatch_store, storage, "shared", "b")
    second = render(batch_store, dispatch_store, storage, "shared")
    farm.delete_batch(first)
    (job,) = batch_store.jobs(ME, second)
    (clip,) = batch_store.clips(ME, [job.clip_id]).values()
    assert clip.expired_at is None
    assert storage.exists(clip.objects.video)
    assert check(database, storage) == []
    # A sweep leaves it too, and it goes when the last that shows it does.
    Sweeper(database, storage, Keep()).run()
    assert storage.exists(clip.objects.video)
    assert farm.delete_batch(second).freed_bytes == 1003
    assert not any(name.startswith("clips/") for name in storage.names())
    assert check(database, storage) == []


def test_what_is_handed_in_again_is_rendered_again(farm, batch_store, dispatch_store, storage, database):
    farm.delete_batch(render(batch_store, dispatch_store, storage, "a"))
    again = hand_in(batch_store, draft(1, "a"))
    (job,) = batch_store.jobs(ME, again)
    assert job.state is JobState.QUEUED
    publish(storage, dispatch_store, start(dispatch_store, "a"))
    assert batch_store.batch(ME, again).status == "completed"
    assert check(database, storage) == []


def test_leftovers_of_lost_attempts_and_checkpoints_go_too(farm, batch_store, dispatch_store, storage, database):
    batch_id = hand_in(batch_store, draft(1, "a", spec=CLIP), bad_draft(2))
    zombie = start(dispatch_store, "a")
    key = f"checkpoints/{zombie.job.id}/{zombie.attempt_id}/10"
    storage.put_bytes(key, b"latents")
    storage.put_bytes(f"checkpoints/{zombie.job.id}/{zombie.attempt_id}/notes.txt", b"somebody's")
    lose(dispatch_store, zombie, checkpoint=StoredCheckpoint(key, 10))
    publish(storage, dispatch_store, start(dispatch_store, "a"))
    write(storage, zombie)
    assert farm.delete_batch(batch_id).freed_bytes == 2 * 1003 + len(b"latents")
    assert storage.names() == {f"checkpoints/{zombie.job.id}/{zombie.attempt_id}/notes.txt"}, (
        "what no farm has written stays"
    )
    assert check(database, storage) == []


def test_a_checkpoint_that_an_equal_row_goes_on_from_stays(farm, batch_store, dispatch_store, storage, database):
    mine = hand_in(batch_store, draft(1, "a", spec=CLIP))
    claim = start(dispatch_store, "a")
    key = f"checkpoints/{claim.job.id}/{claim.attempt_id}/10"
    storage.put_bytes(key, b"latents")
    lose(dispatch_store, claim, checkpoint=StoredCheckpoint(key, 10))
    farm.command_batch(mine, Verb.CANCEL)
    heir = hand_in(batch_store, draft(1, "a", spec=CLIP))
    again = start(dispatch_store, "a")
    assert again.job.id == batch_store.jobs(ME, heir)[0].id
    assert again.resume is not None
    farm.delete_batch(mine)
    assert storage.exists(key)
    assert check(database, storage) == []


# -- what may be deleted -----------------------------------------------------------------------------------------


def test_what_has_not_ended_is_refused_and_says_what_to_do(farm, batch_store, dispatch_store, storage, truth):
    queued = hand_in(batch_store, draft(1, "a"), draft(2, "b"))
    held = hand_in(batch_store, draft(1, "c"))
    farm.command_batch(held, Verb.HOLD)
    start(dispatch_store, "a")
    before = truth.everything()
    for batch_id, words in ((queued, "being rendered"), (held, "have not ended")):
        for dry_run in (True, False):
            with pytest.raises(RefusedError, match=words):
                farm.delete_batch(batch_id, dry_run=dry_run)
    assert truth.everything() == before
    farm.command_batch(held, Verb.CANCEL)
    assert farm.delete_batch(held).rows == 1


def test_another_owner_s_batch_is_not_there(batch_store, dispatch_store, storage, truth):
    batch_id = render(batch_store, dispatch_store, storage, "a")
    before = truth.everything()
    with pytest.raises(NoSuchBatchError):
        Farm(batch_store, storage, owner="anna").delete_batch(batch_id)
    assert truth.everything() == before


def test_one_that_was_never_handed_in_whole_goes_once_nobody_hands_it_in(farm, batch_store, clock, truth, database):
    batch_id, _ = batch_store.open_batch(ME, name="catalog", idempotency_key="spring")
    batch_store.add(ME, batch_id, [bad_draft(1)])
    with pytest.raises(RefusedError, match="being handed in"):
        farm.delete_batch(batch_id)
    clock.now += UNSEALED_S + 1
    assert farm.delete_batch(batch_id).rows == 1
    assert truth.rows(sa.select(idempotency_keys)) == []
    assert check(database) == []
    _, is_new = batch_store.open_batch(ME, name="catalog", idempotency_key="spring", fingerprint="another")
    assert is_new, "its key is free"


def test_a_run_that_nobody_waits_for_goes_with_the_rows_that_never_started(
    farm, batch_store, dispatch_store, clock, database, truth
):
    batch_id, _ = batch_store.open_batch(ME, name="catalog", source="x", attended_s=15)
    batch_store.add(ME, batch_id, [draft(1, "a"), draft(2, "b")])
    batch_store.seal(ME, batch_id)
    waits = hand_in(batch_store, draft(1, "c", after=batch_store.jobs(ME, batch_id)[0].id))
    with pytest.raises(RefusedError):
        farm.delete_batch(batch_id)
    clock.now += 20
    assert farm.delete_batch(batch_id).rows == 2
    (waiting,) = batch_store.jobs(ME, waits)
    assert waiting.state is JobState.FAILED, "told that what it waits for will not come"
    farm.command_batch(waits, Verb.RETRY)
    assert batch_store.jobs(ME, waits)[0].state is JobState.QUEUED, "and waits for nothing that is gone"
    assert truth.tally("clips", outcome="cancelled") == 2
    assert check(database) == []


# -- whatever breaks it off, and beside others ---------------------------------------------------------------------


def test_a_storage_that_fails_loses_nothing_and_the_next_time_goes_on(
    farm, batch_store, dispatch_store, storage, database, monkeypatch
):
    batch_id = render(batch_store, dispatch_store, storage, *(f"k{n}" for n in range(6)))
    monkeypatch.setattr(statements.next_rows, "__defaults__", (2,))
    removed: list[str] = []
    remove = Storage.remove

    def break_off(self, entry):
        if len(removed) == 11:
            raise StorageError(entry.key, "it is away", "Wait.")
        removed.append(entry.key)
        remove(self, entry)

    monkeypatch.setattr(Storage, "remove", break_off)
    with pytest.raises(StorageError):
        farm.delete_batch(batch_id)
    left = farm.batch(batch_id)
    assert left.counts.total == 4, "two rows are gone with their eight objects"
    assert [batch.id for batch in batch_store.batches(ME)] == [batch_id], "it is listed as long as it is there"
    assert check(database, storage) == []
    monkeypatch.setattr(Storage, "remove", remove)
    assert farm.delete_batch(batch_id).rows == 4
    assert not any(name.startswith("clips/") for name in storage.names())
    assert check(database, storage) == []


def test_a_row_that_is_put_back_to_work_meanwhile_stops_it(
    farm, batch_store, dispatch_store, storage, database, monkeypatch
):
    batch_id = hand_in(batch_store, draft(1, "a"))
    claim = start(dispatch_store, "a")
    bad = Invalid(problem=PROBLEM)
    dispatch_store.finish(claim, bad, after_attempt(dispatch_store.current_job(claim), bad, FLEET))
    delete = deletion._delete_objects

    def retry_meanwhile(*given):
        farm.command_batch(batch_id, Verb.RETRY)
        return delete(*given)

    monkeypatch.setattr(deletion, "_delete_objects", retry_meanwhile)
    with pytest.raises(RefusedError):
        farm.delete_batch(batch_id)
    assert batch_store.jobs(ME, batch_id)[0].state is JobState.QUEUED
    assert check(database, storage) == []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_deleted_between_renders_the_store_is_whole_and_others_keep_all_they_show(
    seed, farm, batch_store, dispatch_store, storage, database, clock: Clock, truth
):
    rng = random.Random(seed)
    alive: dict[str, list[str]] = {}
    for _ in range(25):
        clock.now += rng.randrange(DAY)
        what = rng.choice(["hand in", "hand in", "render", "render", "delete", "delete", "cancel", "sweep"])
        if what == "hand in":
            keys = rng.sample([f"key{n}" for n in range(6)], rng.randint(1, 4))
            drafts = [draft(n, key, spec=CLIP) for n, key in enumerate(keys, 1)]
            alive[hand_in(batch_store, *drafts, bad_draft(9))] = keys
        elif what == "render" and (waiting := dispatch_store.waiting(100)):
            (claim,) = dispatch_store.start([(rng.choice(waiting), card("gpu0"))], 10)
            if rng.random() < 0.3:
                write(storage, claim)
                lose(dispatch_store, claim)
            else:
                publish(storage, dispatch_store, claim)
        elif what == "cancel" and alive:
            farm.command_batch(rng.choice(list(alive)), Verb.CANCEL)
        elif what == "sweep":
            Sweeper(database, storage, Keep()).run()
        elif what == "delete" and alive:
            chosen = rng.choice(list(alive))
            others = {b: [j.state for j in batch_store.jobs(ME, b)] for b in alive if b != chosen}
            try:
                farm.delete_batch(chosen)
            except RefusedError:
                assert not farm.batch(chosen).done
                continue
            del alive[chosen]
            assert {b: [j.state for j in batch_store.jobs(ME, b)] for b in alive} == others
        assert check(database, storage) == []
    for batch_id in list(alive):
        farm.command_batch(batch_id, Verb.CANCEL)
        farm.delete_batch(batch_id)
    assert truth.rows(sa.select(jobs)) == truth.rows(sa.select(batches)) == []
    assert truth.rows(sa.select(clips).where(clips.c.expired_at.is_(None))) == []
    assert not any(name.startswith("clips/") for name in storage.names())
    assert truth.tally("attempts") == truth.tally("attempts_deleted")
    assert check(database, storage) == []
