"""The durable side at scale: starts a second, and the time of a decision with 10³ to 10⁶ jobs waiting, on PostgreSQL.

    python benchmarks/scale_store.py --postgres postgresql+psycopg://user@host/database --check

The server must flush at each commit: fsync and synchronous_commit on, which is checked. A schema of its own is made and
dropped. With fewer rows (`--waiting 100000`) it takes a minute.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from report import Aim, Report, parser

from cluster.fleet.cards import Card
from cluster.jobs.model import Job, JobState
from cluster.jobs.outcomes import Stopped, Transition
from cluster.store import Completion, Database, DispatchStore
from cluster.store import queues as heads
from cluster.store.rows import COMMON_ROWS
from cluster.store.schema import batches
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES

LEASE_S = 60
#: The same at every size, so that the queues are as many: what grows is how many wait in each.
BATCHES = 20
OWNERS = 5


@dataclass(frozen=True, kw_only=True)
class Durable:
    """What was measured."""

    load_s: float
    bytes_per_waiting_job: float
    starts_per_s: float
    #: Seconds of one decision (the heads read, and a batch of claims committed), by jobs waiting.
    decision_s: dict[int, float]
    #: Of these, seconds of the heads alone, and of the counts that plans are made from.
    heads_s: dict[int, float]
    counts_s: dict[int, float]
    queues: int
    #: Pages of tables and indexes that one look at the heads touches, as the server counts them: whatever else runs.
    heads_pages: dict[int, int]


@contextmanager
def schema_of_its_own(server: str) -> Iterator[str]:
    """The URL of an empty schema, dropped afterwards."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        for setting in ("fsync", "synchronous_commit"):
            if (value := c.scalar(sa.text(f"SHOW {setting}"))) != "on":
                raise SystemExit(f"{setting} is {value!r} on this server: starts would not be durable. Turn it on.")
        c.execute(sa.text(f"CREATE SCHEMA {name}"))
    try:
        url = sa.make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
    finally:
        with admin.connect() as c:
            c.execute(sa.text(f"DROP SCHEMA {name} CASCADE"))
        admin.dispose()


def spec(size: ResolutionClass, number: int) -> dict[str, Any]:
    """A clip of the shape that a catalog asks for."""
    family, side = FAMILIES["i2vgen-xl"], int(size.value[:-1])
    made = ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="the camera pans slowly to the left",
        resolution_class=size,
        width=side,
        height=side,
        frames=16,
        fps=8,
        steps=50,
        guidance=9,
        seed=number,
    )
    return made.model_dump(mode="json")


def load(database: Database, start: int, number: int) -> None:
    """COPY so many more waiting jobs into the store, in batches of a catalog's size."""
    sizes = list(ResolutionClass)
    specs = {size: spec(size, 0) for size in sizes}
    with database.write() as c:
        if not start:
            values = {"name": "catalog", "source": "", "created_at": 1, "sealed": True}
            made = [{"id": f"batch_{n:06}", "owner": f"owner{n % OWNERS}", **values} for n in range(BATCHES)]
            c.execute(sa.insert(batches), made)
        columns = [
            "id", "owner", "batch_id", "number", "name", "state", "problems", "row", "still", "spec", "content_key",
            "family", "resolution_class", "needs_bytes", "priority", "created_at", "updated_at", "attempts", "releases",
            "fence", "cancel_requested", "lane",
        ]  # fmt: skip
        raw = c.connection.cursor()
        listed = ", ".join(f'"{name}"' for name in columns)
        with raw.copy(f"COPY jobs ({listed}) FROM STDIN") as copy:
            for n in range(start, start + number):
                row, batch = divmod(n, BATCHES)
                batch_id, size = f"batch_{batch:06}", sizes[n % len(sizes)]
                copy.write_row(
                    (
                        f"video_{n:032x}", f"owner{batch % OWNERS}", batch_id, row + 1, f"SKU-{n:07}", "queued", "[]",
                        json.dumps({"number": row + 1, "image": f"images/{n}.jpg", "extra": {"price": "9.90"}}),
                        f"{n:064x}", json.dumps(specs[size] | {"seed": n}), f"{n:064x}", "i2vgen-xl", size.value,
                        10**9 * (1 + n % 3), row % 2, 1 + n // 64, 1, 0, 0, 0, False,
                        batch_id if row + 1 > COMMON_ROWS else "",
                    )
                )  # fmt: skip


def pages_of_heads(database: Database) -> int:
    """Pages that one look at the heads of all queues touches, cached or not."""
    with database.read() as c:
        c.execute(sa.text(heads.WALK_INDEXES))
        touched = 0
        for timed in (False, True):
            query = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + heads.statement(timed=timed, sqlite=False)
            (plan,) = c.execute(sa.text(query), {"now": database.now(c), "most": 8}).scalar_one()
            touched += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    return touched


def cards(number: int) -> list[Card]:
    """So many idle cards."""
    return [
        Card(renderer=f"r{n}", card=f"GPU-{n}", card_class="c24", kind="NVIDIA L4", usable_bytes=2**34, idle=True)
        for n in range(number)
    ]


