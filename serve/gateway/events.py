"""Live events of a batch: what changed since somebody looked, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
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
class Changes:
    """Jobs of a batch that changed at or after `since`, in UTC epoch seconds of the store's clock, oldest first."""

    since: int
    jobs: tuple[Job, ...]
    #: Until when all changes are among those before and these. The store's clock counts whole seconds, and what
    #: changed in the last ones is looked at again.
    until: int
    #: False where there are more than a look holds.
    complete: bool


@dataclass(frozen=True, kw_only=True)
class BatchLook:
    """A batch as a stream sees it, and when by the store's clock."""

    batch: Batch
    #: The batch as it is shown.
    view: dict[str, Any]
    now: int
    running: tuple[Job, ...]
    #: What changed lately.
    changes: Changes
    _texts: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def told_job(self, job: Job) -> str:
        """The event of a job that changed: written once for all streams that look together."""
        key = _change(job)
        if key not in self._texts:
            self._texts[key] = _event("job", job_view(job), job.updated_at)
        return self._texts[key]


#: Looks at a batch that nobody has asked for in so many seconds are forgotten: the next one begins anew.
_FORGOTTEN_S = 60.0
#: What changed is kept for so many seconds: streams do not look in step, and one that has missed a look finds it here.
_RECENT_S = 10


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What looks at a batch have seen so far."""

    #: At the last one that asked for changes.
    view: dict[str, Any]
    changes: Changes
    #: All changes since `changes.since`, with their jobs; None for those of before the first look.
    recent: Mapping[tuple[str, int, str], Job | None]


@dataclass(kw_only=True)
class _Looked:
    """The newest look at a batch."""

    began: float
    task: asyncio.Task[BatchLook]
    known: _Known | None


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
        self._looks: dict[tuple[str, str], _Looked] = {}

    async def at(self, owner: str, batch_id: str) -> BatchLook:
        """A look at an owner's batch that is under way, or was a moment ago, else a new one.

        Raises `NoSuchBatchError`.
        """
        now = self._clock.monotonic()
        looked = self._looks.get((owner, batch_id))
        # One that is under way is never doubled: where the store is slow, that would make it slower.
        if looked is None or (looked.task.done() and now - looked.began >= self._kept_s):
            self._looks = {name: one for name, one in self._looks.items() if now - one.began < _FORGOTTEN_S}
            known = looked.known if looked is not None else None
            task = asyncio.create_task(self._look(owner, batch_id, known))
            looked = self._looks[owner, batch_id] = _Looked(began=now, task=task, known=known)
        # One stream that ends must not end the look of the others.
        return await asyncio.shield(looked.task)

    async def _look(self, owner: str, batch_id: str, known: _Known | None) -> BatchLook:
        look, known = await run_sync(self._read, owner, batch_id, known, limiter=self._threads)
        if (looked := self._looks.get((owner, batch_id))) is not None:
            looked.known = known
        return look

    def _read(self, owner: str, batch_id: str, known: _Known | None) -> tuple[BatchLook, _Known]:
        farm = self._farm.of(owner)
        # The clock after the batch: what changed in between is looked at again.
        batch, now = farm.batch(batch_id), farm.batch_store.now()
        running = () if batch.done else tuple(farm.batch_store.running(farm.owner, batch_id))
        view = batch_view(batch)
        if known is None or known.view != view or not known.changes.complete:
            known = _looked_again(farm, batch_id, view, now, known)
        return BatchLook(batch=batch, view=view, now=now, running=running, changes=known.changes), known


def _looked_again(farm: Farm, batch_id: str, view: dict[str, Any], now: int, known: _Known | None) -> _Known:
    """What is known after asking for changes; whole rows are read of those that are new."""
    since = known.changes.until if known else now - SETTLED_S
    # What is asked for again stays, however long ago it was: else what fills many looks would never come to an end.
    kept = min(since, now - _RECENT_S)
    recent = {key: job for key, job in known.recent.items() if key[1] >= kept} if known else {}
    found = farm.batch_store.changes(farm.owner, batch_id, since)
    new = [key for key in found if key not in recent]
    if known is None:
        # Thousands where a batch has just been handed in, which those who follow from now on know.
        recent |= dict.fromkeys(new)
        new = []
    jobs = farm.batch_store.jobs_of_ids(farm.owner, batch_id, [key[0] for key in new[:_MOST]])
    recent |= {key: jobs[key[0]] for key in new[:_MOST] if key[0] in jobs}
    complete = len(new) <= _MOST
    until = now - SETTLED_S if complete else min(new[_MOST][1], now - SETTLED_S)
    told = sorted((job for job in recent.values() if job is not None), key=lambda job: (job.updated_at, job.number))
    changes = Changes(
        # Nothing was dropped of what this look found, however long ago the one before was.
        since=min(since, max(now - _RECENT_S, known.changes.since)) if known else since,
        jobs=tuple(told),
        until=max(since, until),
        complete=complete,
    )
    return _Known(view=view, changes=changes, recent=recent)


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
    What one look tells comes as one text. The store is asked in `threads` (None: those of all requests), by `looks`
    together with other streams.
    """
    looks = looks or SharedLooks(farm, threads, clock, kept_s=every_s / 2)
    stream = _Stream(farm, batch_id, since, threads)
    end, sent_at = clock.monotonic() + STREAM_S, clock.monotonic()
    while clock.monotonic() < end:
        told = await stream.told(await looks.at(farm.owner, batch_id))
        if told:
            sent_at = clock.monotonic()
            # Each text is a message of its own through Serve's proxy.
            yield "".join(told)
        if stream.ended:
            return
        if clock.monotonic() - sent_at >= ALIVE_S:
            sent_at = clock.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(every_s)


