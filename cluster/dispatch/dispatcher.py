"""The loop between store, placement and the renderers. Knows no engine: it speaks to a `RendererPool`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from cluster.dispatch.attempts import AttemptRunner
from cluster.dispatch.card_orders import CardOrders
from cluster.dispatch.checkpoint_gc import CheckpointGc
from cluster.dispatch.completion import CompletionQueue
from cluster.dispatch.estimates import EstimateReader
from cluster.dispatch.interactive import InteractiveClips
from cluster.dispatch.leases import LEASE_S, PREEMPT_S, RENEW_S, STALL_S, Leases
from cluster.dispatch.protocol import RendererPool, Verdict
from cluster.dispatch.retry import INTERACTIVE, no_card_fits
from cluster.dispatch.roster import Roster, RunningAttempt
from cluster.dispatch.snapshots import SnapshotBuilder
from cluster.dispatch.storage_watch import StorageWatch
from cluster.dispatch.store_calls import StoreCalls
from cluster.fleet.breakers import Breakers, route_of
from cluster.fleet.cards import Beat, Card, CardState, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import Job, Outcome, Reason
from cluster.scheduling.eligible import leaner_bytes
from cluster.scheduling.interactive import InteractiveTerms
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Decision, Move, Preempt, Refuse, Relax, ShowMore, Snapshot, Start
from cluster.scheduling.tail.planner import Planner
from cluster.storage import Storage
from cluster.store import Claim, DispatchStore, OfficeTakenError, StaleEpochError
from cluster.store.budgets import Price, price_of
from cluster.store.outage import is_outage
from pipeline.memory.footprint import leanest

log = logging.getLogger("clipmill.dispatcher")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the dispatcher looks, and how patient it is, in seconds; what is about leases lies in `leases.py`."""

    #: Longest time between two looks at the store while a card is idle; events wake it earlier.
    poll_s: float = 0.25
    #: Longest time between two looks while no card is: nothing can start, but what fits no card has to be refused.
    look_s: float = 5.0
    renew_s: float = RENEW_S
    #: A card of which nothing new is heard is written to the roster this often; shorter than `ROSTER_SECONDS`.
    roster_s: float = 5.0
    lease_s: int = LEASE_S
    #: A renderer that was not heard for this long gets no new clip.
    silent_s: float = 5.0
    #: How often checkpoints of jobs that have ended are looked for.
    sweep_s: float = 10.0
    stall_s: float = STALL_S
    preempt_s: float = PREEMPT_S
    #: `preempt_s` of a farm that closes: a beat, a step and a write, within what the closing side waits for.
    farewell_s: float = 4.0


