"""One `render` without Ray: a farm that breaks, and one whose start never returns."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import FIRST_ROWS
from cluster.catalog.manifest import read_manifest
from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import Batch, BatchCounts, HoldReason, JobState
from cluster.jobs.outcomes import Completed
from cluster.jobs.transitions import Verb
from cluster.results.export import ResultsError
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from pipeline.units import GIB
from serve.cli import render as render_module
from serve.cli import session as session_module
from serve.cli.results import ResultsWriter
from serve.cli.session import FarmLostError, Moment, NoUsableCardError, RenderSession, waits_for_people
from serve.cli.show import ProgressView
from serve.embedded import FarmLock
from serve.results_source import LocalResults
from tests.building import FLEET, beat, card, objects, still_png

PATIENCE_S = 30


class FakeFarm:
    """A farm that renders nothing."""

    renderers = 1

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
    farm = Farm(BatchStore(database), Storage(tmp_path / "storage"))

    def make(fake, show, model: str = "camera", **how: Any) -> tuple[RenderSession, object]:
        # A farm, or what makes one of the store that its dispatcher writes.
        fake = fake if isinstance(fake, FakeFarm) else fake(DispatchStore(database))
        writer = ResultsWriter(LocalResults(farm), tmp_path / "out", {})
        session = RenderSession(farm, FarmLock(tmp_path), lambda: fake, writer, show)
        defaults = Defaults(model=model)
        return session, lambda: session.run(read_manifest(catalog), defaults, name="catalog.csv", source="here", **how)

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
def test_a_farm_of_another_process_is_named_only_where_there_is_one(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the batch's start and its first row, before anything needs a farm, it was said that one runs already."""

    class DoneError(Exception):
        pass

    said: list[str] = []
    seen = threading.Event()

    def show(moment: Moment) -> None:
        if moment.batch is not None:
            said.append(moment.farm)
            seen.set()
        if moment.farm in ("starting", "shared"):
            raise DoneError

    put_still = Farm.put_still

    def put_late(*args: Any) -> Any:
        assert seen.wait(PATIENCE_S)
        return put_still(*args)

    monkeypatch.setattr(Farm, "put_still", put_late)

    def look() -> list[str]:
        said.clear()
        seen.clear()
        _session, work = run(FakeFarm(), show)
        with pytest.raises(DoneError):
            work()
        return list(dict.fromkeys(said))

    # Its farm is started at once where a catalog is new.
    database = Database(f"sqlite:///{tmp_path / 'clipmill.db'}")
    BatchStore(database).open_batch("local", name="catalog.csv", source="here")
    database.close()
    assert look() == ["idle", "starting"]
    other = FarmLock(tmp_path)
    assert other.try_acquire()
    assert look() == ["idle", "shared"]
    other.release()


