"""What is kept for how long: the policy by itself, and sweeps of a store and its storage with a farm beside them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import Objects, StoredCheckpoint
from cluster.jobs.outcomes import Completed, Invalid, Lost
from cluster.maintenance.audit import check
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper, older, unreferenced
from cluster.storage import Storage, StorageError, StoredObject
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import jobs
from serve.cli.main import app
from serve.settings import FarmArgs
from tests.building import FLEET, Clock, card, draft, objects, spec, still_png

ME = "local"
DAY = 86_400
CLIP = spec("i2vgen-xl-tiny", steps=50)


class Kept(Storage):
    """A storage whose objects are as old as the test's clock says."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder)
        self.folder, self.clock = folder, clock

    def _put(self, key, source, *, replace, headers=None):
        there = (self.folder / key).exists()
        super()._put(key, source, replace=replace, headers=headers)
        if not there or replace:
            os.utime(self.folder / key, (self.clock.now, self.clock.now))

    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def storage(tmp_path, clock) -> Kept:
    return Kept(tmp_path / "storage", clock)


def objects_of(job_id: str, attempt_id: str) -> Objects:
    return objects(f"{job_id}/{attempt_id}")


def publish(storage: Storage, dispatch_store: DispatchStore, claim) -> Objects:
    made = write(storage, claim)
    ended = Completed(objects=made)
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
    return made


def write(storage: Storage, claim) -> Objects:
    made = objects_of(claim.job.id, claim.attempt_id)
    for key in (made.poster, made.spritesheet, made.provenance):
        storage.put_bytes(key, b"x")
    storage.put_bytes(made.video, b"x" * made.video_bytes)
    return made


def lose(dispatch_store: DispatchStore, claim, **facts) -> None:
    ended = Lost(**facts)
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def hand_in(batch_store: BatchStore, *drafts) -> str:
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, drafts)
    batch_store.seal(ME, batch_id)
    return batch_id


def start(dispatch_store: DispatchStore, key: str):
    (job,) = [job for job in dispatch_store.waiting(100) if job.content_key == key]
    (claim,) = dispatch_store.start([(job, card(job.id))], 10)
    return claim


# -- the policy ------------------------------------------------------------------------------------------------


def test_nothing_is_let_go_of_by_default():
    cutoffs = Keep().cutoffs(1e9)
    assert (cutoffs.outputs, cutoffs.failed, cutoffs.checkpoints, cutoffs.cache) == (None, None, None, None)
    assert cutoffs.unreferenced == 1e9 - DAY


def test_days_become_times_and_outputs_are_never_younger_than_the_grace():
    cutoffs = Keep(outputs_days=30, failed_days=0, checkpoints_days=2, cache_days=0.5, grace_s=7200).cutoffs(1e9)
    assert cutoffs.outputs == 1e9 - 30 * DAY
    assert cutoffs.failed == 1e9 - 7200
    assert cutoffs.checkpoints == 1e9 - 2 * DAY
    assert cutoffs.cache == 1e9 - DAY / 2


def test_unreferenced_is_what_no_attempt_in_use_wrote_before_the_grace():
    def entry(attempt: str, age: float) -> StoredObject:
        return StoredObject(key=f"clips/job/{attempt}/video.mp4", size=1, modified_at=1000 - age)

    entries = [entry("used", 500), entry("lost", 500), entry("zombie", 99), entry("lost", 100)]
    stray = StoredObject(key="clips/job/note", size=1, modified_at=0)
    assert unreferenced([*entries, stray], {"used"}, 900) == [entries[1]]
    assert older(entries, 901) == [entries[0], entries[1], entries[3]]


def test_a_farm_s_settings_become_the_policy():
    args = {"card_classes": {"c8": {}}, "keep_outputs_days": 30, "longest_clip_s": 100_000}
    keep = FarmArgs.model_validate(args).keep()
    assert (keep.outputs_days, keep.failed_days) == (30, None)
    assert keep.grace_s == 200_000, "longer than any publication"


# -- outputs ---------------------------------------------------------------------------------------------------


