"""Routes of the HTTP API. Errors are `{"error": {message, type, param, code}}`, as OpenAI's clients expect them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Self

import sqlalchemy.exc
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client import CollectorRegistry
from pydantic import ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from cluster.farm import Farm
from cluster.few_step import FewStep
from cluster.ingest import IncomingRow
from cluster.jobs import JobState
from cluster.resolve import Defaults, RowDefaults
from cluster.storage import StorageError
from cluster.store.desk import IdempotencyConflictError, NoSuchBatchError, NoSuchJobError
from cluster.store.lookup import AmbiguousIdError, NoSuchCardError
from cluster.verbs import RefusedError
from cluster.why import Rules
from pipeline.problems import BadInputError, Problem
from serve.gateway.forecast import forecast_routes
from serve.gateway.verbs import verb_routes
from serve.metrics import exposition
from serve.said import TermFields
from serve.views import batch_view, job_view

log = logging.getLogger("clipmill.gateway")

#: A still as uploaded: larger ones are refused before they are read whole.
MAX_STILL_BYTES = 200 * 2**20
#: The dispatcher looks by itself several times a second; an answer does not wait longer than this to tell it.
NUDGE_S = 1.0


class BatchDefaults(RowDefaults):
    """What holds for rows that are silent."""

    #: Default: the farm's.
    model: str | None = None


class NewBatch(TermFields):
    """Body of `POST /v1/batches`. Stills are handed in before, by `PUT /v1/stills`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=500)
    source: str = Field(default="", max_length=4000)
    rows: list[IncomingRow] = Field(min_length=1, max_length=100_000)
    defaults: BatchDefaults = BatchDefaults()

    @model_validator(mode="after")
    def _storable(self) -> Self:
        # PostgreSQL's text takes no NUL.
        if "\0" in self.name + self.source + self.comment + "".join(row.name for row in self.rows):
            raise ValueError("a NUL character in a name")
        return self

    @model_validator(mode="after")
    def _unique(self) -> Self:
        positions = Counter(row.position for row in self.rows).most_common(1)
        if positions[0][1] > 1:
            raise ValueError(f"position {positions[0][0]} is given to {positions[0][1]} rows: number them 1, 2, 3, …")
        names = Counter(row.name for row in self.rows if row.row is not None and not row.problems).most_common(1)
        if names and names[0][1] > 1:
            raise ValueError(f"{names[0][0]!r} names {names[0][1]} rows: a name is the file name of a row's results")
        return self


