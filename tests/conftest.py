"""Stores to test on: SQLite always, PostgreSQL where `CLIPMILL_TEST_POSTGRES` names a server (a SQLAlchemy URL)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

# Before torch is imported anywhere: its threads wait busily for each other, and several test processes on few cores
# then take many times longer than the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cluster.store import BatchStore, Database, DispatchStore
from tests.building import Clock, Truth


@contextmanager
def postgres_url() -> Iterator[str]:
    """The URL of a schema of one's own, dropped afterwards."""
    server = os.environ.get("CLIPMILL_TEST_POSTGRES", "")
    if not server:
        pytest.skip("CLIPMILL_TEST_POSTGRES is not set")
    schema = f"test_{uuid.uuid4().hex}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.execute(sa.text(f"CREATE SCHEMA {schema}"))
    try:
        # Nobody cuts this server's power: a commit need not be on the disk before the next statement.
        options = f"-csearch_path={schema} -csynchronous_commit=off"
        url = sa.make_url(server).update_query_dict({"options": options})
        yield url.render_as_string(hide_password=False)
    finally:
        with admin.connect() as c:
            c.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
        admin.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with postgres_url() as url:
            yield url


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    """A migrated store, of either kind."""
    database = Database(store_url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite store, for tests of what stands on the store."""
    database = Database.in_folder(tmp_path / "home")
    yield database
    database.close()


@pytest.fixture
def clock(database: Database) -> Clock:
    """The store's clock, under the test's control."""
    return Clock().set_on(database)


@pytest.fixture
def batch_store(database: Database) -> BatchStore:
    return BatchStore(database)


@pytest.fixture
def dispatch_store(database: Database) -> DispatchStore:
    """The store of the dispatcher in office."""
    dispatch_store = DispatchStore(database)
    dispatch_store.take_office("first")
    return dispatch_store


@pytest.fixture
def truth(database: Database) -> Truth:
    return Truth(database)
