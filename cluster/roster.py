"""Who is there and what is in flight, as one dispatcher knows it: indexed, so that no event looks at every card."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from cluster.breaker import Route
from cluster.cards import Beat, Card, CardState
from cluster.jobs import Checkpoint, Ended, Outcome
from cluster.standing import Standing
from cluster.stopwatch import Stopwatch
from cluster.store import Claim
from pipeline.families import is_resumable
from pipeline.layouts import RESIDENT

#: Attempts a seat remembers to have ended by themselves: one on the card, one being encoded, and their successors.
_REMEMBERED = 4
#: Card time of an owner counts half after so long, in seconds.
_HALF_LIFE_S = 3600.0


@dataclass(kw_only=True)
class Flight:
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
    stop_detail: str = "stopped by the dispatcher"
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
    #: When it took off.
    began_at: float = 0.0
    #: When it last got anywhere.
    moved_at: float = 0.0
    #: How long its parts take; set when it takes off.
    watch: Stopwatch = field(default_factory=lambda: Stopwatch(0.0))

    @property
    def is_movable(self) -> bool:
        """Whether it can be told to stop between two steps and go on elsewhere."""
        spec = self.claim.job.spec
        return is_resumable(spec.family if spec else None) and not (self.cancelled or self.stop or self.ending)


@dataclass(kw_only=True)
class Seat:
    """A renderer as the dispatcher last heard it."""

    beat: Beat
    heard_at: float
    #: What placement sees.
    card: Card
    #: Attempt that holds the card; None when it is free for the next clip.
    rendering: str | None = None
    #: It works on an attempt that is not (or no longer) this dispatcher's; another clip would wait behind it.
    foreign: bool = False
    silent: bool = False
    #: Families that its process has loaded, as far as was heard.
    had: set[str | None] = field(default_factory=set)
    #: Attempts that ended here by themselves: a beat may name one for a moment more.
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    #: When the last clip was off the card, and the family of the last that began: a beat says it half a second later.
    freed_at: float | None = None
    family: str | None = None
    #: As it was last written for those who ask.
    recorded: Beat | None = None
    recorded_at: float = 0.0


class Roster:
    """Seats and flights. `silent_s`: a renderer that was not heard for this long gets no new clip."""

    def __init__(self, clock: Callable[[], float], silent_s: float) -> None:
        self._clock = clock
        self._silent_s = silent_s
        self.seats: dict[str, Seat] = {}
        self.flights: dict[str, Flight] = {}
        self._by_card: dict[str, str] = {}
        self._by_job: dict[str, Flight] = {}
        self._by_renderer: dict[str, dict[str, Flight]] = {}
        #: The same as placement wants it.
        self.standing = Standing()
        self._used: dict[str, float] = {}
        self._used_at = clock()
        #: Renderers that are not silent, the one heard longest ago first.
        self._heard: dict[str, None] = {}
        #: Cards that take no new clip because somebody said so.
        self._closed: frozenset[str] = frozenset()

    # -- seats ----------------------------------------------------------------------------------------------

    def hear(self, beat: Beat) -> Seat:
        """Take a beat: its renderer is there, in a seat of its own."""
        seat = self.seats.get(beat.renderer)
        if seat is None:
            # One card has one living renderer: whoever had it before is dead, though nothing may have said so.
            if (before := self._by_card.get(beat.card)) is not None:
                self.drop(before)
            # A renderer that fell silent and came back may still hold its card for an attempt in flight.
            held = next((f.claim.attempt_id for f in self.of_renderer(beat.renderer) if f.holds_card), None)
            seat = Seat(beat=beat, heard_at=0.0, card=Card.of(beat, idle=False), rendering=held)
            self.seats[beat.renderer] = seat
            self._by_card[beat.card] = beat.renderer
        seat.foreign = any(self._is_foreign(seat, attempt_id) for attempt_id in beat.steps) if beat.steps else False
        seat.beat, seat.heard_at, seat.silent = beat, self._clock(), False
        self._heard.pop(beat.renderer, None)
        self._heard[beat.renderer] = None
        self._look_at(seat)
        return seat

    def drop(self, renderer: str) -> None:
        """Forget a renderer: it is gone, or must get nothing more until it is heard again."""
        seat = self.seats.pop(renderer, None)
        if seat is None:
            return
        self.standing.drop(renderer)
        self._heard.pop(renderer, None)
        if self._by_card.get(seat.beat.card) == renderer:
            del self._by_card[seat.beat.card]

    def fade(self) -> None:
        """Let renderers that fell silent stop counting as idle."""
        now = self._clock()
        while self._heard:
            renderer = next(iter(self._heard))
            seat = self.seats[renderer]
            if now - seat.heard_at <= self._silent_s:
                return
            del self._heard[renderer]
            seat.silent = True
            self._look_at(seat)

    def now(self) -> float:
        """Seconds on the clock that flights are timed by."""
        return self._clock()

    def away(self) -> frozenset[str]:
        """Cards that take no clip for now: they come up, go away, or are not heard."""
        return frozenset(
            seat.beat.card
            for seat in self.seats.values()
            if seat.silent or seat.beat.state in (CardState.DRAINING, CardState.STARTING)
        )

    def used_s(self) -> dict[str, float]:
        """Seconds that each owner's clips had cards, what is an hour old counting half."""
        self._fade_use()
        return self._used

    def _fade_use(self) -> None:
        now = self._clock()
        share = 0.5 ** ((now - self._used_at) / _HALF_LIFE_S)
        self._used = {owner: seconds * share for owner, seconds in self._used.items() if seconds * share > 1}
        self._used_at = now

    def is_heard(self, renderer: str) -> bool:
        """Whether a renderer was heard of late."""
        seat = self.seats.get(renderer)
        return seat is not None and self._clock() - seat.heard_at <= self._silent_s

    def close_to(self, cards: frozenset[str]) -> None:
        """From now on these cards, and no others, take no new clip."""
        changed, self._closed = self._closed ^ cards, cards
        self.standing.lock(cards)
        for card in changed:
            if seat := self.seats.get(self._by_card.get(card, "")):
                self._look_at(seat)

    def others_open(self, card: str) -> bool:
        """Whether any other card takes clips, now or once it has finished what it has."""
        return any(seat.beat.card != card and seat.beat.card not in self._closed for seat in self.seats.values())

    @property
    def idle(self) -> int:
        """Cards that can take a clip now, as of the last `fade`."""
        return len(self.standing.idle)

    def is_idle(self, renderer: str) -> bool:
        """Whether a renderer's card can take a clip now, as of the last `fade`."""
        return renderer in self.standing.idle

    def to_record(self, every_s: float) -> list[Beat]:
        """Beats that say something new, or were not written for `every_s`; they count as written from here on."""
        now = self._clock()
        beats = []
        for seat in self.seats.values():
            if now - seat.recorded_at >= every_s or seat.recorded is None or _differ(seat.recorded, seat.beat):
                seat.recorded, seat.recorded_at = seat.beat, now
                beats.append(seat.beat)
        return beats

    # -- flights --------------------------------------------------------------------------------------------

    def take_off(self, flight: Flight) -> None:
        """An attempt begins: its card is taken."""
        claim = flight.claim
        self.flights[claim.attempt_id] = flight
        self._by_job[claim.job.id] = flight
        self.standing.began(claim.job)
        flight.began_at = self._clock()
        self._by_renderer.setdefault(claim.renderer, {})[claim.attempt_id] = flight
        if seat := self.seats.get(claim.renderer):
            family = claim.job.spec.family if claim.job.spec else None
            cold = (seat.family or seat.beat.family) != family
            first = cold and family not in seat.had
            flight.watch = Stopwatch(self._clock(), freed_at=seat.freed_at, cold=cold, first=first)
            seat.rendering, seat.family = claim.attempt_id, family
            seat.had |= {seat.beat.family, family}
            self._look_at(seat)

    def card_free(self, flight: Flight) -> None:
        """Note when its frames were off the card."""
        flight.watch.card_free(self._clock())
        if seat := self.seats.get(flight.claim.renderer):
            seat.freed_at = self._clock()

    def timed(self, flight: Flight, ended: Ended) -> Ended:
        """`ended` with how long it took, where it completed in one layout; told as soon as its renderer says so."""
        now = self._clock()
        for other in self.of_renderer(flight.claim.renderer):
            if other is not flight:
                other.watch.published_before(now)
        if ended.outcome is not Outcome.COMPLETED or len(ended.peaks) > 1:
            return ended
        layout = ended.peaks[0].layout if ended.peaks else RESIDENT
        return replace(ended, timed=flight.watch.timed(now, layout))

    def free(self, flight: Flight, *, by_itself: bool = True) -> None:
        """An attempt holds its card no longer. Not `by_itself`: the renderer may be at it still, until it says not."""
        claim = flight.claim
        seat = self.seats.get(claim.renderer)
        if seat is not None:
            if by_itself:
                if claim.attempt_id not in seat.ended:
                    seat.ended.append(claim.attempt_id)
            elif flight.holds_card and claim.attempt_id in seat.beat.steps:
                seat.foreign = True
            if seat.rendering == claim.attempt_id:
                seat.rendering = None
            self._look_at(seat)
        flight.holds_card = False

    def land(self, flight: Flight) -> None:
        """An attempt has ended."""
        claim = flight.claim
        if self.flights.pop(claim.attempt_id, None) is not None:
            self.standing.ended(claim.job)
            self._fade_use()
            owner, took = claim.job.owner, self._clock() - flight.began_at
            self._used[owner] = self._used.get(owner, 0.0) + took
        if self._by_job.get(claim.job.id) is flight:
            del self._by_job[claim.job.id]
        here = self._by_renderer.get(claim.renderer)
        if here is not None:
            here.pop(claim.attempt_id, None)
            if not here:
                del self._by_renderer[claim.renderer]

    def of_job(self, job_id: str) -> Flight | None:
        """The attempt in flight of a job."""
        return self._by_job.get(job_id)

    def of_renderer(self, renderer: str) -> Collection[Flight]:
        """The attempts in flight at a renderer."""
        return self._by_renderer.get(renderer, {}).values()

    def _is_foreign(self, seat: Seat, attempt_id: str) -> bool:
        flight = self.flights.get(attempt_id)
        return attempt_id not in seat.ended and (flight is None or flight.stop is not None)

    def _look_at(self, seat: Seat) -> None:
        beat, seen = seat.beat, seat.card
        idle = (
            seat.rendering is None
            and not seat.silent
            and not seat.foreign
            and beat.card not in self._closed
            and beat.state not in (CardState.DRAINING, CardState.STARTING)
        )
        same = (seen.idle, seen.usable_bytes, seen.family, seen.card_class, seen.kind) == (
            idle, beat.usable_bytes, beat.family, beat.card_class, beat.kind,
        )  # fmt: skip
        if not same or beat.renderer not in self.standing.cards:
            seat.card = Card.of(beat, idle=idle)
            self.standing.put(seat.card)


def _differ(one: Beat, other: Beat) -> bool:
    # What changes with every step (steps, used bytes) waits for the next time around.
    return (one.state, one.family, one.usable_bytes, one.holding, one.steps.keys()) != (
        other.state, other.family, other.usable_bytes, other.holding, other.steps.keys(),
    )  # fmt: skip
