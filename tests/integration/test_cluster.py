"""Many nodes: clips land where they fit, classes grow from nothing and go back, and a lost node loses no clip."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.farm import Farm
from cluster.jobs.model import Batch
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from tests.acceptance.conftest import write_catalog

pytestmark = pytest.mark.farm

LIMIT_S = 150


class FakeCluster:
    """The process of `fake_cluster.py`, and the farm's store beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database.in_folder(folder / "home")
        self.farm = Farm(BatchStore(self.database), Storage(folder / "home" / "storage"))
        classes = {
            name: {
                "replicas": 0,
                "max_replicas": 1,
                "num_gpus": 0,
                "num_cpus": 1,
                "label_selector": {"clipmill.io/card-class": name},
            }
            for name in ("c8", "c24")
        }
        args = {
            "card_classes": classes,
            "emulate": True,
            "home": str(folder / "home"),
            "gateway": False,
            "backlog_target_s": 20,
            "idle_s": 2,
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLIPMILL_"))}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fake_cluster.py")), json.dumps(args)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.log").open("w"),
            text=True,
            start_new_session=True,
        )
        assert self._read() == {"ready": True}

    def tell(self, line: str) -> dict[str, Any]:
        """One command, one answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        # Ray itself prints a line now and then.
        while not (line := self.process.stdout.readline()).startswith("{"):
            assert line, (self.folder / "cluster.log").read_text()[-3000:]
        return json.loads(line)

    def replicas(self, card_class: str) -> int:
        """Renderers of a class that Serve has, starting ones included."""
        states = self.tell("status")["clipmill"].get(f"renderer-{card_class}", {})
        return sum(states.values())

    def submit(self, rows: list[dict[str, Any]], name: str) -> str:
        """Hand a detached batch in."""
        catalog = write_catalog(self.folder / name, rows)
        found = gather(read_manifest(catalog), self.farm.put_still)
        return self.farm.submit(found, Defaults(model="i2vgen-xl-tiny"), name=name).id

    def until(self, met: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + LIMIT_S
        while not met():
            assert self.process.poll() is None, (self.folder / "cluster.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{what} never happened: {self.tell('status')}"
            time.sleep(0.1)

    def done(self, batch_id: str) -> Batch:
        """Wait until every row has ended."""
        self.until(lambda: self.farm.batch(batch_id).done, f"the end of {batch_id}")
        return self.farm.batch(batch_id)

    def close(self) -> None:
        """End the cluster: its own way first, then by its process group."""
        try:
            self.process.communicate("stop\n", timeout=30)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """One cluster for this module: its tests follow one another."""
    made = FakeCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


SMALL = {"prompt": "waves crashing", "frames": 8, "steps": 3}
LARGE = {"prompt": "snow falling", "resolution_class": "1024p", "frames": 32, "steps": 1}


def test_classes_grow_from_nothing_land_clips_where_they_fit_and_go_back(cluster: FakeCluster) -> None:
    cluster.tell("add c8")
    cluster.tell("add c24")
    assert cluster.replicas("c8") == cluster.replicas("c24") == 0
    batch = cluster.submit([SMALL, SMALL | {"prompt": "leaves falling"}, LARGE], "mixed")
    cluster.until(lambda: cluster.replicas("c8") == 1 and cluster.replicas("c24") == 1, "growing with the backlog")
    assert cluster.done(batch).status == "completed"
    names = {job.id: job.name for job in cluster.farm.jobs(batch)}
    attempts = cluster.farm.batch_store.attempts_of("local", batch)
    assert {a.card_class for a in attempts if names[a.job_id] == "row-2"} == {"c24"}
    cluster.until(lambda: cluster.replicas("c8") == 0 and cluster.replicas("c24") == 0, "going back to nothing")


def test_a_busy_renderer_is_not_taken_and_its_class_goes_down_after_it(cluster: FakeCluster) -> None:
    # The clip takes longer than the idle time and the policy's looks together.
    batch = cluster.submit([SMALL | {"steps": 150, "prompt": "fire flickering"}], "long")
    cluster.until(lambda: cluster.replicas("c8") == 1, "growing again")
    assert cluster.done(batch).status == "completed"
    [attempt] = cluster.farm.batch_store.attempts_of("local", batch)
    assert attempt.outcome == "completed"
    cluster.until(lambda: cluster.replicas("c8") == 0, "going back again")


def test_a_node_killed_in_the_middle_of_a_clip_costs_no_clip(cluster: FakeCluster) -> None:
    batch = cluster.submit([SMALL | {"steps": 150, "prompt": "camera panning"}], "lost")

    def steps() -> int:
        return max((job.step for job in cluster.farm.jobs(batch)), default=0)

    cluster.until(lambda: steps() >= 1, "the first step")
    cluster.tell("kill c8")
    # Its class has no node any more; a new one comes, as the autoscaler would bring it.
    cluster.until(
        lambda: cluster.farm.batch_store.attempts_of("local", batch)[0].outcome is not None, "noticing the loss"
    )
    cluster.tell("add c8")
    assert cluster.done(batch).status == "completed"
    outcomes = [a.outcome for a in cluster.farm.batch_store.attempts_of("local", batch)]
    assert outcomes[-1] == "completed"
    assert len(outcomes) == 2, outcomes
