"""Routes of the operator's verbs: what may be said of a batch, a job and a card, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from cluster.farm import Farm
from cluster.jobs import Job
from cluster.manifest import MAX_PRIORITY
from cluster.store.scene import why
from cluster.verbs import CardVerb, Verb
from cluster.why import Rules
from pipeline.problems import BadInputError
from serve.said import OfBatch, OfCard, OfJob
from serve.views import batch_view, card_view, job_view, order_view, why_view

#: Seconds between two looks at a batch that somebody follows.
FOLLOW_S = 1.0
#: A stream is closed after this, so that a gateway can be replaced; a client comes back by itself, and misses nothing.
STREAM_S = 600.0
#: A comment is sent after so many seconds of silence: proxies close what says nothing.
ALIVE_S = 15.0
#: What happened so many seconds ago has been committed by now.
SETTLED_S = 2
#: Jobs told of in one look.
_MOST = 1000


class Clock(Protocol):
    """What the stream of events asks for the time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


def verb_routes(farm: Farm, tell_dispatcher: Callable[[], Awaitable[None]], rules: Rules) -> APIRouter:
    """The routes; `tell_dispatcher` is called after every change, `rules` are what the farm places jobs by."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/batches/{batch_id}/{verb}")
    async def say_of_batch(batch_id: str, verb: Verb, body: Annotated[OfBatch | None, Body()] = None) -> dict[str, Any]:
        said = body or OfBatch()
        batch = await run_in_threadpool(
            farm.say,
            batch_id,
            verb,
            priority=_priority(verb, said.priority),
            cancelled=said.cancelled,
            limits=said.limits(),
        )
        await tell_dispatcher()
        return batch_view(batch)

    @routes.get("/ids")
    def find(begins: Annotated[str, Query(min_length=1, max_length=64)]) -> dict[str, Any]:
        return {"object": "id", "id": farm.desk.find(farm.owner, begins)}

    @routes.get("/jobs/{job_id}")
    def get_job(job_id: str) -> dict[str, Any]:
        return job_view(farm.desk.job(farm.owner, job_id))

    @routes.get("/jobs/{job_id}/why")
    def explain_job(job_id: str) -> dict[str, Any]:
        return why_view(why(farm.desk.database, farm.owner, job_id, rules))

    @routes.post("/jobs/{job_id}/{verb}")
    async def say_of_job(job_id: str, verb: Verb, body: Annotated[OfJob | None, Body()] = None) -> dict[str, Any]:
        priority = _priority(verb, body.priority if body else None)
        job = await run_in_threadpool(farm.say_of_job, job_id, verb, priority=priority)
        await tell_dispatcher()
        return job_view(job)

    @routes.get("/cards")
    def cards() -> dict[str, Any]:
        orders = farm.verbs.orders()
        return {
            "object": "list",
            "data": [card_view(beat, orders.get(beat.card)) for beat in farm.desk.cards()],
        }

    @routes.post("/cards/{card:path}/{verb}")
    async def say_of_card(card: str, verb: CardVerb, body: Annotated[OfCard | None, Body()] = None) -> dict[str, Any]:
        said = body or OfCard()
        if "\0" in said.reason:
            raise BadInputError("reason", "a NUL character", "Leave it out.")
        whole, order = await run_in_threadpool(farm.say_of_card, card, verb, reason=said.reason, for_s=said.for_s)
        await tell_dispatcher()
        return {"object": "card", "card": whole, "order": order_view(order)}

    @routes.get("/batches/{batch_id}/events")
    async def events(
        batch_id: str,
        since: Annotated[int | None, Query(ge=0)] = None,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> StreamingResponse:
        # Before the answer begins: a stream cannot become a 404.
        await run_in_threadpool(farm.batch, batch_id)
        begin = last_event_id if last_event_id is not None else since
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(follow(farm, batch_id, begin), media_type="text/event-stream", headers=headers)

    return routes


async def follow(
    farm: Farm, batch_id: str, since: int | None, *, every_s: float = FOLLOW_S, clock: Clock = time
) -> AsyncIterator[str]:
    """Server-sent events of a batch: `batch` when its counts change, `job` for each job that does, then `end`.

    Begins with the batch as it stands, and with the jobs that changed at or after `since` (UTC epoch seconds; None:
    from now on). An event's id is where to begin after a break: some jobs may then be told of twice, none is missed.
    """
    shown: dict[str, Any] | None = None
    told: set[tuple[str, int, str]] = set()
    steps: dict[str, int] = {}
    end, spoke = clock.monotonic() + STREAM_S, clock.monotonic()
    while clock.monotonic() < end:
        batch = await run_in_threadpool(farm.batch, batch_id)
        view = batch_view(batch)
        now = await run_in_threadpool(farm.desk.now)
        if since is None:
            since = now
        if view != shown:
            spoke = clock.monotonic()
            jobs = await run_in_threadpool(farm.desk.changed, farm.owner, batch_id, since, _MOST)
            for job in jobs:
                # The store's clock counts whole seconds: what changed in the last ones is looked at again.
                key = (job.id, job.updated_at, job.state.value)
                if key not in told:
                    yield _event("job", job_view(job), job.updated_at)
                told.add(key)
            if jobs:
                since = max(since, min(jobs[-1].updated_at + 1, now - SETTLED_S))
                told = {key for key in told if key[1] >= since}
            # Told last and remembered only where all jobs behind it were told of.
            if len(jobs) < _MOST:
                shown = view
                yield _event("batch", view, since)
        if batch.done and shown == view:
            yield _event("end", {"status": batch.status}, since)
            return
        for job in await run_in_threadpool(farm.desk.running, farm.owner, batch_id):
            if steps.get(job.id) != job.step:
                steps[job.id] = job.step
                spoke = clock.monotonic()
                yield _event("progress", _progress(job), since)
        if clock.monotonic() - spoke >= ALIVE_S:
            spoke = clock.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(every_s)


def _progress(job: Job) -> dict[str, Any]:
    return {"id": job.id, "name": job.name, "step": job.step, "steps": job.steps}


def _event(kind: str, data: dict[str, Any], at: int) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _priority(verb: Verb, given: int | None) -> int:
    if verb is Verb.PRIORITIZE and given is None:
        raise BadInputError(
            "priority", "no priority was given", f"Give a number from -{MAX_PRIORITY} to {MAX_PRIORITY}."
        )
    return given or 0
