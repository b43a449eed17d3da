"""Measured times in the store: one bounded row for each part of each kind of clip on each kind of card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.rates import Key, Measured, Rates, keys_of, observe, prior_version
from cluster.stopwatch import Timed
from cluster.store.database import Database
from cluster.store.given import Keyed
from cluster.store.schema import rates
from pipeline.clip import ClipSpec

_TABLE = Keyed(rates)


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
        {**_TABLE.values(key), "prior": one.prior, "count": one.count, "recent": list(one.recent), "updated_at": now}
        for key, one in changed.items()
    ]
    _TABLE.put(connection, values, sqlite=database.is_sqlite)


def load(database: Database) -> Rates:
    """All that was measured against the expectations in use."""
    with database.read() as c:
        found = [_measured(row) for row in c.execute(_ALL)]
    return Rates(tuple(one for one in found if one.prior == prior_version(one.key.family, one.key.kind)))


_ALL = sa.select(rates).order_by(*rates.primary_key)


def _find(database: Database, c: Connection, keys: Collection[Key]) -> dict[Key, Measured]:
    found = map(_measured, _TABLE.find(c, keys, sqlite=database.is_sqlite))
    return {one.key: one for one in found}


def _measured(row: sa.Row[Any]) -> Measured:
    values = dict(row._mapping)
    key = Key(**{name: values.pop(name) for name in _TABLE.names})
    del values["updated_at"]
    return Measured(key=key, **values)
