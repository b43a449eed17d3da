"""Batches and jobs by what an owner calls them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.model import Batch, BatchCounts, HoldReason, JobState
from cluster.store.database import Database
from cluster.store.rows import limits_of
from cluster.store.schema import access_keys, attempts, batches, idempotency_keys, jobs

#: Letters and digits of an id that are enough, if no other id begins so.
SHORTEST_PREFIX = 4


class NoSuchBatchError(LookupError):
    """The owner has no batch of this id."""


class NoSuchJobError(LookupError):
    """The owner has no job of this id, or no row of this name."""


class NoSuchCardError(LookupError):
    """No card of this id was heard of lately."""


class AmbiguousIdError(ValueError):
    """Several ids begin so."""


def require_batch(c: Connection, owner: str, batch_id: str) -> sa.Row[Any]:
    """The row of a batch. Raises `NoSuchBatchError`."""
    row = c.execute(sa.select(batches).where(batches.c.owner == owner, batches.c.id == batch_id)).one_or_none()
    if row is None:
        raise NoSuchBatchError(f"there is no batch {batch_id!r}; `clipmill status` lists the batches there are")
    return row


def owner_of(database: Database, name: str) -> str | None:
    """Whose the batch or job of this whole id is; None where there is none."""
    table = batches if name.startswith("batch_") else jobs
    with database.read() as c:
        found: str | None = c.scalar(sa.select(table.c.owner).where(table.c.id == name))
    return found


def owners_of(database: Database) -> list[str]:
    """Whoever has handed in a batch that is there, or has a key that opens the farm, in order."""
    keys = sa.select(access_keys.c.owner).where(access_keys.c.revoked_at.is_(None))
    with database.read() as c:
        return sorted(set(c.scalars(sa.union(sa.select(batches.c.owner).distinct(), keys.distinct()))))


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """What counting a batch's rows gave."""

    by_state: Mapping[JobState, int]
    held_by: Mapping[HoldReason, int]
    attempts: int
    key: str | None
    let_go: int = 0


