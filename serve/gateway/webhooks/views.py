"""How webhooks and messages look in the API and in `--json`."""

from __future__ import annotations

from typing import Any

from cluster.remote.urls import shown
from cluster.webhooks.model import Delivery, SigningSecret, Webhook


def webhook_view(hook: Webhook, secret: str | None = None) -> dict[str, Any]:
    """A webhook as the API shows it; with the owner's `secret` where that was made for it just now."""
    view = {
        "id": hook.id,
        "object": "webhook",
        # A query may be a password.
        "url": shown(hook.url),
        "events": [event.value for event in hook.events],
        "description": hook.description,
        "created_at": hook.created_at,
        "enabled": hook.disabled_at is None,
        "disabled_at": hook.disabled_at,
        "disabled_why": hook.disabled_why,
        "delivered_at": hook.delivered_at,
    }
    return view | ({"secret": secret} if secret else {})


def secret_view(secret: SigningSecret) -> dict[str, Any]:
    """A secret that was made just now as the API shows it, the only time that it does."""
    return {
        "object": "webhook.secret",
        "secret": secret.secret,
        "created_at": secret.created_at,
        "previous_until": secret.previous_until,
    }


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    """A message to one URL as the API shows it."""
    return {
        "id": delivery.id,
        "object": "webhook.delivery",
        "event": delivery.event_id,
        "type": delivery.type.value,
        "subject": delivery.subject,
        "webhook": delivery.webhook_id,
        "url": shown(delivery.url),
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "created_at": delivery.created_at,
        "last_at": delivery.last_at,
        "next_at": delivery.next_at,
        "delivered_at": delivery.delivered_at,
        "status": delivery.status,
        "error": delivery.error,
    }
