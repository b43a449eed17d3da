"""Webhooks, the secret that an owner's messages are signed with, and messages on their way. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.remote.urls import FetchRefusedError, parse_url
from cluster.webhooks.events import EventType
from pipeline.problems import BadInputError

#: Webhooks that an owner may have.
MOST_WEBHOOKS = 20
MAX_WEBHOOK_URL_CHARACTERS = 2048


class DeliveryState(StrEnum):
    """What has become of a message to one URL."""

    #: To be sent, or to be sent again.
    PENDING = "pending"
    DELIVERED = "delivered"
    #: Given up.
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A URL of an owner's that is told of events."""

    id: str
    owner: str
    url: str
    #: What it is told of; empty: everything.
    events: tuple[EventType, ...] = ()
    #: For people.
    description: str = ""
    created_at: int
    #: Not None: nothing is sent to it since then, and why.
    disabled_at: int | None = None
    disabled_why: str | None = None
    #: When it last took a message.
    delivered_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class SigningSecret:
    """What an owner's messages are signed with; during the grace time after a change with the one before, too."""

    secret: str
    created_at: int
    previous: str | None = None
    previous_until: int | None = None

    def valid_at(self, now: int) -> tuple[str, ...]:
        """The secrets that a message is signed with at `now` (UTC epoch seconds), the newest first."""
        kept = self.previous is not None and self.previous_until is not None and now < self.previous_until
        return (self.secret, self.previous) if kept and self.previous is not None else (self.secret,)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message about one event to one URL."""

    id: str
    #: The event's id, which receivers get as `webhook-id`: one for all URLs and all attempts.
    event_id: str
    owner: str
    type: EventType
    #: The batch or video that it is about; of a test the webhook.
    subject: str
    #: None: the URL was given with the batch.
    webhook_id: str | None
    url: str
    payload: str
    created_at: int
    state: DeliveryState
    #: Attempts of which it is known how they went.
    attempts: int = 0
    #: When it is tried next.
    next_at: int | None = None
    last_at: int | None = None
    #: The HTTP status of the last answer; None: there was no answer.
    status: int | None = None
    error: str | None = None
    delivered_at: int | None = None


def check_webhook_url(url: str, field: str = "url") -> str:
    """A URL that messages can be sent to, as it is. Raises `BadInputError` on `field`."""
    if len(url) > MAX_WEBHOOK_URL_CHARACTERS:
        message = f"it has more than {MAX_WEBHOOK_URL_CHARACTERS:,} characters"
        raise BadInputError(field, message, "Give a shorter one.")
    try:
        parse_url(url)
    except FetchRefusedError as error:
        message = error.message.replace("pictures are not fetched by", "webhooks are not sent by")
        raise BadInputError(field, message, error.remedy) from error
    return url
