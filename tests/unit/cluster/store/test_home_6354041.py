"""A home that commit 6354041 wrote is this version's home once opened: every row as it was, and work goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from cluster.catalog import resolve as resolving
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.dispatch.retry import after_attempt
from cluster.estimates.published import prior_version
from cluster.farm import Farm
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import HoldReason, JobState, Outcome, StoredCheckpoint
from cluster.jobs.transitions import Verb
from cluster.maintenance.audit import check
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import metadata, owner_use, peaks, rates
from pipeline.clips import clip as clip_module
from pipeline.clips.clip import ResolutionClass
from pipeline.clips.stills import open_still
from pipeline.denoising import checkpoint as checkpoints
from pipeline.denoising.samplers import take_state
from pipeline.devices.emulated import HostDevice
from pipeline.families import FAMILIES
from pipeline.families.layouts import RESIDENT
from pipeline.models.loading import load_model
from pipeline.models.model import RenderStopped
from pipeline.models.stages import denoising
from tests.building import FLEET, GIB, Clock, Truth, card, completed
from tests.homes import HOMES, copy_storage, fill_store

COMMIT = "6354041"
CATALOG_FOLDER = HOMES / COMMIT / "catalog"
ME = "local"

# What the home holds, written down from its rows.
CATALOG = "batch_01a22370c46d7556aa6e8b3de06d1b33"
DIFFUSION = "batch_01a2237116cb77288721ab9a47617124"
PROOF = "batch_01a2237166a07b2c891a86f5b63c7443"
MUG_1 = "video_01a22370c47b7110aab874172ebede15"
LAMP_2 = "video_01a22370c47b7cab95c1fd4fbb4dac5a"
MUG_3 = "video_01a22370c47b7adfb0d6202376c7f455"
GONE_4 = "video_01a22370c47b7715912ae823a000eaab"
PLANT_11 = "video_01a2237116d07006a5831a757d2c4294"
PLANT_12 = "video_01a2237116d07d4db398ed4e1ae0adc2"
LAMP_21 = "video_01a2237166a77a79b1cc01173befc4ea"
PLANT_22 = "video_01a2237166a7777b9f94ed39d1bb2411"
MUG_CLIP = "clip_01a22370e2f57c20a061a006778bfb2e"
HALF_WAY = f"checkpoints/{PLANT_12}/attempt_01a2237116ef77f79377ece66b6dfb9a/172"
PLANT_STILL = "7be4e9d54fdba2c5ef1de576b9b2dc426a0e4cc8f94eb08a1710921bef8f7534"
#: Seconds since the epoch, three seconds after the last heartbeat.
THEN = 1_795_890_970


@pytest.fixture
def left(store_url: str) -> Iterator[Database]:
    """The home's store as that commit left it, on either database, at its own time."""
    database = fill_store(COMMIT, store_url)
    Clock(THEN).set_on(database)
    yield database
    database.close()


@pytest.fixture
def home(left: Database) -> Database:
    """The home's store as any command of this version opens it."""
    left.migrate()
    return left


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(copy_storage(COMMIT, tmp_path / "storage"))


def revision_of(database: Database) -> str | None:
    with database.engine.connect() as c:
        return MigrationContext.configure(c).get_current_revision()


def schema_of(database: Database) -> set[tuple[Any, ...]]:
    """Tables, columns, keys and indexes as the database itself describes them."""
    catalogue = (
        'SELECT kept.name, col.name, col.type, col."notnull", col.dflt_value, col.pk FROM sqlite_master AS kept'
        " JOIN pragma_table_info(kept.name) AS col WHERE kept.type = 'table'"
        if database.is_sqlite
        else "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = current_schema()"
    )
    more = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index'"
        if database.is_sqlite
        else "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()"
    )
    with database.engine.connect() as c:
        return {tuple(row) for query in (catalogue, more) for row in c.execute(sa.text(query))}


