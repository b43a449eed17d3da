"""The owner's side of the store: hand in batches, read them, cancel them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.cards import Beat
from cluster.chunks import chunks
from cluster.ids import new_id
from cluster.jobs import Attempt, Batch, BatchCounts, Clip, Draft, Job, JobState
from cluster.store.database import Database
from cluster.store.rows import attempt_from, clip_from, job_from, job_values, select_jobs
from cluster.store.schema import attempts, batches, cards, clips, idempotency_keys, jobs, stills
from cluster.store.tallies import count

#: A card whose renderer has not been heard for this long is no longer shown.
ROSTER_SECONDS = 15
#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
#: What the tally of clips calls a row that never waits.
_ENDED_ON_ARRIVAL = {
    JobState.COMPLETED.value: "shared",
    JobState.FAILED.value: "invalid",
    JobState.CANCELLED.value: "cancelled",
}


class NoSuchBatchError(LookupError):
    """The owner has no batch of this id."""


class IdempotencyConflictError(ValueError):
    """The key was used before for another body."""


class Desk:
    """All that an owner (through CLI or gateway) may do. Every query carries the owner."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # -- stills ---------------------------------------------------------------------------------------------

    def still_size(self, owner: str, sha256: str) -> tuple[int, int] | None:
        """(width, height) of a still this owner handed in before, or None."""
        with self._db.read() as c:
            row = c.execute(
                sa.select(stills.c.width, stills.c.height).where(stills.c.owner == owner, stills.c.sha256 == sha256)
            ).one_or_none()
        return (row.width, row.height) if row else None

    def record_still(self, owner: str, sha256: str, size: tuple[int, int]) -> None:
        """Remember the upright size of a still that was checked and stored."""
        with self._db.write() as c:
            insert = self._db.insert(stills).values(
                owner=owner, sha256=sha256, width=size[0], height=size[1], created_at=self._db.now(c)
            )
            c.execute(insert.on_conflict_do_nothing())

    # -- handing in -----------------------------------------------------------------------------------------

    def open_batch(
        self,
        owner: str,
        *,
        name: str,
        source: str = "",
        attended_s: int | None = None,
        idempotency_key: str | None = None,
        fingerprint: str = "",
    ) -> tuple[str, bool]:
        """Begin a batch; returns (id, whether it is new).

        With an `idempotency_key` seen before, the earlier batch is returned and nothing is made; another
        `fingerprint` under the same key raises `IdempotencyConflictError`. With `attended_s` the batch is rendered
        only while somebody renews it by `attend`.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            if idempotency_key is not None:
                known = c.execute(
                    sa.select(idempotency_keys.c.fingerprint, idempotency_keys.c.batch_id).where(
                        idempotency_keys.c.owner == owner, idempotency_keys.c.key == idempotency_key
                    )
                ).one_or_none()
                if known and known.fingerprint != fingerprint:
                    raise IdempotencyConflictError(
                        f"idempotency key {idempotency_key!r} was used for another request; use a new key"
                    )
                if known:
                    return known.batch_id, False
            batch_id = new_id("batch")
            c.execute(
                sa.insert(batches).values(
                    id=batch_id,
                    owner=owner,
                    name=name,
                    source=source,
                    created_at=now,
                    sealed=False,
                    attended_until=None if attended_s is None else now + attended_s,
                )
            )
            if idempotency_key is not None:
                c.execute(
                    sa.insert(idempotency_keys).values(
                        owner=owner,
                        key=idempotency_key,
                        fingerprint=fingerprint,
                        batch_id=batch_id,
                        created_at=now,
                    )
                )
        return batch_id, True

    def add(self, owner: str, batch_id: str, drafts: Iterable[Draft]) -> None:
        """Put a chunk of rows into an open batch, in one transaction. Raises `NoSuchBatchError`.

        Rows with problems are recorded as failed; rows whose clip exists already are completed at once; rows that come
        after their batch was cancelled are cancelled at once. Rows whose number the batch has already are left out, so
        a caller that broke off may begin again.
        """
        drafts = list(drafts)
        with self._db.write() as c:
            now = self._db.now(c)
            sealed = bool(self._require(c, owner, batch_id).sealed)
            known = set(
                c.scalars(
                    sa.select(jobs.c.number).where(
                        jobs.c.batch_id == batch_id, jobs.c.number.in_([d.number for d in drafts])
                    )
                )
            )
            drafts = [d for d in drafts if d.number not in known]
            keys = {d.content_key for d in drafts if d.content_key}
            finished = {
                row.content_key: row.id
                for row in c.execute(
                    sa.select(clips.c.content_key, clips.c.id).where(
                        clips.c.owner == owner, clips.c.content_key.in_(keys)
                    )
                )
            }
            values = [
                job_values(
                    draft,
                    job_id=new_id("video"),
                    owner=owner,
                    batch_id=batch_id,
                    now=now,
                    clip_id=finished.get(draft.content_key) if draft.content_key else None,
                )
                for draft in drafts
            ]
            for value in values:
                if sealed and value["state"] == JobState.QUEUED:
                    value["state"] = JobState.CANCELLED.value
            if values:
                c.execute(sa.insert(jobs), values)
            for value in values:
                if outcome := _ENDED_ON_ARRIVAL.get(value["state"]):
                    count(
                        self._db,
                        c,
                        "clips",
                        model=value["family"],
                        resolution_class=value["resolution_class"],
                        outcome=outcome,
                    )

    def seal(self, owner: str, batch_id: str) -> None:
        """All rows are in."""
        with self._db.write() as c:
            c.execute(sa.update(batches).where(_own(owner, batch_id)).values(sealed=True))

    def attend(self, owner: str, batch_id: str, seconds: int) -> None:
        """Somebody still waits for this batch: keep it going for `seconds` more."""
        with self._db.write() as c:
            until = self._db.now(c) + seconds
            c.execute(
                sa.update(batches)
                .where(_own(owner, batch_id), batches.c.attended_until.is_not(None))
                .values(attended_until=until)
            )

    def supersede(self, owner: str, source: str, by_batch: str) -> list[str]:
        """Cancel what is left of earlier attended batches of the same source that nobody waits for any more.

        Called when the same command runs again: the new batch shares every finished clip of the old one.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            stale = [
                row.id
                for row in c.execute(
                    sa.select(batches.c.id).where(
                        batches.c.owner == owner,
                        batches.c.source == source,
                        batches.c.id != by_batch,
                        batches.c.attended_until < now,
                    )
                )
            ]
            for batch_id in stale:
                self._cancel(c, owner, batch_id, now)
        return stale

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """Cancel all rows that have not ended, and those still to come; running ones stop within a step."""
        with self._db.write() as c:
            self._require(c, owner, batch_id)
            self._cancel(c, owner, batch_id, self._db.now(c))
        return self.batch(owner, batch_id)

    def _cancel(self, c: Connection, owner: str, batch_id: str, now: int) -> None:
        mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id)
        waiting = jobs.c.state.in_([JobState.QUEUED.value, JobState.HELD.value])
        kinds = c.execute(
            sa.select(jobs.c.family, jobs.c.resolution_class, sa.func.count().label("number"))
            .where(mine, waiting)
            .group_by(jobs.c.family, jobs.c.resolution_class)
        ).all()
        for kind in kinds:
            count(
                self._db,
                c,
                "clips",
                model=kind.family,
                resolution_class=kind.resolution_class,
                outcome="cancelled",
                by=kind.number,
            )
        c.execute(
            sa.update(jobs).where(mine, waiting).values(state=JobState.CANCELLED.value, reason=None, updated_at=now)
        )
        c.execute(sa.update(jobs).where(mine, jobs.c.state == JobState.RUNNING.value).values(cancel_requested=True))
        c.execute(sa.update(batches).where(_own(owner, batch_id)).values(sealed=True))

    def forget_clips(self, owner: str, clip_ids: Sequence[str]) -> int:
        """Drop clips whose objects are gone from storage; their unread jobs are rendered again. Returns how many."""
        deleted = 0
        for some in chunks(clip_ids, _MANY):
            with self._db.write() as c:
                c.execute(
                    sa.update(jobs)
                    .where(jobs.c.owner == owner, jobs.c.clip_id.in_(some))
                    .values(
                        state=JobState.QUEUED.value,
                        clip_id=None,
                        attempts=0,
                        releases=0,
                        checkpoint_key=None,
                        checkpoint_step=None,
                        updated_at=self._db.now(c),
                    )
                )
                deleted += c.execute(sa.delete(clips).where(clips.c.owner == owner, clips.c.id.in_(some))).rowcount
        return deleted

    # -- reading --------------------------------------------------------------------------------------------

    def batch(self, owner: str, batch_id: str) -> Batch:
        """One batch with its counts. Raises `NoSuchBatchError`."""
        with self._db.read() as c:
            row = self._require(c, owner, batch_id)
            return self._batch(c, row)

    def batches(self, owner: str, limit: int = 20) -> list[Batch]:
        """The newest batches first."""
        with self._db.read() as c:
            rows = c.execute(
                sa.select(batches)
                .where(batches.c.owner == owner)
                .order_by(batches.c.created_at.desc(), batches.c.id.desc())
                .limit(limit)
            ).all()
            return [self._batch(c, row) for row in rows]

    def jobs(
        self,
        owner: str,
        batch_id: str,
        *,
        state: JobState | None = None,
        updated_since: int | None = None,
        after_number: int = -1,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs of a batch in the manifest's order. Raises `NoSuchBatchError`."""
        query = select_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.number > after_number)
        if state is not None:
            query = query.where(jobs.c.state == state.value)
        if updated_since is not None:
            query = query.where(jobs.c.updated_at >= updated_since)
        with self._db.read() as c:
            self._require(c, owner, batch_id)
            return [job_from(row) for row in c.execute(query.order_by(jobs.c.number).limit(limit))]

    def clips(self, owner: str, clip_ids: Collection[str]) -> dict[str, Clip]:
        """The owner's finished clips among `clip_ids`, by id."""
        query = sa.select(clips).where(clips.c.owner == owner)
        with self._db.read() as c:
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
        with self._db.read() as c:
            return {row.id: clip_from(row) for row in c.execute(query)}

    def clips_of_keys(self, owner: str, content_keys: Sequence[str]) -> list[Clip]:
        """The owner's finished clips among `content_keys`."""
        query = sa.select(clips).where(clips.c.owner == owner)
        with self._db.read() as c:
            return [
                clip_from(row)
                for some in chunks(content_keys, _MANY)
                for row in c.execute(query.where(clips.c.content_key.in_(some)))
            ]

    def attempts_of(self, owner: str, batch_id: str) -> list[Attempt]:
        """Every attempt made for a batch's jobs, oldest first."""
        query = (
            sa.select(attempts)
            .where(attempts.c.owner == owner, attempts.c.batch_id == batch_id)
            # Ids sort by time only from one millisecond to the next.
            .order_by(attempts.c.started_at, attempts.c.job_id, attempts.c.fence)
        )
        with self._db.read() as c:
            return [attempt_from(row) for row in c.execute(query)]

    def cards(self) -> list[Beat]:
        """The cards heard of lately, largest last."""
        with self._db.read() as c:
            since = self._db.now(c) - ROSTER_SECONDS
            rows = c.execute(sa.select(cards.c.beat).where(cards.c.seen_at >= since)).all()
        beats = [Beat.model_validate(row.beat) for row in rows]
        return sorted(beats, key=lambda b: (b.total_bytes, b.card))

    def _require(self, c: Connection, owner: str, batch_id: str) -> sa.Row[tuple[object, ...]]:
        row = c.execute(sa.select(batches).where(_own(owner, batch_id))).one_or_none()
        if row is None:
            raise NoSuchBatchError(f"there is no batch {batch_id!r}; `clipmill status` lists the batches there are")
        return row

    def _batch(self, c: Connection, row: sa.Row[tuple[object, ...]]) -> Batch:
        by_state = {
            JobState(state): number
            for state, number in c.execute(
                sa.select(jobs.c.state, sa.func.count()).where(jobs.c.batch_id == row.id).group_by(jobs.c.state)
            ).tuples()
        }
        made = c.scalar(sa.select(sa.func.count()).where(attempts.c.batch_id == row.id)) or 0
        return Batch(
            id=row.id,
            owner=row.owner,
            name=row.name,
            created_at=row.created_at,
            sealed=row.sealed,
            source=row.source,
            attended_until=row.attended_until,
            counts=BatchCounts(by_state=by_state),
            attempts=made,
            abandoned=row.attended_until is not None and row.attended_until < self._db.now(c),
        )


def _own(owner: str, batch_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(batches.c.owner == owner, batches.c.id == batch_id)