def start_some(dispatch_store: DispatchStore, waiting: list[Job], batch: int) -> list[Completion]:
    """Claim a batch; returns how to give it back."""
    claims = dispatch_store.start(list(zip(waiting[:batch], cards(batch), strict=False)), LEASE_S)
    assert len(claims) == batch, "fewer started than were offered"
    back = Transition(state=JobState.QUEUED, costs_release=False)
    return [Completion(claim=claim, ended=Stopped(), transition=back) for claim in claims]


def durable(server: str, *, waiting: int = 1_000_000, batch: int = 100, rounds: int = 15) -> Durable:
    """Load up to `waiting` jobs step by step and measure on the way; then starts a second at the end."""
    levels = [10**n for n in range(3, 7) if 10**n < waiting] + [waiting]
    decision_s, heads_s, counts_s, heads_pages = {}, {}, {}, {}
    load_s, there, per_job = 0.0, 0, 0.0
    with schema_of_its_own(server) as url:
        database = Database(url)
        database.migrate()
        dispatch_store = DispatchStore(database)
        dispatch_store.take_office("benchmark")
        for level in levels:
            begun = time.perf_counter()
            load(database, there, level - there)
            load_s, there = load_s + time.perf_counter() - begun, level
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
                # As a server does by itself after a load.
                c.execute(sa.text("VACUUM ANALYZE jobs"))
                per_job = float(c.scalar(sa.text("SELECT pg_total_relation_size('jobs')")) or 0) / level
            looks, decisions, counted = [], [], []
            for turn in range(rounds + 1):
                begun = time.perf_counter()
                offered = dispatch_store.waiting(8)
                looked = time.perf_counter()
                back = start_some(dispatch_store, offered, min(32, len(offered)))
                decided = time.perf_counter()
                dispatch_store.finish_many(back)
                if turn:  # The first fills caches.
                    looks.append(looked - begun)
                    decisions.append(decided - begun)
            for _ in range(3):
                begun = time.perf_counter()
                queues = len(heads.counts(database))
                counted.append(time.perf_counter() - begun)
            decision_s[level], heads_s[level] = statistics.median(decisions), statistics.median(looks)
            heads_pages[level] = pages_of_heads(database)
            counts_s[level] = statistics.median(counted)
            print(f"  {level} waiting: {decision_s[level] * 1000:.1f} ms a decision, {queues} queues", flush=True)
        offered = dispatch_store.waiting(max(batch, 20_000 // max(1, queues)))
        started, spent = 0, 0.0
        while len(offered) >= batch and spent < 5:
            some, offered = offered[:batch], offered[batch:]
            begun = time.perf_counter()
            start_some(dispatch_store, some, batch)
            spent += time.perf_counter() - begun
            started += batch
        database.close()
    return Durable(
        load_s=load_s,
        bytes_per_waiting_job=per_job,
        starts_per_s=started / spent,
        decision_s=decision_s,
        heads_s=heads_s,
        counts_s=counts_s,
        queues=queues,
        heads_pages=heads_pages,
    )


def summary(found: Durable, *, batch: int = 100) -> tuple[dict[str, Any], list[Aim]]:
    """What a report says of it."""
    few, many = min(found.decision_s), max(found.decision_s)
    figures: dict[str, Any] = {
        f"durable starts/s, batches of {batch}, {many} waiting": found.starts_per_s,
        "load, s": found.load_s,
        "bytes per waiting job on disk": found.bytes_per_waiting_job,
        "queues": found.queues,
    }
    for level in found.decision_s:
        figures[f"{level} waiting: ms a decision (heads, 32 claims)"] = found.decision_s[level] * 1000
        figures[f"{level} waiting: pages that the heads touch"] = found.heads_pages[level]
        figures[f"{level} waiting: ms of the heads"] = found.heads_s[level] * 1000
        figures[f"{level} waiting: ms of the counts"] = found.counts_s[level] * 1000
    pages = found.heads_pages[many] / found.heads_pages[few]
    return figures, [
        Aim(name="a start, durable", value=1000 / found.starts_per_s, at_most=0.5, unit="ms"),
        Aim(name=f"pages, {many} over {few} waiting", value=pages, at_most=2),
        Aim(
            name=f"decision, {many} over {few} waiting", value=found.decision_s[many] / found.decision_s[few], at_most=2
        ),
    ]


def main() -> int:
    """Run it."""
    options = parser(__doc__)
    options.add_argument("--postgres", required=True, metavar="URL", help="SQLAlchemy URL of a server for tests")
    options.add_argument("--waiting", type=int, default=1_000_000)
    options.add_argument("--batch", type=int, default=100, help="starts in one transaction")
    given = options.parse_args()
    found = durable(given.postgres, waiting=given.waiting, batch=given.batch)
    figures, aims = summary(found, batch=given.batch)
    return Report(name="scale_store", figures=figures, aims=aims).finish(given)


if __name__ == "__main__":
    sys.exit(main())
