"""The command line as a user runs it: real processes, real Ray, homes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Its standard output, read as JSON."""
        return json.loads(self.out)


class Terminal:
    """A home folder and the commands run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("CLIPMILL_", "RAY_"))}
        self.env |= {"CLIPMILL_HOME": str(self.home), "COLUMNS": "200", "NO_COLOR": "1"}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.cli.main", *words],
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A test run started in the background ignores SIGINT, and so would its children.
            preexec_fn=_hear_ctrl_c,
        )
        self._started.append(process)
        return process

    def run(self, *words: str, **env: str) -> Outcome:
        """Run a command to its end."""
        return self.finish(self.start(*words, **env))

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for a started command."""
        out, err = process.communicate(timeout=LIMIT_S)
        return Outcome(process.returncode, out, err)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the store directly, apart from the code under test."""
        path = self.home / "clipmill.db"
        if not path.exists():
            return []
        with sqlite3.connect(path, timeout=30) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def attempts(self) -> int:
        """Attempts made on this home so far."""
        found = self.rows("SELECT count(*) FROM attempts")
        return int(found[0][0]) if found else 0

    def until(self, met: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
        """Wait for a condition, failing early when `process` ends."""
        deadline = time.monotonic() + LIMIT_S
        while not met():
            assert time.monotonic() < deadline, "the awaited condition never came"
            if process is not None and process.poll() is not None:
                out, err = process.communicate()
                pytest.fail(f"the command ended too early ({process.returncode}): {out}{err}")
            time.sleep(0.02)

    def is_up(self, url: str, cards: int) -> bool:
        """Whether so many cards were heard of, and `clipmill up` has seen it too: ended before, it exits as stopped."""
        try:
            heard = httpx.get(f"{url}/healthz", timeout=5).json().get("cards") == cards
            return heard and "url" in json.loads((self.home / "farm.lock").read_text())
        except (httpx.HTTPError, OSError, ValueError):
            return False

    def close(self) -> None:
        """End what a failing test left running: only process groups started here."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal on an empty home."""
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Six small stills and a manifest of quick camera clips."""
    prompts = ["slow zoom in", "pan left", "tilt up", "camera rolling clockwise", "orbit right", "dolly in"]
    return write_catalog(tmp_path / "shop", [{"prompt": prompt} for prompt in prompts])


def write_catalog(folder: Path, rows: list[dict[str, Any]], name: str = "catalog.jsonl") -> Path:
    """A manifest with a still per row (its own unless the row names one); 256p, 12 frames unless the row says more."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, row in enumerate(rows):
        image = row.get("image", f"still-{i}.png")
        if "image" not in row:
            draw_still(folder / image, i)
        lines.append(
            json.dumps({"id": f"row-{i}", "image": image, "resolution_class": "256p", "frames": 12, "fps": 12} | row)
        )
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def draw_still(path: Path, seed: int) -> None:
    """A plain product still: a coloured form on a light ground."""
    image = Image.new("RGB", (320, 320), (236, 234, 230))
    draw = ImageDraw.Draw(image)
    colour = ((seed * 67) % 200 + 20, (seed * 131) % 200 + 20, (seed * 29) % 200 + 20)
    draw.ellipse((70, 60, 250, 240), fill=colour)
    draw.rectangle((120, 150 + seed, 200, 270), fill=tuple(255 - c for c in colour))
    image.save(path)


@pytest.fixture
def shared_catalog() -> Path:
    """The real catalog that lies beside the checkout on some machines."""
    path = ROOT.parent / "shared" / "catalog" / "catalog.csv"
    if not path.exists():
        pytest.skip("the shared catalog is not beside this checkout")
    return path


@pytest.fixture(scope="session", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    left = [p for p in Path("/tmp").glob("clipmill-*-*") if not Path(f"/proc/{p.name.split('-')[1]}").exists()]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
