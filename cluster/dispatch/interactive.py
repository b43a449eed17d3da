"""What the dispatcher knows of interactive clips: what they had of the cards, and who made room for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cluster.dispatch.roster import Roster
from cluster.estimates.times import TimeEstimates
from cluster.jobs.model import Job
from cluster.scheduling.interactive import InteractiveBudget, InteractiveTerms, admitted
from cluster.scheduling.snapshot import Preempt
from pipeline.families import FAMILIES

#: Room that was promised is waited for so much longer than the clip that makes it may take to leave, in seconds.
_GRACE_S = 5.0
#: Jobs that are remembered to have made room; of more, the first are forgotten.
_REMEMBERED = 10_000


class InteractiveClips:
    """Says which interactive jobs go before all others. In memory only: a new dispatcher begins with a whole budget."""

    def __init__(self, roster: Roster, clock: Callable[[], float], terms: InteractiveTerms) -> None:
        """`clock` in seconds; it never goes back."""
        self._roster, self._clock, self._terms = roster, clock, terms
        self._budget = InteractiveBudget(terms, clock())
        self._contended = False
        self._preempted: dict[str, int] = {}
        #: Until when a job waits for the room that was promised to it, by job.
        self._promised: dict[str, float] = {}

    def note(self) -> None:
        """Count what interactive clips had of the cards until now."""
        self._budget.note(self._clock(), running=len(self._roster.interactive), contended=self._contended)

    def admit(self, waiting: Sequence[Job], estimates: TimeEstimates) -> frozenset[str]:
        """Ids of those among `waiting` that go before all others now; whom room is promised to is one of them."""
        self._contended = any(not job.interactive for job in waiting)
        self.note()
        if not any(job.interactive for job in waiting):
            return frozenset()
        index = self._roster.card_index
        kinds = sorted({card.kind for card in index.usable.of_classes if card.usable_bytes})
        running: Counter[str] = Counter()
        left_s = self._budget.left_s(self._clock(), sum(card.usable_bytes > 0 for card in index.cards.values()))
        for attempt_id in self._roster.interactive:
            attempt = self._roster.running[attempt_id]
            running[attempt.claim.job.owner] += 1
            left_s -= _seconds(attempt.claim.job, [attempt.claim.kind], estimates, attempt.steps[0])
        # Theirs are clips that have begun: what has been paid for room would else be paid for nothing, where that, or
        # another clip on a slower card than was thought, has used up the share meanwhile.
        promised = self.promised(waiting)
        for job in waiting:
            if job.id in promised:
                running[job.owner] += 1
                left_s -= _seconds(job, kinds, estimates, job.step)
        others = [job for job in waiting if job.id not in promised]
        found = admitted(others, running, self._terms, left_s, lambda job: _seconds(job, kinds, estimates, job.step))
        return promised | found

    def promised(self, waiting: Sequence[Job]) -> frozenset[str]:
        """Ids of those among `waiting` for which a clip was told to make room, and may yet."""
        now, there = self._clock(), {job.id for job in waiting}
        self._promised = {job: until for job, until in self._promised.items() if now <= until and job in there}
        return frozenset(self._promised)

    def made_room(self, decision: Preempt, until: float) -> None:
        """A clip was told to make room, and has left its card at `until`, in seconds on the clock."""
        self._promised[decision.waits.id] = until + _GRACE_S
        self._budget.charge(self._clock(), decision.cost_s)
        self._preempted[decision.job.id] = self._preempted.pop(decision.job.id, 0) + 1
        if len(self._preempted) > _REMEMBERED:
            del self._preempted[next(iter(self._preempted))]

    def times(self, job_id: str) -> int:
        """How often a job's clip was told to make room."""
        return self._preempted.get(job_id, 0)


def _seconds(job: Job, kinds: Sequence[str], estimates: TimeEstimates, from_step: int) -> float:
    """What is left of a clip on the fastest of these kinds of cards; 0 where nothing is known of it."""
    spec = job.spec
    if spec is None or spec.family not in FAMILIES:
        return 0.0
    return min((estimates.clip_seconds(spec, kind, from_step=from_step) for kind in kinds), default=0.0)
