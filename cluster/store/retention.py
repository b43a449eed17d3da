"""What the store lets go of, and what it still wants of a storage. Each call is one short transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from cluster.chunks import chunks
from cluster.jobs.model import JobState, Objects
from cluster.store.bulk import ParameterTable
from cluster.store.database import Database
from cluster.store.rows import objects_from
from cluster.store.schema import attempts, clips, jobs, stills

#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
_ENDED_BADLY = [JobState.FAILED.value, JobState.CANCELLED.value]
_FINAL = [JobState.COMPLETED.value, *_ENDED_BADLY]
_NAMES = ParameterTable(name="given", columns={"sha256": sa.String()})


@dataclass(frozen=True)
class OldClip:
    """A clip that is kept no longer."""

    id: str
    created_at: int
    objects: Objects


@dataclass(frozen=True)
class OldCheckpoint:
    """A checkpoint of a waiting job that is kept no longer."""

    job_id: str
    key: str


def old_clips(
    database: Database, before: int, limit: int, after: OldClip | None = None, *, let_go: bool = False
) -> list[OldClip]:
    """Clips of which no job was made or touched since `before`, oldest first, those behind `after`.

    `let_go`: only those that no job has but such as were let go of in review.
    """
    query = (
        sa.select(clips.c.id, clips.c.created_at, clips.c.objects)
        .where(clips.c.expired_at.is_(None), clips.c.created_at < before, ~_wanted_since(before, let_go=let_go))
        .order_by(clips.c.created_at, clips.c.id)
        .limit(limit)
    )
    if after is not None:
        behind = sa.and_(clips.c.created_at == after.created_at, clips.c.id > after.id)
        query = query.where(sa.or_(clips.c.created_at > after.created_at, behind))
    with database.read() as c:
        return [OldClip(row.id, row.created_at, objects_from(row.objects)) for row in c.execute(query)]


def expire(database: Database, clip_ids: Sequence[str], before: int, *, let_go: bool = False) -> list[OldClip]:
    """Mark clips as expired; those that were wanted again meanwhile are left out. Their objects may then be deleted."""
    expired = []
    with database.write() as c:
        for some in chunks(clip_ids, _MANY):
            rows = c.execute(
                sa.update(clips)
                .where(clips.c.id.in_(some), clips.c.expired_at.is_(None), ~_wanted_since(before, let_go=let_go))
                .values(expired_at=database.now(c))
                .returning(clips.c.id, clips.c.created_at, clips.c.objects)
            )
            expired += [OldClip(row.id, row.created_at, objects_from(row.objects)) for row in rows]
    return expired


def old_checkpoints(database: Database, before: int) -> list[OldCheckpoint]:
    """Checkpoints of jobs that have waited since before that time."""
    with database.read() as c:
        rows = c.execute(sa.select(jobs.c.id, jobs.c.checkpoint_key).where(_waits_with_checkpoint(before)))
        return [OldCheckpoint(row.id, row.checkpoint_key) for row in rows]


def drop_checkpoints(database: Database, old: Sequence[OldCheckpoint], before: int) -> list[OldCheckpoint]:
    """Let jobs begin anew whose checkpoints these are; those that have started meanwhile are left out.

    An object that another job may go on from is not among those returned, which may be deleted.
    """
    with database.write() as c:
        dropped: list[str] = []
        for some in chunks((one.job_id for one in old), _MANY):
            dropped += c.scalars(
                sa.update(jobs)
                .where(jobs.c.id.in_(some), _waits_with_checkpoint(before))
                .values(checkpoint_key=None, checkpoint_step=None)
                .returning(jobs.c.id)
            )
        keys = {one.key: one for one in old if one.job_id in set(dropped)}
        wanted = {
            key
            for some in chunks(keys, _MANY)
            for key in c.scalars(sa.select(jobs.c.checkpoint_key).where(jobs.c.checkpoint_key.in_(some)))
        }
    return [one for key, one in keys.items() if key not in wanted]


def attempts_in_use(database: Database, job_ids: Collection[str]) -> dict[str, set[str]]:
    """By job, of those given: its attempts whose objects a clip names, or that still run and may write some."""
    used: dict[str, set[str]] = {job_id: set() for job_id in job_ids}
    named = sa.and_(clips.c.attempt_id == attempts.c.id, clips.c.expired_at.is_(None))
    with database.read() as c:
        for some in chunks(job_ids, _MANY):
            rows = c.execute(
                sa.select(attempts.c.job_id, attempts.c.id)
                # By the attempt, not by what its job asks for: after a review that is another clip than it made before,
                # which others may show.
                .outerjoin(clips, named)
                .where(attempts.c.job_id.in_(some), sa.or_(attempts.c.outcome.is_(None), clips.c.id.is_not(None)))
            )
            for row in rows:
                used[row.job_id].add(row.id)
    return used


def known_jobs(database: Database, job_ids: Collection[str]) -> set[str]:
    """The `job_ids` that this store has."""
    with database.read() as c:
        return {
            job_id
            for some in chunks(job_ids, _MANY)
            for job_id in c.scalars(sa.select(jobs.c.id).where(jobs.c.id.in_(some)))
        }


def known_stills(database: Database, names: Collection[str]) -> set[str]:
    """The stills among `names` (SHA-256) that were handed in to this store, or that one of its jobs is made from."""
    given = _NAMES.table(sqlite=database.is_sqlite)
    rows = _NAMES.bound([(name,) for name in sorted(names)], sqlite=database.is_sqlite)
    handed_in = sa.select(stills.c.sha256).join(given, given.c.sha256 == stills.c.sha256)
    used = sa.select(jobs.c.still).join(given, given.c.sha256 == jobs.c.still)
    with database.read() as c:
        return {*c.scalars(handed_in, rows), *c.scalars(used, rows)}


def unwanted_stills(
    database: Database, names: Collection[str], *, completed_before: int | None, failed_before: int | None, seen: int
) -> list[str]:
    """Stills (SHA-256) of `names` that no job wants any more.

    A job wants its still until it ended before `completed_before` or `failed_before` (None: for ever). One that was
    handed in after `seen` may be about to get its job.
    """
    ended = [
        sa.and_(jobs.c.state.in_(states), jobs.c.updated_at < before)
        for states, before in (([JobState.COMPLETED.value], completed_before), (_ENDED_BADLY, failed_before))
        if before is not None
    ]
    given = _NAMES.table(sqlite=database.is_sqlite)
    rows = _NAMES.bound([(name,) for name in sorted(names)], sqlite=database.is_sqlite)
    wanted = sa.select(jobs.c.still).join(given, given.c.sha256 == jobs.c.still).distinct()
    if ended:
        wanted = wanted.where(sa.not_(sa.or_(*ended)))
    new = sa.select(stills.c.sha256).join(given, given.c.sha256 == stills.c.sha256).where(stills.c.created_at >= seen)
    with database.read() as c:
        return sorted(set(names) - set(c.scalars(wanted, rows)) - set(c.scalars(new, rows)))


def forget_stills(database: Database, names: Sequence[str], seen: int) -> list[str]:
    """Forget that these stills were handed in, but not since `seen`; returns those whose objects may be deleted."""
    with database.write() as c:
        kept: set[str] = set()
        for some in chunks(names, _MANY):
            kept.update(
                c.scalars(sa.select(stills.c.sha256).where(stills.c.sha256.in_(some), stills.c.created_at >= seen))
            )
            c.execute(sa.delete(stills).where(stills.c.sha256.in_([name for name in some if name not in kept])))
    return [name for name in names if name not in kept]


def _wanted_since(before: int, *, let_go: bool) -> sa.Exists:
    wanted = [jobs.c.updated_at >= before, jobs.c.state.not_in(_FINAL)]
    if let_go:
        # Whoever was not let go of wants its clip for as long as clips are kept.
        wanted.append(sa.func.coalesce(jobs.c.picked, sa.true()))
    # By the content, which has an index: whoever shares a clip has it.
    same = sa.and_(jobs.c.owner == clips.c.owner, jobs.c.content_key == clips.c.content_key)
    return sa.exists().where(same, sa.or_(*wanted))


def _waits_with_checkpoint(before: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        jobs.c.state.in_([JobState.QUEUED.value, JobState.HELD.value]),
        jobs.c.checkpoint_key.is_not(None),
        jobs.c.updated_at < before,
    )
