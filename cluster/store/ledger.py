"""The dispatcher's side of the store: claims, leases and endings, every write fenced by epoch and attempt."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.cards import Beat, Card
from cluster.chunks import chunks
from cluster.jobs import FINAL_STATES, Checkpoint, Ended, Job, JobState, Reason, Transition
from cluster.lessons import Lessons
from cluster.rates import Rates
from cluster.store import heads, peaks, rates
from cluster.store.after import follow
from cluster.store.claims import RECORD_CHECKPOINT, Claim, begin, claims_of, readable
from cluster.store.database import Database, insert_into
from cluster.store.endings import Ending, end
from cluster.store.given import Given, among, is_one_of, unindexed
from cluster.store.limits import Price, price_of
from cluster.store.outage import is_outage
from cluster.store.rows import JOBS_BY_ID, job_from
from cluster.store.rules import asked_of_running
from cluster.store.schema import attempts, cards, dispatcher, jobs
from cluster.store.tallies import count
from cluster.store.verbs import Enforced, Verbs
from cluster.verbs import FARM, CardVerb
from pipeline.problems import Problem

#: Waiting jobs of which a share that starts meanwhile changes no plan.
_MANY_WAIT = 50_000
#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000


class StaleEpochError(RuntimeError):
    """Another dispatcher took office; this one must stop without touching anything."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Answer to `Ledger.renew`."""

    #: Attempts whose lease was renewed.
    live: frozenset[str]
    #: Of these, the ones whose job was cancelled.
    cancelled: frozenset[str]
    #: Running attempts that are to save a checkpoint and stop, because people hold their job or batch, and the cause.
    leaving: Mapping[str, str] = field(default_factory=dict)
    #: Keys of checkpoints that these jobs no longer go on from, newer ones being recorded.
    superseded: tuple[str, ...] = ()


