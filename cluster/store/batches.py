"""What owners hand in: stills, batches and their rows. Commands to them later: `cluster.store.commands`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.jobs.fidelity import terms_of
from cluster.jobs.ids import new_id
from cluster.jobs.model import Batch, Draft, HoldReason, JobState, Limits
from cluster.jobs.transitions import Happening, Verb
from cluster.store.batch_reader import BatchReader
from cluster.store.commands import CommandStore
from cluster.store.counters import count
from cluster.store.dependencies import resolve_names
from cluster.store.fidelity.holding import AskedBefore, hold_to_fidelity
from cluster.store.lookup import require_batch
from cluster.store.office import Office, read_office
from cluster.store.rows import job_values
from cluster.store.schema import batches, clips, idempotency_keys, jobs, stills
from cluster.store.transitions import moves, values_of
from cluster.store.webhooks.again import watch_again, watch_drafts
from cluster.store.webhooks.registry import require_secret

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
    #: The batch's rows wait for an approval, all but the first `proof`.
    needs_approval: bool = False
    proof: int = 0
    limits: Limits = field(default_factory=Limits)
    #: For people.
    comment: str = ""
    #: Where its events are sent, besides its owner's webhooks.
    webhook_url: str | None = None


class BatchStore(BatchReader):
    """All that an owner (through CLI or gateway) may hand in and read. Every query carries the owner."""

    # -- stills ---------------------------------------------------------------------------------------------

    def still_size(self, owner: str, sha256: str) -> tuple[int, int] | None:
        """(width, height) of a still this owner handed in before, or None."""
        with self.database.read() as c:
            row = c.execute(
                sa.select(stills.c.width, stills.c.height).where(stills.c.owner == owner, stills.c.sha256 == sha256)
            ).one_or_none()
        return (row.width, row.height) if row else None

    def still_sizes(self, owner: str, names: Collection[str]) -> dict[str, tuple[int, int]]:
        """(width, height) by SHA-256 of those of the stills `names` that this owner handed in before."""
        found: dict[str, tuple[int, int]] = {}
        query = sa.select(stills.c.sha256, stills.c.width, stills.c.height).where(stills.c.owner == owner)
        for some in chunks(sorted(names), _MANY):
            with self.database.read() as c:
                rows = c.execute(query.where(stills.c.sha256.in_(some)))
                found |= {row.sha256: (row.width, row.height) for row in rows}
        return found

    def record_still(self, owner: str, sha256: str, size: tuple[int, int]) -> None:
        """Remember the upright size of a still that was checked and stored."""
        with self.database.write() as c:
            insert = self.database.insert(stills).values(
                owner=owner, sha256=sha256, width=size[0], height=size[1], created_at=self.database.now(c)
            )
            c.execute(insert.on_conflict_do_nothing())

    def keep_still(self, owner: str, sha256: str) -> None:
        """Note that a still was handed in again: a sweep leaves it alone for as long as a new one."""
        mine = sa.and_(stills.c.owner == owner, stills.c.sha256 == sha256)
        with self.database.read() as c:
            old = c.scalar(sa.select(stills.c.created_at).where(mine))
            # Written once in a while only: the same manifest again writes nothing.
            if old is None or self.database.now(c) - old < _STILL_NEWS_S:
                return
        with self.database.write() as c:
            c.execute(sa.update(stills).where(mine).values(created_at=self.database.now(c)))

    def stills(self, owner: str, *, after: str | None = None, limit: int = 20) -> list[tuple[str, int]]:
        """(SHA-256, UTC epoch seconds of when it was last handed in) of the owner's stills, by SHA-256."""
        query = sa.select(stills.c.sha256, stills.c.created_at).where(stills.c.owner == owner)
        if after is not None:
            query = query.where(stills.c.sha256 > after)
        with self.database.read() as c:
            return [(row.sha256, row.created_at) for row in c.execute(query.order_by(stills.c.sha256).limit(limit))]

    def still_at(self, owner: str, sha256: str) -> int | None:
        """When the owner last handed a still in, in UTC epoch seconds; None where that never was, or is forgotten."""
        with self.database.read() as c:
            return c.scalar(sa.select(stills.c.created_at).where(stills.c.owner == owner, stills.c.sha256 == sha256))

    def forget_still(self, owner: str, sha256: str) -> bool:
        """Forget that a still was handed in; whether it was known.

        Jobs that are made from it keep it, and a sweep takes it once none wants it.
        """
        mine = sa.and_(stills.c.owner == owner, stills.c.sha256 == sha256)
        with self.database.write() as c:
            return c.execute(sa.delete(stills).where(mine)).rowcount > 0

    def office(self) -> Office | None:
        """The dispatcher in office, of whichever farm; None where there is none."""
        with self.database.read() as c:
            return read_office(self.database, c)

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
        only while somebody renews it by `attend`. `terms` say when it is held. Raises `BadInputError` for a URL of
        a webhook where there is no secret to sign with.
        """
        terms = terms or Terms()
        with self.database.write() as c:
            now = self.database.now(c)
            if idempotency_key is not None and (known := _known_by(c, owner, idempotency_key, fingerprint)):
                return known, False
            if terms.webhook_url is not None:
                require_secret(c, owner, "webhook_url")
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
                    webhook_url=terms.webhook_url,
                )
            )
            if idempotency_key is not None:
                key = {"owner": owner, "key": idempotency_key, "fingerprint": fingerprint}
                c.execute(sa.insert(idempotency_keys).values(**key, batch_id=batch_id, created_at=now))
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
            numbers = jobs.c.number.in_([draft.number for draft in drafts])
            known = set(c.scalars(sa.select(jobs.c.number).where(jobs.c.batch_id == batch_id, numbers)))
            drafts = [draft for draft in drafts if draft.number not in known]
            finished = _clips_of(c, owner, drafts)
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
                    value |= {"state": JobState.CANCELLED.value, "reason": None, "clip_id": None}
            if values:
                c.execute(sa.insert(jobs), values)
            short = _held_to_fidelity(c, now, batch, values)
            for value in values:
                if value["id"] in short:
                    value["state"] = JobState.CANCELLED.value if batch.sealed else JobState.QUEUED.value
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

    def release_key(self, owner: str, batch_id: str) -> None:
        """Let the idempotency key that made a batch make another."""
        mine = sa.and_(idempotency_keys.c.owner == owner, idempotency_keys.c.batch_id == batch_id)
        with self.database.write() as c:
            c.execute(sa.delete(idempotency_keys).where(mine))

    def withdraw(self, owner: str, batch_id: str) -> bool:
        """Unmake a batch that is still being handed in and has no rows yet, its key with it. False where it has some.

        With rows it stays: the same key and body go on where they broke off.
        """
        mine = sa.and_(idempotency_keys.c.owner == owner, idempotency_keys.c.batch_id == batch_id)
        empty = sa.and_(_own(owner, batch_id), sa.not_(batches.c.sealed))
        empty = sa.and_(empty, ~sa.exists().where(jobs.c.batch_id == batch_id))
        with self.database.write() as c:
            if c.scalar(sa.select(batches.c.id).where(empty)) is None:
                return False
            c.execute(sa.delete(idempotency_keys).where(mine))
            c.execute(sa.delete(batches).where(empty))
        return True

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
            CommandStore(self.database).batch(owner, batch_id, Verb.CANCEL)
        return stale

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """Cancel all rows that have not ended, and those still to come; running ones stop within a step."""
        CommandStore(self.database).batch(owner, batch_id, Verb.CANCEL)
        self.kept_counts.forget()
        return self.batch(owner, batch_id)

    def forget_clips(self, owner: str, clip_ids: Sequence[str]) -> int:
        """Drop clips whose objects are gone from storage; their unread jobs are rendered again. Returns how many."""
        deleted = 0
        begun_anew = {"checkpoint_key": None, "checkpoint_step": None}
        for some in chunks(clip_ids, _MANY):
            with self.database.write() as c:
                again = c.execute(
                    sa.update(jobs)
                    .where(jobs.c.owner == owner, jobs.c.clip_id.in_(some), moves(Happening.CLIP_LOST))
                    .values(values_of(Happening.CLIP_LOST, self.database.now(c)) | begun_anew)
                    .returning(jobs.c.batch_id, jobs.c.rounds_left)
                ).all()
                watch_again(c, {row.batch_id for row in again})
                watch_drafts(c, {row.batch_id for row in again if row.rounds_left})
                deleted += c.execute(sa.delete(clips).where(clips.c.owner == owner, clips.c.id.in_(some))).rowcount
        return deleted


def _known_by(c: Connection, owner: str, key: str, fingerprint: str) -> str | None:
    """The batch that was made under this key. Raises `IdempotencyConflictError` where that was another request."""
    columns = (idempotency_keys.c.fingerprint, idempotency_keys.c.batch_id)
    mine = sa.and_(idempotency_keys.c.owner == owner, idempotency_keys.c.key == key)
    known = c.execute(sa.select(*columns).where(mine)).one_or_none()
    if known is None:
        return None
    if known.fingerprint != fingerprint:
        raise IdempotencyConflictError(f"idempotency key {key!r} was used for another request; use a new key")
    return str(known.batch_id)


def _held_to_fidelity(c: Connection, now: int, batch: Any, values: Sequence[dict[str, Any]]) -> frozenset[str]:
    """Hold rows of a chunk to what they ask for, as clips that are there may be less true.

    Gives ids of those that are not completed any more.
    """
    asking = [value for value in values if value["clip_id"] and terms_of(value["row"])]
    waits = {one["id"]: HoldReason.APPROVAL for one in asking if batch.needs_approval and one["number"] > batch.proof}
    ids = [value["id"] for value in asking]
    before = AskedBefore(cancelled=frozenset(ids if batch.sealed else ()), held=waits)
    return hold_to_fidelity(c, now, ids, before)


def _clips_of(c: Connection, owner: str, drafts: Iterable[Draft]) -> dict[str, str]:
    """Ids of the owner's clips that are there, by the content keys of `drafts`."""
    keys = {draft.content_key for draft in drafts if draft.content_key}
    there = sa.and_(clips.c.owner == owner, clips.c.content_key.in_(keys), clips.c.expired_at.is_(None))
    return {row.content_key: row.id for row in c.execute(sa.select(clips.c.content_key, clips.c.id).where(there))}


def _own(owner: str, batch_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(batches.c.owner == owner, batches.c.id == batch_id)
