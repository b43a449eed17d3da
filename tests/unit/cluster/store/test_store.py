"""One suite for both stores. What is expected is read from the tables by plain queries (`Truth`)."""

from __future__ import annotations

import datetime
import sqlite3
import threading
import uuid
from dataclasses import replace
from importlib import resources

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from cluster.dispatch.retry import after_attempt
from cluster.jobs.ids import new_id
from cluster.jobs.model import JobState, Reason, StoredCheckpoint
from cluster.jobs.outcomes import Ended, Errored, Invalid, Lost, OutOfMemory, Stopped, Transition
from cluster.store import BatchStore, Database, DispatchStore, StaleEpochError
from cluster.store.batches import IdempotencyConflictError
from cluster.store.database import StoreVersionError
from cluster.store.lookup import NoSuchBatchError
from cluster.store.rows import job_values
from cluster.store.schema import attempts, batches, clips, jobs, metadata
from tests.building import FLEET, PROBLEM, bad_draft, beat, card, claim_one, completed, draft, objects, spec
from tests.unit.cluster.store.indexes import index_texts

ME = "local"
TABLES = ("jobs", "attempts")


def hand_in(batch_store: BatchStore, *drafts, owner: str = ME, seal: bool = True, **options) -> str:
    batch_id, is_new = batch_store.open_batch(owner, name="catalog", **options)
    assert is_new
    batch_store.add(owner, batch_id, drafts)
    if seal:
        batch_store.seal(owner, batch_id)
    return batch_id


def end(dispatch_store: DispatchStore, claim, ended: Ended) -> bool:
    return dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def states(batch_store: BatchStore, batch_id: str, owner: str = ME) -> list[str]:
    return [job.state.value for job in batch_store.jobs(owner, batch_id)]


def at_once(*calls) -> list[BaseException]:
    """Run calls in threads that set off together; returns what they raised."""
    barrier, raised = threading.Barrier(len(calls)), []

    def run(call) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


# -- schema ----------------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing(database, truth):
    before = truth.everything()
    database.migrate()
    Database(database.url).migrate()
    assert truth.everything() == before


def test_processes_may_migrate_at_once(store_url):
    stores = [Database(store_url) for _ in range(4)]
    assert at_once(*(store.migrate for store in stores)) == []
    assert BatchStore(stores[0]).batches(ME) == []
    for store in stores:
        store.close()


def test_processes_may_open_a_new_sqlite_file_at_once(tmp_path):
    """SQLite refuses a switch to WAL beside another without waiting: seen once in some dozen openings."""
    for turn in range(15):
        stores = [Database(f"sqlite:///{tmp_path / str(turn)}") for _ in range(6)]
        assert at_once(*(lambda s=s: s.engine.connect().close() for s in stores)) == []
        for store in stores:
            store.close()


def test_the_migrations_make_what_a_new_store_is_made_of(store_url):
    """A new store is made at once; played one by one on no rows, the migrations end at the same."""
    database = Database(store_url)
    database.migrate()
    made = catalog_of(database)
    with database.engine.connect() as c:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(c, opts=options), metadata) == []
    with database.write() as c:
        metadata.drop_all(c)
        c.execute(sa.text("DROP TABLE alembic_version"))
        assert sa.inspect(c).get_table_names() == []
        config = Config()
        config.set_main_option("script_location", str(resources.files("cluster.store") / "migrations"))
        config.attributes["connection"] = c
        command.upgrade(config, "head")
    assert catalog_of(database) == made
    database.close()


def catalog_of(database: Database) -> dict[str, object]:
    """Tables, columns, keys, indexes and rows as the database itself describes them, whatever the columns' order."""
    found: dict[str, object] = {"indexes": index_texts(database)}
    with database.engine.connect() as c:
        inspector = sa.inspect(c)
        for table in inspector.get_table_names():
            columns = sorted(repr(sorted(column.items(), key=str)) for column in inspector.get_columns(table))
            found[table] = (
                columns,
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted(map(repr, inspector.get_foreign_keys(table))),
                sorted(sorted(key["column_names"]) for key in inspector.get_unique_constraints(table)),
                c.execute(sa.text(f'SELECT * FROM "{table}"')).all(),
            )
    return found


