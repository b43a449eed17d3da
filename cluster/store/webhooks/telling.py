"""What became of batches and videos, turned into messages for whoever registered for it.

No change of a job writes an event: there are ten ways for a row to end, and the busiest of them ends hundreds of rows a
second. An event follows from what the tables say instead. A batch is looked at until its end was told; the look writes
the messages and the mark that they were written in one transaction, so each end is told once, whatever dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.ids import new_id
from cluster.jobs.model import FINAL_STATES, Batch, HoldReason, JobState
from cluster.store.batch_reader import VIDEO_SOURCE
from cluster.store.bulk import is_one_of
from cluster.store.database import Database
from cluster.store.lookup import KeptCounts
from cluster.store.schema import UNTOLD, batches, jobs, webhook_deliveries, webhooks
from cluster.webhooks.events import (
    BatchNews,
    EventType,
    RowNews,
    of_end,
    of_first_failure,
    of_review,
    of_video,
    payload_of,
)
from cluster.webhooks.model import DeliveryState

#: Batches whose news are told in one transaction.
AT_ONCE = 50

Told = tuple[EventType, dict[str, Any]]


def tell(database: Database, at_once: int = AT_ONCE) -> int:
    """Write messages of what has happened since the last look; returns of how many batches. No write without news."""
    with database.read() as c:
        found = list(c.scalars(_NEWS.limit(at_once)))
    if not found:
        return 0
    with database.write() as c:
        now = database.now(c)
        return sum(tell_batch(database, c, now, batch_id) for batch_id in found)


def tell_batch(database: Database, c: Connection, now: int, batch_id: str) -> bool:
    """Write messages of a batch's news within the caller's transaction; whether there were any."""
    row = c.execute(_NEWS_OF, {"batch": batch_id}).one_or_none()
    if row is None:
        return False
    batch = KeptCounts().batch(c, row, now)
    alone = row.source == VIDEO_SOURCE and batch.counts.total == 1
    told: list[Told] = []
    values: dict[str, int] = {}
    if row.has_failed and row.failure_told_at is None:
        values["failure_told_at"] = now
        if not alone:
            told.append(of_first_failure(_facts_of(batch), _first_failed(c, batch_id)))
    if row.has_drafts and row.review_told_at is None:
        values["review_told_at"] = now
        if not alone:
            told.append(of_review(_facts_of(batch)))
    if row.has_ended:
        values["end_told_at"] = now
        # A batch that nothing was handed in of has nothing to tell.
        if alone:
            told.append(of_video(_only_row(c, batch_id)))
        elif batch.counts.total:
            told.append(of_end(_facts_of(batch)))
    receivers = _receivers(c, row.owner, row.webhook_url)
    for one in told:
        enqueue(c, now, row.owner, one, [who for who in receivers if who.wants(one[0])])
    c.execute(sa.update(batches).where(batches.c.id == batch_id).values(**values))
    return True


class Receiver:
    """A URL that is told of some types of events; the webhook that it is, or None where a batch names it."""

    def __init__(self, url: str, webhook_id: str | None, types: Iterable[str] = ()) -> None:
        self.url, self.webhook_id, self._types = url, webhook_id, frozenset(types)

    def wants(self, event: EventType) -> bool:
        """Whether it is told of events of this type."""
        return not self._types or event.value in self._types


def enqueue(c: Connection, now: int, owner: str, told: Told, receivers: Iterable[Receiver]) -> list[str]:
    """Put one event's messages into the outbox, within the caller's transaction; returns their ids."""
    event_id = new_id("evt")
    kind, data = told
    payload = payload_of(event_id, now, told)
    rows = [
        {
            "id": new_id("delivery"),
            "event_id": event_id,
            "owner": owner,
            "type": kind.value,
            "subject": str(data["id"]),
            "webhook_id": receiver.webhook_id,
            "url": receiver.url,
            "payload": payload,
            "created_at": now,
            "state": DeliveryState.PENDING.value,
            "attempts": 0,
            "takes": 0,
            "next_at": now,
        }
        for receiver in receivers
    ]
    if rows:
        c.execute(sa.insert(webhook_deliveries), rows)
    return [str(row["id"]) for row in rows]


def pass_over(c: Connection, now: int, owner: str | None = None) -> None:
    """Let what has happened already be no news, for an owner without webhooks or (None) for all such owners.

    Batches that name a URL of their own keep theirs to tell.
    """
    nobody = batches.c.owner.not_in(sa.select(webhooks.c.owner).where(webhooks.c.disabled_at.is_(None)))
    whose = nobody if owner is None else sa.and_(nobody, batches.c.owner == owner)
    quiet = sa.and_(sa.text(UNTOLD), batches.c.webhook_url.is_(None), whose)
    c.execute(sa.update(batches).where(quiet, _FAILED, batches.c.failure_told_at.is_(None)).values(failure_told_at=now))
    c.execute(sa.update(batches).where(quiet, _WAITS, batches.c.review_told_at.is_(None)).values(review_told_at=now))
    c.execute(sa.update(batches).where(quiet, _ENDED).values(end_told_at=now))


_MINE = jobs.c.batch_id == batches.c.id
_FAILED = sa.exists().where(_MINE, jobs.c.state == JobState.FAILED.value)
_GOING_ON = [state for state in JobState if state not in FINAL_STATES]
_ENDED = sa.and_(batches.c.sealed, ~sa.exists().where(_MINE, is_one_of(jobs.c.state, *_GOING_ON)))
#: Nothing goes on by itself, and a draft is there: whoever decides on it is waited for.
_WAITS = sa.and_(
    batches.c.sealed,
    ~sa.exists().where(_MINE, is_one_of(jobs.c.state, JobState.QUEUED, JobState.RUNNING)),
    sa.exists().where(_MINE, jobs.c.state == JobState.HELD.value, jobs.c.reason == HoldReason.REVIEW.value),
)
_IS_NEWS = sa.or_(
    sa.and_(batches.c.failure_told_at.is_(None), _FAILED),
    sa.and_(batches.c.review_told_at.is_(None), _WAITS),
    _ENDED,
)
_HEARD = sa.or_(
    batches.c.webhook_url.is_not(None),
    sa.exists().where(webhooks.c.owner == batches.c.owner, webhooks.c.disabled_at.is_(None)),
)
# Made once: asked every second.
_NEWS = sa.select(batches.c.id).where(sa.text(UNTOLD), _HEARD, _IS_NEWS).order_by(batches.c.id)
_NEWS_OF = sa.select(batches, _FAILED.label("has_failed"), _WAITS.label("has_drafts"), _ENDED.label("has_ended")).where(
    batches.c.id == sa.bindparam("batch"), sa.text(UNTOLD), _IS_NEWS
)


def _facts_of(batch: Batch) -> BatchNews:
    counts: Mapping[JobState, int] = batch.counts.by_state
    drafts = batch.held_by.get(HoldReason.REVIEW, 0)
    return BatchNews(
        id=batch.id, name=batch.name, status=batch.status, counts=counts, let_go=batch.let_go, drafts=drafts
    )


_ROW = sa.select(jobs.c.id, jobs.c.batch_id, jobs.c.name, jobs.c.number, jobs.c.state, jobs.c.reason)


def _first_failed(c: Connection, batch_id: str) -> RowNews:
    failed = _ROW.where(jobs.c.batch_id == batch_id, jobs.c.state == JobState.FAILED.value)
    return _row_from(c.execute(failed.order_by(jobs.c.updated_at, jobs.c.number).limit(1)).one())


def _only_row(c: Connection, batch_id: str) -> RowNews:
    return _row_from(c.execute(_ROW.where(jobs.c.batch_id == batch_id)).one())


def _row_from(row: Any) -> RowNews:
    facts = dict(row._mapping)
    return RowNews(**facts | {"state": JobState(row.state)})


def _receivers(c: Connection, owner: str, url: str | None) -> list[Receiver]:
    query = sa.select(webhooks).where(webhooks.c.owner == owner, webhooks.c.disabled_at.is_(None))
    found = [Receiver(row.url, row.id, row.events) for row in c.execute(query.order_by(webhooks.c.id))]
    if url is not None:
        # Told once, of everything: whoever named it with the batch wants to know.
        found = [one for one in found if one.url != url] + [Receiver(url, None)]
    return found
