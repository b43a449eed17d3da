"""Results of a batch beside files that are not clipmill's, by the commands themselves; nothing here starts Ray."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import Batch, Job
from cluster.jobs.outcomes import Completed
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from cluster.results.marked import MarkedObjects
from cluster.results.rows import result_from, results_of
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import clips, jobs
from pipeline.marks.marker import WatchedMarker
from serve.cli import results as results_module
from serve.cli.common import Exit
from serve.cli.main import app
from serve.cli.results import ResultsWriter
from serve.client import RemoteClient
from serve.embedded import FarmLock
from serve.gateway.api import create_api, protect
from serve.results_source import LocalResults
from serve.settings import Settings
from tests.building import FLEET, card, objects, still_png
from tests.served import served
from tests.unit.pipeline.marks.clips import make_files

MINE = b"the customer's own"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def farm(home: Path) -> Iterable[Farm]:
    home.mkdir(exist_ok=True)
    settings = Settings(home=home)
    database = Database(settings.database_url)
    database.migrate()
    storage = Storage(settings.storage_url)
    # As commands and a gateway have it.
    yield Farm(BatchStore(database), storage, marked=MarkedObjects(storage, WatchedMarker(settings.marks)))
    database.close()


def shop(folder: Path, *ids: str, name: str = "catalog.csv") -> Path:
    folder.mkdir(exist_ok=True)
    for number, row_id in enumerate(ids):
        (folder / f"{row_id}.jpg").write_bytes(still_png(seed=number))
    (folder / name).write_text("image,prompt\n" + "".join(f"{row_id}.jpg,zoom in\n" for row_id in ids))
    return folder / name


def rendered(farm: Farm, catalog: Path) -> Batch:
    """The catalog's batch with all its clips made, by the store's own statements."""
    batch = farm.submit(
        gather(read_manifest(catalog), farm.put_still),
        Defaults(model="camera"),
        name=catalog.name,
        source=str(catalog.resolve()),
    )
    office = office_of(farm)
    for job in office.waiting(100):
        complete(farm, office, job)
    return farm.batch(batch.id)


def office_of(farm: Farm) -> DispatchStore:
    """The dispatcher's side of the farm's store, in office."""
    office = DispatchStore(farm.batch_store.database)
    office.take_office("test")
    return office


def complete(farm: Farm, office: DispatchStore, job: Job, video: bytes | None = None) -> None:
    """Render a waiting job, as far as store and storage see of it."""
    # None for a row whose clip an equal row has got meanwhile.
    for claim in office.start([(job, card(job.id))], 10):
        # As renderers name them: by job and attempt.
        made = objects(f"{job.id}/{claim.attempt_id}")
        farm.storage.put_bytes(made.video, video or f"video of {job.name}".encode())
        farm.storage.put_bytes(made.poster, f"poster of {job.name}".encode())
        farm.storage.put_bytes(made.provenance, b"{}")
        ended = Completed(objects=made)
        assert office.finish(claim, ended, after_attempt(job, ended, FLEET))


def clipmill(*words: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, list(words))


def test_a_row_whose_file_is_somebodys_fails_alone_and_the_page_says_so(farm: Farm, tmp_path: Path) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", "A", "B", "C"))
    out = tmp_path / "out"
    (out / "B.mp4").mkdir(parents=True)
    (out / "C.json").write_bytes(MINE)
    writer = ResultsWriter(LocalResults(farm), out, {})
    writer.update(batch.id)
    page = writer.sheet(batch.id, "").read_text()
    assert set(writer.refused) == {"B", "C"}
    assert (out / "A.mp4").read_bytes() == b"video of A"
    assert (out / "C.json").read_bytes() == MINE
    assert not (out / "C.mp4").exists()
    assert str(out / "B.mp4") in page
    assert "A.mp4" in page
    assert "C.mp4" not in page


def test_a_clip_that_is_missing_in_storage_fails_alone(farm: Farm, tmp_path: Path) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", "A", "B"))
    (first,) = [job.clip_id for job in farm.jobs(batch.id) if job.name == "A"]
    farm.storage.delete(farm.clips(batch.id)[first].objects.video)
    writer = ResultsWriter(LocalResults(farm), tmp_path / "out", {})
    writer.update(batch.id)
    assert set(writer.refused) == {"A"}
    assert (tmp_path / "out" / "B.mp4").exists()


def test_a_clip_that_was_swept_says_so_and_when(farm: Farm, tmp_path: Path) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", "A", "B"))
    database = farm.batch_store.database
    with database.write() as c:
        c.execute(sa.update(clips).values(created_at=0))
        c.execute(sa.update(jobs).where(jobs.c.name == "A").values(updated_at=0))
    assert Sweeper(database, farm.storage, Keep(outputs_days=30)).run().clips == 1
    day = time.strftime("%d %b")
    told = clipmill("results", batch.id, "--out", str(tmp_path / "here"), "--json")
    assert told.exit_code == Exit.SOME_FAILED
    (refused,) = json.loads(told.stdout)["not_written"].items()
    assert refused[0] == "A"
    assert f"were removed from storage on {day}" in refused[1]["message"]
    assert (tmp_path / "here" / "B.mp4").exists()
    with gateway(farm) as url:
        far = clipmill("results", batch.id, "--url", url, "--out", str(tmp_path / "there"), "--json")
    assert json.loads(far.stdout)["not_written"] == json.loads(told.stdout)["not_written"]


def test_wait_writes_what_it_may_and_says_what_it_did_not(farm: Farm, tmp_path: Path) -> None:
    catalog = shop(tmp_path / "shop", "A", "B")
    rendered(farm, catalog)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "A.jpg").write_bytes(MINE)
    (tmp_path / "out" / "index.html").write_bytes(MINE)
    told = clipmill("wait", "--out", str(tmp_path / "out"), "--json")
    assert told.exit_code == Exit.SOME_FAILED
    assert str(tmp_path / "out" / "A.jpg") in json.loads(told.stdout)["not_written"]["A"]["message"]
    assert (tmp_path / "out" / "A.jpg").read_bytes() == MINE
    assert (tmp_path / "out" / "index.html").read_bytes() == MINE
    assert "B.mp4" in (tmp_path / "out" / "index-catalog.html").read_text()
    # Among its own pictures: A.jpg and B.jpg are what it was made of.
    pictures = {path: path.read_bytes() for path in catalog.parent.iterdir()}
    told = clipmill("wait", "--out", str(catalog.parent))
    assert told.exit_code == Exit.SOME_FAILED
    assert {path: path.read_bytes() for path in pictures} == pictures


def test_wait_asks_for_a_usable_folder_before_it_waits(farm: Farm, tmp_path: Path) -> None:
    catalog = shop(tmp_path / "shop", "A")
    farm.submit(gather(read_manifest(catalog), farm.put_still), Defaults(model="camera"), name="c", source=str(catalog))
    (tmp_path / "out").write_bytes(MINE)
    told = clipmill("wait", "--out", str(tmp_path / "out"))
    assert told.exit_code == Exit.USAGE
    assert "--out" in told.output


@pytest.mark.parametrize("how", ["the folder itself", "a link to it", "a catalog beside them"])
def test_render_never_writes_over_the_pictures(home: Path, tmp_path: Path, how: str) -> None:
    catalog = shop(tmp_path / "shop", "MUG-01", "MUG-02")
    folder = catalog.parent
    out, given = folder, folder
    if how == "a link to it":
        out = tmp_path / "link"
        out.symlink_to(folder)
    elif how == "a catalog beside them":
        given = catalog
    before = {path: path.read_bytes() for path in folder.iterdir()}
    told = clipmill("render", str(given), "--prompt", "zoom in", "--model", "camera", "--out", str(out), "--json")
    assert {path: path.read_bytes() for path in before} == before
    if given is catalog:
        # No row can be rendered, so no farm is started; each says which file is in its way.
        assert told.exit_code == Exit.SOME_FAILED
        jobs = json.loads(told.stdout)["jobs"]
        assert [job["state"] for job in jobs] == ["failed", "failed"]
        assert [str(folder / f"{job['name']}.jpg") in job["problems"][0]["message"] for job in jobs] == [True, True]
    else:
        assert told.exit_code == Exit.USAGE
        assert "folder of the pictures" in told.output
        assert {path.name for path in folder.iterdir()} == {path.name for path in before}


def test_rows_that_a_disk_takes_for_one_are_refused_at_submission(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(still_png())
    (tmp_path / "c.csv").write_text("id,image,prompt\nSKU-1,a.png,zoom in\nsku-1,a.png,pan left\n")
    lock = FarmLock(home)
    assert lock.try_acquire()
    try:
        told = clipmill("submit", str(tmp_path / "c.csv"), "--model", "camera", "--json")
    finally:
        lock.release()
    first, second = json.loads(told.stdout)["jobs"]
    assert (first["state"], second["state"]) == ("queued", "failed")
    assert "'SKU-1'" in second["problems"][0]["message"]


def test_lessons_replace_lessons_only(farm: Farm, tmp_path: Path) -> None:
    other = tmp_path / "catalog.csv"
    other.write_bytes(MINE)
    refused = clipmill("footprint", "export", str(other))
    assert refused.exit_code == Exit.USAGE
    assert other.read_bytes() == MINE
    for _ in range(2):
        assert clipmill("footprint", "export", str(tmp_path / "lessons.json")).exit_code == Exit.DONE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.csv", "home", "lessons.json"]


def test_the_page_follows_the_clips_and_is_written_now_and_then(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(results_module.time, "monotonic", lambda: now[0])
    batch = farm.submit(
        gather(read_manifest(shop(tmp_path / "shop", "A", "B", "C")), farm.put_still),
        Defaults(model="camera"),
        name="catalog.csv",
    )
    office = DispatchStore(farm.batch_store.database)
    office.take_office("test")
    waiting = iter(office.waiting(100))
    writer = ResultsWriter(LocalResults(farm), tmp_path / "out", {})
    page = tmp_path / "out" / "index.html"

    def follow(**how: bool) -> list[str]:
        writer.follow(batch.id, "1 × c8", **how)
        return [name for name in "ABC" if page.exists() and f"{name}.mp4" in page.read_text()]

    assert follow() == []
    assert not page.exists(), "no clip is there to be seen"
    complete(farm, office, next(waiting))
    assert follow() == ["A"]
    complete(farm, office, next(waiting))
    assert follow() == ["A"], "just written"
    assert (tmp_path / "out" / "B.mp4").exists()
    # What came while it was too soon is not forgotten.
    now[0] += results_module.PAGE_S
    assert follow() == ["A", "B"]
    # A page that takes long is written the more seldom.
    real = writer.sheet

    def slow(*given: object) -> Path:
        now[0] += 5
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "sheet", slow)
    now[0] += results_module.PAGE_S
    assert follow() == ["A", "B"]
    writer._page_is_old = True
    follow()
    complete(farm, office, next(waiting))
    now[0] += 5 * results_module.PAGE_SHARE - 1
    assert follow() == ["A", "B"]
    now[0] += 1
    assert follow() == ["A", "B", "C"]
    page.unlink()
    assert follow(ended=True) == ["A", "B", "C"]


@contextmanager
def gateway(farm: Farm) -> Iterator[str]:
    """The farm's API; yields its URL."""

    async def nobody() -> None:
        """Nobody is nudged."""

    with served(protect(create_api(farm, default_model="camera", nudge=nobody))) as port:
        yield f"http://127.0.0.1:{port}"


