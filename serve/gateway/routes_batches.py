"""Routes of stills and batches: submission, views, commands, live events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from cluster.farm import Farm
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.storage import MAX_STILL_BYTES
from pipeline.problems import BadInputError
from pipeline.units import format_bytes
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.batches.results import add_results
from serve.gateway.batches.submission import BatchSettings, add_submission
from serve.gateway.door import CheckedRoute
from serve.gateway.events import EVENTS, STREAM_THREADS, SharedLooks, follow
from serve.gateway.requests import MAX_ROW_NUMBER, BatchCommand, priority_of
from serve.gateway.views import batch_view, deletion_view, job_view

#: The body of `PUT /v1/stills`, which is read as it comes.
_STILL_BODY = {
    "requestBody": {
        "required": True,
        "description": "The picture's own bytes, neither a form nor JSON: `curl -T bag.png URL/v1/stills`.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
#: Stills that are looked at, at once: others wait, and no thread with them that another request needs.
_STILLS_AT_ONCE = 4


def batch_routes(
    farm: Farm,
    nudge_dispatcher: Callable[[], Awaitable[None]],
    settings: BatchSettings,
) -> APIRouter:
    """The routes of stills and batches; `nudge_dispatcher` is called after every change."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute)
    _add_submission(routes, nudge_dispatcher, settings)
    _add_views(routes)
    add_results(routes)
    _add_commands(routes, nudge_dispatcher)
    _add_events(routes, farm)
    return routes


def _add_submission(
    routes: APIRouter,
    nudge_dispatcher: Callable[[], Awaitable[None]],
    settings: BatchSettings,
) -> None:
    threads = CapacityLimiter(_STILLS_AT_ONCE)

    @routes.put("/stills", openapi_extra=_STILL_BODY)
    async def put_still(request: Request, farm: OwnersFarm) -> dict[str, Any]:
        """Hand in a picture: the bytes of a file, as they are. Rows name it by the SHA-256 that is answered.

        Handing the same picture in again is harmless. One that cannot be used is a 400 that says why and what to do.
        """
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_STILL_BYTES:
                raise BadInputError("image", f"more than {format_bytes(MAX_STILL_BYTES)}", "Send a smaller picture.")
        return {"object": "still", "sha256": await run_sync(farm.put_still, bytes(data), limiter=threads)}

    add_submission(routes, nudge_dispatcher, settings)


def _add_views(routes: APIRouter) -> None:
    @routes.get("/batches")
    def list_batches(
        farm: OwnersFarm, limit: Annotated[int, Query(ge=1, le=100)] = 20, everything: bool = False
    ) -> dict[str, Any]:
        """The newest batches first; with `everything` also runs that a later one of the same source replaced."""
        found = farm.batch_store.batches(farm.owner, limit + 1, everything=everything)
        page = [batch_view(batch) for batch in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}

    @routes.get("/batches/{batch_id}")
    def get_batch(batch_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """One batch: its status, and how many of its rows are in each state."""
        return batch_view(farm.batch(batch_id))

    @routes.get("/batches/{batch_id}/jobs")
    def get_jobs(
        batch_id: str,
        farm: OwnersFarm,
        state: JobState | None = None,
        after: Annotated[int, Query(ge=0)] = 0,
        name: str | None = None,
        review: bool = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """A page of a batch's rows in their order: `after` is the `number` of the last row of the page before.

        With `review` only those that somebody has to look at: drafts, and clips of rows that have several.
        """
        after, store = min(after, MAX_ROW_NUMBER), farm.batch_store
        if review:
            found = store.in_review(farm.owner, batch_id, after_number=after, limit=limit + 1)
        else:
            found = store.jobs(farm.owner, batch_id, state=state, name=name, after_number=after, limit=limit + 1)
        page = [job_view(job) for job in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}


def _add_commands(routes: APIRouter, nudge_dispatcher: Callable[[], Awaitable[None]]) -> None:
    @routes.post("/batches/{batch_id}/{verb}")
    async def command_batch(
        batch_id: str, verb: Verb, farm: OwnersFarm, body: Annotated[BatchCommand | None, Body()] = None
    ) -> dict[str, Any]:
        """Command a batch: `pause`, `resume`, `cancel`, `retry`, `prioritize`, `hold`, `approve`, `reject`, `reroll`.

        The last three go to every draft that waits for a review; of several clips of one row none is approved so.
        Answers with the batch; rows that cannot obey are left as they are. The body may be left out, except for the
        `priority` of `prioritize`.
        """
        command = body or BatchCommand()
        batch = await run_in_threadpool(
            farm.command_batch,
            batch_id,
            verb,
            priority=priority_of(verb, command.priority),
            cancelled=command.cancelled,
            limits=command.limits(),
        )
        await nudge_dispatcher()
        return batch_view(batch)

    @routes.delete("/batches/{batch_id}")
    def delete_batch(batch_id: str, farm: OwnersFarm, dry_run: bool = False) -> dict[str, Any]:
        """Remove a batch that has ended, its rows, and files that no other batch shares; `dry_run` only counts them."""
        return deletion_view(farm.delete_batch(batch_id, dry_run=dry_run))


def _add_events(routes: APIRouter, farm: Farm) -> None:
    threads = CapacityLimiter(STREAM_THREADS)
    looks = SharedLooks(farm, threads)

    @routes.get("/batches/{batch_id}" + EVENTS)
    async def events(
        batch_id: str,
        farm: OwnersFarm,
        since: Annotated[int | None, Query(ge=0)] = None,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> StreamingResponse:
        """Changes of a batch's rows as server-sent events, until the batch has ended.

        `since` (UTC epoch seconds) or `Last-Event-ID` go on where an earlier stream broke off.
        """
        # Before the answer begins: a stream cannot become a 404.
        await run_sync(farm.batch, batch_id, limiter=threads)
        begin = last_event_id if last_event_id is not None else since
        # Later than any time that a store can hold is never.
        begin = begin if begin is None else min(begin, 2**62)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            follow(farm, batch_id, begin, threads=threads, looks=looks), media_type="text/event-stream", headers=headers
        )
