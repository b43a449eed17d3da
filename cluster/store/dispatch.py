"""The dispatcher's side of the store: claims, leases and completions, every write fenced by epoch and attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.estimates.memory import MemoryEstimates
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat, Card
from cluster.jobs.commands import FARM, CardVerb
from cluster.jobs.model import Claim, Job, JobState, Outcome, Reason, StoredCheckpoint
from cluster.jobs.outcomes import Ended, Transition
from cluster.jobs.transitions import Happening
from cluster.store import checkpoints, measurements
from cluster.store.budgets import Price, price_of
from cluster.store.bulk import Keyed, ParameterTable
from cluster.store.claims import begin, claims_of
from cluster.store.commands import CommandStore, Enforced
from cluster.store.completions import Completion, end, observe
from cluster.store.counters import count
from cluster.store.database import Database
from cluster.store.dependencies import follow
from cluster.store.office import note_in_office, take_office
from cluster.store.outage import is_outage
from cluster.store.queues import WaitingQueue
from cluster.store.rows import JOBS_BY_ID, job_from
from cluster.store.schema import attempts, cards, dispatcher, jobs
from cluster.store.transitions import moves, to_preempt, values_of
from cluster.store.waiting import WaitingJobs
from pipeline.problems import Problem

#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000


class StaleEpochError(RuntimeError):
    """Another dispatcher took office; this one must stop without touching anything."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Answer to `DispatchStore.renew`."""

    #: Attempts whose lease was renewed.
    live: frozenset[str]
    #: Attempts with a renewed lease whose job was cancelled.
    cancelled: frozenset[str]
    #: Running attempts that are to be preempted, because people hold their job or batch, and the reason.
    preempted: Mapping[str, str] = field(default_factory=dict)
    #: Keys of checkpoints that these jobs no longer go on from, newer ones being recorded.
    superseded: tuple[str, ...] = ()