def test_a_store_of_the_first_version_keeps_its_rows_and_its_running_attempts(store_url):
    database = Database(store_url)
    config = Config()
    config.set_main_option("script_location", str(resources.files("cluster.store") / "migrations"))
    with database.write() as c:
        config.attributes["connection"] = c
        command.upgrade(config, "0001")
        batch = {"id": "b", "owner": ME, "name": "n", "source": "", "created_at": 5, "sealed": True}
        c.execute(sa.insert(batches).values(**batch))
        values = job_values(draft(1), job_id="j", owner=ME, batch_id="b", now=5, clip_id=None)
        first_columns = {table: {found["name"] for found in sa.inspect(c).get_columns(table)} for table in TABLES}
        old = {name: value for name, value in values.items() if name in first_columns["jobs"]}
        c.execute(sa.insert(jobs).values(**old | {"state": "running", "fence": 1}))
        attempt = {
            "id": "a", "owner": ME, "job_id": "j", "batch_id": "b", "fence": 1, "epoch": 1, "renderer": "r",
            "card": "gpu0", "card_class": "c8", "started_at": 6, "lease_until": 7, "step": 3, "steps": 50,
            "predicted_bytes": 0, "measured_bytes": 0, "detail": "",
        }  # fmt: skip
        assert set(attempt) | {"outcome", "ended_at"} == first_columns["attempts"]
        c.execute(sa.insert(attempts).values(**attempt))
    database.migrate()
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    (job,) = batch_store.jobs(ME, "b")
    assert (job.state, job.step, job.checkpoint) == (JobState.RUNNING, 3, None)
    assert job.spec == draft(1).spec
    [inherited] = dispatch_store.take_office("next")
    assert (inherited.attempt_id, inherited.resumed_step) == ("a", 0)
    assert end(dispatch_store, inherited, Lost())
    claim = claim_one(dispatch_store, dispatch_store.waiting(10)[0])
    assert (claim.fence, claim.resume) == (2, None)
    assert [a.resumed_step for a in batch_store.attempts_of(ME, "b")] == [0, 0]
    database.close()


def test_a_store_of_a_newer_version_is_left_alone(database):
    with database.write() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreVersionError, match="9999"):
        database.migrate()


def test_the_store_s_clock_is_the_time_of_day(database):
    with database.read() as c:
        ours = c.scalar(sa.select(sa.func.current_timestamp()))
        now = database.now(c)
    if isinstance(ours, str):
        ours = datetime.datetime.fromisoformat(ours)
    ours = ours if ours.tzinfo else ours.replace(tzinfo=datetime.UTC)
    assert abs(ours.timestamp() - now) <= 2


def test_a_reader_sees_one_moment(database, batch_store):
    batch_id = hand_in(batch_store, draft(1))
    count = sa.select(sa.func.count()).select_from(jobs)
    with database.read() as c:
        assert c.scalar(count) == 1
        batch_store.add(ME, batch_store.open_batch(ME, name="other")[0], [draft(1, "other")])
        assert c.scalar(count) == 1
    assert batch_store.batch(ME, batch_id).counts.total == 1


def test_a_completed_clip_survives_a_power_cut(sqlite_database):
    with sqlite_database.engine.connect() as c:
        assert c.scalar(sa.text("PRAGMA synchronous")) == 2  # FULL
        assert c.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert c.scalar(sa.text("PRAGMA foreign_keys")) == 1


def test_ids_are_version_7_uuids_that_sort_by_time(monkeypatch):
    made = []
    for milliseconds in (1, 2**31, 2**40):
        monkeypatch.setattr("cluster.jobs.ids.time.time_ns", lambda ms=milliseconds: ms * 1_000_000 + 999_999)
        made.append(new_id("video"))
        parsed = uuid.UUID(made[-1].removeprefix("video_"))
        assert (parsed.version, parsed.variant, parsed.int >> 80) == (7, uuid.RFC_4122, milliseconds)
    assert made == sorted(made)
    assert len({new_id("x") for _ in range(1000)}) == 1000


# -- handing in ------------------------------------------------------------------------------------------------


def test_a_job_comes_back_as_it_was_handed_in(batch_store):
    made = draft(3, row={"number": 3, "extra": {"price": "9.90 €", "nested": [1, None]}}, priority=7, needs_bytes=2**40)
    batch_id = hand_in(batch_store, made)
    (job,) = batch_store.jobs(ME, batch_id)
    for field in ("number", "name", "row", "still", "spec", "content_key", "needs_bytes", "priority"):
        assert getattr(job, field) == getattr(made, field)
    assert (job.state, job.attempts, job.releases, job.clip_id) == (JobState.QUEUED, 0, 0, None)


def test_a_bad_row_has_failed_from_the_start(batch_store, truth):
    batch_id = hand_in(batch_store, bad_draft(1), draft(2))
    bad, good = batch_store.jobs(ME, batch_id)
    assert (bad.state, bad.reason, bad.problems) == (JobState.FAILED, "invalid", (PROBLEM,))
    assert good.state is JobState.QUEUED
    assert truth.tally("clips", outcome="invalid") == 1


def test_a_crash_between_chunks_leaves_a_batch_that_can_be_finished(batch_store, dispatch_store):
    batch_id, _ = batch_store.open_batch(ME, name="catalog", idempotency_key="k", fingerprint="f")
    batch_store.add(ME, batch_id, [draft(1), draft(2)])
    with pytest.raises(sa.exc.IntegrityError):
        # The second chunk dies half way: nothing of it may stay.
        batch_store.add(ME, batch_id, [draft(3), draft(4), draft(4)])
    batch = batch_store.batch(ME, batch_id)
    assert (batch.status, batch.counts.total, batch.done) == ("validating", 2, False)
    assert len(dispatch_store.waiting(10)) == 2, "what is in is rendered already"
    # The same request again finds the batch and hands in what is missing.
    assert batch_store.open_batch(ME, name="catalog", idempotency_key="k", fingerprint="f") == (batch_id, False)
    batch_store.add(ME, batch_id, [draft(n) for n in (1, 2, 3, 4)])
    batch_store.seal(ME, batch_id)
    assert [job.number for job in batch_store.jobs(ME, batch_id)] == [1, 2, 3, 4]
    assert batch_store.batch(ME, batch_id).status == "running"