def test_clips_of_old_jobs_expire_and_counters_stay(database, batch_store, dispatch_store, clock, storage, truth):
    old = hand_in(batch_store, draft(1, "old"), draft(2, "shared"))
    made = {key: publish(storage, dispatch_store, start(dispatch_store, key)) for key in ("old", "shared")}
    clock.now += 20 * DAY
    new = hand_in(batch_store, draft(1, "shared"), draft(2, "new"))
    publish(storage, dispatch_store, start(dispatch_store, "new"))
    clock.now += 15 * DAY
    tallies = {name: truth.tally(name) for name in ("clips", "attempts", "gpu_seconds")}
    before = truth.everything()
    assert Sweeper(database, storage, Keep(outputs_days=30), dry_run=True).run().clips == 1
    assert truth.everything() == before
    swept = Sweeper(database, storage, Keep(outputs_days=30)).run()
    assert (swept.clips, swept.failed) == (1, 0)
    assert not storage.exists(made["old"].video)
    assert storage.exists(made["shared"].video), "somebody asked for it again since"
    (expired, kept) = batch_store.jobs(ME, old)
    clips = batch_store.clips(ME, {expired.clip_id, kept.clip_id})
    assert (clips[expired.clip_id].expired_at, clips[kept.clip_id].expired_at) == (clock.now, None)
    # The job is what it was; its batch too.
    assert expired.state == "completed"
    assert batch_store.batch(ME, old).counts.total == 2
    assert {name: truth.tally(name) for name in tallies} == tallies
    assert check(database, storage) == []
    assert len(batch_store.jobs(ME, new)) == 2
    assert Sweeper(database, storage, Keep(outputs_days=30)).run().clips == 0


def test_what_has_expired_is_rendered_again_and_is_there_for_the_old_job_too(
    database, batch_store, dispatch_store, clock, storage
):
    old = hand_in(batch_store, draft(1, "same"))
    publish(storage, dispatch_store, start(dispatch_store, "same"))
    clock.now += 40 * DAY
    Sweeper(database, storage, Keep(outputs_days=30)).run()
    assert batch_store.clips_of_keys(ME, ["same"]) == []
    new = hand_in(batch_store, draft(1, "same"))
    assert batch_store.jobs(ME, new)[0].state == "queued", "its clip is gone"
    made = publish(storage, dispatch_store, start(dispatch_store, "same"))
    (before,), (after,) = batch_store.clips_of(ME, old).values(), batch_store.clips_of(ME, new).values()
    assert before == after
    assert (after.objects, after.expired_at, after.created_at) == (made, None, clock.now)
    assert check(database, storage) == []
    clock.now += 29 * DAY
    assert Sweeper(database, storage, Keep(outputs_days=30)).run().clips == 0


def test_a_clip_that_is_asked_for_during_the_sweep_is_kept(
    database, batch_store, dispatch_store, clock, storage, monkeypatch
):
    hand_in(batch_store, draft(1, "same"))
    made = publish(storage, dispatch_store, start(dispatch_store, "same"))
    clock.now += 40 * DAY
    from cluster.store import retention

    found = retention.old_clips

    def then_asked(*args, **more):
        page = found(*args, **more)
        hand_in(batch_store, draft(1, "same"))
        return page

    monkeypatch.setattr(retention, "old_clips", then_asked)
    assert Sweeper(database, storage, Keep(outputs_days=30)).run().clips == 0
    assert storage.exists(made.video)
    assert check(database, storage) == []


def test_many_clips_expire_page_by_page(database, batch_store, dispatch_store, clock, storage, monkeypatch):
    monkeypatch.setattr("cluster.maintenance.retention._AT_ONCE", 3)
    hand_in(batch_store, *(draft(n) for n in range(1, 12)))
    for job in dispatch_store.waiting(100):
        publish(storage, dispatch_store, start(dispatch_store, job.content_key))
    clock.now += 40 * DAY
    hand_in(batch_store, draft(1, "key3"), draft(2, "key4"), draft(3, "key5"))
    assert Sweeper(database, storage, Keep(outputs_days=30)).run().clips == 8
    assert len([key for key in storage.names() if key.endswith("video.mp4")]) == 3


# -- objects that nothing names --------------------------------------------------------------------------------


