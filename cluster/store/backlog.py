"""What waits and what it usually takes: the figures behind demand and metrics."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from cluster.demand import WaitingKind
from cluster.jobs import Outcome
from cluster.store.database import Database
from cluster.store.heads import counts
from cluster.store.schema import attempts, jobs

#: Finished attempts looked at for the mean: the newest say most of what the next will take.
_NEWEST = 1000


def waiting_kinds(database: Database) -> list[WaitingKind]:
    """Queued jobs by kind; attended batches nobody waits for are left out, for nothing of them will start."""
    kinds: Counter[tuple[str, str, int]] = Counter()
    for queue in counts(database):
        kinds[queue.model, queue.resolution_class, queue.needs_bytes] += queue.jobs
    return [
        WaitingKind(model=model, resolution_class=size, needs_bytes=needs_bytes, jobs=number)
        for (model, size, needs_bytes), number in kinds.items()
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
