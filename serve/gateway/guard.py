"""Who may ask: requests for another host name, and those that a page of another origin sends, are refused.

The API has no log-in. A browser on the same machine or network reaches it, so every page that somebody visits would
too: by a name of its own that points to the gateway (DNS rebinding), or by forms and scripts across origins (CSRF).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from pipeline.problems import Problem
from serve.gateway.errors import error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Names that a browser resolves to its own machine, whatever a name server says.
_LOOPBACK_NAMES = frozenset({"localhost"})
#: Not `urllib.parse`: it takes `[::1].evil.example` for `::1`.
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
#: What every answer tells a browser: no frame around it, no guessing at its kind, no use by pages of other origins.
_ANSWER_HEADERS = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class _Refusal:
    """The answer to a request that is not obeyed."""

    status: int
    code: str
    problem: Problem


def host_allowed(name: str, allowed: Collection[str]) -> bool:
    """Whether a gateway answers to this host name (without port): any IP address, `localhost`, or one of `allowed`.

    An address is not a name that somebody else's name server could point here. `allowed` names hosts; `*.example.org`
    stands for all below `example.org`, and `*` for every name.
    """
    name = name.lower().removesuffix(".")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        pass
    else:
        return True
    if name in _LOOPBACK_NAMES:
        return True
    for pattern in map(str.lower, allowed):
        if name and (pattern == "*" or name == pattern or (pattern[:2] == "*." and name.endswith(pattern[1:]))):
            return True
    return False


class RequestGuard:
    """ASGI middleware that refuses requests of other hosts (421) and other origins (403), before a route is looked for.

    Programs send neither `Origin` nor `Sec-Fetch-Site` and are not concerned. Links to a page of the gateway work; a
    page of another origin can otherwise neither read nor write, nor frame an answer. WebSockets are refused: there are
    none.
    """

    def __init__(self, app: AsgiApp, allowed_hosts: Collection[str] = ()) -> None:
        self._app = app
        self._allowed = tuple(allowed_hosts)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _ANSWER_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(str(scope["method"]), Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send_marked)
            return
        problem = refusal.problem
        body = error_body(refusal.status, str(problem), refusal.code, problem.field, problem)
        # What is left of the body is not read.
        answer = JSONResponse(body, status_code=refusal.status, headers={"Connection": "close"})
        await answer(scope, receive, send_marked)

    def _refusal(self, method: str, headers: Headers) -> _Refusal | None:
        hosts = headers.getlist("host")
        host = _split(hosts[0]) if len(hosts) == 1 else None
        if host is None or not host_allowed(host[0], self._allowed):
            said = " and ".join(repr(name) for name in hosts) or "no host"
            problem = Problem(
                field="Host",
                message=f"this farm does not answer to {said}",
                remedy="Use its address, or name the host under allowed_hosts in ray_config.yaml.",
            )
            return _Refusal(421, "unknown_host", problem)
        origins = headers.getlist("origin")
        foreign = [origin for origin in origins if not _same_origin(origin, host)]
        if foreign:
            return _foreign(repr(foreign[0]))
        site = headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin") or _is_link(method, headers):
            return None
        return _foreign(f"a {site} page")


def _split(authority: str) -> tuple[str, int | None] | None:
    """Host name and port of what stands behind `//` in a URL; None where there is anything else."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    return found["host"].lower(), int(found["port"]) if found["port"] else None


def _same_origin(origin: str, host: tuple[str, int | None]) -> bool:
    scheme, _, rest = origin.partition("://")
    standard, found = _PORTS.get(scheme.lower()), _split(rest)
    if standard is None or found is None:
        return False
    return (found[0], found[1] or standard) == (host[0], host[1] or standard)


def _is_link(method: str, headers: Headers) -> bool:
    """Whether a browser opens the answer as a page of its own, which the page with the link cannot read."""
    fetched = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return method in ("GET", "HEAD") and fetched == ("navigate", "document")


def _foreign(who: str) -> _Refusal:
    problem = Problem(
        field="Origin",
        message=f"{who} asks, and this farm obeys no page of another origin",
        remedy="Use the command line, or a page that is served by this gateway's own address.",
    )
    return _Refusal(403, "foreign_origin", problem)
