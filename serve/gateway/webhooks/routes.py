"""Routes of webhooks: register, list, delete, try; the owner's secret; what became of messages."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from cluster.farm import Farm
from cluster.store.webhooks.registry import WebhookStore
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.door import CheckedRoute
from serve.gateway.webhooks.bodies import NewWebhook, NewWebhookSecret
from serve.gateway.webhooks.views import delivery_view, secret_view, webhook_view


def webhook_routes() -> APIRouter:
    """The routes of webhooks."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute)
    # Before the routes of one webhook, whose id would be "deliveries".
    _add_deliveries(routes)
    _add_registry(routes)
    _add_commands(routes)
    return routes


def _store(farm: Farm) -> WebhookStore:
    return WebhookStore(farm.batch_store.database)


def _add_deliveries(routes: APIRouter) -> None:
    @routes.get("/webhooks/deliveries")
    def list_deliveries(
        farm: OwnersFarm,
        webhook: str | None = None,
        subject: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        """Messages to URLs, the newest first: attempts, the last error, when the next attempt is.

        `webhook`: only those to it; `subject`: only those about this batch or video; `after` is the id of the last one
        of the page before. Messages that are over are kept for 30 days.
        """
        if webhook is not None:
            _store(farm).one(farm.owner, webhook)
        found = _store(farm).deliveries(farm.owner, webhook_id=webhook, subject=subject, after=after, limit=limit + 1)
        page = [delivery_view(one) for one in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}


def _add_registry(routes: APIRouter) -> None:
    @routes.post("/webhooks")
    def create_webhook(body: NewWebhook, farm: OwnersFarm) -> dict[str, Any]:
        """Register a URL that is told of what happens from here on.

        The answer to the first one has the `secret` that all messages of this owner are signed with; it is shown here
        only, and by `POST /v1/webhooks/rotate`.
        """
        made, secret = _store(farm).create(farm.owner, body.url, events=body.events, description=body.description)
        return webhook_view(made, secret)

    @routes.get("/webhooks")
    def list_webhooks(farm: OwnersFarm) -> dict[str, Any]:
        """Webhooks, the oldest first."""
        return {
            "object": "list",
            "data": [webhook_view(one) for one in _store(farm).all(farm.owner)],
            "has_more": False,
        }

    @routes.get("/webhooks/{webhook_id}")
    def get_webhook(webhook_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """One webhook: whether it is enabled, and when it last took a message."""
        return webhook_view(_store(farm).one(farm.owner, webhook_id))

    @routes.delete("/webhooks/{webhook_id}")
    def delete_webhook(webhook_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """Send nothing to a webhook any more; messages on their way there are given up."""
        _store(farm).delete(farm.owner, webhook_id)
        return {"id": webhook_id, "object": "webhook.deleted", "deleted": True}


def _add_commands(routes: APIRouter) -> None:
    @routes.post("/webhooks/rotate")
    def rotate_secret(farm: OwnersFarm, body: Annotated[NewWebhookSecret | None, Body()] = None) -> dict[str, Any]:
        """Make a new secret, or the first. For `grace_s` seconds (a day) the one before signs as well."""
        return secret_view(_store(farm).rotate(farm.owner, (body or NewWebhookSecret()).grace_s))

    @routes.post("/webhooks/{webhook_id}/test")
    def try_webhook(webhook_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """Send a `webhook.test`, once. Answers with the message; `GET /v1/webhooks/deliveries` says how it went."""
        return delivery_view(_store(farm).test(farm.owner, webhook_id))

    @routes.post("/webhooks/{webhook_id}/enable")
    def enable_webhook(webhook_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """Send to a webhook again that was disabled: it answered 410, or took nothing for three days."""
        return webhook_view(_store(farm).enable(farm.owner, webhook_id))
