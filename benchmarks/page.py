"""Frames a second and memory of the page while a person scrolls through a wall of thousands of playing clips.

A gateway of its own process over a store of `--rows` finished rows, and Debian's Chromium, headless and without a GPU.
The wall is scrolled from its first row to its last, `--pixels` a frame, as a person who searches does; a frame is what
the browser draws (`requestAnimationFrame`). Elements, decoders and the heap of scripts are counted at the beginning and
at the end, after a collection.
"""

from __future__ import annotations

import importlib
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from report import Aim, Report, parser

#: Aims: milliseconds of a frame on average (50 frames a second), and of 95 of 100; the heap at the end over that at the
#: beginning.
FRAME_AIM_MS, SLOW_AIM_MS, HEAP_AIM = 20.0, 40.0, 1.5
#: Elements of the page at the end; all rows would be ten times as many as there are rows.
ELEMENTS_AIM = 1500
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]

SCROLL = """
async (pixels) => {
    const frames = [];
    let last = performance.now();
    const end = () => scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
    while (!end() && frames.length < 20000) {
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        frames.push(now - last);
        last = now;
        scrollBy(0, pixels);
    }
    return frames;
}
"""


def serve(connection: Connection, folder: str, rows: int) -> None:
    """A gateway over a batch of finished rows, until it is told to end."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # By its name: types of tests are not looked at.
    store = importlib.import_module("tests.page_store")
    with store.page_farm(Path(folder)) as it:
        batch = it.many_completed("many", rows)
        with store.gateway(it) as url:
            connection.send(f"{url}/batches/{batch}")
            connection.recv()


def measured(url: str, rows: int, pixels: int) -> dict[str, Any]:
    """Frames of one scroll through the wall, and what the browser holds before and after."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        began = time.monotonic()
        page.goto(url)
        page.wait_for_selector(".wall.live .tile")
        first_s = time.monotonic() - began
        page.wait_for_selector(".wall.live:not([aria-busy])", timeout=120_000)
        assert page.evaluate("document.getElementById('count').value") == f"{rows:,} rows"
        all_s = time.monotonic() - began
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")

        def held() -> dict[str, float]:
            session.send("HeapProfiler.collectGarbage")
            found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            elements = page.evaluate("document.querySelectorAll('*').length")
            videos = page.evaluate("document.querySelectorAll('video').length")
            return {"heap_mb": found["JSHeapUsedSize"] / 1e6, "elements": elements, "videos": videos}

        before = held()
        frames = page.evaluate(SCROLL, pixels)
        page.wait_for_timeout(1000)
        after = held()
        browser.close()
    return {"first_s": first_s, "all_s": all_s, "frames": frames, "before": before, "after": after}


def main() -> int:
    options_of = parser(__doc__)
    options_of.add_argument("--rows", type=int, default=5000)
    options_of.add_argument("--pixels", type=int, default=60, help="pixels of one frame's scroll")
    options = options_of.parse_args()
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, folder, options.rows))
        process.start()
        try:
            found = measured(ours.recv(), options.rows, options.pixels)
        finally:
            ours.send(None)
            process.join()
    frames = sorted(found["frames"])
    mean, slow = statistics.fmean(frames), frames[int(0.95 * len(frames))]
    figures = {
        "rows": options.rows,
        "first tiles after s": found["first_s"],
        "all rows known after s": found["all_s"],
        "frames": len(frames),
        "frames a second": 1000 / mean,
        "heap at the beginning MB": found["before"]["heap_mb"],
        "heap at the end MB": found["after"]["heap_mb"],
        "elements at the end": found["after"]["elements"],
        "clips that play at the end": found["after"]["videos"],
    }
    aims = [
        Aim(name="a frame on average", value=mean, at_most=FRAME_AIM_MS, unit="ms"),
        Aim(name="95 of 100 frames", value=slow, at_most=SLOW_AIM_MS, unit="ms"),
        Aim(
            name="heap at the end over the beginning",
            value=found["after"]["heap_mb"] / found["before"]["heap_mb"],
            at_most=HEAP_AIM,
        ),
        Aim(name="elements", value=found["after"]["elements"], at_most=ELEMENTS_AIM),
    ]
    return Report(name="page", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
