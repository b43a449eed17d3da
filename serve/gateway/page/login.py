"""The page on which a person gives a key, and what a person gets who is not let in."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from serve.gateway.access.scopes import LOGIN, SESSION
from serve.gateway.page.templating import page


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
