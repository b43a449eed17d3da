"""The API under load: 200 clients that poll beside a farm that renders and a batch of 10,000 rows.

A farm of its own (`clipmill up`, two emulated cards, model `camera`, home and port of its own) is given a batch of
`--rows` rows; how long its 202 takes is measured, with `--database` on a PostgreSQL as well. For `--seconds` then
`--clients` clients poll videos, rows and the batch, each as often as the answers ask for (`openai-poll-after-ms`), and
`--watchers` follow the batch as server-sent events, while the cards render its rows. What the gateway has resident is
taken after a tenth of the time and at the end. The clients run on the same machine: the aims are for one with cores to
spare.

    python benchmarks/api_load.py --check --json api_load.json
    python benchmarks/api_load.py --seconds 10 --clients 20 --watchers 5 --rows 1000
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
from polling import gateway
from report import Aim, Report, parser

#: Aims: the 99th of 100 answers; the answer to so many rows; resident memory at the end over that after a tenth.
P99_AIM_MS, ACKNOWLEDGED_AIM_S, RSS_AIM = 250.0, 5.0, 1.10
#: Seconds that a farm may take to come up and to go.
_UP_S, _DOWN_S = 180, 60
#: Seconds between two polls where an answer does not say.
_PAUSE_S = 2.0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def farm(folder: Path) -> Iterator[tuple[int, str]]:
    """(process, URL) of a farm of its own; ended as Ctrl-C ends it."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLIPMILL_")}
    env["CLIPMILL_HOME"] = str(folder / "home")
    words = [sys.executable, "-m", "serve.cli.main", "up", "--cards", "c8,c8", "--port", str(port)]
    with (folder / "farm.log").open("wb") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, folder / "farm.log")
        yield process.pid, url
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_DOWN_S)
        process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _UP_S
    while time.monotonic() < end and process.poll() is None:
        # Before its routes are there Serve answers with a text.
        with contextlib.suppress(httpx.HTTPError, ValueError):
            if httpx.get(f"{url}/healthz", timeout=5).json().get("status") == "ok":
                return
        time.sleep(0.5)
    raise SystemExit(f"the farm did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def gateway_of(pid: int) -> psutil.Process:
    """The process of the farm's gateway, below the farm's own."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "gateway" in " ".join(process.cmdline()) and "ServeReplica" in " ".join(process.cmdline()):
                return process
    raise SystemExit("the farm has no gateway that could be found")


def still() -> bytes:
    """A picture."""
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (640, 480), "teal").save(file, "PNG")
    return file.getvalue()


def hand_in(url: str, rows: int) -> tuple[str, float]:
    """(id of a batch of so many rows, seconds until its 202 came)."""
    with httpx.Client(base_url=url, timeout=120) as http:
        sha256 = http.put("/v1/stills", content=still()).raise_for_status().json()["sha256"]
        body = {
            "name": f"{rows} rows",
            "defaults": {"resolution_class": "256p", "tier": "draft"},
            "rows": [
                {"still": sha256, "name": f"SKU-{n}", "prompt": f"pan left, number {n}", "model": "camera"}
                for n in range(rows)
            ],
        }
        began = time.monotonic()
        answer = http.post("/v1/batches", json=body)
        took = time.monotonic() - began
        batch = answer.raise_for_status().json()
        if batch["counts"]["total"] != rows:
            raise SystemExit(f"{batch['counts']['total']} of {rows} rows came in")
        return str(batch["id"]), took


class Polls:
    """What many clients that poll one farm were answered, and how fast."""

    def __init__(self, http: httpx.AsyncClient, batch_id: str, videos: list[str], until: float) -> None:
        self._http, self._batch_id, self._videos, self._until = http, batch_id, videos, until
        self.took_ms: list[float] = []
        self.errors: Counter[str] = Counter()
        self.events = 0

    async def client(self, number: int) -> None:
        """Poll until the time is over, as often as the answers ask for, else every `_PAUSE_S` seconds."""
        draw = random.Random(number)
        await asyncio.sleep(draw.random() * _PAUSE_S)
        while time.monotonic() < self._until:
            video = draw.choice(self._videos)
            paths = (f"/v1/videos/{video}", f"/v1/batches/{self._batch_id}", f"/v1/jobs/{video}", "/v1/videos?limit=20")
            began, pause = time.monotonic(), _PAUSE_S
            try:
                answer = await self._http.get(draw.choices(paths, (6, 3, 1, 1))[0])
                # Clients of OpenAI's obey this.
                pause = int(answer.headers.get("openai-poll-after-ms", 1000 * _PAUSE_S)) / 1000
                if answer.status_code != 200:
                    self.errors[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                self.errors[type(error).__name__] += 1
            took = time.monotonic() - began
            self.took_ms.append(took * 1000)
            await asyncio.sleep(max(0.0, pause - took))

    async def watcher(self) -> None:
        """Follow the batch until the time is over."""
        while time.monotonic() < self._until:
            try:
                async with self._http.stream("GET", f"/v1/batches/{self._batch_id}/events") as stream:
                    async for line in stream.aiter_lines():
                        self.events += line.startswith("event:")
                        if time.monotonic() >= self._until:
                            return
            except httpx.HTTPError as error:
                self.errors[f"stream {type(error).__name__}"] += 1
                await asyncio.sleep(_PAUSE_S)


async def load(url: str, batch_id: str, pid: int, options: Any) -> dict[str, float | int]:
    """Figures of a farm under so many clients and watchers."""
    process = gateway_of(pid)
    limits = httpx.Limits(max_connections=options.clients + options.watchers + 5)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as http:
        videos = [one["id"] for one in (await http.get(f"/v1/batches/{batch_id}/jobs?limit=1000")).json()["data"]]
        began = time.monotonic()
        polls = Polls(http, batch_id, videos, began + options.seconds)
        rss: list[tuple[float, int]] = []

        async def look() -> None:
            while (now := time.monotonic()) < began + options.seconds:
                rss.append((now - began, int(process.memory_info().rss)))
                await asyncio.sleep(0.2)

        watchers = [asyncio.create_task(polls.watcher()) for _ in range(options.watchers)]
        await asyncio.gather(look(), *(polls.client(number) for number in range(options.clients)))
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        done = (await http.get(f"/v1/batches/{batch_id}")).json()["counts"]["completed"]
    if polls.errors:
        print(f"errors: {dict(polls.errors)}")
    polls.took_ms.sort()
    early = next(size for at, size in rss if at >= options.seconds / 10)
    cpu = process.cpu_times()
    return {
        "polls": len(polls.took_ms),
        "gateway_cpu_s": cpu.user + cpu.system,
        "p50_ms": polls.took_ms[len(polls.took_ms) // 2],
        "p99_ms": polls.took_ms[min(len(polls.took_ms) - 1, int(len(polls.took_ms) * 0.99))],
        "errors": sum(polls.errors.values()),
        "events": polls.events,
        "clips_meanwhile": done,
        "rss_early_mib": early / 2**20,
        "rss_end_mib": rss[-1][1] / 2**20,
    }


def main() -> int:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=120.0)
    arguments.add_argument("--clients", type=int, default=200)
    arguments.add_argument("--watchers", type=int, default=50)
    arguments.add_argument("--rows", type=int, default=10_000)
    arguments.add_argument("--database", default="", help="URL of an empty PostgreSQL to hand the rows in to as well")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-load-") as temporary:
        folder = Path(temporary)
        with farm(folder) as (pid, url):
            batch_id, acknowledged = hand_in(url, options.rows)
            figures = asyncio.run(load(url, batch_id, pid, options))
        figures["acknowledged_s"] = acknowledged
        aims = [
            Aim(name="99 of 100 answers", value=figures["p99_ms"], at_most=P99_AIM_MS, unit="ms"),
            Aim(name="answers that are errors", value=figures["errors"], at_most=0),
            Aim(name="resident at the end ÷ after a tenth", value=figures["rss_end_mib"] / figures["rss_early_mib"],
                at_most=RSS_AIM),
            Aim(name=f"{options.rows} rows acknowledged", value=acknowledged, at_most=ACKNOWLEDGED_AIM_S, unit="s"),
        ]  # fmt: skip
        if options.database:
            _migrate(options.database)
            with gateway(options.database, folder) as (_, port):
                _, took = hand_in(f"http://127.0.0.1:{port}", options.rows)
            figures["acknowledged_postgresql_s"] = took
            aims.append(
                Aim(name="the same on PostgreSQL", value=took, at_most=ACKNOWLEDGED_AIM_S, unit="s"),
            )
    return Report(name="api_load", figures=figures, aims=aims).finish(options)


def _migrate(url: str) -> None:
    from cluster.store import Database

    database = Database(url)
    database.migrate()
    database.close()


if __name__ == "__main__":
    sys.exit(main())
