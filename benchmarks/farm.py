"""What the farm adds: wall time of `clipmill render` against direct renders on as many processes.

    python benchmarks/farm.py [--catalog FILE] [--limit N] [--rounds N] [--check] [--json FILE]

Both make the same clips (`camera`, from reading the manifest to finished mp4, poster and provenance); the farm adds
Ray, the store, storage and the results folder. They run in turn, and the ratio is of their medians.
Aims: farm ÷ direct at most 1.25 over the 101 rows of the shared catalog; first clip within 20 s.
"""

from __future__ import annotations

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

RATIO_AIM = 1.25
FIRST_CLIP_AIM_S = 20.0
PROCESSES = 2
ROOT = Path(__file__).parents[1]


def default_catalog() -> Path:
    """The shared catalog beside the checkout where there is one, else the demo's."""
    shared = ROOT.parent / "shared" / "catalog" / "catalog.csv"
    return shared if shared.exists() else ROOT / "examples" / "catalog" / "catalog.csv"


def render_one(catalog: str, number: int, folder: str) -> float:
    """Render row `number` of the catalog without any farm; returns the seconds it took."""
    from cluster.manifest import Row, read_image_bytes, read_manifest
    from cluster.resolve import Defaults, resolve
    from pipeline.layouts import RESIDENT
    from pipeline.models.camera import CameraModel
    from pipeline.render import render_frames, write_clip
    from pipeline.stills import open_still

    began = time.monotonic()
    manifest = read_manifest(catalog)
    row = manifest.rows[number]
    assert isinstance(row, Row)
    still = read_image_bytes(manifest, row)
    spec = resolve(row, open_still(still).size, Defaults(model="camera"), "").spec
    frames = render_frames(CameraModel(), still, spec, RESIDENT, lambda _step, _steps, _snapshot: None)
    target = Path(folder) / row.id
    target.mkdir()
    write_clip(frames, spec, target, {})
    return time.monotonic() - began


def direct(catalog: Path, rows: int, folder: Path) -> float:
    """Wall seconds of direct renders of the first rows, processes started and ended included."""
    began = time.monotonic()
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        list(pool.map(render_one, [str(catalog)] * rows, range(rows), [str(folder)] * rows))
    return time.monotonic() - began


def through_farm(catalog: Path, rows: int, folder: Path) -> dict[str, float]:
    """Wall seconds of `clipmill render` on an empty home, and where they go."""
    out, home = folder / "out", folder / "home"
    words = ["render", str(catalog), "--out", str(out), "--limit", str(rows), "--model", "camera"]
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
    return {**seen, "wall_s": time.monotonic() - began}


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
    """Run both in turn and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--catalog", type=Path, default=default_catalog())
    arguments.add_argument("--limit", type=int, default=None, help="only the first rows")
    arguments.add_argument("--rounds", type=int, default=1)
    options = arguments.parse_args()

    from cluster.manifest import read_manifest

    rows = len(read_manifest(options.catalog).rows)
    rows = min(rows, options.limit or rows)
    directs, farms = [], []
    for _ in range(options.rounds):
        folder = Path(tempfile.mkdtemp(prefix="clipmill-bench-"))
        try:
            (folder / "direct").mkdir()
            directs.append(direct(options.catalog, rows, folder / "direct"))
            farms.append(through_farm(options.catalog, rows, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    farm_s = statistics.median(f["wall_s"] for f in farms)
    direct_s = statistics.median(directs)
    first_s = statistics.median(f["first_clip_s"] for f in farms)
    last = farms[-1]
    report = Report(
        name="farm",
        figures={
            "rows": rows,
            "direct_wall_s": direct_s,
            "farm_wall_s": farm_s,
            "until_first_attempt_s": last["first_start_s"],
            "rendering_s": last["last_clip_s"] - last["first_start_s"],
            "closing_s": last["wall_s"] - last["last_clip_s"],
            "rendering_over_direct": (last["last_clip_s"] - last["first_start_s"]) / directs[-1],
        },
        aims=[
            Aim(name="farm wall ÷ direct wall", value=farm_s / direct_s, at_most=RATIO_AIM),
            Aim(name="command to first clip", value=first_s, at_most=FIRST_CLIP_AIM_S, unit="s"),
        ],
    )
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