def test_what_no_clip_names_is_swept_after_the_grace(database, batch_store, dispatch_store, clock, storage):
    hand_in(batch_store, draft(1, "a"), draft(2, "b"), draft(3, "c"))
    lost = start(dispatch_store, "a")
    left = write(storage, lost)
    lose(dispatch_store, lost)
    made = publish(storage, dispatch_store, start(dispatch_store, "a"))
    # One that is still being published, however long that takes, and a zombie's, written a moment ago.
    slow = start(dispatch_store, "b")
    pending = write(storage, slow)
    clock.now += DAY + 1
    zombie = start(dispatch_store, "c")
    lose(dispatch_store, zombie)
    fresh = write(storage, zombie)
    # Of another farm on the same storage.
    storage.put_bytes("clips/video_elsewhere/attempt/video.mp4", b"x")
    os.utime(storage.folder / "clips/video_elsewhere/attempt/video.mp4", (0, 0))
    swept = Sweeper(database, storage, Keep()).run()
    assert (swept.unreferenced, swept.foreign, swept.freed_bytes) == (4, 1, 1003)
    assert not storage.exists(left.video)
    for kept in (made, pending, fresh):
        assert all(storage.exists(key) for key in (kept.video, kept.poster, kept.spritesheet, kept.provenance))
    assert storage.exists("clips/video_elsewhere/attempt/video.mp4")
    ended = Completed(objects=pending)
    assert dispatch_store.finish(slow, ended, after_attempt(dispatch_store.current_job(slow), ended, FLEET))
    assert check(database, storage) == []
    clock.now += DAY + 1
    assert Sweeper(database, storage, Keep()).run().unreferenced == 4, "the zombie's"


def test_what_is_published_while_the_storage_is_listed_is_kept(database, batch_store, dispatch_store, clock, storage):
    hand_in(batch_store, draft(1, "a"))
    claim = start(dispatch_store, "a")
    made = write(storage, claim)
    clock.now += 2 * DAY

    class Publishing(Kept):
        def entries(self, prefix: str) -> list[StoredObject]:
            found = super().entries(prefix)
            if prefix.startswith("clips/"):
                ended = Completed(objects=made)
                dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
            return found

    assert Sweeper(database, Publishing(storage.folder, clock), Keep()).run().unreferenced == 0
    assert check(database, storage) == []


def test_an_object_that_cannot_be_deleted_is_told_and_stops_nothing(
    database, batch_store, dispatch_store, clock, storage
):
    hand_in(batch_store, draft(1, "a"), draft(2, "b"))
    for key in ("a", "b"):
        claim = start(dispatch_store, key)
        write(storage, claim)
        lose(dispatch_store, claim)

    class Stubborn(Kept):
        def remove(self, entry: StoredObject) -> None:
            if entry.key.endswith("poster.jpg"):
                raise StorageError(entry.key, f"{entry.key!r} could not be deleted", "Ask its owner.")
            super().remove(entry)

    clock.now += 2 * DAY
    swept = Sweeper(database, Stubborn(storage.folder, clock), Keep()).run()
    assert (swept.unreferenced, swept.failed) == (6, 2)
    assert "poster.jpg" in swept.errors[0]
    assert Sweeper(database, storage, Keep()).run().unreferenced == 2


# -- stills, checkpoints, the cache ----------------------------------------------------------------------------


def test_stills_go_with_the_last_job_that_wants_them(database, batch_store, dispatch_store, clock, storage):
    farm = Farm(batch_store, storage)
    names = {name: farm.put_still(still_png(seed=n)) for n, name in enumerate(("done", "failed", "waits", "alone"))}
    hand_in(
        batch_store,
        draft(1, "a", still=names["done"]),
        draft(2, "b", still=names["failed"]),
        draft(3, "c", still=names["waits"]),
    )
    publish(storage, dispatch_store, start(dispatch_store, "a"))
    claim = start(dispatch_store, "b")
    ended = Invalid()
    dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))

    def there() -> set[str]:
        return {name for name, sha256 in names.items() if storage.exists(Storage.still_key(sha256))}

    clock.now += DAY - 1
    assert Sweeper(database, storage, Keep()).run().stills == 0, "its row may be on its way"
    clock.now += 2
    assert Sweeper(database, storage, Keep()).run().stills == 1
    assert there() == {"done", "failed", "waits"}
    clock.now += 10 * DAY
    Sweeper(database, storage, Keep(failed_days=20)).run()
    assert there() == {"done", "failed", "waits"}
    Sweeper(database, storage, Keep(failed_days=7)).run()
    assert there() == {"done", "waits"}
    Sweeper(database, storage, Keep(outputs_days=7)).run()
    assert there() == {"waits"}
    # Handed in again it is checked and stored again.
    assert batch_store.still_size(ME, names["done"]) is None
    assert farm.put_still(still_png(seed=0)) == names["done"]
    assert there() == {"done", "waits"}


def test_a_still_that_is_handed_in_again_is_left_for_its_row(database, batch_store, clock, storage):
    farm = Farm(batch_store, storage)
    sha256 = farm.put_still(still_png())
    clock.now += 30 * DAY
    assert farm.put_still(still_png()) == sha256, "it is there: nothing is written"
    assert Sweeper(database, storage, Keep()).run().stills == 0
    hand_in(batch_store, draft(1, still=sha256))
    clock.now += 30 * DAY
    assert Sweeper(database, storage, Keep(outputs_days=1, failed_days=1)).run().stills == 0


