"""What owners read in the store: batches with their counts, jobs as people see them, clips, attempts and cards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from cluster.chunks import chunks
from cluster.fleet.cards import Beat
from cluster.jobs.model import Attempt, Batch, Clip, HoldReason, Job, JobState
from cluster.store.database import Database
from cluster.store.lookup import KeptCounts, NoSuchJobError, find, require_batch
from cluster.store.rows import as_shown, attempt_from, clip_from, job_from, select_jobs, with_clip_notes
from cluster.store.schema import attempts, batches, cards, clips, jobs, tallies
from cluster.store.transitions import other_picked

#: `source` of a batch that was made for one video, and has no other row.
VIDEO_SOURCE = "/v1/videos"
#: A card whose renderer has not been heard for this long is no longer shown.
ROSTER_SECONDS = 15
#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000


class BatchReader:
    """All that an owner (through CLI or gateway) may read. Every query carries the owner."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: Counts of large batches that were looked at a moment ago.
        self.kept_counts = KeptCounts()

    def batch(self, owner: str, batch_id: str) -> Batch:
        """One batch with its counts, those of a large one up to two seconds old. Raises `NoSuchBatchError`."""
        with self.database.read() as c:
            return self.kept_counts.batch(c, require_batch(c, owner, batch_id), self.database.now(c))

    def has_source(self, owner: str, source: str) -> bool:
        """Whether the owner has handed in what comes from `source` before."""
        query = sa.select(sa.exists().where(batches.c.owner == owner, batches.c.source == source))
        with self.database.read() as c:
            return bool(c.scalar(query))

    def failures(self) -> float:
        """A number that is another one once more rows have failed, in any batch."""
        failed = sa.and_(tallies.c.name == "clips", tallies.c.outcome.in_(["failed", "invalid"]))
        with self.database.read() as c:
            return float(c.scalar(sa.select(sa.func.coalesce(sa.func.sum(tallies.c.value), 0)).where(failed)) or 0)

    def batches(self, owner: str, limit: int = 20, *, everything: bool = False) -> list[Batch]:
        """The newest batches first.

        Left out are those without rows, those of single videos, and runs of a catalog that a later run of it has
        replaced; not so with `everything`.
        """
        query = sa.select(batches).where(batches.c.owner == owner)
        with self.database.read() as c:
            now = self.database.now(c)
            if not everything:
                query = query.where(~_is_empty(), ~_is_replaced(now), batches.c.source != VIDEO_SOURCE)
            rows = c.execute(query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)).all()
            return [self.kept_counts.batch(c, row, now) for row in rows]

    def jobs(
        self,
        owner: str,
        batch_id: str,
        *,
        state: JobState | None = None,
        updated_since: int | None = None,
        name: str | None = None,
        after_number: int = -1,
        limit: int | None = None,
        chosen: bool = False,
    ) -> list[Job]:
        """Jobs of a batch in the manifest's order; queued ones of a held batch are held. Raises `NoSuchBatchError`.

        `chosen`: of a row whose clip was picked among several only that one, and none that was rejected.
        """
        query = _shown_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.number > after_number)
        if updated_since is not None:
            query = query.where(jobs.c.updated_at >= updated_since)
        if name is not None:
            query = query.where(jobs.c.name == name)
        if chosen:
            one_of = jobs.c.row_number.is_not(None)
            rejected = sa.and_(one_of, jobs.c.picked.is_(False), jobs.c.state == JobState.COMPLETED.value)
            query = query.where(sa.or_(~one_of, jobs.c.picked.is_(True), ~other_picked()), ~rejected)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            if state is not None:
                query = query.where(jobs.c.state.in_(_stored(state, held)))
            found = c.execute(query.order_by(jobs.c.number).limit(limit))
            return [as_shown(job_from(row), held) for row in found]

    def in_review(self, owner: str, batch_id: str, *, after_number: int = -1, limit: int | None = None) -> list[Job]:
        """Jobs of a batch that somebody has to look at, in the manifest's order. Raises `NoSuchBatchError`.

        They are drafts, and clips of rows that have several, of which none is picked yet.
        """
        mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.number > after_number)
        drafts = sa.and_(jobs.c.state == JobState.HELD.value, jobs.c.reason == HoldReason.REVIEW.value)
        several = sa.and_(jobs.c.row_number.is_not(None), jobs.c.picked.is_(None), ~other_picked())
        waits = sa.or_(drafts, sa.and_(several, jobs.c.state == JobState.COMPLETED.value))
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            found = c.execute(_shown_jobs().where(mine, waits).order_by(jobs.c.number).limit(limit))
            return [as_shown(job_from(row), held) for row in found]

    def of_rows(self, owner: str, batch_id: str, row_numbers: Collection[int]) -> list[Job]:
        """Every job of a batch that is one of several clips of these rows of its manifest."""
        found: list[Job] = []
        mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            for some in chunks(sorted(row_numbers), _MANY):
                query = _shown_jobs().where(mine, jobs.c.row_number.in_(some)).order_by(jobs.c.number)
                found += [as_shown(job_from(row), held) for row in c.execute(query)]
        return found

    def changed(self, owner: str, batch_id: str, since: int, limit: int) -> list[Job]:
        """Jobs of a batch that changed at or after `since` (UTC epoch seconds), the oldest change first.

        Of a look that is full up, all that changed in its last second are there, so a caller can go on from it.
        """
        query = _shown_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.updated_at >= since)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            found = c.execute(query.order_by(*_CHANGED).limit(limit)).all()
            if len(found) == limit:
                last = found[-1].updated_at
                rest = query.where(jobs.c.updated_at == last).order_by(*_CHANGED)
                found = [row for row in found if row.updated_at < last] + list(c.execute(rest))
            return [as_shown(job_from(row), held) for row in found]

    def changes(self, owner: str, batch_id: str, since: int) -> list[tuple[str, int, str]]:
        """Which jobs of a batch changed at or after `since` (UTC epoch seconds), oldest first: id, when, state.

        The state is the job's own, whatever its batch is held for. Many times quicker than the jobs themselves.
        """
        query = sa.select(jobs.c.id, jobs.c.updated_at, jobs.c.state)
        query = query.where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.updated_at >= since)
        with self.database.read() as c:
            return [(row.id, row.updated_at, row.state) for row in c.execute(query.order_by(*_CHANGED))]

    def jobs_of_ids(self, owner: str, batch_id: str, ids: Collection[str]) -> dict[str, Job]:
        """Jobs of a batch by their ids, as they are shown; those that are not there are left out."""
        if not ids:
            return {}
        query = _shown_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            return {
                row.id: as_shown(job_from(row), held)
                for some in chunks(ids, _MANY)
                for row in c.execute(query.where(jobs.c.id.in_(some)))
            }

    def running(self, owner: str, batch_id: str) -> list[Job]:
        """Jobs of a batch that are being rendered."""
        return self.jobs(owner, batch_id, state=JobState.RUNNING)

    def now(self) -> int:
        """UTC epoch seconds by the store's clock."""
        with self.database.read() as c:
            return self.database.now(c)

    def job(self, owner: str, job_id: str) -> Job:
        """One job as its batch's jobs show it. Raises `NoSuchJobError`."""
        query = _shown_jobs().add_columns(batches.c.held.label("batch_held"))
        query = query.join(batches, batches.c.id == jobs.c.batch_id).where(jobs.c.owner == owner, jobs.c.id == job_id)
        with self.database.read() as c:
            row = c.execute(query).one_or_none()
        if row is None:
            raise NoSuchJobError(f"there is no job {job_id!r}; `clipmill status BATCH --json` lists a batch's jobs")
        return as_shown(job_from(row), row.batch_held)

    def find(self, owner: str, text: str) -> str:
        """The whole id of a batch or job by its beginning. Raises what `cluster.store.lookup.find` raises."""
        with self.database.read() as c:
            return find(c, owner, text)

    def clips(self, owner: str, clip_ids: Collection[str]) -> dict[str, Clip]:
        """The owner's finished clips among `clip_ids`, by id."""
        query = sa.select(clips).where(clips.c.owner == owner)
        with self.database.read() as c:
            return {
                row.id: clip_from(row)
                for some in chunks(clip_ids, _MANY)
                for row in c.execute(query.where(clips.c.id.in_(some)))
            }

    def clips_of(self, owner: str, batch_id: str) -> dict[str, Clip]:
        """Finished clips of a batch by clip id."""
        query = (
            sa.select(clips)
            .where(clips.c.owner == owner)
            .where(clips.c.id.in_(sa.select(jobs.c.clip_id).where(jobs.c.owner == owner, jobs.c.batch_id == batch_id)))
        )
        with self.database.read() as c:
            return {row.id: clip_from(row) for row in c.execute(query)}

    def clips_of_keys(self, owner: str, content_keys: Sequence[str]) -> list[Clip]:
        """The owner's finished clips among `content_keys`; none that has expired."""
        query = sa.select(clips).where(clips.c.owner == owner, clips.c.expired_at.is_(None))
        with self.database.read() as c:
            return [
                clip_from(row)
                for some in chunks(content_keys, _MANY)
                for row in c.execute(query.where(clips.c.content_key.in_(some)))
            ]

    def makers(self, owner: str, batch_id: str, attempt_ids: Sequence[str]) -> dict[str, str]:
        """Names of the batch's rows that these attempts were made for, by attempt; others are left out."""
        query = sa.select(attempts.c.id, jobs.c.name).join(jobs, jobs.c.id == attempts.c.job_id)
        query = query.where(attempts.c.owner == owner, attempts.c.batch_id == batch_id)
        with self.database.read() as c:
            return {
                row.id: row.name
                for some in chunks(attempt_ids, _MANY)
                for row in c.execute(query.where(attempts.c.id.in_(some)))
            }

    def attempts_of(self, owner: str, batch_id: str) -> list[Attempt]:
        """Every attempt made for a batch's jobs, oldest first."""
        query = (
            sa.select(attempts)
            .where(attempts.c.owner == owner, attempts.c.batch_id == batch_id)
            # Ids sort by time only from one millisecond to the next.
            .order_by(attempts.c.started_at, attempts.c.job_id, attempts.c.fence)
        )
        with self.database.read() as c:
            return [attempt_from(row) for row in c.execute(query)]

    def attempts_of_job(self, owner: str, job_id: str) -> list[Attempt]:
        """Every attempt made for a job, oldest first."""
        query = sa.select(attempts).where(attempts.c.owner == owner, attempts.c.job_id == job_id)
        with self.database.read() as c:
            return [attempt_from(row) for row in c.execute(query.order_by(attempts.c.fence))]

    def jobs_of_attempts(self, owner: str, attempt_ids: Collection[str]) -> dict[str, Job]:
        """The owner's jobs that these attempts are for, by attempt; attempts of others are left out."""
        query = _jobs_of_attempts().where(_MADE.c.owner == owner)
        with self.database.read() as c:
            return {
                row.attempt_id: job_from(row)
                for some in chunks(attempt_ids, _MANY)
                for row in c.execute(query.where(_MADE.c.id.in_(some)))
            }

    def cards(self) -> list[Beat]:
        """The cards heard of lately, largest last."""
        with self.database.read() as c:
            since = self.database.now(c) - ROSTER_SECONDS
            rows = c.execute(sa.select(cards.c.beat).where(cards.c.seen_at >= since)).all()
        beats = [Beat.read(row.beat) for row in rows]
        return sorted(beats, key=lambda b: (b.total_bytes, b.card))


