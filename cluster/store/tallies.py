"""Counters that only grow, kept in the transaction that makes them true."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from cluster.store.database import Database
from cluster.store.schema import tallies


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
    """Add `by` to one counter within the caller's transaction."""
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
