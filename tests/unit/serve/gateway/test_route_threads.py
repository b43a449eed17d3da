"""Functions of routes: run beside the loop, with their request's context, and refused as any other."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.gateway.door import CheckedRoute

_told: ContextVar[str] = ContextVar("_told", default="nothing")


class _Tells:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _told.set("of the request")
        await self._app(scope, receive, send)


def test_a_function_of_a_route_runs_in_a_thread_with_its_requests_context() -> None:
    routes = APIRouter(route_class=CheckedRoute)

    @routes.get("/sync/{number}")
    def of_thread(number: int, times: int = 2) -> dict[str, object]:
        """Told by its parameters."""
        return {"found": number * times, "thread": threading.current_thread().name, "told": _told.get()}

    @routes.get("/loop")
    async def of_loop() -> dict[str, object]:
        return {"thread": threading.current_thread().name}

    @routes.get("/refused")
    def refused() -> None:
        raise HTTPException(418, "no")

    app = FastAPI()
    app.include_router(routes)
    app.add_middleware(_Tells)
    with TestClient(app) as http:
        found = http.get("/sync/21").json()
        assert (found["found"], found["told"]) == (42, "of the request")
        assert found["thread"].startswith("route_")
        assert not http.get("/loop").json()["thread"].startswith("route_")
        assert http.get("/refused").status_code == 418
        assert http.get("/sync/many").status_code == 422
        described = http.get("/openapi.json").json()["paths"]["/sync/{number}"]["get"]
        assert [one["name"] for one in described["parameters"]] == ["number", "times"]
        assert described["description"] == "Told by its parameters."
