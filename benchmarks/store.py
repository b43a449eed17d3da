"""Claims and endings of the embedded store beside raw sqlite3 that runs the very same statements.

Both sides work on a copy of one file with `synchronous=FULL`, take the same jobs in the same batches, and turn by turn
in one run. What raw sqlite3 runs was recorded from ours beforehand, parameters and all: it neither thinks nor compiles.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from report import Aim, Report, parser

from cluster.dispatch.retry import after_attempt
from cluster.fleet.cards import Card, Fleet
from cluster.jobs.ids import ids_from
from cluster.jobs.model import Draft, Job, Objects
from cluster.jobs.outcomes import Completed, Ended
from cluster.store import BatchStore, Claim, Completion, Database, DispatchStore
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES

LEASE_S = 10
FLEET = Fleet(usable_bytes={"c24": 2**34})
CARDS = [
    Card(renderer=f"r{n}", card=f"GPU-{n}", card_class="c24", kind="NVIDIA L4", usable_bytes=2**34, idle=True)
    for n in range(100)
]


@dataclass(frozen=True)
class Statement:
    """One call of a cursor."""

    text: str
    parameters: Any
    many: bool


Recorded = list[list[Statement]]
#: Seconds by the clock on the wall, and of this process on a processor.
Spent = tuple[float, float]


def now() -> Spent:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def clip(seed: int) -> ClipSpec:
    """A small clip."""
    family = FAMILIES["i2vgen-xl"]
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="pan left",
        resolution_class=ResolutionClass.P512,
        width=512,
        height=512,
        frames=16,
        fps=8,
        steps=50,
        guidance=9,
        seed=seed,
    )


def fill(path: Path, number: int) -> None:
    """A store with so many waiting jobs."""
    database = Database(f"sqlite:///{path}")
    database.migrate()
    batch_store = BatchStore(database)
    batch_id, _ = batch_store.open_batch("local", name="benchmark")
    drafts = [
        Draft(number=n, name=f"row{n}", row={"image": f"{n}.jpg"}, still="ab" * 32, spec=clip(n), content_key=f"key{n}")
        for n in range(1, number + 1)
    ]
    batch_store.add("local", batch_id, drafts)
    batch_store.seal("local", batch_id)
    DispatchStore(database).take_office("benchmark")
    database.close()
    with sqlite3.connect(path) as c:
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Ours:
    """The store of a dispatcher in office."""

    def __init__(self, path: Path) -> None:
        self.database = Database(f"sqlite:///{path}")
        self.dispatch_store = DispatchStore(self.database)
        self.dispatch_store.epoch = 1
        self.jobs: list[Job] = self.dispatch_store.waiting(1_000_000)

    def cycle(self, batch: int) -> Spent:
        """Claim the next jobs and complete them, in two transactions; what was spent in the store."""
        taken, self.jobs = self.jobs[:batch], self.jobs[batch:]
        starts = list(zip(taken, CARDS, strict=False))
        begun = now()
        claims = self.dispatch_store.start(starts, LEASE_S)
        started = now()
        assert len(claims) == batch
        endings = []
        for claim in claims:
            how = completed(claim)
            endings.append(Completion(claim=claim, ended=how, transition=after_attempt(claim.job, how, FLEET)))
        ending = now()
        written = self.dispatch_store.finish_many(endings)
        ended = now()
        assert all(written)
        return started[0] - begun[0] + ended[0] - ending[0], started[1] - begun[1] + ended[1] - ending[1]


def completed(claim: Claim) -> Ended:
    """The ending of a clip that was published."""
    under = f"clips/{claim.job.id}/{claim.attempt_id}"
    made = Objects(
        video=f"{under}/video.mp4",
        poster=f"{under}/poster.jpg",
        spritesheet=f"{under}/spritesheet.jpg",
        provenance=f"{under}/provenance.json",
        video_bytes=1_000_000,
        frames_sha256="cd" * 32,
    )
    return Completed(objects=made)


def record(path: Path, batches: list[int]) -> Recorded:
    """The statements of each cycle."""
    ours = Ours(path)
    found: Recorded = []

    def keep(_c: Any, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool) -> None:
        found[-1].append(Statement(text, parameters, many))

    def begin(c: Any) -> None:
        # One that writes has begun by now.
        writes = c.connection.driver_connection.in_transaction
        found[-1].append(Statement("BEGIN IMMEDIATE" if writes else "BEGIN", (), False))

    sa.event.listen(ours.database.engine, "before_cursor_execute", keep)
    # BEGIN and COMMIT go past the cursor.
    sa.event.listen(ours.database.engine, "begin", begin)
    sa.event.listen(ours.database.engine, "commit", lambda _c: found[-1].append(Statement("COMMIT", (), False)))
    with ids_from(time.time, random.Random(1)):
        for batch in batches:
            found.append([])
            ours.cycle(batch)
    ours.database.close()
    return found


class Raw:
    """What was recorded, by sqlite3 itself."""

    def __init__(self, path: Path, recorded: Recorded) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute("PRAGMA foreign_keys=ON")
        self.recorded = iter(recorded)

    def cycle(self, _batch: int) -> Spent:
        """The next cycle; what it took."""
        cursor, statements = self.connection.cursor(), next(self.recorded)
        begun = now()
        for statement in statements:
            if statement.many:
                cursor.executemany(statement.text, statement.parameters)
            else:
                cursor.execute(statement.text, statement.parameters).fetchall()
        ended = now()
        return ended[0] - begun[0], ended[1] - begun[1]


def main() -> int:
    """Run it."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=21)
    given = options.parse_args()
    # (size of a batch, cycles a round)
    plan = [(1, 15), (100, 3)]
    batches = [size for _ in range(given.rounds + 1) for size, cycles in plan for _ in range(cycles)]
    figures: dict[str, Any] = {}
    seconds: dict[tuple[str, int], list[Spent]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.db"
        fill(first, sum(batches))
        paths = {name: Path(shutil.copy(first, Path(folder) / f"{name}.db")) for name in ("recorded", "ours", "raw")}
        recorded = record(paths["recorded"], batches)
        ours = Ours(paths["ours"])
        sides: dict[str, Ours | Raw] = {"ours": ours, "raw": Raw(paths["raw"], recorded)}
        for number in range(given.rounds + 1):
            for size, cycles in plan:
                # Turn and turn about, so that neither always comes after the other's flush.
                for name in sorted(sides, reverse=bool(number % 2)):
                    side = sides[name]
                    for _ in range(cycles):
                        took = side.cycle(size)
                        if number:  # The first round warms both up.
                            seconds.setdefault((name, size), []).append(took)
        ours.database.close()
    for size, cycles in plan:
        for unit, clock in (("s", 0), ("CPU second", 1)):
            rate = {
                name: size / statistics.median(spent[clock] for spent in seconds[name, size])
                for name in ("ours", "raw")
            }
            figures[f"cycles/{unit}, batches of {size}, ours"] = rate["ours"]
            figures[f"cycles/{unit}, batches of {size}, raw sqlite3"] = rate["raw"]
            # Of each round its own: what slows the machine down for seconds slows both.
            by_round = [
                sum(spent[clock] for spent in seconds["raw", size][n : n + cycles])
                / sum(spent[clock] for spent in seconds["ours", size][n : n + cycles])
                for n in range(0, cycles * given.rounds, cycles)
            ]
            figures[f"ours / raw by {unit}, batches of {size}"] = statistics.median(by_round)
    figures["statements of a cycle"] = len(recorded[0])
    aims = [Aim(name="raw / ours, batches of 100", value=1 / figures["ours / raw by s, batches of 100"], at_most=2)]
    return Report(name="store", figures=figures, aims=aims).finish(given)


if __name__ == "__main__":
    sys.exit(main())