def files_in(folder: Path) -> dict[str, bytes]:
    """What people see in a folder of results, the time that its page names left out."""
    seen = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}
    seen["index.html"] = re.sub(rb"\b\d{4}-\d\d-\d\d.{0,20}|\d+(\.\d+)? s\b", b"", seen["index.html"])
    return seen


def test_results_over_http_are_those_of_the_farms_own_machine(farm, tmp_path, monkeypatch) -> None:
    catalog = shop(tmp_path / "shop", "A", "B", "C")
    with catalog.open("a") as file:
        # One that shares the clip of another, one that fails.
        file.write("A.jpg,zoom in\nmissing.jpg,zoom in\n")
    batch = rendered(farm, catalog)
    assert clipmill("results", batch.id, "--out", str(tmp_path / "here")).exit_code == Exit.DONE
    with gateway(farm) as url:
        # Another machine: no home, no store.
        monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "elsewhere"))
        told = clipmill("results", batch.id[:20], "--url", url, "--out", str(tmp_path / "there"))
        assert told.exit_code == Exit.DONE, told.output
        assert str(tmp_path / "there" / "index.html") in told.output
        assert files_in(tmp_path / "there") == files_in(tmp_path / "here")
        assert {"A.mp4", "B.jpg", "C.json", "A-2.mp4", "results.csv"} <= set(files_in(tmp_path / "there"))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").glob("*.mp4")}
        waited = clipmill("wait", batch.id, "--url", url, "--out", str(tmp_path / "there"), "--json")
        assert waited.exit_code == Exit.SOME_FAILED
        assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is fetched twice"
    assert not (tmp_path / "elsewhere" / "clipmill.db").exists()


