"""How good a forecast is: 24 rows forecast from what 12 other rows took, and rendered.

    python benchmarks/forecast.py [--catalog FILE] [--cards c8,c24] [--rounds N] [--check] [--json FILE]

Both go through the real embedded farm on emulated cards, in one home: the first rows calibrate, the others are
forecast, by `cluster.forecast.forecast` from what the farm wrote into its store, and then rendered by
`clipmill render`. Rows take the models `camera` and `i2vgen-xl-tiny` in turn, at tier draft, the small network one
class below the catalog's (`--whole`: as the catalog says; hours on two cores). What is compared is the time from the
command to the last published clip. The start-up that the forecast counts with is the one the first command took.
Aim: the median of |forecast ÷ measured − 1| over the rounds at most 15 %.
"""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from farm import default_catalog, started
from report import Aim, Report, parser

AIM = 0.15
CALIBRATE, FORECAST = 12, 24
MODELS = ("camera", "i2vgen-xl-tiny")
SMALLER = {"1024p": "768p", "768p": "512p", "512p": "256p", "256p": "256p"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One `clipmill render`: seconds from the command."""

    first_start_s: float
    last_clip_s: float
    wall_s: float


def write_catalog(catalog: Path, numbers: list[int], folder: Path, *, whole: bool) -> Path:
    """A catalog of these rows of `catalog`, with their stills beside it and the models in turn."""
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    folder.mkdir()
    chosen = []
    for place, number in enumerate(numbers):
        row: dict[str, Any] = dict(rows[number % len(rows)]) | {"id": f"row-{number}", "model": MODELS[place % 2]}
        if not whole:
            row["tier"] = "draft"
            if row["model"] != "camera":
                row["resolution_class"] = SMALLER[row["resolution_class"]]
        still = catalog.parent / row["image"]
        row["image"] = f"{number}{still.suffix}"
        shutil.copy(still, folder / row["image"])
        chosen.append(row)
    target = folder / "catalog.csv"
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return target


def render(catalog: Path, cards: str, home: Path, out: Path) -> Run:
    """Render a catalog by the command; raises `SystemExit` where it fails."""
    words = ["render", str(catalog), "--out", str(out), "--model", MODELS[0], "--cards", cards, "--json"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPMILL_")} | {"CLIPMILL_HOME": str(home)}
    before = attempts(home)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "serve.cli.main", *words], env=env, stdout=subprocess.DEVNULL)
    first = last = 0.0
    rows = sum(1 for _ in catalog.open(encoding="utf-8")) - 1
    while process.poll() is None:
        now = time.monotonic() - began
        if not first and started(home) and attempts(home) > before:
            first = now
        if not last and len(list(out.glob("*.mp4"))) == rows:
            last = now
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"clipmill render ended with {process.returncode}")
    wall = time.monotonic() - began
    return Run(first_start_s=first, last_clip_s=last or wall, wall_s=wall)


def attempts(home: Path) -> int:
    """Attempts in the store of a home; 0 where there is none."""
    path = home / "clipmill.db"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
            return int(store.execute("SELECT count(*) FROM attempts").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def forecast_of(catalog: Path, cards: str, home: Path, startup_s: float, order: str) -> Any:
    """The forecast of a catalog on emulated cards, from what the store of `home` has measured."""
    from cluster.catalog.defaults import Defaults
    from cluster.catalog.ingest import gather
    from cluster.catalog.manifest import read_manifest
    from cluster.fleet.fleet_file import cards_of, parse_fleet
    from cluster.forecast.forecast import Order, forecast
    from cluster.store import Database, measurements
    from serve.gateway.forecasting import Sizes, wanted_of

    names = cards.split(",")
    groups = [{"kind": "emulated", "class": name, "count": names.count(name)} for name in dict.fromkeys(names)]
    fleet = parse_fleet({"startup_seconds": startup_s, "cards": groups}, "the benchmark")
    sizes = Sizes()
    rows = list(gather(read_manifest(catalog, model=MODELS[0]), sizes.put))
    database = Database.in_folder(home)
    try:
        known = measurements.load_times(database)
    finally:
        database.close()
    wanted = wanted_of(rows, Defaults(model=MODELS[0]), sizes.get, lambda _job_id: False)
    return forecast(wanted, cards_of(fleet), known, order=Order(order), changes=False)


def one_round(catalog: Path, cards: str, number: int, folder: Path, order: str, *, whole: bool) -> dict[str, Any]:
    """Calibrate, forecast, render; the figures of it."""
    first = number * (CALIBRATE + FORECAST)
    calibration = write_catalog(catalog, list(range(first, first + CALIBRATE)), folder / "calibrate", whole=whole)
    others = write_catalog(
        catalog, list(range(first + CALIBRATE, first + CALIBRATE + FORECAST)), folder / "others", whole=whole
    )
    home = folder / "home"
    learned = render(calibration, cards, home, folder / "out-calibrate")
    # Rendering ends with the last clip's files; from there on the farm only closes.
    found = forecast_of(others, cards, home, learned.first_start_s, order)
    run = render(others, cards, home, folder / "out-others")
    return {
        "forecast_s": found.finish_s,
        "low_s": found.low_s,
        "high_s": found.high_s,
        "bound_s": found.bound_s,
        "measured_s": run.last_clip_s,
        "wall_s": run.wall_s,
        "startup_s": learned.first_start_s,
        "startup_measured_s": run.first_start_s,
        "error": found.finish_s / run.last_clip_s - 1,
        # Runnable processes, the farm's own among them: beyond the cores, others took their part.
        "load": os.getloadavg()[0],
        "covered": found.low_s <= run.last_clip_s <= found.high_s,
    }


def main() -> int:
    """Run the rounds and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--catalog", type=Path, default=default_catalog())
    arguments.add_argument("--cards", default="c8,c24", help="emulated cards")
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--order", choices=("longest", "row"), default="row", help="in which the farm places clips")
    arguments.add_argument("--whole", action="store_true", help="tiers and classes as the catalog says")
    arguments.add_argument("--keep", action="store_true", help="leave the folders")
    options = arguments.parse_args()
    rounds = []
    for number in range(options.rounds):
        folder = Path(tempfile.mkdtemp(prefix="clipmill-bench-"))
        try:
            rounds.append(one_round(options.catalog, options.cards, number, folder, options.order, whole=options.whole))
            print(f"  round {number + 1}: {rounds[-1]}", flush=True)
        finally:
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    errors = [abs(one["error"]) for one in rounds]
    report = Report(
        name="forecast",
        figures={
            "rows": f"{FORECAST} after {CALIBRATE} others, {options.cards}",
            "rounds": rounds,
            "interval_covers": sum(one["covered"] for one in rounds) / len(rounds),
            "worst_error": max(errors),
        },
        aims=[Aim(name="|forecast ÷ measured − 1|, median", value=statistics.median(errors), at_most=AIM)],
    )
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
