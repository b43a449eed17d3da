"""The loop between store, placement and the renderers. Knows no engine: it speaks to a `RendererPool`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from cluster.breaker import Breakers, Route, blame, route_of
from cluster.cards import Beat, Card, CardState, Fleet
from cluster.escalation import after_attempt, no_card_fits
from cluster.jobs import Checkpoint, Ended, Job, Outcome, Overflow, Reason, checkpoints_of
from cluster.leftovers import Leftovers
from cluster.lessons import Factors, Lessons
from cluster.placement import Refuse, Relax, Snapshot, Start, place
from cluster.storage import Storage
from cluster.store import Claim, Ledger, StaleEpochError, Stretch
from pipeline.clip import ClipSpec
from pipeline.families import FAMILIES, family_named
from pipeline.footprint import footprint, leanest

log = logging.getLogger("clipmill.dispatcher")
T = TypeVar("T")

#: How often lessons are read again although this dispatcher recorded no peak (they can be imported), in seconds.
_LESSONS_S = 60.0
#: How long the checkpoints of the last clips may hold up a farm that closes, in seconds.
_LAST_SWEEP_S = 1.0
#: Waiting jobs whose overflows are remembered; of more, those of the oldest are forgotten.
_STORIES = 10_000


class Assignment(BaseModel):
    """What a renderer is told: everything it needs, and no credentials of the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt_id: str
    job_id: str
    renderer: str
    card_class: str
    owner: str
    still: str
    spec: ClipSpec
    content_key: str
    #: Goes into the provenance.
    row: dict[str, Any]
    #: Go on from here; begin anew where it cannot be used.
    resume: Checkpoint | None = None
    #: Who did the steps up to there, oldest first. Goes into the provenance.
    done: tuple[Stretch, ...] = ()
    #: What measured peaks say about this clip on this card.
    lessons: Factors = Factors()


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step finished; 0 of n (m of n where it goes on) says the weights are there and the first step begins."""

    step: int
    steps: int


@dataclass(frozen=True)
class CardFree:
    """The frames are off the card: it can take the next clip while this one is encoded."""


@dataclass(frozen=True)
class CheckpointSaved:
    """The clip can go on from here."""

    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """The clip goes on, but what is done since the last checkpoint is lost if its renderer is."""

    step: int
    detail: str


Event = StepDone | CardFree | CheckpointSaved | CheckpointFailed | Ended


class RendererPool(Protocol):
    """The renderers of a running farm, whatever carries the calls."""

    def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """Render on `assignment.renderer`; the last event is an `Ended`.

        Closing the iterator early stops the renderer within a step. Raises `RendererDiedError` when the renderer is
        known to be dead, `RendererLostError` when it cannot be reached.
        """
        ...


class RendererDiedError(Exception):
    """The renderer's process ended while its node lives."""


class RendererLostError(Exception):
    """The renderer cannot be reached: node or network lost."""


class Verdict(StrEnum):
    """Answer to a beat, per attempt."""

    GO_ON = "go_on"
    #: Save a checkpoint, then stop: another attempt will go on from it.
    CHECKPOINT = "checkpoint"
    #: Stop and give the job back: it is not (or no longer) this renderer's.
    STOP = "stop"
    CANCEL = "cancel"


@dataclass(kw_only=True)
class _Seat:
    """A renderer as the dispatcher last heard it."""

    beat: Beat
    heard_at: float
    #: Attempt that holds the card; None when it is free for the next clip.
    rendering: str | None = None


