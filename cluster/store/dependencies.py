"""Rows that wait for other rows: names become ids when a batch is sealed, and every completion is passed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.jobs.after import problems_of
from cluster.jobs.model import FINAL_STATES, JobState
from cluster.jobs.transitions import Happening
from cluster.store.counters import count
from cluster.store.database import Database
from cluster.store.schema import jobs
from cluster.store.transitions import moves, values_of
from cluster.store.webhooks.again import watch_again, watch_drafts
from pipeline.problems import Problem

#: Ids in one statement.
_MANY = 1000
_ENDINGS = {JobState.FAILED.value: "failed", JobState.CANCELLED.value: "was cancelled"}


def follow(database: Database, c: Connection, now: int, job_ids: Iterable[str]) -> None:
    """Pass on what became of these jobs to those that wait for them, and to those that wait for these.

    Waiting jobs of a completed one are released, those of a failed or cancelled one fail, and those that failed
    because of one that lives again wait for it again. Within the caller's transaction.
    """
    frontier = list(job_ids)
    while frontier:
        found: list[str] = []
        for some in chunks(frontier, _MANY):
            found += _pass_on(database, c, now, some)
        frontier = found


def follow_batch(database: Database, c: Connection, now: int, batch_id: str | None = None) -> None:
    """Pass on what became of every job of a batch, or of the store: nothing that was missed stays held for ever."""
    waiting = jobs.alias("waiting")
    query = (
        sa.select(jobs.c.id)
        .distinct()
        .join(waiting, waiting.c.after == jobs.c.id)
        .where(waiting.c.after.is_not(None), waiting.c.state.in_([JobState.HELD.value, JobState.FAILED.value]))
    )
    if batch_id is not None:
        query = query.where(jobs.c.batch_id == batch_id)
    follow(database, c, now, c.scalars(query).all())


def resolve_names(database: Database, c: Connection, now: int, owner: str, batch_id: str) -> None:
    """Put ids for what the rows of a complete batch wait for; rows that wait for nothing real fail.

    What is named is a row of the batch by its name, else a job of the owner by its id. Does nothing the second time.
    """
    mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id)
    columns = (jobs.c.id, jobs.c.name, jobs.c.after, jobs.c.content_key, jobs.c.family, jobs.c.resolution_class)
    waiting = c.execute(sa.select(*columns).where(mine, jobs.c.after.is_not(None))).all()
    if not waiting:
        return
    names: dict[str, str] = {}
    # Names of rows that cannot be rendered need not be unique: a good row's counts.
    for row in c.execute(sa.select(*columns).where(mine).order_by(jobs.c.content_key.is_not(None))):
        names[row.name] = row.id
    written = {str(row.after) for row in waiting}
    known = {
        job_id
        for some in chunks(sorted(written), _MANY)
        for job_id in c.scalars(sa.select(jobs.c.id).where(jobs.c.owner == owner, jobs.c.id.in_(some)))
    }
    before = {row.id: names.get(row.after) or (row.after if row.after in known else None) for row in waiting}
    calls = {row.id: row.name for row in waiting}
    bad = problems_of(before, calls, {row.id: str(row.after) for row in waiting})
    for row in waiting:
        first = before[row.id]
        if first is not None and first != row.after and row.id not in bad:
            c.execute(sa.update(jobs).where(jobs.c.id == row.id).values(after=first))
        elif row.id in bad:
            # As a row that never could be rendered: trying it again would not help.
            values = {"problems": [bad[row.id].model_dump()], "content_key": None, "after": None}
            failed = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == row.id, moves(Happening.BEFORE_UNKNOWN))
                .values(values_of(Happening.BEFORE_UNKNOWN, now) | values)
            )
            if failed.rowcount:
                labels = {"model": row.family, "resolution_class": row.resolution_class}
                count(database, c, "clips", outcome="invalid", **labels)
    good = {first for job_id, first in before.items() if first is not None and job_id not in bad}
    follow(database, c, now, sorted(good))


def _pass_on(database: Database, c: Connection, now: int, some: Sequence[str]) -> list[str]:
    """One round; returns the jobs that changed and may be waited for themselves."""
    awaited = c.execute(sa.select(jobs.c.id, jobs.c.name, jobs.c.state).where(jobs.c.id.in_(some), _is_awaited())).all()
    completed = [first.id for first in awaited if first.state == JobState.COMPLETED]
    alive = [first.id for first in awaited if JobState(first.state) not in FINAL_STATES]
    changed: list[str] = []
    if completed:
        freed = c.execute(
            sa.update(jobs)
            .where(jobs.c.after.in_(completed), jobs.c.state == JobState.HELD.value, moves(Happening.BEFORE_DONE))
            .values(**values_of(Happening.BEFORE_DONE, now))
            .returning(jobs.c.batch_id, jobs.c.rounds_left)
        ).all()
        watch_drafts(c, {row.batch_id for row in freed if row.rounds_left})
    if alive:
        revived = c.execute(
            sa.update(jobs)
            .where(jobs.c.after.in_(alive), jobs.c.state == JobState.FAILED.value, moves(Happening.BEFORE_REVIVED))
            .values(**values_of(Happening.BEFORE_REVIVED, now))
            .returning(jobs.c.id, jobs.c.batch_id)
        ).all()
        changed += [row.id for row in revived]
        watch_again(c, {row.batch_id for row in revived})
    for first in awaited:
        if first.state not in _ENDINGS:
            continue
        problem = Problem(
            field="after",
            message=f"row {first.name!r}, which it waits for, {_ENDINGS[first.state]}",
            remedy="Retry that row: this one then waits for it again.",
        )
        lost = c.execute(
            sa.update(jobs)
            .where(jobs.c.after == first.id, jobs.c.state == JobState.HELD.value, moves(Happening.BEFORE_LOST))
            .values(values_of(Happening.BEFORE_LOST, now) | {"problems": [problem.model_dump()]})
            .returning(jobs.c.id, jobs.c.family, jobs.c.resolution_class)
        ).all()
        for row in lost:
            changed.append(row.id)
            count(database, c, "clips", model=row.family, resolution_class=row.resolution_class, outcome="failed")
    return changed


def _is_awaited() -> sa.Exists:
    waiting = jobs.alias("waiting")
    return sa.exists().where(waiting.c.after == jobs.c.id, waiting.c.after.is_not(None))
