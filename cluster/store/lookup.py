"""Batches and jobs by what an owner calls them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs import Batch, BatchCounts, HoldReason, JobState
from cluster.store.rows import limits_of
from cluster.store.schema import attempts, batches, jobs

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


def batch_from(c: Connection, row: sa.Row[Any], now: int) -> Batch:
    """A `Batch` of a row of `batches`, with its counts. The queued jobs of a held batch count as held."""
    by_state = {
        JobState(state): number
        for state, number in c.execute(
            sa.select(jobs.c.state, sa.func.count()).where(jobs.c.batch_id == row.id).group_by(jobs.c.state)
        ).tuples()
    }
    held_by: dict[HoldReason, int] = {}
    if by_state.get(JobState.HELD):
        reasons = (
            sa.select(jobs.c.reason, sa.func.count())
            .where(jobs.c.batch_id == row.id, jobs.c.state == JobState.HELD.value)
            .group_by(jobs.c.reason)
        )
        held_by = {HoldReason(str(reason)): number for reason, number in c.execute(reasons).tuples()}
    held = HoldReason(row.held) if row.held else None
    if held is not None and (queued := by_state.pop(JobState.QUEUED, 0)):
        by_state[JobState.HELD] = by_state.get(JobState.HELD, 0) + queued
        held_by[held] = held_by.get(held, 0) + queued
    made = c.scalar(sa.select(sa.func.count()).where(attempts.c.batch_id == row.id)) or 0
    return _batch(row, now, by_state, held_by, attempts_made=made)


def glance_at(c: Connection, row: sa.Row[Any], now: int) -> Batch:
    """A `Batch` whose counts only say whether there is any: as quick for a million rows as for one."""
    mine = jobs.c.batch_id == row.id
    there = {state: sa.exists().where(mine, jobs.c.state == state.value) for state in JobState}
    approval = sa.exists().where(mine, jobs.c.state == JobState.HELD.value, jobs.c.reason == HoldReason.APPROVAL.value)
    found = c.execute(sa.select(*(one.label(state.value) for state, one in there.items()), approval.label("approval")))
    any_of = found.one()._mapping
    by_state = {state: int(any_of[state.value]) for state in JobState}
    return _batch(row, now, by_state, {HoldReason.APPROVAL: 1} if any_of["approval"] else {})


def _batch(
    row: sa.Row[Any],
    now: int,
    by_state: dict[JobState, int],
    held_by: dict[HoldReason, int],
    attempts_made: int = 0,
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
    )


def find(c: Connection, owner: str, text: str) -> str:
    """The whole id of the owner's batch or job that is called so, or begins so where no other does.

    What follows the underscore is enough. Raises `NoSuchBatchError`, `NoSuchJobError`, `AmbiguousIdError`.
    """
    kind, _, rest = text.partition("_")
    tables = {"batch": (batches,), "video": (jobs,)}.get(kind, (batches, jobs) if not rest else ())
    rest = rest or text
    found: list[str] = []
    for table in tables:
        prefix = "batch_" if table is batches else "video_"
        # A range, which an index answers; ids are of hexadecimal digits and hyphens.
        whole = sa.and_(table.c.id >= prefix + rest, table.c.id < prefix + rest + "~")
        found += c.scalars(sa.select(table.c.id).where(table.c.owner == owner, whole).limit(2))
    if text in found:
        return text
    if len(found) > 1:
        raise AmbiguousIdError(f"several ids begin with {text!r}, such as {' and '.join(found[:2])}: write more of it")
    if found and len(rest) >= SHORTEST_PREFIX:
        return found[0]
    if kind == "video":
        raise NoSuchJobError(f"there is no job {text!r}; `clipmill status BATCH --json` lists a batch's jobs")
    raise NoSuchBatchError(f"there is no batch or job {text!r}; `clipmill status` lists the batches there are")
