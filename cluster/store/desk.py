"""The owner's side of the store: hand in batches, read them. What is said of them later: `cluster.store.verbs`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from cluster.cards import Beat
from cluster.chunks import chunks
from cluster.ids import new_id
from cluster.jobs import Attempt, Batch, Clip, Draft, HoldReason, Job, JobState, Limits
from cluster.store.after import resolve_names
from cluster.store.database import Database
from cluster.store.lookup import NoSuchBatchError, NoSuchJobError, batch_from, find, require_batch
from cluster.store.rows import attempt_from, clip_from, job_from, job_values, select_jobs
from cluster.store.schema import attempts, batches, cards, clips, idempotency_keys, jobs, stills
from cluster.store.tallies import count
from cluster.store.verbs import Verbs
from cluster.verbs import Verb

__all__ = ["ROSTER_SECONDS", "Desk", "IdempotencyConflictError", "NoSuchBatchError", "NoSuchJobError", "Terms"]

#: A card whose renderer has not been heard for this long is no longer shown.
ROSTER_SECONDS = 15
#: How old the record of a still gets before handing it in again renews it; less than a sweep's grace by far.
_STILL_NEWS_S = 3600
#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
#: What the tally of clips calls a row that never waits.
_ENDED_ON_ARRIVAL = {
    JobState.COMPLETED.value: "shared",
    JobState.FAILED.value: "invalid",
    JobState.CANCELLED.value: "cancelled",
}


class IdempotencyConflictError(ValueError):
    """The key was used before for another body."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """When a batch is held."""

    #: From the beginning, until somebody resumes it.
    paused: bool = False
    #: Its rows wait for an approval, all but the first `proof`.
    needs_approval: bool = False
    proof: int = 0
    limits: Limits = field(default_factory=Limits)
    #: For people.
    comment: str = ""


class Desk:
    """All that an owner (through CLI or gateway) may do. Every query carries the owner."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- stills ---------------------------------------------------------------------------------------------

    def still_size(self, owner: str, sha256: str) -> tuple[int, int] | None:
        """(width, height) of a still this owner handed in before, or None."""
        with self.database.read() as c:
            row = c.execute(
                sa.select(stills.c.width, stills.c.height).where(stills.c.owner == owner, stills.c.sha256 == sha256)
            ).one_or_none()
        return (row.width, row.height) if row else None

    def record_still(self, owner: str, sha256: str, size: tuple[int, int]) -> None:
        """Remember the upright size of a still that was checked and stored."""
        with self.database.write() as c:
            insert = self.database.insert(stills).values(
                owner=owner, sha256=sha256, width=size[0], height=size[1], created_at=self.database.now(c)
            )
            c.execute(insert.on_conflict_do_nothing())

    def keep_still(self, owner: str, sha256: str) -> None:
        """It was handed in again: a sweep leaves it alone for as long as a new one."""
        mine = sa.and_(stills.c.owner == owner, stills.c.sha256 == sha256)
        with self.database.read() as c:
            old = c.scalar(sa.select(stills.c.created_at).where(mine))
            # Written once in a while only: the same manifest again writes nothing.
            if old is None or self.database.now(c) - old < _STILL_NEWS_S:
                return
        with self.database.write() as c:
            c.execute(sa.update(stills).where(mine).values(created_at=self.database.now(c)))

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
        terms: Terms | None = None,
    ) -> tuple[str, bool]:
        """Begin a batch; returns (id, whether it is new).

        With an `idempotency_key` seen before, the earlier batch is returned and nothing is made; another
        `fingerprint` under the same key raises `IdempotencyConflictError`. With `attended_s` the batch is rendered
        only while somebody renews it by `attend`. `terms` say when it is held.
        """
        terms = terms or Terms()
        with self.database.write() as c:
            now = self.database.now(c)
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
                    held=HoldReason.PAUSED.value if terms.paused else None,
                    needs_approval=terms.needs_approval,
                    proof=terms.proof,
                    max_failures=terms.limits.failures,
                    max_gpu_seconds=terms.limits.gpu_seconds,
                    max_cost=terms.limits.cost,
                    comment=terms.comment or None,
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
        with self.database.write() as c:
            now = self.database.now(c)
            batch = require_batch(c, owner, batch_id)
            attended = batch.attended_until is not None
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
                        clips.c.owner == owner, clips.c.content_key.in_(keys), clips.c.expired_at.is_(None)
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
                    attended=attended,
                    needs_approval=batch.needs_approval and draft.number > batch.proof,
                )
                for draft in drafts
            ]
            for value in values:
                if batch.sealed and value["state"] in (JobState.QUEUED, JobState.HELD):
                    value |= {"state": JobState.CANCELLED.value, "reason": None}
            if values:
                c.execute(sa.insert(jobs), values)
            for value in values:
                if outcome := _ENDED_ON_ARRIVAL.get(value["state"]):
                    count(
                        self.database,
                        c,
                        "clips",
                        model=value["family"],
                        resolution_class=value["resolution_class"],
                        outcome=outcome,
                    )

    def seal(self, owner: str, batch_id: str) -> None:
        """All rows are in, so what each of them waits for can be told; rows that wait for nothing real fail."""
        with self.database.write() as c:
            resolve_names(self.database, c, self.database.now(c), owner, batch_id)
            rows = sa.select(sa.func.count()).where(jobs.c.batch_id == batch_id).scalar_subquery()
            c.execute(sa.update(batches).where(_own(owner, batch_id)).values(sealed=True, rows_sealed=rows))

    def attend(self, owner: str, batch_id: str, seconds: int) -> None:
        """Somebody still waits for this batch: keep it going for `seconds` more."""
        with self.database.write() as c:
            until = self.database.now(c) + seconds
            c.execute(
                sa.update(batches)
                .where(_own(owner, batch_id), batches.c.attended_until.is_not(None))
                .values(attended_until=until)
            )

    def supersede(self, owner: str, source: str, by_batch: str) -> list[str]:
        """Cancel what is left of earlier attended batches of the same source that nobody waits for any more.

        Called when the same command runs again: the new batch shares every finished clip of the old one.
        """
        stale_ones = sa.select(batches.c.id).where(
            batches.c.owner == owner,
            batches.c.source == source,
            batches.c.id != by_batch,
        )
        with self.database.read() as c:
            query = stale_ones.where(batches.c.attended_until < self.database.now(c))
            stale = list(c.scalars(query))
        for batch_id in stale:
            Verbs(self.database).batch(owner, batch_id, Verb.CANCEL)
        return stale

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """Cancel all rows that have not ended, and those still to come; running ones stop within a step."""
        Verbs(self.database).batch(owner, batch_id, Verb.CANCEL)
        return self.batch(owner, batch_id)

    def forget_clips(self, owner: str, clip_ids: Sequence[str]) -> int:
        """Drop clips whose objects are gone from storage; their unread jobs are rendered again. Returns how many."""
        deleted = 0
        for some in chunks(clip_ids, _MANY):
            with self.database.write() as c:
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
                        updated_at=self.database.now(c),
                    )
                )
                deleted += c.execute(sa.delete(clips).where(clips.c.owner == owner, clips.c.id.in_(some))).rowcount
        return deleted

    # -- reading --------------------------------------------------------------------------------------------

    def batch(self, owner: str, batch_id: str) -> Batch:
        """One batch with its counts. Raises `NoSuchBatchError`."""
        with self.database.read() as c:
            return batch_from(c, require_batch(c, owner, batch_id), self.database.now(c))

    def batches(self, owner: str, limit: int = 20) -> list[Batch]:
        """The newest batches first."""
        with self.database.read() as c:
            rows = c.execute(
                sa.select(batches)
                .where(batches.c.owner == owner)
                .order_by(batches.c.created_at.desc(), batches.c.id.desc())
                .limit(limit)
            ).all()
            now = self.database.now(c)
            return [batch_from(c, row, now) for row in rows]

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
    ) -> list[Job]:
        """Jobs of a batch in the manifest's order; queued ones of a held batch are held. Raises `NoSuchBatchError`."""
        query = select_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.number > after_number)
        if updated_since is not None:
            query = query.where(jobs.c.updated_at >= updated_since)
        if name is not None:
            query = query.where(jobs.c.name == name)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            if state is not None:
                query = query.where(jobs.c.state.in_(_stored(state, held)))
            found = c.execute(query.order_by(jobs.c.number).limit(limit))
            return [shown(job_from(row), held) for row in found]

    def changed(self, owner: str, batch_id: str, since: int, limit: int) -> list[Job]:
        """Jobs of a batch that changed at or after `since` (UTC epoch seconds), the oldest change first.

        Of a look that is full up, all that changed in its last second are there, so a caller can go on from it.
        """
        query = select_jobs().where(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.updated_at >= since)
        order = (jobs.c.updated_at, jobs.c.number)
        with self.database.read() as c:
            held = require_batch(c, owner, batch_id).held
            found = c.execute(query.order_by(*order).limit(limit)).all()
            if len(found) == limit:
                last = found[-1].updated_at
                rest = query.where(jobs.c.updated_at == last).order_by(*order)
                found = [row for row in found if row.updated_at < last] + list(c.execute(rest))
            return [shown(job_from(row), held) for row in found]

    def running(self, owner: str, batch_id: str) -> list[Job]:
        """Jobs of a batch that are being rendered."""
        return self.jobs(owner, batch_id, state=JobState.RUNNING)

    def now(self) -> int:
        """UTC epoch seconds by the store's clock."""
        with self.database.read() as c:
            return self.database.now(c)

    def job(self, owner: str, job_id: str) -> Job:
        """One job as its batch's jobs show it. Raises `NoSuchJobError`."""
        query = select_jobs().add_columns(batches.c.held.label("batch_held"))
        query = query.join(batches, batches.c.id == jobs.c.batch_id).where(jobs.c.owner == owner, jobs.c.id == job_id)
        with self.database.read() as c:
            row = c.execute(query).one_or_none()
        if row is None:
            raise NoSuchJobError(f"there is no job {job_id!r}; `clipmill status BATCH --json` lists a batch's jobs")
        return shown(job_from(row), row.batch_held)

    def job_named(self, owner: str, batch_id: str, name: str) -> str:
        """Id of the batch's row of this name. Raises `NoSuchBatchError` and `NoSuchJobError`."""
        with self.database.read() as c:
            require_batch(c, owner, batch_id)
            mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id, jobs.c.name == name)
            found = c.scalars(sa.select(jobs.c.id).where(mine).order_by(jobs.c.content_key.is_(None)).limit(1)).first()
        if found is None:
            raise NoSuchJobError(
                f"batch {batch_id} has no row {name!r}; `clipmill status {batch_id} --json` lists them"
            )
        return str(found)

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

    def cards(self) -> list[Beat]:
        """The cards heard of lately, largest last."""
        with self.database.read() as c:
            since = self.database.now(c) - ROSTER_SECONDS
            rows = c.execute(sa.select(cards.c.beat).where(cards.c.seen_at >= since)).all()
        beats = [Beat.model_validate(row.beat) for row in rows]
        return sorted(beats, key=lambda b: (b.total_bytes, b.card))


def shown(job: Job, held: str | None) -> Job:
    """The job as people see it: queued in a batch that is held, it is held itself."""
    return replace(job, state=JobState.HELD, reason=held) if held and job.state is JobState.QUEUED else job


def _stored(state: JobState, held: str | None) -> list[str]:
    """States in the table of the jobs that are shown in `state`."""
    if held and state is JobState.HELD:
        return [JobState.HELD.value, JobState.QUEUED.value]
    return [] if held and state is JobState.QUEUED else [state.value]


def _own(owner: str, batch_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(batches.c.owner == owner, batches.c.id == batch_id)
