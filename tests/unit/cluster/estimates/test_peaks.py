"""Measured peaks from an attempt's end to the next clip's placement and layout, through the real store."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import resources

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from typer.testing import CliRunner

from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.dispatch.protocol import Assignment, Event, Fate
from cluster.dispatch.retry import after_attempt
from cluster.estimates.memory import ENOUGH, RECENT, MemoryEstimates, key_of, layout_key, observe
from cluster.fleet.cards import Fleet
from cluster.jobs.model import Job, JobState
from cluster.jobs.outcomes import Completed, Ended, Lost, Peak
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Relax, Snapshot, Start, Wait, WaitReason
from cluster.store import BatchStore, Database, DispatchStore, measurements
from cluster.store.rows import job_values
from cluster.store.schema import batches, jobs, stills
from cluster.store.schema import peaks as table
from pipeline.clips.clip import ResolutionClass
from pipeline.families.layouts import RESIDENT
from pipeline.memory.footprint import footprint, leanest
from serve.cli.main import app
from serve.dispatcher.wire import event_from_wire, event_to_wire
from tests.building import FLEET, beat, card, claim_one, completed, draft, spec

ME = "local"
GIB = 2**30
CLIP = spec("i2vgen-xl", width=512, height=512, resolution_class=ResolutionClass.P512, frames=16, guidance=9.0)
PREDICTED = footprint(CLIP).peak_bytes
KEY = key_of(CLIP, RESIDENT, "test")


def peak(measured_bytes: int = PREDICTED, **changes) -> Peak:
    values = {"layout": RESIDENT, "predicted_bytes": PREDICTED, "measured_bytes": measured_bytes}
    return Peak(**(values | changes))


def hand_in(batch_store: BatchStore, count: int, clip=CLIP) -> list[Job]:
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    needs = footprint(clip).peak_bytes
    batch_store.add(ME, batch_id, [draft(n, spec=clip, needs_bytes=needs, key=f"{batch_id} {n}") for n in range(count)])
    batch_store.seal(ME, batch_id)
    return batch_store.jobs(ME, batch_id)


def finish(dispatch_store: DispatchStore, claim, ended: Ended) -> bool:
    return dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def render(batch_store: BatchStore, dispatch_store: DispatchStore, *seen: Peak) -> None:
    """One clip for every peak."""
    for job, one in zip(hand_in(batch_store, len(seen)), seen, strict=True):
        claim = claim_one(dispatch_store, job)
        assert finish(dispatch_store, claim, replace(completed(claim), peaks=(one,)))


# -- the table -------------------------------------------------------------------------------------------------


def test_what_clips_took_is_one_bounded_row_a_kind(database, batch_store, dispatch_store):
    seen = [peak(PREDICTED + n * 2**20) for n in range(RECENT + 4)]
    render(batch_store, dispatch_store, *seen)
    (one,) = dispatch_store.memory_estimates().measured
    assert one == MemoryEstimates().plus(observe(CLIP, "test", seen)).measured[0]
    assert (one.key, one.count, len(one.recent)) == (KEY, len(seen), RECENT)
    with database.read() as c:
        assert c.scalar(sa.select(sa.func.count()).select_from(table)) == 1


def test_every_layout_an_attempt_tried_is_learned_from(batch_store, dispatch_store):
    (job,) = hand_in(batch_store, 1)
    claim = claim_one(dispatch_store, job)
    lean, _ = leanest(CLIP)
    full = peak(PREDICTED, usable_bytes=PREDICTED + GIB, out_of_memory=True)
    assert finish(dispatch_store, claim, replace(completed(claim), peaks=(full, peak(9 * GIB, layout=lean))))
    assert {one.key.layout: (one.count, one.ooms) for one in dispatch_store.memory_estimates().measured} == {
        layout_key(RESIDENT): (0, 1),
        layout_key(lean): (1, 0),
    }


def test_an_ending_that_is_void_teaches_nothing(batch_store, dispatch_store, clock, truth):
    (job,) = hand_in(batch_store, 1)
    zombie = claim_one(dispatch_store, job)
    clock.now += 60
    assert finish(dispatch_store, dispatch_store.expired()[0], Lost())
    assert not finish(dispatch_store, zombie, replace(completed(zombie), peaks=(peak(),)))
    assert dispatch_store.memory_estimates() == MemoryEstimates()


def test_an_attempt_inherited_from_another_dispatcher_teaches_nothing(database, batch_store, dispatch_store):
    # Its card's kind is not known any more.
    claim_one(dispatch_store, hand_in(batch_store, 1)[0])
    successor = DispatchStore(database)
    (claim,) = successor.take_office("second")
    assert finish(successor, claim, replace(completed(claim), peaks=(peak(),)))
    assert successor.memory_estimates() == MemoryEstimates()


def test_lessons_of_other_predictions_are_kept_aside_and_replaced(database, batch_store, dispatch_store):
    render(batch_store, dispatch_store, *[peak(2 * PREDICTED)] * 3)
    with database.write() as c:
        c.execute(sa.update(table).values(footprint="0" * 16))
    assert dispatch_store.memory_estimates() == MemoryEstimates()
    render(batch_store, dispatch_store, peak())
    (one,) = dispatch_store.memory_estimates().measured
    assert (one.count, one.factor) == (1, 1)


def test_merging_never_replaces_better_knowledge(database, batch_store, dispatch_store):
    render(batch_store, dispatch_store, *[peak()] * 3)
    ours = dispatch_store.memory_estimates()
    fewer = MemoryEstimates().plus(observe(CLIP, "test", [peak(3 * PREDICTED)]))
    assert measurements.merge_memory(database, fewer) == 0
    assert dispatch_store.memory_estimates() == ours
    elsewhere = MemoryEstimates().plus(observe(CLIP, "NVIDIA L4", [peak(3 * PREDICTED)]))
    more = MemoryEstimates().plus(observe(CLIP, "test", [peak(PREDICTED + GIB)] * 4))
    assert measurements.merge_memory(database, elsewhere.merged(more)) == 2
    assert set(dispatch_store.memory_estimates().measured) == {*elsewhere.measured, *more.measured}
    assert dispatch_store.memory_estimates() == dispatch_store.memory_estimates().merged(fewer)


def test_a_store_of_the_version_before_keeps_its_rows_and_starts_to_learn(store_url):
    database = Database(store_url)
    config = Config()
    config.set_main_option("script_location", str(resources.files("cluster.store") / "migrations"))
    with database.write() as c:
        config.attributes["connection"] = c
        command.upgrade(config, "0002")
        c.execute(sa.insert(batches).values(id="b", owner=ME, name="n", source="", created_at=5, sealed=True))
        c.execute(sa.insert(stills).values(owner=ME, sha256="ab" * 32, width=4, height=3, created_at=5))
        values = job_values(draft(1, spec=CLIP), job_id="j", owner=ME, batch_id="b", now=5, clip_id=None)
        then = {column["name"] for column in sa.inspect(c).get_columns("jobs")}
        c.execute(sa.insert(jobs).values(**{name: value for name, value in values.items() if name in then}))
    assert not sa.inspect(database.engine).has_table("peaks")
    database.migrate()
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    (job,) = batch_store.jobs(ME, "b")
    assert (job.id, job.state, job.spec) == ("j", JobState.QUEUED, CLIP)
    assert batch_store.still_size(ME, "ab" * 32) == (4, 3)
    claim = claim_one(dispatch_store, job)
    assert finish(dispatch_store, claim, replace(completed(claim), peaks=(peak(),)))
    assert [one.key for one in dispatch_store.memory_estimates().measured] == [KEY]
    database.close()


# -- what placement and the renderer do with it ------------------------------------------------------------------

NEEDS = {"needs_bytes": PREDICTED}
UP = MemoryEstimates().plus(observe(CLIP, "test", [peak(PREDICTED + GIB)]))
DOWN = MemoryEstimates().plus(observe(CLIP, "test", [peak(PREDICTED - GIB)] * ENOUGH))
#: A card that holds the clip as predicted, and not as experience says.
TIGHT, ROOMY = PREDICTED + 2**20, 2 * PREDICTED


def job(**changes) -> Job:
    values = {"id": "j", "owner": ME, "batch_id": "b", "number": 1, "name": "n", "state": JobState.QUEUED, "row": {}}
    return Job(**(values | {"created_at": 0, "spec": CLIP, "content_key": "k", **NEEDS} | changes))


def decide(memory: MemoryEstimates, one: Job, *cards, fleet: dict[str, int] | None = None):
    usable = fleet or {"c8": max(c.usable_bytes for c in cards)}
    (decision,) = place(Snapshot.of(waiting=[one], cards=cards, fleet=Fleet(usable_bytes=usable), memory=memory))
    return decision


def test_a_clip_that_took_more_goes_to_a_larger_card():
    tight, roomy = card("tight", TIGHT), card("roomy", ROOMY)
    assert decide(MemoryEstimates(), job(), tight, roomy) == Start(job(), tight)
    assert decide(UP, job(), tight, roomy) == Start(job(), roomy)
    busy = roomy.model_copy(update={"idle": False})
    assert decide(UP, job(), tight, busy) == Wait(job(), WaitReason.ALL_FITTING_CARDS_BUSY)


def test_a_clip_that_took_less_may_go_to_a_smaller_card_but_not_below_a_failure():
    small, roomy = card("small", PREDICTED - 2**20), card("roomy", ROOMY)
    assert decide(MemoryEstimates(), job(), small, roomy) == Start(job(), roomy)
    assert decide(DOWN, job(), small, roomy) == Start(job(), small)
    failed = job(needs_bytes=PREDICTED + 1)
    assert decide(DOWN, failed, small, roomy) == Start(failed, roomy)


def test_experience_with_one_kind_counts_half_for_another():
    other = card("other", TIGHT).model_copy(update={"kind": "other"})
    assert decide(UP, job(), other, card("roomy", ROOMY)) == Start(job(), card("roomy", ROOMY))
    generous = other.model_copy(update={"usable_bytes": PREDICTED + GIB * 3 // 2})
    assert decide(UP, job(), generous, card("roomy", ROOMY)) == Start(job(), generous)


def test_where_no_card_holds_the_layout_by_experience_a_leaner_one_is_allowed():
    tight = card("tight", TIGHT)
    assert decide(UP, job(), tight) == Relax(job())
    # A class that could hold it is only scaled down.
    waits = decide(UP, job(), tight, fleet={"c8": TIGHT, "c24": ROOMY})
    assert waits == Wait(job(), WaitReason.NO_CARD_OF_THIS_SIZE)


def test_experience_refuses_nothing():
    lean, predicted = leanest(CLIP)
    tight = card("tight", predicted.peak_bytes + 2**20)
    hopeless = MemoryEstimates().plus(observe(CLIP, "test", [peak(50 * GIB, layout=lean)]))
    assert decide(hopeless, job(needs_bytes=predicted.peak_bytes), tight) == Start(
        job(needs_bytes=predicted.peak_bytes), tight
    )


class Pool:
    """Renderers that complete every clip with the peak they are told."""

    def __init__(self, measured_bytes: int) -> None:
        self.measured_bytes = measured_bytes
        self.told: list[Assignment] = []

    async def fate(self, renderer: str) -> Fate | None:
        return None

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        arrived = Assignment.model_validate(json.loads(assignment.model_dump_json()))
        assert arrived == assignment
        self.told.append(arrived)
        ended = replace(Completed(objects=completed_objects(assignment)), peaks=(peak(self.measured_bytes),))
        yield event_from_wire(json.loads(json.dumps(event_to_wire(ended))))


def completed_objects(assignment: Assignment):
    from tests.building import objects

    return objects(assignment.attempt_id)


async def test_the_next_clip_s_renderer_is_told_what_the_last_one_took(sqlite_database):
    batch_store, pool = BatchStore(sqlite_database), Pool(PREDICTED + GIB)
    fleet = Fleet(usable_bytes={"c8": TIGHT, "c24": ROOMY})
    # Measurements are read with every renewal of leases.
    dispatcher = Dispatcher(
        DispatchStore(sqlite_database), pool, fleet, holder="x", clock=time.monotonic, timing=Timing(renew_s=0)
    )
    running = asyncio.create_task(dispatcher.run())

    async def until_done(batch_id: str) -> None:
        # Its ending is in the store before the dispatcher knows of it.
        while dispatcher.running_count() or not batch_store.batch(ME, batch_id).done:
            for name, usable in (("tight", TIGHT), ("roomy", ROOMY)):
                dispatcher.beat(beat(name, usable_bytes=usable))
            await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        for _ in range(2):
            (made,) = hand_in(batch_store, 1)
            dispatcher.nudge()
            await until_done(made.batch_id)
        await dispatcher.stop(0)
        await running
    first, second = pool.told
    assert (first.renderer, first.lessons.factors) == ("renderer-tight", {})
    assert second.renderer == "renderer-roomy"
    memory = MemoryEstimates().plus(observe(CLIP, "test", [peak(PREDICTED + GIB)]))
    assert second.lessons == memory.about(CLIP, "test")
    assert second.lessons.factors[layout_key(RESIDENT)] > 1


# -- between farms -----------------------------------------------------------------------------------------------


def clipmill(*words: str):
    return CliRunner().invoke(app, list(words))


def test_lessons_go_from_one_farm_to_another(tmp_path, monkeypatch):
    for name in ("database_url", "home"):
        monkeypatch.delenv(f"CLIPMILL_{name.upper()}", raising=False)
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "lessons.json"
    database = Database.in_folder(here)
    dispatch_store = DispatchStore(database)
    dispatch_store.take_office("first")
    render(BatchStore(database), dispatch_store, *[peak(PREDICTED + GIB)] * 2)
    told = clipmill("footprint", "export", str(file), "--home", str(here), "--json")
    assert (told.exit_code, json.loads(told.stdout)["lessons"]) == (0, 1)
    for taken, left in ((1, 0), (0, 1)):
        told = clipmill("footprint", "import", str(file), "--home", str(there), "--json")
        assert told.exit_code == 0
        assert json.loads(told.stdout) == {"file": str(file), "taken": taken, "left": left}
    other = Database.in_folder(there)
    assert measurements.load_memory(other) == dispatch_store.memory_estimates()
    database.close()
    other.close()


@pytest.mark.parametrize(("content", "says"), [("no JSON", "JSON"), ('{"lessons": 3}', "lessons")])
def test_a_file_that_cannot_be_imported_is_told_by_name(tmp_path, content, says):
    file = tmp_path / "bad.json"
    file.write_text(content)
    told = clipmill("footprint", "import", str(file), "--home", str(tmp_path / "home"))
    assert told.exit_code == 2
    assert str(file) in told.stderr.replace("\n", "")
    assert says in told.stderr
    assert clipmill("footprint", "import", str(tmp_path / "none.json"), "--home", str(tmp_path)).exit_code == 2
