"""A store that cannot be used: every command says in a sentence where it is, what is wrong and what to do."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.store import Database
from cluster.store.database import CONNECT_TIMEOUT_S
from serve.cli import batches
from serve.cli.main import app
from serve.embedded import FarmLock
from tests.building import still_png

PASSWORD = "hunter2secret"


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """The port of something that takes connections, and says what PostgreSQL would; None: nothing, ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve() -> None:
            kept = []
            while not over.is_set():
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                kept.append(peer)
                if answer is None:
                    continue
                while len(head := peer.recv(8)) == 8:
                    length, code = struct.unpack(">II", head)
                    peer.recv(length - 8)
                    # Requests for TLS and GSSAPI are declined; then comes the greeting.
                    if code in (80877103, 80877104):
                        peer.sendall(b"N")
                        continue
                    peer.sendall(answer)
                    break
                peer.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)


def refusal(code: str, message: str) -> bytes:
    """An ErrorResponse of PostgreSQL's protocol."""
    fields = b"".join(key + text.encode() + b"\0" for key, text in ((b"S", "FATAL"), (b"C", code), (b"M", message)))
    return b"E" + struct.pack(">I", len(fields) + 5) + fields + b"\0"


def url_of(port: int) -> str:
    return f"postgresql+psycopg://anna:{PASSWORD}@127.0.0.1:{port}/clips?connect_timeout=2"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def silent(_folder: Path, enter: Callable) -> str:
    return url_of(enter(server(None)))


def refused(_folder: Path, _enter: Callable) -> str:
    return url_of(unused_port())


def wrong_password(_folder: Path, enter: Callable) -> str:
    return url_of(enter(server(refusal("28P01", 'password authentication failed for user "anna"'))))


def no_database(_folder: Path, enter: Callable) -> str:
    return url_of(enter(server(refusal("3D000", 'database "clips" does not exist'))))


def full_server(_folder: Path, enter: Callable) -> str:
    return url_of(enter(server(refusal("53300", "sorry, too many clients already"))))


def no_address(_folder: Path, _enter: Callable) -> str:
    return "postgresql+psycopg://anna@no-such-host.invalid/clips?connect_timeout=2"


def read_only(folder: Path, _enter: Callable) -> str:
    path = folder / "read-only.db"
    sa.create_engine(f"sqlite:///{path}").connect().exec_driver_sql("CREATE TABLE x (y)")
    return f"sqlite:///file:{path}?mode=ro&uri=true"


def directory(folder: Path, _enter: Callable) -> str:
    (folder / "there").mkdir()
    return f"sqlite:///{folder / 'there'}"


def no_database_file(folder: Path, _enter: Callable) -> str:
    (folder / "notes.db").write_text("shopping list " * 1000)
    return f"sqlite:///{folder / 'notes.db'}"


def below_a_file(folder: Path, _enter: Callable) -> str:
    (folder / "file").write_text("x")
    return f"sqlite:///{folder / 'file' / 'clipmill.db'}"


def newer(folder: Path, _enter: Callable) -> str:
    database = Database(f"sqlite:///{folder / 'newer.db'}")
    database.migrate()
    with database.write() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    return database.url


def another_kind(_folder: Path, _enter: Callable) -> str:
    return f"mysql://anna:{PASSWORD}@db/clips"


def no_url(_folder: Path, _enter: Callable) -> str:
    return f"anna {PASSWORD} db"


KINDS = {
    silent: ("127.0.0.1", "nothing answers there", "firewall"),
    refused: ("127.0.0.1", "no server listens there", "Start it"),
    wrong_password: ("127.0.0.1", "refuses this user or password", "Correct them"),
    no_database: ("127.0.0.1", 'database "clips" does not exist', "Create it"),
    full_server: ("127.0.0.1", "no connection left", "max_connections"),
    no_address: ("no-such-host.invalid", "has no address", "Correct the name"),
    read_only: ("read-only.db", "it can only be read", "right to write"),
    directory: ("there", "", "Check"),
    no_database_file: ("notes.db", "no SQLite database", "backup"),
    below_a_file: ("clipmill.db", "", "Check"),
    newer: ("newer.db", "schema 9999", "newer clipmill"),
    another_kind: ("", "mysql", "postgresql+psycopg://"),
    no_url: ("", "no URL of a database", "postgresql+psycopg://"),
}


@pytest.fixture
def enter() -> Iterator[Callable]:
    with ExitStack() as stack:
        yield stack.enter_context


def commands(folder: Path) -> dict[str, list[str]]:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "mug.png").write_bytes(still_png())
    catalog = str(folder / "pictures")
    return {
        "status": ["status"],
        "submit": ["submit", catalog, "--prompt", "zoom in", "--model", "camera"],
        "render": ["render", catalog, "--prompt", "zoom in", "--model", "camera", "--out", str(folder / "out")],
        "up": ["up", "--cards", "c8"],
        "delete": ["delete", "batch_0123"],
    }


@pytest.mark.parametrize("command", ["status", "submit", "render", "up", "delete"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_says_where_what_and_what_to_do(kind, command, tmp_path, enter, monkeypatch):
    monkeypatch.setenv("CLIPMILL_DATABASE_URL", kind(tmp_path, enter))
    # A farm that is there, so that what fails is the store.
    monkeypatch.setattr(FarmLock, "holder", lambda _self: {"pid": 1, "default_model": "camera"})

    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("nothing is started for a store that cannot be used")

    monkeypatch.setattr(batches, "EmbeddedFarm", never)
    result = CliRunner().invoke(app, [*commands(tmp_path)[command], "--home", str(tmp_path / "home")])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (2, 3), result.output
    said = " ".join(result.output.split())
    assert "Traceback" not in said
    assert PASSWORD not in said
    for words in KINDS[kind]:
        assert words in said, said


def test_a_driver_that_is_not_installed_is_named_with_how_to_bring_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("CLIPMILL_DATABASE_URL", url_of(5432))
    result = CliRunner().invoke(app, ["status", "--home", str(tmp_path / "home")])
    assert result.exit_code == 2
    assert "psycopg is not installed" in result.output
    assert "clipmill[postgres]" in result.output
    assert PASSWORD not in result.output


@pytest.mark.parametrize(
    ("url", "seconds"), [("postgresql+psycopg://db/x", CONNECT_TIMEOUT_S), (url_of(5432), 2)], ids=["default", "given"]
)
def test_a_server_has_a_bounded_time_to_answer(url, seconds):
    asked: list[int] = []

    class ReachedError(Exception):
        pass

    database = Database(url)

    @sa.event.listens_for(database.engine, "do_connect")
    def look(_dialect, _record, _args, given):
        asked.append(int(given["connect_timeout"]))
        raise ReachedError

    with pytest.raises(ReachedError), database.read():
        pass
    assert asked == [seconds]
