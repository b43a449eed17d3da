"""`clipmill store check`: a store is broken in every way that an invariant is about; each is found and put right."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import StoredCheckpoint
from cluster.jobs.outcomes import Ended, Invalid, Lost, Stopped
from cluster.maintenance.audit import INVARIANTS, check, finding_lines
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import jobs
from serve.cli.main import app
from tests.building import FLEET, bad_draft, card, completed, draft, spec

ME = "local"


def end(dispatch_store: DispatchStore, claim, ended: Ended) -> None:
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def put_clip(storage: Storage, attempt_id: str) -> None:
    for name in ("poster.jpg", "spritesheet.jpg", "provenance.json"):
        storage.put_bytes(f"clips/{attempt_id}/{name}", b"x")
    storage.put_bytes(f"clips/{attempt_id}/video.mp4", b"x" * 1000)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path / "storage")


@pytest.fixture
def farm(database: Database, storage: Storage) -> dict[str, str]:
    """A store with jobs of every state and all their objects; names of its jobs by what they are."""
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    clip = spec("i2vgen-xl-tiny", steps=50)
    drafts = [draft(n, spec=clip) for n in range(1, 25)] + [bad_draft(25), draft(26, "key1", spec=clip)]
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, drafts)
    batch_store.seal(ME, batch_id)
    left, _ = batch_store.open_batch(ME, name="left", attended_s=5)
    batch_store.add(ME, left, [draft(1, "attended")])
    names = {f"job{job.number}": job.id for job in batch_store.jobs(ME, batch_id)} | {"batch": batch_id, "left": left}
    claims = {}
    for job in batch_store.jobs(ME, batch_id)[:6]:
        (claims[job.number],) = dispatch_store.start([(job, card(f"gpu{job.number}"))], 60)
        names[f"attempt{job.number}"] = claims[job.number].attempt_id
    kept = StoredCheckpoint(f"checkpoints/{names['job3']}/{names['attempt3']}/10", 10)
    storage.put_bytes(kept.key, b"x")
    dispatch_store.renew({}, 60, {claims[3].attempt_id: kept})
    put_clip(storage, claims[1].attempt_id)
    put_clip(storage, claims[4].attempt_id)
    end(dispatch_store, claims[1], completed(claims[1]))
    end(dispatch_store, claims[4], completed(claims[4]))
    end(dispatch_store, claims[2], Invalid())
    end(dispatch_store, claims[3], Lost())
    names |= {f"clip{n}": str(batch_store.jobs(ME, batch_id)[n - 1].clip_id) for n in (1, 4)}
    assert check(database, storage) == [], "nothing is wrong with a store that was not touched"
    return names


def break_it(database: Database, *statements: str, **names: str) -> None:
    if database.is_sqlite:
        database.engine.dispose()
        with closing(sqlite3.connect(str(database.engine.url.database))) as raw:
            for statement in statements:
                raw.execute(statement, names)
            raw.commit()
        return
    with database.engine.connect() as c:
        # No foreign keys for this session: as a restored dump without its constraints.
        c.exec_driver_sql("SET session_replication_role = replica")
        for statement in statements:
            c.execute(sa.text(statement), names)
        c.commit()
    database.engine.dispose()


COPY_ATTEMPT = """
    INSERT INTO attempts (id, owner, job_id, batch_id, fence, epoch, renderer, card, card_class, outcome, started_at,
                          lease_until, ended_at, step, steps, predicted_bytes, measured_bytes, detail)
    SELECT 'attempt_x', owner, job_id, batch_id, fence + 1, epoch, renderer, card, card_class, outcome, started_at,
           lease_until, ended_at, step, steps, predicted_bytes, measured_bytes, detail
    FROM attempts WHERE id = :attempt5
