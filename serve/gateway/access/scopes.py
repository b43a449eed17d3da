"""The scope that each route asks for: one table, which a test compares with the routes there are."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.access.scopes import Scope

#: Where a browser opens a session, with a key in the body.
SESSION = "/v1/session"
#: Where a person gives a key to the page.
LOGIN = "/login"
#: What anybody may ask, with a key or without one: whether the farm is well, and for a session.
OPEN: frozenset[tuple[str, str]] = frozenset({("GET", "/healthz"), ("POST", SESSION), ("GET", LOGIN)})
#: Where the files lie that pages load, that for a key among them; anybody may read them.
STATIC = "/static/"

#: By method and path of the route; None: any key. A route without an entry is refused to everybody.
ROUTE_SCOPES: Mapping[tuple[str, str], Scope | None] = {
    # Pages for people.
    ("GET", "/"): Scope.READ,
    ("GET", "/batches/{batch_id}"): Scope.READ,
    ("GET", "/batches/{batch_id}/rows"): Scope.READ,
    ("GET", "/clips/{job_id}"): Scope.READ,
    ("GET", "/cards"): Scope.READ,
    ("GET", "/new"): Scope.SUBMIT,
    ("POST", "/new/check"): Scope.SUBMIT,
    # The pages on the API are for whoever may use any of it.
    ("GET", "/docs"): Scope.READ,
    ("GET", "/openapi.json"): Scope.READ,
    ("GET", "/metrics"): Scope.METRICS,
    # Who one is may be asked with any key, and a session ended.
    ("GET", SESSION): None,
    ("DELETE", SESSION): None,
    ("PUT", "/v1/stills"): Scope.SUBMIT,
    ("POST", "/v1/batches"): Scope.SUBMIT,
    ("GET", "/v1/batches"): Scope.READ,
    ("GET", "/v1/batches/{batch_id}"): Scope.READ,
    ("GET", "/v1/batches/{batch_id}/jobs"): Scope.READ,
    ("GET", "/v1/batches/{batch_id}/results"): Scope.READ,
    ("GET", "/v1/batches/{batch_id}/events"): Scope.READ,
    ("POST", "/v1/batches/{batch_id}/{verb}"): Scope.SUBMIT,
    ("DELETE", "/v1/batches/{batch_id}"): Scope.SUBMIT,
    ("GET", "/v1/ids"): Scope.READ,
    ("GET", "/v1/jobs/{job_id}"): Scope.READ,
    ("GET", "/v1/jobs/{job_id}/why"): Scope.READ,
    ("GET", "/v1/jobs/{job_id}/deliveries"): Scope.READ,
    ("GET", "/v1/jobs/{job_id}/deliveries/{profile}"): Scope.READ,
    ("POST", "/v1/jobs/{job_id}/{verb}"): Scope.SUBMIT,
    ("POST", "/v1/videos"): Scope.SUBMIT,
    ("POST", "/v1/videos/sync"): Scope.SUBMIT,
    ("GET", "/v1/videos"): Scope.READ,
    ("GET", "/v1/videos/{video_id}"): Scope.READ,
    ("GET", "/v1/videos/{video_id}/content"): Scope.READ,
    ("POST", "/v1/videos/{video_id}/cancel"): Scope.SUBMIT,
    ("DELETE", "/v1/videos/{video_id}"): Scope.SUBMIT,
    ("POST", "/v1/files"): Scope.SUBMIT,
    ("GET", "/v1/files"): Scope.READ,
    ("GET", "/v1/files/{file_id}"): Scope.READ,
    ("GET", "/v1/files/{file_id}/content"): Scope.READ,
    ("DELETE", "/v1/files/{file_id}"): Scope.SUBMIT,
    ("GET", "/v1/models"): Scope.READ,
    ("GET", "/v1/models/{name}"): Scope.READ,
    ("GET", "/v1/cards"): Scope.READ,
    ("POST", "/v1/cards/{card:path}/{verb}"): Scope.OPERATE,
    # Nothing is handed in.
    ("POST", "/v1/forecast"): Scope.READ,
    ("POST", "/v1/lint"): Scope.READ,
    # An owner's own, with the secret that messages are signed with.
    ("POST", "/v1/webhooks"): Scope.SUBMIT,
    ("GET", "/v1/webhooks"): Scope.READ,
    ("GET", "/v1/webhooks/deliveries"): Scope.READ,
    ("POST", "/v1/webhooks/rotate"): Scope.SUBMIT,
    ("GET", "/v1/webhooks/{webhook_id}"): Scope.READ,
    ("DELETE", "/v1/webhooks/{webhook_id}"): Scope.SUBMIT,
    ("POST", "/v1/webhooks/{webhook_id}/test"): Scope.SUBMIT,
    ("POST", "/v1/webhooks/{webhook_id}/enable"): Scope.SUBMIT,
    ("POST", "/v1/keys"): Scope.ADMIN,
    ("GET", "/v1/keys"): Scope.ADMIN,
    ("GET", "/v1/keys/{key_id}"): Scope.ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): Scope.ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): Scope.ADMIN,
    ("GET", "/v1/quotas"): Scope.ADMIN,
    ("GET", "/v1/quotas/{owner}"): Scope.ADMIN,
    ("PUT", "/v1/quotas/{owner}"): Scope.ADMIN,
}


def scope_of(method: str, route: str) -> Scope | None:
    """The scope that a route asks for; None where any key does. Raises `KeyError` for a route without an entry."""
    return ROUTE_SCOPES["GET" if method == "HEAD" else method, route]


def is_open(method: str, path: str) -> bool:
    """Whether anybody may ask this, with a key or without one."""
    return (method, path) in OPEN or (method in ("GET", "HEAD") and path.startswith(STATIC))
