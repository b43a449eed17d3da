"""Routes of stills and batches: submission, views, commands, live events."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Self

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field, model_validator

from cluster.catalog.few_step import FewStep
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.resolve import Defaults, RowDefaults
from cluster.farm import Farm
from cluster.jobs.model import Batch, JobState
from cluster.jobs.transitions import Verb
from cluster.results.rows import results_of
from cluster.storage import MAX_STILL_BYTES
from pipeline.problems import BadInputError
from pipeline.units import format_bytes
from serve.gateway.door import CheckedRoute
from serve.gateway.events import EVENTS, STREAM_THREADS, SharedLooks, follow
from serve.gateway.requests import MAX_ROW_NUMBER, BatchCommand, TermFields, filled_rows, priority_of
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
#: Rows that cannot be rendered, in the answer to whoever handed them in.
_REFUSED_SHOWN = 20


class BatchDefaults(RowDefaults):
    """What a new batch asks of rows that say nothing themselves."""

    model: str | None = None
    """A family's name; None: the farm's default."""


class NewBatch(TermFields):
    """Body of `POST /v1/batches`. Stills are handed in before, by `PUT /v1/stills`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: str = Field(min_length=1, max_length=500)
    """For people, such as the manifest's file name."""
    source: str = Field(default="", max_length=4000)
    """Where the rows come from; a later batch of the same source takes its place in lists."""
    rows: list[IncomingRow] = Field(min_length=1, max_length=100_000)
    """One for each clip: `{"still": …, "name": …, "prompt": …}` with any other column, or as an `IncomingRow`."""
    defaults: BatchDefaults = BatchDefaults()
    """What rows get that say nothing themselves."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        rows = values.get("rows") if isinstance(values, dict) else None
        return values | {"rows": filled_rows(rows)} if isinstance(rows, list) else values

    @model_validator(mode="after")
    def _unique(self) -> Self:
        positions = Counter(row.position for row in self.rows).most_common(1)
        if positions[0][1] > 1:
            raise ValueError(f"position {positions[0][0]} is given to {positions[0][1]} rows: number them 1, 2, 3, …")
        names = Counter(row.name for row in self.rows if row.row is not None and not row.problems).most_common(1)
        if names and names[0][1] > 1:
            raise ValueError(f"{names[0][0]!r} names {names[0][1]} rows: a name is the file name of a row's results")
        return self


def batch_routes(
    farm: Farm,
    nudge_dispatcher: Callable[[], Awaitable[None]],
    default_model: str,
    few_step: Mapping[str, FewStep],
) -> APIRouter:
    """The routes of stills and batches; `nudge_dispatcher` is called after every change.

    `default_model` is for batches that name none, `few_step` says what tier `fast` means, by family.
    """
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute)
    _add_submission(routes, farm, nudge_dispatcher, default_model, few_step)
    _add_views(routes, farm)
    _add_results(routes, farm)
    _add_commands(routes, farm, nudge_dispatcher)
    _add_events(routes, farm)
    return routes


def _add_submission(
    routes: APIRouter,
    farm: Farm,
    nudge_dispatcher: Callable[[], Awaitable[None]],
    default_model: str,
    few_step: Mapping[str, FewStep],
) -> None:
    threads = CapacityLimiter(_STILLS_AT_ONCE)

    @routes.put("/stills", openapi_extra=_STILL_BODY)
    async def put_still(request: Request) -> dict[str, Any]:
        """Hand in a picture: the bytes of a file, as they are. Rows name it by the SHA-256 that is answered.

        Handing the same picture in again is harmless. One that cannot be used is a 400 that says why and what to do.
        """
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_STILL_BYTES:
                raise BadInputError("image", f"more than {format_bytes(MAX_STILL_BYTES)}", "Send a smaller picture.")
        return {"object": "still", "sha256": await run_sync(farm.put_still, bytes(data), limiter=threads)}

    @routes.post("/batches", status_code=202)
    async def create_batch(
        body: NewBatch,
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> dict[str, Any]:
        """Hand in a batch of rows, each of which becomes a clip. Answered before anything is rendered.

        Rows that cannot be rendered are kept as failed, and the first of them told as `refused`. The same
        `Idempotency-Key` and body again answer with the batch that is there; with another body they are a 409.
        """
        given = body.defaults.model_dump()
        given |= {"model": given["model"] or default_model, "few_step": few_step}
        fingerprint = hashlib.sha256(await request.body()).hexdigest()
        batch = await run_in_threadpool(
            farm.submit,
            body.rows,
            Defaults(**given),
            name=body.name,
            source=body.source,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            terms=body.terms(),
        )
        await nudge_dispatcher()
        refused = await run_in_threadpool(_refused, farm, batch)
        return batch_view(batch) | ({"refused": refused} if refused else {})


def _refused(farm: Farm, batch: Batch) -> list[dict[str, Any]]:
    """The first rows that cannot be rendered, and why: whoever handed them in need not ask for them."""
    if not batch.counts[JobState.FAILED]:
        return []
    found = farm.batch_store.jobs(farm.owner, batch.id, state=JobState.FAILED, limit=_REFUSED_SHOWN)
    return [
        {"name": job.name, "number": job.number, "problems": [problem.model_dump() for problem in job.problems]}
        for job in found
    ]


def _add_views(routes: APIRouter, farm: Farm) -> None:
    @routes.get("/batches")
    def list_batches(limit: Annotated[int, Query(ge=1, le=100)] = 20, everything: bool = False) -> dict[str, Any]:
        """The newest batches first; with `everything` also runs that a later one of the same source replaced."""
        found = farm.batch_store.batches(farm.owner, limit + 1, everything=everything)
        page = [batch_view(batch) for batch in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}

    @routes.get("/batches/{batch_id}")
    def get_batch(batch_id: str) -> dict[str, Any]:
        """One batch: its status, and how many of its rows are in each state."""
        return batch_view(farm.batch(batch_id))

    @routes.get("/batches/{batch_id}/jobs")
    def get_jobs(
        batch_id: str,
        state: JobState | None = None,
        after: Annotated[int, Query(ge=0)] = 0,
        name: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """A page of a batch's rows in their order: `after` is the `number` of the last row of the page before."""
        after = min(after, MAX_ROW_NUMBER)
        found = farm.batch_store.jobs(farm.owner, batch_id, state=state, name=name, after_number=after, limit=limit + 1)
        page = [job_view(job) for job in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}


