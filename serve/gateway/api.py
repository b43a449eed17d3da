"""The HTTP API as one application: its routes, its errors, its health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Annotated

import sqlalchemy.exc
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from cluster.catalog.defaults import FewStep
from cluster.explain.reasons import Rules
from cluster.farm import Farm
from cluster.fleet.cards import card_faults, storage_fault
from cluster.remote.manifests import RemoteManifests
from cluster.remote.stills import RemoteStills
from serve.gateway.access.gate import AccessGate, AccessTerms
from serve.gateway.access.routes import access_routes
from serve.gateway.advice.routes import lint_routes
from serve.gateway.api_page import DOCS, api_page
from serve.gateway.batches.submission import BatchSettings
from serve.gateway.document.openapi import describe
from serve.gateway.door import CheckedRoute, Door, DoorError
from serve.gateway.errors import ERRORS, NO_SUCH_ROUTE, ErrorKind, answer_of, error_body
from serve.gateway.guard import RequestGuard
from serve.gateway.limits import Limiter, RequestLimits, SlowBodyError
from serve.gateway.metrics import exposition
from serve.gateway.openai.files import file_routes, model_routes
from serve.gateway.openai.videos import VideoSettings, video_routes
from serve.gateway.page.login import refusal_page
from serve.gateway.page.routes import page_routes
from serve.gateway.routes_batches import batch_routes
from serve.gateway.routes_cards import card_routes
from serve.gateway.routes_forecast import forecast_routes
from serve.gateway.routes_jobs import job_routes
from serve.gateway.webhooks.routes import webhook_routes

log = logging.getLogger("clipmill.gateway")

#: The dispatcher looks by itself several times a second; an answer does not wait longer than this for its nudge.
NUDGE_S = 1.0
#: Fields at fault that an answer names; more are counted.
_FAULTS_SHOWN = 10
#: What to do about a field at fault, by pydantic's name of the fault.
_REMEDIES = {
    "extra_forbidden": "Leave it out: there is no such field.",
    "missing": "Send it.",
    "json_invalid": "Send whole JSON.",
}
#: Threads that nothing but `/healthz` has.
HEALTH_THREADS = 2


def protect(api: FastAPI, *, allowed_hosts: Collection[str] = (), limits: RequestLimits | None = None) -> FastAPI:
    """The application as a gateway serves it: for its own names and pages only, and no client has all of it.

    Returns `api` itself. `allowed_hosts` are those of `serve.gateway.guard.host_allowed`.
    """
    # The last one is the first to be asked.
    api.add_middleware(Limiter, limits=limits)
    api.add_middleware(RequestGuard, allowed_hosts=allowed_hosts)
    return api


def create_api(
    farm: Farm,
    *,
    default_model: str,
    nudge: Callable[[], Awaitable[None]],
    registry: CollectorRegistry | None = None,
    few_step: Mapping[str, FewStep] | None = None,
    rules: Rules | None = None,
    keep_days: float | None = None,
    remote: RemoteStills | None = None,
    remote_manifests: RemoteManifests | None = None,
    access: AccessTerms | None = None,
) -> FastAPI:
    """The ASGI application over `farm`; `nudge` lets the dispatcher look for new work at once.

    `few_step` says what tier `fast` means, by family; `rules` are what the farm places jobs by, `keep_days` is
    for how long it keeps clips (None: for ever). `remote` reads pictures that requests name by URL, `remote_manifests`
    manifests; without it they are refused. `/metrics` shows `registry`; without one there is no such route.
    `access` says who is asked for keys (None: nobody); `farm.owner` owns what comes without one.
    """
    api = FastAPI(title="clipmill", docs_url=None, redoc_url=None)
    api.router.route_class = CheckedRoute
    api.add_middleware(Door)
    access = access or AccessTerms()
    _explain_errors(api)

    async def nudge_dispatcher() -> None:
        # The work is in the store: an answer that failed now would make the client hand it in again.
        try:
            await asyncio.wait_for(nudge(), NUDGE_S)
        except Exception as error:
            log.warning("the dispatcher was not told of new work, it will see it by itself: %r", error)

    _add_pages(api)
    _add_health(api, farm)
    if registry is not None:

        @api.get("/metrics", include_in_schema=False)
        def metrics(accept: Annotated[str, Header()] = "") -> Response:
            content, content_type = exposition(registry, accept)
            return Response(content, headers={"Content-Type": content_type})

    batches = BatchSettings(
        default_model=default_model, few_step=few_step or {}, remote=remote, remote_manifests=remote_manifests
    )
    videos = VideoSettings(default_model=default_model, few_step=few_step or {}, keep_days=keep_days, remote=remote)
    routers = (
        batch_routes(farm, nudge_dispatcher, batches),
        job_routes(nudge_dispatcher, rules or Rules()),
        card_routes(nudge_dispatcher),
        forecast_routes(default_model, few_step or {}),
        lint_routes(default_model, few_step or {}),
        video_routes(nudge_dispatcher, videos),
        file_routes(),
        model_routes(),
        webhook_routes(),
        access_routes(farm, access.lookup),
        page_routes(farm, rules or Rules(), batches),
    )
    # Those that the gate knows: to whoever shows a key there are no others.
    routes = [*api.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        api.include_router(router)
    # Before the door: nobody's body is counted who may not come in.
    api.add_middleware(AccessGate, farm=farm, routes=routes, terms=access, for_people=refusal_page)
    describe(api)
    return api


def _add_pages(api: FastAPI) -> None:
    @api.get(DOCS, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page(api))


def _add_health(api: FastAPI, farm: Farm) -> None:
    health_threads = CapacityLimiter(HEALTH_THREADS)

    @api.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether the farm can work: 503 where its store cannot be reached, else a `status` that says what keeps it."""
        try:
            cards = await run_sync(farm.batch_store.cards, limiter=health_threads)
        except sqlalchemy.exc.SQLAlchemyError as error:
            # The driver's words: the statement is nobody's business.
            detail = str(getattr(error, "orig", None) or type(error).__name__)
            return JSONResponse({"status": "store unreachable", "detail": detail}, status_code=503)
        if fault := storage_fault(cards):
            # The gateway itself is well: whoever restarts it for another status would gain nothing.
            return JSONResponse({"status": "storage unwritable", "detail": fault, "cards": len(cards)})
        faults = card_faults(cards)
        if cards and len(faults) == len({beat.card for beat in cards}):
            detail = "; ".join(f"{card}: {fault}" for card, fault in sorted(faults.items()))
            return JSONResponse({"status": "no usable card", "detail": detail, "cards": len(cards)})
        return JSONResponse({"status": "ok", "cards": len(cards)})


