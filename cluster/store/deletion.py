"""What the store lets go of when an owner deletes a batch that is over. Each call is one short transaction.

Rows of the batch, their attempts and its idempotency key go. A clip's row stays, marked as expired where no other batch
shows it: rows of equal content handed in later take its place.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.jobs.model import JobState, Objects
from cluster.jobs.transitions import RefusedError, Verb
from cluster.store.commands import CommandStore
from cluster.store.counters import Counts
from cluster.store.database import Database
from cluster.store.dependencies import follow
from cluster.store.lookup import glance_at, require_batch
from cluster.store.rows import CLASS_OF_ATTEMPT, objects_from
from cluster.store.schema import attempts, batches, clips, idempotency_keys, jobs
from cluster.store.unsealed import is_handed_in
from cluster.store.webhooks.telling import tell_batch

#: Rows that go in one transaction, which takes some tenths of a second then.
ROWS_AT_ONCE = 2000
#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
#: Jobs in these states show no clip, and wait for none.
_SHOWS_NONE = [JobState.FAILED.value, JobState.CANCELLED.value]


@dataclass(frozen=True, kw_only=True)
class DeletionPlan:
    """What goes with a batch, and what stays."""

    rows: int
    attempts: int
    #: Clips that no other batch shows.
    clips: int
    #: Length of the videos of those clips, in bytes.
    video_bytes: int
    #: Clips that rows of other batches show too: they stay.
    shared: int


@dataclass(frozen=True, kw_only=True)
class DyingRows:
    """Some rows of a batch that is being deleted, and what of them may be deleted in storage."""

    job_ids: tuple[str, ...]
    #: Jobs that had an attempt, which may have written something.
    attempted: tuple[str, ...]
    #: Objects of clips that nobody shows any more.
    objects: tuple[Objects, ...]


def plan_deletion(database: Database, owner: str, batch_id: str) -> DeletionPlan:
    """What would go with a batch. Raises `NoSuchBatchError`, and `RefusedError` where it is not over."""
    with database.read() as c:
        _require_over(database, c, owner, batch_id)
        mine = jobs.c.batch_id == batch_id
        rows = c.scalar(sa.select(sa.func.count()).where(mine)) or 0
        made = c.scalar(sa.select(sa.func.count()).where(attempts.c.batch_id == batch_id)) or 0
        shown = sa.select(jobs.c.clip_id).where(mine, jobs.c.clip_id.is_not(None))
        found = c.execute(
            sa.select(clips.c.objects, clips.c.expired_at, _is_shown_elsewhere(batch_id).label("shared")).where(
                clips.c.id.in_(shown)
            )
        ).all()
    mine_alone = [objects_from(row.objects) for row in found if not row.shared and row.expired_at is None]
    return DeletionPlan(
        rows=rows,
        attempts=made,
        clips=len(mine_alone),
        video_bytes=sum(one.video_bytes for one in mine_alone),
        shared=sum(bool(row.shared) for row in found),
    )


def begin_deletion(database: Database, owner: str, batch_id: str) -> None:
    """Let nothing more come into a batch. Raises `NoSuchBatchError`, and `RefusedError` where it is not over.

    What was left of a batch that nobody waits for or hands in any more is cancelled. From here on it may have fewer
    rows than were handed in, so that what is left where a deletion breaks off contradicts nothing.
    """
    with database.read() as c:
        is_done = _require_over(database, c, owner, batch_id)
    if not is_done:
        CommandStore(database).batch(owner, batch_id, Verb.CANCEL)
    with database.write() as c:
        _require_over(database, c, owner, batch_id)
        now = database.now(c)
        # While all rows are there to be counted; from here on nothing of it is news.
        tell_batch(database, c, now, batch_id)
        gone = {"sealed": True, "rows_sealed": None, "end_told_at": now, "failure_told_at": now}
        c.execute(sa.update(batches).where(batches.c.id == batch_id).values(**gone))


def next_rows(database: Database, owner: str, batch_id: str, limit: int = ROWS_AT_ONCE) -> DyingRows | None:
    """The next rows of a batch to be deleted, None where there are none left.

    Clips that only these rows show are marked as expired, and their checkpoints forgotten, before it returns: the
    objects may then be deleted. Raises `NoSuchBatchError`, and `RefusedError` where the batch is not over.
    """
    with database.write() as c:
        _require_over(database, c, owner, batch_id)
        found = c.execute(
            sa.select(jobs.c.id, jobs.c.clip_id, jobs.c.fence)
            .where(jobs.c.batch_id == batch_id)
            .order_by(jobs.c.number)
            .limit(limit)
        ).all()
        if not found:
            return None
        objects: list[Objects] = []
        dying = {row.clip_id for row in found if row.clip_id}
        for some in chunks((row.id for row in found), _MANY):
            # Drafts that were approved, and clips that were made again: these rows made them, and show others.
            made = sa.select(clips.c.id).join(attempts, attempts.c.id == clips.c.attempt_id)
            dying.update(c.scalars(made.where(attempts.c.job_id.in_(some), clips.c.expired_at.is_(None))))
        for some in chunks(sorted(dying), _MANY):
            # Of rows further on in this batch too: they go next.
            alone = sa.and_(clips.c.id.in_(some), ~_is_shown_elsewhere(batch_id))
            now = database.now(c)
            expired = sa.func.coalesce(clips.c.expired_at, now)
            marked = sa.update(clips).where(alone).values(expired_at=expired).returning(clips.c.objects)
            objects += [objects_from(row.objects) for row in c.execute(marked)]
        for some in chunks((row.id for row in found), _MANY):
            forgotten = {"checkpoint_key": None, "checkpoint_step": None}
            c.execute(sa.update(jobs).where(jobs.c.id.in_(some)).values(**forgotten))
    return DyingRows(
        job_ids=tuple(row.id for row in found),
        attempted=tuple(row.id for row in found if row.fence > 0),
        objects=tuple(objects),
    )


def wanted_checkpoints(database: Database, keys: Collection[str]) -> set[str]:
    """The `keys` of checkpoints that some job goes on from."""
    with database.read() as c:
        return {
            key
            for some in chunks(sorted(keys), _MANY)
            for key in c.scalars(sa.select(jobs.c.checkpoint_key).where(jobs.c.checkpoint_key.in_(some)))
        }


def drop_rows(database: Database, owner: str, batch_id: str, rows: DyingRows) -> None:
    """Delete these rows and their attempts. Raises `RefusedError` where one was put back to work meanwhile."""
    with database.write() as c:
        _require_over(database, c, owner, batch_id)
        # What these became is passed on first: nothing waits for a row that is gone.
        follow(database, c, database.now(c), rows.job_ids)
        counts = Counts()
        for some in chunks(rows.job_ids, _MANY):
            _count_deleted(c, some, counts)
            c.execute(sa.update(jobs).where(jobs.c.after.in_(some)).values(after=None))
            c.execute(sa.delete(attempts).where(attempts.c.job_id.in_(some)))
            c.execute(sa.delete(jobs).where(jobs.c.id.in_(some), jobs.c.batch_id == batch_id))
        counts.write(database, c)


def drop_batch(database: Database, owner: str, batch_id: str) -> bool:
    """Delete a batch without rows, its idempotency keys with it. False where it has some, or is gone already."""
    mine = sa.and_(batches.c.owner == owner, batches.c.id == batch_id)
    empty = sa.and_(mine, ~sa.exists().where(jobs.c.batch_id == batch_id))
    with database.write() as c:
        if c.scalar(sa.select(batches.c.id).where(empty)) is None:
            return False
        c.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.batch_id == batch_id))
        c.execute(sa.delete(batches).where(empty))
    return True


def _require_over(database: Database, c: Connection, owner: str, batch_id: str) -> bool:
    """Whether every row of a batch has ended; False: what is left of it is for nobody. Raises as `plan_deletion`."""
    row = require_batch(c, owner, batch_id)
    batch = glance_at(c, row, database.now(c))
    if batch.done:
        return True
    if batch.counts[JobState.RUNNING]:
        why = "clips of it are being rendered; `clipmill cancel` stops them"
    elif batch.abandoned:
        # Nobody waits for it, so nothing of it starts.
        return False
    elif not batch.sealed and is_handed_in(database, c, batch_id):
        why = "it is being handed in; `clipmill cancel` ends that"
    elif batch.counts.total > batch.counts.final:
        why = "rows of it have not ended; `clipmill cancel` ends them"
    else:
        return False
    raise RefusedError("delete", batch_id, why)


def _is_shown_elsewhere(batch_id: str) -> sa.Exists:
    """Whether a row of another batch shows a row of `clips`, or waits for it."""
    other = jobs.alias("other")
    # By the content, which has an index: whoever shares a clip has it.
    return sa.exists().where(
        other.c.owner == clips.c.owner,
        other.c.content_key == clips.c.content_key,
        other.c.batch_id != batch_id,
        other.c.state.not_in(_SHOWS_NONE),
    )


def _count_deleted(c: Connection, job_ids: Collection[str], counts: Counts) -> None:
    """Count the attempts that go, so that counters can still be compared with the tables."""
    labels = (jobs.c.family, CLASS_OF_ATTEMPT.label("resolution_class"), attempts.c.card_class, attempts.c.outcome)
    query = (
        sa.select(*labels, sa.func.count().label("number"))
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(jobs.c.id.in_(job_ids), attempts.c.outcome.is_not(None))
        .group_by(jobs.c.family, CLASS_OF_ATTEMPT, attempts.c.card_class, attempts.c.outcome)
    )
    for row in c.execute(query):
        counts.add(
            "attempts_deleted",
            model=row.family,
            resolution_class=row.resolution_class,
            card_class=row.card_class,
            outcome=row.outcome,
            by=row.number,
        )
