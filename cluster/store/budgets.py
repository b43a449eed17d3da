"""What batches with limits have used: failures, GPU seconds and money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.estimates.published import rate_of, rate_table
from cluster.jobs.commands import Used
from cluster.jobs.model import JobState, Reason
from cluster.store.schema import attempts, jobs

#: US dollars (or whatever the table of rates counts in) an hour of a card of this kind.
Price = Callable[[str], float]

#: Attempts that ended before so many seconds are added up once: none that ended earlier appears any more.
_SETTLED_S = 120


def price_of(kind: str) -> float:
    """By the table of rates. A card that is not in it costs what the dearest one does: a budget is to be kept."""
    known = rate_of(kind)[0].price_per_hour
    return known if known is not None else max(card.price_per_hour or 0.0 for card in rate_table().cards.values())


class Meter:
    """Adds up attempts from where it last looked, so that a look costs the same however large the batch is."""

    def __init__(self) -> None:
        self._settled: dict[str, tuple[int, Counter[str]]] = {}

    def used(self, c: Connection, batch_id: str, now: int, price: Price) -> Used:
        """What the batch has used until now, running attempts included."""
        seconds = self._seconds(c, batch_id, now)
        return Used(
            failures=failures(c, batch_id),
            gpu_seconds=float(sum(seconds.values())),
            cost=sum(spent / 3600 * price(kind) for kind, spent in seconds.items()),
        )

    def forget_all_but(self, batch_ids: set[str]) -> None:
        """Forget batches that are looked at no more."""
        self._settled = {batch_id: kept for batch_id, kept in self._settled.items() if batch_id in batch_ids}

    def _seconds(self, c: Connection, batch_id: str, now: int) -> Counter[str]:
        since, settled = self._settled.get(batch_id, (0, Counter()))
        until = now - _SETTLED_S
        if until > since:
            settled = settled + _between(c, batch_id, since, until)
            self._settled[batch_id] = (until, settled)
            since = until
        running = sa.and_(attempts.c.batch_id == batch_id, attempts.c.ended_at.is_(None))
        return settled + _between(c, batch_id, since, None) + _counted(c, running, now - attempts.c.started_at)


def failures(c: Connection, batch_id: str) -> int:
    """Rows of the batch that failed while being rendered."""
    failed = sa.and_(
        jobs.c.batch_id == batch_id,
        jobs.c.state == JobState.FAILED.value,
        jobs.c.content_key.is_not(None),
        jobs.c.reason != Reason.AFTER_FAILED.value,
    )
    return int(c.scalar(sa.select(sa.func.count()).select_from(jobs).where(failed)) or 0)


def _between(c: Connection, batch_id: str, since: int, until: int | None) -> Counter[str]:
    ended = sa.and_(attempts.c.batch_id == batch_id, attempts.c.ended_at >= since)
    where = ended if until is None else sa.and_(ended, attempts.c.ended_at < until)
    return _counted(c, where, attempts.c.ended_at - attempts.c.started_at)


def _counted(c: Connection, where: sa.ColumnElement[bool], lasted: sa.ColumnElement[int]) -> Counter[str]:
    query = sa.select(attempts.c.kind, sa.func.sum(lasted)).where(where).group_by(attempts.c.kind)
    # A clock that was set back made an attempt end before it began.
    return Counter({kind: max(0, int(seconds or 0)) for kind, seconds in c.execute(query).tuples()})
