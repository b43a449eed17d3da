"""From rows of the tables of webhooks to the types of `cluster.webhooks.model`."""

from __future__ import annotations

from typing import Any

from cluster.webhooks.events import EventType
from cluster.webhooks.model import Delivery, DeliveryState, SigningSecret, Webhook


def webhook_from(row: Any) -> Webhook:
    """A `Webhook` of a row of `webhooks`."""
    facts = dict(row._mapping)
    return Webhook(**facts | {"events": tuple(EventType(one) for one in row.events)})


def secret_from(row: Any) -> SigningSecret:
    """A `SigningSecret` of a row of `webhook_secrets`."""
    return SigningSecret(
        secret=row.secret, created_at=row.created_at, previous=row.previous, previous_until=row.previous_until
    )


def delivery_from(row: Any) -> Delivery:
    """A `Delivery` of a row of `webhook_deliveries`."""
    state = DeliveryState(row.state)
    facts = {name: value for name, value in row._mapping.items() if name not in ("lease", "takes")}
    facts |= {"type": EventType(row.type), "state": state}
    # Of one that is over it says nothing.
    facts |= {"next_at": row.next_at if state is DeliveryState.PENDING else None}
    return Delivery(**facts)
