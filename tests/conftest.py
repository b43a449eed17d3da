"""Stores to test on: SQLite always, PostgreSQL where `CLIPMILL_TEST_POSTGRES` names a server (a SQLAlchemy URL)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

# Before torch is imported anywhere: its threads wait busily for each other, and several test processes on few cores
# then take many times longer than the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _in_memory(folder: Path = Path("/dev/shm")) -> None:
    """Let tests' own folders lie in memory, where there is enough: a commit of SQLite then waits for no disk.

    Most of the time of tests on the store was such waits, and nobody cuts the power of a test. `TMPDIR` is not touched:
    what is compiled has to be executed, which a folder in memory may forbid.
    """
    try:
        if shutil.disk_usage(folder).free > 4 << 30 and os.access(folder, os.W_OK):
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
    except OSError:
        pass


_in_memory()

from cluster.store import BatchStore, Database, DispatchStore  # noqa: E402
from cluster.store.schema import metadata  # noqa: E402
from tests.building import Clock, Truth  # noqa: E402


@contextmanager
def postgres_url() -> Iterator[str]:
    """The URL of a schema of one's own, dropped afterwards."""
    server = os.environ.get("CLIPMILL_TEST_POSTGRES", "")
    if not server:
        pytest.skip("CLIPMILL_TEST_POSTGRES is not set")
    schema = f"test_{uuid.uuid4().hex}"
    admin = sa.create_engine(_relaxed(server), isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.execute(sa.text(f"CREATE SCHEMA {schema}"))
    try:
        yield _relaxed(server, f"-csearch_path={schema} ").render_as_string(hide_password=False)
    finally:
        with admin.connect() as c:
            c.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
        admin.dispose()


def _relaxed(server: str, options: str = "") -> sa.URL:
    # Nobody cuts this server's power: a commit need not be on the disk before the next statement.
    return sa.make_url(server).update_query_dict({"options": f"{options}-csynchronous_commit=off"})


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with postgres_url() as url:
            yield url


class PostgresStore:
    """A schema that is migrated once for all tests of this process, and left by each as it was found."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._url = ""
        self._as_made: list[object] = []

    def url(self) -> str:
        """Its URL; made anew where a test has changed more than rows."""
        if self._url and not self._emptied():
            self.close()
        if not self._url:
            self._url = self._stack.enter_context(postgres_url())
            database = Database(self._url)
            database.migrate()
            self._as_made = self._structure(database)
            database.close()
        return self._url

    def close(self) -> None:
        """Drop it, where it was made."""
        self._url = ""
        self._stack.close()

    def _emptied(self) -> bool:
        """Delete all rows, which takes a hundredth of making the tables anew; False where there are other tables."""
        database = Database(self._url)
        try:
            if self._structure(database) != self._as_made:
                return False
            with database.write() as c:
                # Whoever still holds a lock left something behind: then another schema is made.
                c.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
                c.exec_driver_sql("; ".join(f"DELETE FROM {one.name}" for one in reversed(metadata.sorted_tables)))
        except sa.exc.DBAPIError:
            return False
        finally:
            database.close()
        return True

    def _structure(self, database: Database) -> list[object]:
        query = (
            "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns "
            "WHERE table_schema = current_schema() ORDER BY 1, 2"
        )
        indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1"
        with database.engine.connect() as c:
            found: list[object] = [*c.execute(sa.text(query)).all(), *c.execute(sa.text(indexes)).all()]
            return [*found, c.scalar(sa.text("SELECT version_num FROM alembic_version"))]


@pytest.fixture(scope="session")
def postgres_store() -> Iterator[PostgresStore]:
    store = PostgresStore()
    yield store
    store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, postgres_store: PostgresStore) -> Iterator[Database]:
    """A migrated store without rows, of either kind."""
    url = f"sqlite:///{tmp_path / 'store.db'}" if request.param == "sqlite" else postgres_store.url()
    database = Database(url)
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
