"""What the dispatcher shows placement at each look: cards, jobs, and what is worth knowing of the time they take."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

from cluster.breaker import Route
from cluster.cards import Fleet
from cluster.jobs import Job
from cluster.lessons import Lessons
from cluster.owners import OwnerShare
from cluster.placement import Running, Snapshot, Suit, WorkKind, work_kind
from cluster.planning.parts import TailPlan
from cluster.planning.planner import Planner, is_worth_planning, suited
from cluster.planning.tail import MOST_LISTED
from cluster.rates import Rates
from cluster.roster import Flight, Roster
from cluster.store.heads import WaitingQueue

log = logging.getLogger("clipmill.dispatcher")

#: Heads of a queue that are read in any case.
_HEADS = 4
#: So long new work waits for its plan before it is placed without, in seconds.
_PATIENCE_S = 2.0
#: How often it is worked out where jobs belong while many wait, in seconds.
_SUITS_S = 10.0


class Outlook:
    """Puts snapshots together. Plans are worked out in a thread; placement goes by the one there is."""

    def __init__(
        self,
        roster: Roster,
        fleet: Fleet,
        *,
        wall: Callable[[], float],
        owners: Mapping[str, OwnerShare],
        planner: Planner | None,
        executor: Executor | None,
    ) -> None:
        """`wall`: seconds since the epoch. No `planner`: nothing is planned. `executor` works plans out."""
        self._roster, self._fleet, self._wall, self._owners = roster, fleet, wall, owners
        self._planner = planner
        self._rates = Rates()
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="plans")
        self._working: asyncio.Future[TailPlan | None] | None = None
        self._suits: dict[WorkKind, Suit] = {}
        self._suits_at = float("-inf")
        self._many = False
        #: Queues there were at the last look, and how many of each were shown.
        self._queues, self._shown = 1, 0
        #: What was shown of one was not enough.
        self._short = False

    def learn(self, rates: Rates) -> None:
        """What was measured of the time that clips take."""
        self._rates = rates
        if self._planner is not None:
            self._planner.pace = rates

    @property
    def heads(self) -> int:
        """How many jobs of each queue the next look should see.

        With many queues there are few of each: jobs enough for all idle cards in all, and as many again. A look that
        shows too few of one decides nothing behind it and is followed by another.
        """
        most = 2 * self._roster.idle
        least = max(_HEADS, min(most, 4 * self._shown) if self._short else -(-most // self._queues))
        return least if self._many or self._planner is None else max(MOST_LISTED, least)

    def show_more(self) -> None:
        """The last look saw too little of some queue."""
        self._short = True

    def wants_counts(self, waiting: Sequence[Job], heads: int) -> bool:
        """Whether it should be counted how many wait: more than were seen, and that was not done of late."""
        # Few heads of each queue are few jobs: that they are no longer many shows where no queue goes on behind them.
        self._many = _unseen(waiting, heads) and (self._many or len(waiting) > MOST_LISTED)
        several = len({card.kind for card in self._roster.standing.all.of_classes}) > 1
        due = self._wall() - self._suits_at >= _SUITS_S
        return self._planner is not None and self._many and several and due

    async def snapshot(
        self,
        waiting: Sequence[Job],
        heads: int,
        *,
        lessons: Lessons,
        closed: frozenset[Route],
        counts: Sequence[WaitingQueue] | None = None,
    ) -> Snapshot:
        """What placement is to decide on; `counts` where they were asked for."""
        self._queues, self._shown = max(1, len({job.queue for job in waiting})), heads
        self._short = False
        standing, used_s = self._roster.standing, self._roster.used_s()
        unseen = int(_unseen(waiting, heads))
        planner = self._planner
        if planner is None or len(waiting) + len(self._roster.flights) > MOST_LISTED or unseen:
            if not unseen:
                self._suits = {}
            if counts is not None:
                await self._suit(waiting, counts, lessons)
            return Snapshot(
                waiting=waiting, shown=heads, fleet=self._fleet, lessons=lessons, closed=closed, owners=self._owners,
                standing=standing, unseen=unseen, suits=self._suits, used_s=used_s,
            )  # fmt: skip
        found = Snapshot(
            waiting=waiting, shown=heads, cards=list(standing.cards.values()), fleet=self._fleet, lessons=lessons,
            closed=closed, running=self._running(), owners=self._owners, standing=standing, used_s=used_s,
            locked=standing.locked | self._roster.away(),
        )  # fmt: skip
        await self._plan(planner, found)
        return replace(found, plan=planner.plan)

    def is_due(self, flight: Flight) -> bool:
        """Whether an attempt has done the steps that the plan has for it where it is."""
        plan = self._planner.plan if self._planner else None
        if plan is None or flight.leaving:
            return False
        job, (step, total) = flight.claim.job.id, flight.steps
        parts = plan.of_job.get(job, ())
        return step < total and any(part.last == step for part in parts)

    def close(self) -> None:
        """Work nothing more out."""
        if self._owns_executor:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _running(self) -> list[Running]:
        now, found = self._roster.now(), []
        for flight in self._roster.flights.values():
            if not flight.holds_card:
                continue
            step_s, since_s = flight.watch.pace(now)
            found.append(
                Running(
                    job=flight.claim.job,
                    card=flight.claim.card,
                    step=flight.steps[0],
                    step_s=step_s,
                    since_step_s=since_s,
                    movable=flight.is_movable,
                )
            )
        return found

    async def _plan(self, planner: Planner, snapshot: Snapshot) -> None:
        now = self._wall()
        if not planner.is_stale(snapshot, now):
            return
        if not is_worth_planning(snapshot, self._rates):
            if self._working is None or self._working.done():
                planner.forget()
            return
        if self._working is None or self._working.done():
            self._working = asyncio.get_running_loop().run_in_executor(self._executor, planner.update, snapshot, now)
        try:
            await asyncio.wait_for(asyncio.shield(self._working), _PATIENCE_S)
        except TimeoutError:
            log.debug("placing without the plan that is being worked out")
        except Exception:
            log.exception("no plan could be worked out; clips are placed without")
            self._planner = None

    async def _suit(self, waiting: Sequence[Job], counts: Sequence[WaitingQueue], lessons: Lessons) -> None:
        self._suits_at = self._wall()
        cards = list(self._roster.standing.cards.values())
        if not all(self._rates.knows(card.kind) for card in self._roster.standing.all.of_classes):
            return
        number: Counter[WorkKind] = Counter()
        for queue in counts:
            number[WorkKind(queue.model, queue.resolution_class, queue.needs_bytes)] += queue.jobs
        examples = [job for job in waiting if work_kind(job) in number]
        try:
            self._suits = await asyncio.get_running_loop().run_in_executor(
                self._executor, suited, number, examples, cards, self._rates, lessons
            )
        except ValueError as error:
            log.warning("where many waiting clips belong could not be worked out: %s", error)


def _unseen(waiting: Sequence[Job], heads: int) -> bool:
    """Whether a queue has more than the `heads` that were read of it."""
    seen = Counter(job.queue for job in waiting)
    return max(seen.values(), default=0) >= heads
