"""Opening a store: where its folder is missing, and where its server is late."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from cluster.store import Database
from cluster.store import database as module


def test_the_folder_of_a_new_store_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "home" / "clipmill.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    assert path.exists()


def _late(database: Database, monkeypatch: pytest.MonkeyPatch, failures: int) -> list[float]:
    """The first connections fail as those to a server do that is still starting; the clock moves by what is slept."""
    slept: list[float] = []
    left = iter(range(failures))

    def connect(*_: object) -> None:
        if next(left, None) is not None:
            raise sa.exc.OperationalError("connect", {}, ConnectionRefusedError("refused"))

    sa.event.listen(database.engine, "do_connect", connect)
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(slept))
    return slept


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'clipmill.db'}")
    slept = _late(database, monkeypatch, failures=3)
    database.migrate(patience_s=60)
    assert len(slept) == 3
    assert sa.inspect(database.engine).has_table("jobs")


def test_a_server_that_never_comes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'clipmill.db'}")
    slept = _late(database, monkeypatch, failures=100)
    with pytest.raises(sa.exc.OperationalError, match="refused"):
        database.migrate(patience_s=10)
    assert 9 <= sum(slept) <= 11
