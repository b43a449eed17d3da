"""One database: its engine, its clock, its transactions and its migrations."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import Connection

from cluster.store.schema import metadata
from pipeline.private import create_private, private_folder
from pipeline.problems import BadInputError

log = logging.getLogger("clipmill.store")

_SQLITE_CONNECTIONS = 40
_BUSY_TIMEOUT_S = 30
#: Seconds that a server may take to answer a new connection; `connect_timeout` in the URL says otherwise.
CONNECT_TIMEOUT_S = 10
#: Key of PostgreSQL's advisory lock; any constant will do, as long as all writers meet on it.
_WRITERS = 715517


class StoreVersionError(RuntimeError):
    """The database was written by a newer clipmill."""


class Database:
    """A store by URL: `sqlite:///path`, or `postgresql+psycopg://…`. Safe to share between threads.

    `sqlite://` is a store in memory, of one connection: for one thread.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """`clock`: seconds since the epoch; None: the database's own, which is the one to have between machines.

        Raises `BadInputError` for a URL of no database that a store can be.
        """
        self.url = url
        self._clock = clock
        kwargs: dict[str, Any] = {}
        if url.startswith("sqlite"):
            kwargs["connect_args"] = {"timeout": _BUSY_TIMEOUT_S}
        elif url.startswith("postgresql") and "connect_timeout" not in url:
            # The system itself waits for minutes where packets are dropped.
            kwargs["connect_args"] = {"connect_timeout": CONNECT_TIMEOUT_S}
        if url == "sqlite://":
            kwargs["poolclass"] = sa.pool.StaticPool
        elif url.startswith("sqlite"):
            # As many as a gateway has threads: those beyond would be opened and closed with every request.
            kwargs |= {"pool_size": _SQLITE_CONNECTIONS, "max_overflow": _SQLITE_CONNECTIONS}
        self.engine = _engine(url, **kwargs)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            # No event of the engine: one listener of any kind makes every statement take longer.
            self.engine.dialect.do_begin = _begin_sqlite  # type: ignore[method-assign]
        # Made once: to set options on every connection takes longer than to begin.
        self._reading = (
            self.engine
            if self.is_sqlite
            else self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )

    @property
    def shown_url(self) -> str:
        """Where it is, without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    @classmethod
    def shared(cls, url: str) -> Database:
        """The store of a farm, which several processes open. Raises `BadInputError` where there can be none."""
        refuse_no_store(url)
        return cls(url)

    @classmethod
    def in_folder(cls, folder: Path) -> Database:
        """The embedded store of a home folder, created and migrated when needed."""
        private_folder(folder)
        database = cls(f"sqlite:///{folder / 'clipmill.db'}")
        database.migrate()
        return database

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def is_missing(self) -> bool:
        """Whether it is a file that is not there: opening it would make an empty one."""
        path = self.engine.url.database
        return self.is_sqlite and bool(path) and path != ":memory:" and not Path(str(path)).exists()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view."""
        # PostgreSQL's default would show every statement another view; SQLite's WAL shows one anyway.
        with self._reading.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes. Writers come one after the other, so what one reads stays true until it commits.

        On SQLite by the write lock, taken at the start so that it can never fail half way; on PostgreSQL by a lock of
        our own. Without it a row added while its equal clip is being published would miss it and render it again, and
        a cancel could deadlock with a completion. Transactions are short: some thousand fit in a second.
        """
        with self.engine.connect() as connection:
            if self.is_sqlite:
                _begin_to_write(connection)
            with connection.begin():
                if not self.is_sqlite:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
                yield connection

    def now(self, connection: Connection) -> int:
        """Seconds since the epoch by the store's clock: leases are compared on one clock only."""
        if self._clock is not None:
            return int(self._clock())
        seconds = "strftime('%s', 'now')" if self.is_sqlite else "extract(epoch FROM clock_timestamp())"
        return int(connection.exec_driver_sql(f"SELECT CAST({seconds} AS BIGINT)").scalar() or 0)

    def insert(self, table: sa.Table) -> sqlite_dialect.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT in this database's dialect."""
        return insert_into(table, sqlite=self.is_sqlite)

    def migrate(self, *, patience_s: float = 0) -> None:
        """Bring the schema to this version. Two processes may call it at once.

        A server that does not answer yet is asked again for `patience_s` seconds. Raises `StoreVersionError` for a
        database of a newer version, and `sqlalchemy.exc.OperationalError` for one that cannot be reached.
        """
        if self.is_sqlite and (path := self.engine.url.database):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives the files beside it the database's mode; one of a URI or in memory is left to it.
            if path != ":memory:" and not path.startswith("file:"):
                create_private(Path(path))
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._migrate()
            except sa.exc.OperationalError as error:
                if time.monotonic() >= deadline:
                    raise
                log.warning("the store does not answer yet: %s", error.orig)
            time.sleep(1)

    def _migrate(self) -> None:
        with self.engine.connect() as connection:
            current = _revision(connection)
        if current == HEAD:
            return
        with self.write() as connection:
            if not sa.inspect(connection).get_table_names():
                # A new store is made as it is to be: to play every migration on no rows takes many times longer. Asked
                # under the writers' lock, for another process may have been faster.
                metadata.create_all(connection, checkfirst=False)
                _VERSIONS.create(connection)
                connection.execute(sa.insert(_VERSIONS), {"version_num": HEAD})
                return
        self._play_migrations(current)

    def _play_migrations(self, current: str | None) -> None:
        # Here, not above: a third of what the store takes to be imported, which every process of a farm would pay.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        scripts = str(resources.files("cluster.store") / "migrations")
        known = ScriptDirectory(scripts)
        if current is not None and current not in {s.revision for s in known.walk_revisions()}:
            raise StoreVersionError(
                f"{self.shown_url} is at schema {current}, which this "
                "clipmill does not know. Use the newer clipmill that wrote it, or another CLIPMILL_HOME."
            )
        config = Config()
        config.set_main_option("script_location", scripts)
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