def test_an_idempotency_key_names_one_batch_of_one_owner(batch_store):
    key = {"idempotency_key": "k", "fingerprint": "f"}
    first = batch_store.open_batch(ME, name="a", **key)
    assert first[1]
    assert batch_store.open_batch(ME, name="a", **key) == (first[0], False)
    with pytest.raises(IdempotencyConflictError, match="'k'"):
        batch_store.open_batch(ME, name="a", idempotency_key="k", fingerprint="other")
    other_owner = batch_store.open_batch("bob", name="a", idempotency_key="k", fingerprint="other")
    assert other_owner[1]
    assert len(batch_store.batches(ME)) == 1


def test_a_key_used_by_many_at_once_makes_one_batch(batch_store):
    found = []
    options = {"name": "a", "idempotency_key": "k", "fingerprint": "f"}
    assert at_once(*[lambda: found.append(batch_store.open_batch(ME, **options))] * 4) == []
    assert len({batch_id for batch_id, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1


def test_jobs_are_read_by_pages_in_the_manifest_s_order(batch_store):
    batch_id = hand_in(batch_store, *(draft(n) for n in (3, 1, 2, 5, 4)))
    assert [j.number for j in batch_store.jobs(ME, batch_id, limit=2)] == [1, 2]
    assert [j.number for j in batch_store.jobs(ME, batch_id, after_number=2, limit=2)] == [3, 4]
    assert [j.number for j in batch_store.jobs(ME, batch_id, state=JobState.FAILED)] == []


def test_a_still_is_known_to_its_owner_only(batch_store):
    batch_store.record_still(ME, "ab", (30, 20))
    batch_store.record_still(ME, "ab", (30, 20))
    assert batch_store.still_size(ME, "ab") == (30, 20)
    assert batch_store.still_size("bob", "ab") is None


def test_sizes_of_many_stills_are_looked_up_at_once(batch_store):
    names = [f"{n:064x}" for n in range(2500)]
    for name in names[::100]:
        batch_store.record_still("local", name, (int(name, 16) + 1, 2))
    batch_store.record_still("somebody-else", names[1], (9, 9))
    assert batch_store.still_sizes("local", names) == {name: (int(name, 16) + 1, 2) for name in names[::100]}
    assert batch_store.still_sizes("local", []) == {}


# -- one owner sees nothing of another -------------------------------------------------------------------------


def test_another_owner_s_batch_does_not_exist(batch_store, truth):
    batch_id = hand_in(batch_store, draft(1))
    before = truth.everything()
    for call in (
        lambda: batch_store.batch("bob", batch_id),
        lambda: batch_store.jobs("bob", batch_id),
        lambda: batch_store.cancel("bob", batch_id),
        lambda: batch_store.add("bob", batch_id, [draft(2)]),
    ):
        with pytest.raises(NoSuchBatchError, match=batch_id):
            call()
    batch_store.seal("bob", batch_id)
    batch_store.attend("bob", batch_id, 100)
    assert batch_store.batches("bob") == []
    assert batch_store.clips_of("bob", batch_id) == {}
    assert batch_store.attempts_of("bob", batch_id) == []
    assert truth.everything() == before


def test_attempts_of_another_owner_are_nobodys(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    assert len(batch_store.attempts_of_job(ME, claim.job.id)) == 1
    assert batch_store.attempts_of_job("bob", claim.job.id) == []
    assert batch_store.jobs_of_attempts("bob", [claim.attempt_id]) == {}


def test_no_clip_is_shared_across_owners(batch_store, dispatch_store, truth):
    mine, his = hand_in(batch_store, draft(1, "same")), hand_in(batch_store, draft(1, "same"), owner="bob")
    claims = dispatch_store.start([(job, card(job.owner)) for job in dispatch_store.waiting(10)], 10)
    assert len(claims) == 2, "both owners' equal clips may run at once"
    for claim in claims:
        assert end(dispatch_store, claim, completed(claim))
    (my_clip,), (his_clip,) = batch_store.clips_of(ME, mine).values(), batch_store.clips_of("bob", his).values()
    assert my_clip.id != his_clip.id
    assert batch_store.forget_clips("bob", [my_clip.id]) == 0
    assert len(truth.clips()) == 2
    later = hand_in(batch_store, draft(1, "same"), owner="eve")
    assert states(batch_store, later, "eve") == ["queued"]


# -- sharing ---------------------------------------------------------------------------------------------------


def test_two_jobs_of_equal_content_share_one_attempt(batch_store, dispatch_store, truth):
    first = hand_in(batch_store, draft(1, "same"), draft(2, "same"))
    second = hand_in(batch_store, draft(1, "same"), draft(2, "other"))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, first)[0])
    assert [j.content_key for j in dispatch_store.waiting(10)] == ["other"], (
        "equal clips are not offered while one runs"
    )
    assert end(dispatch_store, claim, completed(claim))
    assert states(batch_store, first) == ["completed", "completed"]
    assert states(batch_store, second) == ["completed", "queued"]
    assert len(truth.attempts()) == len(truth.clips()) == 1
    shared = {job.clip_id for job in [*batch_store.jobs(ME, first), batch_store.jobs(ME, second)[0]]}
    assert shared == {truth.clips()[0].id}
    assert (batch_store.batch(ME, first).attempts, batch_store.batch(ME, second).attempts) == (1, 0)
    assert (truth.tally("clips", outcome="completed"), truth.tally("clips", outcome="shared")) == (1, 2)


def test_a_finished_clip_completes_a_new_row_at_once(batch_store, dispatch_store):
    old = hand_in(batch_store, draft(1, "same"))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, old)[0])
    end(dispatch_store, claim, completed(claim))
    new = batch_store.batch(ME, hand_in(batch_store, draft(1, "same")))
    assert (new.status, new.attempts, new.done) == ("completed", 0, True)
    (clip,) = batch_store.clips_of(ME, new.id).values()
    assert clip.objects == objects(claim.attempt_id)
    assert [clip] == batch_store.clips_of_keys(ME, ["same", "none"])
    assert dispatch_store.waiting(10) == []


