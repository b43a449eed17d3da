"""Live events of a batch: what changed since somebody looked, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from cluster.farm import Farm
from cluster.jobs.model import Batch, Job
from serve.gateway.views import batch_view, job_view

#: How the path of an event stream ends.
EVENTS = "/events"
#: Threads in which all streams of a gateway ask the store: they leave the others to requests that somebody waits for.
STREAM_THREADS = 4
#: Seconds between two looks at a batch that somebody follows.
FOLLOW_S = 1.0
#: A stream is closed after this, so that a gateway can be replaced; a client comes back by itself, and misses nothing.
STREAM_S = 600.0
#: A comment is sent after so many seconds of silence: proxies close idle connections.
ALIVE_S = 15.0
#: What happened so many seconds ago has been committed by now.
SETTLED_S = 2
#: Jobs sent in one look.
_MOST = 1000


class Clock(Protocol):
    """The clock of an event stream."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchLook:
    """A batch as a stream sees it, and when by the store's clock."""

    batch: Batch
    now: int
    running: tuple[Job, ...]


class SharedLooks:
    """Looks at batches for all event streams of a gateway: those that follow one batch look together.

    Of one event loop.
    """

    def __init__(
        self, farm: Farm, threads: CapacityLimiter | None = None, clock: Clock = time, kept_s: float = FOLLOW_S / 2
    ) -> None:
        """The store is asked in `threads` (None: those of all requests).

        A look serves whoever asks within `kept_s` seconds after it began.
        """
        self._farm, self._threads, self._clock, self._kept_s = farm, threads, clock, kept_s
        self._looks: dict[tuple[str, str], tuple[float, asyncio.Task[BatchLook]]] = {}

    async def at(self, owner: str, batch_id: str) -> BatchLook:
        """A look at an owner's batch that is under way, or was a moment ago, else a new one.

        Raises `NoSuchBatchError`.
        """
        now = self._clock.monotonic()
        began, task = self._looks.get((owner, batch_id), (float("-inf"), None))
        if task is None or now - began >= self._kept_s:
            self._looks = {name: look for name, look in self._looks.items() if now - look[0] < self._kept_s}
            task = asyncio.create_task(run_sync(self._look, owner, batch_id, limiter=self._threads))
            self._looks[owner, batch_id] = now, task
        # One stream that ends must not end the look of the others.
        return await asyncio.shield(task)

    def _look(self, owner: str, batch_id: str) -> BatchLook:
        farm = self._farm.of(owner)
        # The clock after the batch: what changed in between is looked at again.
        batch, now = farm.batch(batch_id), farm.batch_store.now()
        running = () if batch.done else tuple(farm.batch_store.running(farm.owner, batch_id))
        return BatchLook(batch=batch, now=now, running=running)


async def follow(
    farm: Farm,
    batch_id: str,
    since: int | None,
    *,
    every_s: float = FOLLOW_S,
    clock: Clock = time,
    threads: CapacityLimiter | None = None,
    looks: SharedLooks | None = None,
) -> AsyncIterator[str]:
    """Server-sent events of a batch: `batch` when its counts change, `job` for each job that does, then `end`.

    Begins with the batch as it stands, and with the jobs that changed at or after `since` (UTC epoch seconds; None:
    from now on). An event's id is where to begin after a break: some jobs may then be sent twice, none is missed.
    The store is asked in `threads` (None: those of all requests), by `looks` together with other streams.
    """
    looks = looks or SharedLooks(farm, threads, clock, kept_s=every_s / 2)
    shown: dict[str, Any] | None = None
    sent: set[tuple[str, int, str]] = set()
    steps: dict[str, int] = {}
    end, sent_at = clock.monotonic() + STREAM_S, clock.monotonic()
    while clock.monotonic() < end:
        look = await looks.at(farm.owner, batch_id)
        batch, now = look.batch, look.now
        view = batch_view(batch)
        if since is None:
            since = now
        if view != shown:
            sent_at = clock.monotonic()
            jobs = await run_sync(farm.batch_store.changed, farm.owner, batch_id, since, _MOST, limiter=threads)
            for job in jobs:
                # The store's clock counts whole seconds: what changed in the last ones is looked at again.
                key = (job.id, job.updated_at, job.state.value)
                if key not in sent:
                    yield _event("job", job_view(job), job.updated_at)
                sent.add(key)
            if jobs:
                since = max(since, min(jobs[-1].updated_at + 1, now - SETTLED_S))
                sent = {key for key in sent if key[1] >= since}
            # Sent last, and remembered only where all jobs behind it were sent.
            if len(jobs) < _MOST:
                shown = view
                yield _event("batch", view, since)
        if batch.done and shown == view:
            yield _event("end", {"status": batch.status}, since)
            return
        for job in look.running:
            if steps.get(job.id) != job.step:
                steps[job.id] = job.step
                sent_at = clock.monotonic()
                yield _event("progress", _progress(job), since)
        if clock.monotonic() - sent_at >= ALIVE_S:
            sent_at = clock.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(every_s)


def _progress(job: Job) -> dict[str, Any]:
    return {"id": job.id, "name": job.name, "step": job.step, "steps": job.steps}


def _event(kind: str, data: dict[str, Any], at: int) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