class Dispatcher:
    """One per farm. `run` until `stop`; `beat` is called by every renderer twice a second.

    A round of its loop, at every wake-up and at least every `Timing.poll_s`:

    1. every `Timing.renew_s`: leases are renewed and rescued (`leases.py`), orders for cards enforced
       (`card_orders.py`), the roster written, checkpoints swept (`checkpoint_gc.py`);
    2. heads: the first waiting jobs of every queue are read;
    3. snapshot: these, the cards, what runs and what was measured (`snapshots.py`);
    4. place: `cluster.scheduling.placement` decides;
    5. carry out: running jobs are moved, or make room for interactive ones; waiting ones are relaxed, refused, or
       shown more of at the next round;
    6. start: jobs that start are claimed in one transaction, and an attempt is launched for each.

    Attempts run beside the loop, each in a task of its own (`attempts.py`); how they end is written by `completion.py`.
    """

    def __init__(
        self,
        dispatch_store: DispatchStore,
        pool: RendererPool,
        fleet: Fleet,
        *,
        holder: str,
        farm: str = "",
        clock: Callable[[], float],
        timing: Timing | None = None,
        storage: Storage | None = None,
        executor: Executor | None = None,
        price: Price = price_of,
        owners: Mapping[str, OwnerShare] | None = None,
        planner: Planner | None = None,
        interactive: InteractiveTerms | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`holder` names this dispatcher, `farm` the farm that it belongs to: it takes over at once from another of the
        same farm, and stands by while one of another farm is in office.

        `storage`: where checkpoints lie that nobody needs any more; None: they are left there.

        `price`: what an hour of a card kind costs, for batches that may cost so much only.

        `owners`: shares and limits of those that have any. `planner` plans the tails of batches; None: clips start
        where there is room and stay there. `interactive`: what interactive clips may take of the farm; None: the
        default. `wall`: seconds since the epoch, as the store counts them.

        `executor` runs the calls of store and storage, one after the other; None: a thread for each of the two.
        """
        self._dispatch_store, self._fleet = dispatch_store, fleet
        self._holder, self._farm = holder, farm
        #: Who is in office while this one waits for it, in words; empty: nobody else.
        self.stands_by = ""
        self._clock, self._wall, self._timing = clock, wall, timing or Timing()
        self._wake = asyncio.Event()
        #: Start nothing more; `_closing` then ends the loop.
        self._stopping = self._closing = self._in_office = False
        #: Set while `run` does not.
        self._ended = asyncio.Event()
        self._ended.set()
        self._renewed_at = self._looked_at = self._swept_at = -math.inf
        # Lost with this dispatcher: what they know is learned again in a few attempts.
        self._breakers = Breakers(clock)
        self._roster = Roster(clock, self._timing.silent_s)
        self._store = StoreCalls(executor, on_replaced=self._wake.set)
        self._estimates = EstimateReader(dispatch_store, self._store, clock)
        self._interactive = InteractiveClips(self._roster, clock, interactive or InteractiveTerms())
        self._snapshots = SnapshotBuilder(
            self._roster, fleet, wall=wall, owners=owners or {}, planner=planner, interactive=self._interactive,
            executor=executor,
        )  # fmt: skip
        self._checkpoints = CheckpointGc(dispatch_store, storage, self._store, executor)
        self._storage_watch = StorageWatch(storage, clock, executor=executor, on_writable=self.nudge)
        self._card_orders = CardOrders(
            dispatch_store, self._store, self._roster, clock, price=price, preempt_s=self._timing.preempt_s
        )
        self._attempts = AttemptRunner(
            pool, self._roster, clock, breakers=self._breakers, card_orders=self._card_orders,
            completions=CompletionQueue(dispatch_store, fleet, self._store), checkpoints=self._checkpoints,
            estimates=self._estimates, storage_watch=self._storage_watch, on_step=self._on_step,
            on_card_free=self._wake.set,
        )  # fmt: skip
        self._leases = Leases(
            dispatch_store, self._store, self._roster, clock, attempts=self._attempts, checkpoints=self._checkpoints,
            lease_s=self._timing.lease_s, stall_s=self._timing.stall_s, preempt_s=self._timing.preempt_s,
        )  # fmt: skip

    # -- calls of renderers and of whoever runs the farm -----------------------------------------------------

    def beat(self, beat: Beat) -> dict[str, Verdict]:
        """Take a heartbeat; the answer has a verdict for each attempt the renderer named."""
        if beat.state is CardState.DRAINING and not beat.steps:
            # Its last beat: Serve is taking it away, and it has nothing left to finish.
            self._roster.drop(beat.renderer)
            return {}
        was_idle = self._roster.is_idle(beat.renderer)
        replaced = self._roster.hear(beat)
        if beat.storage_fault:
            self._storage_watch.doubt(f"renderer {beat.renderer}: {beat.storage_fault}")
        self._attempts.deaths.heard(beat, replaced)
        if not was_idle and self._roster.is_idle(beat.renderer):
            self._wake.set()
        return {attempt_id: self._verdict(attempt_id, steps, beat) for attempt_id, steps in beat.steps.items()}

    def _verdict(self, attempt_id: str, steps: tuple[int, int], beat: Beat) -> Verdict:
        attempt = self._roster.running.get(attempt_id)
        if attempt is None or attempt.stop is not None:
            # Whoever was replaced knows nothing of its successor's attempts.
            return Verdict.GO_ON if self._store.replaced else Verdict.STOP
        if steps > attempt.steps or beat.waiting_for:
            attempt.steps, attempt.moved_at = max(attempt.steps, steps), self._clock()
        if attempt.cancelled:
            return Verdict.CANCEL
        return Verdict.CHECKPOINT if attempt.preempting else Verdict.GO_ON

    def preempt(self, job_id: str, reason: str = "preempt") -> bool:
        """Have a running job's clip saved and stopped; the job then waits for a card again, at no attempt's cost.

        False where there is nothing to preempt: it does not run, is being published, or its family cannot be resumed.
        """
        attempt = self._roster.of_job(job_id)
        now = self._clock()
        return attempt is not None and attempt.preempt(reason, now + attempt.leave_s(self._timing.preempt_s, now))

    def nudge(self) -> None:
        """Something changed in the store: look now."""
        self._looked_at = -math.inf
        self._wake.set()

    def running_count(self) -> int:
        """Attempts that run, those included whose completion is still being written."""
        return len(self._roster.running)

    def roster(self) -> dict[str, tuple[int, int]]:
        """Per card class: renderers heard of, and how many of them have a running clip."""
        counted: dict[str, tuple[int, int]] = {}
        for uid, seen in self._roster.renderers.items():
            present, working = counted.get(seen.beat.card_class, (0, 0))
            busy = bool(seen.beat.steps or self._roster.of_renderer(uid))
            counted[seen.beat.card_class] = (present + 1, working + busy)
        return counted

    # -- from office to its end ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take office, as soon as no other farm's dispatcher has it, and dispatch until `stop`.

        Returns when another dispatcher takes over.
        """
        self._ended.clear()
        try:
            # Their streams died with the dispatcher that held them; the fence keeps any zombie out.
            await self._leases.end_lost(await self._take_office(), "the dispatcher was replaced")
            self._checkpoints.start_sweep(thorough=True)
            self._storage_watch.doubt()
            while not self._closing:
                await self._round()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._wake.wait(), min(self._timing.poll_s, self._timing.renew_s or math.inf)
                    )
                self._wake.clear()
        except StaleEpochError as stale:
            log.warning("leaving office: %s", stale)
        except Exception as error:
            if not (self._closing and is_outage(error)):
                raise
            log.warning("closing without the store, which does not answer (%s): leases will run out", error)
        finally:
            await self._close()
            self._ended.set()

    async def _take_office(self) -> list[Claim]:
        """Become the dispatcher; returns the attempts of earlier ones. No office where it is stopped first."""
        while not self._closing:
            try:
                claims = await self._store(self._dispatch_store.take_office, self._holder, self._farm)
            except OfficeTakenError as taken:
                if self.stands_by != str(taken):
                    log.warning("standing by until it falls silent: %s", taken)
                self.stands_by = str(taken)
            else:
                self.stands_by, self._in_office = "", True
                return claims
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), RENEW_S)
            self._wake.clear()
        return []

    async def stop(self, grace_s: float) -> None:
        """Start nothing more; let running clips finish for `grace_s`, then put their jobs back into the queue.

        Those that can go on elsewhere are preempted first, within `Timing.farewell_s`; earlier those whose own steps
        take longer than that. Leases are renewed until the last clip has ended. Returns when `run` has.
        """
        self._stopping = True
        self._wake.set()
        deadline = self._clock() + grace_s
        while (tasks := self._attempts.tasks()) and self._clock() < deadline:
            following = min(deadline, self._preempt_slow(deadline))
            await asyncio.wait(tasks, timeout=max(0.0, following - self._clock()), return_when=asyncio.FIRST_COMPLETED)
        patience_s = self._timing.farewell_s
        preempted = [
            attempt.task
            for attempt in self._roster.running.values()
            if attempt.task
            and self._roster.is_heard(attempt.claim.renderer)
            and attempt.preempt("drain", self._clock() + patience_s)
        ]
        if preempted:
            await asyncio.wait(preempted, timeout=patience_s)
        self._closing = True
        # Whoever closes waits no longer for a store than for a renderer.
        self._store.hurry(self._timing.farewell_s)
        self._wake.set()
        await self._ended.wait()

    def _preempt_slow(self, deadline: float) -> float:
        """Preempt clips that could not leave within `farewell_s` after `deadline`; when the next one is to be."""
        now, following = self._clock(), deadline
        for attempt in self._roster.running.values():
            due = deadline + self._timing.farewell_s - attempt.leave_s(self._timing.farewell_s, now)
            if attempt.preempting or due >= deadline:
                continue
            if due > now:
                following = min(following, due)
            elif self._roster.is_heard(attempt.claim.renderer):
                attempt.preempt("drain", deadline + self._timing.farewell_s)
        return following

    async def _close(self) -> None:
        self._store.hurry(self._timing.farewell_s)
        for attempt in list(self._roster.running.values()):
            attempt.interrupt(Outcome.STOPPED)
        await asyncio.gather(*self._attempts.tasks(), return_exceptions=True)
        await self._checkpoints.close()
        if self._in_office and not self._store.replaced:
            # Not knowing that it left of its own, another farm's dispatcher would wait.
            with contextlib.suppress(Exception):
                await self._store(self._dispatch_store.leave_office)
        self._storage_watch.close()
        self._snapshots.close()
        self._store.close()

    # -- one round -------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """One round, by the numbers of the class docstring."""
        self._interactive.note()
        if self._clock() - self._renewed_at >= self._timing.renew_s:
            self._renewed_at = self._clock()
            await self._renew()
        if self._stopping or self._storage_watch.fault:
            # What would be rendered now could not be put anywhere.
            return
        self._roster.mark_silent()
        if not self._roster.idle and self._clock() - self._looked_at < self._timing.look_s:
            # Without a free card nothing can start; one look in a while is enough to refuse what fits nowhere.
            return
        self._looked_at = self._clock()
        decisions = place(await self._snapshot(), self._wall(), reasons=False)
        for decision in decisions:
            await self._carry_out(decision)
        await self._start([(one.job, one.card) for one in decisions if isinstance(one, Start)])

    async def _renew(self) -> None:
        """Step 1: leases, orders for cards, the roster for those who ask, and checkpoints that nobody needs."""
        now = self._clock()
        await self._refresh_estimates()
        await self._leases.renew()
        await self._card_orders.enforce()
        await self._leases.rescue()
        self._roster.drop_unheard(now - self._timing.lease_s)
        if beats := self._roster.to_record(self._timing.roster_s):
            await self._store(self._dispatch_store.record_cards, self._storage_watch.stamped(beats))
        if now - self._swept_at >= self._timing.sweep_s and self._checkpoints.start_sweep():
            self._swept_at = now

    async def _snapshot(self) -> Snapshot:
        """Steps 2 and 3: what placement is to decide on."""
        heads = self._snapshots.heads
        waiting = await self._store(self._dispatch_store.waiting, heads)
        counts = None
        if self._snapshots.wants_counts(waiting, heads):
            counts = await self._store(self._dispatch_store.counts)
        # Of a clip that ended meanwhile, too: whatever waits may have been handed in because of it.
        await self._refresh_estimates()
        # Once the store has answered, however long that took.
        self._roster.mark_silent()
        return await self._snapshots.build(
            waiting, heads, memory=self._estimates.memory, blocked=self._breakers.blocked(), counts=counts
        )

    async def _carry_out(self, decision: Decision) -> None:
        """Step 5: what placement decided, but for starts."""
        match decision:
            case Relax() | Refuse():
                await self._relax_or_refuse(decision.job)
            case Move():
                self._preempt_once(decision.job, "move")
            case Preempt():
                if self._preempt_once(decision.job, INTERACTIVE):
                    attempt = self._roster.of_job(decision.job.id)
                    self._interactive.made_room(decision, attempt.preempt_by if attempt else self._clock())
            case ShowMore():
                self._snapshots.show_more()
                self.nudge()

    def _preempt_once(self, job: Job, reason: str) -> bool:
        """Preempt a job that was not told so yet, for whatever reason; whether it was now."""
        attempt = self._roster.of_job(job.id)
        return attempt is not None and not attempt.preempting and self.preempt(job.id, reason)

    async def _relax_or_refuse(self, job: Job) -> None:
        # A clip takes its fastest layout wherever the fleet has a card for it, so that the same rows on the same fleet
        # give the same frames whichever card is free first. Only where that layout fits none is a leaner one allowed,
        # and then the fastest of those that fit some card: the leanest of all may take many times longer.
        assert job.spec is not None
        if (needed := leaner_bytes(job.spec, job.needs_bytes, self._fleet)) is not None:
            await self._store(self._dispatch_store.relax, job, needed)
            self.nudge()
            return
        problem = no_card_fits(job.spec, leanest(job.spec)[1].peak_bytes, self._fleet)
        await self._store(self._dispatch_store.refuse, job, Reason.NO_CARD_FITS, problem)

    async def _start(self, starts: Sequence[tuple[Job, Card]]) -> None:
        """Step 6: claim jobs for cards, and launch an attempt for each claim."""
        if not starts:
            return
        routes = {job.id: route_of(job.spec, card.card, card.usable_bytes) for job, card in starts if job.spec}
        for claim in await self._store(self._dispatch_store.start, starts, self._timing.lease_s):
            self._attempts.launch(claim, routes.get(claim.job.id))

    async def _refresh_estimates(self) -> None:
        if await self._estimates.refresh():
            self._snapshots.learn(self._estimates.times)

    def _on_step(self, attempt: RunningAttempt) -> None:
        if self._snapshots.is_due(attempt):
            self.nudge()
