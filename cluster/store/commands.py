"""Commands of people to batches, jobs and cards, written by the table of `cluster.jobs.transitions`.

One transaction each, and for a large batch one for some thousand rows.

No row is read, thought about and written back: every statement names the states it starts from, so whatever a
dispatcher does at the same moment, a verb finds a job in one of them or leaves it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.commands import SPARED, CardOrder, CardVerb, for_batch, give_order, reached
from cluster.jobs.fidelity import terms_of
from cluster.jobs.model import INTERACTIVE_FROM, INTERACTIVE_PRIORITY, HoldReason, JobState, Limits, Reason
from cluster.jobs.review import ReviewChange, in_review, renewed, with_step
from cluster.jobs.transitions import RULES, Event, Guard, Happening, Instruction, RefusedError, Verb
from cluster.store.budgets import Meter, Price, price_of
from cluster.store.bulk import Keyed, among
from cluster.store.counters import count
from cluster.store.database import Database
from cluster.store.dependencies import follow, follow_batch
from cluster.store.fidelity.holding import hold_to_fidelity
from cluster.store.lookup import NoSuchJobError, glance_at, require_batch
from cluster.store.rows import job_from, limits_of, review_value, select_jobs
from cluster.store.schema import LIMITED, batches, card_orders, jobs
from cluster.store.transitions import (
    brings_back,
    finds_clip,
    goes_on,
    guard_sql,
    leads_to,
    moves,
    number_of_rule,
    values_of,
)
from cluster.store.webhooks.again import watch_again, watch_drafts
from pipeline.clips.clip import ClipSpec
from pipeline.memory.footprint import footprint

#: Failures after which a job's need may have been raised above what it would be predicted to need.
_NEED_RAISED = (Reason.OUT_OF_MEMORY.value, Reason.NO_CARD_FITS.value)
#: Failures that a checkpoint may be to blame for.
_CHECKPOINT_SUSPECT = (Reason.ERROR.value, Reason.CRASHED.value, Reason.INVALID.value)


@dataclass(frozen=True, kw_only=True)
class Enforced:
    """What the dispatcher has to know once a second."""

    #: Orders that stand, by card.
    orders: Mapping[str, CardOrder] = field(default_factory=dict)
    #: Batches that were stopped by this look, with the limit they have reached.
    stopped: Mapping[str, HoldReason] = field(default_factory=dict)

    @property
    def closed(self) -> frozenset[str]:
        """Cards that take no new clip."""
        return frozenset(self.orders)

    @property
    def clearing(self) -> frozenset[str]:
        """Cards whose clip is preempted."""
        return frozenset(card for card, order in self.orders.items() if order.clears)


class CommandStore:
    """Commands of operators to batches, jobs and cards.

    Every method that names an owner raises `NoSuchBatchError` or `NoSuchJobError` for what is not theirs, and
    `RefusedError` for what cannot be obeyed.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._meter = Meter()
        self._swept_at: int | None = None
        #: Rows of a batch that are moved in one transaction.
        self.rows_at_once = ROWS_AT_ONCE

    # -- batches --------------------------------------------------------------------------------------------

    def batch(
        self,
        owner: str,
        batch_id: str,
        verb: Verb,
        *,
        priority: int = 0,
        cancelled: bool = False,
        limits: Limits | None = None,
        price: Price = price_of,
    ) -> None:
        """Carry out `verb` on a batch: rows that cannot obey it are left as they are.

        `priority` is PRIORITIZE's; `cancelled`: RETRY puts cancelled rows back too; `limits`: RESUME sets those that
        are not None first, and refuses where the batch is beyond one of them all the same. `price` is what money is
        counted by.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            row = require_batch(c, owner, batch_id)
            if limits is not None and verb is Verb.RESUME:
                row = self._limit(c, owner, batch_id, limits)
            batch = glance_at(c, row, now)
            used = self._meter.used(c, batch_id, now, price) if verb is Verb.RESUME else None
            order = for_batch(batch, verb, used, cancelled=cancelled)
            held = order.held.value if order.held else None
            flags: dict[str, Any] = {"held": held, "needs_approval": order.needs_approval}
            mine = sa.and_(jobs.c.owner == owner, jobs.c.batch_id == batch_id)
            if verb in _REVIEWS:
                # A clip that somebody looks at is decided on by itself (`job`): what follows is written before.
                seen = jobs.c.reason.is_not_distinct_from(HoldReason.REVIEW.value)
                mine = sa.and_(mine, jobs.c.state != JobState.COMPLETED.value, ~seen)
            if verb in SPARED:
                mine = sa.and_(mine, ~guard_sql(SPARED[verb]))
            large = order.rows and _has_more_than(c, mine, self.rows_at_once)
            if verb is Verb.CANCEL:
                # Nothing comes after a cancel: rows that are still being handed in are cancelled as they come.
                flags["sealed"] = True
                if large:
                    # Nothing more of it starts while its rows are cancelled piece by piece.
                    flags["held"] = HoldReason.PAUSED.value
            c.execute(sa.update(batches).where(batches.c.id == batch_id).values(**flags))
            if not order.rows:
                return
            if not large:
                self._move_batch(c, now, verb, batch_id, mine, priority, cancelled)
                return
            if verb is Verb.CANCEL:
                # What runs is asked to stop at once.
                self._move(c, now, verb, sa.and_(mine, jobs.c.state == JobState.RUNNING.value))
        self._move_in_pieces(verb, mine, priority, cancelled)
        with self._db.write() as c:
            if verb in (Verb.CANCEL, Verb.RETRY):
                follow_batch(self._db, c, self._db.now(c), batch_id)
            if verb is Verb.CANCEL:
                c.execute(sa.update(batches).where(batches.c.id == batch_id).values(held=held))

    def _move_batch(
        self,
        c: Connection,
        now: int,
        verb: Verb,
        batch_id: str,
        mine: sa.ColumnElement[bool],
        priority: int,
        cancelled: bool,
    ) -> None:
        if verb is Verb.RETRY and not cancelled:
            mine = sa.and_(mine, jobs.c.state == JobState.FAILED.value)
        # Again for rows that wait for one which was put back just now.
        while self._move(c, now, verb, mine, priority) and verb is Verb.RETRY:
            pass
        if verb in (Verb.CANCEL, Verb.RETRY):
            follow_batch(self._db, c, now, batch_id)

    def _move_in_pieces(self, verb: Verb, mine: sa.ColumnElement[bool], priority: int, cancelled: bool) -> None:
        # Others write between two pieces: one transaction would hold them all up for as long as a batch is large. A
        # command that was broken off is given again; rows that have obeyed are left as they are.
        moved = True
        while moved:
            # Again for rows that wait for one which was put back just now.
            moved = self._move_each_piece(verb, mine, priority, cancelled) > 0 and verb is Verb.RETRY

    def _move_each_piece(self, verb: Verb, mine: sa.ColumnElement[bool], priority: int, cancelled: bool) -> int:
        moved, last = 0, -1
        while True:
            piece = sa.select(jobs.c.id, jobs.c.number).where(mine, jobs.c.number > last)
            with self._db.write() as c:
                some = c.execute(piece.order_by(jobs.c.number).limit(self.rows_at_once)).all()
                if not some:
                    return moved
                last = some[-1].number
                # By the ids alone: an index of states would find all rows of the store.
                which = among(jobs.c.id, [row.id for row in some])
                if verb is Verb.RETRY and not cancelled:
                    which = sa.and_(which, jobs.c.state.concat("") == JobState.FAILED.value)
                moved += self._move_some(c, self._db.now(c), verb, which, priority)

    def _limit(self, c: Connection, owner: str, batch_id: str, limits: Limits) -> sa.Row[tuple[object, ...]]:
        given = {"max_failures": limits.failures, "max_gpu_seconds": limits.gpu_seconds, "max_cost": limits.cost}
        if values := {name: value for name, value in given.items() if value is not None}:
            c.execute(sa.update(batches).where(batches.c.id == batch_id).values(**values))
        return require_batch(c, owner, batch_id)

    # -- jobs -----------------------------------------------------------------------------------------------

    def job(
        self, owner: str, job_id: str, verb: Verb, *, priority: int = 0, change: ReviewChange | None = None
    ) -> None:
        """Carry out `verb` on one job. A verb that finds it so already changes nothing.

        `change` is REROLL's; with one REJECT makes another clip of the same round as well. Raises `BadInputError` for
        a change that the model does not take.
        """
        with_another = verb is Verb.REJECT and change is not None and not change.empty
        said, verb = verb, Verb.REROLL if with_another else verb
        with self._db.write() as c:
            now = self._db.now(c)
            mine = sa.and_(jobs.c.owner == owner, jobs.c.id == job_id)
            found = c.execute(
                sa.select(jobs.c.name, jobs.c.state, number_of_rule(verb).label("rule")).where(mine)
            ).one_or_none()
            if found is None:
                raise NoSuchJobError(f"there is no job {job_id!r}; `clipmill status BATCH --json` lists a batch's jobs")
            rule = RULES[verb][found.rule] if found.rule >= 0 else None
            if rule is None or rule.to is None:
                what = f"{found.name} ({job_id})"
                raise RefusedError(said, what, rule.refusal if rule else f"it is {found.state}")
            if verb in _REVIEWS and not rule.keeps:
                self._review(c, now, verb, mine, change or ReviewChange(), said)
            self._move(c, now, verb, mine, priority)
            moved = [job_id]
            if Instruction.LET_OTHERS_GO in rule.does:
                moved += self._pass_over_others(c, now, owner, job_id)
            follow(self._db, c, now, moved)

    def _review(
        self, c: Connection, now: int, verb: Verb, mine: sa.ColumnElement[bool], change: ReviewChange, said: Verb
    ) -> None:
        """Write what the job renders next, and what was decided; the table moves it after that, by its new content."""
        job = job_from(c.execute(select_jobs().where(mine)).one())
        if verb is Verb.APPROVE and not in_review(job) and job.state is not JobState.COMPLETED:
            return
        renewal = renewed(job, verb, change)
        steps = with_step(job, said.value, now)
        if renewal is None:
            c.execute(sa.update(jobs).where(mine).values(review=review_value(job.rounds, steps)))
            return
        c.execute(
            sa.update(jobs)
            .where(mine)
            .values(
                spec=renewal.spec.model_dump(mode="json"),
                content_key=renewal.content_key,
                resolution_class=renewal.spec.resolution_class.value,
                needs_bytes=renewal.needs_bytes,
                row=dict(renewal.row),
                review=review_value(renewal.rounds, steps),
                rounds_left=renewal.rounds_left,
                checkpoint_key=None,
                checkpoint_step=None,
            )
        )

    def _pass_over_others(self, c: Connection, now: int, owner: str, job_id: str) -> list[str]:
        """Let go of the other clips of the row that a job is of; returns their ids."""
        this = jobs.alias("this")
        others = sa.select(jobs.c.id).join(
            this, sa.and_(this.c.batch_id == jobs.c.batch_id, this.c.row_number == jobs.c.row_number)
        )
        of_row = others.where(this.c.id == job_id, jobs.c.row_number.is_not(None), jobs.c.id != job_id)
        found = list(c.scalars(of_row.where(jobs.c.owner == owner)))
        if found:
            self._move(c, now, Happening.PASSED_OVER, among(jobs.c.id, found))
        return found

    # -- cards ----------------------------------------------------------------------------------------------

    def order(self, card: str, kind: CardVerb, *, reason: str = "", by: str = "", for_s: int | None = None) -> None:
        """Carry out `kind` on a card, for so many seconds (None: until it is released); the last order counts."""
        with self._db.write() as c:
            now = self._db.now(c)
            until = None if for_s is None else now + for_s
            standing = _standing(c, now).get(card)
            if kind is CardVerb.RELEASE:
                give_order(card, standing, None)
                c.execute(sa.delete(card_orders).where(card_orders.c.card == card))
                return
            new = CardOrder(card=card, kind=kind, reason=reason, given_by=by, since=now, until=until)
            if give_order(card, standing, new) is not new:
                return
            values = {"kind": kind.value, "reason": reason, "given_by": by, "since": now, "until": until}
            _ORDERED.put(c, [{"card": card, **values}], sqlite=self._db.is_sqlite)

    def orders(self) -> dict[str, CardOrder]:
        """Orders that stand, by card."""
        with self._db.read() as c:
            return _standing(c, self._db.now(c))

    # -- what the dispatcher asks for -----------------------------------------------------------------------

    def enforce(self, price: Price = price_of) -> Enforced:
        """Stop batches that have reached a limit, and say which orders stand for cards. Once a second.

        Costs as much as there are batches with a limit and something to start; no write where nothing has changed.
        """
        with self._db.read() as c:
            now = self._db.now(c)
            orders = _standing(c, now)
            live = c.execute(_LIVE_LIMITED).all()
            stops = {
                row.id: stop
                for row in live
                if (stop := reached(self._meter.used(c, row.id, now, price), limits_of(row))) is not None
            }
        self._meter.forget_all_but({row.id for row in live})
        for batch_id, stop in stops.items():
            with self._db.write() as c:
                where = sa.and_(batches.c.id == batch_id, batches.c.held.is_(None))
                c.execute(sa.update(batches).where(where).values(held=stop.value))
        if self._swept_at is None or now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            with self._db.write() as c:
                follow_batch(self._db, c, now)
                c.execute(sa.delete(card_orders).where(card_orders.c.until <= now))
        return Enforced(orders=orders, stopped=stops)

    # -- within a transaction -------------------------------------------------------------------------------

    def _move(self, c: Connection, now: int, verb: Event, which: sa.ColumnElement[bool], priority: int = 0) -> int:
        """How many jobs were moved."""
        changing = [rule for rule in RULES[verb] if rule.to is not None and not rule.keeps]
        # States in which only those change that were to be preempted: few, and found by an index of their own.
        asked = {rule.state for rule in changing} - {rule.state for rule in changing if rule.when not in _ASKED}
        plain = {rule.state for rule in changing} - asked
        preempted = jobs.c.id.in_(sa.select(_PREEMPTED.c.id).where(_PREEMPTED.c.hold_requested.is_not(None)))
        parts = [(plain, sa.true()), (asked, preempted)]
        return sum(
            self._move_some(c, now, verb, sa.and_(which, jobs.c.state.in_([s.value for s in states]), among), priority)
            for states, among in parts
            if states
        )

    def _move_some(self, c: Connection, now: int, verb: Event, which: sa.ColumnElement[bool], priority: int) -> int:
        again: list[str] = []
        drafts: list[str] = []
        if verb is Verb.RETRY:
            self._freshen(c, which)
        batches_of = sa.select(jobs.c.batch_id).distinct()
        if verb in (Verb.RETRY, Verb.REROLL):
            again = list(c.scalars(batches_of.where(which, brings_back(verb))))
        if verb in _GO_ON:
            drafts = list(c.scalars(batches_of.where(which, goes_on(verb))))
        self._tally(c, verb, which)
        completed = self._completed_by(c, verb, which)
        values = values_of(verb, now)
        if verb is Verb.PRIORITIZE:
            # What is interactive stays so.
            mark = sa.case((jobs.c.priority >= INTERACTIVE_FROM, INTERACTIVE_PRIORITY), else_=0)
            values = {"priority": priority + mark, "updated_at": now}
        moved = int(c.execute(sa.update(jobs).where(which, moves(verb)).values(**values)).rowcount)
        watch_again(c, again)
        watch_drafts(c, drafts)
        hold_to_fidelity(c, now, completed)
        return moved

    def _completed_by(self, c: Connection, verb: Event, which: sa.ColumnElement[bool]) -> list[str]:
        """Ids of jobs that the verb completes with a clip that is there, of those whose rows ask for a fidelity."""
        if not any(rule.to is JobState.COMPLETED and rule.finds_clip for rule in RULES[verb]):
            return []
        found = c.execute(sa.select(jobs.c.id, jobs.c.row).where(which, finds_clip(verb)))
        return [row.id for row in found if terms_of(row.row) is not None]

    def _tally(self, c: Connection, verb: Event, which: sa.ColumnElement[bool]) -> None:
        for state, outcome in ((JobState.CANCELLED, "cancelled"), (JobState.COMPLETED, "shared")):
            if not any(rule.to is state for rule in RULES[verb]):
                continue
            kinds = c.execute(
                sa.select(jobs.c.family, jobs.c.resolution_class, sa.func.count().label("number"))
                .where(which, leads_to(verb, state))
                .group_by(jobs.c.family, jobs.c.resolution_class)
            ).all()
            for kind in kinds:
                labels = {"model": kind.family, "resolution_class": kind.resolution_class}
                count(self._db, c, "clips", outcome=outcome, by=kind.number, **labels)

    def _freshen(self, c: Connection, which: sa.ColumnElement[bool]) -> None:
        # What an attempt raised it to may be more than any card has; the prediction is what a new attempt begins with.
        # Writers come one after the other, so what is read here is still so when it is written.
        raised = c.execute(
            sa.select(jobs.c.id, jobs.c.spec).where(which, jobs.c.reason.in_(_NEED_RAISED), moves(Verb.RETRY))
        ).all()
        for row in raised:
            needs = footprint(ClipSpec.model_validate(row.spec)).peak_bytes
            c.execute(sa.update(jobs).where(jobs.c.id == row.id).values(needs_bytes=needs))
        c.execute(
            sa.update(jobs)
            .where(which, jobs.c.reason.in_(_CHECKPOINT_SUSPECT), moves(Verb.RETRY))
            .values(checkpoint_key=None, checkpoint_step=None)
        )


_ASKED = (Guard.PAUSING, Guard.HOLDING)
#: Commands of whoever looks at a clip.
_REVIEWS = (Verb.APPROVE, Verb.REJECT, Verb.REROLL)
#: Commands after which another draft may come.
_GO_ON = (Verb.APPROVE, Verb.RESUME, Verb.REROLL, Verb.RETRY)
_PREEMPTED = jobs.alias("preempted")

#: A transaction of so many rows takes some tenths of a second.
ROWS_AT_ONCE = 5000

#: Seconds between two looks for waiting rows whose release was missed, and for orders that have run out.
SWEEP_S = 60


def _standing(c: Connection, now: int) -> dict[str, CardOrder]:
    found = {
        row.card: CardOrder(
            card=row.card,
            kind=CardVerb(row.kind),
            reason=row.reason,
            given_by=row.given_by,
            since=row.since,
            until=row.until,
        )
        for row in c.execute(_ORDERS)
    }
    return {card: order for card, order in found.items() if order.stands(now)}


def _has_queued() -> sa.Exists:
    return sa.exists().where(jobs.c.batch_id == batches.c.id, jobs.c.state == JobState.QUEUED.value)


_ORDERED = Keyed(card_orders)
# Asked once a second, so made once.
_ORDERS = sa.select(card_orders)
_LIVE_LIMITED = sa.select(batches.c.id, batches.c.max_failures, batches.c.max_gpu_seconds, batches.c.max_cost).where(
    sa.text(f"({LIMITED})"), batches.c.held.is_(None), _has_queued()
)


def _has_more_than(c: Connection, which: sa.ColumnElement[bool], rows: int) -> bool:
    return c.scalar(sa.select(jobs.c.number).where(which).order_by(jobs.c.number).offset(rows).limit(1)) is not None