def create_api(
    farm: Farm,
    *,
    default_model: str,
    nudge: Callable[[], Awaitable[None]],
    registry: CollectorRegistry | None = None,
    few_step: Mapping[str, FewStep] | None = None,
    rules: Rules | None = None,
) -> FastAPI:
    """The ASGI application over `farm`; `nudge` tells the dispatcher that there is new work.

    `few_step` says what tier `fast` means, by family; `rules` are what the farm places jobs by. `/metrics` shows
    `registry`; without one there is no such route.
    """
    api = FastAPI(title="clipmill", docs_url="/docs", redoc_url=None)
    _explain_errors(api)

    async def tell_dispatcher() -> None:
        # The work is in the store: an answer that failed now would make the client hand it in again.
        try:
            await asyncio.wait_for(nudge(), NUDGE_S)
        except Exception as error:
            log.warning("the dispatcher was not told of new work, it will see it by itself: %r", error)

    @api.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @api.get("/healthz")
    def healthz() -> JSONResponse:
        try:
            cards = farm.desk.cards()
        except sqlalchemy.exc.SQLAlchemyError as error:
            return JSONResponse({"status": "store unreachable", "detail": str(error)}, status_code=503)
        return JSONResponse({"status": "ok", "cards": len(cards)})

    if registry is not None:

        @api.get("/metrics", include_in_schema=False)
        def metrics(accept: Annotated[str, Header()] = "") -> Response:
            content, content_type = exposition(registry, accept)
            return Response(content, headers={"Content-Type": content_type})

    @api.put("/v1/stills")
    async def put_still(request: Request) -> dict[str, Any]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_STILL_BYTES:
                raise BadInputError("image", f"more than {MAX_STILL_BYTES // 2**20} MiB", "Send a smaller picture.")
        return {"object": "still", "sha256": await run_in_threadpool(farm.put_still, bytes(data))}

    @api.post("/v1/batches", status_code=202)
    async def create_batch(
        body: NewBatch,
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> dict[str, Any]:
        given = body.defaults.model_dump()
        given |= {"model": given["model"] or default_model, "few_step": few_step or {}}
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
        await tell_dispatcher()
        return batch_view(batch)

    @api.get("/v1/batches")
    def list_batches(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        found = farm.desk.batches(farm.owner, limit)
        return {"object": "list", "data": [batch_view(batch) for batch in found]}

    @api.get("/v1/batches/{batch_id}")
    def get_batch(batch_id: str) -> dict[str, Any]:
        return batch_view(farm.batch(batch_id))

    @api.get("/v1/batches/{batch_id}/jobs")
    def get_jobs(
        batch_id: str,
        state: JobState | None = None,
        after: Annotated[int, Query(ge=0)] = 0,
        name: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        found = farm.desk.jobs(farm.owner, batch_id, state=state, name=name, after_number=after, limit=limit + 1)
        page = [job_view(job) for job in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}

    api.include_router(verb_routes(farm, tell_dispatcher, rules or Rules()))
    api.include_router(forecast_routes(farm, default_model, few_step or {}))
    return api


def _explain_errors(api: FastAPI) -> None:
    def answer(
        status: int, message: str, code: str, param: str | None = None, problem: Problem | None = None
    ) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
        if problem:
            error["clipmill"] = problem.model_dump()
        return JSONResponse({"error": error}, status_code=status)

    @api.exception_handler(BadInputError)
    async def bad_input(_request: Request, error: BadInputError) -> JSONResponse:
        return answer(400, str(error), "bad_input", error.problem.field, error.problem)

    @api.exception_handler(NoSuchBatchError)
    async def no_such(_request: Request, error: NoSuchBatchError) -> JSONResponse:
        return answer(404, str(error), "not_found", "batch_id")

    @api.exception_handler(NoSuchJobError)
    async def no_such_job(_request: Request, error: NoSuchJobError) -> JSONResponse:
        return answer(404, str(error), "not_found", "job_id")

    @api.exception_handler(NoSuchCardError)
    async def no_such_card(_request: Request, error: NoSuchCardError) -> JSONResponse:
        return answer(404, str(error), "not_found", "card")

    @api.exception_handler(AmbiguousIdError)
    async def ambiguous(_request: Request, error: AmbiguousIdError) -> JSONResponse:
        return answer(400, str(error), "ambiguous_id", "id")

    @api.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> JSONResponse:
        return answer(409, str(error), "refused", error.verb)

    @api.exception_handler(IdempotencyConflictError)
    async def conflict(_request: Request, error: IdempotencyConflictError) -> JSONResponse:
        return answer(422, str(error), "idempotency_conflict", "Idempotency-Key")

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        return answer(422, f"{param}: {first['msg']}", "validation_error", param)

    @api.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), "no_such_route" if error.status_code == 404 else "http")

    @api.exception_handler(sqlalchemy.exc.OperationalError)
    async def no_store(_request: Request, error: sqlalchemy.exc.OperationalError) -> JSONResponse:
        log.error("the store cannot be used: %s", error)
        return answer(503, f"the store cannot be used: {error.orig}", "store_unreachable")

    @api.exception_handler(StorageError)
    async def no_storage(_request: Request, error: StorageError) -> JSONResponse:
        log.error("%s", error)
        return answer(503, str(error), "storage", "storage", error.problem)