def test_the_store_itself_keeps_a_clip_from_being_rendered_twice_at_once(database, batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1, "same"), draft(2, "same"))
    first, second = batch_store.jobs(ME, batch_id)
    assert len(dispatch_store.start([(first, card("a")), (second, card("b"))], 10)) == 1
    with pytest.raises(sa.exc.IntegrityError), database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == second.id).values(state="running"))


def test_a_row_added_while_its_clip_is_published_is_never_rendered_again(batch_store, dispatch_store):
    """However the two interleave, the later one sees the earlier."""
    for turn in range(10):
        claim = claim_one(dispatch_store, batch_store.jobs(ME, hand_in(batch_store, draft(1, f"key{turn}")))[0])
        late, _ = batch_store.open_batch(ME, name="late")
        raised = at_once(
            lambda claim=claim: end(dispatch_store, claim, completed(claim)),
            lambda late=late, turn=turn: batch_store.add(ME, late, [draft(1, f"key{turn}")]),
        )
        assert raised == []
        assert states(batch_store, late) == ["completed"]


def test_lost_clips_are_rendered_again(batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, draft(1, "same"), draft(2, "same"), draft(3))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    end(dispatch_store, claim, completed(claim))
    (clip_id,) = batch_store.clips_of(ME, batch_id)
    assert batch_store.forget_clips(ME, [clip_id, *(f"clip_{i}" for i in range(70_000))]) == 1
    assert states(batch_store, batch_id) == ["queued", "queued", "queued"]
    again = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[1])
    assert end(dispatch_store, again, completed(again))
    assert states(batch_store, batch_id) == ["completed", "completed", "queued"]
    assert len(truth.clips()) == 1


# -- leases and fences -----------------------------------------------------------------------------------------


def test_a_claim_is_an_attempt_with_a_growing_fence(batch_store, dispatch_store, clock, truth):
    batch_id = hand_in(batch_store, draft(1, spec=spec("i2vgen-xl", steps=30)))
    for fence in (1, 2, 3):
        claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0], f"gpu{fence}")
        assert claim.fence == fence
        (job,) = batch_store.jobs(ME, batch_id)
        assert (job.state, job.step, job.steps) == (JobState.RUNNING, 0, 30)
        dispatch_store.renew({claim.attempt_id: (fence, 30)}, 10)
        assert batch_store.jobs(ME, batch_id)[0].step == fence
        assert end(dispatch_store, claim, Lost())
    assert [(a.fence, a.outcome, a.card) for a in truth.attempts()] == [(n, "lost", f"gpu{n}") for n in (1, 2, 3)]
    made = batch_store.attempts_of(ME, batch_id)
    assert [a.fence for a in made] == [1, 2, 3]
    (job,) = batch_store.jobs(ME, batch_id)
    assert batch_store.attempts_of_job(ME, job.id) == made
    assert batch_store.jobs_of_attempts(ME, [made[0].id, made[2].id, "none"]) == {made[0].id: job, made[2].id: job}
    assert (job.attempts, job.releases) == (0, 3)


