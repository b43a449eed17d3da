"""What a look at a batch costs by its rows, and what a gateway takes while many look, follow and stall.

`--rows` are batches of a store of their own (SQLite in a temporary folder; PostgreSQL by `--database URL` of an empty
one), looked at by turns as `GET /v1/batches/{id}` does. Then a gateway of its own process answers `--polls` of the
largest, while 100 event streams are open that nobody reads and 110 uploads have stalled: what it has resident is taken
after a tenth of the polls and at the end, and `/healthz` is asked all the while. Last, `--hostile` inputs of
`make corpus` are handed in to a gateway, `/healthz` being asked all the while by another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil
from report import Aim, Report, parser

#: Aims: a look at the largest batch over one at the smallest; resident memory at the end over that after a tenth of the
#: polls; the 99th of 100 answers of `/healthz`.
RATIO_AIM, RSS_AIM, HEALTH_AIM_MS = 2.0, 1.05, 250.0
STREAMS, UPLOADS, CLIENTS = 100, 110, 4
#: CPU seconds of all processes after which a hostile input hangs, on however busy a machine, and the most memory that
#: one process may have, in MB.
HANG_S, MOST_MB = 5.0, 1500.0


def fill(url: str, sizes: list[int]) -> dict[int, str]:
    """Batches of these sizes, by their rows: ids. A tenth of the rows has failed, the rest waits."""
    from cluster.jobs.model import Draft
    from cluster.store import BatchStore, Database
    from pipeline.clips.clip import ClipSpec, ResolutionClass
    from pipeline.families import FAMILIES
    from pipeline.problems import Problem

    family = FAMILIES["camera"]
    problem = Problem(field="image", message="it is no picture", remedy="Give a PNG.")
    shape = {"resolution_class": ResolutionClass.P256, "width": 256, "height": 256, "frames": 8, "fps": 8}
    spec = ClipSpec(family=family.name, revision=family.revision, prompt="pan", steps=1, guidance=1, seed=0, **shape)
    database = Database(url)
    database.migrate()
    store, made = BatchStore(database), {}
    for size in sizes:
        batch_id, _ = store.open_batch("local", name=f"{size} rows")
        for first in range(1, size + 1, 1000):
            drafts = [
                Draft(number=n, name=f"row{n}", row={"number": n}, problems=(problem,))
                if n % 10 == 0
                else Draft(number=n, name=f"row{n}", row={}, still="ab" * 32, spec=spec, content_key=f"{size}-{n}")
                for n in range(first, min(first + 1000, size + 1))
            ]
            store.add("local", batch_id, drafts)
        store.seal("local", batch_id)
        made[size] = batch_id
    database.close()
    return made


def look_ms(url: str, batches: dict[int, str], seconds: float, rounds: int) -> dict[int, float]:
    """Milliseconds of a look by the rows of the batch: the median over rounds of the mean within a round."""
    from cluster.farm import Farm
    from cluster.storage import Storage
    from cluster.store import BatchStore, Database
    from serve.gateway.views import batch_view

    database = Database(url)
    farm = Farm(BatchStore(database), Storage(tempfile.gettempdir()))
    means: dict[int, list[float]] = {size: [] for size in batches}
    for _ in range(rounds):
        for size, batch_id in batches.items():
            began, looks = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < seconds:
                batch_view(farm.batch(batch_id))
                looks += 1
            means[size].append(spent / looks * 1000)
    database.close()
    return {size: statistics.median(found) for size, found in means.items()}


def serve_gateway(url: str, storage: str, log: str, port: Connection) -> None:
    """Run the gateway's application behind uvicorn, which is what Serve's proxy is, and tell its port."""
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 2)
    import uvicorn

    from cluster.farm import Farm
    from cluster.storage import Storage
    from cluster.store import BatchStore, Database
    from serve.gateway.api import create_api, protect

    async def nobody() -> None:
        """Nobody is nudged."""

    api = protect(create_api(Farm(BatchStore(Database(url)), Storage(storage)), default_model="camera", nudge=nobody))
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port.send(listening.getsockname()[1])
    config = uvicorn.Config(api, log_level="error", lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def gateway(url: str, folder: Path) -> Iterator[tuple[int, int]]:
    """(process, port) of a gateway."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    arguments = (url, str(folder / "storage"), str(folder / "gateway.log"), other)
    # Not a daemon: it starts processes of its own, which open stills.
    process = context.Process(target=serve_gateway, args=arguments)
    process.start()
    try:
        if not mine.poll(120):
            raise SystemExit("the gateway did not start")
        yield int(process.pid or 0), int(mine.recv())
    finally:
        process.kill()
        process.join(10)