def test_it_is_brought_to_the_head_without_a_word_and_no_row_changes(left):
    before, rows = schema_of(left), Truth(left).rows_of_before()
    versions = Path(__file__).parents[4] / "cluster" / "store" / "migrations"
    head = ScriptDirectory(str(versions)).get_current_head()
    assert revision_of(left) == "0006" < str(head)
    left.migrate()
    assert revision_of(left) == head
    # Tables, columns and indexes are added; none that was there is another one.
    assert before <= schema_of(left)
    assert Truth(left).rows_of_before(rows) == rows
    with left.engine.connect() as c:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(c, opts=options), metadata) == []


def test_what_its_owners_had_used_is_known(home):
    kept = Truth(home).rows(
        sa.select(owner_use.c.owner, sa.func.sum(owner_use.c.gpu_seconds)).group_by(owner_use.c.owner)
    )
    seconds = sum(row.ended_at - row.started_at for row in Truth(home).attempts() if row.ended_at is not None)
    assert [tuple(row) for row in kept] == [(ME, seconds)]
    assert seconds > 0


def test_its_invariants_hold(home):
    assert check(home) == []


def test_batches_and_jobs_read_as_they_were(home):
    store = BatchStore(home)
    proof, diffusion, catalog = store.batches(ME)
    assert [proof.id, diffusion.id, catalog.id] == [PROOF, DIFFUSION, CATALOG]
    assert (catalog.name, catalog.source, catalog.created_at) == ("catalog.csv", "/catalog/catalog.csv", 1_795_890_922)
    assert (catalog.status, catalog.attempts, catalog.attended_until) == ("failed", 2, 1_795_890_941)
    assert catalog.counts.by_state == {JobState.COMPLETED: 3, JobState.FAILED: 1}
    assert (diffusion.status, diffusion.attempts) == ("running", 2)
    assert diffusion.counts.by_state == {JobState.COMPLETED: 1, JobState.QUEUED: 1}
    assert (proof.status, proof.needs_approval, proof.held_by) == ("held", True, {HoldReason.APPROVAL: 2})
    assert (proof.limits.failures, proof.limits.gpu_seconds, proof.comment) == (3, None, "for the autumn catalog")

    first, second, third, fourth = store.jobs(ME, CATALOG)
    assert [job.id for job in (first, second, third, fourth)] == [MUG_1, LAMP_2, MUG_3, GONE_4]
    assert [job.name for job in (first, second, third, fourth)] == ["MUG-01", "LAMP-02", "MUG-03", "GONE-04"]
    assert (first.attempts, third.attempts, first.clip_id, third.clip_id) == (1, 0, MUG_CLIP, MUG_CLIP)
    assert first.row == {"number": 1, "line": 2, "image": "mug.jpg", "prompt": "slow zoom in", "extra": {}}
    assert second.spec is not None
    assert (second.spec.family, second.spec.prompt, second.spec.frames) == ("camera", "tilt up", 4)
    assert second.spec.size == (224, 288)
    assert (fourth.state, fourth.reason, fourth.spec) == (JobState.FAILED, "invalid", None)
    assert str(fourth.problems[0]) == "image: there is no file 'gone.jpg' beside the manifest. Is 'mug.jpg' meant?"

    half = store.job(ME, PLANT_12)
    assert (half.state, half.reason, half.hold_requested) == (JobState.QUEUED, None, None)
    assert (half.step, half.steps, half.needs_bytes) == (172, 400, 81_861_804)
    assert half.checkpoint == StoredCheckpoint(HALF_WAY, 172)
    assert store.still_size(ME, PLANT_STILL) == (96, 96)


def test_attempts_and_clips_read_as_they_were(home):
    store = BatchStore(home)
    done, stopped = sorted(store.attempts_of(ME, DIFFUSION), key=lambda attempt: attempt.card, reverse=True)
    assert (done.job_id, done.outcome, done.card, done.card_class) == (
        PLANT_11,
        Outcome.COMPLETED,
        "emulated-c8-0",
        "c8",
    )
    assert (done.fence, done.started_at, done.ended_at) == (1, 1_795_890_943, 1_795_890_950)
    assert (done.measured_bytes, done.step, done.steps) == (80_945_756, 3, 8)
    assert (stopped.job_id, stopped.outcome, stopped.detail) == (PLANT_12, Outcome.STOPPED, "told to stop")
    assert (stopped.step, stopped.steps, stopped.resumed_from) == (171, 400, None)
    clip = store.clips_of(ME, CATALOG)[MUG_CLIP]
    assert clip.content_key == "05fb06aea5e9b32724a64fc2f4d46f3de9c94a7d0b904b0d95990c82013eddd7"
    assert clip.objects.video == f"clips/{MUG_1}/attempt_01a22370e23e7170b600e94495d2e697/video.mp4"
    assert (clip.objects.video_bytes, clip.created_at, clip.expired_at) == (9090, 1_795_890_930, None)