#: The order in which changes are told.
_CHANGED = (jobs.c.updated_at, jobs.c.number)

#: Attempts by which jobs are looked for, beside the newest one that every job is read with.
_MADE = attempts.alias("made")


def _jobs_of_attempts() -> sa.Select[Any]:
    return select_jobs().add_columns(_MADE.c.id.label("attempt_id")).join(_MADE, _MADE.c.job_id == jobs.c.id)


def _shown_jobs() -> sa.Select[Any]:
    return with_clip_notes(select_jobs())


def _stored(state: JobState, held: str | None) -> list[str]:
    """States in the table of the jobs that are shown in `state`."""
    if held and state is JobState.HELD:
        return [JobState.HELD.value, JobState.QUEUED.value]
    return [] if held and state is JobState.QUEUED else [state.value]


def _is_empty() -> sa.ColumnElement[bool]:
    return sa.and_(batches.c.sealed, sa.func.coalesce(batches.c.rows_sealed, 1) == 0)


def _is_replaced(now: int) -> sa.ColumnElement[bool]:
    """Whether nobody waits for a run any more, and the same command has been run since: that shares all its clips."""
    later = batches.alias("later")
    same = sa.and_(later.c.owner == batches.c.owner, later.c.source == batches.c.source, later.c.id > batches.c.id)
    return sa.and_(
        sa.func.coalesce(batches.c.attended_until, now) < now,
        batches.c.source != "",
        sa.exists().where(same, later.c.created_at >= batches.c.created_at),
    )
