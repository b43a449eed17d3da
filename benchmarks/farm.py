"""What the farm adds: wall time of `clipmill render` against direct renders on as many processes.

    python benchmarks/farm.py [--catalog FILE] [--limit N] [--rounds N] [--long-rows N] [--check] [--json FILE]

Both make the same clips (`camera`, from reading the manifest to finished mp4, poster and provenance); the farm adds
Ray, the store, storage and the results folder. They run by turns, who is first changes from round to round, and what
counts is the median over rounds of each round's own ratio: other work on the machine that lasts for longer than a round
weighs on both. A second catalog has clips that take `--long-seconds` each, frames being added until they do; there the
time from the first start to the last clip is compared, without the start of processes on either side.

Renderers compute on the processor here, of which the farm's own processes (Ray's daemons, Serve, the dispatcher, the
command) take an eighth of a core. With as many renderers as cores nothing is left for them, which is no farm with GPUs:
long clips are rendered with one renderer fewer, against as many direct processes, and the aim is for that. What it is
on all cores is told beside it.

Aims over the 101 rows of the shared catalog, on all cores: farm ÷ direct at most 1.25, first clip within 8 s; on clips
of five seconds, with a core left, at most 1.02. They are for a machine that does nothing else:

    python benchmarks/farm.py --rounds 5 --check
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from report import Aim, Report, parser

RATIO_AIM, LONG_RATIO_AIM = 1.25, 1.02
FIRST_CLIP_AIM_S = 8.0
#: Emulated cards, one process each: of a machine of two cores, and of one on which a core is left to the farm.
ALL_CORES, CORE_LEFT = ("c8", "c24"), ("c24",)
ROOT = Path(__file__).parents[1]


def default_catalog() -> Path:
    """The shared catalog beside the checkout where there is one, else the demo's."""
    shared = ROOT.parent / "shared" / "catalog" / "catalog.csv"
    return shared if shared.exists() else ROOT / "examples" / "catalog" / "catalog.csv"


def render_one(catalog: str, number: int, folder: str) -> tuple[float, float]:
    """Render row `number` of the catalog without any farm; returns when it began and ended, in epoch seconds."""
    from cluster.catalog.defaults import Defaults
    from cluster.catalog.manifest import Row, read_image_bytes, read_manifest
    from cluster.catalog.resolve import resolve
    from pipeline.clips.stills import open_still
    from pipeline.families.layouts import RESIDENT
    from pipeline.models.camera import CameraModel
    from pipeline.render import render_frames, write_clip

    began = time.time()
    manifest = read_manifest(catalog)
    row = manifest.rows[number]
    assert isinstance(row, Row)
    still = read_image_bytes(manifest, row)
    spec = resolve(row, open_still(still).size, Defaults(model="camera"), "").spec
    frames = render_frames(CameraModel(), still, spec, RESIDENT, lambda _step, _steps, _snapshot: None)
    target = Path(folder) / row.id
    target.mkdir(parents=True)
    write_clip(frames, spec, target, {})
    return began, time.time()


def direct(catalog: Path, rows: int, folder: Path, processes: int) -> dict[str, float]:
    """Wall seconds of direct renders of the first rows, processes started and ended included, and of the renders."""
    began = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        spans = list(pool.map(render_one, [str(catalog)] * rows, range(rows), [str(folder)] * rows))
    rendering_s = max(ended for _, ended in spans) - min(begun for begun, _ in spans)
    return {"wall_s": time.monotonic() - began, "rendering_s": rendering_s}


def through_farm(catalog: Path, rows: int, folder: Path, cards: tuple[str, ...]) -> dict[str, float]:
    """Wall seconds of `clipmill render` on an empty home, and where they go."""
    out, home = folder / "out", folder / "home"
    words = ["render", str(catalog), "--out", str(out), "--limit", str(rows), "--model", "camera"]
    words += ["--cards", ",".join(cards)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPMILL_")} | {"CLIPMILL_HOME": str(home)}
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "serve.cli.main", *words], env=env, stderr=subprocess.DEVNULL)
    seen: dict[str, float] = {}
    while process.poll() is None:
        now = time.monotonic() - began
        done = len(list(out.glob("*.mp4")))
        if done and "first_clip_s" not in seen:
            seen["first_clip_s"] = now
        if done == rows and "last_clip_s" not in seen:
            seen["last_clip_s"] = now
        if "first_start_s" not in seen and started(home):
            seen["first_start_s"] = now
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"clipmill render ended with {process.returncode}")
    seen["wall_s"] = time.monotonic() - began
    seen.setdefault("last_clip_s", seen["wall_s"])
    return seen | {"rendering_s": seen["last_clip_s"] - seen["first_start_s"]}


