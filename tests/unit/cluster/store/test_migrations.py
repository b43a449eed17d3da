"""Databases of every earlier revision, with the rows of a farm half way through its work, brought to this one.

`stores/` has each revision's schema as a dump of that time for both databases, and the rows as SQL of that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import JobState, StoredCheckpoint
from cluster.jobs.outcomes import Lost
from cluster.maintenance.audit import check
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.database import HEAD
from cluster.store.schema import metadata
from tests.building import FLEET, Clock, card, completed, spec
from tests.unit.cluster.store.indexes import index_texts

STORES = Path(__file__).parent / "stores"
REVISIONS = sorted({path.name.partition(".")[0] for path in STORES.glob("*.sql")})
ME = "local"


def statements(name: str) -> Iterator[str]:
    for statement in (STORES / name).read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            yield statement


def rows_of(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row as the database itself has it, without this version's tables."""
    found = {}
    with database.engine.connect() as c:
        for table in sa.inspect(c).get_table_names():
            rows = [dict(row._mapping) for row in c.execute(sa.text(f'SELECT * FROM "{table}"'))]
            found[table] = rows
    return found


@pytest.fixture(params=REVISIONS)
def old(request: pytest.FixtureRequest, store_url: str) -> Iterator[Database]:
    """A store as an earlier version left it."""
    database = Database(store_url)
    kind = "sqlite" if database.is_sqlite else "postgresql"
    with database.write() as c:
        for name in (f"{request.param}.{kind}.sql", f"{request.param}.rows.sql"):
            for statement in statements(name):
                c.exec_driver_sql(statement)
    yield database
    database.close()


def test_every_earlier_revision_has_a_store():
    versions = STORES.parents[4] / "cluster" / "store" / "migrations" / "versions"
    made = sorted(path.name[:4] for path in versions.glob("0*.py"))
    # The head needs none: it is what the code of today makes. 0005 and later came in one release.
    assert made[: len(REVISIONS)] == REVISIONS
    for revision in REVISIONS:
        assert f"'{revision}'" in (STORES / f"{revision}.sqlite.sql").read_text(encoding="utf-8")


def test_no_row_and_no_value_is_lost(old):
    before = rows_of(old)
    assert len(before["jobs"]) >= 21
    old.migrate()
    after = rows_of(old)
    for table, rows in before.items():
        if table == "alembic_version":
            continue
        kept = [{name: row[name] for name in rows[0]} for row in after[table]] if rows else after[table]
        assert sorted(map(repr, kept)) == sorted(map(repr, rows)), table


def test_the_schema_is_that_of_a_new_store(old, tmp_path):
    old.migrate()
    with old.engine.connect() as c:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(c, opts=options), metadata) == []
    if old.is_sqlite:
        new = Database(f"sqlite:///{tmp_path / 'new.db'}")
        metadata.create_all(new.engine)
        assert index_texts(old) == index_texts(new)
        new.close()
        with old.engine.connect() as c:
            assert c.execute(sa.text("PRAGMA foreign_key_check")).all() == []
    else:
        migrated = index_texts(old)
        with old.engine.connect() as c:
            c.execute(sa.text("DROP TABLE alembic_version"))
            metadata.drop_all(c)
            metadata.create_all(c)
            c.commit()
        assert index_texts(old) == {text for text in migrated if "alembic_version" not in text}


def test_the_farm_goes_on_where_it_was(old):
    old.migrate()
    assert check(old) == []
    clock = Clock(450).set_on(old)
    batch_store, dispatch_store = BatchStore(old), DispatchStore(old)
    batch = batch_store.batch(ME, "batch_a")
    held = int(any(job.state is JobState.HELD for job in batch_store.jobs(ME, "batch_a")))
    assert batch.counts.by_state == {
        JobState.COMPLETED: 1,
        JobState.RUNNING: 1,
        JobState.FAILED: 2,
        JobState.CANCELLED: 1,
        JobState.QUEUED: 15 - held,
        **({JobState.HELD: held} if held else {}),
    }
    by_number = {job.number: job for job in batch_store.jobs(ME, "batch_a")}
    assert by_number[1].spec == spec("i2vgen-xl-tiny", steps=50)
    assert by_number[1].row == {"number": 1, "extra": {"price": "9.90 €", "quote": "it's"}}
    (clip,) = batch_store.clips_of(ME, "batch_a").values()
    assert (clip.id, clip.objects.video_bytes, clip.expired_at) == ("clip_1", 1000, None)
    assert batch_store.open_batch(ME, name="catalog", idempotency_key="k", fingerprint="ff") == ("batch_a", False)
    assert batch_store.still_size(ME, "ab" * 32) == (160, 120)
    # What ran is found, ended and queued again, behind no fence that was used.
    (inherited,) = dispatch_store.take_office("next")
    assert (inherited.attempt_id, inherited.fence) == ("attempt_3", 2)
    assert dispatch_store.epoch == 4
    ended = Lost()
    assert dispatch_store.finish(inherited, ended, after_attempt(dispatch_store.current_job(inherited), ended, FLEET))
    # Somebody waits for the attended batch until 500; what is paused, comes later or waits for another row does not.
    later = [job for job in by_number.values() if job.not_before]
    offered = dispatch_store.waiting(100)
    assert {job.id for job in offered} == {
        "video_b_1",
        *(job.id for job in by_number.values() if job.state is JobState.QUEUED and job not in later),
        "video_a_2",
    }
    clock.now = 501
    assert "video_b_1" not in {job.id for job in dispatch_store.waiting(100)}
    claims = {
        c.job.id: c for c in dispatch_store.start([(job, card(job.id)) for job in dispatch_store.waiting(100)], 10)
    }
    assert claims["video_a_2"].fence == 3
    kept = by_number[3].checkpoint
    assert kept in (None, StoredCheckpoint("checkpoints/video_a_3/attempt_4/10", 10))
    assert claims["video_a_3"].resume == kept
    for claim in claims.values():
        done = completed(claim)
        assert dispatch_store.finish(claim, done, after_attempt(dispatch_store.current_job(claim), done, FLEET))
    assert check(old) == []
    assert batch_store.batch(ME, "batch_a").counts[JobState.COMPLETED] >= 15


def test_a_new_store_is_written_down_as_alembic_does(tmp_path):
    versions = str(STORES.parents[4] / "cluster" / "store" / "migrations")
    assert ScriptDirectory(versions).get_current_head() == HEAD
    ours, alembics = Database(f"sqlite:///{tmp_path / 'ours.db'}"), Database(f"sqlite:///{tmp_path / 'alembic.db'}")
    ours.migrate()
    with alembics.engine.begin() as c:
        MigrationContext.configure(c).stamp(ScriptDirectory(versions), "head")
    made = [
        [tuple(row) for row in c.execute(sa.text("SELECT sql FROM sqlite_master WHERE name = 'alembic_version'"))]
        + [tuple(row) for row in c.execute(sa.text("SELECT * FROM alembic_version"))]
        for database in (ours, alembics)
        for c in [database.engine.connect()]
    ]
    assert [[" ".join(str(one).split()) for one in row] for row in made[0]] == [
        [" ".join(str(one).split()) for one in row] for row in made[1]
    ]
    for database in (ours, alembics):
        database.close()
