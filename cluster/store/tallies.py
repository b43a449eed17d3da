"""Counters that only grow, kept in the transaction that makes them true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from cluster.store.database import Database
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
}


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
    TALLIES[name]
    insert = database.insert(tallies).values(
        name=name,
        model=model,
        resolution_class=resolution_class,
        card_class=card_class,
        outcome=outcome,
        value=by,
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=list(tallies.primary_key), set_={"value": tallies.c.value + insert.excluded.value}
        )
    )