def long_catalog(catalog: Path, rows: int, seconds: float, folder: Path) -> tuple[Path, int]:
    """A catalog of `rows` pictures of another one whose clips take `seconds` each and more, and its rows."""
    from cluster.catalog.manifest import Row, read_manifest
    from pipeline.families import FAMILIES

    manifest = read_manifest(catalog)
    good = [row for row in manifest.rows if isinstance(row, Row)][:rows]
    for row in good:
        target = folder / row.image
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(manifest.root / row.image, target)
    path, frames, most = folder / "long.csv", 64, FAMILIES["camera"].frame_rule.maximum
    while True:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["id", "image", "prompt", "resolution_class", "frames"])
            table.writerows([f"{row.id}-long", row.image, row.prompt, "1024p", frames] for row in good)
        spans = [render_one(str(path), number, str(folder / f"try-{frames}")) for number in range(min(2, len(good)))]
        quickest = min(ended - began for began, ended in spans)
        if quickest >= seconds:
            return path, len(good)
        if frames == most:
            raise SystemExit(f"a clip of {most} frames takes {quickest:.1f} s here: give fewer --long-seconds")
        frames = min(most, math.ceil(frames * 1.2 * seconds / quickest))


def by_turns(
    catalog: Path, rows: int, rounds: int, cards: tuple[str, ...]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Figures of direct renders (a process a card) and of the farm by round; who is first changes."""
    directs, farms = [], []
    for number in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="clipmill-bench-"))
        try:
            if number % 2:
                farms.append(through_farm(catalog, rows, folder, cards))
            directs.append(direct(catalog, rows, folder / "direct", len(cards)))
            if not number % 2:
                farms.append(through_farm(catalog, rows, folder, cards))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return directs, farms


def middle(rounds: list[dict[str, float]], name: str) -> float:
    """The median of a figure over rounds."""
    return statistics.median(one[name] for one in rounds)


def ratio(farms: list[dict[str, float]], directs: list[dict[str, float]], name: str) -> float:
    """The median over rounds of a figure of the farm over that of the direct renders beside it."""
    return statistics.median(farm[name] / alone[name] for farm, alone in zip(farms, directs, strict=True))


def started(home: Path) -> bool:
    """Whether a first attempt has begun."""
    path = home / "clipmill.db"
    if not path.exists():
        return False
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
            return bool(store.execute("SELECT count(*) FROM attempts").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def main() -> int:
    """Run both by turns, on either catalog, and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--catalog", type=Path, default=default_catalog())
    arguments.add_argument("--limit", type=int, default=None, help="only the first rows")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--long-rows", type=int, default=8, help="rows of the catalog of long clips; 0: none")
    arguments.add_argument("--long-seconds", type=float, default=5.0, help="what each of those takes at least")
    options = arguments.parse_args()

    from cluster.catalog.manifest import read_manifest

    rows = len(read_manifest(options.catalog).rows)
    rows = min(rows, options.limit or rows)
    directs, farms = by_turns(options.catalog, rows, options.rounds, ALL_CORES)
    figures: dict[str, float | int] = {
        "rows": rows,
        "rounds": options.rounds,
        "direct_wall_s": middle(directs, "wall_s"),
        "farm_wall_s": middle(farms, "wall_s"),
        "until_first_attempt_s": middle(farms, "first_start_s"),
        "rendering_s": middle(farms, "rendering_s"),
        "closing_s": statistics.median(one["wall_s"] - one["last_clip_s"] for one in farms),
        "rendering_over_direct": ratio(farms, directs, "rendering_s"),
    }
    aims = [
        Aim(name="farm wall ÷ direct wall", value=ratio(farms, directs, "wall_s"), at_most=RATIO_AIM),
        Aim(name="command to first clip", value=middle(farms, "first_clip_s"), at_most=FIRST_CLIP_AIM_S, unit="s"),
    ]
    if options.long_rows:
        folder = Path(tempfile.mkdtemp(prefix="clipmill-bench-"))
        try:
            path, long_rows = long_catalog(options.catalog, options.long_rows, options.long_seconds, folder)
            crowded = by_turns(path, long_rows, options.rounds, ALL_CORES)
            directs, farms = by_turns(path, long_rows, options.rounds, CORE_LEFT)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        figures |= {
            "long_rows": long_rows,
            "long_direct_s": middle(directs, "rendering_s"),
            "long_farm_s": middle(farms, "rendering_s"),
            "long_on_all_cores": ratio(crowded[1], crowded[0], "rendering_s"),
        }
        longest = ratio(farms, directs, "rendering_s")
        aims.append(Aim(name="rendering ÷ direct, long clips", value=longest, at_most=LONG_RATIO_AIM))
    return Report(name="farm", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