"""
#: By invariant: what breaks it, the subject that is named, and other invariants that it cannot but break.
BREAKS = {
    2: (["DROP INDEX uq_jobs_running_content"], "uq_jobs_running_content", set()),
    3: (["DELETE FROM batches WHERE id = :left"], None, {14}),
    4: ([COPY_ATTEMPT], "job5", {5, 7}),
    5: (["UPDATE jobs SET fence = 3 WHERE id = :job5"], "attempt5", {6}),
    6: (["UPDATE attempts SET outcome = 'lost', ended_at = 5 WHERE id = :attempt5"], "job5", {16}),
    7: (["UPDATE jobs SET fence = 0 WHERE id = :job3"], "job3", set()),
    8: (
        ["DROP INDEX uq_jobs_running_content", "UPDATE jobs SET content_key = 'key5' WHERE id = :job6"],
        None,
        {2},
    ),
    9: (["UPDATE jobs SET clip_id = NULL WHERE id = :job4"], "job4", set()),
    10: (["UPDATE jobs SET clip_id = :clip1 WHERE id = :job8"], "job8", set()),
    11: (["UPDATE jobs SET content_key = 'key4' WHERE id = :job8"], "job8", set()),
    12: (["UPDATE clips SET attempt_id = 'attempt_gone' WHERE id = :clip4"], "clip4", set()),
    13: (["DELETE FROM jobs WHERE id = :job9"], "batch", set()),
    14: (["UPDATE jobs SET lane = '' WHERE id = :job20"], "job20", set()),
    15: (["UPDATE jobs SET spec = '{\"family\": 3}' WHERE id = :job10"], "job10", set()),
    16: (["UPDATE tallies SET value = value - 1 WHERE name = 'attempts' AND outcome = 'lost'"], None, set()),
    17: (
        [
            "UPDATE batches SET sealed = (1 = 0), rows_sealed = NULL, created_at = 5 WHERE id = :batch",
            "UPDATE jobs SET created_at = 5 WHERE batch_id = :batch",
        ],
        "batch",
        set(),
    ),
    20: ([], "clip4", set()),
    21: (["UPDATE jobs SET checkpoint_key = 'checkpoints/a/b/9' WHERE id = :job3"], "job3", set()),
}
REPAIRABLE = {2, 4, 5, 6, 7, 9, 10, 11, 14, 16, 20, 21}


def test_every_invariant_has_a_case():
    assert {invariant.number for invariant in INVARIANTS} | {20, 21} == BREAKS.keys() | {1}
    assert {i.number for i in INVARIANTS if i.repair is not None} | {20, 21} == REPAIRABLE


@pytest.mark.parametrize("number", BREAKS)
def test_what_is_broken_is_found_told_and_put_right(database, storage, farm, number):
    statements, subject, also = BREAKS[number]
    # psycopg and sqlite take no parameters that a statement does not name.
    for statement in statements:
        used = {name: value for name, value in farm.items() if f":{name}" in statement}
        break_it(database, statement, **used)
    if number == 20:
        storage.delete(f"clips/{farm['attempt4']}/poster.jpg")
    broken = {one.number: one for one in check(database, storage)}
    assert broken.keys() == {number} | also
    found = [finding.subject for finding in broken[number].findings]
    if subject is not None:
        assert found == [farm.get(subject, subject)]
    assert broken[number].remedy
    assert finding_lines(broken[number].findings)[0].startswith(found[0])
    check(database, storage, repair=True)
    # One repair may bring to light what another had hidden.
    check(database, storage, repair=True)
    left = {one.number for one in check(database, storage)}
    # The index cannot be made while two equal jobs run.
    assert left <= ({2, 8} if number == 8 else ({number} | also) - REPAIRABLE)
    if number in REPAIRABLE:
        assert number not in left


def test_a_repaired_farm_works_on(database, storage, farm):
    """All jobs end, after everything was broken at once that can be put right."""
    for number in sorted(REPAIRABLE - {4, 20}):
        for statement in BREAKS[number][0]:
            break_it(database, statement, **{n: v for n, v in farm.items() if f":{n}" in statement})
    storage.delete(f"clips/{farm['attempt1']}/video.mp4")
    for _ in range(3):
        check(database, storage, repair=True)
    assert check(database, storage) == []
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    for claim in dispatch_store.take_office("next"):
        end(dispatch_store, claim, Stopped())
    while offered := dispatch_store.waiting(100):
        for claim in dispatch_store.start([(job, card(job.id)) for job in offered], 10):
            put_clip(storage, claim.attempt_id)
            end(dispatch_store, claim, completed(claim))
    assert {job.state.value for job in batch_store.jobs(ME, farm["batch"])} == {"completed", "failed"}
    assert check(database, storage) == []


def test_a_counter_that_is_too_high_is_told_and_never_lowered(database, storage, farm, truth):
    break_it(database, "UPDATE tallies SET value = value + 5 WHERE name = 'attempts' AND outcome = 'lost'")
    before = truth.tally("attempts")
    assert [one.number for one in check(database, storage, repair=True)] == [16]
    assert truth.tally("attempts") == before


def test_a_video_that_was_cut_short_is_found(database, storage, farm):
    storage.delete(f"clips/{farm['attempt1']}/video.mp4")
    storage.put_bytes(f"clips/{farm['attempt1']}/video.mp4", b"short")
    (broken,) = check(database, storage)
    assert "5 bytes, not 1000" in broken.findings[0].detail


def test_objects_of_a_clip_that_has_expired_are_not_missed(database, storage, farm):
    storage.delete_under(f"clips/{farm['attempt1']}")
    assert [one.number for one in check(database, storage)] == [20]
    break_it(database, "UPDATE clips SET expired_at = 5 WHERE id = :clip1", clip1=farm["clip1"])
    assert check(database, storage) == []


def test_a_damaged_file_is_found(sqlite_database, tmp_path):
    path = sqlite_database.engine.url.database
    batch_store = BatchStore(sqlite_database)
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, [draft(n) for n in range(200)])
    with sqlite_database.engine.connect() as c:
        page = c.scalar(sa.text("SELECT rootpage FROM sqlite_master WHERE name = 'ix_jobs_state'"))
        size = c.scalar(sa.text("PRAGMA page_size"))
    sqlite_database.engine.dispose()
    with Path(path).open("r+b") as file:
        file.seek((page - 1) * size + 200)
        file.write(b"\xff" * 400)
    assert 1 in {one.number for one in check(sqlite_database)}


def test_the_command_says_what_is_broken_and_exits_1(tmp_path):
    run, home = CliRunner(), ["--home", str(tmp_path / "home")]
    missing = run.invoke(app, ["store", "check", *home])
    assert missing.exit_code == 2
    database = Database.in_folder(tmp_path / "home")
    assert run.invoke(app, ["store", "check", *home]).exit_code == 0
    batch_store = BatchStore(database)
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, [draft(1)])
    with database.write() as c:
        c.execute(sa.update(jobs).values(state="running"))
    found = run.invoke(app, ["store", "check", "--json", *home])
    assert found.exit_code == 1
    told_json = json.loads(found.stdout)
    assert [one["number"] for one in told_json["broken"]] == [6]
    assert run.invoke(app, ["store", "check", "--repair", *home]).exit_code == 0
    assert batch_store.jobs(ME, batch_id)[0].state == "queued"
    assert run.invoke(app, ["store", "check", *home]).exit_code == 0
    database.close()


def test_a_look_while_a_farm_works_finds_nothing(database, storage, farm):
    """The tables are read in one moment; an object deleted after that is asked for again."""
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("next")

    class Slow(Storage):
        def size(self, key: str) -> int:
            # While the objects are looked at, the clip is forgotten and its objects go.
            if farm["attempt4"] in key:
                batch_store.forget_clips(ME, [farm["clip4"]])
                self.delete_under(f"clips/{farm['attempt4']}")
            return super().size(key)

    assert [b.number for b in check(database, Slow(storage.url))] == []
