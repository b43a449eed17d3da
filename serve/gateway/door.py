"""The door of the gateway: bodies too large, and text or numbers that no store can hold, are refused before a route.

PostgreSQL's text holds no NUL, UTF-8 no half of a character, JSON no infinity, and a column no integer of more than 64
bits. What got in all the same could never be read again, and the whole list around it with it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import unquote

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cluster.catalog.tables import unreadable
from cluster.storage import MAX_STILL_BYTES
from pipeline.problems import BadInputError, Problem
from pipeline.units import MIB, format_bytes
from serve.gateway.errors import error_body
from serve.gateway.guard import AsgiApp, Message, Receive, Send

#: Rows of a batch or a forecast.
MAX_ROWS_BYTES = 64 * MIB
#: The body of any other request.
MAX_BODY_BYTES = MIB
#: Bodies that a gateway holds at once, in bytes of all of them.
MAX_HELD_BYTES = 512 * MIB
#: Lists and objects within each other in a body.
MAX_DEPTH = 48
#: The largest column of a store.
_INT64 = 2**63

#: Where the page has rows checked, before they are handed in.
CHECK_PATH = "/new/check"

_LARGE = {("PUT", "/v1/stills"): MAX_STILL_BYTES, ("POST", "/v1/batches"): MAX_ROWS_BYTES} | {
    ("POST", path): MAX_ROWS_BYTES for path in ("/v1/forecast", CHECK_PATH)
}
#: A picture, and what a form has around it.
_LARGE |= {("POST", path): MAX_STILL_BYTES + MIB for path in ("/v1/videos", "/v1/videos/sync", "/v1/files")}
#: What has to be looked at closely: halves of characters, NUL, infinities, and numbers that are one or do not fit.
_SUSPECT = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)|\0|NaN|Infinity|[0-9]{19}|[eE]\+?[0-9]{3}")
_BRACKETS = re.compile(rb"[\[\]{}]")


class DoorError(HTTPException):
    """A request's body is refused; FastAPI lets this kind through unchanged, whatever else it catches."""

    def __init__(self, status: int, code: str, problem: Problem) -> None:
        self.code, self.problem = code, problem
        headers = {"Connection": "close"} if status in (413, 503) else None
        super().__init__(status, str(problem), headers=headers)

    def answer(self) -> JSONResponse:
        """What the client gets."""
        body = error_body(self.status_code, str(self.problem), self.code, self.problem.field, self.problem)
        return JSONResponse(body, status_code=self.status_code, headers=self.headers)


class Door:
    """ASGI middleware that counts bodies as they come, and refuses a NUL or half a character in path and headers."""

    def __init__(self, app: AsgiApp, *, held_bytes: int = MAX_HELD_BYTES) -> None:
        self._app, self._most = app, held_bytes
        self._held = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if fault := _fault_of(scope):
            body = error_body(400, str(fault), "bad_input", fault.field, fault)
            await JSONResponse(body, status_code=400)(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = _LARGE.get((scope["method"], scope["path"]), MAX_BODY_BYTES)
        if scope["path"] == "/v1/batches" and headers.get("content-type", "").lower().startswith("multipart/"):
            # A manifest with its pictures.
            limit = MAX_STILL_BYTES + MIB
        told = headers.get("content-length", "0")
        if told.isascii() and told.isdigit() and int(told[:19]) > limit:
            await _too_large(limit).answer()(scope, receive, send)
            return
        mine = 0

        async def receive_counted() -> Message:
            nonlocal mine
            message = await receive()
            came = len(message.get("body", b""))
            mine, self._held = mine + came, self._held + came
            if mine > limit:
                raise _too_large(limit)
            if self._held > self._most:
                what = f"this gateway holds {format_bytes(self._most)} of bodies already"
                raise DoorError(503, "too_large", Problem(field="body", message=what, remedy="Send it again later."))
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._held -= mine


#: Threads in which functions of routes run, beside those that streams and uploads have of their own.
ROUTE_THREADS = 40


class CheckedRoute(APIRoute):
    """A route whose JSON bodies hold nothing that a store could not. Others are answered with a 422.

    Functions that are no coroutines run in threads.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if iscoroutinefunction(endpoint) else _in_thread(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, given a request that checks what it reads."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_CheckedRequest(request.scope, request.receive))

        return handle


_threads = ThreadPoolExecutor(ROUTE_THREADS, thread_name_prefix="route")


def _in_thread(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    # Not anyio's way, which looks through all tasks of the loop at every call: with hundreds of streams open, that took
    # a sixth of what a poll costs.
    @wraps(function)
    async def run(*values: Any, **named: Any) -> Any:
        call = partial(copy_context().run, function, *values, **named)
        return await asyncio.get_running_loop().run_in_executor(_threads, call)

    return run


class _CheckedRequest(Request):
    async def json(self) -> Any:
        data = await self.body()
        try:
            return _read(data)
        except BadInputError as error:
            raise DoorError(422, "validation_error", error.problem) from error


def _read(data: bytes) -> Any:
    try:
        value = json.loads(data)
    except json.JSONDecodeError:
        # FastAPI says where.
        raise
    except (RecursionError, ValueError) as error:
        # Too deep for Python, no UTF-8, or a number of thousands of digits.
        what = f"it is not JSON that can be read ({type(error).__name__})"
        raise BadInputError("body", what, "Send flat JSON in UTF-8, with numbers of 64 bits.") from error
    if _SUSPECT.search(data) or _deeper(data):
        check_storable(value)
    return value


def check_storable(value: Any, where: str = "body", left: int = MAX_DEPTH) -> None:
    """Raise `BadInputError` for text, a number or a nesting in a JSON value that no store could hold."""
    if isinstance(value, str):
        if fault := unreadable(value):
            raise BadInputError(where, fault, "Send whole characters, and no NUL.")
    elif isinstance(value, dict | list):
        if not left:
            raise BadInputError(where, f"it is nested deeper than {MAX_DEPTH}", "Send it flatter.")
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(name, str):
                check_storable(name, where)
            check_storable(one, f"{where}.{name}"[:200], left - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadInputError(where, "it is not a finite number", "Send one that is, or leave it out.")
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise BadInputError(where, "it is an integer of more than 64 bits", "Send a smaller one.")


def _deeper(data: bytes) -> bool:
    """Whether brackets nest deeper than they may; those in texts count too, so that yes is only a suspicion."""
    depth = 0
    for found in _BRACKETS.finditer(data):
        depth += 1 if found[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _fault_of(scope: MutableMapping[str, Any]) -> Problem | None:
    said = {"path": str(scope["path"]), "query": unquote(bytes(scope.get("query_string", b"")).decode("latin-1"))}
    said |= {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    for name, text in said.items():
        if fault := unreadable(text):
            return Problem(field=name, message=fault, remedy="Leave it out.")
    return None


def _too_large(limit: int) -> DoorError:
    message = f"it has more than {format_bytes(limit)}"
    return DoorError(413, "too_large", Problem(field="body", message=message, remedy="Send it in smaller parts."))
