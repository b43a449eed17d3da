"""Which checkpoints jobs go on from, and which may be deleted. Within the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.jobs.model import FINAL_STATES, StoredCheckpoint
from cluster.store.bulk import among, is_one_of, unindexed
from cluster.store.database import Database
from cluster.store.queues import WALK_INDEXES
from cluster.store.schema import attempts, jobs

#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
#: Sorted, so that a statement's text is the same in any process.
_FINAL = sorted(state.value for state in FINAL_STATES)

#: Records the checkpoints of many jobs at once: `its_id`, `its_key`, `its_step`.
RECORD_CHECKPOINT = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("its_id"))
    .values(checkpoint_key=sa.bindparam("its_key"), checkpoint_step=sa.bindparam("its_step"))
)


def record(c: Connection, newest: Mapping[str, StoredCheckpoint]) -> list[str]:
    """Record the newest checkpoints of attempts, by attempt id, where these run; keys of those that they replace."""
    # Writers come one after the other: what is read here stays true until this commits.
    if not newest:
        return []
    found = [
        row for row in c.execute(_CHECKPOINTS_OF, {"ids": list(newest)}) if row.checkpoint_key != newest[row.id].key
    ]
    if found:
        c.execute(
            RECORD_CHECKPOINT,
            [{"its_id": row.job, "its_key": newest[row.id].key, "its_step": newest[row.id].step} for row in found],
        )
    return [row.checkpoint_key for row in found if row.checkpoint_key]


def of_ended(c: Connection, limit: int) -> list[str]:
    """Ids of jobs that have ended and still name a checkpoint which no other job may go on from."""
    return list(c.scalars(_CHECKPOINTED, {"limit": limit}))


def unwanted(database: Database, c: Connection, keys: Collection[str]) -> set[str]:
    """The `keys` that no job names: of jobs of equal content several may name the same."""
    if not database.is_sqlite:
        # Few rows have a checkpoint, which statistics of a table that was just filled do not say.
        c.exec_driver_sql(WALK_INDEXES)
    return set(keys) - set(c.scalars(_NAMED_CHECKPOINTS, {"keys": list(keys)}))


def forget(c: Connection, job_ids: Sequence[str]) -> dict[str, str | None]:
    """Take their checkpoints from jobs that have ended and have no heir; the keys, by job."""
    forgotten: dict[str, str | None] = {}
    for some in chunks(job_ids, _MANY):
        which = sa.and_(jobs.c.id.in_(some), _has_ended(), ~_has_heir())
        # Writers come one after the other: what is read here is what is written over.
        forgotten |= {row.id: row.checkpoint_key for row in c.execute(_NAMES.where(which))}
        c.execute(sa.update(jobs).where(which).values(checkpoint_key=None, checkpoint_step=None))
    return forgotten


def ended_among(c: Connection, job_ids: Collection[str]) -> set[str]:
    """The jobs among `job_ids` that have ended and have no heir."""
    return set(c.scalars(_ENDED_AMONG, {"ids": list(job_ids)}))


def _has_ended() -> sa.ColumnElement[bool]:
    return is_one_of(jobs.c.state, *_FINAL)


def _has_heir() -> sa.Exists:
    """Whether a job of equal content and the same owner may go on from the checkpoint of a row of `jobs`."""
    heir = jobs.alias("heir")
    return sa.exists().where(
        heir.c.owner == jobs.c.owner,
        heir.c.content_key == jobs.c.content_key,
        heir.c.id != jobs.c.id,
        ~is_one_of(heir.c.state, *_FINAL),
    )


# Made once: to build a statement takes longer than to run it.
_HAS_CHECKPOINT = jobs.c.checkpoint_key.is_not(None)
_CHECKPOINTED = sa.select(jobs.c.id).where(_has_ended(), ~_has_heir(), _HAS_CHECKPOINT).limit(sa.bindparam("limit"))
_ENDED_AMONG = sa.select(jobs.c.id).where(
    among(jobs.c.id, "ids"), is_one_of(unindexed(jobs.c.state), *_FINAL), ~_has_heir()
)
_NAMES = sa.select(jobs.c.id, jobs.c.checkpoint_key)
_NAMED_CHECKPOINTS = sa.select(jobs.c.checkpoint_key).where(
    _HAS_CHECKPOINT, among(unindexed(jobs.c.checkpoint_key), "keys")
)
_CHECKPOINTS_OF = (
    sa.select(attempts.c.id, jobs.c.id.label("job"), jobs.c.checkpoint_key)
    .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence))
    .where(among(attempts.c.id, "ids"), attempts.c.outcome.is_(None))
)
