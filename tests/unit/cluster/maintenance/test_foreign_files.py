"""What clipmill did not write inside its home stays as it is, and keeps nothing from working."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cluster.dispatch.checkpoint_gc import CheckpointGc
from cluster.farm import Farm
from cluster.jobs.model import StoredCheckpoint
from cluster.maintenance.audit import check
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from cluster.store import BatchStore, Database, DispatchStore
from pipeline.private import private_folder
from serve.cli.common import local_farm
from serve.farm_logs import keep_logs, kept_runs
from serve.settings import Settings
from tests.building import Clock, draft, spec, still_png
from tests.unit.cluster.maintenance.test_retention import DAY, Kept, hand_in, lose, publish, start

CLIP = spec("i2vgen-xl-tiny", steps=50)
#: What systems, servers and people leave in folders.
NAMES = [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs000000000001", "notes (1).txt", "Ä ö.txt", "._clip", "~$x.tmp"]
FOLDERS = ["lost+found", "My holiday", ".Trash-1000"]


def leave(folder: Path) -> dict[Path, bytes]:
    """Files of others in a folder and in folders of theirs below it, older than any grace."""
    left: dict[Path, bytes] = {}
    for place in [folder, *(folder / name for name in FOLDERS)]:
        place.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            path = place / name
            path.write_bytes(f"{path}".encode())
            os.utime(path, (1, 1))
            left[path] = path.read_bytes()
    return left


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


def test_nothing_of_others_is_deleted_or_breaks_anything(home):
    database = Database.in_folder(home)
    clock = Clock().set_on(database)
    storage = Kept(home / "storage", clock)
    farm = Farm(BatchStore(database), storage)
    dispatch_store = DispatchStore(database)
    dispatch_store.take_office("first")
    still = farm.put_still(still_png())
    batch_id = hand_in(farm.batch_store, draft(1, "a", still=still, spec=CLIP), draft(2, "b", spec=CLIP))
    first = start(dispatch_store, "a")
    key = f"checkpoints/{first.job.id}/{first.attempt_id}/10"
    storage.put_bytes(key, b"latents")
    storage.put_bytes("cache/text/" + "ab" * 32, b"encoding")
    lose(dispatch_store, first, checkpoint=StoredCheckpoint(key, 10))
    made = publish(storage, dispatch_store, start(dispatch_store, "a"))
    publish(storage, dispatch_store, start(dispatch_store, "b"))
    logs = home.parent / "ray-logs"
    logs.mkdir()
    (logs / "gateway.log").write_text("up")
    keep_logs(logs, home, "20260101-000000-1")

    places = [home, home / "storage", home / "weights", home / "weights" / "i2vgen-xl", home / "logs"]
    places += [path for path in (home / "storage").rglob("*") if path.is_dir()]
    left = {path: data for place in places for path, data in leave(place).items()}

    private_folder(home)
    home.chmod(0o755)
    local_farm(Settings(home=home))
    assert kept_runs(home), "a run's logs are found among them"
    assert check(database, storage) == []
    clock.now += 400 * DAY
    keep = Keep(outputs_days=300, failed_days=1, checkpoints_days=1, cache_days=1)
    swept = Sweeper(database, storage, keep, clock=clock).run()
    assert (swept.failed, swept.errors) == (0, []), "strange names are no fault"
    assert swept.clips == 2
    assert not storage.exists(made.video)

    async def collect() -> None:
        async def call(function, *given):
            return function(*given)

        gc = CheckpointGc(dispatch_store, storage, call)  # type: ignore[arg-type]
        assert gc.start_sweep(thorough=True)
        await gc._sweeping
        await gc.close()

    asyncio.run(collect())
    assert not storage.exists(key)
    assert check(database, storage) == []
    assert farm.delete_batch(batch_id).rows == 2
    assert {path: path.read_bytes() for path in left} == left


def test_folders_of_checkpoints_that_hold_nothing_else_go(home):
    database = Database.in_folder(home)
    storage = Kept(home / "storage", Clock())
    for name in ("10", "20", ".10.0123456789ab.part"):
        (home / "storage" / "checkpoints" / "job" / "attempt").mkdir(parents=True, exist_ok=True)
        (home / "storage" / "checkpoints" / "job" / "attempt" / name).write_bytes(b"x")
    dispatch_store = DispatchStore(database)

    async def call(function, *given):
        return function(*given)

    async def delete() -> None:
        gc = CheckpointGc(dispatch_store, storage, call)  # type: ignore[arg-type]
        gc._delete_under("checkpoints/job")
        await gc.close()

    asyncio.run(delete())
    assert storage.names_under("checkpoints") == []
