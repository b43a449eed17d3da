"""What a database itself says of its indexes."""

from __future__ import annotations

import sqlalchemy as sa

from cluster.store import Database


def index_texts(database: Database) -> set[str]:
    """Every index as the database itself describes it: with expressions and conditions, which Alembic leaves out."""
    query = (
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if database.is_sqlite
        else "SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = current_schema()"
    )
    with database.engine.connect() as c:
        return {" ".join(str(text).replace('"', "").split()) for text in c.scalars(sa.text(query))}
