"""Why a job does not start now: the hardest of the reasons that apply. Pure."""

from __future__ import annotations

from functools import cached_property

from cluster.fleet.card_index import Extent
from cluster.jobs.model import Job
from cluster.scheduling.eligible import EligibleCards
from cluster.scheduling.remaining import Remaining
from cluster.scheduling.snapshot import Snapshot, WaitReason


class WaitReasons:
    """Reasons of the jobs of one snapshot, after all that starts has been decided."""

    def __init__(self, snapshot: Snapshot, eligible: EligibleCards, remaining: Remaining) -> None:
        self._snapshot, self._eligible, self._remaining = snapshot, eligible, remaining
        self._index = snapshot.card_index
        names = {route.card for route in snapshot.blocked}
        #: Cards to which a breaker blocks a route, of whatever clips: of these every one has to be looked at.
        self._blocked = [card for card in self._index.cards.values() if card.card in names] if names else []
        self._names = {card.card for card in self._blocked}

    def of(self, job: Job) -> WaitReason:
        """Why `job`, one of the heads that did not start, waits."""
        snapshot, needs = self._snapshot, self._eligible.needs_of(job)
        if not self._index.all.fits(needs):
            return WaitReason.NO_CARD_OF_THIS_SIZE
        if (
            snapshot.blocked
            and not self._unblocked.fits(needs)
            and all(
                self._eligible.is_blocked(job, card) for card in self._blocked if card.usable_bytes >= needs[card.kind]
            )
        ):
            return WaitReason.FITTING_CARDS_FAILED
        if not self._index.usable.fits(needs):
            return WaitReason.FITTING_CARDS_LOCKED
        if self._remaining.has_equal(job):
            return WaitReason.EQUAL_CLIP_RUNNING
        if self._remaining.at_limit(job.owner):
            return WaitReason.OWNER_AT_LIMIT
        if snapshot.plan is not None and job.id in snapshot.plan.jobs:
            return WaitReason.PLANNED_LATER
        if self._idle_at_first.fits(needs) or any(
            card.idle and self._eligible.is_able(job, card)
            for card in self._blocked
            if card.card not in self._index.locked
        ):
            return WaitReason.BEHIND_OTHERS
        return WaitReason.ALL_FITTING_CARDS_BUSY

    @cached_property
    def _idle_at_first(self) -> Extent:
        return Extent(card for card in self._remaining.idle_at_first if card.card not in self._names)

    @cached_property
    def _unblocked(self) -> Extent:
        return Extent(card for card in self._index.cards.values() if card.card not in self._names)
