"""Routes of keys, quotas and sessions of browsers."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from cluster.access.keys import AccessKey, check_owner
from cluster.access.quotas import OwnerQuota
from cluster.farm import Farm
from cluster.store.access.keys import KeyStore
from cluster.store.access.quotas import QuotaStore
from cluster.store.access.sessions import SessionStore
from pipeline.problems import Problem
from serve.gateway.access.bodies import KeyRotation, NewAccessKey, NewQuota, NewSession
from serve.gateway.access.callers import Caller, CallerLookup, Credential, RefusedCredential
from serve.gateway.access.gate import PLAIN_COOKIE, SECURE_COOKIE, WhoAsks, credential_of
from serve.gateway.access.scopes import SESSION
from serve.gateway.access.views import key_view, quota_view
from serve.gateway.door import CheckedRoute
from serve.gateway.errors import error_body


def access_routes(farm: Farm, lookup: CallerLookup | None) -> APIRouter:
    """The routes of keys, quotas and sessions; `lookup` is that of the gate, which learns of changes at once."""
    routes = APIRouter(route_class=CheckedRoute)
    _add_session(routes, farm, lookup)
    _add_keys(routes, KeyStore(farm.batch_store.database), lookup)
    _add_quotas(routes, QuotaStore(farm.batch_store.database), lookup)
    return routes


def _add_session(routes: APIRouter, farm: Farm, lookup: CallerLookup | None) -> None:
    sessions = SessionStore(farm.batch_store.database)

    @routes.post(SESSION)
    async def open_session(request: Request, body: NewSession) -> JSONResponse:
        """Open a session of a browser with a key: the answer sets a cookie, which stands for the key from then on."""
        found = None if lookup is None else await lookup.find(Credential(secret=body.key))
        if not isinstance(found, Caller) or found.key is None:
            why = found.message if isinstance(found, RefusedCredential) else "this farm asks nobody for a key"
            problem = Problem(field="key", message=why, remedy="Give the whole text of a key that is valid.")
            return JSONResponse(error_body(401, str(problem), "invalid_key", "key", problem), status_code=401)
        secret, lasts_s = await run_sync(sessions.open, found.key)
        answer = JSONResponse(_session_view(found, lasts_s), headers={"Cache-Control": "no-store"})
        secure = _is_https(request)
        answer.set_cookie(
            SECURE_COOKIE if secure else PLAIN_COOKIE,
            secret,
            max_age=lasts_s,
            path="/",
            secure=secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    @routes.get(SESSION)
    async def get_session(caller: WhoAsks) -> dict[str, Any]:
        """Who asks: the owner and the scopes of the key or session that this request shows."""
        return _session_view(caller, None)

    @routes.delete(SESSION)
    async def close_session(request: Request) -> JSONResponse:
        """End the session that this request shows; its cookie is taken back."""
        credential = credential_of(Headers(scope=request.scope))
        if credential is not None and credential.is_session:
            await run_sync(sessions.close, credential.secret)
            if lookup is not None:
                lookup.forget()
        answer = JSONResponse({"object": "session", "deleted": True})
        answer.delete_cookie(PLAIN_COOKIE, path="/", httponly=True, samesite="strict")
        if _is_https(request):
            answer.delete_cookie(SECURE_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer


def _add_keys(routes: APIRouter, keys: KeyStore, lookup: CallerLookup | None) -> None:
    def now() -> int:
        with keys.database.read() as c:
            return keys.database.now(c)

    def changed() -> None:
        if lookup is not None:
            lookup.forget()

    # All of them are coroutines: the look-ups belong to the event loop.
    @routes.post("/v1/keys", status_code=201)
    async def create_key(body: NewAccessKey) -> JSONResponse:
        """Make a key. Its text, `key`, is answered this once, and kept nowhere."""
        key, text = await run_sync(
            lambda: keys.create(body.owner, body.scopes, name=body.name, expires_s=body.expires_s)
        )
        changed()
        return JSONResponse(key_view(key, key.created_at, text), status_code=201, headers={"Cache-Control": "no-store"})

    @routes.get("/v1/keys")
    async def list_keys(owner: str | None = None) -> dict[str, Any]:
        """All keys, or those of an owner, the oldest first; revoked and expired ones among them. Never their texts."""
        found, at = await run_sync(keys.listed, owner), await run_sync(now)
        return {"object": "list", "data": [key_view(key, at) for key in found], "has_more": False}

    @routes.get("/v1/keys/{key_id}")
    async def get_key(key_id: str) -> dict[str, Any]:
        """One key, without its text."""
        key: AccessKey = await run_sync(lambda: keys.key(key_id, whole=True))
        return key_view(key, await run_sync(now))

    @routes.post("/v1/keys/{key_id}/rotate", status_code=201)
    async def rotate_key(key_id: str, body: Annotated[KeyRotation | None, Body()] = None) -> JSONResponse:
        """Replace a key by a new one, whose text is answered this once; the old one goes on for `grace_s` seconds."""
        grace_s = (body or KeyRotation()).grace_s
        new, text, old = await run_sync(lambda: keys.rotate(key_id, grace_s=grace_s, whole=True))
        changed()
        view = key_view(new, new.created_at, text) | {"replaces": key_view(old, new.created_at)}
        return JSONResponse(view, status_code=201, headers={"Cache-Control": "no-store"})

    @routes.delete("/v1/keys/{key_id}")
    async def revoke_key(key_id: str) -> dict[str, Any]:
        """Revoke a key for good. It stays in lists; its sessions and streams end within seconds."""
        key = await run_sync(lambda: keys.revoke(key_id, whole=True))
        changed()
        return key_view(key, await run_sync(now))


def _add_quotas(routes: APIRouter, quotas: QuotaStore, lookup: CallerLookup | None) -> None:
    def view(owner: str) -> dict[str, Any]:
        return quota_view(check_owner(owner), quotas.quota(owner), quotas.use(owner))

    @routes.get("/v1/quotas")
    async def list_quotas() -> dict[str, Any]:
        """The quotas that were set, with what their owners have used."""
        found = await run_sync(lambda: [view(owner) for owner in quotas.quotas()])
        return {"object": "list", "data": found, "has_more": False}

    @routes.get("/v1/quotas/{owner}")
    async def get_quota(owner: str) -> dict[str, Any]:
        """What an owner may hand in, and what they have used; nulls where they have no quota."""
        return await run_sync(view, owner)

    @routes.put("/v1/quotas/{owner}")
    async def set_quota(owner: str, body: NewQuota) -> dict[str, Any]:
        """Set an owner's quota in place of the one before; what is left out is not limited."""
        await run_sync(quotas.set, owner, OwnerQuota(**body.model_dump()))
        if lookup is not None:
            lookup.forget()
        return await run_sync(view, owner)


def _session_view(caller: Caller, lasts_s: int | None) -> dict[str, Any]:
    return {
        "object": "session",
        "owner": caller.owner,
        "scopes": sorted(scope.value for scope in caller.scopes),
        "key_id": caller.key.id if caller.key else None,
        "expires_s": lasts_s,
    }


def _is_https(request: Request) -> bool:
    # What a proxy says here can only make a cookie stricter.
    told = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    return request.url.scheme == "https" or told == "https"
