"""What the plan of a batch's tail asks for now: starts, cards that are kept for later, and moves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cluster.fleet.cards import Card
from cluster.jobs.model import Job
from cluster.scheduling.eligible import EligibleCards
from cluster.scheduling.priority import effective_priority
from cluster.scheduling.remaining import Remaining
from cluster.scheduling.snapshot import Move, Snapshot, Start
from cluster.scheduling.tail.plan import TailPlan


class FollowedPlan:
    """A plan beside the snapshot that it is to be followed in: a job keeps to it only where that is possible now."""

    def __init__(
        self, plan: TailPlan, snapshot: Snapshot, now: float, eligible: EligibleCards, remaining: Remaining
    ) -> None:
        """`now` in seconds, on the clock of `Job.created_at`. Starts are taken off `remaining`."""
        self._plan, self._snapshot, self._now = plan, snapshot, now
        self._eligible, self._remaining = eligible, remaining
        index = snapshot.card_index
        #: Cards in use, by id.
        self._cards: Mapping[str, Card] = {
            card.card: card for card in index.cards.values() if card.card not in index.locked
        }

    def urgent(self, heads: Sequence[Job]) -> list[Job]:
        """The jobs among `heads` that have priority over all that is planned: no plan keeps them waiting."""
        first = self._snapshot.admitted
        admitted, heads = [job for job in heads if job.id in first], [job for job in heads if job.id not in first]
        planned = [job for job in heads if job.id in self._plan.jobs]
        planned = planned or [r.job for r in self._snapshot.running if r.job.id in self._plan.jobs]
        level = max((effective_priority(job, self._now) for job in planned), default=None)
        if level is None:
            return admitted
        above = [job for job in heads if effective_priority(job, self._now) > level]
        return admitted + [job for job in above if job.id not in self._plan.jobs]

    def starts(self, heads: Sequence[Job]) -> Iterator[Start]:
        """Starts that the plan asks for now. Cards that it keeps for later are then no longer idle to anybody else."""
        # Those that go before everything are not for a plan.
        waiting = {job.id: job for job in heads if job.id not in self._snapshot.admitted}
        steps = {job.id: job.step for job in waiting.values()} | {r.job.id: r.step for r in self._snapshot.running}
        for card in list(self._remaining.idle):
            part = self._plan.next_on(card.card, steps)
            if part is None:
                continue
            job = waiting.get(part.job)
            if job is None or not self._plan.is_turn(part, job.step):
                # A job that cannot go by the plan where it is now may never come here.
                if job is None or self.is_planned(job):
                    self._remaining.idle.remove(card)
            elif self._is_possible(job, card):
                self._remaining.take(job, card)
                yield Start(job, card)

    def is_planned(self, job: Job) -> bool:
        """Whether the plan has a card for `job`, and that can be kept to."""
        if (part := self._plan.part_of(job.id, job.step)) is None:
            return False
        card = self._cards.get(part.card)
        return card is not None and self._is_possible(job, card)

    def moves(self) -> Iterator[Move]:
        """Running jobs that have done the steps that they were to do where they are."""
        steps = {job.id: job.step for job in self._snapshot.waiting}
        steps |= {r.job.id: r.step for r in self._snapshot.running}
        for r in self._snapshot.running:
            # Whoever waits for an interactive clip has nothing of a batch that ends earlier.
            movable = r.movable and not r.job.interactive
            if movable and (to := self._plan.leaves_for(r.job.id, r.card, steps)) is not None:
                # It stays where it is if the other card is out of use, or it does not fit there any more.
                card = self._cards.get(to)
                if card is not None and self._eligible.is_able(r.job, card):
                    yield Move(r.job, r.card, to)

    def _is_possible(self, job: Job, card: Card) -> bool:
        remaining = self._remaining
        may_start = not remaining.at_limit(job.owner) and not remaining.has_equal(job)
        return may_start and self._eligible.is_able(job, card)