def test_a_job_that_is_not_queued_any_more_is_not_started(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    snapshot = dispatch_store.waiting(10)
    batch_store.cancel(ME, batch_id)
    assert dispatch_store.start([(job, card(job.id)) for job in snapshot], 10) == []


def test_a_lease_runs_out_unless_renewed(batch_store, dispatch_store, clock):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    heard, silent = [claim_one(dispatch_store, job, job.name) for job in batch_store.jobs(ME, batch_id)]
    clock.now += 8
    assert dispatch_store.renew({heard.attempt_id: (1, 8)}, 10).live == {heard.attempt_id}
    assert dispatch_store.expired() == []
    clock.now += 3
    assert [c.attempt_id for c in dispatch_store.expired()] == [silent.attempt_id]
    assert dispatch_store.renew({"attempt_unknown": (1, 1)}, 10).live == frozenset()


def test_the_first_ending_wins_and_a_zombie_changes_nothing(batch_store, dispatch_store, clock, truth):
    batch_id = hand_in(batch_store, draft(1))
    zombie = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0], "frozen")
    clock.now += 60
    (expired,) = dispatch_store.expired()
    assert end(dispatch_store, expired, Lost())
    after_expiry = truth.everything()
    assert not end(dispatch_store, zombie, completed(zombie)), "late: its lease had ended"
    assert truth.everything() == after_expiry
    successor = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0], "fresh")
    running = truth.everything()
    assert not end(dispatch_store, zombie, completed(zombie)), "late: another renders"
    assert truth.everything() == running
    assert end(dispatch_store, successor, completed(successor))
    done = truth.everything()
    for claim in (zombie, successor):
        for ended in (completed(claim), Errored()):
            assert not dispatch_store.finish(claim, ended, Transition(state=JobState.QUEUED))
    assert truth.everything() == done
    assert truth.clips()[0].attempt_id == successor.attempt_id


def test_two_endings_at_once_publish_one_clip(batch_store, dispatch_store, truth):
    claim = claim_one(dispatch_store, batch_store.jobs(ME, hand_in(batch_store, draft(1)))[0])
    won = []
    assert at_once(*[lambda: won.append(end(dispatch_store, claim, completed(claim)))] * 3) == []
    assert sorted(won) == [False, False, True]
    assert len(truth.clips()) == 1
    assert truth.tally("attempts") == 1


def test_memory_outcomes_raise_what_the_job_asks_for(batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, draft(1, needs_bytes=10, spec=spec("i2vgen-xl")))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    assert end(dispatch_store, claim, OutOfMemory(usable_bytes=99, measured_bytes=98, stage="decode"))
    (job,) = batch_store.jobs(ME, batch_id)
    assert (job.state, job.needs_bytes, job.attempts) == (JobState.QUEUED, 100, 0)
    assert truth.tally("oom", model="i2vgen-xl", resolution_class="256p", card_class="c8", outcome="decode") == 1
    assert truth.attempts()[0].measured_bytes == 98


def test_a_failed_job_keeps_its_problem(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    assert end(dispatch_store, claim, Invalid(problem=PROBLEM))
    (job,) = batch_store.jobs(ME, batch_id)
    assert (job.state, job.reason, job.problems) == (JobState.FAILED, "invalid", (PROBLEM,))
    assert batch_store.batch(ME, batch_id).status == "failed"


def test_any_text_can_be_the_detail_of_an_ending(batch_store, dispatch_store, truth):
    claim = claim_one(dispatch_store, batch_store.jobs(ME, hand_in(batch_store, draft(1)))[0])
    nasty = "no such file: 'caf\udce9\0.png' " + "x" * 5000
    assert end(dispatch_store, claim, Errored(detail=nasty))
    detail = truth.attempts()[0].detail
    assert detail.startswith("no such file: 'caf")
    assert len(detail) == 2000


def test_a_refused_job_says_why(batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    first, second = batch_store.jobs(ME, batch_id)
    claim_one(dispatch_store, second)
    assert dispatch_store.refuse(first, Reason.NO_CARD_FITS, PROBLEM)
    assert not dispatch_store.refuse(first, Reason.NO_CARD_FITS, PROBLEM)
    assert not dispatch_store.refuse(second, Reason.NO_CARD_FITS, PROBLEM), "it runs: it was not too big"
    job = batch_store.jobs(ME, batch_id)[0]
    assert (job.state, job.reason, job.problems) == (JobState.FAILED, "no_card_fits", (PROBLEM,))
    assert truth.tally("clips", outcome="failed") == 1


# -- the office ------------------------------------------------------------------------------------------------


def test_a_dispatcher_that_was_replaced_can_write_nothing(database, batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2), draft(3))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    successor = DispatchStore(database)
    (inherited,) = successor.take_office("second")
    assert replace(inherited, job=claim.job) == claim
    before = truth.everything()
    queued = batch_store.jobs(ME, batch_id)[1]
    for write in (
        lambda: dispatch_store.start([(queued, card("gpu1"))], 10),
        lambda: dispatch_store.renew({claim.attempt_id: (5, 8)}, 10),
        lambda: dispatch_store.renew({}, 10),
        lambda: end(dispatch_store, claim, completed(claim)),
        lambda: dispatch_store.refuse(queued, Reason.NO_CARD_FITS, PROBLEM),
        lambda: dispatch_store.record_cards([beat()]),
    ):
        with pytest.raises(StaleEpochError, match="another dispatcher"):
            write()
    assert truth.everything() == before
    assert end(successor, inherited, Lost())


def test_a_dispatch_store_that_never_took_office_can_write_nothing(database):
    with pytest.raises(StaleEpochError):
        DispatchStore(database).record_cards([])


def test_of_many_who_take_office_at_once_one_holds_it(database):
    dispatch_stores = [DispatchStore(database) for _ in range(4)]
    assert at_once(*(lambda led=led: led.take_office("x") for led in dispatch_stores)) == []
    assert sorted(led.epoch for led in dispatch_stores) == [1, 2, 3, 4]
    for led in dispatch_stores:
        if led.epoch == 4:
            led.record_cards([])
        else:
            with pytest.raises(StaleEpochError):
                led.record_cards([])


# -- cancelling ------------------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_and_tells_what_runs(batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2), draft(3), bad_draft(4))
    claims = [claim_one(dispatch_store, job, job.name) for job in batch_store.jobs(ME, batch_id)[:2]]
    batch = batch_store.cancel(ME, batch_id)
    assert states(batch_store, batch_id) == ["running", "running", "cancelled", "failed"]
    assert not batch.done
    renewal = dispatch_store.renew({claim.attempt_id: (1, 8) for claim in claims}, 10)
    assert renewal.cancelled == {claim.attempt_id for claim in claims}
    assert end(dispatch_store, claims[0], Stopped())
    assert end(dispatch_store, claims[1], completed(claims[1])), "it was done before it heard of it"
    assert states(batch_store, batch_id) == ["cancelled", "completed", "cancelled", "failed"]
    assert truth.tally("clips", outcome="cancelled") == 2
    before = truth.everything()
    batch_store.cancel(ME, batch_id)
    assert truth.everything() == before


def test_rows_that_come_after_their_batch_was_cancelled_are_not_rendered(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1), seal=False)
    batch_store.cancel(ME, batch_id)
    batch_store.add(ME, batch_id, [draft(2), bad_draft(3)])
    batch_store.seal(ME, batch_id)
    assert states(batch_store, batch_id) == ["cancelled", "cancelled", "failed"]
    assert dispatch_store.waiting(10) == []
    assert batch_store.batch(ME, batch_id).done


