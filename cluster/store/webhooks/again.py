"""What becomes news again: the end of a batch that goes on after it, and drafts after somebody has decided."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.model import JobState
from cluster.store.bulk import among
from cluster.store.schema import batches, jobs


def watch_again(c: Connection, batch_ids: Collection[str]) -> None:
    """Rows of these batches that had ended are to be rendered after all: what comes of them will be told.

    Within the transaction that moved them, so that an end which follows at once is none that was told before. A first
    failure is told again where no failed row is left.
    """
    if not batch_ids:
        return
    failed = sa.exists().where(jobs.c.batch_id == batches.c.id, jobs.c.state == JobState.FAILED.value)
    told = sa.case((failed, batches.c.failure_told_at), else_=None)
    c.execute(
        sa.update(batches)
        .where(among(batches.c.id, sorted(set(batch_ids))))
        .values(end_told_at=None, failure_told_at=told)
    )


def watch_drafts(c: Connection, batch_ids: Collection[str]) -> None:
    """Rows of these batches may come to another draft: once nothing else is left, that it waits will be told.

    Within the transaction that moved them, as `watch_again`.
    """
    if batch_ids:
        which = among(batches.c.id, sorted(set(batch_ids)))
        c.execute(sa.update(batches).where(which).values(review_told_at=None))