def test_old_checkpoints_of_waiting_jobs_go_and_the_jobs_begin_anew(
    database, batch_store, dispatch_store, clock, storage, truth
):
    hand_in(batch_store, draft(1, "a", spec=CLIP), draft(2, "b", spec=CLIP), draft(3, "c", spec=CLIP))
    kept = {}
    for key in ("a", "b", "c"):
        claim = start(dispatch_store, key)
        kept[key] = StoredCheckpoint(f"checkpoints/{claim.job.id}/{claim.attempt_id}/10", 10)
        storage.put_bytes(kept[key].key, b"x")
        dispatch_store.renew({}, 10, {claim.attempt_id: kept[key]})
        if key != "c":
            lose(dispatch_store, claim)
        if key == "a":
            clock.now += 5 * DAY
    swept = Sweeper(database, storage, Keep(checkpoints_days=3)).run()
    assert swept.checkpoints == 1
    assert [storage.exists(kept[key].key) for key in "abc"] == [False, True, True]
    assert start(dispatch_store, "a").resume is None
    assert start(dispatch_store, "b").resume == kept["b"]
    clock.now += 50 * DAY
    assert Sweeper(database, storage, Keep(checkpoints_days=3)).run().checkpoints == 0, "they run"
    assert check(database, storage) == []


def test_what_no_farm_has_written_is_left(database, batch_store, dispatch_store, clock, storage):
    """A storage may be a bucket of many things, or shared with another farm."""
    hand_in(batch_store, draft(1, "a"))
    claim = start(dispatch_store, "a")
    lose(dispatch_store, claim)
    left = write(storage, claim)
    foreign = {
        f"clips/{claim.job.id}/{claim.attempt_id}/notes.txt",
        f"clips/{claim.job.id}/for-the-shop/video.mov",
        "cache/thumbnails/index.json",
        "cache/text/notes",
        "stills/ab/photo.jpg",
        "stills/summer/photo.jpg",
        # Another farm's.
        "stills/ab/" + "ab" + "0" * 62,
    }
    for key in foreign:
        storage.put_bytes(key, b"mine")
    half = storage.folder / "stills/ab/.DS_Store"
    half.write_bytes(b"mine")
    os.utime(half, (0, 0))
    clock.now += 400 * DAY
    swept = Sweeper(database, storage, Keep(cache_days=1, outputs_days=1, failed_days=1)).run()
    assert storage.names() == {*foreign, "stills/ab/.DS_Store"}
    assert not storage.exists(left.video)
    assert (swept.foreign, swept.stills, swept.cached, swept.unreferenced) == (len(foreign) + 1, 0, 0, 4)


def test_the_cache_goes_by_age(database, clock, storage):
    for n, kind in enumerate(["text", "picture", "draft"]):
        clock.now += DAY
        storage.put_bytes(f"cache/{kind}/{n:064x}", b"xx")
    assert Sweeper(database, storage, Keep()).run().cached == 0
    swept = Sweeper(database, storage, Keep(cache_days=1.5)).run()
    assert (swept.cached, swept.freed_bytes) == (1, 2)
    assert storage.names() == {f"cache/picture/{1:064x}", f"cache/draft/{2:064x}"}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_nothing_that_is_wanted_goes(database, batch_store, dispatch_store, clock, storage, seed):
    """Random days of a farm with sweeps between: every clip that has not expired and every checkpoint can be read."""
    rng = random.Random(seed)
    running = []
    keep = Keep(outputs_days=4, failed_days=2, checkpoints_days=3, cache_days=1, grace_s=3600)
    for day in range(25):
        clock.now += rng.randrange(DAY)
        hand_in(batch_store, *(draft(n, f"key{rng.randrange(12)}", spec=CLIP) for n in range(1, rng.randrange(2, 6))))
        for job in dispatch_store.waiting(2):
            if rng.random() < 0.7:
                running += dispatch_store.start([(job, card(f"{day}{job.id}"))], 10)
        rng.shuffle(running)
        for _ in range(rng.randrange(len(running) + 1)):
            claim = running.pop()
            match rng.randrange(4):
                case 0:
                    write(storage, claim)
                    lose(dispatch_store, claim)
                case 1:
                    saved = StoredCheckpoint(f"checkpoints/{claim.job.id}/{claim.attempt_id}/5", 5)
                    storage.put_bytes(saved.key, b"x")
                    lose(dispatch_store, claim, checkpoint=saved)
                case _:
                    publish(storage, dispatch_store, claim)
        swept = Sweeper(database, storage, keep).run()
        assert swept.failed == 0
        assert check(database, storage) == []
    assert swept is not None