def test_cancelling_a_batch_leaves_equal_rows_of_others_alone(batch_store, dispatch_store):
    first, second = hand_in(batch_store, draft(1, "same")), hand_in(batch_store, draft(1, "same"))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, first)[0])
    batch_store.cancel(ME, first)
    assert end(dispatch_store, claim, Stopped())
    assert states(batch_store, first) == ["cancelled"]
    (job,) = dispatch_store.waiting(10)
    assert job.batch_id == second


# -- attended batches ------------------------------------------------------------------------------------------


def test_a_batch_nobody_waits_for_is_not_rendered(batch_store, dispatch_store, clock):
    batch_id = hand_in(batch_store, draft(1), attended_s=15)
    detached = hand_in(batch_store, draft(2))
    clock.now += 15
    assert {j.batch_id for j in dispatch_store.waiting(10)} == {batch_id, detached}
    clock.now += 1
    assert {j.batch_id for j in dispatch_store.waiting(10)} == {detached}
    batch_store.attend(ME, batch_id, 15)
    assert {j.batch_id for j in dispatch_store.waiting(10)} == {batch_id, detached}
    batch_store.attend(ME, detached, 15)
    assert batch_store.batch(ME, detached).attended_until is None, "a detached batch stays detached"


def test_the_same_command_again_replaces_what_nobody_waits_for(batch_store, clock):
    def run(**options) -> str:
        return hand_in(batch_store, draft(1), source="/catalog.csv", **{"attended_s": 15, **options})

    abandoned, elsewhere = run(), hand_in(batch_store, draft(1), source="/other.csv", attended_s=15)
    detached = run(attended_s=None)
    unsealed = hand_in(batch_store, draft(1), seal=False, source="/catalog.csv", attended_s=15)
    clock.now += 16
    waited_for = run()
    mine = run()
    assert set(batch_store.supersede(ME, "/catalog.csv", mine)) == {abandoned, unsealed}
    assert batch_store.supersede("bob", "/catalog.csv", mine) == []
    for batch_id, state in (
        (abandoned, "cancelled"),
        (unsealed, "cancelled"),
        (elsewhere, "queued"),
        (detached, "queued"),
        (waited_for, "queued"),
        (mine, "queued"),
    ):
        assert states(batch_store, batch_id) == [state]
    assert batch_store.batch(ME, unsealed).done


# -- what is offered -------------------------------------------------------------------------------------------


def test_a_thousand_large_jobs_do_not_hide_a_small_one(batch_store, dispatch_store):
    large = spec("i2vgen-xl")
    batch_id = hand_in(batch_store, *(draft(n, spec=large, needs_bytes=20, priority=5) for n in range(1, 1001)))
    small = hand_in(batch_store, draft(1, "small", spec=large, needs_bytes=10), draft(2, "camera"))
    offered = dispatch_store.waiting(4)
    assert sorted(j.number for j in offered if j.batch_id == batch_id) == [1, 2, 3, 4]
    assert {j.content_key for j in offered if j.batch_id == small} == {"small", "camera"}


