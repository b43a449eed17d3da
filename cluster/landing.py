"""Endings on their way into the store: those that come while others are written go together, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.cards import Fleet
from cluster.escalation import after_attempt
from cluster.jobs import Ended, Job, Overflow, Transition
from cluster.leftovers import InStoreThread
from cluster.store import Claim, Ending, Ledger

#: Endings written in one transaction, at most.
_TOGETHER = 200
#: Waiting jobs whose overflows are remembered; of more, those of the oldest are forgotten.
_STORIES = 10_000


@dataclass(frozen=True, kw_only=True)
class Landed:
    """An ending that was written."""

    #: False where the attempt had ended before.
    counts: bool
    #: The job as it stood then, and what became of it.
    job: Job
    transition: Transition


@dataclass(frozen=True)
class _Pending:
    claim: Claim
    ended: Ended
    landed: asyncio.Future[Landed]


class Landing:
    """Decides what follows an attempt and writes it."""

    def __init__(self, ledger: Ledger, fleet: Fleet, store: InStoreThread) -> None:
        self._ledger, self._fleet, self._store = ledger, fleet, store
        self._pending: list[_Pending] = []
        self._writing: asyncio.Task[None] | None = None
        # Lost with this dispatcher: what it knows is learned again in a few attempts.
        self._stories: dict[str, tuple[Overflow, ...]] = {}

    async def write(self, claim: Claim, ended: Ended) -> Landed:
        """Write how an attempt ended. Raises what the store raises about it, and about no other."""
        pending = _Pending(claim, ended, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await pending.landed

    async def _write_all(self) -> None:
        while self._pending:
            some, self._pending = self._pending[:_TOGETHER], self._pending[_TOGETHER:]
            stories = [self._stories.get(one.claim.job.id, ()) for one in some]
            try:
                found = await self._store(self._decide_and_write, some, stories)
            except BaseException as error:
                for one in some:
                    if not one.landed.done():
                        one.landed.set_exception(error)
                        # Whoever waited may be gone; then nobody asks for it.
                        one.landed.exception()
                if not isinstance(error, Exception):
                    raise
                continue
            for one, result in zip(some, found, strict=True):
                if isinstance(result, Landed):
                    self._remember(result.job, one.ended, result.transition)
                if one.landed.done():
                    continue
                if isinstance(result, Landed):
                    one.landed.set_result(result)
                else:
                    one.landed.set_exception(result)

    def _decide_and_write(
        self, some: Sequence[_Pending], stories: Sequence[tuple[Overflow, ...]]
    ) -> list[Landed | Exception]:
        jobs = self._ledger.current_jobs([one.claim for one in some])
        endings = [
            Ending(claim=one.claim, ended=one.ended, transition=after_attempt(job, one.ended, self._fleet, told))
            for one, job, told in zip(some, jobs, stories, strict=True)
        ]
        written = self._ledger.finish_each(endings)
        return [
            result if isinstance(result, Exception) else Landed(counts=result, job=job, transition=ending.transition)
            for result, job, ending in zip(written, jobs, endings, strict=True)
        ]

    def _remember(self, job: Job, ended: Ended, transition: Transition) -> None:
        told = self._stories.pop(job.id, ())
        if (tried := (*told, *ended.overflows)) and not transition.state.final:
            self._stories[job.id] = tried
            if len(self._stories) > _STORIES:
                del self._stories[next(iter(self._stories))]