def test_what_was_measured_reads_as_it_was(home):
    store = DispatchStore(home)
    # Ratios to what was predicted then. It is predicted otherwise now, so they say nothing; they are kept until a clip
    # is measured anew.
    assert store.memory_estimates().measured == ()
    (lesson,) = Truth(home).rows(sa.select(peaks))
    assert (lesson.family, lesson.resolution_class, lesson.frames) == ("i2vgen-xl-tiny", "256p", 2)
    assert (lesson.layout, lesson.dtype, lesson.kind) == ("{}", "float32", "emulated")
    assert (lesson.count, lesson.ooms, lesson.recent) == (1, 0, [0.8274347752700617])
    # Versions of what was predicted: by another one, all that was measured would be passed over.
    assert (lesson.footprint, prior_version("camera", "emulated")) == ("747d88376bbfebcd", "cbc5b3356677d4ea")
    kept = Truth(home).rows(sa.select(rates))
    assert len(kept) == 14
    measured = store.time_estimates().measured
    assert {one.key.family for one in measured} == {"camera"}
    assert len(measured) == sum(one.family == "camera" for one in kept) == 9
    (step,) = [one for one in measured if one.key.part == "step" and one.key.pixels == 65_536]
    assert (step.count, step.recent) == (1, (0.6603772989555168,))


def test_tallies_read_as_they_were(home):
    truth = Truth(home)
    assert truth.tally("clips", outcome="completed") == 3
    assert truth.tally("clips", outcome="shared") == 1
    assert truth.tally("clips", outcome="invalid") == 1
    assert truth.tally("attempts", model="i2vgen-xl-tiny", card_class="c24", outcome="stopped") == 1
    assert truth.tally("gpu_seconds", model="i2vgen-xl-tiny") == 28
    assert truth.tally("preemptions", outcome="pause") == 1


def test_cards_and_their_orders_read_as_they_were(home, storage):
    farm = Farm(BatchStore(home), storage)
    beats = {beat.card: beat for beat in farm.batch_store.cards()}
    assert set(beats) == {"emulated-c8-0", "emulated-c24-0"}
    large = beats["emulated-c24-0"]
    assert (large.card_class, large.kind, large.state, large.family) == ("c24", "emulated", "idle", "i2vgen-xl-tiny")
    assert (large.total_bytes, large.usable_bytes, large.used_bytes) == (910_854_790, 865_312_051, 75_640_476)
    card_id, order = farm.command_card("emulated-c8", CardVerb.LOCK, reason="the fan is still loud")
    assert card_id == "emulated-c8-0"
    assert order is not None
    assert (order.kind, order.reason, order.given_by, order.until) == ("lock", "the fan is still loud", ME, None)


def test_what_is_held_is_approved_and_all_that_waits_is_claimed_and_published(home, storage):
    farm, store = Farm(BatchStore(home), storage), DispatchStore(home)
    assert store.take_office("next") == []
    assert store.epoch == 3
    assert [job.id for job in store.waiting(10)] == [PLANT_12]
    approved = farm.command_batch(PROOF, Verb.APPROVE)
    assert (approved.status, approved.counts[JobState.QUEUED], approved.needs_approval) == ("running", 2, False)
    waiting = {job.id: job for job in store.waiting(10)}
    assert set(waiting) == {PLANT_12, LAMP_21, PLANT_22}
    claims = store.start([(job, card(job.id, GIB)) for job in waiting.values()], 10)
    by_job = {claim.job.id: claim for claim in claims}
    assert by_job[PLANT_12].resume == StoredCheckpoint(HALF_WAY, 172)
    assert {job_id: claim.fence for job_id, claim in by_job.items()} == {PLANT_12: 2, LAMP_21: 1, PLANT_22: 1}
    for claim in claims:
        done = completed(claim)
        assert store.finish(claim, done, after_attempt(store.current_job(claim), done, FLEET))
    assert [batch.status for batch in farm.batch_store.batches(ME)] == ["completed", "completed", "failed"]
    assert len(farm.batch_store.clips_of(ME, DIFFUSION)) == 2
    assert Truth(home).tally("clips", outcome="completed") == 6
    assert check(home) == []