def test_a_sweep_of_s3_finds_the_same(database, batch_store, dispatch_store, clock, tmp_path):
    """By fsspec's memory store, whose names and times look as a bucket's do."""
    storage = Storage("memory://farm-of-tests")
    hand_in(batch_store, draft(1, "a"))
    claim = start(dispatch_store, "a")
    write(storage, claim)
    lose(dispatch_store, claim)
    made = publish(storage, dispatch_store, start(dispatch_store, "a"))
    names = {entry.key for entry in storage.entries("clips")}
    assert len(names) == 8
    assert made.video in names
    later = max(entry.modified_at for entry in storage.entries("clips")) + 10
    swept = Sweeper(database, storage, Keep(grace_s=5), clock=lambda: later).run()
    assert (swept.unreferenced, swept.failed) == (4, 0)
    assert {entry.key for entry in storage.entries("clips")} == {
        made.video, made.poster, made.spritesheet, made.provenance,
    }  # fmt: skip
    storage.delete_under("clips")


def test_the_command_sweeps_and_says_what(tmp_path):
    home = tmp_path / "home"
    database = Database.in_folder(home)
    storage = Storage(home / "storage")
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    hand_in(batch_store, draft(1, "a"))
    publish(storage, dispatch_store, start(dispatch_store, "a"))
    with database.write() as c:
        c.execute(sa.update(jobs).values(updated_at=0))
        c.execute(sa.text("UPDATE clips SET created_at = 0"))
    command = ["store", "sweep", "--keep-outputs-days", "30", "--json", "--home", str(home)]
    run = CliRunner()
    told = json.loads(run.invoke(app, [*command, "--dry-run"]).stdout)
    assert (told["dry_run"], told["clips"]) == (True, 1)
    assert len(storage.entries("clips")) == 4
    assert json.loads(run.invoke(app, command).stdout)["clips"] == 1
    assert storage.entries("clips") == []
    assert run.invoke(app, ["store", "check", "--home", str(home)]).exit_code == 0
    database.close()


def test_what_the_grace_spares_is_told_and_not_what_goes(tmp_path):
    home = tmp_path / "home"
    database = Database.in_folder(home)
    storage = Storage(home / "storage")
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    hand_in(batch_store, draft(1, "a"), draft(2, "b"), draft(3, "c"))
    for key in "abc":
        publish(storage, dispatch_store, start(dispatch_store, key))
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.name == "row1").values(updated_at=0))
        c.execute(sa.update(jobs).where(jobs.c.name != "row1").values(updated_at=jobs.c.updated_at - 3600))
        c.execute(sa.text("UPDATE clips SET created_at = created_at - 3600"))
        c.execute(sa.text("UPDATE clips SET created_at = 0 WHERE id = (SELECT clip_id FROM jobs WHERE name = 'row1')"))
    command = ["store", "sweep", "--keep-outputs-days", "0", "--home", str(home)]
    run = CliRunner(env={"COLUMNS": "300"})
    told = [json.loads(run.invoke(app, [*command, "--json", *more]).stdout) for more in (["--dry-run"], [], [])]
    assert [(one["clips"], one["spared_clips"]) for one in told] == [(1, 2), (1, 2), (0, 2)]
    words = run.invoke(app, command).output
    assert "left alone: 2 clips younger than the grace of 24 h" in words
    assert "freed: 0 MiB of stills, cached and unreferenced objects" in words
    assert "listed" not in words
    # A shorter grace lets them go; where days are longer than it, nothing is said of it.
    assert json.loads(run.invoke(app, [*command, "--json", "--grace-hours", "0.5"]).stdout)["clips"] == 2
    assert Sweeper(database, storage, Keep(outputs_days=30)).run().spared_clips == 0
    database.close()


def test_what_a_killed_prober_left_is_swept_and_nothing_else_there(database, clock, storage):
    storage.put_bytes("probe/0123456789abcdef", b"of a dispatcher that was killed")
    storage.put_bytes("probe/mine.txt", b"somebody's")
    clock.now += Keep().grace_s + 1
    storage.put_bytes("probe/fedcba9876543210", b"a probe that runs")
    swept = Sweeper(database, storage, Keep()).run()
    assert (swept.unreferenced, swept.foreign) == (1, 1)
    assert storage.names_under("probe") == ["fedcba9876543210", "mine.txt"]
