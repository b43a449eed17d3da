"""Leases of running attempts: renewed while their renderers are heard, rescued once they ran out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from cluster.dispatch.attempts import AttemptRunner
from cluster.dispatch.checkpoint_gc import CheckpointGc
from cluster.dispatch.roster import Roster
from cluster.dispatch.store_calls import StoreCalls
from cluster.jobs.model import Outcome, StoredCheckpoint
from cluster.jobs.outcomes import Lost
from cluster.store import Claim, DispatchStore, StaleEpochError

log = logging.getLogger("clipmill.dispatcher")

#: How often leases are renewed, in seconds.
RENEW_S = 1.0
#: A renderer that was not heard for so many seconds loses its attempts. Longer than a dispatcher's restart.
LEASE_S = 10
#: An attempt that got nowhere for so many seconds has a renderer that hangs: longer than any load, step or decode.
#: While it makes steps, its own pace says so earlier (`RunningAttempt.stall_s`).
STALL_S = 1800.0
#: A preempted clip that has not stopped after so many seconds is stopped without a checkpoint; later where its own
#: steps are long (`RunningAttempt.leave_s`).
PREEMPT_S = 30.0


class Leases:
    """Keeps the leases of this dispatcher's attempts, and ends attempts that lost theirs or make no progress."""

    def __init__(
        self,
        dispatch_store: DispatchStore,
        store: StoreCalls,
        roster: Roster,
        clock: Callable[[], float],
        *,
        attempts: AttemptRunner,
        checkpoints: CheckpointGc,
        lease_s: int,
        stall_s: float,
        preempt_s: float,
    ) -> None:
        """`lease_s`: how long a lease lasts. `stall_s`: an attempt that got nowhere for this long hangs.

        `preempt_s`: how long a preempted attempt may take to save its checkpoint.
        """
        self._dispatch_store, self._store, self._roster, self._clock = dispatch_store, store, roster, clock
        self._attempts, self._checkpoints = attempts, checkpoints
        self._lease_s, self._stall_s, self._preempt_s = lease_s, stall_s, preempt_s

    def _heard(self) -> dict[str, tuple[int, int]]:
        """Attempts whose renderers are heard, with steps done and steps of the clip: their leases are to be renewed."""
        return {
            attempt_id: attempt.steps
            for attempt_id, attempt in self._roster.running.items()
            if self._roster.is_heard(attempt.claim.renderer)
        }

    async def renew(self) -> None:
        """Renew the leases of attempts that are heard, record their checkpoints, and do what the store answers.

        1. Leases, steps and checkpoints are written in one transaction.
        2. Checkpoints that newer ones replaced are deleted.
        3. Attempts are stopped that hang, or that were preempted and did not leave in time.
        4. Attempts whose job was cancelled are stopped; those whose job people hold or pause are preempted.
        """
        now = self._clock()
        unrecorded = self._unrecorded()
        renewal = await self._store(self._dispatch_store.renew, self._heard(), self._lease_s, unrecorded)
        self._note_recorded(unrecorded)
        await self._checkpoints.discard(*renewal.superseded)
        self._stop_overdue(now)
        self._stop_cancelled(renewal.cancelled)
        self._preempt(renewal.preempted)

    async def rescue(self) -> None:
        """End attempts whose lease ran out: this dispatcher's by an interrupt, those nobody follows in the store."""
        running = self._roster.running
        expired = await self._store(self._dispatch_store.expired)
        for claim in expired:
            if attempt := running.get(claim.attempt_id):
                attempt.interrupt(Outcome.LOST)
        await self.end_lost([claim for claim in expired if claim.attempt_id not in running], "its lease ran out")

    async def end_lost(self, claims: Sequence[Claim], detail: str) -> None:
        """End attempts that nobody follows as lost, `detail` saying why.

        One that cannot be ended now is tried again when its lease is looked at. Raises `StaleEpochError`.
        """
        ends = [(claim, Lost(detail=detail, resumed_step=claim.resumed_step)) for claim in claims]
        errors = await asyncio.gather(*(self._attempts.complete(*end) for end in ends), return_exceptions=True)
        for claim, error in zip(claims, errors, strict=True):
            if isinstance(error, StaleEpochError) or (error is not None and not isinstance(error, Exception)):
                raise error
            if error is not None:
                log.error("the loss of attempt %s could not be written: %s", claim.attempt_id, error)

    def _unrecorded(self) -> dict[str, StoredCheckpoint]:
        return {
            attempt_id: attempt.checkpoint
            for attempt_id, attempt in self._roster.running.items()
            if attempt.checkpoint and attempt.checkpoint != attempt.recorded
        }

    def _note_recorded(self, checkpoints: Mapping[str, StoredCheckpoint]) -> None:
        for attempt_id, checkpoint in checkpoints.items():
            if attempt := self._roster.running.get(attempt_id):
                attempt.recorded = checkpoint

    def _stop_overdue(self, now: float) -> None:
        for attempt in list(self._roster.running.values()):
            if attempt.preempting and now > attempt.preempt_by:
                attempt.interrupt(Outcome.STOPPED)
            elif now - attempt.moved_at > (stall_s := attempt.stall_s(self._stall_s, now)):
                stalled = f"the renderer hangs: nothing after step {attempt.steps[0]} for {stall_s:.0f} s"
                attempt.interrupt(Outcome.CRASHED, stalled)

    def _stop_cancelled(self, attempt_ids: Collection[str]) -> None:
        # Sorted, so that the same run goes the same way again.
        for attempt_id in sorted(attempt_ids):
            if attempt := self._roster.running.get(attempt_id):
                attempt.cancelled = True
                attempt.interrupt(Outcome.STOPPED)

    def _preempt(self, reasons: Mapping[str, str]) -> None:
        for attempt_id, reason in sorted(reasons.items()):
            attempt = self._roster.running.get(attempt_id)
            if attempt is not None and not attempt.preempting:
                now = self._clock()
                attempt.preempt(reason, now + attempt.leave_s(self._preempt_s, now))
