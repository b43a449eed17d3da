"""Opening a store: where its folder is missing, and where its server is late."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from cluster.store import Database
from cluster.store import database as module
from pipeline.problems import BadInputError


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


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:secret@h/d",
        "mysql://u:secret@h/d",
        "postgresql+nothing://u:secret@h/d",
        "oracle://u:secret@h/d",
        "nothing://u:secret@h/d",
        "u:secret@h",
        "",
        "/home/somebody/clipmill.db",
    ],
)
def test_a_url_of_no_store_is_refused_in_a_sentence_without_its_password(url: str) -> None:
    with pytest.raises(BadInputError) as refused:
        Database(url)
    assert "secret" not in str(refused.value)
    assert refused.value.problem.field == "database_url"
    assert "postgresql+psycopg://" in refused.value.problem.remedy


_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("INSERT INTO seen VALUES (?)", [sys.argv[2]])
print("written", flush=True)
sys.stdin.read()
connection.close()
"""


def _writer(path: Path, who: str) -> subprocess.Popen[str]:
    """Another process that has written, and has the store open until its input is closed."""
    command = [sys.executable, "-c", _WRITE, str(path), who]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_a_store_that_is_opened_again_in_a_process_keeps_its_locks(tmp_path: Path) -> None:
    """Without them another process takes itself for the last one, and deletes the log that this one writes to.

    This one then reads what was, and what it writes is lost.
    """
    path = tmp_path / "clipmill.db"
    database = Database.in_folder(tmp_path)
    with database.write() as c:
        c.exec_driver_sql("CREATE TABLE seen (who TEXT)")
    Database.in_folder(tmp_path).close()
    with _writer(path, "one that ended"):
        pass
    with _writer(path, "one that runs"):
        with database.write() as c:
            c.exec_driver_sql("INSERT INTO seen VALUES ('this one')")
        with database.read() as c:
            seen = c.exec_driver_sql("SELECT who FROM seen").scalars().all()
    database.close()
    assert seen == ["one that ended", "one that runs", "this one"]
    with Database.in_folder(tmp_path).read() as c:
        assert c.exec_driver_sql("SELECT who FROM seen").scalars().all() == seen
