"""Measured times in the store: one bounded row for each part of each kind of clip on each kind of card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.rates import Key, Measured, Rates, keys_of, observe, prior_version
from cluster.stopwatch import Timed
from cluster.store.database import Database, insert_into
from cluster.store.given import Given
from cluster.store.schema import rates
from pipeline.clip import ClipSpec

_KEY = tuple(rates.primary_key)
_NAMES = tuple(column.name for column in _KEY)
_WANTED = Given(name="wanted", columns={column.name: column.type for column in _KEY})


def record(database: Database, connection: Connection, spec: ClipSpec, kind: str, timed: Timed | None) -> None:
    """Learn from the times of one attempt on a card of `kind`, within the caller's transaction."""
    record_all(database, connection, database.now(connection), [(spec, kind, timed)])


def record_all(
    database: Database, connection: Connection, now: int, seen: Sequence[tuple[ClipSpec, str, Timed | None]]
) -> None:
    """The same for several attempts, in their order; each row is read and written once."""
    told = [(spec, kind, timed) for spec, kind, timed in seen if timed is not None]
    keys = {key for spec, kind, timed in told for key in keys_of(spec, kind, timed)}
    if not keys:
        return
    known = _find(database, connection, keys)
    changed: dict[Key, Measured] = {}
    for spec, kind, timed in told:
        for one in observe(spec, kind, timed, known.get):
            known[one.key] = changed[one.key] = one
    values = [
        {**_values(key), "prior": one.prior, "count": one.count, "recent": list(one.recent), "updated_at": now}
        for key, one in changed.items()
    ]
    connection.execute(_putting(database.is_sqlite), values)


def load(database: Database) -> Rates:
    """All that was measured against the expectations in use."""
    with database.read() as c:
        found = [_measured(row) for row in c.execute(_ALL)]
    return Rates(tuple(one for one in found if one.prior == prior_version(one.key.family, one.key.kind)))


_ALL = sa.select(rates).order_by(*_KEY)


@cache
def _finding(sqlite: bool) -> sa.Select[Any]:
    wanted = _WANTED.table(sqlite=sqlite)
    return sa.select(rates).join(wanted, sa.and_(*(column == wanted.c[column.name] for column in _KEY)))


@cache
def _putting(sqlite: bool) -> Any:
    insert = insert_into(rates, sqlite=sqlite)
    changing = {column.name: insert.excluded[column.name] for column in rates.columns if column.name not in _NAMES}
    return insert.on_conflict_do_update(index_elements=list(_KEY), set_=changing)


def _find(database: Database, c: Connection, keys: Collection[Key]) -> dict[Key, Measured]:
    sqlite = database.is_sqlite
    rows = [tuple(_values(key).values()) for key in keys]
    found = [_measured(row) for row in c.execute(_finding(sqlite), _WANTED.bound(rows, sqlite=sqlite))]
    return {one.key: one for one in found}


def _values(key: Key) -> dict[str, Any]:
    # In the order of the columns. A member of an enumeration is stored as the text that it is.
    found = {name: getattr(key, name) for name in _NAMES}
    return {name: str(value) if isinstance(value, str) else value for name, value in found.items()}


def _measured(row: sa.Row[Any]) -> Measured:
    values = dict(row._mapping)
    key = Key(**{name: values.pop(name) for name in _NAMES})
    del values["updated_at"]
    return Measured(key=key, **values)