@pytest.mark.timeout(PATIENCE_S)
def test_the_farm_of_a_new_catalog_starts_before_a_row_is_read(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading would take seconds in which Ray starts."""

    class DoneError(Exception):
        pass

    fake, started = FakeFarm(), threading.Event()
    monkeypatch.setattr(FakeFarm, "start", lambda self: started.set() or self.may_start.wait(PATIENCE_S))
    put_still = Farm.put_still

    def put_late(*args: Any) -> Any:
        assert started.wait(PATIENCE_S), "rows are read, and no farm starts"
        return put_still(*args)

    monkeypatch.setattr(Farm, "put_still", put_late)

    def read(moment: Moment) -> None:
        if moment.rows_read:
            raise DoneError

    session, work = run(fake, read)
    with pytest.raises(DoneError):
        work()
    fake.may_start.set()
    assert session.close()


@pytest.mark.timeout(PATIENCE_S)
def test_on_few_cores_rows_behind_the_first_are_read_once_a_clip_is_done(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"still.png,zoom in number {number}\n" for number in range(12))
    (tmp_path / "catalog.csv").write_text(f"image,prompt\n{rows}")
    monkeypatch.setattr(session_module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(session_module, "READ_ON_S", 2 * PATIENCE_S)
    read: list[int] = []

    class DoneError(Exception):
        pass

    def show(moment: Moment) -> None:
        read.append(moment.rows_read)
        counts = moment.batch and moment.batch.counts
        if moment.rows_read == 12:
            raise DoneError
        if counts and counts[JobState.QUEUED] == FIRST_ROWS and read.count(FIRST_ROWS) > 3:
            # A row that has ended, whichever way.
            ours = session._farm
            ours.command_job(ours.jobs(session.batch_id)[0].id, Verb.CANCEL)

    fake = FakeFarm()
    fake.may_start.set()
    session, work = run(fake, show)
    with pytest.raises(DoneError):
        work()
    assert read.count(FIRST_ROWS) > 3
    assert session.close()


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


FAULT = "card: the NVIDIA driver 550.54.15 is too old. Update the driver."


class BrokenCard(FakeFarm):
    """A farm whose cards cannot be used, as they say once it is up."""

    def __init__(self, store: DispatchStore, **changes: Any) -> None:
        super().__init__()
        self._store, self._changes = store, changes

    def start(self) -> None:
        self._store.take_office("embedded")
        self._store.record_cards([beat("gpu0", renderer="new", usable_bytes=0, fault=FAULT, **self._changes)])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCK_S", "POLL_S", "CALM_POLL_S", "FOLLOW_S", "SETTLE_S"):
        monkeypatch.setattr(session_module, name, 0.0)


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("passes", [False, True])
def test_rows_that_no_card_can_ever_take_end_the_command_with_the_fault(run, monkeypatch, passes) -> None:
    # One that may be over by itself is waited for longer.
    monkeypatch.setattr(session_module, "SETTLE_S" if passes else "PASSES_S", 1e9)
    monkeypatch.setattr(session_module, "PASSES_S" if passes else "SETTLE_S", 0.0)
    fake = lambda store: BrokenCard(store, fault_passes=passes)  # noqa: E731
    session, work = run(fake, lambda _moment: None, model="i2vgen-xl")
    with pytest.raises(NoUsableCardError) as raised:
        work()
    assert FAULT in str(raised.value)
    assert "the row that waits" in str(raised.value)
    assert session.close()


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("model", "changes", "others"),
    [
        # Needs no GPU; may have the other card; waits for a card that tries again; was said by an earlier farm.
        ("camera", {}, []),
        ("i2vgen-xl", {}, [beat("gpu1", usable_bytes=20 * GIB)]),
        ("i2vgen-xl", {"fault_passes": True}, []),
    ],
)
def test_rows_that_a_card_may_take_are_waited_for(run, model, changes, others) -> None:
    looks = 0

    class EnoughError(Exception):
        pass

    def show(moment) -> None:
        nonlocal looks
        looks += bool(moment.faults)
        if looks == 20:
            raise EnoughError

    class Mixed(BrokenCard):
        def start(self) -> None:
            super().start()
            self._store.record_cards(others)

    session, work = run(lambda store: Mixed(store, **changes), show, model=model)
    with pytest.raises(EnoughError):
        work()
    assert session.close()


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.usefixtures("at_once")
def test_what_an_earlier_farm_said_of_its_cards_is_not_believed(run, monkeypatch) -> None:
    class StillSilent(BrokenCard):
        def start(self) -> None:
            pass

    looks = []

    class EnoughError(Exception):
        pass

    def show(moment) -> None:
        looks.append(moment.faults)
        if looks.count({}) > 20 and moment.farm == "running":
            raise EnoughError

    def before(store: DispatchStore) -> StillSilent:
        BrokenCard(store).start()
        return StillSilent(store)

    session, work = run(before, show, model="i2vgen-xl")
    with pytest.raises(EnoughError):
        work()
    assert session.close()
    assert {"gpu0": FAULT} not in looks


def test_the_fault_is_told_at_once_and_once() -> None:
    out = io.StringIO()
    show = ProgressView(Console(file=out, width=200))
    moment = Moment(batch=None, running=[], rows_read=0, rows=1, farm="running", cards=1, faults={"gpu0": FAULT})
    show(moment)
    show(moment)
    assert out.getvalue().count(f"gpu0: {FAULT}") == 1
    assert "no card of this farm can be used" in out.getvalue()


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.usefixtures("at_once")
def test_notes_of_rows_are_there_once_before_anything_is_rendered(run, tmp_path: Path) -> None:
    read: list[str] = []
    looks: list[int] = []

    class EnoughError(Exception):
        pass

    def show(_moment: Moment) -> None:
        looks.append(len(read))
        if looks.count(1) == 20:
            raise EnoughError

    session, work = run(FakeFarm(), show, on_read=read.append)
    with pytest.raises(EnoughError):
        work()
    assert read == [session.batch_id]
    assert not session.close(0, patient=False)


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.usefixtures("at_once")
def test_the_page_is_there_while_other_rows_are_rendered(run, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(still_png(seed=2))
    with (tmp_path / "catalog.csv").open("a") as catalog:
        catalog.write("other.png,pan left\n")
    page = tmp_path / "out" / "index.html"
    stores: list[DispatchStore] = []
    # The farm of a new catalog is there before its rows are.
    read = threading.Event()

    class OneClip(FakeFarm):
        def start(self) -> None:
            (office,) = stores
            office.take_office("embedded")
            assert read.wait(PATIENCE_S)
            job = office.waiting(1)[0]
            (claim,) = office.start([(job, card(job.id))], 10)
            ended = Completed(objects=objects(claim.attempt_id))
            for key in (ended.objects.video, ended.objects.poster, ended.objects.provenance):
                Storage(tmp_path / "storage").put_bytes(key, b"{}")
            office.finish(claim, ended, after_attempt(job, ended, FLEET))

    def fake(store: DispatchStore) -> OneClip:
        stores.append(store)
        return OneClip()

    class EnoughError(Exception):
        pass

    def show(moment: Moment) -> None:
        if page.exists():
            assert moment.batch is not None
            assert not moment.batch.done
            raise EnoughError

    session, work = run(fake, show, cards="1 × c8", on_read=lambda _batch: read.set())
    with pytest.raises(EnoughError):
        work()
    assert "1 × c8" in page.read_text()
    assert session.close()


def test_a_session_ends_when_nothing_but_reviews_is_left():
    def batch(held_by: dict[HoldReason, int], **counts: int) -> Batch:
        states = {JobState(name): number for name, number in counts.items()}
        return Batch(
            id="b",
            owner="o",
            name="",
            created_at=0,
            sealed=True,
            source="",
            attended_until=9,
            counts=BatchCounts(by_state=states),
            attempts=0,
            held_by=held_by,
        )

    assert waits_for_people(batch({HoldReason.REVIEW: 2}, held=2, completed=5))
    # What waits for a row in review cannot begin before it either.
    assert waits_for_people(batch({HoldReason.REVIEW: 1, HoldReason.AFTER: 3}, held=4))
    assert not waits_for_people(batch({HoldReason.REVIEW: 1}, held=1, queued=1))
    assert not waits_for_people(batch({HoldReason.REVIEW: 1}, held=1, running=1))
    assert not waits_for_people(batch({HoldReason.REVIEW: 1, HoldReason.PAUSED: 1}, held=2))
    assert not waits_for_people(batch({}, completed=5))
