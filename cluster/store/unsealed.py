"""Batches whose rows never came in whole: whoever handed them in died on the way, and did not come back."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.model import Draft
from cluster.store.batches import BatchStore
from cluster.store.database import Database
from cluster.store.schema import batches, idempotency_keys, jobs
from pipeline.problems import Problem

#: A batch that is being handed in and got no row for so long has been given up, in seconds: many times what a chunk of
#: rows with their stills takes.
UNSEALED_S = 600
#: What the row is called that stands for those that never came.
REST = "rest of the manifest"


@dataclass(frozen=True, kw_only=True)
class Unsealed:
    """A batch that nobody hands in any more."""

    id: str
    owner: str
    #: How many rows are in, and the number of the last.
    rows: int
    last: int
    #: By what key it was handed in; None: by none.
    key: str | None


def given_up(database: Database, c: Connection, for_s: int = UNSEALED_S) -> list[Unsealed]:
    """Batches that are not whole and got no row for `for_s` seconds, the oldest first.

    Those of a `render` that was broken off are not among them: they say so themselves, and end with its next run.
    """
    before = database.now(c) - for_s
    newest = sa.func.coalesce(sa.func.max(jobs.c.created_at), batches.c.created_at)
    key = sa.select(sa.func.min(idempotency_keys.c.key)).where(idempotency_keys.c.batch_id == batches.c.id)
    query = (
        sa.select(
            batches.c.id,
            batches.c.owner,
            sa.func.count(jobs.c.id).label("rows"),
            sa.func.coalesce(sa.func.max(jobs.c.number), 0).label("last"),
            key.scalar_subquery().label("key"),
        )
        .select_from(batches.outerjoin(jobs, jobs.c.batch_id == batches.c.id))
        .where(sa.not_(batches.c.sealed), batches.c.attended_until.is_(None), batches.c.created_at < before)
        .group_by(batches.c.id, batches.c.owner, batches.c.created_at)
        .having(newest < before)
        .order_by(batches.c.created_at, batches.c.id)
    )
    return [Unsealed(**row._mapping) for row in c.execute(query)]


def is_handed_in(database: Database, c: Connection, batch_id: str, for_s: int = UNSEALED_S) -> bool:
    """Whether rows of a batch may still come: it is not whole, and began or got a row within `for_s` seconds."""
    newest = sa.func.coalesce(
        sa.select(sa.func.max(jobs.c.created_at)).where(jobs.c.batch_id == batches.c.id).scalar_subquery(),
        batches.c.created_at,
    )
    open_one = sa.and_(batches.c.id == batch_id, sa.not_(batches.c.sealed), newest >= database.now(c) - for_s)
    return c.scalar(sa.select(batches.c.id).where(open_one)) is not None


def expire_unsealed(database: Database, for_s: int = UNSEALED_S) -> list[Unsealed]:
    """Close batches that nobody hands in any more; returns them.

    What is in of them is rendered. A row that failed stands for the rest and says what to do, so the batch ends failed.
    The key it was handed in by is free again: with it the whole manifest makes a new batch, which shares the clips.
    """
    with database.read() as c:
        found = given_up(database, c, for_s)
    store = BatchStore(database)
    for batch in found:
        store.add(batch.owner, batch.id, [_rest(batch)])
        # Before it is sealed: from then on its key would give it back instead of taking its rows.
        store.release_key(batch.owner, batch.id)
        store.seal(batch.owner, batch.id)
    return found


def _rest(batch: Unsealed) -> Draft:
    again = f"with the key {batch.key!r} or any other" if batch.key else "as it is"
    problem = Problem(
        field="manifest",
        message=f"it was not handed in whole: {batch.rows} rows came, then nothing for a long time",
        remedy=f"Hand the whole manifest in again, {again}: clips that exist are shared, only the rest is rendered.",
    )
    return Draft(number=batch.last + 1, name=REST, row={}, problems=(problem,))
