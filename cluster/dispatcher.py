"""The loop between store, placement and the renderers. Knows no engine: it speaks to a `RendererPool`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from cluster.breaker import Breakers, Route, blame, route_of
from cluster.cards import Beat, CardState, Fleet
from cluster.escalation import no_card_fits
from cluster.jobs import Checkpoint, Ended, Job, Outcome, Reason, checkpoints_of
from cluster.landing import Landing
from cluster.leftovers import Leftovers
from cluster.lessons import Lessons
from cluster.outlook import Outlook
from cluster.owners import OwnerShare
from cluster.placement import Move, Refuse, Relax, ShowMore, Start, place
from cluster.planning.planner import Planner
from cluster.quarantine import REST_S, Quarantine
from cluster.renderers import (
    Assignment,
    CardFree,
    CheckpointFailed,
    CheckpointSaved,
    RendererDiedError,
    RendererLostError,
    RendererPool,
    StepDone,
    Verdict,
)
from cluster.roster import Flight, Roster
from cluster.storage import Storage
from cluster.store import Claim, Ledger, StaleEpochError
from cluster.store.limits import Price, price_of
from cluster.store.outage import is_outage
from pipeline.families import family_named
from pipeline.footprint import footprint, leanest

log = logging.getLogger("clipmill.dispatcher")
T = TypeVar("T")

#: How often lessons are read again although this dispatcher recorded no peak (they can be imported), in seconds.
_LESSONS_S = 60.0
#: How long the checkpoints of the last clips may hold up a farm that closes, in seconds.
_LAST_SWEEP_S = 1.0
#: Pauses between two tries of a store that does not answer, in seconds; each is twice the one before.
_RETRY_S = (0.1, 5.0)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the dispatcher looks, and how patient it is, in seconds."""

    #: Longest time between two looks at the store while a card is idle; events wake it earlier.
    poll_s: float = 0.25
    #: The same while none is: nothing can start, but what fits no card has to be told.
    look_s: float = 5.0
    renew_s: float = 1.0
    #: A card of which nothing new is heard is written to the roster this often; shorter than `ROSTER_SECONDS`.
    roster_s: float = 5.0
    #: A renderer that was not heard for this long loses its attempts. Longer than a dispatcher's restart.
    lease_s: int = 10
    #: A renderer that was not heard for this long gets no new clip.
    silent_s: float = 5.0
    #: How often checkpoints of jobs that have ended are looked for.
    sweep_s: float = 10.0
    #: An attempt that got nowhere for this long has a renderer that hangs: longer than any load, step or decode.
    stall_s: float = 1800.0
    #: A clip told to save a checkpoint and stop is stopped without one after this: a decode cannot be left.
    preempt_s: float = 30.0
    #: The same when the farm closes: a beat, a step and a write, within what the closing side waits for.
    farewell_s: float = 4.0


