"""Webhooks as their owners register, look at and try them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.ids import new_id
from cluster.store.database import Database
from cluster.store.schema import webhook_deliveries, webhook_secrets, webhooks
from cluster.store.webhooks.rows import delivery_from, secret_from, webhook_from
from cluster.store.webhooks.telling import Receiver, enqueue, pass_over
from cluster.webhooks.events import SUBSCRIBABLE, EventType, of_test
from cluster.webhooks.model import (
    MOST_WEBHOOKS,
    Delivery,
    DeliveryState,
    SigningSecret,
    Webhook,
    check_webhook_url,
)
from cluster.webhooks.signing import new_secret
from pipeline.problems import BadInputError

#: Seconds for which messages are signed with the secret before as well, where nobody says.
GRACE_S = 86_400


class NoSuchWebhookError(LookupError):
    """The owner has no webhook of this id."""


class WebhookStore:
    """All that an owner may do with webhooks. Every query carries the owner.

    Methods that name a webhook raise `NoSuchWebhookError` for what is not theirs.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    def create(
        self, owner: str, url: str, *, events: Sequence[EventType] = (), description: str = ""
    ) -> tuple[Webhook, str | None]:
        """Register a URL for `events` (none: all); returns the webhook, and the owner's secret where it was made now.

        Told is what happens from here on. Raises `BadInputError`.
        """
        check_webhook_url(url)
        types = [one for one in SUBSCRIBABLE if one in events]
        if len(types) < len(set(events)):
            raise BadInputError("events", "a test cannot be registered for", f"Give any of {', '.join(SUBSCRIBABLE)}.")
        with self._db.write() as c:
            now = self._db.now(c)
            there = c.execute(_of(owner)).all()
            if same := [row.id for row in there if row.url == url]:
                raise BadInputError("url", f"{same[0]} has this URL already", "Delete that one first.")
            if len(there) >= MOST_WEBHOOKS:
                raise BadInputError("url", f"there are {len(there)} webhooks already", "Delete one that is not needed.")
            pass_over(c, now, owner)
            webhook_id = new_id("webhook")
            made = {"id": webhook_id, "owner": owner, "url": url, "events": [one.value for one in types]}
            c.execute(sa.insert(webhooks).values(**made, description=description, created_at=now))
            secret = None if _secret(c, owner) else self._change_secret(c, now, owner, 0).secret
            return _require(c, owner, webhook_id), secret

    def all(self, owner: str) -> list[Webhook]:
        """The owner's webhooks, the oldest first."""
        with self._db.read() as c:
            return [webhook_from(row) for row in c.execute(_of(owner))]

    def one(self, owner: str, webhook_id: str) -> Webhook:
        """One webhook by its id."""
        with self._db.read() as c:
            return _require(c, owner, webhook_id)

    def delete(self, owner: str, webhook_id: str) -> None:
        """Send nothing to it any more; messages that are on their way there are given up."""
        with self._db.write() as c:
            _require(c, owner, webhook_id)
            c.execute(sa.delete(webhooks).where(webhooks.c.id == webhook_id))
            waits = sa.and_(
                webhook_deliveries.c.webhook_id == webhook_id,
                webhook_deliveries.c.state == DeliveryState.PENDING.value,
            )
            values = {"state": DeliveryState.FAILED.value, "error": "given up: the webhook was deleted", "lease": None}
            c.execute(sa.update(webhook_deliveries).where(waits).values(**values))

    def enable(self, owner: str, webhook_id: str) -> Webhook:
        """Send to a webhook again that was disabled; what happened meanwhile is not told."""
        with self._db.write() as c:
            if _require(c, owner, webhook_id).disabled_at is not None:
                pass_over(c, self._db.now(c), owner)
                again = {"disabled_at": None, "disabled_why": None}
                c.execute(sa.update(webhooks).where(webhooks.c.id == webhook_id).values(**again))
            return _require(c, owner, webhook_id)

    def test(self, owner: str, webhook_id: str) -> Delivery:
        """Put a message into the outbox that says nothing, and is tried once; to a disabled webhook, too."""
        with self._db.write() as c:
            hook = _require(c, owner, webhook_id)
            receiver = Receiver(hook.url, hook.id)
            (made,) = enqueue(c, self._db.now(c), owner, of_test(hook.id), [receiver])
            return _deliveries(c, webhook_deliveries.c.id == made, 1)[0]

    def rotate(self, owner: str, grace_s: int = GRACE_S) -> SigningSecret:
        """Make a new secret, the first where there is none; for `grace_s` seconds the one before signs as well."""
        with self._db.write() as c:
            return self._change_secret(c, self._db.now(c), owner, grace_s)

    def deliveries(
        self,
        owner: str,
        *,
        webhook_id: str | None = None,
        subject: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> list[Delivery]:
        """Messages to the owner's URLs, the newest first, those behind the id `after`.

        `webhook_id`: only those to it; `subject`: only those about this batch or video.
        """
        mine = webhook_deliveries.c.owner == owner
        if webhook_id is not None:
            mine = sa.and_(mine, webhook_deliveries.c.webhook_id == webhook_id)
        if subject is not None:
            mine = sa.and_(mine, webhook_deliveries.c.subject == subject)
        if after is not None:
            mine = sa.and_(mine, webhook_deliveries.c.id < after)
        with self._db.read() as c:
            return _deliveries(c, mine, limit)

    def _change_secret(self, c: Connection, now: int, owner: str, grace_s: int) -> SigningSecret:
        before = _secret(c, owner)
        values: dict[str, Any] = {"secret": new_secret(), "created_at": now}
        kept = before is not None and grace_s > 0
        values |= {"previous": before.secret if kept and before else None}
        values |= {"previous_until": now + grace_s if kept else None}
        insert = self._db.insert(webhook_secrets).values(owner=owner, **values)
        c.execute(insert.on_conflict_do_update(index_elements=[webhook_secrets.c.owner], set_=values))
        return SigningSecret(**values)


def require_secret(c: Connection, owner: str, field: str) -> None:
    """Raise `BadInputError` on `field` where the owner's messages could not be signed."""
    if _secret(c, owner) is None:
        raise BadInputError(
            field,
            "there is no secret yet that messages would be signed with",
            "Make one: `clipmill webhooks rotate`, or POST /v1/webhooks/rotate.",
        )


def _secret(c: Connection, owner: str) -> SigningSecret | None:
    row = c.execute(sa.select(webhook_secrets).where(webhook_secrets.c.owner == owner)).one_or_none()
    return secret_from(row) if row else None


def _deliveries(c: Connection, which: sa.ColumnElement[bool], limit: int) -> list[Delivery]:
    query = sa.select(webhook_deliveries).where(which).order_by(webhook_deliveries.c.id.desc()).limit(limit)
    return [delivery_from(row) for row in c.execute(query)]


def _of(owner: str) -> sa.Select[Any]:
    return sa.select(webhooks).where(webhooks.c.owner == owner).order_by(webhooks.c.id)


def _require(c: Connection, owner: str, webhook_id: str) -> Webhook:
    row = c.execute(_of(owner).where(webhooks.c.id == webhook_id)).one_or_none()
    if row is None:
        raise NoSuchWebhookError(f"there is no webhook {webhook_id!r}; `clipmill webhooks list` lists those there are")
    return webhook_from(row)
