"""What the store can tell a monitoring system: its tallies, and what its tables hold now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import sqlalchemy as sa

from cluster.fleet.cards import Beat, CardState, Fleet, storage_fault
from cluster.fleet.demand import WaitingKind, backlog_gpu_seconds
from cluster.jobs.model import JobState, Outcome
from cluster.store.batches import BatchStore
from cluster.store.counters import STAGES, TALLIES
from cluster.store.database import Database
from cluster.store.queues import mean_gpu_seconds, waiting_kinds
from cluster.store.schema import batches, jobs, tallies, webhook_deliveries, webhooks
from cluster.webhooks.model import DeliveryState
from pipeline.clips.clip import ResolutionClass

#: Values of one figure by its label values.
Series = dict[tuple[str, ...], float]

#: How a row can end, as the tally of clips calls it.
_CLIP_OUTCOMES = ("completed", "shared", "failed", "cancelled")
#: Queued rows of a `render` that was broken off: nothing of them starts until it runs again.
_STOPPED = "stopped"
_LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """The farm now. Every series that can be is there, at 0 where nothing is."""

    #: Rows that have not ended by (state, resolution class).
    jobs: Series
    #: Seconds since the row that waits longest came (back) into the queue, by (resolution class,).
    queue_oldest_seconds: Series
    #: Work that waits, by (smallest card class that it fits,).
    backlog_gpu_seconds: Series
    #: Waiting rows that fit no card heard of lately, by (smallest card class of the fleet that they fit,).
    jobs_without_card: Series
    #: Cards heard of lately by (card class, state).
    cards: Series
    #: 1 while storage can be written, 0 while the farm or one of its renderers cannot.
    storage_writable: Series
    #: Messages to webhooks that are still to be delivered.
    webhook_messages_pending: Series
    #: Webhooks that were disabled, because they were gone or took nothing for days.
    webhooks_disabled: Series


class Figures:
    """Reads a store for `/metrics`; `fleet` says which card classes there can be."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._db = database
        self._fleet = fleet

    def counters(self) -> dict[str, Series]:
        """Every tally by its name, its label values in the order of `TALLIES[name].labels`.

        A counter that first appears at 1 has not grown in Prometheus' eyes, so what can happen to the kinds that
        were seen or wait now is there at 0 before it happens.
        """
        found: dict[str, Series] = {name: defaultdict(float) for name in TALLIES}
        with self._db.read() as c:
            rows = c.execute(sa.select(tallies)).all()
            live = c.execute(
                sa.select(jobs.c.family, jobs.c.resolution_class, sa.func.min(jobs.c.needs_bytes).label("needs_bytes"))
                .where(jobs.c.state.in_([state.value for state in _LIVE]))
                .group_by(jobs.c.family, jobs.c.resolution_class)
            ).all()
        seen = {(r.model, r.resolution_class, r.card_class) for r in rows if r.name == "attempts"}
        seen |= {
            (row.family, row.resolution_class, card_class)
            for row in live
            for card_class, usable_bytes in self._fleet.usable_bytes.items()
            if usable_bytes >= row.needs_bytes
        }
        for name, labels in self._possible(seen):
            found[name][labels] = 0.0
        for row in rows:
            if tally := TALLIES.get(row.name):
                # Columns without a label outside add up.
                found[row.name][tuple(getattr(row, column) for column in tally.labels.values())] += row.value
        return found

    def gauges(self) -> Gauges:
        """The farm as its tables show it now."""
        waiting, roster = waiting_kinds(self._db), BatchStore(self._db).cards()
        means = mean_gpu_seconds(self._db) if waiting else {}
        states, oldest = self._rows()
        cards: Series = {(c, s.value): 0.0 for c, s in product(self._fleet.usable_bytes, CardState)}
        for beat in roster:
            # One that cannot be used is no card that idles while rows wait.
            state = CardState.STARTING if beat.fault and beat.state is CardState.IDLE else beat.state
            key = (beat.card_class, state.value)
            cards[key] = cards.get(key, 0.0) + 1
        return Gauges(
            jobs=states,
            queue_oldest_seconds=oldest,
            backlog_gpu_seconds=_single(backlog_gpu_seconds(waiting, means, self._fleet)),
            jobs_without_card=_single(_without_card(waiting, roster, self._fleet)),
            cards=cards,
            storage_writable={(): 0.0 if storage_fault(roster) else 1.0},
            webhook_messages_pending=self._number(webhook_deliveries.c.state == DeliveryState.PENDING.value),
            webhooks_disabled=self._number(webhooks.c.disabled_at.is_not(None)),
        )

    def _number(self, condition: sa.ColumnElement[bool]) -> Series:
        with self._db.read() as c:
            return {(): float(c.scalar(sa.select(sa.func.count()).where(condition)) or 0)}

    def _possible(self, seen: Iterable[tuple[str, str, str]]) -> Iterable[tuple[str, tuple[str, ...]]]:
        yield "leases_expired", ()
        yield from (("webhook_messages", (state,)) for state in (DeliveryState.DELIVERED, DeliveryState.FAILED))
        yield from (("preemptions", (reason,)) for reason in ("drain", "pause", "hold", "move"))
        yield "clips", ("", "", "invalid")
        yield "admissions", ("refused", "")
        for card_class in self._fleet.usable_bytes:
            yield "admissions", ("admitted", card_class)
            yield "admissions", ("too_big", card_class)
        for where in seen:
            yield "gpu_seconds", where
            yield from (("attempts", (*where, outcome.value)) for outcome in Outcome)
            yield from (("oom", (*where, stage)) for stage in STAGES)
            yield from (("clips", (*where[:2], outcome)) for outcome in _CLIP_OUTCOMES)

    def _rows(self) -> tuple[Series, Series]:
        with self._db.read() as c:
            now = self._db.now(c)
            # Never NULL, which would be neither true nor false.
            abandoned = sa.func.coalesce(batches.c.attended_until < now, sa.false())
            shown = sa.case(
                (sa.and_(jobs.c.state == JobState.QUEUED.value, abandoned), _STOPPED),
                # As `BatchStore` shows them: their batch is paused, or stopped at a limit.
                (
                    sa.and_(jobs.c.state == JobState.QUEUED.value, batches.c.held.is_not(None)),
                    JobState.HELD.value,
                ),
                else_=jobs.c.state,
            ).label("shown")
            # A row that is to start later does not wait before that.
            waits_since = sa.case((jobs.c.not_before > jobs.c.updated_at, jobs.c.not_before), else_=jobs.c.updated_at)
            rows = c.execute(
                sa.select(
                    shown,
                    jobs.c.resolution_class,
                    sa.func.count().label("number"),
                    sa.func.min(waits_since).label("since"),
                )
                .join(batches, batches.c.id == jobs.c.batch_id)
                # Rows that ended are left to the tally of clips: there may be millions of them.
                .where(jobs.c.state.in_([state.value for state in _LIVE]))
                .group_by(shown, jobs.c.resolution_class)
            ).all()
        classes = [size.value for size in ResolutionClass]
        states: Series = dict.fromkeys(product((*(s.value for s in _LIVE), _STOPPED), classes), 0.0)
        oldest: Series = {(size,): 0.0 for size in classes}
        for row in rows:
            states[row.shown, row.resolution_class] = float(row.number)
            if row.shown == JobState.QUEUED:
                oldest[row.resolution_class,] = float(max(0, now - row.since))
        return states, oldest


def _without_card(waiting: Iterable[WaitingKind], roster: Iterable[Beat], fleet: Fleet) -> dict[str, float]:
    largest = max((beat.usable_bytes for beat in roster), default=0)
    found = dict.fromkeys(fleet.usable_bytes, 0.0)
    for kind in waiting:
        card_class = fleet.smallest_class_for(kind.needs_bytes)
        # What fits no class is refused at the dispatcher's next look, and counted there.
        if card_class is not None and (kind.needs_bytes > largest or not largest):
            found[card_class] += kind.jobs
    return found


def _single(by_class: Mapping[str, float]) -> Series:
    return {(name,): value for name, value in by_class.items()}
