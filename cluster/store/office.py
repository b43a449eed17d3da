"""The office of dispatcher: who holds it, of which farm, and when another farm may take it over."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.store.database import Database
from cluster.store.schema import dispatcher

#: A dispatcher that did not write for so many seconds has lost its office to any farm that asks: as long as a lease.
OFFICE_S = 10
#: Between a dispatcher's own name and its farm's, in what the store has of it.
_OF = " of farm "


class OfficeTakenError(RuntimeError):
    """A dispatcher of another farm is in office, and wrote of late: whoever else asks has to stand by."""


@dataclass(frozen=True, kw_only=True)
class Office:
    """The dispatcher in office: its name, its farm (empty where it did not say), and since when it is silent."""

    holder: str
    farm: str
    #: Seconds since it wrote last.
    silent_s: int

    def bars(self, farm: str) -> bool:
        """Whether a dispatcher of `farm` has to stand by.

        One of the same farm takes over at once: it was started in place of this one. Of another farm nobody knows
        whether it is there by intent, and two that take office from each other give back all clips each time.
        """
        return self.farm != farm and 0 <= self.silent_s < OFFICE_S


def read_office(database: Database, connection: Connection) -> Office | None:
    """The dispatcher in office; None where there never was one, or it left of its own."""
    row = connection.execute(sa.select(dispatcher.c.holder, dispatcher.c.since).where(dispatcher.c.since > 0)).first()
    if row is None:
        return None
    holder, _, farm = row.holder.partition(_OF)
    return Office(holder=holder, farm=farm, silent_s=database.now(connection) - row.since)


def take_office(database: Database, connection: Connection, holder: str, farm: str) -> int:
    """Put a dispatcher in office, within a transaction that writes; returns its epoch. Raises `OfficeTakenError`."""
    before = read_office(database, connection)
    if before is not None and before.bars(farm):
        raise OfficeTakenError(f"{before.holder} of farm {before.farm or 'unknown'} is in office")
    now = database.now(connection)
    its = {"holder": f"{holder}{_OF}{farm}"[:128] if farm else holder, "since": now}
    insert = database.insert(dispatcher).values(id=1, epoch=1, **its)
    update = insert.on_conflict_do_update(
        index_elements=[dispatcher.c.id], set_={"epoch": dispatcher.c.epoch + 1, **its}
    )
    return int(connection.execute(update.returning(dispatcher.c.epoch)).scalar_one())


def note_in_office(connection: Connection, epoch: int, now: int) -> bool:
    """Write that the dispatcher of this epoch is there; False where it is not in office any more. `now`: 0: it left."""
    return bool(connection.execute(_NOTE, {"its_epoch": epoch, "now": now}).rowcount)


# Made once: to build a statement takes longer than to run it.
_NOTE = (
    sa.update(dispatcher)
    .where(dispatcher.c.id == 1, dispatcher.c.epoch == sa.bindparam("its_epoch"))
    .values(since=sa.bindparam("now"))
)
