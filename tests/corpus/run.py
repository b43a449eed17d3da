"""Gives every input to the farm's doors, in this process and those that it starts, and says what did not hold.

Must hold: no answer is a 500, nothing raises but a refusal, no input takes more than `MOST_CPU_S`, and no process has
more than `MOST_BYTES` of memory.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from starlette.testclient import TestClient

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import ManifestError, read_manifest
from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from serve.gateway.api import create_api
from tests.building import still_png
from tests.corpus.make import Door, Hostile

#: CPU seconds of all processes together; seconds on the clock, for a hang, on a machine that has other things to do.
MOST_CPU_S, MOST_S = 5.0, 60.0
#: How an answer of the API begins that says that the farm failed; `5 rows, 0 bad` is how a manifest was taken.
_FAILURE = re.compile(r"5\d\d ")
#: Memory of one process.
MOST_BYTES = 1_500_000_000


@dataclass(frozen=True, kw_only=True)
class Held:
    """How one input went."""

    name: str
    #: The answer's status, or in words how it was taken.
    answer: str
    cpu_s: float
    wall_s: float
    #: The most memory of one process.
    bytes: int
    #: What did not hold; empty where all did.
    fault: str


async def _nobody() -> None:
    """Nobody is nudged."""


class Doors:
    """A farm and its API, in this process or in one that it started, and what is measured of both."""

    def __init__(self, folder: Path, farm: Farm, http: Any) -> None:
        """`folder`: where catalogs are written; `http`: a client such as `httpx.Client`."""
        self._folder = folder
        self._farm = farm
        self._http = http

    def take(self, one: Hostile) -> Held:
        """Let one input in by its door."""
        cpu, began, had = _cpu_s(), time.monotonic(), _begin_peak()
        doors: dict[Door, Callable[[Hostile], str]] = {
            Door.STILL: self._still, Door.MANIFEST: self._manifest, Door.REQUEST: self._request
        }  # fmt: skip
        try:
            answer = doors[one.door](one)
            fault = answer if _FAILURE.match(answer) or "Traceback" in answer else ""
        except (httpx.LocalProtocolError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            # No client says such a thing over a wire, or the server would not hear it to its end.
            answer, fault = f"not heard: {error}", ""
        except Exception as error:
            answer = fault = f"{type(error).__name__}: {str(error)[:200]}"
        cpu, wall = _cpu_s() - cpu, time.monotonic() - began
        if cpu > MOST_CPU_S or wall > MOST_S:
            fault = fault or f"it took {cpu:.1f} CPU s, {wall:.1f} s"
        if (peak := _peak_bytes(had)) > MOST_BYTES:
            fault = fault or f"a process has had {peak / 1e9:.2f} GB"
        return Held(name=f"{one.door}: {one.name}", answer=answer[:60], cpu_s=cpu, wall_s=wall, bytes=peak, fault=fault)

    def _still(self, one: Hostile) -> str:
        answer = self._http.put("/v1/stills", content=one.data)
        return f"{answer.status_code} {answer.text[:200]}"

    def _request(self, one: Hostile) -> str:
        answer = self._http.request(one.method, one.path, content=one.data, headers=one.headers)
        return f"{answer.status_code} {answer.text[:200]}"

    def _manifest(self, one: Hostile) -> str:
        folder = self._folder / "catalog"
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(still_png())
        path = folder / ("catalog" + Path(one.name).suffix)
        path.write_bytes(one.data)
        try:
            manifest = read_manifest(path)
        except ManifestError as error:
            return f"refused: {error.message}"
        finally:
            path.unlink()
        rows = gather(manifest, self._farm.put_still)
        batch = self._farm.submit(rows, Defaults(model="camera"), name=one.name)
        # What was taken can be read again, as the API shows it.
        answer = self._http.get(f"/v1/batches/{batch.id}/jobs?limit=1000")
        assert self._http.get("/v1/batches").status_code == 200
        assert answer.status_code == 200, answer.text[:200]
        return f"{len(manifest.good)} rows, {len(manifest.bad)} bad"


def _cpu_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(one.user + one.system for one in running)


def _begin_peak() -> int:
    """Bytes of memory that this process has, and from which on its peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes(os.getpid(), "VmRSS")


def _peak_bytes(before: int) -> int:
    """The most memory that this process has taken since, or that one of those that decode has ever had.

    The latter live on. One that was killed had no more address space than it may have.
    """
    decoding = [_status_bytes(child.pid, "VmHWM") for child in psutil.Process().children(recursive=True)]
    return max([_status_bytes(os.getpid(), "VmHWM") - before, *decoding])


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def run(inputs: Iterable[Hostile], folder: Path, database: Database) -> list[Held]:
    """Let all inputs in, one after the other."""
    farm = Farm(BatchStore(database), Storage(folder / "storage"))
    api = create_api(farm, default_model="camera", nudge=_nobody)
    with TestClient(api, raise_server_exceptions=False) as http:
        doors = Doors(folder, farm, http)
        return [doors.take(one) for one in inputs]
