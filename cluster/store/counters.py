"""Counters that only grow, kept in the transaction that makes them true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy.engine import Connection

from cluster.store.database import Database, insert_into
from cluster.store.schema import tallies

#: Stages of a render that can run out of memory.
STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What one counter counts, and what its columns are called outside."""

    help: str
    #: Label outside to column of the table; a column that is not named here is empty.
    labels: Mapping[str, str]


_KIND = {"model": "model", "resolution_class": "resolution_class"}
_WHERE = {**_KIND, "card_class": "card_class"}

#: Every counter by its name in the table. `outcome` is one column with a name of its own in every counter.
TALLIES: Mapping[str, Tally] = {
    "attempts": Tally(help="Attempts that ended, by how they ended.", labels={**_WHERE, "outcome": "outcome"}),
    "attempts_deleted": Tally(
        help="Attempts that ended and were deleted with their batch, by how they ended.",
        labels={**_WHERE, "outcome": "outcome"},
    ),
    "clips": Tally(
        help="Rows that ended: completed (rendered), shared (an equal clip was there), failed, invalid, cancelled.",
        labels={**_KIND, "outcome": "outcome"},
    ),
    "oom": Tally(
        help="Attempts whose card ran out of memory, by the stage that did.", labels={**_WHERE, "stage": "outcome"}
    ),
    "gpu_seconds": Tally(help="Seconds between start and end of attempts, however they ended.", labels=_WHERE),
    "admissions": Tally(
        help="Clips that cards took (admitted) or sent back (too_big), and rows no card of the farm holds (refused).",
        labels={"decision": "outcome", "card_class": "card_class"},
    ),
    "preemptions": Tally(
        help="Attempts told to stop whose job went back into the queue.", labels={"reason": "outcome"}
    ),
    "leases_expired": Tally(help="Attempts lost after their lease had run out.", labels={}),
    "webhook_messages": Tally(
        help="Messages to webhooks that ended: delivered, or failed for good.", labels={"outcome": "outcome"}
    ),
}


class Counts:
    """Counters raised together: each is written once, however often it was added to."""

    def __init__(self) -> None:
        self._by: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(
        self,
        name: str,
        *,
        model: str = "",
        resolution_class: str = "",
        card_class: str = "",
        outcome: str = "",
        by: float = 1.0,
    ) -> None:
        """Add `by` to one counter of `TALLIES`. Raises `KeyError` for another name."""
        TALLIES[name]
        # Members of enumerations are equal to their texts, and are made texts when they are written.
        self._by[name, model, resolution_class, card_class, outcome] += by

    def write(self, database: Database, connection: Connection) -> None:
        """Write what was added, within the caller's transaction."""
        if not self._by:
            return
        connection.execute(
            _adding(database.is_sqlite),
            # In one order: two writers that raise the same counters never wait for each other in a circle.
            [dict(zip(_COLUMNS, map(str, key), strict=True)) | {"value": by} for key, by in sorted(self._by.items())],
        )
        self._by.clear()


_COLUMNS = [column.name for column in tallies.primary_key]


@cache
def _adding(sqlite: bool) -> Any:
    insert = insert_into(tallies, sqlite=sqlite)
    return insert.on_conflict_do_update(
        index_elements=list(tallies.primary_key), set_={"value": tallies.c.value + insert.excluded.value}
    )


def count(
    database: Database,
    connection: Connection,
    name: str,
    *,
    model: str = "",
    resolution_class: str = "",
    card_class: str = "",
    outcome: str = "",
    by: float = 1.0,
) -> None:
    """Add `by` to one counter of `TALLIES` within the caller's transaction. Raises `KeyError` for another name."""
    counts = Counts()
    counts.add(name, model=model, resolution_class=resolution_class, card_class=card_class, outcome=outcome, by=by)
    counts.write(database, connection)
