"""Live events of a batch: what changed since somebody looked, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

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

_Found = TypeVar("_Found")
_Name = TypeVar("_Name", bound=Hashable)


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
    #: When it had ended, by the clock of streams.
    ended_s: float


@dataclass(frozen=True, kw_only=True)
class JobChange:
    """A job that has changed, as all streams of its batch tell it."""

    #: The job's id, when it changed (UTC epoch seconds), and its state since.
    key: tuple[str, int, str]
    text: str

    @property
    def updated_at(self) -> int:
        """When it changed, in UTC epoch seconds."""
        return self.key[1]


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
        self._changes: dict[tuple[str, str, int], tuple[float, asyncio.Task[list[JobChange]]]] = {}

    async def at(self, owner: str, batch_id: str) -> BatchLook:
        """A look at an owner's batch that is under way, or was a moment ago, else a new one.

        Raises `NoSuchBatchError`.
        """
        return await self._together(self._looks, (owner, batch_id), partial(self._look, owner, batch_id), 0.0)

    async def changes(self, owner: str, batch_id: str, since: int, seen: BatchLook) -> list[JobChange]:
        """Jobs that changed at or after `since`, in UTC epoch seconds, as they were read after the look `seen`."""
        read = partial(self._changed, owner, batch_id, since)
        return await self._together(self._changes, (owner, batch_id, since), read, seen.ended_s)

    async def _together(
        self,
        kept: dict[_Name, tuple[float, asyncio.Task[_Found]]],
        name: _Name,
        read: Callable[[], _Found],
        after: float,
    ) -> _Found:
        """What is being read under this name, or was a moment ago and since `after`, else read anew."""
        now = self._clock.monotonic()
        began, task = kept.get(name, (-math.inf, None))
        if task is None or now - began >= self._kept_s or began < after:
            for old in [one for one, (at, _) in kept.items() if now - at >= self._kept_s]:
                del kept[old]
            task = asyncio.create_task(run_sync(read, limiter=self._threads))
            kept[name] = now, task
        # One stream that ends must not end the look of the others.
        return await asyncio.shield(task)

    def _look(self, owner: str, batch_id: str) -> BatchLook:
        farm = self._farm.of(owner)
        # The clock after the batch: what changed in between is looked at again.
        batch, now = farm.batch(batch_id), farm.batch_store.now()
        running = () if batch.done else tuple(farm.batch_store.running(farm.owner, batch_id))
        return BatchLook(batch=batch, now=now, running=running, ended_s=self._clock.monotonic())

    def _changed(self, owner: str, batch_id: str, since: int) -> list[JobChange]:
        jobs = self._farm.of(owner).batch_store.changed(owner, batch_id, since, _MOST)
        return [
            JobChange(key=(job.id, job.updated_at, job.state.value), text=_event("job", job_view(job), job.updated_at))
            for job in jobs
        ]


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
    The store is asked in `threads` (None: those of all requests), by `looks` together with other streams. Events of one
    look come as one text: each is a message on its way to whoever follows.
    """
    looks = looks or SharedLooks(farm, threads, clock, kept_s=every_s / 2)
    stream = _Stream(farm.owner, batch_id, since, looks, clock)
    end = clock.monotonic() + STREAM_S
    while clock.monotonic() < end and not stream.ended:
        if text := await stream.news():
            yield text
        if not stream.ended:
            await asyncio.sleep(every_s)


class _Stream:
    """What one client was told of a batch."""

    def __init__(self, owner: str, batch_id: str, since: int | None, looks: SharedLooks, clock: Clock) -> None:
        """`since`: as `follow` takes it."""
        self._owner, self._batch_id, self._since = owner, batch_id, since
        self._looks, self._clock = looks, clock
        self._shown: dict[str, Any] | None = None
        self._sent: set[tuple[str, int, str]] = set()
        self._steps: dict[str, int] = {}
        self._sent_at = clock.monotonic()
        #: The batch has ended, and the client was told.
        self.ended = False

    async def news(self) -> str:
        """The events that are due; "" where there are none."""
        look = await self._looks.at(self._owner, self._batch_id)
        view = batch_view(look.batch)
        if self._since is None:
            self._since = look.now
        texts = await self._of_jobs(look, view, self._since) if view != self._shown else []
        if look.batch.done and self._shown == view:
            self.ended = True
            return "".join([*texts, _event("end", {"status": look.batch.status}, self._since)])
        for job in look.running:
            if self._steps.get(job.id) != job.step:
                self._steps[job.id] = job.step
                texts.append(_event("progress", _progress(job), self._since))
        if not texts and self._clock.monotonic() - self._sent_at >= ALIVE_S:
            texts.append(": still there\n\n")
        if texts:
            self._sent_at = self._clock.monotonic()
        return "".join(texts)

    async def _of_jobs(self, look: BatchLook, view: dict[str, Any], since: int) -> list[str]:
        changes = await self._looks.changes(self._owner, self._batch_id, since, look)
        # The store's clock counts whole seconds: what changed in the last ones is looked at again.
        texts = [change.text for change in changes if change.key not in self._sent]
        self._sent |= {change.key for change in changes}
        if changes:
            since = max(since, min(changes[-1].updated_at + 1, look.now - SETTLED_S))
            self._sent = {key for key in self._sent if key[1] >= since}
            self._since = since
        # Sent last, and remembered only where all jobs behind it were sent.
        if len(changes) < _MOST:
            self._shown = view
            texts.append(_event("batch", view, since))
        return texts


def _progress(job: Job) -> dict[str, Any]:
    return {"id": job.id, "name": job.name, "step": job.step, "steps": job.steps}


def _event(kind: str, data: dict[str, Any], at: int) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
