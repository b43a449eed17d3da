"""The gate: every request shows a key or a session, which has the scope of the route; and sees one owner's work."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Annotated, Any
from urllib.parse import unquote

import sqlalchemy.exc
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

from cluster.access.keys import check_owner
from cluster.access.scopes import Scope
from cluster.farm import Farm
from cluster.store.lookup import owner_of
from pipeline.problems import BadInputError, Problem
from serve.gateway.access.callers import Caller, CallerLookup, Credential, RefusedCredential
from serve.gateway.access.rates import RequestRates
from serve.gateway.access.scopes import is_open, scope_of
from serve.gateway.errors import ERRORS, NO_SUCH_ROUTE, QUOTA_EXCEEDED, answer_of, error_body
from serve.gateway.guard import AsgiApp, Message, Receive, Send

#: Cookies of a session: the first over https, where no other host of the domain can set it.
SECURE_COOKIE, PLAIN_COOKIE = "__Host-clipmill_session", "clipmill_session"
#: Header by which an operator acts for another owner.
OWNER_HEADER = "Clipmill-Owner"
#: Cookie by which an administrator's browser does so, for the pages and what their scripts ask.
OWNER_COOKIE = "clipmill_owner"
#: Where in a request's scope the gate leaves the farm as its owner sees it, and who asks.
_FARM, _CALLER = "clipmill.farm", "clipmill.caller"
#: Parameters of paths that name a batch or a job, whose owner an operator acts for.
_NAMED = ("batch_id", "job_id", "video_id")

_MAKE_ONE = "Make one on the farm's machine: `clipmill keys create`"
_SHOW_ONE = "Send `Authorization: Bearer clipmill_…`; whoever runs the farm makes keys with `clipmill keys create`."
_NO_ROUTE = Problem(
    field="path", message="there is no such route", remedy="GET /docs lists the routes there are, with their methods."
)
_STORE = next(kind for kind in ERRORS if kind.raised is sqlalchemy.exc.OperationalError)


async def farm_of_request(request: Request) -> Farm:
    """The farm as the owner of this request sees it."""
    found: Farm = request.scope[_FARM]
    return found


async def caller_of_request(request: Request) -> Caller:
    """Who sent this request."""
    found: Caller = request.scope[_CALLER]
    return found


#: Makes the answer for a person of a status, the error's body, and the path and query that were asked for.
RefusalPage = Callable[[int, dict[str, Any], str], Response]
#: Parameters of routes.
OwnersFarm = Annotated[Farm, Depends(farm_of_request)]
WhoAsks = Annotated[Caller, Depends(caller_of_request)]


@dataclass(frozen=True, kw_only=True)
class AccessTerms:
    """Whom a gateway asks for keys."""

    #: None: nobody is asked for a key.
    lookup: CallerLookup | None = None
    #: Whether keys are needed although none was ever made. Else they are from the first key on.
    required: bool = False


class _Refused(Exception):  # noqa: N818 - never leaves the gate
    """A request is not let in."""

    def __init__(self, status: int, code: str, problem: Problem, headers: dict[str, str]) -> None:
        super().__init__(str(problem))
        self.status, self.code, self.problem, self.headers = status, code, problem, headers

    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self.problem), self.code, self.problem.field, self.problem)

    def answer(self) -> JSONResponse:
        # What is left of the body is not read.
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers | {"Connection": "close"})


class _Withdrawn(Exception):  # noqa: N818 - never leaves the gate
    """The key of a long answer opens nothing any more."""


class AccessGate:
    """ASGI middleware: 401 without a key, 403 where the key may not do this, 429 where its owner asks too often.

    A request that is let in has the farm of its owner (`OwnersFarm`) and its caller (`WhoAsks`). A long answer, such as
    a stream of events, ends within seconds when its key is revoked.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        farm: Farm,
        routes: Sequence[BaseRoute],
        terms: AccessTerms | None = None,
        rates: RequestRates | None = None,
        for_people: RefusalPage | None = None,
    ) -> None:
        """`for_people` answers, in place of JSON, a person whose browser asks for a page."""
        self._for_people = for_people
        self._app, self._farm, self._routes = app, farm, routes
        self._terms = terms or AccessTerms()
        self._rates = rates or RequestRates()
        self._everybody = Caller(owner=farm.owner, scopes=frozenset(Scope))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller, credential = await self._admit(scope)
        except _Refused as refused:
            answer: Response = refused.answer()
            if self._for_people is not None and _is_person(scope):
                answer = self._for_people(refused.status, refused.body(), _target_of(scope))
                answer.headers.update(refused.headers)
            await answer(scope, receive, send)
            return
        except sqlalchemy.exc.SQLAlchemyError as error:
            await JSONResponse(_store_answer(error), status_code=_STORE.status)(scope, receive, send)
            return
        scope[_CALLER], scope[_FARM] = caller, self._farm.of(caller.owner)
        if credential is None:
            await self._app(scope, receive, send)
        else:
            await self._while_it_opens(credential, scope, receive, send)

    async def _admit(self, scope: MutableMapping[str, Any]) -> tuple[Caller, Credential | None]:
        """Who asks, and with what. Raises `_Refused`."""
        terms, headers = self._terms, Headers(scope=scope)
        if is_open(scope["method"], scope["path"]):
            # Before the store is asked anything: it may be what is not well.
            return Caller(owner=self._farm.owner, scopes=frozenset()), None
        if terms.lookup is None or not (terms.required or await terms.lookup.needs_key()):
            owner = _other_owner(headers, self._everybody) or _chosen_owner(headers)
            return self._everybody if owner is None else self._everybody.acting_for(owner), None
        credential = credential_of(headers)
        if credential is None:
            raise await self._keyless(terms.lookup)
        found = await terms.lookup.find(credential)
        if isinstance(found, RefusedCredential):
            raise _unknown(found.message)
        parameters = self._check_scope(scope, found)
        self._check_rate(found)
        owner = _other_owner(headers, found)
        if owner is None and found.operates:
            owner = await self._owner_of_named(parameters)
        if owner is None and Scope.ADMIN in found.scopes:
            owner = _chosen_owner(headers)
        return (found if owner is None else found.acting_for(owner)), credential

    async def _keyless(self, lookup: CallerLookup) -> _Refused:
        if not await lookup.needs_key():
            problem = Problem(
                field="Authorization",
                message="this farm has no keys yet, and answers nobody before it has one",
                remedy=f"{_MAKE_ONE}; it is shown once. docs/keys.md says how on a cluster.",
            )
            return _Refused(401, "no_keys_yet", problem, {"WWW-Authenticate": 'Bearer realm="clipmill"'})
        problem = Problem(field="Authorization", message="this farm asks for a key", remedy=_SHOW_ONE)
        return _Refused(401, "no_key", problem, {"WWW-Authenticate": 'Bearer realm="clipmill"'})

    def _check_scope(self, scope: MutableMapping[str, Any], caller: Caller) -> dict[str, Any]:
        """The parameters in the path of a route that the caller may ask; {} where it has no such method."""
        other_method = False
        for route in self._routes:
            match, child = route.matches(scope)
            other_method |= match is Match.PARTIAL
            if match is Match.FULL:
                try:
                    needed = scope_of(str(scope["method"]), getattr(route, "path", ""))
                except KeyError:
                    raise _closed() from None
                if needed is not None and needed not in caller.scopes:
                    raise _too_small(needed, caller)
                return dict(child.get("path_params", {}))
        if not other_method:
            # Not left to the routes: one that the gate was not told of is closed.
            raise _Refused(404, NO_SUCH_ROUTE, _NO_ROUTE, {})
        return {}

    def _check_rate(self, caller: Caller) -> None:
        most = caller.quota.requests_minute
        if most is None or (wait_s := self._rates.take(caller.owner, most)) is None:
            return
        problem = Problem(
            field="requests_minute",
            message=f"{caller.owner} may send {most} requests a minute, and has",
            remedy=f"Come back in {wait_s} s, or ask less often: events of a batch need no polling.",
        )
        raise _Refused(429, QUOTA_EXCEEDED, problem, {"Retry-After": str(wait_s)})

    async def _owner_of_named(self, parameters: dict[str, Any]) -> str | None:
        """The owner of the batch or job that an operator names; None where the path names none, or there is none."""
        name = next((str(parameters[one]) for one in _NAMED if one in parameters), None)
        return None if name is None else await run_sync(owner_of, self._farm.batch_store.database, name)

    async def _while_it_opens(
        self, credential: Credential, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Answer, and look now and then whether the credential still opens anything."""
        lookup = self._terms.lookup
        assert lookup is not None
        looked_at, began = lookup.clock(), False

        async def send_while_open(message: Message) -> None:
            nonlocal looked_at, began
            if lookup.clock() - looked_at >= lookup.kept_s:
                looked_at = lookup.clock()
                found: Caller | RefusedCredential | None = None
                # A store that is away for a moment breaks off nobody's download.
                with suppress(sqlalchemy.exc.SQLAlchemyError):
                    found = await lookup.find(credential)
                if isinstance(found, RefusedCredential):
                    raise _Withdrawn(found.message)
            if message["type"] == "http.response.start":
                began = True
                # No cache that several people share keeps one owner's answers.
                MutableHeaders(raw=message.setdefault("headers", [])).setdefault("Cache-Control", "private")
            await send(message)

        try:
            await self._app(scope, receive, send_while_open)
        except _Withdrawn as error:
            if not began:
                await _unknown(str(error)).answer()(scope, receive, send)
                return
            # A stream of events is whole at any event. What has a length ends too early, which a client notices.
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_person(scope: MutableMapping[str, Any]) -> bool:
    """Whether a browser opens a page; a script of a page, htmx among them, is answered as programs are."""
    headers = Headers(scope=scope)
    wants_page = "text/html" in headers.get("accept", "") and "hx-request" not in headers
    return scope["method"] == "GET" and wants_page and "authorization" not in headers


def _target_of(scope: MutableMapping[str, Any]) -> str:
    """Path and query of a request, as they came."""
    path = bytes(scope.get("raw_path") or str(scope["path"]).encode()).decode("latin-1")
    query = bytes(scope.get("query_string") or b"").decode("latin-1")
    return f"{path}?{query}" if query else path


def credential_of(headers: Headers) -> Credential | None:
    """The key or session that a request shows; None where it shows none. A header goes before a cookie."""
    given = headers.getlist("authorization")
    if given:
        kind, _, text = given[0].partition(" ")
        # Anything else is a key that opens nothing.
        return Credential(secret=text.strip() if kind.lower() == "bearer" and len(given) == 1 else "")
    try:
        cookies = SimpleCookie("; ".join(headers.getlist("cookie")))
    except CookieError:
        return None
    found = cookies.get(SECURE_COOKIE) or cookies.get(PLAIN_COOKIE)
    return None if found is None else Credential(secret=found.value, is_session=True)


def _other_owner(headers: Headers, caller: Caller) -> str | None:
    """The owner that a request is to be for by its own word; None where it says nothing. Raises `_Refused`."""
    given = headers.getlist(OWNER_HEADER.lower())
    if not given:
        return None
    try:
        owner = check_owner(given[0])
    except BadInputError as error:
        raise _Refused(400, "bad_input", error.problem, {}) from error
    if owner != caller.owner and not caller.operates:
        problem = Problem(
            field=OWNER_HEADER,
            message=f"this key is {caller.owner}'s, and does not act for {owner}",
            remedy="Leave the header out, or use a key with the scope operate.",
        )
        raise _Refused(403, "wrong_owner", problem, {})
    return owner


def _chosen_owner(headers: Headers) -> str | None:
    """The owner that was chosen on a page; None where none was, or the cookie holds something else."""
    try:
        found = SimpleCookie("; ".join(headers.getlist("cookie"))).get(OWNER_COOKIE)
        return None if found is None else check_owner(unquote(found.value))
    except (CookieError, BadInputError):
        return None


def _unknown(message: str) -> _Refused:
    problem = Problem(field="Authorization", message=message, remedy=_SHOW_ONE)
    marks = {"WWW-Authenticate": 'Bearer realm="clipmill", error="invalid_token"'}
    return _Refused(401, "invalid_key", problem, marks)


def _closed() -> _Refused:
    problem = Problem(field="path", message="no key opens this route", remedy="GET /docs lists the routes.")
    return _Refused(403, "missing_scope", problem, {})


def _too_small(needed: Scope, caller: Caller) -> _Refused:
    has = ", ".join(sorted(scope.value for scope in caller.scopes)) or "none"
    problem = Problem(
        field="Authorization",
        message=f"this asks for the scope {needed.value}, and the key has {has}",
        remedy=f"Use a key with it: `clipmill keys create --scope {needed.value}`.",
    )
    marks = {"WWW-Authenticate": f'Bearer realm="clipmill", error="insufficient_scope", scope="{needed.value}"'}
    return _Refused(403, "missing_scope", problem, marks)


def _store_answer(error: sqlalchemy.exc.SQLAlchemyError) -> dict[str, Any]:
    if isinstance(error, sqlalchemy.exc.OperationalError):
        return answer_of(_STORE, error)
    return error_body(_STORE.status, "the store cannot be used", _STORE.code)
