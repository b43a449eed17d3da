"""Bodies of requests about webhooks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.catalog.cells import JsonNumbers
from cluster.store.webhooks.registry import GRACE_S
from cluster.webhooks.events import EventType
from cluster.webhooks.model import MAX_WEBHOOK_URL_CHARACTERS

#: Longest grace time of a secret that was replaced, in seconds.
MOST_GRACE_S = 30 * 86_400


class NewWebhook(BaseModel):
    """Body of `POST /v1/webhooks`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    url: str = Field(min_length=1, max_length=MAX_WEBHOOK_URL_CHARACTERS)
    """An https or http URL that the farm may ask."""
    events: list[EventType] = Field(default_factory=list, max_length=20)
    """Types of events that it is told of; empty: all."""
    description: str = Field(default="", max_length=500)
    """For people."""


class NewWebhookSecret(JsonNumbers):
    """Body of `POST /v1/webhooks/rotate`; all of it may be left out."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    grace_s: int = Field(default=GRACE_S, ge=0, le=MOST_GRACE_S)
    """Seconds for which messages are signed with the secret before as well."""