#: The newest migration, and where alembic writes down which one a database is at.
HEAD = "0010"
_VERSIONS = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def _revision(connection: Connection) -> str | None:
    """Which migration a database is at; None where it has none."""
    if not sa.inspect(connection).has_table(_VERSIONS.name):
        return None
    return connection.scalar(sa.select(_VERSIONS.c.version_num))


def refuse_no_store(url: str) -> None:
    """Refuse a SQLite URL behind which a farm has no store: in memory, a folder, another program's file, a damaged one.

    Raises `BadInputError`. Nothing is said of servers, of a file that is not there yet, and of one that cannot be
    opened: whoever opens it hears of that.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return
    if parsed.get_backend_name() != "sqlite":
        return
    name = parsed.database or ":memory:"
    if name == ":memory:" or (
        name.startswith("file:") and (":memory:" in name or parsed.query.get("mode") == "memory")
    ):
        message = (
            f"{url} is a store in memory, of which every process would have its own: no batch would be found again"
        )
        raise BadInputError("database_url", message, "Name a file: sqlite:///<path>.")
    path = Path(name)
    if name.startswith("file:") or not path.exists():
        return
    elsewhere = "Check CLIPMILL_DATABASE_URL: give another path, at which there is nothing yet or the store of a farm."
    if path.is_dir():
        raise BadInputError("database_url", f"{path} is a folder, not the file of a store", elsewhere)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as opened:
            tables = {row[0] for row in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        if not is_damage(error):
            return
        message = f"{path} is no SQLite database, or a damaged one ({error})"
        raise BadInputError("database_url", message, f"{DAMAGED_REMEDY} {elsewhere}") from None
    if tables and "alembic_version" not in tables:
        raise BadInputError("database_url", f"{path} is the database of another program", elsewhere)


#: What to do with a file of SQLite that is damaged.
DAMAGED_REMEDY = (
    "Put a backup of it back, save what is in it by `sqlite3 FILE .recover`, or move it away: then a new store is made."
)


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that what it reads is no database, or was one."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _engine(url: str, **kwargs: Any) -> sa.Engine:
    remedy = "Set CLIPMILL_DATABASE_URL to sqlite:///<path> or postgresql+psycopg://<user>:<password>@<host>/<name>."
    try:
        shown = sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        # It is not repeated: who knows what part of it is a password.
        raise BadInputError("database_url", "it is no URL of a database", remedy) from None
    try:
        engine = sa.create_engine(url, **kwargs)
    except (sa.exc.ArgumentError, ImportError) as error:
        why = f"the driver {error.name} is not installed" if isinstance(error, ImportError) else "there is no such kind"
        if isinstance(error, ImportError) and str(error.name).startswith("psycopg"):
            remedy = "Install it: pip install 'clipmill[postgres]'."
        raise BadInputError("database_url", f"{shown} cannot be used: {why}", remedy) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise BadInputError("database_url", f"{shown} is a database of another kind", remedy)
    return engine


def insert_into(table: sa.Table, *, sqlite: bool) -> sqlite_dialect.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT in the dialect of SQLite, or of PostgreSQL."""
    return sqlite_dialect.insert(table) if sqlite else postgresql.insert(table)


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (below); the driver must not.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    _switch_to_wal(cursor)
    # A completed clip must survive a power cut: acknowledge only after fsync.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    # Two processes that open a new file at once: the switch of one fails at once for the other's, busy timeout or not.
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(dbapi_connection: Any) -> None:
    # `_begin_to_write` has begun already.
    if not dbapi_connection.in_transaction:
        dbapi_connection.execute("BEGIN")


def _begin_to_write(connection: Connection) -> None:
    # A deferred transaction that turns writer half way fails with "database is locked" whatever the timeout.
    driver: Any = connection.connection.driver_connection
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error


__all__ = ["Database", "StoreVersionError", "insert_into", "metadata"]
