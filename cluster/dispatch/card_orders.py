"""Orders that stand for cards, and limits of batches: read from the store and enforced on what runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cluster.dispatch.roster import Roster
from cluster.dispatch.store_calls import StoreCalls
from cluster.fleet.quarantine import REST_S, Quarantine
from cluster.jobs.outcomes import Crashed, Ended, StoodBeside
from cluster.store import Claim, DispatchStore
from cluster.store.budgets import Price

log = logging.getLogger("clipmill.dispatcher")


class CardOrders:
    """Closes and clears cards that somebody ordered out of use, and sets those aside that break their renderers."""

    def __init__(
        self,
        dispatch_store: DispatchStore,
        store: StoreCalls,
        roster: Roster,
        clock: Callable[[], float],
        *,
        price: Price,
        preempt_s: float,
    ) -> None:
        """`price`: dollars an hour of a card kind. `preempt_s`: how long a clip may take to leave a drained card."""
        self._dispatch_store, self._store, self._roster, self._clock = dispatch_store, store, roster, clock
        self._price, self._preempt_s = price, preempt_s
        # Lost with this dispatcher: what it knows is learned again in a few attempts.
        self._quarantine = Quarantine(clock)

    async def enforce(self) -> None:
        """Stop batches that have reached a limit, close the cards that are ordered out of use, and clear the drained.

        Clips on a drained card are preempted.
        """
        enforced = await self._store(self._dispatch_store.enforce, self._price)
        for batch_id, why in sorted(enforced.stopped.items()):
            log.warning("batch %s has reached its limit (%s): nothing more of it starts", batch_id, why)
        self._roster.close_cards(enforced.closed)
        for attempt in self._roster.running.values():
            if attempt.claim.card in enforced.clearing and not attempt.preempting:
                now = self._clock()
                attempt.preempt("drain", now + attempt.leave_s(self._preempt_s, now))

    async def blame(self, claim: Claim, ended: Ended) -> None:
        """Set the card of an attempt aside where too many clips broke their renderer there."""
        job_id = claim.job.id
        if isinstance(ended, StoodBeside) and ended.alone:
            # A process that dies with no clip on its card says nothing of a clip, and much of the card.
            job_id, ended = claim.renderer, Crashed(detail=ended.detail)
        why = self._quarantine.ended(claim.card, job_id, ended)
        # A farm does not close its last card by itself.
        if why is not None and self._roster.others_open(claim.card):
            log.warning("card %s is set aside: %s", claim.card, why)
            await self._store(self._dispatch_store.quarantine, claim.card, why, REST_S)
            await self.enforce()
