"""Quotas of owners, and what they have used: counted as attempts end, never added up at a look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.access.keys import check_owner
from cluster.access.quotas import DAY_S, NO_QUOTA, OwnerQuota, OwnerUse, check_quota, first_day_of_month
from cluster.store.budgets import Price, price_of
from cluster.store.database import Database, insert_into
from cluster.store.schema import WAITS, jobs, owner_quotas, owner_use

_FIELDS = tuple(OwnerQuota.model_fields)


class QuotaStore:
    """Quotas and use of a farm's owners. `price` gives money an hour by card kind."""

    def __init__(self, database: Database, price: Price = price_of) -> None:
        self.database, self._price = database, price

    def quota(self, owner: str) -> OwnerQuota:
        """The owner's quota; one without any limit where none was set."""
        with self.database.read() as c:
            return _quota_of(c, owner)

    def quotas(self) -> dict[str, OwnerQuota]:
        """All quotas that were set, by owner."""
        with self.database.read() as c:
            rows = c.execute(sa.select(owner_quotas).order_by(owner_quotas.c.owner)).all()
        return {row.owner: _quota_from(row) for row in rows}

    def set(self, owner: str, quota: OwnerQuota) -> None:
        """Set the owner's quota in place of the one before. Raises `BadInputError` for a name that no owner can have.

        A quota without any limit is forgotten.
        """
        check_owner(owner)
        with self.database.write() as c:
            if quota == NO_QUOTA:
                c.execute(sa.delete(owner_quotas).where(owner_quotas.c.owner == owner))
                return
            values: dict[str, Any] = quota.model_dump() | {"updated_at": self.database.now(c)}
            insert = self.database.insert(owner_quotas).values(owner=owner, **values)
            c.execute(insert.on_conflict_do_update(index_elements=[owner_quotas.c.owner], set_=values))

    def use(self, owner: str) -> OwnerUse:
        """What the owner has used until now, and how many of their rows wait."""
        with self.database.read() as c:
            return self._use(c, owner, self.database.now(c), None)

    def check(self, owner: str, adding: int) -> None:
        """Raise `QuotaExceededError` where `adding` more rows are too many for the owner now."""
        with self.database.read() as c:
            quota = _quota_of(c, owner)
            if (quota.queued_jobs, quota.gpu_seconds_day, quota.cost_month) == (None, None, None):
                return
            now = self.database.now(c)
            use = self._use(c, owner, now, quota)
        check_quota(owner, quota, use, adding, now)

    def _use(self, c: Connection, owner: str, now: int, quota: OwnerQuota | None) -> OwnerUse:
        """What the owner has used; of what `quota` limits only (None: of everything)."""
        today, first = now // DAY_S, first_day_of_month(now)
        seconds_today, cost = 0.0, 0.0
        for row in c.execute(_SPENT, {"its_owner": owner, "first": first}):
            cost += row.gpu_seconds / 3600 * self._price(row.kind)
            seconds_today += row.gpu_seconds if row.day == today else 0.0
        waiting = 0
        if quota is None or quota.queued_jobs is not None:
            # No more than tell that there are too many.
            most = -1 if quota is None or quota.queued_jobs is None else quota.queued_jobs + 1
            waiting = int(c.scalar(_waiting(owner, most)) or 0)
        return OwnerUse(queued_jobs=waiting, gpu_seconds_day=seconds_today, cost_month=cost)


def add_use(database: Database, c: Connection, now: int, ended: Iterable[tuple[str, str, float]]) -> None:
    """Count (owner, card kind, seconds) of attempts that end at `now`, within the caller's transaction."""
    spent: defaultdict[tuple[str, str], float] = defaultdict(float)
    for owner, kind, seconds in ended:
        spent[owner, kind] += seconds
    if spent:
        values = [
            {"owner": owner, "day": now // DAY_S, "kind": kind, "gpu_seconds": seconds}
            for (owner, kind), seconds in sorted(spent.items())
        ]
        c.execute(_adding(database.is_sqlite), values)


@cache
def _adding(sqlite: bool) -> Any:
    insert = insert_into(owner_use, sqlite=sqlite)
    return insert.on_conflict_do_update(
        index_elements=list(owner_use.primary_key),
        set_={"gpu_seconds": owner_use.c.gpu_seconds + insert.excluded.gpu_seconds},
    )


_SPENT = sa.select(owner_use.c.day, owner_use.c.kind, owner_use.c.gpu_seconds).where(
    owner_use.c.owner == sa.bindparam("its_owner"), owner_use.c.day >= sa.bindparam("first")
)


def _waiting(owner: str, most: int) -> sa.Select[Any]:
    found = sa.select(sa.literal(1)).select_from(jobs).where(jobs.c.owner == owner, sa.text(WAITS))
    return sa.select(sa.func.count()).select_from((found if most < 0 else found.limit(most)).subquery())


def _quota_of(c: Connection, owner: str) -> OwnerQuota:
    row = c.execute(sa.select(owner_quotas).where(owner_quotas.c.owner == owner)).one_or_none()
    return NO_QUOTA if row is None else _quota_from(row)


def _quota_from(row: Any) -> OwnerQuota:
    return OwnerQuota(**{name: getattr(row, name) for name in _FIELDS})