@dataclass(kw_only=True)
class _Flight:
    """An attempt in flight."""

    claim: Claim
    steps: tuple[int, int]
    task: asyncio.Task[None] | None = None
    #: A task cancelled before its first step never runs at all, so nobody would write its ending.
    began: bool = False
    #: The card is this attempt's until its frames are off it.
    holds_card: bool = True
    cancelled: bool = False
    stop: Outcome | None = None
    #: Its ending is being written: too late to interrupt.
    ending: bool = False
    #: What its ending counts for; None where its card was gone before it started.
    route: Route | None = None
    #: The step it goes on from; 0 where it begins anew, or turned out to.
    resumed_step: int = 0
    #: Its newest checkpoint, and the newest that the store knows of.
    checkpoint: Checkpoint | None = None
    recorded: Checkpoint | None = None
    #: Why it was told to save a checkpoint and stop, and when patience with it ends; empty while it may go on.
    leaving: str = ""
    leave_by: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the dispatcher looks, and how patient it is, in seconds."""

    #: Longest time between two looks at the store; events wake it earlier.
    poll_s: float = 0.25
    renew_s: float = 1.0
    #: A renderer that was not heard for this long loses its attempts. Longer than a dispatcher's restart.
    lease_s: int = 10
    #: A renderer that was not heard for this long gets no new clip.
    silent_s: float = 5.0
    #: A clip told to save a checkpoint and stop is stopped without one after this: a decode cannot be left.
    preempt_s: float = 30.0
    #: The same when the farm closes: a beat, a step and a write, within what the closing side waits for.
    farewell_s: float = 4.0


@dataclass
class _State:
    seats: dict[str, _Seat] = field(default_factory=dict)
    flights: dict[str, _Flight] = field(default_factory=dict)


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
    ) -> None:
        """`storage`: where checkpoints lie that nobody needs any more; None: they are left there."""
        self._ledger = ledger
        self._pool = pool
        self._fleet = fleet
        self._holder = holder
        self._clock = clock
        self._timing = timing or Timing()
        self._state = _State()
        self._wake = asyncio.Event()
        #: Start nothing more; `_leaving` then ends the loop.
        self._stopping = False
        self._leaving = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._renewed_at = 0.0
        self._lessons = Lessons()
        self._lessons_at = -math.inf
        #: Peaks were recorded since.
        self._learned = False
        # Both are lost with this dispatcher: what they know is learned again in a few attempts.
        self._breakers = Breakers(clock)
        self._stories: dict[str, tuple[Overflow, ...]] = {}
        self._leftovers = Leftovers(ledger, storage, self._store)
        self._sweeping: asyncio.Task[None] | None = None
        # One thread: store calls stay in order and never block the beats.
        self._store_thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    # -- what renderers say ---------------------------------------------------------------------------------

    def beat(self, beat: Beat) -> dict[str, Verdict]:
        """Take a heartbeat; the answer has a verdict for each attempt the renderer named."""
        if beat.state is CardState.DRAINING and not beat.steps:
            # Its last words: Serve is taking it away, and it has nothing left to finish.
            self._state.seats.pop(beat.renderer, None)
            return {}
        seat = self._state.seats.get(beat.renderer)
        if seat is None:
            seat = self._seat(beat)
            self._wake.set()
        seat.beat, seat.heard_at = beat, self._clock()
        verdicts: dict[str, Verdict] = {}
        for attempt_id, steps in beat.steps.items():
            flight = self._state.flights.get(attempt_id)
            if flight is None or flight.stop is not None:
                verdicts[attempt_id] = Verdict.STOP
                continue
            flight.steps = max(flight.steps, steps)
            leaving = Verdict.CHECKPOINT if flight.leaving else Verdict.GO_ON
            verdicts[attempt_id] = Verdict.CANCEL if flight.cancelled else leaving
        return verdicts

    def preempt(self, job_id: str, cause: str = "preempt") -> bool:
        """Have a running job's clip saved and stopped; the job then waits for a card again, at no attempt's cost.

        False where there is nothing to stop: it does not run, is being published, or its family cannot be resumed.
        """
        flight = next((f for f in self._state.flights.values() if f.claim.job.id == job_id), None)
        return flight is not None and self._ask_to_leave(flight, cause, self._timing.preempt_s)

    def _ask_to_leave(self, flight: _Flight, cause: str, patience_s: float) -> bool:
        spec = flight.claim.job.spec
        resumable = spec is not None and spec.family in FAMILIES and FAMILIES[spec.family].resumable
        if not resumable or not flight.holds_card or flight.cancelled or flight.stop or flight.ending:
            return False
        flight.leaving, flight.leave_by = cause, self._clock() + patience_s
        return True

    def _seat(self, beat: Beat) -> _Seat:
        # One card has one living renderer: whoever had it before is dead, though nothing may have said so.
        for uid in [uid for uid, seat in self._state.seats.items() if seat.beat.card == beat.card]:
            del self._state.seats[uid]
        # A renderer that fell silent and came back may still hold its card for an attempt in flight.
        held = next(
            (a for a, f in self._state.flights.items() if f.claim.renderer == beat.renderer and f.holds_card), None
        )
        seat = self._state.seats[beat.renderer] = _Seat(beat=beat, heard_at=self._clock(), rendering=held)
        return seat

    def nudge(self) -> None:
        """Something changed in the store: look now."""
        self._wake.set()

    def flying(self) -> int:
        """Attempts in flight."""
        return len(self._state.flights)

    def roster(self) -> dict[str, tuple[int, int]]:
        """Per card class: renderers heard of, and how many of them have a clip in flight."""
        busy = {flight.claim.renderer for flight in self._state.flights.values()}
        counted: dict[str, tuple[int, int]] = {}
        for uid, seat in self._state.seats.items():
            present, working = counted.get(seat.beat.card_class, (0, 0))
            counted[seat.beat.card_class] = (present + 1, working + (uid in busy or bool(seat.beat.steps)))
        return counted

    # -- the loop -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take office and dispatch until `stop`. Returns when another dispatcher takes over."""
        self._ended.clear()
        try:
            for claim in await self._store(self._ledger.take_office, self._holder):
                # Their streams died with the dispatcher that held them; the fence keeps any zombie out.
                detail = "the dispatcher was replaced"
                await self._end(claim, Ended(outcome=Outcome.LOST, detail=detail, resumed_step=claim.resumed_step))
            self._sweeping = asyncio.create_task(self._leftovers.sweep(thorough=True))
            while not self._leaving:
                await self._turn()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._timing.poll_s)
                self._wake.clear()
        except StaleEpochError as stale:
            log.warning("leaving office: %s", stale)
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
        patience_s, now = self._timing.farewell_s, self._clock()
        told = [
            flight.task
            for flight in self._state.flights.values()
            if flight.task
            and self._is_heard(flight.claim.renderer, now)
            and self._ask_to_leave(flight, "drain", patience_s)
        ]
        if told:
            await asyncio.wait(told, timeout=patience_s)
        self._leaving = True
        self._wake.set()
        await self._ended.wait()

    async def _turn(self) -> None:
        if self._clock() - self._renewed_at >= self._timing.renew_s:
            self._renewed_at = self._clock()
            await self._renew()
        if self._stopping:
            return
        cards = self._cards()
        idle = sum(card.idle for card in cards)
        # Without a free card nothing can start; one look in a while is enough to refuse what fits nowhere.
        waiting = await self._store(self._ledger.waiting, max(4, 2 * idle))
        closed = self._breakers.closed_to()
        decisions = place(
            Snapshot(waiting=waiting, cards=cards, fleet=self._fleet, lessons=self._lessons, closed=closed)
        )
        for decision in decisions:
            if isinstance(decision, Relax):
                await self._relax_or_refuse(decision.job)
            if isinstance(decision, Refuse):
                await self._relax_or_refuse(decision.job)
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
                self._wake.set()
                return
        problem = no_card_fits(job.spec, leanest(job.spec)[1].peak_bytes, self._fleet)
        await self._store(self._ledger.refuse, job, Reason.NO_CARD_FITS, problem)

    async def _renew(self) -> None:
        now = self._clock()
        heard = {
            attempt_id: flight.steps
            for attempt_id, flight in self._state.flights.items()
            if self._is_heard(flight.claim.renderer, now)
        }
        unrecorded = {
            attempt_id: flight.checkpoint
            for attempt_id, flight in self._state.flights.items()
            if flight.checkpoint and flight.checkpoint != flight.recorded
        }
        if self._learned or now - self._lessons_at >= _LESSONS_S:
            self._learned, self._lessons_at = False, now
            self._lessons = await self._store(self._ledger.lessons)
        renewal = await self._store(self._ledger.renew, heard, self._timing.lease_s, unrecorded)
        for attempt_id, checkpoint in unrecorded.items():
            if flight := self._state.flights.get(attempt_id):
                flight.recorded = checkpoint
        self._leftovers.discard(*renewal.superseded)
        for flight in self._state.flights.values():
            if flight.leaving and now > flight.leave_by:
                self._interrupt(flight, Outcome.STOPPED)
        for attempt_id in renewal.cancelled:
            if flight := self._state.flights.get(attempt_id):
                flight.cancelled = True
                self._interrupt(flight, Outcome.STOPPED)
        for claim in await self._store(self._ledger.expired):
            flight = self._state.flights.get(claim.attempt_id)
            if flight:
                self._interrupt(flight, Outcome.LOST)
            else:
                detail = "its lease ran out"
                await self._end(claim, Ended(outcome=Outcome.LOST, detail=detail, resumed_step=claim.resumed_step))
        silent = [uid for uid, seat in self._state.seats.items() if now - seat.heard_at > self._timing.lease_s]
        for uid in silent:
            del self._state.seats[uid]
        await self._store(self._ledger.record_cards, [seat.beat for seat in self._state.seats.values()])
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._leftovers.sweep())

    def _is_heard(self, renderer: str, now: float) -> bool:
        seat = self._state.seats.get(renderer)
        return seat is not None and now - seat.heard_at <= self._timing.silent_s

    def _cards(self) -> list[Card]:
        now = self._clock()
        return [
            Card(
                renderer=uid,
                card=seat.beat.card,
                card_class=seat.beat.card_class,
                kind=seat.beat.kind,
                usable_bytes=seat.beat.usable_bytes,
                idle=(
                    seat.rendering is None
                    and seat.beat.state not in (CardState.DRAINING, CardState.STARTING)
                    and self._is_heard(uid, now)
                ),
                family=seat.beat.family,
            )
            for uid, seat in self._state.seats.items()
        ]

    # -- one attempt ----------------------------------------------------------------------------------------

    def _launch(self, claim: Claim, route: Route | None) -> None:
        if route is not None:
            self._breakers.started(route, claim.attempt_id)
        seat = self._state.seats.get(claim.renderer)
        if seat:
            seat.rendering = claim.attempt_id
        flight = self._state.flights[claim.attempt_id] = _Flight(
            claim=claim,
            steps=(claim.resumed_step, claim.job.spec.total_steps if claim.job.spec else 0),
            resumed_step=claim.resumed_step,
            route=route,
        )
        flight.task = asyncio.create_task(self._fly(flight))

    async def _fly(self, flight: _Flight) -> None:
        claim = flight.claim
        flight.began = True
        try:
            if flight.stop is not None:
                raise asyncio.CancelledError
            ended = await self._follow(flight)
        except asyncio.CancelledError:
            ended = Ended(outcome=flight.stop or Outcome.STOPPED, detail="stopped by the dispatcher")
        except RendererDiedError as died:
            self._state.seats.pop(claim.renderer, None)
            ended = Ended(outcome=Outcome.CRASHED, detail=str(died))
        except RendererLostError as lost:
            self._state.seats.pop(claim.renderer, None)
            ended = Ended(outcome=Outcome.LOST, detail=str(lost))
        except Exception as error:
            log.exception("attempt %s broke in the dispatcher", claim.attempt_id)
            ended = Ended(outcome=Outcome.ERROR, detail=f"{type(error).__name__}: {error}")
        flight.ending = True
        if ended.sticky:
            # It is about to exit, and must get nothing more until its successor is heard.
            self._state.seats.pop(claim.renderer, None)
        if flight.route is not None:
            self._breakers.ended(flight.route, claim.attempt_id, claim.job.id, blame(ended))
        if ended.outcome is Outcome.STOPPED:
            ended = replace(ended, cause=flight.leaving or "drain")
        own = ended.checkpoint if _is_own(claim, ended.checkpoint) else None
        ended = replace(ended, resumed_step=flight.resumed_step, checkpoint=own or flight.checkpoint)
        try:
            await self._end(claim, ended)
        except StaleEpochError:
            log.warning("attempt %s ended under a closed epoch; its job is with the next dispatcher", claim.attempt_id)
        except Exception:
            # Nobody renews its lease any more, so the job comes back by itself.
            log.exception("the end of attempt %s (%s) could not be written", claim.attempt_id, ended.outcome)
        finally:
            self._state.flights.pop(claim.attempt_id, None)
            self._free(flight)

    async def _follow(self, flight: _Flight) -> Ended:
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
                match event:
                    case Ended():
                        return event
                    case CardFree():
                        # Its frames are there: stopping it would gain nothing.
                        flight.leaving = ""
                        self._free(flight)
                    case StepDone():
                        if event.step < flight.resumed_step:
                            # The checkpoint was refused.
                            flight.resumed_step, flight.steps = 0, (event.step, event.steps)
                        flight.steps = max(flight.steps, (event.step, event.steps))
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

    def _interrupt(self, flight: _Flight, outcome: Outcome) -> None:
        if flight.stop is None and not flight.ending:
            flight.stop = outcome
            if flight.began and flight.task is not None:
                flight.task.cancel()

    def _free(self, flight: _Flight) -> None:
        flight.holds_card = False
        seat = self._state.seats.get(flight.claim.renderer)
        if seat and seat.rendering == flight.claim.attempt_id:
            seat.rendering = None
        self._wake.set()

    async def _end(self, claim: Claim, ended: Ended) -> None:
        job = await self._store(self._ledger.current_job, claim)
        told = self._stories.pop(job.id, ())
        transition = after_attempt(job, ended, self._fleet, told)
        if (tried := (*told, *ended.overflows)) and not transition.state.final:
            self._stories[job.id] = tried
            if len(self._stories) > _STORIES:
                del self._stories[next(iter(self._stories))]
        written = await self._store(self._ledger.finish, claim, ended, transition)
        # Once they are in the store, not before: lessons may be read meanwhile.
        self._learned |= bool(ended.peaks)
        if not written:
            log.warning("attempt %s ended twice; the second ending (%s) is void", claim.attempt_id, ended.outcome)
        elif not transition.state.final:
            # The objects of a job that has ended are swept by its prefix.
            known = {checkpoint.key for checkpoint in (job.checkpoint, ended.checkpoint) if checkpoint}
            if transition.keeps_checkpoint and (kept := ended.checkpoint or job.checkpoint):
                known.discard(kept.key)
            self._leftovers.discard(*known)

    async def _close(self) -> None:
        for flight in list(self._state.flights.values()):
            self._interrupt(flight, Outcome.STOPPED)
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leftovers.sweep(), _LAST_SWEEP_S)
        self._leftovers.close()
        self._store_thread.shutdown(wait=False)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [flight.task for flight in self._state.flights.values() if flight.task is not None]

    async def _store(self, call: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._store_thread, partial(call, *args))
        # A cancelled flight must not abandon a store call half way.
        return await asyncio.shield(future)


def _is_own(claim: Claim, checkpoint: Checkpoint | None) -> bool:
    # What is recorded is deleted one day: no renderer may name anything but what it put aside itself.
    return checkpoint is not None and checkpoint.key.startswith(f"{checkpoints_of(claim.job.id)}/{claim.attempt_id}/")