def test_priority_goes_before_age(batch_store, dispatch_store, clock):
    hand_in(batch_store, draft(1, "old"), draft(2, "old, urgent", priority=1))
    clock.now += 1
    hand_in(batch_store, draft(1, "new"), draft(2, "new, urgent", priority=1))
    # Each priority is a queue.
    assert [j.content_key for j in dispatch_store.waiting(1)] == ["old, urgent", "old"]
    assert [j.content_key for j in dispatch_store.waiting(2)] == ["old, urgent", "new, urgent", "old", "new"]


# -- the roster and the tallies --------------------------------------------------------------------------------


def test_the_roster_fades_and_a_new_dispatcher_begins_afresh(database, batch_store, dispatch_store, clock):
    dispatch_store.record_cards([beat("a"), beat("b")])
    clock.now += 10
    moved = beat("b", used_bytes=5)
    dispatch_store.record_cards([moved])
    assert batch_store.cards() == [beat("a"), moved]
    clock.now += 6
    assert batch_store.cards() == [moved]
    DispatchStore(database).take_office("second")
    assert batch_store.cards() == []


def test_tallies_survive_retention_and_never_fall(database, batch_store, dispatch_store, truth):
    claim = claim_one(dispatch_store, batch_store.jobs(ME, hand_in(batch_store, draft(1)))[0])
    end(dispatch_store, claim, completed(claim))
    (clip,) = truth.clips()
    before = truth.tally("clips")
    batch_store.forget_clips(ME, [clip.id])
    assert truth.tally("clips") == before
    assert truth.rows(sa.select(sa.func.count()).select_from(clips))[0][0] == 0


def test_two_processes_write_one_sqlite_file(tmp_path):
    """Not `database is locked` but a place in the queue."""
    Database.in_folder(tmp_path)
    stores = [Database.in_folder(tmp_path) for _ in range(4)]
    raised = at_once(*(lambda s=s: [hand_in(BatchStore(s), draft(1)) for _ in range(10)] for s in stores))
    assert raised == []
    with sqlite3.connect(tmp_path / "clipmill.db") as c:
        assert c.execute("SELECT COUNT(*) FROM jobs").fetchone() == (40,)


def test_an_unreachable_store_is_an_operational_error(tmp_path):
    with pytest.raises(sa.exc.OperationalError):
        BatchStore(Database(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")).cards()


# -- checkpoints -----------------------------------------------------------------------------------------------


def checkpoint(claim, step: int) -> StoredCheckpoint:
    return StoredCheckpoint(f"checkpoints/{claim.job.id}/{claim.attempt_id}/{step}", step)


@pytest.fixture
def resumable(batch_store, dispatch_store):
    """A running clip that can be resumed: (batch id, claim)."""
    batch_id = hand_in(batch_store, draft(1, spec=spec("i2vgen-xl-tiny", steps=50)))
    return batch_id, claim_one(dispatch_store, dispatch_store.waiting(10)[0])


def test_checkpoints_are_recorded_with_the_leases_and_the_older_one_is_named(batch_store, dispatch_store, resumable):
    batch_id, claim = resumable
    steps = {claim.attempt_id: (12, 50)}
    first, second = checkpoint(claim, 10), checkpoint(claim, 20)
    assert dispatch_store.renew(steps, 10, {claim.attempt_id: first}).superseded == ()
    assert batch_store.jobs(ME, batch_id)[0].checkpoint == first
    # The same again is no news, and must not name what is still needed.
    assert dispatch_store.renew(steps, 10, {claim.attempt_id: first}).superseded == ()
    assert dispatch_store.renew(steps, 10, {claim.attempt_id: second}).superseded == (first.key,)
    # Not heard of, so its lease is not renewed; what it saved counts all the same.
    third = checkpoint(claim, 30)
    renewal = dispatch_store.renew({}, 10, {claim.attempt_id: third})
    assert (renewal.live, renewal.superseded) == (frozenset(), (second.key,))
    assert batch_store.jobs(ME, batch_id)[0].checkpoint == third


def test_a_checkpoint_of_an_attempt_that_ended_is_void(batch_store, dispatch_store, resumable):
    batch_id, zombie = resumable
    end(dispatch_store, zombie, Lost())
    dispatch_store.renew({}, 10, {zombie.attempt_id: checkpoint(zombie, 40)})
    assert batch_store.jobs(ME, batch_id)[0].checkpoint is None
    live = claim_one(dispatch_store, dispatch_store.waiting(10)[0])
    dispatch_store.renew({}, 10, {live.attempt_id: checkpoint(live, 10)})
    assert dispatch_store.renew({}, 10, {zombie.attempt_id: checkpoint(zombie, 40)}).superseded == ()
    assert batch_store.jobs(ME, batch_id)[0].checkpoint == checkpoint(live, 10)
    assert not end(dispatch_store, zombie, Stopped(checkpoint=checkpoint(zombie, 40)))
    assert batch_store.jobs(ME, batch_id)[0].checkpoint == checkpoint(live, 10)


def test_a_dispatcher_out_of_office_records_no_checkpoint(database, batch_store, dispatch_store, resumable):
    batch_id, claim = resumable
    DispatchStore(database).take_office("next")
    with pytest.raises(StaleEpochError):
        dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 10)})
    with pytest.raises(StaleEpochError):
        dispatch_store.forget_checkpoints([claim.job.id])
    assert batch_store.jobs(ME, batch_id)[0].checkpoint is None


