"""Completions on their way into the store: those that come while others are written go together, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.dispatch.retry import after_attempt
from cluster.dispatch.store_calls import StoreCalls
from cluster.fleet.cards import Fleet
from cluster.jobs.model import Job
from cluster.jobs.outcomes import Crashed, Ended, Overflow, Transition
from cluster.store import Claim, Completion, DispatchStore

#: Completions written in one transaction, at most.
_TOGETHER = 200
#: Waiting jobs whose overflows are remembered; of more, those of the oldest are forgotten.
_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True)
class WrittenCompletion:
    """The end of an attempt as it is in the store."""

    #: False where the attempt had ended before: this end is void.
    counts: bool
    #: The job as it stood when its end was decided, and what was to become of it. What people asked of it between that
    #: and the writing is obeyed by the store, so it may be cancelled or held by now.
    job: Job
    transition: Transition


@dataclass(frozen=True)
class _Pending:
    claim: Claim
    ended: Ended
    written: asyncio.Future[WrittenCompletion]


class CompletionQueue:
    """Decides what follows the end of an attempt (`retry.after_attempt`) and writes both."""

    def __init__(self, dispatch_store: DispatchStore, fleet: Fleet, store: StoreCalls) -> None:
        """`fleet`: the cards that the farm can have, for jobs that need a larger one."""
        self._dispatch_store, self._fleet, self._store = dispatch_store, fleet, store
        self._pending: list[_Pending] = []
        self._writing: asyncio.Task[None] | None = None
        #: What earlier attempts of a job ran out of memory with. Lost with this dispatcher: what it knows is learned
        #: again in a few attempts.
        self._overflows: dict[str, tuple[Overflow, ...]] = {}

    async def write(self, claim: Claim, ended: Ended) -> WrittenCompletion:
        """Write how an attempt ended. Raises what the store raises about it, and about no other."""
        pending = _Pending(claim, ended, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await pending.written

    async def _write_all(self) -> None:
        while self._pending:
            some, self._pending = self._pending[:_TOGETHER], self._pending[_TOGETHER:]
            before = [self._overflows.get(one.claim.job.id, ()) for one in some]
            try:
                found = await self._store(self._decide_and_write, some, before)
            except BaseException as error:
                for one in some:
                    if not one.written.done():
                        one.written.set_exception(error)
                        # Whoever waited may be gone; then nobody asks for it.
                        one.written.exception()
                if not isinstance(error, Exception):
                    raise
                continue
            for one, result in zip(some, found, strict=True):
                if isinstance(result, WrittenCompletion):
                    self._remember(result.job, one.ended, result.transition)
                if one.written.done():
                    continue
                if isinstance(result, WrittenCompletion):
                    one.written.set_result(result)
                else:
                    one.written.set_exception(result)

    def _decide_and_write(
        self, some: Sequence[_Pending], before: Sequence[tuple[Overflow, ...]]
    ) -> list[WrittenCompletion | Exception]:
        jobs = self._dispatch_store.current_jobs([one.claim for one in some])
        died = [job.id for one, job in zip(some, jobs, strict=True) if isinstance(one.ended, Crashed)]
        deaths = self._dispatch_store.deaths_of(died) if died else {}
        completions = [
            Completion(
                claim=one.claim,
                ended=one.ended,
                transition=after_attempt(job, one.ended, self._fleet, earlier, deaths.get(job.id, ())),
            )
            for one, job, earlier in zip(some, jobs, before, strict=True)
        ]
        written = self._dispatch_store.finish_each(completions)
        return [
            result
            if isinstance(result, Exception)
            else WrittenCompletion(counts=result, job=job, transition=completion.transition)
            for result, job, completion in zip(written, jobs, completions, strict=True)
        ]

    def _remember(self, job: Job, ended: Ended, transition: Transition) -> None:
        earlier = self._overflows.pop(job.id, ())
        if (tried := (*earlier, *ended.overflows)) and not transition.state.final:
            self._overflows[job.id] = tried
            if len(self._overflows) > _REMEMBERED:
                del self._overflows[next(iter(self._overflows))]