class _Stream:
    """What one client has been told of a batch."""

    def __init__(self, farm: Farm, batch_id: str, since: int | None, threads: CapacityLimiter | None) -> None:
        self._farm, self._batch_id, self._threads = farm, batch_id, threads
        #: All that changed before has been told, or is not asked for; by the store's clock.
        self._since = since
        self._shown: dict[str, Any] | None = None
        self._sent: set[tuple[str, int, str]] = set()
        self._steps: dict[str, int] = {}
        self.ended = False

    async def told(self, look: BatchLook) -> list[str]:
        """Events of what a look shows that was not told before."""
        first = self._since is None
        since = look.now if self._since is None else self._since
        texts = []
        if look.view != self._shown:
            changes = await self._changes(look, since, alone=self._shown is None and not first)
            for job in changes.jobs:
                if job.updated_at >= since:
                    # What it begins with is the batch as it stands.
                    if not first and _change(job) not in self._sent:
                        texts.append(look.told_job(job))
                    self._sent.add(_change(job))
            since = max(since, changes.until)
            self._sent = {key for key in self._sent if key[1] >= since}
            # Sent last, and remembered only where all jobs behind it were sent.
            if changes.complete:
                self._shown = look.view
            if changes.complete or first:
                texts.append(_event("batch", look.view, since))
        self._since = since
        if look.batch.done and self._shown == look.view:
            self.ended = True
            return [*texts, _event("end", {"status": look.batch.status}, since)]
        for job in look.running:
            if self._steps.get(job.id) != job.step:
                self._steps[job.id] = job.step
                texts.append(_event("progress", _progress(job), since))
        return texts

    async def _changes(self, look: BatchLook, since: int, *, alone: bool) -> Changes:
        if look.changes.since <= since and not alone:
            return look.changes
        # It comes back after a break, and wants what others knew already, or it fell behind.
        return await run_sync(_changes, self._farm, self._batch_id, since, look.now, limiter=self._threads)


def _changes(farm: Farm, batch_id: str, since: int, now: int) -> Changes:
    jobs = farm.batch_store.changed(farm.owner, batch_id, since, _MOST)
    complete = len(jobs) < _MOST
    until = now - SETTLED_S if complete else min(jobs[-1].updated_at + 1, now - SETTLED_S)
    return Changes(since=since, jobs=tuple(jobs), until=max(since, until), complete=complete)


def _change(job: Job) -> tuple[str, int, str]:
    return job.id, job.updated_at, job.state.value


def _progress(job: Job) -> dict[str, Any]:
    return {"id": job.id, "name": job.name, "step": job.step, "steps": job.steps}


def _event(kind: str, data: dict[str, Any], at: int) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