def test_the_same_catalog_renders_nothing_anew(home, storage, monkeypatch):
    """But for what is versioned on purpose, nothing else has found its way into the keys."""
    monkeypatch.setattr(clip_module, "CONTENT_VERSION", "2")
    # Its moves were other ones.
    of_then = dataclasses.replace(FAMILIES["camera"], revision="1")
    monkeypatch.setattr(resolving, "family_named", lambda _name: of_then)
    farm = Farm(BatchStore(home), storage)
    rows = gather(read_manifest(CATALOG_FOLDER / "catalog.csv", model="camera"), farm.put_still)
    defaults = Defaults(model="camera", resolution_class=ResolutionClass.P256)
    batch = farm.submit(rows, defaults, name="catalog.csv", source="/catalog/catalog.csv", attended=True)
    assert (batch.status, batch.attempts) == ("failed", 0)
    assert batch.counts.by_state == {JobState.COMPLETED: 3, JobState.FAILED: 1}
    store = DispatchStore(home)
    store.take_office("next")
    assert [job.batch_id for job in store.waiting(10)] == [DIFFUSION]
    made = farm.clips(batch.id)
    assert MUG_CLIP in made
    for clip in made.values():
        assert storage.size(clip.objects.video) == clip.objects.video_bytes


def test_stills_that_are_decoded_anew_are_rendered_anew_beside_the_clips_of_before(home, storage):
    farm = Farm(BatchStore(home), storage)
    rows = gather(read_manifest(CATALOG_FOLDER / "catalog.csv", model="camera"), farm.put_still)
    defaults = Defaults(model="camera", resolution_class=ResolutionClass.P256)
    batch = farm.submit(rows, defaults, name="catalog.csv", source="/catalog/catalog.csv", attended=True)
    assert batch.counts.by_state == {JobState.QUEUED: 3, JobState.FAILED: 1}
    assert MUG_CLIP not in farm.clips(batch.id)


def test_its_checkpoint_is_one_that_a_clip_goes_on_from(tmp_path, storage, monkeypatch):
    data = storage.get_bytes(HALF_WAY)
    found = checkpoints.parse(data)
    assert (found.phase, found.done) == (0, 172)
    assert tuple(found.latents.shape) == (1, 4, 2, 32, 32)

    class OneStep(RenderStopped):
        pass

    seen: list[tuple[int, int]] = []

    def stop_after_one(done: int, total: int, _snapshot: Any) -> None:
        seen.append((done, total))
        raise OneStep

    database = fill_store(COMMIT, f"sqlite:///{tmp_path / 'clipmill.db'}")
    database.migrate()
    job = BatchStore(database).job(ME, PLANT_12)
    database.close()
    assert job.spec is not None
    assert job.still == PLANT_STILL
    model = load_model(
        FAMILIES["i2vgen-xl-tiny"],
        HostDevice(),
        weights_dir=None,
        home=tmp_path,
        offline=True,
        on_load=lambda _text: None,
    )
    still = open_still(storage.get_still(PLANT_STILL))
    # A hash of what the encoders give, whose last bits are those of the processor.
    monkeypatch.setattr(denoising, "conditions_sha256", lambda _halves: found.conditions)
    # So are those of the tables of a schedule, which this checkpoint has only a hash of.
    scheduler = model.scheduler_of(job.spec)
    scheduler.set_timesteps(job.spec.steps)
    state = dataclasses.replace(found.scheduler, schedule=take_state(scheduler, job.spec.steps).schedule)
    data = checkpoints.dump(dataclasses.replace(found, scheduler=state))
    with pytest.raises(OneStep):
        model.render(still, job.spec, RESIDENT, stop_after_one, data)
    assert seen == [(173, 400)]