class Ledger:
    """Opened by the one dispatcher in office. All writes raise `StaleEpochError` once another took over."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._verbs = Verbs(database)
        self.epoch = 0
        #: Where the page of expired leases ended that was given out last.
        self._rescued: tuple[int, str] | None = None
        #: Waiting rows at the heads of queues that could not be read.
        self._unreadable = 0
        #: What waited, when so much waited, and until when that is good enough.
        self._counted: tuple[float, list[heads.WaitingQueue]] | None = None

    def take_office(self, holder: str) -> list[Claim]:
        """Become the dispatcher; returns the attempts that were running under earlier ones.

        Whoever held the office before can no longer write.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            insert = self._db.insert(dispatcher).values(id=1, epoch=1, holder=holder, since=now)
            self.epoch = int(
                c.execute(
                    insert.on_conflict_do_update(
                        index_elements=[dispatcher.c.id],
                        set_={"epoch": dispatcher.c.epoch + 1, "holder": holder, "since": now},
                    ).returning(dispatcher.c.epoch)
                ).scalar_one()
            )
            c.execute(sa.delete(cards))
            rows = c.execute(sa.select(*_CLAIM_COLUMNS).where(attempts.c.outcome.is_(None)).order_by(attempts.c.id))
            return claims_of(c, rows.all())

    def waiting(self, per_queue: int) -> list[Job]:
        """Jobs that may start now: the first `per_queue` of each queue, in the order of placement.

        A queue is an owner's waiting jobs of one family, class, size and priority, so that a thousand large clips
        waiting for a large card cannot hide a small one. Left out: jobs whose clip another job is rendering, whose time
        has not come, and of batches that are paused or attended by nobody. Takes as long for a thousand waiting jobs as
        for a million.
        """
        while True:
            with self._db.read() as c:
                ids = heads.heads(self._db, c, self._db.now(c), per_queue + self._unreadable)
                rows = c.execute(JOBS_BY_ID, {"ids": ids}) if ids else ()
                found = {job.id: job for row in rows if (job := readable(row)) is not None}
            # As many more are read as there are rows that cannot be: or they would hide what waits behind them.
            unreadable = len(ids) - len(found)
            if unreadable <= self._unreadable:
                break
            self._unreadable = min(unreadable, _MANY)
            if unreadable > _MANY:
                break
        self._unreadable = min(unreadable, _MANY)
        in_order = sorted(found.values(), key=lambda job: (-job.priority, job.created_at, job.batch_id, job.number))
        if not self._unreadable:
            return in_order
        taken: Counter[tuple[object, ...]] = Counter()
        first = []
        for job in in_order:
            taken[job.queue] += 1
            if taken[job.queue] <= per_queue:
                first.append(job)
        return first

    def counts(self) -> list[heads.WaitingQueue]:
        """How many jobs wait in each queue: for plans, read once in a few seconds, see `heads.counts`.

        Of very many jobs the answer is given again for twenty times as long as it took to count them.
        """
        if self._counted is not None and time.monotonic() < self._counted[0]:
            return self._counted[1]
        begun = time.monotonic()
        found = heads.counts(self._db)
        ended = time.monotonic()
        many = sum(queue.jobs for queue in found) >= _MANY_WAIT
        self._counted = (ended + 20 * (ended - begun), found) if many else None
        return found

    def start(self, starts: Sequence[tuple[Job, Card]], lease_s: int) -> list[Claim]:
        """Claim jobs for cards in one transaction; those that may not start any more are left out."""
        with self._db.write() as c:
            self._guard(c)
            return begin(c, self._db.now(c), self.epoch, starts, lease_s)

    def renew(
        self,
        steps: Mapping[str, tuple[int, int]],
        lease_s: int,
        checkpoints: Mapping[str, Checkpoint] | None = None,
    ) -> Renewal:
        """Extend the leases of attempts that were heard of, and record their last finished step.

        `checkpoints` are the newest of running attempts, heard of or not; those of attempts that ended are void.
        """
        with self._db.write() as c:
            self._guard(c)
            live = self._extend(c, steps, self._db.now(c) + lease_s)
            superseded = self._record(c, checkpoints or {})
            cancelled, leaving = asked_of_running(c)
        return Renewal(live=live, cancelled=cancelled, leaving=leaving, superseded=tuple(superseded))

    def expired(self, limit: int = 500) -> list[Claim]:
        """Running attempts whose lease ran out, oldest first: the next page of them.

        After a full page the following call goes on behind it, after one that was not full it begins anew. So attempts
        that cannot be ended, however many there are, hide no others.
        """
        with self._db.read() as c:
            until, last = self._rescued or (0, "")
            query = _EXPIRED if self._rescued is None else _EXPIRED_BEHIND
            told = {"now": self._db.now(c), "until": until, "last": last, "limit": limit}
            rows = c.execute(query, told).all()
            self._rescued = (rows[-1].lease_until, rows[-1].id) if len(rows) == limit else None
            return claims_of(c, rows)

    def current_job(self, claim: Claim) -> Job:
        """The claim's job as it stands now (it may have been cancelled since)."""
        return self.current_jobs([claim])[0]

    def current_jobs(self, claims: Sequence[Claim]) -> list[Job]:
        """The claims' jobs as they stand now, each in its claim's place. Raises `KeyError` where one is not there."""
        with self._db.read() as c:
            rows = c.execute(JOBS_BY_ID, {"ids": [claim.job.id for claim in claims]})
            found = {row.id: job_from(row) for row in rows}
        return [found[claim.job.id] for claim in claims]

    def finish(self, claim: Claim, ended: Ended, transition: Transition) -> bool:
        """End an attempt and move its job, in one transaction. False where the attempt had ended before.

        A completed attempt publishes its clip here, and completes every waiting job of equal content. The job keeps
        its newest checkpoint where the transition says so; whoever ended keeps it as the mark of objects to delete.
        """
        return self.finish_many([Ending(claim=claim, ended=ended, transition=transition)])[0]

    def finish_many(self, endings: Sequence[Ending]) -> list[bool]:
        """`finish` for several attempts in one transaction: all are written, or none where one raises."""
        with self._db.write() as c:
            self._guard(c)
            return end(self._db, c, self._db.now(c), endings)

    def finish_each(self, endings: Sequence[Ending]) -> list[bool | Exception]:
        """`finish_many`, but an ending that cannot be written stops no other; its error is in its place.

        Raises `StaleEpochError`, and what says that the store does not answer.
        """
        try:
            return list(self.finish_many(endings))
        except StaleEpochError:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            if len(endings) == 1:
                return [error]
        half = len(endings) // 2
        return self.finish_each(endings[:half]) + self.finish_each(endings[half:])

    def enforce(self, price: Price = price_of) -> Enforced:
        """Stop batches at their limits; tells which orders stand for cards. `price`: dollars an hour of a card kind."""
        return self._verbs.enforce(price)

    def quarantine(self, card: str, reason: str, for_s: int) -> None:
        """Set a card aside for so long; what people said of it stands."""
        self._verbs.order(card, CardVerb.QUARANTINE, reason=reason, by=FARM, for_s=for_s)

    def lessons(self) -> Lessons:
        """What measured peaks have taught."""
        return peaks.load(self._db)

    def rates(self) -> Rates:
        """What clips take on which card, as far as it was measured."""
        return rates.load(self._db)

    def relax(self, job: Job, needs_bytes: int) -> None:
        """Let a waiting job run on smaller cards, in a leaner layout."""
        with self._db.write() as c:
            self._guard(c)
            c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED.value)
                .values(needs_bytes=needs_bytes)
            )

    def refuse(self, job: Job, reason: Reason, problem: Problem) -> bool:
        """Fail a waiting job that no card of this farm can hold."""
        with self._db.write() as c:
            self._guard(c)
            moved = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED.value)
                .values(
                    state=JobState.FAILED.value,
                    reason=reason.value,
                    problems=[problem.model_dump()],
                    updated_at=self._db.now(c),
                )
            )
            if moved.rowcount:
                follow(self._db, c, self._db.now(c), [job.id])
            if moved.rowcount and job.spec:
                count(
                    self._db,
                    c,
                    "clips",
                    model=job.spec.family,
                    resolution_class=job.spec.resolution_class,
                    outcome="failed",
                )
                count(self._db, c, "admissions", outcome="refused")
            return bool(moved.rowcount)

    def checkpointed(self, limit: int) -> list[str]:
        """Ids of jobs that have ended and whose checkpoints are still in storage."""
        with self._db.read() as c:
            return list(c.scalars(_CHECKPOINTED, {"limit": limit}))

    def unwanted_checkpoints(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that no job goes on from: of jobs of equal content several may name the same."""
        with self._db.read() as c:
            if not self._db.is_sqlite:
                # Few rows have a checkpoint, which statistics of a table that was just filled do not say.
                c.exec_driver_sql(heads.WALK_INDEXES)
            return set(keys) - set(c.scalars(_NAMED_CHECKPOINTS, {"keys": list(keys)}))

    def forget_checkpoints(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """Let nothing go on from the checkpoints of these jobs any more; their keys, by job.

        Jobs that have not ended are left alone, and those of whose content another may still go on from there.
        """
        forgotten: dict[str, str | None] = {}
        with self._db.write() as c:
            self._guard(c)
            for some in chunks(job_ids, _MANY):
                which = sa.and_(jobs.c.id.in_(some), _has_ended(), ~_has_heir())
                # Writers come one after the other: what is read here is what is written over.
                forgotten |= {row.id: row.checkpoint_key for row in c.execute(_NAMES.where(which))}
                c.execute(sa.update(jobs).where(which).values(checkpoint_key=None, checkpoint_step=None))
        return forgotten

    def ended_among(self, job_ids: Iterable[str]) -> set[str]:
        """Which of these jobs have ended. A job this store does not know is not among them: it may be another's."""
        with self._db.read() as c:
            return set(c.scalars(_ENDED_AMONG, {"ids": list(job_ids)}))

    def record_cards(self, beats: Iterable[Beat]) -> None:
        """Write the roster for those who ask; renderers left out keep their last time and fade."""
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            told = [{"renderer": beat.renderer, "beat": beat.model_dump(mode="json"), "seen_at": now} for beat in beats]
            if told:
                c.execute(_putting_cards(self._db.is_sqlite), told)

    # -- within a transaction -------------------------------------------------------------------------------

    def _guard(self, c: Connection) -> None:
        # An UPDATE, not a SELECT: on PostgreSQL it takes the row's lock, so two dispatchers are put in order.
        held = c.execute(_GUARD, {"its_epoch": self.epoch})
        if not held.rowcount:
            raise StaleEpochError(f"epoch {self.epoch} has ended: another dispatcher took over")

    def _extend(self, c: Connection, steps: Mapping[str, tuple[int, int]], until: int) -> frozenset[str]:
        rows = [(attempt_id, step, of) for attempt_id, (step, of) in steps.items()]
        if not rows:
            return frozenset()
        sqlite = self._db.is_sqlite
        return frozenset(c.scalars(_extending(sqlite), {"until": until} | _HEARD.bound(rows, sqlite=sqlite)))

    def _record(self, c: Connection, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
        """Record the newest checkpoints of running attempts; keys of those that they replace."""
        # Writers come one after the other: what is read here stays true until this commits.
        if not checkpoints:
            return []
        found = [
            row
            for row in c.execute(_CHECKPOINTS_OF, {"ids": list(checkpoints)})
            if row.checkpoint_key != checkpoints[row.id].key
        ]
        if found:
            c.execute(
                RECORD_CHECKPOINT,
                [
                    {"its_id": row.job, "its_key": checkpoints[row.id].key, "its_step": checkpoints[row.id].step}
                    for row in found
                ],
            )
        return [row.checkpoint_key for row in found if row.checkpoint_key]


_CLAIM_COLUMNS = (
    attempts.c.id, attempts.c.job_id, attempts.c.fence, attempts.c.renderer, attempts.c.card, attempts.c.card_class,
    attempts.c.resumed_step, attempts.c.lease_until,
)  # fmt: skip


#: Sorted, so that a statement's text is the same in any process.
_FINAL = sorted(state.value for state in FINAL_STATES)


def _has_ended() -> sa.ColumnElement[bool]:
    return is_one_of(jobs.c.state, *_FINAL)


def _has_heir() -> sa.Exists:
    """Of a row of `jobs`: whether a job of equal content of its owner may go on from its checkpoint."""
    heir = jobs.alias("heir")
    return sa.exists().where(
        heir.c.owner == jobs.c.owner,
        heir.c.content_key == jobs.c.content_key,
        heir.c.id != jobs.c.id,
        ~is_one_of(heir.c.state, *_FINAL),
    )


def _has_checkpoint() -> sa.ColumnElement[bool]:
    return jobs.c.checkpoint_key.is_not(None)


# Made once: to build a statement takes longer than to run it.
_GUARD = (
    sa.update(dispatcher)
    .where(dispatcher.c.id == 1, dispatcher.c.epoch == sa.bindparam("its_epoch"))
    .values(epoch=sa.bindparam("its_epoch"))
)
_EXPIRED_BY = (attempts.c.lease_until, attempts.c.id)
_EXPIRED = (
    sa.select(*_CLAIM_COLUMNS)
    .where(attempts.c.outcome.is_(None), attempts.c.lease_until < sa.bindparam("now"))
    .order_by(*_EXPIRED_BY)
    .limit(sa.bindparam("limit"))
)
_UNTIL, _LAST = sa.bindparam("until", type_=sa.BigInteger()), sa.bindparam("last", type_=sa.String())
_EXPIRED_BEHIND = _EXPIRED.where(
    attempts.c.lease_until >= _UNTIL,
    # Written out, for SQLite compares pairs but not with an index.
    sa.or_(attempts.c.lease_until > _UNTIL, sa.and_(attempts.c.lease_until == _UNTIL, attempts.c.id > _LAST)),
)
_CHECKPOINTED = sa.select(jobs.c.id).where(_has_ended(), ~_has_heir(), _has_checkpoint()).limit(sa.bindparam("limit"))
_ENDED_AMONG = sa.select(jobs.c.id).where(
    among(jobs.c.id, "ids"), is_one_of(unindexed(jobs.c.state), *_FINAL), ~_has_heir()
)
_NAMES = sa.select(jobs.c.id, jobs.c.checkpoint_key)
_NAMED_CHECKPOINTS = sa.select(jobs.c.checkpoint_key).where(
    _has_checkpoint(), among(unindexed(jobs.c.checkpoint_key), "keys")
)
_CHECKPOINTS_OF = (
    sa.select(attempts.c.id, jobs.c.id.label("job"), jobs.c.checkpoint_key)
    .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence))
    .where(among(attempts.c.id, "ids"), attempts.c.outcome.is_(None))
)
_HEARD = Given(name="heard", columns={"attempt": sa.String(), "step": sa.Integer(), "steps": sa.Integer()})


@cache
def _extending(sqlite: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    heard = _HEARD.table(sqlite=sqlite)
    return (
        sa.update(attempts)
        .where(attempts.c.id == heard.c.attempt, attempts.c.outcome.is_(None))
        .values(lease_until=sa.bindparam("until"), step=heard.c.step, steps=heard.c.steps)
        .returning(attempts.c.id)
    )


@cache
def _putting_cards(sqlite: bool) -> Any:
    insert = insert_into(cards, sqlite=sqlite)
    return insert.on_conflict_do_update(
        index_elements=[cards.c.renderer], set_={"beat": insert.excluded.beat, "seen_at": insert.excluded.seen_at}
    )
