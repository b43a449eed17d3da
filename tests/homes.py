"""Homes as earlier commits left them, laid out for a test: `unit/cluster/store/homes/` holds one folder a commit."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.store import Database

HOMES = Path(__file__).parent / "unit" / "cluster" / "store" / "homes"


def fill_store(commit: str, url: str) -> Database:
    """The empty store at `url` with the tables and rows of that home, by the SQL of its time; nothing is migrated."""
    database = Database(url)
    kind = "sqlite" if database.is_sqlite else "postgresql"
    with database.write() as c:
        for name in (f"{kind}.sql", "rows.sql"):
            for statement in (HOMES / commit / name).read_text(encoding="utf-8").split(";\n"):
                if statement.strip():
                    c.exec_driver_sql(statement)
    return database


def copy_storage(commit: str, folder: Path) -> Path:
    """A copy of that home's storage, which the test may write to."""
    return Path(shutil.copytree(HOMES / commit / "storage", folder))
