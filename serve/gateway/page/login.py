"""The page on which a person gives a key, and who the person is to the other pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from cluster.access.scopes import Scope
from serve.gateway.access.callers import Caller
from serve.gateway.access.scopes import LOGIN, SESSION
from serve.gateway.page.templating import page


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who looks at a page, and what they may do from it."""

    owner: str
    #: Whether a key was shown, so that there is a session to end.
    has_key: bool
    submits: bool
    operates: bool

    @classmethod
    def of(cls, caller: Caller) -> Viewer:
        """The viewer whose request came from `caller`."""
        return cls(
            owner=caller.owner,
            has_key=caller.key is not None,
            submits=Scope.SUBMIT in caller.scopes,
            operates=Scope.OPERATE in caller.scopes,
        )


def add_login(routes: APIRouter) -> None:
    """Add the page on which a person gives a key."""

    @routes.get(LOGIN)
    async def login(next: str = "/") -> Response:
        return page("login.html.j2", next=own_path(next), session=SESSION)


def refusal_page(status: int, body: dict[str, Any], target: str) -> Response:
    """What a person gets whose browser was not let in: where to give a key, or why theirs does not do."""
    if status == 401 and body["error"]["code"] != "no_keys_yet":
        return RedirectResponse(f"{LOGIN}?next={quote(target, safe='')}", 303, {"Cache-Control": "no-store"})
    return page("error.html.j2", status=status, status_code=status, **body)


def own_path(target: str) -> str:
    """A path of this gateway to go on to; what leads elsewhere becomes `/`."""
    # Browsers read a backslash as a slash, and pass over what is no letter.
    is_own = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_own else "/"
