"""Renderers that were heard and attempts that run, as one dispatcher knows them: indexed by what events ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from cluster.dispatch.protocol import STALL_LEAST_S, STALL_STEPS
from cluster.estimates.timing import Stopwatch
from cluster.fleet.breakers import Route
from cluster.fleet.card_index import CardIndex
from cluster.fleet.cards import Beat, Card, CardState
from cluster.jobs.model import Outcome, StoredCheckpoint
from cluster.jobs.outcomes import Ended
from cluster.store import Claim
from pipeline.families import is_resumable
from pipeline.families.layouts import RESIDENT

#: Attempts that a renderer is remembered to have ended: one on the card, one being encoded, and their successors.
_REMEMBERED = 4
#: What a preempted clip may take to leave its card: so many of its own steps, so many where it is about to decode or
#: does (a decode takes 1 to 6 steps of its clip), and so many seconds to save its checkpoint.
LEAVE_STEPS, DECODE_STEPS, SAVE_S = 3, 8, 5.0
#: A beat of a renderer that is dead may arrive so late, in seconds.
_BURIED_S = 10.0
#: Card time of an owner counts half after so long, in seconds.
_HALF_LIFE_S = 3600.0


@dataclass(kw_only=True)
class RunningAttempt:
    """A claimed job on its renderer, from the claim until its completion is written."""

    claim: Claim
    #: Steps done, and steps of the clip.
    steps: tuple[int, int]
    task: asyncio.Task[None] | None = None
    #: The task has run. One cancelled before its first step never runs at all, and nobody would write its completion.
    began: bool = False
    #: The card is this attempt's until its frames are off it.
    holds_card: bool = True
    #: No other clip is with it in its renderer's process, also while it is encoded: should that die, it was this one.
    alone: bool = False
    cancelled: bool = False
    #: How the dispatcher ended it, and why; None: it has not.
    stop: Outcome | None = None
    stop_detail: str = "stopped by the dispatcher"
    #: The attempt's completion is being written: too late to interrupt.
    completing: bool = False
    #: What its end counts for; None where its card was gone before it started.
    route: Route | None = None
    #: The step it goes on from; 0 where it begins anew, or turned out to.
    resumed_step: int = 0
    #: The attempt's newest checkpoint, and the newest that the store knows of.
    checkpoint: StoredCheckpoint | None = None
    #: When its stream broke off, by the dispatcher's clock; what became of its renderer is being found out.
    broken_at: float | None = None
    #: The assignment never reached its renderer, as far as is known.
    refused: bool = False
    #: The model of its clip is loaded: it told of a step.
    loaded: bool = False
    #: The last that was heard of its renderer before that was struck off the roster.
    last_beat: Beat | None = None
    #: Another clip broke its renderer's process, which is about to end.
    doomed: bool = False
    #: How it ends, its renderer being dead; None while that is not known.
    fate: Ended | None = None
    recorded: StoredCheckpoint | None = None
    #: Why it is to save a checkpoint and stop; empty while it may go on.
    preempting: str = ""
    #: When it is stopped without a checkpoint, should it not have obeyed by then.
    preempt_by: float = 0.0
    #: When it was launched.
    began_at: float = 0.0
    #: When it last got anywhere.
    moved_at: float = 0.0
    #: How long its parts take; set when it is launched.
    watch: Stopwatch = field(default_factory=lambda: Stopwatch(0.0))

    @property
    def is_movable(self) -> bool:
        """Whether it can be preempted: stopped between two steps and continued elsewhere."""
        spec = self.claim.job.spec
        return is_resumable(spec.family if spec else None) and not (self.cancelled or self.stop or self.completing)

    @property
    def is_leaving(self) -> bool:
        """Whether its card is about to be free: it was told to stop, or has ended."""
        return bool(self.preempting or self.cancelled or self.stop or self.completing)

    def leave_s(self, least_s: float, now: float) -> float:
        """How long it may take to save a checkpoint and stop, in seconds: `least_s`, more where its own steps are long.

        It has to end the step that it is in, perhaps another before it can be saved; a decode cannot be left at all.
        """
        step_s, _ = self.watch.pace(now)
        if step_s is None:
            return least_s
        step, total = self.steps
        return max(least_s, SAVE_S + step_s * (LEAVE_STEPS if step + 1 < total else DECODE_STEPS))

    def stall_s(self, most_s: float, now: float) -> float:
        """After how many seconds without news it hangs: `most_s`, less while it makes steps whose pace is known."""
        step_s, _ = self.watch.pace(now)
        if step_s is None or not self.holds_card or self.steps[0] >= self.steps[1]:
            # Loading, decoding and publishing have no pace of their own, and may wait for storage.
            return most_s
        return min(most_s, max(STALL_LEAST_S, STALL_STEPS * step_s))

    def preempt(self, reason: str, by: float) -> bool:
        """Have it save a checkpoint and stop; at `by` it is stopped without one. A later reason replaces an earlier.

        False where there is nothing to preempt: it is being published or stopped, or its family cannot be resumed.
        """
        if not self.is_movable or not self.holds_card:
            return False
        self.preempting, self.preempt_by = reason, by
        return True

    def interrupt(self, outcome: Outcome, detail: str = "") -> None:
        """End it at once, with this outcome; nothing where it has been interrupted or is completing already."""
        if self.stop is None and not self.completing:
            self.stop = outcome
            self.stop_detail = detail or self.stop_detail
            if self.began and self.task is not None:
                self.task.cancel()


@dataclass(kw_only=True)
class RendererSeen:
    """A renderer as the dispatcher last heard it."""

    beat: Beat
    heard_at: float
    #: What placement sees.
    card: Card
    #: Attempt that holds the card; None when it is free for the next clip.
    rendering: str | None = None
    #: The renderer works on an attempt that is not (or no longer) this dispatcher's: another clip would wait behind it.
    foreign: bool = False
    silent: bool = False
    #: Families that its process has loaded, as far as was heard.
    had: set[str | None] = field(default_factory=set)
    #: Attempts that ended here by themselves: a beat may name one for a moment more.
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    #: When the last clip was off the card, and the family of the last that began: a beat has it half a second later.
    freed_at: float | None = None
    family: str | None = None
    #: The beat that was last written into the store, and when.
    recorded: Beat | None = None
    recorded_at: float = 0.0


class Roster:
    """Renderers and running attempts. `silent_s`: a renderer that was not heard for this long gets no new clip."""

    def __init__(self, clock: Callable[[], float], silent_s: float) -> None:
        """`clock` in seconds; it never goes back."""
        self._clock = clock
        self._silent_s = silent_s
        #: By renderer.
        self.renderers: dict[str, RendererSeen] = {}
        #: By attempt.
        self.running: dict[str, RunningAttempt] = {}
        #: Attempts that hold a card for an interactive job.
        self.interactive: set[str] = set()
        self._by_card: dict[str, str] = {}
        self._by_job: dict[str, RunningAttempt] = {}
        self._by_renderer: dict[str, dict[str, RunningAttempt]] = {}
        #: Cards and running jobs as placement wants them.
        self.card_index = CardIndex()
        self._used: dict[str, float] = {}
        self._used_at = clock()
        #: Renderers that are not silent, the one heard longest ago first.
        self._heard: dict[str, None] = {}
        #: Renderers that died, and when: a beat of theirs may still be on its way.
        self._dead: dict[str, float] = {}
        #: Cards that take no new clip because somebody ordered it.
        self._closed: frozenset[str] = frozenset()

    # -- renderers -------------------------------------------------------------------------------------------

    def hear(self, beat: Beat) -> RendererSeen | None:
        """Take a beat: its renderer is there. Returns the renderer whose card it has now; None where nobody had it."""
        if self._is_buried(beat.renderer):
            return None
        seen, replaced = self.renderers.get(beat.renderer), None
        if seen is None:
            # One card has one living renderer: whoever had it before is dead, though nothing may have shown it.
            if (before := self._by_card.get(beat.card)) is not None:
                replaced = self.renderers[before]
                self.drop(before)
            # A renderer that fell silent and came back may still hold its card for a running attempt.
            its = self.of_renderer(beat.renderer)
            held = next((a.claim.attempt_id for a in its if a.holds_card or a.alone), None)
            seen = RendererSeen(beat=beat, heard_at=0.0, card=Card.of(beat, idle=False), rendering=held)
            self.renderers[beat.renderer] = seen
            self._by_card[beat.card] = beat.renderer
        seen.foreign = any(self._is_foreign(seen, attempt_id) for attempt_id in beat.steps) if beat.steps else False
        seen.beat, seen.heard_at, seen.silent = beat, self._clock(), False
        self._heard.pop(beat.renderer, None)
        self._heard[beat.renderer] = None
        self._reindex(seen)
        return replaced

    def bury(self, renderer: str) -> None:
        """Forget a renderer that is known to be dead; what is still heard of it for a while is not believed."""
        now = self._clock()
        self._dead = {uid: at for uid, at in self._dead.items() if now - at <= _BURIED_S} | {renderer: now}
        self.drop(renderer)

    def _is_buried(self, renderer: str) -> bool:
        at = self._dead.get(renderer)
        return at is not None and self._clock() - at <= _BURIED_S

    def drop(self, renderer: str) -> None:
        """Forget a renderer: it is gone, or must get nothing more until it is heard again."""
        seen = self.renderers.pop(renderer, None)
        if seen is None:
            return
        self.card_index.drop(renderer)
        self._heard.pop(renderer, None)
        if self._by_card.get(seen.beat.card) == renderer:
            del self._by_card[seen.beat.card]

    def drop_unheard(self, since: float) -> None:
        """Forget renderers that were not heard since then, in seconds on the clock."""
        for uid in [uid for uid, seen in self.renderers.items() if seen.heard_at < since]:
            self.drop(uid)

    def mark_silent(self) -> None:
        """Count renderers that fell silent as idle no longer."""
        now = self._clock()
        while self._heard:
            renderer = next(iter(self._heard))
            seen = self.renderers[renderer]
            if now - seen.heard_at <= self._silent_s:
                return
            del self._heard[renderer]
            seen.silent = True
            self._reindex(seen)

    def now(self) -> float:
        """Seconds on the clock that attempts are timed by."""
        return self._clock()

    def unavailable(self) -> frozenset[str]:
        """Cards that no plan counts on: they come up, go away, cannot be used, or are not heard."""
        return frozenset(
            seen.beat.card
            for seen in self.renderers.values()
            if seen.silent or seen.beat.fault or seen.beat.state in (CardState.DRAINING, CardState.STARTING)
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
        seen = self.renderers.get(renderer)
        return seen is not None and self._clock() - seen.heard_at <= self._silent_s

    def close_cards(self, cards: frozenset[str]) -> None:
        """From now on these cards, and no others, take no new clip."""
        changed, self._closed = self._closed ^ cards, cards
        self.card_index.lock(cards)
        for card in changed:
            if seen := self.renderers.get(self._by_card.get(card, "")):
                self._reindex(seen)

    def others_open(self, card: str) -> bool:
        """Whether any other card takes clips of all kinds, now or once it has finished what it has."""
        return any(
            seen.beat.card != card and seen.beat.card not in self._closed and not seen.beat.fault
            for seen in self.renderers.values()
        )

    @property
    def idle(self) -> int:
        """Cards that can take a clip now, as of the last `mark_silent`."""
        return len(self.card_index.idle)

    def is_idle(self, renderer: str) -> bool:
        """Whether a renderer's card can take a clip now, as of the last `mark_silent`."""
        return renderer in self.card_index.idle

    def to_record(self, every_s: float) -> list[Beat]:
        """Beats that have something new, or were not written for `every_s`; they count as written from here on."""
        now = self._clock()
        beats = []
        for seen in self.renderers.values():
            if now - seen.recorded_at >= every_s or seen.recorded is None or _differ(seen.recorded, seen.beat):
                seen.recorded, seen.recorded_at = seen.beat, now
                beats.append(seen.beat)
        return beats

    # -- attempts --------------------------------------------------------------------------------------------

    def add(self, attempt: RunningAttempt) -> None:
        """An attempt is launched: its card is taken."""
        claim = attempt.claim
        self.running[claim.attempt_id] = attempt
        self._by_job[claim.job.id] = attempt
        self.card_index.began(claim.job)
        if claim.job.interactive:
            self.interactive.add(claim.attempt_id)
        attempt.began_at = self._clock()
        self._by_renderer.setdefault(claim.renderer, {})[claim.attempt_id] = attempt
        if seen := self.renderers.get(claim.renderer):
            family = claim.job.spec.family if claim.job.spec else None
            cold = (seen.family or seen.beat.family) != family
            first = cold and family not in seen.had
            attempt.watch = Stopwatch(self._clock(), freed_at=seen.freed_at, cold=cold, first=first)
            seen.rendering, seen.family = claim.attempt_id, family
            seen.had |= {seen.beat.family, family}
            self._reindex(seen)

    def note_card_free(self, attempt: RunningAttempt) -> None:
        """Note that the frames of an attempt are off its card now, which another may have if it is not `alone`."""
        attempt.watch.card_free(self._clock())
        if attempt.alone:
            attempt.holds_card = False
        if seen := self.renderers.get(attempt.claim.renderer):
            seen.freed_at = self._clock()

    def timed(self, attempt: RunningAttempt, ended: Ended) -> Ended:
        """`ended` with how long it took, where it completed in one layout; to be called as soon as it is reported."""
        now = self._clock()
        for other in self.of_renderer(attempt.claim.renderer):
            if other is not attempt:
                other.watch.published_before(now)
        if ended.outcome is not Outcome.COMPLETED or len(ended.peaks) > 1:
            return ended
        layout = ended.peaks[0].layout if ended.peaks else RESIDENT
        return replace(ended, timed=attempt.watch.timed(now, layout))

    def free_card(self, attempt: RunningAttempt, *, by_itself: bool = True) -> None:
        """An attempt holds its card no longer. Not `by_itself`: its renderer may work on it until a beat omits it."""
        claim = attempt.claim
        seen = self.renderers.get(claim.renderer)
        if seen is not None:
            if by_itself:
                if claim.attempt_id not in seen.ended:
                    seen.ended.append(claim.attempt_id)
            elif attempt.holds_card and claim.attempt_id in seen.beat.steps:
                seen.foreign = True
            if seen.rendering == claim.attempt_id:
                seen.rendering = None
            self._reindex(seen)
        attempt.holds_card = False
        self.interactive.discard(claim.attempt_id)

    def remove(self, attempt: RunningAttempt) -> None:
        """An attempt has ended, and its completion is written or lost."""
        claim = attempt.claim
        self.interactive.discard(claim.attempt_id)
        if self.running.pop(claim.attempt_id, None) is not None:
            self.card_index.ended(claim.job)
            self._fade_use()
            owner, took = claim.job.owner, self._clock() - attempt.began_at
            self._used[owner] = self._used.get(owner, 0.0) + took
        if self._by_job.get(claim.job.id) is attempt:
            del self._by_job[claim.job.id]
        here = self._by_renderer.get(claim.renderer)
        if here is not None:
            here.pop(claim.attempt_id, None)
            if not here:
                del self._by_renderer[claim.renderer]

    def of_job(self, job_id: str) -> RunningAttempt | None:
        """The running attempt of a job."""
        return self._by_job.get(job_id)

    def of_renderer(self, renderer: str) -> Collection[RunningAttempt]:
        """The running attempts at a renderer."""
        return self._by_renderer.get(renderer, {}).values()

    def _is_foreign(self, seen: RendererSeen, attempt_id: str) -> bool:
        attempt = self.running.get(attempt_id)
        return attempt_id not in seen.ended and (attempt is None or attempt.stop is not None)

    def _reindex(self, seen: RendererSeen) -> None:
        beat, card = seen.beat, seen.card
        idle = (
            seen.rendering is None
            and not seen.silent
            and not seen.foreign
            and not beat.storage_fault
            and beat.card not in self._closed
            and beat.state not in (CardState.DRAINING, CardState.STARTING)
        )
        same = (card.idle, card.usable_bytes, card.family, card.card_class, card.kind, card.capability) == (
            idle, beat.usable_bytes, beat.family, beat.card_class, beat.kind, beat.capability,
        )  # fmt: skip
        if not same or beat.renderer not in self.card_index.cards:
            seen.card = Card.of(beat, idle=idle)
            self.card_index.put(seen.card)


def _differ(one: Beat, other: Beat) -> bool:
    # What changes with every step (steps, used bytes) waits for the next time around.
    return _lasting(one) != _lasting(other)


def _lasting(beat: Beat) -> tuple[object, ...]:
    faults = beat.waiting_for, beat.fault, beat.storage_fault
    return beat.state, beat.family, beat.usable_bytes, faults, beat.steps.keys()
