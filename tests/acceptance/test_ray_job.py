"""`ray job submit`: the exit code comes from the store, and one submission id hands in one batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Terminal, write_catalog
from tests.acceptance.test_farm import free_port

pytestmark = pytest.mark.farm


def test_a_ray_job_hands_in_once_and_fails_with_its_rows(terminal: Terminal) -> None:
    port, dashboard = free_port(), free_port()
    words = ("up", "--cards", "c8", "--port", str(port), "--dashboard-port", str(dashboard))
    # What the environment says of tokens does not count.
    farm = terminal.start(*words, RAY_AUTH_TOKEN="t" * 32, RAY_AUTH_MODE="disabled")
    good = write_catalog(terminal.folder / "shop", [{"prompt": "zoom in"}, {"prompt": "pan left"}], "good.jsonl")
    write_catalog(terminal.folder / "shop", [{"prompt": "zoom in", "image": "nowhere.png"}], "bad.jsonl")

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    terminal.until(ready, farm)

    def job(submission: str, catalog: str) -> subprocess.CompletedProcess[str]:
        ray = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
        where = ["--address", f"http://127.0.0.1:{dashboard}", "--working-dir", ".", "--submission-id", submission]
        entry = ["--", "clipmill", "submit", catalog, "--model", "camera", "--wait"]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLIPMILL_"))}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(terminal.home / "ray-token")}
        return subprocess.run(
            [*ray, *where, *entry], cwd=good.parent, env=env, capture_output=True, text=True, timeout=200
        )

    first = job("spring", "good.jsonl")
    assert first.returncode == 0, first.stdout + first.stderr
    assert job("spring", "good.jsonl").returncode == 1, "Ray refuses an id it knows"
    batches = terminal.rows("SELECT id FROM batches")
    assert len(batches) == 1
    # The id is the key in the store too: after Ray forgot the job, it still hands in nothing.
    again = terminal.run("submit", str(good), "--model", "camera", "--key", "ray-job-spring", "--json")
    assert again.code == 0 or "idempotency" in again.err
    assert terminal.rows("SELECT id FROM batches") == batches
    failing = job("autumn", "bad.jsonl")
    assert failing.returncode == 1
    assert "nowhere.png" in failing.stdout + failing.stderr
    farm.send_signal(signal.SIGINT)
    assert terminal.finish(farm).code == 0