class DispatchStore:
    """Opened by the one dispatcher in office. All writes raise `StaleEpochError` once another took over."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._commands = CommandStore(database)
        self.epoch = 0
        #: Where the page of expired leases ended that was given out last.
        self._rescued: tuple[int, str] | None = None
        self._waiting = WaitingJobs(database)

    def take_office(self, holder: str, farm: str = "") -> list[Claim]:
        """Become the dispatcher; returns the attempts that were running under earlier ones.

        Whoever held the office before can no longer write. Raises `OfficeTakenError` where that is a dispatcher of
        another farm which wrote within `cluster.store.office.OFFICE_S`.
        """
        with self._db.write() as c:
            self.epoch = take_office(self._db, c, holder, farm)
            c.execute(sa.delete(cards))
            rows = c.execute(sa.select(*_CLAIM_COLUMNS).where(attempts.c.outcome.is_(None)).order_by(attempts.c.id))
            return claims_of(c, rows.all())

    def leave_office(self) -> None:
        """Let any dispatcher take over at once; nothing where this one is not in office any more."""
        with self._db.write() as c:
            note_in_office(c, self.epoch, 0)

    def waiting(self, per_queue: int) -> list[Job]:
        """Jobs that may start now: the first `per_queue` of each queue, in the order of placement."""
        return self._waiting.first(per_queue)

    def counts(self) -> list[WaitingQueue]:
        """How many jobs wait in each queue: for plans, read once in a few seconds."""
        return self._waiting.counts()

    def start(self, starts: Sequence[tuple[Job, Card]], lease_s: int) -> list[Claim]:
        """Claim jobs for cards in one transaction; those that may not start any more are left out."""
        with self._db.write() as c:
            self._guard(c)
            return begin(c, self._db.now(c), self.epoch, starts, lease_s)

    def renew(
        self,
        steps: Mapping[str, tuple[int, int]],
        lease_s: int,
        newest: Mapping[str, StoredCheckpoint] | None = None,
    ) -> Renewal:
        """Extend the leases of attempts that were heard of, and record their last finished step.

        `newest` are the newest checkpoints of running attempts, heard of or not; those of attempts that ended are void.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            self._guard(c, now)
            live = self._extend(c, steps, now + lease_s)
            superseded = checkpoints.record(c, newest or {})
            cancelled, preempted = to_preempt(c)
        return Renewal(live=live, cancelled=cancelled, preempted=preempted, superseded=tuple(superseded))

    def expired(self, limit: int = 500) -> list[Claim]:
        """Running attempts whose lease ran out, oldest first: the next page of them.

        After a full page the following call goes on behind it, after one that was not full it begins anew. So attempts
        that cannot be ended, however many there are, hide no others.
        """
        with self._db.read() as c:
            until, last = self._rescued or (0, "")
            query = _EXPIRED if self._rescued is None else _EXPIRED_BEHIND
            page = {"now": self._db.now(c), "until": until, "last": last, "limit": limit}
            rows = c.execute(query, page).all()
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

    def deaths_of(self, job_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """What is written of the renderers that died of these jobs, by job, the oldest first."""
        with self._db.read() as c:
            found: dict[str, tuple[str, ...]] = {}
            query = sa.select(attempts.c.job_id, attempts.c.detail).where(
                attempts.c.job_id.in_(job_ids), attempts.c.outcome == Outcome.CRASHED.value
            )
            for row in c.execute(query.order_by(attempts.c.fence)):
                found[row.job_id] = (*found.get(row.job_id, ()), row.detail or "no message")
        return found

    def finish(self, claim: Claim, ended: Ended, transition: Transition) -> bool:
        """End an attempt and move its job, in one transaction. False where the attempt had ended before.

        A completed attempt publishes its clip here, and completes every waiting job of equal content. The job keeps
        its newest checkpoint where the transition says so; whoever ended keeps it as the mark of objects to delete.
        """
        return self.finish_many([Completion(claim=claim, ended=ended, transition=transition)])[0]

    def finish_many(self, completions: Sequence[Completion]) -> list[bool]:
        """`finish` for several attempts in one transaction: all are written, or none where one raises."""
        # Before the transaction: writers come one after the other.
        observed = observe(completions)
        with self._db.write() as c:
            self._guard(c)
            return end(self._db, c, self._db.now(c), completions, observed)

    def finish_each(self, completions: Sequence[Completion]) -> list[bool | Exception]:
        """`finish_many`, but a completion that cannot be written stops no other; its error is in its place.

        Raises `StaleEpochError`, and what says that the store does not answer.
        """
        try:
            return list(self.finish_many(completions))
        except StaleEpochError:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            if len(completions) == 1:
                return [error]
        half = len(completions) // 2
        return self.finish_each(completions[:half]) + self.finish_each(completions[half:])

    def enforce(self, price: Price = price_of) -> Enforced:
        """Stop batches at their limits; tells which orders stand for cards. `price`: dollars an hour of a card kind."""
        return self._commands.enforce(price)

    def quarantine(self, card: str, reason: str, for_s: int) -> None:
        """Set a card aside for so long; an order of people stands."""
        self._commands.order(card, CardVerb.QUARANTINE, reason=reason, by=FARM, for_s=for_s)

    def memory_estimates(self) -> MemoryEstimates:
        """Bytes that clips take of cards, as far as they were measured."""
        return measurements.load_memory(self._db)

    def time_estimates(self) -> TimeEstimates:
        """Seconds that clips take on cards, as far as they were measured."""
        return measurements.load_times(self._db)

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
        """Fail a waiting job that fits no card of this farm."""
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            why = {"reason": reason.value, "problems": [problem.model_dump()]}
            moved = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, moves(Happening.REFUSED))
                .values(values_of(Happening.REFUSED, now) | why)
            )
            if moved.rowcount:
                follow(self._db, c, now, [job.id])
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
            return checkpoints.of_ended(c, limit)

    def unwanted_checkpoints(self, keys: Iterable[str]) -> set[str]:
        """The `keys` that no job goes on from: of jobs of equal content several may name the same."""
        with self._db.read() as c:
            return checkpoints.unwanted(self._db, c, list(keys))

    def forget_checkpoints(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """Let nothing go on from the checkpoints of these jobs any more; their keys, by job.

        Jobs that have not ended are left alone, and those of whose content another may still go on from there.
        """
        with self._db.write() as c:
            self._guard(c)
            return checkpoints.forget(c, job_ids)

    def ended_among(self, job_ids: Iterable[str]) -> set[str]:
        """The jobs among `job_ids` that have ended, but for those whose checkpoint another may go on from.

        A job this store does not know is not among them: it may be another's.
        """
        with self._db.read() as c:
            return checkpoints.ended_among(c, list(job_ids))

    def record_cards(self, beats: Iterable[Beat]) -> None:
        """Write the roster for those who ask; renderers left out keep their last time and fade."""
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            rows = [{"renderer": beat.renderer, "beat": beat.model_dump(mode="json"), "seen_at": now} for beat in beats]
            _CARDS.put(c, rows, sqlite=self._db.is_sqlite)

    # -- within a transaction -------------------------------------------------------------------------------

    def _guard(self, c: Connection, now: int | None = None) -> None:
        # An UPDATE, not a SELECT: on PostgreSQL it takes the row's lock, so two dispatchers are put in order.
        if now is not None:
            held = note_in_office(c, self.epoch, now)
        else:
            held = bool(c.execute(_GUARD, {"its_epoch": self.epoch}).rowcount)
        if not held:
            raise StaleEpochError(f"epoch {self.epoch} has ended: another dispatcher took over")

    def _extend(self, c: Connection, steps: Mapping[str, tuple[int, int]], until: int) -> frozenset[str]:
        rows = [(attempt_id, step, of) for attempt_id, (step, of) in steps.items()]
        if not rows:
            return frozenset()
        sqlite = self._db.is_sqlite
        return frozenset(c.scalars(_extending(sqlite), {"until": until} | _HEARD.bound(rows, sqlite=sqlite)))


_CLAIM_COLUMNS = (
    attempts.c.id, attempts.c.job_id, attempts.c.fence, attempts.c.renderer, attempts.c.card, attempts.c.card_class,
    attempts.c.resumed_step, attempts.c.lease_until,
)  # fmt: skip


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
_CARDS = Keyed(cards)
_HEARD = ParameterTable(name="heard", columns={"attempt": sa.String(), "step": sa.Integer(), "steps": sa.Integer()})


@cache
def _extending(sqlite: bool) -> sa.sql.dml.ReturningUpdate[Any]:
    heard = _HEARD.table(sqlite=sqlite)
    return (
        sa.update(attempts)
        .where(attempts.c.id == heard.c.attempt, attempts.c.outcome.is_(None))
        .values(lease_until=sa.bindparam("until"), step=heard.c.step, steps=heard.c.steps)
        .returning(attempts.c.id)
    )
