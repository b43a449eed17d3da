"""Real farms on a card that their renderers cannot use: this machine has no NVIDIA driver, whoever names a GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.devices.discovery import survey
from tests.acceptance.conftest import Terminal
from tests.building import still_png
from tests.integration.test_prometheus import free_port

pytestmark = [
    pytest.mark.farm,
    pytest.mark.skipif(survey({}).problem is None, reason="this machine has an NVIDIA driver"),
]

CARD = "GPU-01234567-89ab-cdef-0123-456789abcdef"
#: `clipmill` on a machine whose NVML shows a card that its renderers, processes of their own, cannot open.
CLIPMILL = """
import pytest
from tests.doubles.nvml import FakeNvml, t4
FakeNvml([t4()]).install(pytest.MonkeyPatch())
from serve.cli import session
session.PASSES_S = 1.0
from serve.cli.main import app
app()
"""


@pytest.fixture
def terminal(tmp_path: Path):
    (tmp_path / "still.png").write_bytes(still_png())
    rows = ["id,image,prompt,model,class", "moves,still.png,zoom in,camera,256p", "waits,still.png,pan,i2vgen-xl,256p"]
    (tmp_path / "catalog.csv").write_text("\n".join(rows) + "\n")
    opened = Terminal(tmp_path)
    opened.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    yield opened
    opened.close()


def test_a_farm_renders_what_needs_no_gpu_and_says_what_the_others_wait_for(terminal: Terminal) -> None:
    card = {"replicas": 1, "num_gpus": 0, "num_cpus": 0, "resources": {"card-c24": 1}, "cards": [CARD]}
    args = {"card_classes": {"c24": card}, "emulate": False, "default_model": "camera"}
    config = terminal.folder / "farm.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"name": "clipmill", "args": args}]}))
    process = terminal.start("up", "--config", str(config), "--port", str(free_port()))
    completed = "SELECT name FROM jobs WHERE state = 'completed'"
    terminal.until(
        lambda: (terminal.home / "farm.lock").exists() and terminal.run("cards").err.count(CARD) > 0, process
    )
    batch = json.loads(terminal.run("submit", "catalog.csv", "--json").out)
    terminal.until(lambda: terminal.rows(completed) == [("moves",)], process)
    told = terminal.run("why", batch["batch"]["id"], "--row", "waits").err
    assert "cards_unusable" in told
    for text in (told, terminal.run("status").err, terminal.run("cards").err):
        assert "there is no NVIDIA driver" in text
    process.send_signal(signal.SIGINT)
    ended = terminal.finish(process)
    assert "no card of this farm can be used" in ended.err
    assert ended.code == 0


def test_render_makes_what_needs_no_gpu_and_ends_with_the_fault(terminal: Terminal) -> None:
    words = ["render", "catalog.csv", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", CLIPMILL, *words],
        cwd=terminal.folder, env=terminal.env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("no card of this farm can be used") == 1
    assert "no card can take the row that waits: GPU-t4 cannot be used: there is no NVIDIA driver" in done.stderr
    assert (terminal.folder / "out" / "moves.mp4").exists()
    assert not (terminal.folder / "out" / "waits.mp4").exists()
