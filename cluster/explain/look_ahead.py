"""When a job starts if nobody does anything: clips end as expected, and placement decides at each end. Pure."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

from cluster.estimates.published import steps_of
from cluster.estimates.times import TimeEstimates
from cluster.explain.model import Known
from cluster.fleet.breakers import Route
from cluster.fleet.cards import Card
from cluster.jobs.model import Job
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Running, Snapshot, Start
from pipeline.families import FAMILIES

#: Ends of running clips that are looked ahead to, and a bound on the jobs and cards looked at meanwhile.
_MOST_EVENTS = 200
_MOST_LOOKED_AT = 200_000


def left_s(running: Running, card: Card | None, estimates: TimeEstimates) -> float:
    """Seconds until a running clip is off its card; infinite where that is not known."""
    spec = running.job.spec
    if spec is None or spec.family not in FAMILIES or card is None:
        return math.inf
    cost = estimates.cost_within(spec, card.kind, card.usable_bytes)
    if running.step_s is None:
        seconds = cost.on_card_s(running.step)
    else:
        seconds = running.step_s * max(0, steps_of(spec) - running.step) + cost.decode_s
    return max(0.0, seconds - running.since_step_s)


def through_s(job: Job, card: Card, estimates: TimeEstimates) -> float:
    """Seconds from a free card to the job's last frame decoded there; infinite where that is not known."""
    if job.spec is None or job.spec.family not in FAMILIES:
        return math.inf
    begin = estimates.gap_seconds if card.family == job.spec.family else estimates.load_seconds
    on_card_s = estimates.clip_seconds(job.spec, card.kind, usable_bytes=card.usable_bytes, from_step=job.step)
    return begin(job.spec.family, card.kind) + on_card_s


def look_ahead(
    job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known, *, by: float = math.inf
) -> tuple[float, Card] | None:
    """(when, on which card) `job` starts if nobody does anything; None where that cannot be told, or not before `by`.

    Clips end as `estimates` expects, and placement decides at each end; orders on cards and breakers run out, and start
    times come. It cannot be told beyond the last job that is seen of a queue which is longer. Times are in UTC epoch
    seconds.
    """
    farm = _Ahead(job, snapshot, now, estimates, known)
    for _ in range(min(_MOST_EVENTS, max(10, _MOST_LOOKED_AT // (farm.size + 1)))):
        if (card := farm.decide()) is not None:
            return farm.now, card
        if not farm.is_known_before(by):
            return None
        farm.go_on()
    return None


class _Ahead:
    """The farm of a snapshot at a time to come."""

    def __init__(self, job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known) -> None:
        self.now, self._job, self._estimates = now, job, estimates
        self._snapshot = snapshot
        self._index = snapshot.card_index.copy()
        self._running, self._waiting = list(snapshot.running), list(snapshot.waiting)
        self._locked, self._blocked = snapshot.locked, snapshot.blocked
        seen = Counter(other.queue for other in snapshot.waiting if other.id != job.id)
        #: How many jobs are left to look at of each queue that is longer than what is seen of it.
        self._longer = {
            queue: number for queue, number in seen.items() if known.per_queue and number >= known.per_queue
        }
        #: (when, number, what happens): the number keeps equal times in order.
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        by_card = {card.card: card for card in self._index.cards.values()}
        for one in snapshot.running:
            self._expect_end(one, now + left_s(one, by_card.get(one.card), estimates))
        for card, order in known.orders.items():
            if order.until is not None and card in self._locked:
                self._expect(order.until, partial(self._release, card))
        for route, until in known.blocked_until.items():
            if route in self._blocked:
                self._expect(until, partial(self._unblock, route))
        for other in snapshot.waiting:
            if other.not_before is not None and other.not_before > now:
                self._expect(other.not_before, lambda: None)

    @property
    def size(self) -> int:
        """Cards and waiting jobs: what a decision looks at."""
        return len(self._index.cards) + len(self._waiting)

    def decide(self) -> Card | None:
        """Start what placement starts now; the card of the job, where that is among it."""
        snapshot = replace(
            self._snapshot,
            card_index=self._index,
            running=self._running,
            waiting=self._waiting,
            blocked=self._blocked,
        )
        starts = [decision for decision in place(snapshot, self.now) if isinstance(decision, Start)]
        for start in starts:
            if start.job.id == self._job.id:
                return start.card
            self._begin(start)
        started = {start.job.id for start in starts}
        self._waiting = [other for other in self._waiting if other.id not in started]
        return None

    def is_known_before(self, by: float) -> bool:
        """Whether anything happens before `by`, and all that may start then is seen."""
        return bool(self._events) and self._events[0][0] < by and all(self._longer.values())

    def go_on(self) -> None:
        """Go on to the next time at which anything happens."""
        self.now = self._events[0][0]
        while self._events and self._events[0][0] <= self.now:
            _, _, happens = heapq.heappop(self._events)
            happens()

    def _expect(self, at: float, happens: Callable[[], None]) -> None:
        if self.now <= at < math.inf:
            heapq.heappush(self._events, (at, next(self._order), happens))

    def _expect_end(self, running: Running, at: float) -> None:
        self._expect(at, partial(self._end, running))

    def _begin(self, start: Start) -> None:
        job, card = start.job, start.card
        family = job.spec.family if job.spec is not None else card.family
        self._index.put(card.model_copy(update={"idle": False, "family": family}))
        self._index.began(job)
        if job.queue in self._longer:
            self._longer[job.queue] -= 1
        running = Running(job=job, card=card.card, step=job.step)
        self._running = [*self._running, running]
        self._expect_end(running, self.now + through_s(job, card, self._estimates))

    def _end(self, ended: Running) -> None:
        for one in self._running:
            if one.job.id == ended.job.id:
                self._index.ended(one.job)
        self._running = [one for one in self._running if one.job.id != ended.job.id]
        # One that is being published has left its card to another.
        if all(one.card != ended.card for one in self._running):
            for card in [card for card in self._index.cards.values() if card.card == ended.card]:
                self._index.put(card.model_copy(update={"idle": True}))

    def _release(self, card: str) -> None:
        self._locked -= {card}
        self._index.lock(self._locked)

    def _unblock(self, route: Route) -> None:
        self._blocked -= {route}
