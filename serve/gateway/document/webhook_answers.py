"""Answers about webhooks as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from cluster.webhooks.events import EventType
from cluster.webhooks.model import DeliveryState
from serve.gateway.document.answers import DescribedAnswer


class WebhookAnswer(DescribedAnswer):
    """A URL that is told of events."""

    id: str
    """Begins with `webhook_`; sorts by time."""
    object: Literal["webhook"]
    """Always `webhook`."""
    url: str
    """Where messages are sent; its query is not shown."""
    events: list[EventType]
    """What it is told of; empty: everything."""
    description: str
    """For people."""
    created_at: int
    """When it was registered, in UTC epoch seconds."""
    enabled: bool
    """Whether anything is sent there."""
    disabled_at: int | None
    """Since when nothing is, in UTC epoch seconds."""
    disabled_why: str | None
    """Why nothing is: it answered 410, or took nothing for three days."""
    delivered_at: int | None
    """When it last took a message, in UTC epoch seconds."""
    secret: str | None = None
    """What messages are signed with; only in the answer that made it."""


class WebhookDeletionAnswer(DescribedAnswer):
    """A webhook that is gone."""

    id: str
    """The webhook's id."""
    object: Literal["webhook.deleted"]
    """Always `webhook.deleted`."""
    deleted: bool
    """Always true."""


class WebhookSecretAnswer(DescribedAnswer):
    """A secret that was made just now."""

    object: Literal["webhook.secret"]
    """Always `webhook.secret`."""
    secret: str
    """What messages are signed with from now on: `whsec_` and base64."""
    created_at: int
    """When it was made, in UTC epoch seconds."""
    previous_until: int | None
    """Until when the one before signs as well, in UTC epoch seconds; null where it does not."""


class WebhookDeliveryAnswer(DescribedAnswer):
    """A message to one URL."""

    id: str
    """Begins with `delivery_`; sorts by time."""
    object: Literal["webhook.delivery"]
    """Always `webhook.delivery`."""
    event: str
    """The event's id, which the receiver gets as `webhook-id`: the same for every URL and every attempt."""
    type: EventType
    """What happened."""
    subject: str
    """The batch or video that it is about; of a test the webhook."""
    webhook: str | None
    """The webhook that it goes to; null where the URL was given with the batch."""
    url: str
    """Where it is sent; its query is not shown."""
    state: DeliveryState
    """`pending`, `delivered`, or `failed`: given up."""
    attempts: int
    """Attempts that were answered, or failed."""
    created_at: int
    """When it happened, in UTC epoch seconds."""
    last_at: int | None
    """When the last attempt began, in UTC epoch seconds."""
    next_at: int | None
    """When the next one is, in UTC epoch seconds."""
    delivered_at: int | None
    """When it was taken, in UTC epoch seconds."""
    status: int | None
    """HTTP status of the last answer; null where there was none."""
    error: str | None
    """Why the last attempt failed."""