class Dispatcher:
    """One per farm. `run` until `stop`; `beat` is called by every renderer twice a second."""

    def __init__(
        self,
        ledger: Ledger,
        pool: RendererPool,
        fleet: Fleet,
        *,
        holder: str,
        clock: Callable[[], float],
        timing: Timing | None = None,
        storage: Storage | None = None,
        executor: Executor | None = None,
        price: Price = price_of,
        owners: Mapping[str, OwnerShare] | None = None,
        planner: Planner | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`storage`: where checkpoints lie that nobody needs any more; None: they are left there.

        `price`: what an hour of a card kind costs, for batches that may cost so much only.

        `owners`: shares and limits of those that have any. `planner` plans the tails of batches; None: clips start
        where there is room and stay there. `wall`: seconds since the epoch, as the store counts them.

        `executor` runs the calls of store and storage, one after the other; None: a thread for each of the two.
        """
        self._ledger = ledger
        self._pool = pool
        self._fleet = fleet
        self._holder = holder
        self._clock = clock
        self._timing = timing or Timing()
        self._roster = Roster(clock, self._timing.silent_s)
        self._wake = asyncio.Event()
        #: Start nothing more; `_leaving` then ends the loop.
        self._stopping = False
        self._leaving = False
        #: Another dispatcher is in office.
        self._replaced = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._renewed_at = self._looked_at = -math.inf
        #: Since when the store does not answer, and until when it is waited for, by the loop's clock.
        self._out_since: float | None = None
        self._patience_until = math.inf
        self._lessons = Lessons()
        self._lessons_at = -math.inf
        #: Peaks were recorded since.
        self._learned = False
        # Both are lost with this dispatcher: what they know is learned again in a few attempts.
        self._breakers = Breakers(clock)
        self._quarantine = Quarantine(clock)
        self._price = price
        self._landing = Landing(ledger, fleet, self._store)
        self._leftovers = Leftovers(ledger, storage, self._store, executor)
        self._sweeping: asyncio.Task[None] | None = None
        self._swept_at = -math.inf
        # One thread: store calls stay in order and never block the beats.
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="store")
        self._wall = wall
        self._outlook = Outlook(self._roster, fleet, wall=wall, owners=owners or {}, planner=planner, executor=executor)

    # -- what renderers say ---------------------------------------------------------------------------------

    def beat(self, beat: Beat) -> dict[str, Verdict]:
        """Take a heartbeat; the answer has a verdict for each attempt the renderer named."""
        if beat.state is CardState.DRAINING and not beat.steps:
            # Its last words: Serve is taking it away, and it has nothing left to finish.
            self._roster.drop(beat.renderer)
            return {}
        was_idle = self._roster.is_idle(beat.renderer)
        self._roster.hear(beat)
        if not was_idle and self._roster.is_idle(beat.renderer):
            self._wake.set()
        verdicts: dict[str, Verdict] = {}
        for attempt_id, steps in beat.steps.items():
            flight = self._roster.flights.get(attempt_id)
            if flight is None or flight.stop is not None:
                # Whoever was replaced knows nothing of its successor's attempts.
                verdicts[attempt_id] = Verdict.GO_ON if self._replaced else Verdict.STOP
                continue
            if steps > flight.steps or beat.holding:
                flight.steps, flight.moved_at = max(flight.steps, steps), self._clock()
            leaving = Verdict.CHECKPOINT if flight.leaving else Verdict.GO_ON
            verdicts[attempt_id] = Verdict.CANCEL if flight.cancelled else leaving
        return verdicts

    def preempt(self, job_id: str, cause: str = "preempt") -> bool:
        """Have a running job's clip saved and stopped; the job then waits for a card again, at no attempt's cost.

        False where there is nothing to stop: it does not run, is being published, or its family cannot be resumed.
        """
        flight = self._roster.of_job(job_id)
        return flight is not None and self._ask_to_leave(flight, cause, self._timing.preempt_s)

    def _ask_to_leave(self, flight: Flight, cause: str, patience_s: float) -> bool:
        if not flight.is_movable or not flight.holds_card:
            return False
        flight.leaving, flight.leave_by = cause, self._clock() + patience_s
        return True

    def nudge(self) -> None:
        """Something changed in the store: look now."""
        self._looked_at = -math.inf
        self._wake.set()

    def flying(self) -> int:
        """Attempts in flight."""
        return len(self._roster.flights)

    def roster(self) -> dict[str, tuple[int, int]]:
        """Per card class: renderers heard of, and how many of them have a clip in flight."""
        counted: dict[str, tuple[int, int]] = {}
        for uid, seat in self._roster.seats.items():
            present, working = counted.get(seat.beat.card_class, (0, 0))
            busy = bool(seat.beat.steps or self._roster.of_renderer(uid))
            counted[seat.beat.card_class] = (present + 1, working + busy)
        return counted

    # -- the loop -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take office and dispatch until `stop`. Returns when another dispatcher takes over."""
        self._ended.clear()
        try:
            # Their streams died with the dispatcher that held them; the fence keeps any zombie out.
            left = await self._store(self._ledger.take_office, self._holder)
            await self._end_lost(left, "the dispatcher was replaced")
            self._sweeping = asyncio.create_task(self._leftovers.sweep(thorough=True))
            while not self._leaving:
                await self._turn()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._wake.wait(), min(self._timing.poll_s, self._timing.renew_s or math.inf)
                    )
                self._wake.clear()
        except StaleEpochError as stale:
            log.warning("leaving office: %s", stale)
        except Exception as error:
            if not (self._leaving and is_outage(error)):
                raise
            log.warning("closing without the store, which does not answer (%s): leases will run out", error)
        finally:
            await self._close()
            self._ended.set()

    async def stop(self, grace_s: float) -> None:
        """Start nothing more; let clips in flight finish for `grace_s`, then give them back to the queue.

        Those that can go on elsewhere save a checkpoint first, within `Timing.farewell_s`. Leases are renewed until the
        last clip has ended. Returns when `run` has.
        """
        self._stopping = True
        self._wake.set()
        deadline = self._clock() + grace_s
        while (tasks := self._tasks()) and self._clock() < deadline:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - self._clock()), return_when=asyncio.FIRST_COMPLETED)
        patience_s = self._timing.farewell_s
        told = [
            flight.task
            for flight in self._roster.flights.values()
            if flight.task
            and self._roster.is_heard(flight.claim.renderer)
            and self._ask_to_leave(flight, "drain", patience_s)
        ]
        if told:
            await asyncio.wait(told, timeout=patience_s)
        self._leaving = True
        self._hurry()
        self._wake.set()
        await self._ended.wait()

    async def _turn(self) -> None:
        if self._clock() - self._renewed_at >= self._timing.renew_s:
            self._renewed_at = self._clock()
            await self._renew()
        if self._stopping:
            return
        self._roster.fade()
        if not self._roster.idle and self._clock() - self._looked_at < self._timing.look_s:
            return
        self._looked_at = self._clock()
        # Without a free card nothing can start; one look in a while is enough to refuse what fits nowhere.
        heads = self._outlook.heads
        waiting = await self._store(self._ledger.waiting, heads)
        counts = await self._store(self._ledger.counts) if self._outlook.wants_counts(waiting, heads) else None
        # Of a clip that ended meanwhile, too: whatever waits may have been handed in because of it.
        await self._learn()
        # Once the store has answered, however long that took.
        self._roster.fade()
        decisions = place(
            await self._outlook.snapshot(
                waiting, heads, lessons=self._lessons, closed=self._breakers.closed_to(), counts=counts
            ),
            self._wall(),
            reasons=False,
        )
        for decision in decisions:
            if isinstance(decision, Relax | Refuse):
                await self._relax_or_refuse(decision.job)
            elif isinstance(decision, Move):
                self._clear(self._roster.of_job(decision.job.id), "move")
            elif isinstance(decision, ShowMore):
                self._outlook.show_more()
                self.nudge()
        starts = [(d.job, d.card) for d in decisions if isinstance(d, Start)]
        if starts:
            routes = {job.id: route_of(job.spec, card.card, card.usable_bytes) for job, card in starts if job.spec}
            for claim in await self._store(self._ledger.start, starts, self._timing.lease_s):
                self._launch(claim, routes.get(claim.job.id))

    async def _relax_or_refuse(self, job: Job) -> None:
        # A clip takes its fastest layout wherever the fleet has a card for it, so that the same rows on the same fleet
        # give the same frames whichever card is free first. Only where none holds that layout is a leaner one allowed,
        # and then the fastest of those that some card holds: the leanest of all may take many times longer.
        assert job.spec is not None
        for layout in family_named(job.spec.family).layouts:
            needed = footprint(job.spec, layout).peak_bytes
            if needed < job.needs_bytes and self._fleet.smallest_class_for(needed):
                await self._store(self._ledger.relax, job, needed)
                self.nudge()
                return
        problem = no_card_fits(job.spec, leanest(job.spec)[1].peak_bytes, self._fleet)
        await self._store(self._ledger.refuse, job, Reason.NO_CARD_FITS, problem)

    async def _learn(self) -> None:
        now = self._clock()
        if self._learned or now - self._lessons_at >= _LESSONS_S:
            self._learned, self._lessons_at = False, now
            self._lessons = await self._store(self._ledger.lessons)
            self._outlook.learn(await self._store(self._ledger.rates))

    async def _renew(self) -> None:
        now = self._clock()
        flights = self._roster.flights
        heard = {
            attempt_id: flight.steps
            for attempt_id, flight in flights.items()
            if self._roster.is_heard(flight.claim.renderer)
        }
        unrecorded = {
            attempt_id: flight.checkpoint
            for attempt_id, flight in flights.items()
            if flight.checkpoint and flight.checkpoint != flight.recorded
        }
        await self._learn()
        renewal = await self._store(self._ledger.renew, heard, self._timing.lease_s, unrecorded)
        for attempt_id, checkpoint in unrecorded.items():
            if flight := flights.get(attempt_id):
                flight.recorded = checkpoint
        await self._leftovers.discard(*renewal.superseded)
        for flight in list(flights.values()):
            if flight.leaving and now > flight.leave_by:
                self._interrupt(flight, Outcome.STOPPED)
            elif now - flight.moved_at > self._timing.stall_s:
                stalled = f"the renderer hangs: nothing after step {flight.steps[0]} for {self._timing.stall_s:.0f} s"
                self._interrupt(flight, Outcome.CRASHED, stalled)
        # Sorted, so that the same run goes the same way again.
        for attempt_id in sorted(renewal.cancelled):
            if flight := flights.get(attempt_id):
                flight.cancelled = True
                self._interrupt(flight, Outcome.STOPPED)
        for attempt_id, cause in sorted(renewal.leaving.items()):
            self._clear(flights.get(attempt_id), cause)
        await self._enforce()
        expired = await self._store(self._ledger.expired)
        for claim in expired:
            if flight := flights.get(claim.attempt_id):
                self._interrupt(flight, Outcome.LOST)
        await self._end_lost([c for c in expired if c.attempt_id not in flights], "its lease ran out")
        for uid in [uid for uid, seat in self._roster.seats.items() if now - seat.heard_at > self._timing.lease_s]:
            self._roster.drop(uid)
        if beats := self._roster.to_record(self._timing.roster_s):
            await self._store(self._ledger.record_cards, beats)
        if now - self._swept_at >= self._timing.sweep_s and (self._sweeping is None or self._sweeping.done()):
            self._swept_at = now
            self._sweeping = asyncio.create_task(self._leftovers.sweep())

    async def _enforce(self) -> None:
        """Do what people said of cards, and stop batches that have reached a limit."""
        enforced = await self._store(self._ledger.enforce, self._price)
        for batch_id, why in sorted(enforced.stopped.items()):
            log.warning("batch %s has reached its limit (%s): nothing more of it starts", batch_id, why)
        self._roster.close_to(enforced.closed)
        for flight in [f for f in self._roster.flights.values() if f.claim.card in enforced.clearing]:
            self._clear(flight, "drain")

    def _clear(self, flight: Flight | None, cause: str) -> None:
        if flight is not None and not flight.leaving:
            self._ask_to_leave(flight, cause, self._timing.preempt_s)

    async def _blame(self, claim: Claim, ended: Ended) -> None:
        why = self._quarantine.ended(claim.card, claim.job.id, ended)
        # A farm does not close its last card by itself.
        if why is not None and self._roster.others_open(claim.card):
            log.warning("card %s is set aside: %s", claim.card, why)
            await self._store(self._ledger.quarantine, claim.card, why, REST_S)
            await self._enforce()

    # -- one attempt ----------------------------------------------------------------------------------------

    def _launch(self, claim: Claim, route: Route | None) -> None:
        if route is not None:
            self._breakers.started(route, claim.attempt_id)
        flight = Flight(
            claim=claim,
            steps=(claim.resumed_step, claim.job.spec.total_steps if claim.job.spec else 0),
            resumed_step=claim.resumed_step,
            route=route,
            moved_at=self._clock(),
        )
        self._roster.take_off(flight)
        flight.task = asyncio.create_task(self._fly(flight))

    async def _fly(self, flight: Flight) -> None:
        claim = flight.claim
        flight.began = True
        try:
            if flight.stop is not None:
                raise asyncio.CancelledError
            ended = await self._follow(flight)
        except asyncio.CancelledError:
            ended = Ended(outcome=flight.stop or Outcome.STOPPED, detail=flight.stop_detail)
        except RendererDiedError as died:
            self._roster.drop(claim.renderer)
            ended = Ended(outcome=Outcome.CRASHED, detail=str(died))
        except RendererLostError as lost:
            self._roster.drop(claim.renderer)
            ended = Ended(outcome=Outcome.LOST, detail=str(lost))
        except Exception as error:
            log.exception("attempt %s broke in the dispatcher", claim.attempt_id)
            ended = Ended(outcome=Outcome.ERROR, detail=f"{type(error).__name__}: {error}")
        flight.ending = True
        if ended.sticky:
            # It is about to exit, and must get nothing more until its successor is heard.
            self._roster.drop(claim.renderer)
        if flight.route is not None:
            self._breakers.ended(flight.route, claim.attempt_id, claim.job.id, blame(ended))
        if ended.outcome is Outcome.STOPPED:
            ended = replace(ended, cause=flight.leaving or "drain")
        own = ended.checkpoint if _is_own(claim, ended.checkpoint) else None
        ended = replace(ended, resumed_step=flight.resumed_step, checkpoint=own or flight.checkpoint)
        try:
            await self._blame(claim, ended)
            await self._end(claim, ended)
        except StaleEpochError:
            log.warning("attempt %s ended under a closed epoch; its job is with the next dispatcher", claim.attempt_id)
        except Exception:
            # Nobody renews its lease any more, so the job comes back by itself.
            log.exception("the end of attempt %s (%s) could not be written", claim.attempt_id, ended.outcome)
        finally:
            self._roster.land(flight)
            self._free(flight)

    async def _follow(self, flight: Flight) -> Ended:
        claim = flight.claim
        job = claim.job
        assert job.spec is not None
        assert job.still is not None
        assert job.content_key is not None
        assignment = Assignment(
            attempt_id=claim.attempt_id,
            job_id=job.id,
            renderer=claim.renderer,
            card_class=claim.card_class,
            owner=job.owner,
            still=job.still,
            spec=job.spec,
            content_key=job.content_key,
            row=job.row,
            resume=claim.resume,
            done=claim.done,
            lessons=self._lessons.about(job.spec, claim.kind),
        )
        stream = self._pool.render(assignment)
        try:
            async for event in stream:
                flight.moved_at = self._clock()
                match event:
                    case Ended():
                        return self._roster.timed(flight, event)
                    case CardFree():
                        # Its frames are there: stopping it would gain nothing.
                        flight.leaving = ""
                        self._roster.card_free(flight)
                        self._free(flight)
                    case StepDone():
                        flight.watch.step(event.step, self._clock())
                        if event.step < flight.resumed_step:
                            # The checkpoint was refused.
                            flight.resumed_step, flight.steps = 0, (event.step, event.steps)
                        flight.steps = max(flight.steps, (event.step, event.steps))
                        if self._outlook.is_due(flight):
                            self.nudge()
                    case CheckpointSaved():
                        if _is_own(claim, event.checkpoint):
                            flight.checkpoint = event.checkpoint
                    case CheckpointFailed():
                        log.warning(
                            "attempt %s has no checkpoint at step %d: %s", claim.attempt_id, event.step, event.detail
                        )
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()
        raise RendererLostError("the stream ended without a result")

    def _interrupt(self, flight: Flight, outcome: Outcome, detail: str = "") -> None:
        if flight.stop is None and not flight.ending:
            flight.stop = outcome
            flight.stop_detail = detail or flight.stop_detail
            if flight.began and flight.task is not None:
                flight.task.cancel()

    def _free(self, flight: Flight) -> None:
        self._roster.free(flight, by_itself=flight.stop is None)
        self._wake.set()

    async def _end_lost(self, claims: Sequence[Claim], detail: str) -> None:
        """End attempts that nobody follows; one that cannot be ended now is tried again when its lease is looked at."""
        lost = [
            (claim, Ended(outcome=Outcome.LOST, detail=detail, resumed_step=claim.resumed_step)) for claim in claims
        ]
        for (claim, _), error in zip(
            lost, await asyncio.gather(*(self._end(*one) for one in lost), return_exceptions=True), strict=True
        ):
            if isinstance(error, StaleEpochError) or (error is not None and not isinstance(error, Exception)):
                raise error
            if error is not None:
                log.error("the loss of attempt %s could not be written: %s", claim.attempt_id, error)

    async def _end(self, claim: Claim, ended: Ended) -> None:
        landed = await self._landing.write(claim, ended)
        job, transition = landed.job, landed.transition
        # Once they are in the store, not before: lessons may be read meanwhile.
        self._learned |= bool(ended.peaks)
        if not landed.counts:
            log.warning("attempt %s ended twice; the second ending (%s) is void", claim.attempt_id, ended.outcome)
        elif not transition.state.final:
            # The objects of a job that has ended are swept by its prefix.
            known = {checkpoint.key for checkpoint in (job.checkpoint, ended.checkpoint) if checkpoint}
            if transition.keeps_checkpoint and (kept := ended.checkpoint or job.checkpoint):
                known.discard(kept.key)
            await self._leftovers.discard(*known)

    async def _close(self) -> None:
        self._hurry()
        for flight in list(self._roster.flights.values()):
            self._interrupt(flight, Outcome.STOPPED)
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leftovers.sweep(), _LAST_SWEEP_S)
        self._leftovers.close()
        self._outlook.close()
        if self._owns_executor:
            self._executor.shutdown(wait=False)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [flight.task for flight in self._roster.flights.values() if flight.task is not None]

    def _hurry(self) -> None:
        # Whoever closes waits no longer for a store than for a renderer.
        until = asyncio.get_running_loop().time() + self._timing.farewell_s
        self._patience_until = min(self._patience_until, until)

    async def _store(self, call: Callable[..., T], *args: Any) -> T:
        # A store that does not answer is asked again until it does: clips in flight go on meanwhile, and what was
        # written by another dispatcher since then shows as a stale epoch. Every call may be made twice: one whose
        # answer was lost finds its attempt ended, its job taken, or the same values there.
        loop = asyncio.get_running_loop()
        pause_s, longest_s = _RETRY_S
        while True:
            future = loop.run_in_executor(self._executor, partial(call, *args))
            try:
                # A cancelled flight must not abandon a store call half way.
                result = await asyncio.shield(future)
            except StaleEpochError:
                self._replaced = True
                self._wake.set()
                raise
            except Exception as error:
                if not is_outage(error) or loop.time() + pause_s > self._patience_until:
                    raise
                if self._out_since is None:
                    self._out_since = loop.time()
                    log.warning("the store does not answer, asking again until it does: %s", error)
            else:
                if self._out_since is not None:
                    log.warning("the store answers again after %.0f s", loop.time() - self._out_since)
                    self._out_since = None
                return result
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)


def _is_own(claim: Claim, checkpoint: Checkpoint | None) -> bool:
    # What is recorded is deleted one day: no renderer may name anything but what it put aside itself.
    return checkpoint is not None and checkpoint.key.startswith(f"{checkpoints_of(claim.job.id)}/{claim.attempt_id}/")
