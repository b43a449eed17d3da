"""Builds the snapshot that placement decides on: cards, waiting and running jobs, and the plan of a batch's tail."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

from cluster.dispatch.interactive import InteractiveClips
from cluster.dispatch.roster import Roster, RunningAttempt
from cluster.estimates.memory import MemoryEstimates
from cluster.estimates.times import TimeEstimates
from cluster.fleet.breakers import Route
from cluster.fleet.cards import Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import Job
from cluster.scheduling.snapshot import Running, Snapshot, Suit, WorkKind, work_kind
from cluster.scheduling.tail.plan import TailPlan
from cluster.scheduling.tail.planner import Planner, is_worth_planning, suited
from cluster.scheduling.tail.search import MOST_LISTED
from cluster.store.queues import WaitingQueue

log = logging.getLogger("clipmill.dispatcher")

#: Heads of a queue that are read in any case.
_HEADS = 4
#: So long new work waits for its plan before it is placed without, in seconds.
_PATIENCE_S = 2.0
#: How often it is worked out where jobs belong while many wait, in seconds.
_SUITS_S = 10.0


class SnapshotBuilder:
    """Puts snapshots together. Plans are worked out in a thread; placement goes by the one there is."""

    def __init__(
        self,
        roster: Roster,
        fleet: Fleet,
        *,
        wall: Callable[[], float],
        owners: Mapping[str, OwnerShare],
        planner: Planner | None,
        interactive: InteractiveClips,
        executor: Executor | None,
    ) -> None:
        """`wall`: seconds since the epoch. No `planner`: nothing is planned.

        `executor` works plans out; None: a thread of its own.
        """
        self._roster, self._fleet, self._wall, self._owners = roster, fleet, wall, owners
        self._planner, self._interactive = planner, interactive
        self._estimates = TimeEstimates()
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

    def learn(self, estimates: TimeEstimates) -> None:
        """Go by what was measured of the time that clips take."""
        self._estimates = estimates
        if self._planner is not None:
            self._planner.pace = estimates

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
        """Show more of each queue the next time: the last snapshot had too little of one."""
        self._short = True

    def wants_counts(self, waiting: Sequence[Job], heads: int) -> bool:
        """Whether it should be counted how many wait: more than were seen, and that was not done of late."""
        # Few heads of each queue are few jobs: that they are no longer many shows where no queue goes on behind them.
        self._many = _goes_on(_by_queue(waiting), heads) and (self._many or len(waiting) > MOST_LISTED)
        several = len({card.kind for card in self._roster.card_index.all.of_classes}) > 1
        due = self._wall() - self._suits_at >= _SUITS_S
        return self._planner is not None and self._many and several and due

    async def build(
        self,
        waiting: Sequence[Job],
        heads: int,
        *,
        memory: MemoryEstimates,
        blocked: frozenset[Route],
        counts: Sequence[WaitingQueue] | None = None,
    ) -> Snapshot:
        """What placement is to decide on.

        `heads`: how many jobs of each queue are in `waiting`, at most. `blocked`: routes whose breaker is open.
        `counts`: how many wait in each queue, where `wants_counts`.
        """
        seen = _by_queue(waiting)
        self._queues, self._shown, self._short = max(1, len(seen)), heads, False
        index, used_s = self._roster.card_index, self._roster.used_s()
        unseen = int(_goes_on(seen, heads))
        planner, admitted = self._planner, self._interactive.admit(waiting, self._estimates)
        if planner is None or len(waiting) + len(self._roster.running) > MOST_LISTED or unseen:
            if not unseen:
                self._suits = {}
            if counts is not None:
                await self._suit(waiting, counts, memory)
            return Snapshot(
                waiting=waiting, shown=heads, fleet=self._fleet, memory=memory, blocked=blocked, owners=self._owners,
                card_index=index, unseen=unseen, suits=self._suits, used_s=used_s, admitted=admitted,
                running=self._running() if admitted else (), pace=self._estimates,
                unavailable=self._roster.unavailable() if admitted else frozenset(),
                promised=self._interactive.promised(waiting),
            )  # fmt: skip
        found = Snapshot(
            waiting=waiting, shown=heads, fleet=self._fleet, memory=memory, blocked=blocked, owners=self._owners,
            card_index=index, running=self._running(), unavailable=self._roster.unavailable(), used_s=used_s,
            admitted=admitted, promised=self._interactive.promised(waiting), pace=self._estimates,
        )  # fmt: skip
        await self._plan(planner, found)
        return replace(found, plan=planner.plan)

    def is_due(self, attempt: RunningAttempt) -> bool:
        """Whether an attempt has done the steps that the plan has for it on its card, so that it is to move on."""
        plan = self._planner.plan if self._planner else None
        if plan is None or attempt.preempting:
            return False
        job, (step, total) = attempt.claim.job.id, attempt.steps
        parts = plan.of_job.get(job, ())
        return step < total and any(part.last == step for part in parts)

    def close(self) -> None:
        """Work out no more plans."""
        if self._owns_executor:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _running(self) -> list[Running]:
        now, found = self._roster.now(), []
        for attempt in self._roster.running.values():
            if not attempt.holds_card:
                continue
            step_s, since_s = attempt.watch.pace(now)
            found.append(
                Running(
                    job=attempt.claim.job,
                    card=attempt.claim.card,
                    step=attempt.steps[0],
                    step_s=step_s,
                    since_step_s=since_s,
                    movable=attempt.is_movable,
                    leaving=attempt.is_leaving,
                    preempted=self._interactive.times(attempt.claim.job.id),
                )
            )
        return found

    async def _plan(self, planner: Planner, snapshot: Snapshot) -> None:
        now = self._wall()
        if not planner.is_stale(snapshot, now):
            return
        if not is_worth_planning(snapshot, self._estimates):
            if self._working is None or self._working.done():
                planner.forget()
            return
        if self._working is None or self._working.done():
            # The roster goes on changing its index while the plan is worked out in another thread.
            still = replace(snapshot, card_index=snapshot.card_index.copy())
            self._working = asyncio.get_running_loop().run_in_executor(self._executor, planner.update, still, now)
        try:
            await asyncio.wait_for(asyncio.shield(self._working), _PATIENCE_S)
        except TimeoutError:
            log.debug("placing without the plan that is being worked out")
        except Exception:
            log.exception("no plan could be worked out; clips are placed without")
            self._planner = None

    async def _suit(self, waiting: Sequence[Job], counts: Sequence[WaitingQueue], memory: MemoryEstimates) -> None:
        self._suits_at = self._wall()
        # One that cannot be used has no memory, and may be of no known kind.
        cards = [card for card in self._roster.card_index.cards.values() if card.usable_bytes]
        if not all(map(self._estimates.knows, {card.kind for card in cards})):
            return
        number: Counter[WorkKind] = Counter()
        for queue in counts:
            number[WorkKind(queue.model, queue.resolution_class, queue.needs_bytes)] += queue.jobs
        examples = [job for job in waiting if work_kind(job) in number]
        try:
            self._suits = await asyncio.get_running_loop().run_in_executor(
                self._executor, suited, number, examples, cards, self._estimates, memory
            )
        except ValueError as error:
            log.warning("where many waiting clips belong could not be worked out: %s", error)


def _by_queue(waiting: Sequence[Job]) -> Counter[tuple[object, ...]]:
    return Counter(job.queue for job in waiting)


def _goes_on(seen: Counter[tuple[object, ...]], heads: int) -> bool:
    """Whether a queue may have more than the `heads` that were read of it."""
    return max(seen.values(), default=0) >= heads
