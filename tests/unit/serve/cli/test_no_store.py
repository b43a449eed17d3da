"""Files that are no store of a farm: refused in a sentence, by every command, and left as they are."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.store.database import Database, refuse_no_store
from pipeline.problems import BadInputError
from serve.cli.main import app
from tests.building import still_png


def refused(tmp_path: Path, url: str, *command: str) -> str:
    env = {"CLIPMILL_DATABASE_URL": url, "CLIPMILL_HOME": str(tmp_path / "home"), "COLUMNS": "400"}
    found = CliRunner(env=env).invoke(app, list(command or ["status"]))
    assert found.exit_code in (2, 3), found.output
    assert isinstance(found.exception, SystemExit), found.exception
    return found.output


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true&cache=shared",
        "sqlite:///file:farm?mode=memory&uri=true",
    ],
)
@pytest.mark.parametrize("command", ["status", "cards", "up"])
def test_a_store_in_memory_is_refused(tmp_path: Path, url: str, command: str) -> None:
    assert "in memory" in refused(tmp_path, url, command)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some.png"
    path.write_bytes(still_png())
    for command in (["status"], ["store", "check"], ["store", "sweep"], ["up"]):
        assert f"{path} is no SQLite database" in refused(tmp_path, f"sqlite:///{path}", *command)
    assert path.read_bytes() == still_png()
    assert {entry.name for entry in tmp_path.iterdir()} == {"some.png", "home"}
    assert "is a folder" in refused(tmp_path, f"sqlite:///{tmp_path}")


def test_another_programs_database_gets_no_tables_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    with sqlite3.connect(path) as opened:
        opened.execute("CREATE TABLE moz_places (url TEXT)")
    opened.close()
    assert "the database of another program" in refused(tmp_path, f"sqlite:///{path}")
    assert sa.inspect(sa.create_engine(f"sqlite:///{path}")).get_table_names() == ["moz_places"]


def test_a_damaged_store_is_told_wherever_the_damage_is(tmp_path: Path) -> None:
    """In the first page, which opening reads, and in every other, which only a query does."""
    home = tmp_path / "home"
    database = Database.in_folder(home)
    database.close()
    path = home / "clipmill.db"
    whole = path.read_bytes()
    for start in (0, 100, 4096):
        for leftover in home.glob("clipmill.db-*"):
            leftover.unlink()
        path.write_bytes(whole[:start] + b"\xa5" * (len(whole) - start))
        assert ".recover" in refused(tmp_path, f"sqlite:///{path}")


def test_a_store_and_a_path_at_which_there_is_nothing_are_fine(tmp_path: Path) -> None:
    refuse_no_store(f"sqlite:///{tmp_path / 'new.db'}")
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "empty.db").touch()
    Database.shared(f"sqlite:///{tmp_path / 'empty.db'}").migrate()
    refuse_no_store(f"sqlite:///{tmp_path / 'empty.db'}")
    refuse_no_store("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(BadInputError):
        Database.shared("sqlite://")