def test_the_next_attempt_starts_where_the_checkpoint_stands(batch_store, dispatch_store, resumable):
    batch_id, claim = resumable
    dispatch_store.renew({claim.attempt_id: (33, 50)}, 10, {claim.attempt_id: checkpoint(claim, 30)})
    assert batch_store.jobs(ME, batch_id)[0].step == 33
    end(dispatch_store, claim, Lost())
    (job,) = dispatch_store.waiting(10)
    assert (job.step, job.steps, job.checkpoint) == (30, 50, checkpoint(claim, 30))
    again = claim_one(dispatch_store, job, "gpu1")
    assert (again.resume, again.resumed_step) == (checkpoint(claim, 30), 30)
    assert [(s.step, s.attempt, s.card) for s in again.done] == [(30, claim.attempt_id, "gpu0")]
    assert batch_store.jobs(ME, batch_id)[0].step == 30, "progress does not fall to 0 meanwhile"


def test_an_equal_job_goes_on_from_what_a_cancelled_one_left(batch_store, dispatch_store, resumable):
    """As when the same command runs again: its batch takes the place of the one that was left."""
    batch_id, claim = resumable
    dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 30)})
    end(dispatch_store, claim, Lost())
    heir = hand_in(batch_store, draft(1, claim.job.content_key, spec=claim.job.spec))
    batch_store.cancel(ME, batch_id)
    assert dispatch_store.checkpointed(10) == [], "its checkpoint is still wanted"
    assert dispatch_store.ended_among([claim.job.id]) == set()
    again = claim_one(dispatch_store, dispatch_store.waiting(10)[0], "gpu1")
    assert again.job.batch_id == heir
    assert (again.resume, again.resumed_step) == (checkpoint(claim, 30), 30)
    assert [(s.step, s.attempt) for s in again.done] == [(30, claim.attempt_id)]
    # It failed of it: the next attempt does not inherit it once more.
    end(dispatch_store, again, Errored(resumed_step=30))
    assert claim_one(dispatch_store, dispatch_store.waiting(10)[0]).resume is None


def test_a_family_that_cannot_resume_begins_anew(batch_store, dispatch_store):
    hand_in(batch_store, draft(1))
    claim = claim_one(dispatch_store, dispatch_store.waiting(10)[0])
    dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 3)})
    end(dispatch_store, claim, Lost())
    again = claim_one(dispatch_store, dispatch_store.waiting(10)[0])
    assert (again.resume, again.resumed_step, again.done) == (None, 0, ())


def test_an_ending_records_its_checkpoint_or_drops_a_suspect_one(dispatch_store, resumable):
    _, claim = resumable
    end(dispatch_store, claim, Errored(checkpoint=checkpoint(claim, 20)))
    again = claim_one(dispatch_store, dispatch_store.waiting(10)[0])
    assert again.resume == checkpoint(claim, 20)
    fault = Errored(checkpoint=checkpoint(again, 30), resumed_step=20)
    end(dispatch_store, again, fault)
    (job,) = dispatch_store.waiting(10)
    assert (job.checkpoint, job.step) == (None, 0)


def test_jobs_that_ended_are_named_until_their_checkpoints_are_gone(batch_store, dispatch_store, resumable):
    batch_id, claim = resumable
    twin = hand_in(batch_store, draft(1, claim.job.content_key, spec=claim.job.spec))
    dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 10)})
    assert dispatch_store.checkpointed(10) == []
    assert dispatch_store.ended_among([claim.job.id, "video_unknown"]) == set()
    end(dispatch_store, claim, completed(claim))
    assert dispatch_store.checkpointed(10) == [claim.job.id]
    assert dispatch_store.ended_among([claim.job.id, "video_unknown"]) == {claim.job.id}
    assert states(batch_store, twin) == ["completed"]
    dispatch_store.forget_checkpoints([claim.job.id])
    assert dispatch_store.checkpointed(10) == []
    assert batch_store.jobs(ME, batch_id)[0].checkpoint is None


def test_a_clip_rendered_anew_goes_on_from_nothing(batch_store, dispatch_store, resumable):
    batch_id, claim = resumable
    dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 10)})
    end(dispatch_store, claim, completed(claim))
    batch_store.forget_clips(ME, [str(batch_store.jobs(ME, batch_id)[0].clip_id)])
    (job,) = dispatch_store.waiting(10)
    assert (job.checkpoint, job.step) == (None, 0)
    dispatch_store.forget_checkpoints([job.id])
    claim = claim_one(dispatch_store, job)
    dispatch_store.renew({}, 10, {claim.attempt_id: checkpoint(claim, 20)})
    # Late news of the first time's objects must not touch what runs.
    dispatch_store.forget_checkpoints([job.id])
    assert batch_store.jobs(ME, batch_id)[0].checkpoint == checkpoint(claim, 20)
