"""Which running clip makes room for an interactive job: the one for which that costs least. Pure.

A clip that makes room loses nothing but time: it saves a checkpoint after the step that it is in, and goes on where
there is room. It is never another interactive clip, or one that is equal to what an interactive job waits for, one that
cannot be stopped between two steps, one that is about to end or decodes, nor one that has made room so often already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.fleet.cards import Card
from cluster.jobs.model import Job
from cluster.scheduling.eligible import EligibleCards
from cluster.scheduling.pace import Pace
from cluster.scheduling.remaining import Remaining
from cluster.scheduling.snapshot import Preempt, Running, Snapshot
from pipeline.families import FAMILIES

#: A clip makes room so often at most.
MOST_PREEMPTIONS = 3
#: A clip with so few steps left stays: its card is free about as soon by itself.
LAST_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class RoomCost:
    """What it costs to have one running clip make room for one job, in seconds."""

    #: The card has another family loaded than the job's.
    cold: bool
    #: How often the clip has made room before.
    preempted: int
    #: Card seconds for saving the clip, going on with it, and loading what is not loaded.
    card_s: float
    #: Until the clip is off the card, and until the job has then been rendered there.
    until_free_s: float = 0.0
    through_s: float = 0.0

    def rank(self) -> tuple[bool, int, float]:
        """Sorts from the cheapest: loaded families first, then clips that have stayed so far."""
        return self.cold, self.preempted, self.card_s + self.until_free_s + self.through_s


class Room:
    """Makes room for admitted jobs that found no idle card, one card for each."""

    def __init__(self, snapshot: Snapshot, eligible: EligibleCards, remaining: Remaining) -> None:
        self._snapshot, self._eligible, self._remaining = snapshot, eligible, remaining
        index = snapshot.card_index
        #: (owner, content) of jobs that go before all others: they wait for an equal clip that runs as for their own.
        self._awaited = {(job.owner, job.content_key) for job in snapshot.waiting if job.id in snapshot.admitted}
        self._cards: Mapping[str, Card] = {
            card.card: card
            for card in index.cards.values()
            if card.card not in index.locked and card.card not in snapshot.unavailable
        }

    def preemptions(self, jobs: Sequence[Job]) -> Iterator[Preempt]:
        """Who makes room for `jobs`, which are in the order of their turn; nobody for whom a card becomes free anyway.

        That is a job to which room is promised, and one that fits where a clip leaves for another reason.
        """
        promised = self._snapshot.promised
        running = [r for r in self._snapshot.running if r.card in self._cards]
        leaving = [r for r in running if r.leaving]
        for job in sorted(jobs, key=lambda job: job.id not in promised):
            if (gone := next((r for r in leaving if self._may_have(job, r)), None)) is not None:
                leaving.remove(gone)
                continue
            # Between the end of a clip and the next beat of its card nothing runs there, and nothing may start yet.
            if job.id in promised:
                continue
            costs = [(cost_of(r, job, self._cards[r.card], self._snapshot.pace), r) for r in self._able(running, job)]
            if not costs:
                continue
            cost, chosen = min(costs, key=lambda one: (one[0].rank(), one[1].card))
            running.remove(chosen)
            yield Preempt(job=chosen.job, card=chosen.card, waits=job, cost_s=cost.card_s)

    def _able(self, running: Iterable[Running], job: Job) -> Iterator[Running]:
        pace = self._snapshot.pace
        free = (r for r in running if (r.job.owner, r.job.content_key) not in self._awaited)
        return (r for r in free if may_make_room(r, self._cards[r.card], pace) and self._may_have(job, r))

    def _may_have(self, job: Job, r: Running) -> bool:
        """Whether `job` may start on the card of `r` once that has left it."""
        # An owner at the limit has room only where a clip of theirs goes.
        may_start = r.job.owner == job.owner or not self._remaining.at_limit(job.owner)
        return may_start and self._eligible.is_able(job, self._cards[r.card])


def may_make_room(r: Running, card: Card, pace: Pace | None) -> bool:
    """Whether a running clip may be stopped for an interactive job at all."""
    spec = r.job.spec
    if spec is None or not r.movable or r.leaving or r.job.interactive or r.preempted >= MOST_PREEMPTIONS:
        return False
    left = spec.total_steps - r.step
    if left <= LAST_STEPS:
        return False
    if pace is None or r.step_s is None:
        return True
    # To save and to load it again must not take longer than to finish it.
    return left * r.step_s > sum(pace.move_costs(spec, card.kind, warm=True)[:2])


def cost_of(r: Running, job: Job, card: Card, pace: Pace | None) -> RoomCost:
    """What it costs to have `r`, which is on `card`, make room for `job`; without a `pace` times are not known."""
    mine, theirs = r.job.spec, job.spec
    cold = mine is None or theirs is None or mine.family != theirs.family
    if pace is None or mine is None or theirs is None or not {mine.family, theirs.family} <= FAMILIES.keys():
        return RoomCost(cold=cold, preempted=r.preempted, card_s=0.0)
    leave_s, arrive_s, _ = pace.move_costs(mine, card.kind, warm=True)
    card_s = leave_s + arrive_s
    if cold:
        card_s += pace.load_seconds(theirs.family, card.kind) + pace.load_seconds(mine.family, card.kind)
    until_s = leave_s
    if r.step_s is None:
        # Nothing of it is done here yet: what was loaded for it is loaded for nothing.
        card_s += pace.load_seconds(mine.family, card.kind)
        until_s += pace.load_seconds(mine.family, card.kind)
    else:
        until_s += max(0.0, r.step_s - r.since_step_s)
    through_s = pace.clip_seconds(theirs, card.kind, usable_bytes=card.usable_bytes, from_step=job.step)
    return RoomCost(
        cold=cold,
        preempted=r.preempted,
        card_s=card_s,
        until_free_s=until_s,
        through_s=through_s if through_s < math.inf else 0.0,
    )