class KeptCounts:
    """Counts of large batches, kept for a moment, so that a look at a batch costs the same however many rows it has.

    What is kept is at most `KEPT_S_A_ROW` seconds old for each row, and is counted anew at once where a state has
    begun or ceased to be among the batch's rows: an end, or a first failure, is never seen late. Safe between threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._clock = clock
        self._kept: dict[str, tuple[float, tuple[bool, ...], _Counted]] = {}

    def forget(self) -> None:
        """Count everything anew from here on: somebody wants to see what they just did."""
        self._kept.clear()

    def batch(self, c: Connection, row: sa.Row[Any], now: int) -> Batch:
        """A `Batch` of a row of `batches`, with its counts. The queued jobs of a held batch count as held."""
        kept = self._kept.get(row.id)
        there: tuple[bool, ...] = ()
        if kept is not None:
            there = _states_there(c, row.id)
            if self._clock() < kept[0] and there == kept[1]:
                return _batch_of(row, now, kept[2])
            self._kept.pop(row.id, None)
        counted = _count(c, row.id)
        total = sum(counted.by_state.values())
        if total >= KEPT_ROWS:
            there = tuple(counted.by_state.get(state, 0) > 0 for state in JobState)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[row.id] = (self._clock() + min(total * KEPT_S_A_ROW, KEPT_S), there, counted)
        return _batch_of(row, now, counted)


#: Batches of fewer rows are counted at every look.
KEPT_ROWS = 2000
#: For how long counts are kept for each row of a batch, in seconds: ten to twenty times what counting it takes.
KEPT_S_A_ROW = 20e-6
#: No counts are kept for longer.
KEPT_S = 2.0
_MOST_KEPT = 1000


def _count(c: Connection, batch_id: str) -> _Counted:
    by_state = {
        JobState(state): number
        for state, number in c.execute(
            sa.select(jobs.c.state, sa.func.count()).where(jobs.c.batch_id == batch_id).group_by(jobs.c.state)
        ).tuples()
    }
    held_by: dict[HoldReason, int] = {}
    if by_state.get(JobState.HELD):
        reasons = (
            sa.select(jobs.c.reason, sa.func.count())
            .where(jobs.c.batch_id == batch_id, jobs.c.state == JobState.HELD.value)
            .group_by(jobs.c.reason)
        )
        held_by = {HoldReason(str(reason)): number for reason, number in c.execute(reasons).tuples()}
    let_go = 0
    if by_state.get(JobState.CANCELLED):
        mine = sa.and_(jobs.c.batch_id == batch_id, jobs.c.state == JobState.CANCELLED.value)
        let_go = c.scalar(sa.select(sa.func.count()).where(mine, jobs.c.picked.is_(False))) or 0
    made = c.scalar(sa.select(sa.func.count()).where(attempts.c.batch_id == batch_id)) or 0
    key = c.scalar(sa.select(idempotency_keys.c.key).where(idempotency_keys.c.batch_id == batch_id).limit(1))
    return _Counted(by_state=by_state, held_by=held_by, attempts=made, key=key, let_go=let_go)


def _batch_of(row: sa.Row[Any], now: int, counted: _Counted) -> Batch:
    by_state, held_by = dict(counted.by_state), dict(counted.held_by)
    held = HoldReason(row.held) if row.held else None
    if held is not None and (queued := by_state.pop(JobState.QUEUED, 0)):
        by_state[JobState.HELD] = by_state.get(JobState.HELD, 0) + queued
        held_by[held] = held_by.get(held, 0) + queued
    return _batch(row, now, by_state, held_by, attempts_made=counted.attempts, key=counted.key, let_go=counted.let_go)


def _states_there(c: Connection, batch_id: str) -> tuple[bool, ...]:
    """Whether a row of the batch is in each state: as quick for a million rows as for one."""
    return tuple(bool(there) for there in c.execute(_STATES_THERE, {"batch": batch_id}).one())


# Made once: to build it takes longer than to run it.
_STATES_THERE = sa.select(
    *(
        sa.exists().where(jobs.c.batch_id == sa.bindparam("batch"), jobs.c.state == state.value).label(state.value)
        for state in JobState
    )
)


def glance_at(c: Connection, row: sa.Row[Any], now: int) -> Batch:
    """A `Batch` whose counts only say whether there is any: as quick for a million rows as for one."""
    mine = jobs.c.batch_id == row.id
    there = {state: sa.exists().where(mine, jobs.c.state == state.value) for state in JobState}
    held = {
        why: sa.exists().where(mine, jobs.c.state == JobState.HELD.value, jobs.c.reason == why.value)
        for why in (HoldReason.APPROVAL, HoldReason.REVIEW)
    }
    looks = [one.label(name.value) for name, one in (*there.items(), *held.items())]
    any_of = c.execute(sa.select(*looks)).one()._mapping
    by_state = {state: int(any_of[state.value]) for state in JobState}
    return _batch(row, now, by_state, {why: 1 for why in held if any_of[why.value]})


def _batch(
    row: sa.Row[Any],
    now: int,
    by_state: dict[JobState, int],
    held_by: dict[HoldReason, int],
    attempts_made: int = 0,
    key: str | None = None,
    let_go: int = 0,
) -> Batch:
    return Batch(
        id=row.id,
        owner=row.owner,
        name=row.name,
        created_at=row.created_at,
        sealed=row.sealed,
        source=row.source,
        attended_until=row.attended_until,
        counts=BatchCounts(by_state=by_state),
        attempts=attempts_made,
        abandoned=row.attended_until is not None and row.attended_until < now,
        held=HoldReason(row.held) if row.held else None,
        held_by=held_by,
        needs_approval=row.needs_approval,
        proof=row.proof,
        limits=limits_of(row),
        comment=row.comment or "",
        key=key,
        let_go=let_go,
        webhook_url=row.webhook_url,
    )


#: What ids of a table begin with.
_PREFIXES: dict[sa.Table, str] = {batches: "batch_", jobs: "video_"}
#: Ids that begin alike are counted up to here.
_COUNTED = 1000


def _beginning(c: Connection, owner: str, tables: Iterable[sa.Table], rest: str) -> list[str]:
    """Ids of the owner's in these tables that go on so behind their prefix, in their order; `_COUNTED + 1` at most."""
    found: list[str] = []
    for table in tables:
        prefix = _PREFIXES[table]
        # A range, which an index answers; ids are of hexadecimal digits and hyphens.
        whole = sa.and_(table.c.id >= prefix + rest, table.c.id < prefix + rest + "~")
        query = sa.select(table.c.id).where(table.c.owner == owner, whole).order_by(table.c.id)
        found += c.scalars(query.limit(_COUNTED + 1 - len(found)))
    return found


def find(c: Connection, owner: str, text: str) -> str:
    """The whole id of the owner's batch or job that is called so, or begins so where no other does.

    What follows the underscore is enough, `SHORTEST_PREFIX` characters of it. Raises `NoSuchBatchError`,
    `NoSuchJobError`, `AmbiguousIdError`.
    """
    kind, _, rest = text.partition("_")
    tables = {"batch": (batches,), "video": (jobs,)}.get(kind, (batches, jobs) if not rest else ())
    rest = rest or ("" if kind in ("batch", "video") else text)
    found = _beginning(c, owner, tables, rest)
    if not found and text:
        # Not even the whole of `batch_` or `video_`.
        found = _beginning(c, owner, [table for table in _PREFIXES if _PREFIXES[table].startswith(text)], "")
    if text in found:
        return text
    if len(found) > 1:
        number = f"{len(found):,}" if len(found) <= _COUNTED else f"more than {_COUNTED:,}"
        what = f"{number} ids begin with {text!r}, such as {' and '.join(found[:2])}"
        raise AmbiguousIdError(f"{what}: write more of it; `clipmill status` lists the batches there are")
    if found and len(rest) >= SHORTEST_PREFIX:
        return found[0]
    if found:
        what = f"{text!r} is too short to be sure that {found[0]} is meant"
        raise AmbiguousIdError(f"{what}: write {SHORTEST_PREFIX} or more characters of what follows its underscore")
    if kind == "video":
        raise NoSuchJobError(f"there is no job {text!r}; `clipmill status BATCH --json` lists a batch's jobs")
    raise NoSuchBatchError(f"there is no batch or job {text!r}; `clipmill status` lists the batches there are")