def _add_results(routes: APIRouter, farm: Farm) -> None:
    @routes.get("/batches/{batch_id}/results")
    def get_results(
        batch_id: str,
        completed_since: Annotated[int | None, Query(ge=0)] = None,
        after: Annotated[int, Query(ge=-1)] = -1,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """A page of what the contact sheet shows of a batch's rows.

        `job` names the video whose content is the row's clip (`GET /v1/videos/{id}/content`). `completed_since`: only
        rows completed at or after that time, in UTC epoch seconds; `after`: the last row's number of the page before.
        """
        since = None if completed_since is None else min(completed_since, 2**62)
        return _results_page(farm, batch_id, since, min(after, MAX_ROW_NUMBER), limit)


def _results_page(farm: Farm, batch_id: str, completed_since: int | None, after: int, limit: int) -> dict[str, Any]:
    found = results_of(
        farm.batch_store, farm.owner, batch_id, completed_since=completed_since, after=after, limit=limit + 1
    )
    return {"object": "list", "data": [one.to_json() for one in found[:limit]], "has_more": len(found) > limit}


def _add_commands(routes: APIRouter, farm: Farm, nudge_dispatcher: Callable[[], Awaitable[None]]) -> None:
    @routes.post("/batches/{batch_id}/{verb}")
    async def command_batch(
        batch_id: str, verb: Verb, body: Annotated[BatchCommand | None, Body()] = None
    ) -> dict[str, Any]:
        """Command a batch: `pause`, `resume`, `cancel`, `retry`, `prioritize`, `hold`, `approve`.

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
    def delete_batch(batch_id: str, dry_run: bool = False) -> dict[str, Any]:
        """Remove a batch that has ended, its rows, and files that no other batch shares; `dry_run` only counts them."""
        return deletion_view(farm.delete_batch(batch_id, dry_run=dry_run))


def _add_events(routes: APIRouter, farm: Farm) -> None:
    threads = CapacityLimiter(STREAM_THREADS)
    looks = SharedLooks(farm, threads)

    @routes.get("/batches/{batch_id}" + EVENTS)
    async def events(
        batch_id: str,
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
