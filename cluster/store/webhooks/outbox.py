"""Messages on their way: taken by one sender at a time, and what came of each attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cluster.jobs.ids import new_id
from cluster.store.counters import count
from cluster.store.database import Database
from cluster.store.schema import webhook_deliveries as deliveries
from cluster.store.schema import webhook_secrets, webhooks
from cluster.store.webhooks.rows import delivery_from, secret_from
from cluster.store.webhooks.telling import pass_over
from cluster.webhooks.model import Delivery, DeliveryState
from cluster.webhooks.schedule import SCHEDULE_S, DeliveryVerdict

#: Seconds after which a sender that did not say how its attempt went is taken for dead, and the message is sent again:
#: several times what an attempt may take.
LEASE_S = 60
#: How often a message is taken by senders, of which those that say how it went take it `len(SCHEDULE_S)` times.
MOST_TAKES = len(SCHEDULE_S) + 25
#: Messages of one owner that are sent at once, by all senders: whoever names many slow receivers delays nobody else's.
AT_ONCE_OF_OWNER = 4
#: Days for which messages that were delivered or given up are kept.
KEPT_DAYS = 30

_PENDING = deliveries.c.state == DeliveryState.PENDING.value


@dataclass(frozen=True, kw_only=True)
class TakenDelivery:
    """A message that this process is to send now, and what it is signed with."""

    delivery: Delivery
    lease: str
    #: The newest first.
    secrets: tuple[str, ...]


class Outbox:
    """What a sender needs of the store; safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def take(self, limit: int) -> list[TakenDelivery]:
        """Take up to `limit` messages that are due, of which nobody else gets any for `LEASE_S` seconds.

        One at a time to a URL, so that one which is slow holds up no other, and each gets its messages in order where
        all is well. A message that ends its senders is given up after `MOST_TAKES`.
        """
        with self._db.read() as c:
            if not list(c.scalars(_DUE, {"now": self._db.now(c), "limit": 1})):
                return []
        with self._db.write() as c:
            now = self._db.now(c)
            ids = list(c.scalars(_DUE, {"now": now, "limit": limit}))
            taken = []
            for delivery_id in ids:
                lease = new_id("lease")
                mine = deliveries.c.id == delivery_id
                began = {"lease": lease, "next_at": now + LEASE_S, "takes": deliveries.c.takes + 1}
                c.execute(sa.update(deliveries).where(mine).values(**began, last_at=now))
                row = c.execute(sa.select(deliveries).where(mine)).one()
                if row.takes > MOST_TAKES:
                    over = {"state": DeliveryState.FAILED.value, "lease": None, "error": "its senders ended, too often"}
                    c.execute(sa.update(deliveries).where(mine).values(**over))
                    self._count(c, DeliveryState.FAILED)
                    continue
                delivery = delivery_from(row)
                query = sa.select(webhook_secrets).where(webhook_secrets.c.owner == delivery.owner)
                secret = c.execute(query).one_or_none()
                valid = secret_from(secret).valid_at(now) if secret else ()
                taken.append(TakenDelivery(delivery=delivery, lease=lease, secrets=valid))
        return taken

    def record(self, taken: TakenDelivery, verdict: DeliveryVerdict, status: int | None) -> bool:
        """Write what came of an attempt; False where it took so long that the message was given to another."""
        delivery = taken.delivery
        with self._db.write() as c:
            now = self._db.now(c)
            values: dict[str, Any] = {"state": verdict.state.value, "lease": None, "status": status}
            values |= {"next_at": now + verdict.pause_s, "error": verdict.error, "attempts": delivery.attempts + 1}
            if verdict.state is DeliveryState.DELIVERED:
                values["delivered_at"] = now
            mine = sa.and_(deliveries.c.id == delivery.id, deliveries.c.lease == taken.lease, _PENDING)
            if not c.execute(sa.update(deliveries).where(mine).values(**values)).rowcount:
                return False
            if verdict.state is not DeliveryState.PENDING:
                self._count(c, verdict.state)
            hook = webhooks.c.id == delivery.webhook_id
            if verdict.state is DeliveryState.DELIVERED:
                c.execute(sa.update(webhooks).where(hook).values(delivered_at=now))
            elif verdict.gone or verdict.exhausted:
                self._give_up(c, now, delivery, verdict)
        return True

    def _give_up(self, c: sa.Connection, now: int, delivery: Delivery, verdict: DeliveryVerdict) -> None:
        hook = webhooks.c.id == delivery.webhook_id
        why = f"{verdict.error}, {delivery.attempts + 1} times" if verdict.exhausted else verdict.error
        stands = sa.and_(hook, webhooks.c.disabled_at.is_(None))
        if verdict.exhausted:
            # One that takes other messages is not gone.
            silent = sa.or_(webhooks.c.delivered_at.is_(None), webhooks.c.delivered_at < delivery.created_at)
            stands = sa.and_(stands, silent)
        disabled = c.execute(sa.update(webhooks).where(stands).values(disabled_at=now, disabled_why=why)).rowcount
        if disabled or (verdict.gone and delivery.webhook_id is None):
            same = deliveries.c.webhook_id == delivery.webhook_id
            if delivery.webhook_id is None:
                same = sa.and_(deliveries.c.webhook_id.is_(None), deliveries.c.owner == delivery.owner)
                same = sa.and_(same, deliveries.c.url == delivery.url)
            given_up = {"state": DeliveryState.FAILED.value, "error": f"given up: {why}"}
            # Those that another sends just now, too: what it writes then finds no message that waits for it.
            others = c.execute(sa.update(deliveries).where(same, _PENDING).values(**given_up, lease=None)).rowcount
            self._count(c, DeliveryState.FAILED, others)

    def _count(self, c: sa.Connection, ended: DeliveryState, messages: int = 1) -> None:
        if messages:
            count(self._db, c, "webhook_messages", outcome=ended.value, by=messages)

    def tidy(self) -> int:
        """Forget messages that were delivered or given up `KEPT_DAYS` days ago; returns how many.

        And let what became of batches of owners without webhooks be no news to one that they register later.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            pass_over(c, now)
            old = sa.and_(~_PENDING, deliveries.c.created_at < now - KEPT_DAYS * 86_400)
            return c.execute(sa.delete(deliveries).where(old)).rowcount


# Made once: asked every second.
_SENDING = deliveries.alias("sending")
_SENT_NOW = sa.and_(_SENDING.c.lease.is_not(None), _SENDING.c.next_at > sa.bindparam("now"))
_IN_HAND = sa.exists().where(_SENT_NOW, _SENDING.c.url == deliveries.c.url, _SENDING.c.owner == deliveries.c.owner)
_OLDEST_ID, _DUE_AT = sa.func.min(deliveries.c.id), sa.func.min(deliveries.c.next_at)
#: The oldest due message of each URL, where none is being sent there; ids sort by time.
_OLDEST = (
    sa.select(
        _OLDEST_ID.label("id"),
        deliveries.c.owner,
        _DUE_AT.label("due_at"),
        sa.func.row_number().over(partition_by=deliveries.c.owner, order_by=(_DUE_AT, _OLDEST_ID)).label("rank"),
    )
    .where(sa.text("state = 'pending'"), deliveries.c.next_at <= sa.bindparam("now"), ~_IN_HAND)
    .group_by(deliveries.c.owner, deliveries.c.url)
    .subquery("oldest")
)
_IN_HAND_OF_OWNER = (
    sa.select(sa.func.count())
    .where(_SENT_NOW, _SENDING.c.owner == _OLDEST.c.owner)
    .correlate(_OLDEST)
    .scalar_subquery()
)
_DUE = (
    sa.select(_OLDEST.c.id)
    .where(_OLDEST.c.rank + _IN_HAND_OF_OWNER <= AT_ONCE_OF_OWNER)
    .order_by(_OLDEST.c.due_at, _OLDEST.c.id)
    .limit(sa.bindparam("limit"))
)
