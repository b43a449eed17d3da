"""One `render` without Ray: a farm that breaks, and one whose start never returns."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rich.console import Console

from cluster.farm import Farm
from cluster.manifest import read_manifest
from cluster.resolve import Defaults
from cluster.results import ResultsError
from cluster.storage import Storage
from cluster.store import Database, Desk
from serve.cli import render as render_module
from serve.cli import session as session_module
from serve.cli.results import ResultsWriter
from serve.cli.session import FarmLostError, RenderSession
from serve.cli.show import ProgressView
from serve.local import FarmLock
from tests.building import still_png

PATIENCE_S = 30


class FakeFarm:
    """A farm that renders nothing."""

    def __init__(self, *, lost: str | None = None) -> None:
        self.may_start = threading.Event()
        self.closed = threading.Event()
        self._lost = lost

    def start(self) -> None:
        self.may_start.wait(PATIENCE_S)

    def close(self, grace_s: float | None = None) -> None:
        self.closed.set()

    def lost(self) -> str | None:
        return self._lost


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "still.png").write_bytes(still_png())
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("image,prompt\nstill.png,zoom in\n")
    database = Database(f"sqlite:///{tmp_path / 'clipmill.db'}")
    database.migrate()
    farm = Farm(Desk(database), Storage(tmp_path / "storage"))

    def make(fake: FakeFarm, show) -> tuple[RenderSession, object]:
        writer = ResultsWriter(farm, tmp_path / "out", {})
        session = RenderSession(farm, FarmLock(tmp_path), lambda: fake, writer, show)
        defaults = Defaults(model="camera")
        return session, lambda: session.run(read_manifest(catalog), defaults, name="catalog.csv", source="here")

    return make


@pytest.mark.timeout(PATIENCE_S)
def test_a_farm_that_loses_a_daemon_ends_the_command_instead_of_hanging(run) -> None:
    fake = FakeFarm(lost="raylet")
    fake.may_start.set()
    session, work = run(fake, lambda _moment: None)
    with pytest.raises(FarmLostError, match="raylet"):
        work()
    assert session.close()
    assert fake.closed.is_set()


@pytest.mark.timeout(PATIENCE_S)
def test_a_start_that_does_not_return_is_not_waited_for(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CLOSE_S", 0.01)
    fake = FakeFarm()

    def interrupt(moment) -> None:
        if moment.farm == "starting":
            raise KeyboardInterrupt

    session, work = run(fake, interrupt)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert not session.close(0, patient=False), "said to be closed while it still starts"
    fake.may_start.set()
    assert fake.closed.wait(PATIENCE_S)


@pytest.mark.timeout(PATIENCE_S)
def test_an_error_while_the_farm_starts_is_still_told(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending the process at once, as for Ctrl-C, would swallow the message."""
    monkeypatch.setattr(session_module, "CLOSE_S", 0.01)
    monkeypatch.setattr(render_module.os, "_exit", lambda _code: pytest.fail("the process was ended"))
    fake = FakeFarm()

    def full(moment) -> None:
        if moment.farm == "starting":
            threading.Timer(0.1, fake.may_start.set).start()
            raise ResultsError("the disk is full", "Make room.")

    session, work = run(fake, full)
    with pytest.raises(ResultsError, match="disk is full"):
        render_module._run(session, work, lambda _batch: None, ProgressView(Console(), silent=True))
    assert fake.closed.is_set()


@pytest.mark.timeout(PATIENCE_S)
def test_a_batch_that_is_done_before_the_farm_says_it_is_up_ends_well(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renderers may start before Serve reports the whole application healthy."""
    monkeypatch.setattr(session_module, "CLOSE_S", 0.01)
    monkeypatch.setattr(render_module.os, "_exit", lambda _code: pytest.fail("the process was ended"))
    fake = FakeFarm()

    class DoneError(Exception):
        pass

    def done(moment) -> None:
        if moment.farm == "starting":
            threading.Timer(0.1, fake.may_start.set).start()
            raise DoneError

    session, work = run(fake, done)

    def work_to_the_end() -> str:
        with pytest.raises(DoneError):
            work()
        return "the batch"

    show = ProgressView(Console(), silent=True)
    assert render_module._run(session, work_to_the_end, lambda _batch: None, show) == "the batch"
    assert fake.closed.is_set()