def _explain_errors(api: FastAPI) -> None:
    async def answer(kind: ErrorKind, _request: Request, error: Exception) -> JSONResponse:
        if kind.status >= 500:
            log.error("%s", error)
        return JSONResponse(answer_of(kind, error), kind.status, getattr(error, "headers", None))

    for kind in ERRORS:
        api.add_exception_handler(kind.raised, partial(answer, kind))

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        named = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults[:_FAULTS_SHOWN]]
        more = f"; and {len(faults) - len(named)} more" if len(faults) > len(named) else ""
        param = ".".join(map(str, faults[0]["loc"]))
        remedy = _REMEDIES.get(str(faults[0].get("type")), "Correct it.") + " GET /docs says what there is."
        body = error_body(422, "; ".join(named) + more, "validation_error", param, remedy=remedy)
        return JSONResponse(body, status_code=422)

    @api.exception_handler(SlowBodyError)
    async def slow(_request: Request, error: SlowBodyError) -> JSONResponse:
        body = error_body(error.status_code, str(error.detail), "slow_body", error.problem.field, error.problem)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @api.exception_handler(DoorError)
    async def at_the_door(_request: Request, error: DoorError) -> JSONResponse:
        return error.answer()

    @api.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        code = NO_SUCH_ROUTE if error.status_code == 404 else "http"
        remedy = "GET /docs lists the routes there are, with their methods."
        body = error_body(error.status_code, str(error.detail), code, remedy=remedy)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)
