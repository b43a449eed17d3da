"""How much of the gateway one client may have: bodies that come too slowly, and too many of anything at once, end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pipeline.problems import Problem
from serve.gateway.errors import error_body
from serve.gateway.events import EVENTS
from serve.gateway.guard import AsgiApp, Message, Receive, Send

#: Requests that Serve lets into a gateway at once: more than all of `RequestLimits` together, for what waits at Serve's
#: bound waits for streams and uploads to end, and then not even `/healthz` is answered.
GATEWAY_REQUESTS = 1200
#: A client that was told to wait comes back after so many seconds.
RETRY_S = 2
#: Answered whatever else is going on.
_ALWAYS = frozenset({"/healthz"})


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many requests of one kind there may be at once."""

    total: int
    per_client: int


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The limits of one gateway. All kinds together stay below `GATEWAY_REQUESTS`."""

    #: Event streams: each takes a few queries a second.
    streams: Share = Share(total=192, per_client=64)
    #: Requests whose body has not come yet. Where there are too many, the one that was silent longest gives way.
    bodies: Share = Share(total=192, per_client=64)
    #: All others.
    answers: Share = Share(total=512, per_client=384)
    #: A body may be silent for so many seconds.
    silent_s: float = 20
    #: And has to bring so many bytes a second, once `slow_s` seconds have gone by.
    bytes_per_s: float = 1024
    slow_s: float = 20
    #: One that was silent for so many seconds gives way to others.
    give_way_s: float = 1


class SlowBodyError(HTTPException):
    """A request's body came too slowly, or gave way to another's; FastAPI lets this kind through unchanged."""

    def __init__(self, received: int, seconds: float) -> None:
        self.problem = Problem(
            field="body",
            message=f"only {received} bytes of it came in {seconds:.0f} s",
            remedy="Send the request again, on a better line or in smaller parts.",
        )
        super().__init__(408, str(self.problem), headers={"Connection": "close"})


@dataclass(eq=False)
class _Body:
    """A request body on its way."""

    began_at: float
    heard_at: float
    received: int = 0
    #: Ends the wait for the next bytes when it is moved to now.
    patience: asyncio.Timeout | None = None

    def deadline(self, limits: RequestLimits) -> float:
        slow = self.began_at + limits.slow_s + self.received / limits.bytes_per_s
        return min(self.heard_at + limits.silent_s, slow)


@dataclass
class _Pool:
    """Requests of one kind that are being served."""

    share: Share
    by_client: Counter[str] = field(default_factory=Counter)

    def refusal(self, client: str) -> int | None:
        """Status of the answer where no more of them are served; None where one more is."""
        if self.by_client[client] >= self.share.per_client:
            return 429
        return 503 if self.by_client.total() >= self.share.total else None

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        self.by_client[client] += 1
        try:
            yield
        finally:
            self.by_client[client] -= 1
            if not self.by_client[client]:
                del self.by_client[client]


class Limiter:
    """ASGI middleware that holds every client to `RequestLimits`; `/healthz` is always answered.

    A client is an address: behind a proxy all of its clients are one. What is too much is refused at once (429 for one
    client's, 503 for everybody's), with `Retry-After`; slow bodies end in a 408.
    """

    def __init__(self, app: AsgiApp, limits: RequestLimits | None = None) -> None:
        self._app = app
        self._limits = limits or RequestLimits()
        self._streams = _Pool(self._limits.streams)
        self._bodies = _Pool(self._limits.bodies)
        self._answers = _Pool(self._limits.answers)
        #: Bodies on their way, by client.
        self._coming: dict[str, set[_Body]] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
            return
        client = str((scope.get("client") or ("",))[0])
        if _has_body(Headers(scope=scope)):
            await self._with_body(client, scope, receive, send)
            return
        is_stream = scope["method"] == "GET" and scope["path"].endswith(EVENTS)
        await self._within(self._streams if is_stream else self._answers, client, scope, receive, send)

    async def _within(
        self, pool: _Pool, client: str, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        if status := pool.refusal(client):
            what = "event streams" if pool is self._streams else "requests"
            await _refuse(status, what, pool.share, scope, receive, send)
            return
        with pool.taken(client):
            await self._app(scope, receive, send)

    async def _with_body(self, client: str, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        coming = self._coming.setdefault(client, set())
        status = self._bodies.refusal(client)
        if status and not self._make_room(coming if status == 429 else None):
            await _refuse(status, "uploads", self._bodies.share, scope, receive, send)
            return
        now = asyncio.get_running_loop().time()
        body = _Body(began_at=now, heard_at=now)
        place = self._bodies.taken(client)
        place.__enter__()
        coming.add(body)

        def come() -> None:
            # Its place is free once the body has come, or will not.
            if body in coming:
                coming.remove(body)
                place.__exit__(None, None, None)
                if not coming and self._coming.get(client) is coming:
                    del self._coming[client]

        async def receive_in_time() -> Message:
            if body not in coming:
                return await receive()
            message = await self._next(body, receive)
            if message["type"] != "http.request" or not message.get("more_body", False):
                come()
            return message

        try:
            await self._within(self._answers, client, scope, receive_in_time, send)
        finally:
            come()

    async def _next(self, body: _Body, receive: Receive) -> Message:
        """The body's next message. Raises `SlowBodyError`."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(body.deadline(self._limits)) as body.patience:
                message = await receive()
        except TimeoutError:
            raise SlowBodyError(body.received, clock() - body.began_at) from None
        finally:
            body.patience = None
        body.heard_at = clock()
        body.received += len(message.get("body", b""))
        return message

    def _make_room(self, coming: set[_Body] | None) -> bool:
        """End the body that was silent longest, of `coming` or of all; False where every one gets on."""
        now = asyncio.get_running_loop().time()
        bodies = coming if coming is not None else set().union(*self._coming.values())
        silent = [
            body
            for body in bodies
            if body.patience and not body.patience.expired() and now - body.heard_at >= self._limits.give_way_s
        ]
        if not silent:
            return False
        longest = min(silent, key=lambda body: body.heard_at)
        assert longest.patience is not None
        longest.patience.reschedule(now)
        # It is asked to go once.
        longest.patience = None
        return True


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _refuse(
    status: int, what: str, share: Share, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    whose = f"{share.per_client} {what} of this client" if status == 429 else f"{share.total} {what}"
    problem = Problem(
        field="request",
        message=f"{whose} are being served already",
        remedy=f"Let some of them end, and try again in {RETRY_S} s.",
    )
    headers = {"Retry-After": str(RETRY_S), "Connection": "close"}
    body = error_body(status, str(problem), "too_many_requests", None, problem)
    await JSONResponse(body, status_code=status, headers=headers)(scope, receive, send)
