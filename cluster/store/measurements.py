"""Measured peaks and times in the store: one bounded row a key, in the tables `peaks` and `rates`.

They are recorded in two halves. `observe` compares an attempt with what was predicted of its clip, for which operations
and bytes are counted: it needs no store and belongs before a transaction. `record` reads and writes rows within one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.estimates import memory, times
from cluster.estimates.measurements import EstimateKey, Estimates
from cluster.estimates.memory import MemoryEstimates, MemoryMeasurements
from cluster.estimates.times import TimeEstimates, TimeMeasurements
from cluster.jobs.outcomes import Peak, Timed
from cluster.store.bulk import Keyed
from cluster.store.database import Database
from cluster.store.schema import peaks, rates
from pipeline.clips.clip import ClipSpec
from pipeline.kernels.measured import KernelRun

E = TypeVar("E", bound=Estimates[Any])
#: A row of either table.
AnyMeasurements: TypeAlias = MemoryMeasurements | TimeMeasurements


def observe(
    spec: ClipSpec | None, kind: str, seen: Iterable[Peak], timed: Timed | None, runs: Sequence[KernelRun] = ()
) -> list[AnyMeasurements]:
    """What an attempt at `spec` on a card of `kind` says of memory and time; nothing of an unknown clip or card.

    `runs`: what runs of its loop say of their kernels.
    """
    return [*memory.observe(spec, kind, seen), *times.observe(spec, kind, timed, runs)] if spec else []


def record(database: Database, c: Connection, now: int, seen: Collection[AnyMeasurements]) -> None:
    """Add what attempts say, in their order, within the caller's transaction; each row is read and written once."""
    _MEMORY.record(database, c, now, [one for one in seen if isinstance(one, MemoryMeasurements)])
    _TIMES.record(database, c, now, [one for one in seen if isinstance(one, TimeMeasurements)])


def load_memory(database: Database) -> MemoryEstimates:
    """What was measured of the footprints in use."""
    return _MEMORY.load(database)


def load_times(database: Database) -> TimeEstimates:
    """What was measured of the expected times in use."""
    return _TIMES.load(database)


def merge_memory(database: Database, theirs: MemoryEstimates) -> int:
    """Take over what another farm knows from more attempts; returns of how many keys that was true."""
    keys = {one.key for one in theirs.in_use().measured}
    if not keys:
        return 0
    with database.write() as c:
        return _MEMORY.change(database, c, database.now(c), keys, lambda ours: ours.merged(theirs))


class _Rows(Generic[E]):
    """The rows of one table as estimates of one class: the primary key is their key, the rest what was measured."""

    def __init__(self, table: sa.Table, estimates: type[E]) -> None:
        self._rows, self._estimates = Keyed(table), estimates
        self._all = sa.select(table).order_by(*table.primary_key)

    def load(self, database: Database) -> E:
        with database.read() as c:
            return self._read(c.execute(self._all)).in_use()

    def record(self, database: Database, c: Connection, now: int, seen: Collection[AnyMeasurements]) -> None:
        if seen:
            self.change(database, c, now, {one.key for one in seen}, lambda before: before.plus(seen))

    def change(
        self, database: Database, c: Connection, now: int, keys: Collection[EstimateKey], change: Callable[[E], E]
    ) -> int:
        """Write those rows of `keys` that `change` makes others; returns how many."""
        before = self._read(self._rows.find(c, keys, sqlite=database.is_sqlite))
        changed = [one for one in change(before).measured if one is not before.get(one.key)]
        values = [
            {**self._rows.values(one.key), **one.model_dump(mode="json", by_alias=True, exclude={"key"})}
            for one in changed
        ]
        self._rows.put(c, [each | {"updated_at": now} for each in values], sqlite=database.is_sqlite)
        return len(changed)

    def _read(self, found: Iterable[sa.Row[Any]]) -> E:
        measured = []
        for row in found:
            values = dict(row._mapping)
            del values["updated_at"]
            key = {name: values.pop(name) for name in self._rows.names}
            measured.append(self._estimates.of.model_validate({"key": key, **values}))
        return self._estimates(tuple(measured))


_MEMORY = _Rows(peaks, MemoryEstimates)
_TIMES = _Rows(rates, TimeEstimates)