async def crowd(pid: int, port: int, batch_id: str, polls: int) -> dict[str, float]:
    """Figures of a gateway that is polled beside streams that nobody reads and uploads that have stalled."""
    writers = []
    for number in range(STREAMS + UPLOADS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**12)
        asked = f"GET /v1/batches/{batch_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        stalled = "PUT /v1/stills HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"
        writer.write((asked if number < STREAMS else stalled).encode())
        writers.append((reader, writer))
    process = psutil.Process(pid)
    health: list[float] = []
    rss: list[tuple[int, int]] = []
    left, answered, refused = polls, 0, 0
    limits = httpx.Limits(max_connections=CLIENTS + 2)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as http:

        async def poll() -> None:
            nonlocal left, answered, refused
            while left > 0:
                left -= 1
                response = await http.get(f"/v1/batches/{batch_id}")
                answered += 1
                refused += response.status_code != 200
                if answered % max(1, polls // 20) == 0:
                    rss.append((answered, process.memory_info().rss))

        async def ask_health() -> None:
            while left > 0:
                began = time.perf_counter()
                (await http.get("/healthz")).raise_for_status()
                health.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.05)

        began = time.monotonic()
        await asyncio.gather(ask_health(), *(poll() for _ in range(CLIENTS)))
        wall_s = time.monotonic() - began
    for _, writer in writers:
        writer.close()
    early = next(size for answered, size in rss if answered >= polls // 10)
    health.sort()
    return {
        "polls_a_second": polls / wall_s,
        "refused": refused,
        "rss_early_mib": early / 2**20,
        "rss_end_mib": rss[-1][1] / 2**20,
        "healthz_p50_ms": statistics.median(health),
        "healthz_p99_ms": health[min(len(health) - 1, int(len(health) * 0.99))],
    }


def ask_health(port: int, told: Connection) -> None:
    """Ask `/healthz` until told to stop; answers with the milliseconds of each."""
    took: list[float] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        while not told.poll(0.05):
            began = time.perf_counter()
            http.get("/healthz").raise_for_status()
            took.append((time.perf_counter() - began) * 1000)
    told.send(took)


def hostile_inputs(url: str, folder: Path, port: int, seed: int, count: int) -> dict[str, float | int]:
    """Figures of a gateway that `count` hostile inputs of a seed are handed in to."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from cluster.farm import Farm
    from cluster.storage import Storage
    from cluster.store import BatchStore, Database

    corpus = {name: importlib.import_module(f"tests.corpus.{name}") for name in ("make", "run")}
    inputs = corpus["make"].hostile(seed)
    if count < len(inputs):
        inputs = random.Random(seed).sample(inputs, count)
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    asking = context.Process(target=ask_health, args=(port, other), daemon=True)
    database = Database(url)
    farm = Farm(BatchStore(database), Storage(folder / "storage"))
    asking.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        doors = corpus["run"].Doors(folder, farm, http)
        held = [doors.take(one) for one in inputs]
    mine.send("stop")
    health = sorted(mine.recv())
    asking.join()
    database.close()
    for one in held:
        if one.cpu_s > HANG_S or one.fault:
            print(f"  {one.name}: {one.cpu_s:.1f} CPU s, {one.wall_s:.1f} s, {one.answer} {one.fault}", flush=True)
    log = (folder / "gateway.log").read_text(encoding="utf-8", errors="replace")
    return {
        "hostile_inputs": len(held),
        "hostile_hangs": sum(one.cpu_s > HANG_S for one in held),
        "hostile_most_cpu_s": max(one.cpu_s for one in held),
        "hostile_slowest_s": max(one.wall_s for one in held),
        "hostile_500s": sum(one.answer.startswith("5") and one.answer[3:4] == " " for one in held),
        "hostile_tracebacks": log.count("Traceback") + sum("Traceback" in one.answer for one in held),
        "hostile_largest_process_mb": max(one.bytes for one in held) / 1e6,
        "hostile_healthz_p50_ms": statistics.median(health),
        "hostile_healthz_p99_ms": health[min(len(health) - 1, int(len(health) * 0.99))],
    }


def hostile_aims(found: dict[str, float | int]) -> list[Aim]:
    """The bounds on `hostile_inputs`."""
    return [
        Aim(name=f"hostile inputs that take more than {HANG_S:g} CPU s", value=found["hostile_hangs"], at_most=0),
        Aim(name="answers that are a 500", value=found["hostile_500s"], at_most=0),
        Aim(name="tracebacks", value=found["hostile_tracebacks"], at_most=0),
        Aim(name="largest process", value=found["hostile_largest_process_mb"], at_most=MOST_MB, unit="MB"),
        Aim(
            name="healthz beside hostile inputs, 99 of 100",
            value=found["hostile_healthz_p99_ms"],
            at_most=HEALTH_AIM_MS,
            unit="ms",
        ),
    ]


def main() -> int:
    """Measure all three and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=[100, 10_000, 100_000])
    arguments.add_argument("--database", default="", help="URL of an empty store (default: SQLite, temporary)")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of looks at each batch in a round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--polls", type=int, default=10_000, help="of a gateway beside streams and uploads; 0: none")
    arguments.add_argument("--hostile", type=int, default=10_000, help="inputs at most that are handed in; 0: none")
    arguments.add_argument("--seed", type=int, default=0, help="of the hostile inputs")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-polling-") as temporary:
        folder = Path(temporary)
        url = options.database or f"sqlite:///{folder / 'store.db'}"
        batches = fill(url, sorted(options.rows))
        looks = look_ms(url, batches, options.seconds, options.rounds)
        smallest, largest = min(looks), max(looks)
        figures: dict[str, float | int] = {f"look_ms_{size}_rows": took for size, took in looks.items()}
        aims = [Aim(name="look at most rows ÷ fewest", value=looks[largest] / looks[smallest], at_most=RATIO_AIM)]
        if options.polls:
            with gateway(url, folder) as (pid, port):
                found = asyncio.run(crowd(pid, port, batches[largest], options.polls))
            figures |= found
            ratio = found["rss_end_mib"] / found["rss_early_mib"]
            aims += [
                Aim(name="resident at the end ÷ after a tenth", value=ratio, at_most=RSS_AIM),
                Aim(name="healthz, 99 of 100", value=found["healthz_p99_ms"], at_most=HEALTH_AIM_MS, unit="ms"),
                Aim(name="polls that were refused", value=found["refused"], at_most=0),
            ]
        if options.hostile:
            # One that nothing has been asked of yet.
            with gateway(url, folder) as (_, port):
                attacked = hostile_inputs(url, folder, port, options.seed, options.hostile)
            figures |= attacked
            aims += hostile_aims(attacked)
    return Report(name="polling", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
