"""What waits and what it usually takes: the figures behind demand and metrics."""

from __future__ import annotations

import sqlalchemy as sa

from cluster.demand import WaitingKind
from cluster.jobs import JobState, Outcome
from cluster.store.database import Database
from cluster.store.rows import is_attended
from cluster.store.schema import attempts, batches, jobs

#: Finished attempts looked at for the mean: the newest say most of what the next will take.
_NEWEST = 1000


def waiting_kinds(database: Database) -> list[WaitingKind]:
    """Queued jobs by kind; attended batches nobody waits for are left out, for nothing of them will start."""
    with database.read() as c:
        now = database.now(c)
        rows = c.execute(
            sa.select(jobs.c.family, jobs.c.resolution_class, jobs.c.needs_bytes, sa.func.count().label("number"))
            .join(batches, batches.c.id == jobs.c.batch_id)
            .where(jobs.c.state == JobState.QUEUED.value)
            .where(is_attended(now))
            .group_by(jobs.c.family, jobs.c.resolution_class, jobs.c.needs_bytes)
        ).all()
    return [
        WaitingKind(
            model=row.family, resolution_class=row.resolution_class, needs_bytes=row.needs_bytes, jobs=row.number
        )
        for row in rows
    ]


def mean_gpu_seconds(database: Database) -> dict[tuple[str, str], float]:
    """Mean seconds of the newest completed attempts by (model, resolution class), at least half a second."""
    newest = (
        sa.select(attempts.c.job_id, (attempts.c.ended_at - attempts.c.started_at).label("seconds"))
        .where(attempts.c.outcome == Outcome.COMPLETED.value)
        .order_by(attempts.c.id.desc())
        .limit(_NEWEST)
        .subquery()
    )
    query = (
        sa.select(jobs.c.family, jobs.c.resolution_class, sa.func.avg(newest.c.seconds).label("mean"))
        .join(newest, newest.c.job_id == jobs.c.id)
        .group_by(jobs.c.family, jobs.c.resolution_class)
    )
    with database.read() as c:
        return {(row.family, row.resolution_class): max(0.5, float(row.mean)) for row in c.execute(query)}