def test_a_clip_that_is_gone_over_http_fails_alone(farm, tmp_path) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", "A", "B"))
    (first,) = [job.clip_id for job in farm.jobs(batch.id) if job.name == "A"]
    farm.storage.delete(farm.clips(batch.id)[first].objects.video)
    with gateway(farm) as url:
        told = clipmill("results", batch.id, "--url", url, "--out", str(tmp_path / "out"), "--json")
    assert told.exit_code == Exit.SOME_FAILED
    assert set(json.loads(told.stdout)["not_written"]) == {"A"}
    assert (tmp_path / "out" / "B.mp4").read_bytes() == b"video of B"
    assert not (tmp_path / "out" / "A.mp4").exists()


def test_results_are_paged_and_read_again_as_they_were(farm, tmp_path) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", *(f"SKU-{n}" for n in range(7))))
    expected = results_of(farm.batch_store, farm.owner, batch.id)
    with gateway(farm) as url:
        client = RemoteClient(url)
        found = [result_from(one) for one in client.results(batch.id, completed_since=None, page=3)]
        assert found == expected
        last = max(one.updated_at for one in expected)
        assert list(client.results(batch.id, completed_since=last + 1, page=3)) == []
        assert len(list(client.results(batch.id, completed_since=0, page=3))) == 7


