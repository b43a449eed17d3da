"""What became of a renderer that cannot be reached: its process died while its node lives, or it is lost with that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cluster.backoff import doubling
from cluster.dispatch.protocol import RendererLostError, RendererPool
from cluster.dispatch.roster import RendererSeen, Roster, RunningAttempt
from cluster.fleet.cards import Beat
from cluster.jobs.model import Job, Outcome
from cluster.jobs.outcomes import Crashed, Ended, Lost, StoodBeside

log = logging.getLogger("clipmill.dispatcher")

#: Pauses between two looks for what became of a renderer, in seconds: the first, and the longest.
_LOOK_S = (0.1, 1.0)
#: A renderer that beats so long after its stream broke off is alive, in seconds: three beats, for the last of a dead
#: one may still be on their way.
ALIVE_S = 1.5
#: Rows that are remembered to have been encoded beside a death.
_REMEMBERED = 1000


class Deaths:
    """Tells dead renderers from lost ones, and the clip a renderer died of from those that only stood beside.

    A connection that breaks off says only that a renderer cannot be reached. That its process ended while its node
    lives is said by whoever runs the process (`RendererPool.fate`), or by a successor that beats for the same card
    under the same start of the host. The clip on the card is to blame then; where none is on it, the one being encoded.
    Without such evidence an attempt runs until its lease does, and is lost.

    Where one was encoded beside the one on the card, it may as well have been that one. So both are under suspicion
    and rendered alone from then on (`suspects`): the next death is certain, and no row pays for another twice.
    """

    def __init__(self, pool: RendererPool, roster: Roster, clock: Callable[[], float]) -> None:
        """`clock` in seconds; it never goes back."""
        self._pool, self._roster, self._clock = pool, roster, clock
        #: Attempts whose stream broke off and of whose renderer nothing is known yet, by id.
        self._broken: dict[str, RunningAttempt] = {}
        #: Rows that were encoded beside a death which was laid to another, by the job's id, the oldest first. Those
        #: that it was laid to are known by what they paid.
        self._beside: dict[str, None] = {}

    def suspects(self, job: Job) -> bool:
        """Whether a row may be what a renderer died of: it paid for an end, or was encoded beside a death."""
        return job.attempts > 0 or job.id in self._beside

    def forget(self, job_id: str) -> None:
        """A row has ended for good: it is under suspicion no longer."""
        self._beside.pop(job_id, None)

    async def fate_of(self, attempt: RunningAttempt, lost: RendererLostError) -> Ended:
        """How an attempt ends whose stream broke off; returns once that is known, and is cancelled with its lease."""
        renderer = attempt.claim.renderer
        attempt.broken_at, attempt.refused, attempt.stop_detail = self._clock(), not lost.accepted, str(lost)
        self._keep_last_beat(renderer)
        self._roster.drop(renderer)
        self._broken[attempt.claim.attempt_id] = attempt
        try:
            pauses = doubling(*_LOOK_S)
            while attempt.fate is None:
                fate = await self._pool.fate(renderer)
                if fate is not None and fate.died:
                    return self.declare(attempt, fate.detail)
                if fate is not None:
                    return attempt.fate or Lost(detail=f"{fate.detail} ({lost})")
                await asyncio.sleep(next(pauses))
            return attempt.fate
        finally:
            del self._broken[attempt.claim.attempt_id]

    def declare(self, attempt: RunningAttempt, how: str) -> Ended:
        """How `attempt` ends, and every other one at its renderer, which is dead; `how` it died, in words."""
        renderer = attempt.claim.renderer
        if attempt.fate is None:
            self._keep_last_beat(renderer)
            self._settle(list(self._roster.of_renderer(renderer)), how)
            self._roster.bury(renderer)
        return attempt.fate or Lost(detail=how)

    def heard(self, beat: Beat, replaced: RendererSeen | None) -> None:
        """Take a beat, which may tell of another renderer: of the one it `replaced` on its card.

        A renderer that beats although its stream broke off is alive: what it does is void, and its clips are lost.
        """
        now = self._clock()
        for attempt in list(self._roster.of_renderer(beat.renderer)):
            if attempt.broken_at is not None and attempt.fate is None and now - attempt.broken_at > ALIVE_S:
                attempt.interrupt(Outcome.LOST, f"{attempt.stop_detail}; the renderer itself is alive")
        for before in self._before(beat, replaced):
            its = [attempt for attempt in self._roster.of_renderer(before.renderer) if attempt.fate is None]
            for attempt in its:
                attempt.last_beat = before
            self._settle(its, f"renderer {beat.renderer} has taken its place on this host")
            for attempt in its:
                attempt.interrupt(Outcome.LOST)

    def _before(self, beat: Beat, replaced: RendererSeen | None) -> list[Beat]:
        """Last beats of renderers with attempts that are dead, as one that beats for their card shows."""
        if replaced is not None:
            # Two that beat for one card by turns are both alive.
            silent = self._clock() - replaced.heard_at > ALIVE_S
            return [replaced.beat] if silent and beat.boot and replaced.beat.boot == beat.boot else []
        found: dict[str, Beat] = {}
        for attempt in self._broken.values():
            last = attempt.last_beat
            if last and beat.boot and (last.card, last.boot) == (beat.card, beat.boot):
                found[last.renderer] = last
        found.pop(beat.renderer, None)
        return list(found.values())

    def _keep_last_beat(self, renderer: str) -> None:
        if seen := self._roster.renderers.get(renderer):
            for attempt in self._roster.of_renderer(renderer):
                attempt.last_beat = seen.beat

    def _settle(self, attempts: list[RunningAttempt], how: str) -> None:
        """Decide how all attempts of a dead renderer end."""
        blamed = _blamed(attempts)
        for attempt in attempts:
            claim = attempt.claim
            where = f"renderer {claim.renderer} on card {claim.card} ({claim.card_class}) died"
            if attempt is blamed:
                attempt.fate = Crashed(detail=f"{where} {_doing(attempt)}: {how}")
            elif attempt.doomed:
                attempt.fate = StoodBeside(detail=f"{where}, which an earlier clip had broken: {how}")
            elif blamed is not None:
                there = "was on the card" if blamed.holds_card else "was encoded"
                detail = f"{where} of attempt {blamed.claim.attempt_id}, which {there}: {how}"
                attempt.fate = StoodBeside(detail=detail)
                if not (attempt.holds_card or attempt.completing):
                    self._suspect(attempt.claim.job.id)
            else:
                alone = not (attempt.last_beat and attempt.last_beat.on_card)
                attempt.fate = StoodBeside(detail=f"{where} before this clip came on the card: {how}", alone=alone)

    def _suspect(self, job_id: str) -> None:
        self._beside[job_id] = None
        if len(self._beside) > _REMEMBERED:
            del self._beside[next(iter(self._beside))]


def _blamed(attempts: list[RunningAttempt]) -> RunningAttempt | None:
    """The attempt that a renderer died of, among all that it had; None where it was none of them."""
    there = [attempt for attempt in attempts if not (attempt.refused or attempt.completing or attempt.doomed)]
    on_card = [attempt for attempt in there if attempt.holds_card and not _waits(attempt, there)]
    encoded = [attempt for attempt in there if not attempt.holds_card]
    return next(iter([*on_card, *encoded]), None)


def _waits(attempt: RunningAttempt, there: list[RunningAttempt]) -> bool:
    """Whether an attempt that holds its card for the dispatcher has not come on it at its renderer."""
    beat = attempt.last_beat
    if attempt.loaded or beat is None or not beat.boot or beat.on_card == attempt.claim.attempt_id:
        return False
    # A clip of which nothing is known here any more, such as one whose thread hangs, does not let the card go.
    left = {other.claim.attempt_id for other in there if not other.holds_card}
    return bool(beat.waiting_for) or (bool(beat.on_card) and beat.on_card not in left)


def _doing(attempt: RunningAttempt) -> str:
    step, steps = attempt.steps
    if not attempt.holds_card:
        return "while the clip was encoded, no other being on the card"
    if not attempt.loaded:
        return "while the clip's model was loaded"
    return (
        f"while the clip was decoded, after step {step}"
        if step >= steps
        else f"in denoising, step {step + 1} of {steps}"
    )
