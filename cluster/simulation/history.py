"""A store in memory that tells its own history: triggers write down every change, whatever code made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa

from cluster.simulation.journal import StoreChange
from cluster.store import Database
from cluster.store.schema import metadata

_COLUMNS = "at, what, id, before, after, job, renderer, card, size, step"

_TRIGGERS = {
    "job_made": ("INSERT ON main.jobs", "", "'job', new.id, '', new.state, '', '', '', new.needs_bytes, 0"),
    "job_moved": (
        "UPDATE OF state ON main.jobs",
        "WHEN old.state IS NOT new.state",
        "'job', new.id, old.state, new.state, '', '', '', new.needs_bytes, 0",
    ),
    "job_cancel": (
        "UPDATE OF cancel_requested ON main.jobs",
        "WHEN new.cancel_requested AND NOT old.cancel_requested",
        "'cancel', new.id, old.state, new.state, '', '', '', 0, 0",
    ),
    "job_needs": (
        "UPDATE OF needs_bytes ON main.jobs",
        "WHEN old.needs_bytes IS NOT new.needs_bytes",
        "'needs', new.id, '', '', '', '', '', new.needs_bytes, 0",
    ),
    "job_checkpoint": (
        "UPDATE OF checkpoint_key ON main.jobs",
        "WHEN old.checkpoint_key IS NOT new.checkpoint_key",
        "'checkpoint', new.id, coalesce(old.checkpoint_key, ''), coalesce(new.checkpoint_key, ''), '', '', '', 0, "
        "coalesce(new.checkpoint_step, 0)",
    ),
    "attempt_made": (
        "INSERT ON main.attempts",
        "",
        "'attempt', new.id, '', '', new.job_id, new.renderer, new.card, new.predicted_bytes, new.resumed_step",
    ),
    "attempt_ended": (
        "UPDATE OF outcome ON main.attempts",
        "WHEN old.outcome IS NOT new.outcome",
        "'end', new.id, coalesce(old.outcome, ''), new.outcome, new.job_id, new.renderer, new.card, 0, new.step",
    ),
    "clip_made": (
        "INSERT ON main.clips",
        "",
        "'clip', new.id, new.owner, new.content_key, new.attempt_id, '', '', 0, 0",
    ),
}


@cache
def _migrated() -> bytes:
    # Migrations take longer than a whole small simulation.
    database = Database("sqlite://")
    database.migrate()
    raw = database.engine.raw_connection()
    data: bytes = raw.driver_connection.serialize()  # type: ignore[union-attr]  # it is sqlite3's
    raw.close()
    database.close()
    return data


class _Clock:
    """Whose time it is in a store that is used again."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = float
        self.begin = 0.0

    def __call__(self) -> float:
        return self.now()

    def since(self) -> float:
        return self.now() - self.begin


#: Stores that no run uses. To compile the statements anew takes as long as to run them all.
_idle: list[tuple[Database, _Clock]] = []


@contextmanager
def open_store(clock: Callable[[], float], begin: float) -> Iterator[Database]:
    """A migrated store in memory on `clock`; what happens to it is written down as seconds after `begin`."""
    database, its = _idle.pop() if _idle else _new_store()
    its.now, its.begin = clock, begin
    yield database
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF")
        for name in ("temp.history", *metadata.tables):
            driver.execute(f"DELETE FROM {name}")  # noqa: S608 (a table of ours)
        driver.execute("PRAGMA foreign_keys=ON")
    # Not after an error: nobody knows what it left.
    _idle.append((database, its))


def _new_store() -> tuple[Database, _Clock]:
    its = _Clock()
    database = Database("sqlite://", clock=its)
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.deserialize(_migrated())
        driver.create_function("virtual_now", 0, its.since)
        driver.execute(
            "CREATE TEMP TABLE history (seq INTEGER PRIMARY KEY, at REAL, what TEXT, id TEXT, before TEXT, after TEXT,"
            " job TEXT, renderer TEXT, card TEXT, size INTEGER, step INTEGER)"
        )
        for name, (event, when, values) in _TRIGGERS.items():
            # The names are ours and end up in no file.
            driver.execute(
                f"CREATE TEMP TRIGGER told_{name} AFTER {event} {when} BEGIN"  # noqa: S608
                f" INSERT INTO history ({_COLUMNS}) VALUES (virtual_now(), {values}); END"
            )
    return database, its


def history_of(database: Database) -> list[StoreChange]:
    """Every change so far, in order."""
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"SELECT {_COLUMNS} FROM history ORDER BY seq").all()  # noqa: S608
    return [StoreChange(**dict(zip(_COLUMNS.split(", "), row, strict=True))) for row in rows]


def tables_of(database: Database) -> dict[str, list[dict[str, object]]]:
    """What the tables that matter to the checker hold."""
    with database.engine.connect() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))]  # noqa: S608
            for name in ("jobs", "attempts", "clips", "tallies")
        }


def unfinished(database: Database) -> int:
    """Jobs that have not ended."""
    with database.engine.connect() as connection:
        query = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running', 'held')"
        return int(connection.exec_driver_sql(query).scalar_one())