def test_a_farm_that_does_not_answer_is_named(tmp_path, home) -> None:
    told = clipmill("results", "batch_1234", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out"))
    assert told.exit_code == Exit.NO_FARM
    assert "127.0.0.1:9" in told.output


def test_another_certificate_marks_results_anew_and_touches_neither_keys_nor_attempts(
    farm: Farm, home: Path, tmp_path: Path
) -> None:
    batch = rendered(farm, shop(tmp_path / "shop", "A"))
    (clip,) = farm.clips(batch.id).values()
    real = make_files(tmp_path)
    farm.storage.put_bytes(clip.objects.video, real["mp4"].read_bytes(), replace=True)
    farm.storage.put_bytes(clip.objects.poster, real["jpg"].read_bytes(), replace=True)

    def facts() -> list[object]:
        found = farm.batch_store.attempts_of(farm.owner, batch.id)
        return [[(job.content_key, job.attempts) for job in farm.jobs(batch.id)], found, farm.clips(batch.id)]

    before, out = facts(), tmp_path / "out"
    plain = clipmill("results", "--out", str(out))
    assert "no certificate is set up" in plain.stderr
    assert clipmill("verify", str(out / "A.mp4")).exit_code == Exit.SOME_FAILED
    for who in ("This year", "Next year"):
        assert clipmill("marks", "setup", "--test", "--name", who, "--replace").exit_code == Exit.DONE
        assert clipmill("results", "--out", str(out)).exit_code == Exit.DONE
        judged = clipmill("verify", "--json", str(out))
        assert judged.exit_code == Exit.DONE, judged.stdout
        assert {one["signer"]["common_name"] for one in json.loads(judged.stdout)["files"]} == {who}
    assert facts() == before
    assert clipmill("results", "--out", str(tmp_path / "off"), "--no-marks").exit_code == Exit.DONE
    assert (tmp_path / "off" / "A.mp4").read_bytes() == real["mp4"].read_bytes()
    assert json.loads((tmp_path / "off" / "A.json").read_text())["marks"] == "off"
    refused = clipmill("results", "--out", str(tmp_path / "far"), "--no-marks", "--url", "http://127.0.0.1:9")
    assert refused.exit_code in (Exit.USAGE, Exit.NO_FARM)
