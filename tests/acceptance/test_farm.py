"""A farm that stays: gateway, batches by CLI and HTTP, cancel, a dying renderer, a clip that only one card holds."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from standardwebhooks import Webhook

from tests.acceptance.conftest import Terminal, write_catalog

pytestmark = pytest.mark.farm


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Up:
    """A running `clipmill up`."""

    def __init__(self, terminal: Terminal, *words: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.terminal = terminal
        self.process: subprocess.Popen[str] = terminal.start("up", "--cards", "c8,c24", "--port", str(port), *words)
        terminal.until(self.is_ready, self.process)

    def is_ready(self) -> bool:
        """Both cards have been heard, and the command has seen its farm up."""
        return self.terminal.is_up(self.url, cards=2)

    def renderers(self) -> list[psutil.Process]:
        """Renderer processes of this farm, found below it and nowhere else."""
        return self.replicas("renderer")

    def replicas(self, name: str) -> list[psutil.Process]:
        """Processes of this farm's replicas of a deployment whose name begins so."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if f"ServeReplica:clipmill:{name}" in " ".join(p.cmdline())]


class Shop(ThreadingHTTPServer):
    """A shop's program that is told of its batches; keeps messages as they come, headers and bytes."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}/told"


class _Receiver(BaseHTTPRequestHandler):
    server: Shop

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Iterator[Up]:
    """One farm for this module's tests."""
    terminal = Terminal(tmp_path_factory.mktemp("up"))
    farm = Up(terminal, "--allow-private-hosts", f"127.0.0.1:{shop.server_port}")
    yield farm
    # As systemd and Kubernetes stop it; Ray has a handler of its own, which must not win.
    farm.process.send_signal(signal.SIGTERM)
    assert terminal.finish(farm.process).code == 0
    assert not list(Path("/tmp").glob(f"clipmill-{farm.process.pid}-*")), "the farm left its folder behind"
    terminal.close()


def niceness(process: psutil.Process) -> set[int]:
    """That of all threads of a process."""
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()}


def test_batches_by_command_line_and_http(up: Up, shop: Shop) -> None:
    terminal = up.terminal
    secret = terminal.run("webhooks", "create", shop.url, "--json").json["webhook"]["secret"]
    catalog = write_catalog(terminal.folder / "shop", [{"prompt": "zoom in"}, {"prompt": "pan left"}])
    handed = terminal.run("submit", str(catalog), "--model", "camera", "--key", "spring", "--json")
    assert handed.code == 0, handed.err
    batch = handed.json["batch"]["id"]
    again = terminal.run("submit", str(catalog), "--model", "camera", "--key", "spring", "--json")
    assert again.json["batch"]["id"] == batch
    waited = terminal.run("wait", batch, "--out", "out", "--json")
    assert waited.code == 0, waited.err
    assert waited.json["batch"]["counts"]["completed"] == 2
    assert len(list((terminal.folder / "out").glob("*.mp4"))) == 2
    remote = terminal.run("submit", str(catalog), "--model", "camera", "--url", up.url, "--wait", "--json")
    assert remote.code == 0, remote.err
    assert remote.json["batch"]["attempts"] == 0, "the clips were there already"
    assert httpx.get(f"{up.url}/v1/batches/{batch}").json()["status"] == "completed"
    assert {card["card_class"] for card in httpx.get(f"{up.url}/v1/cards").json()["data"]} == {"c8", "c24"}
    own = psutil.Process(up.process.pid).nice()
    (gateway,) = up.replicas("gateway")
    # Niceness is a thread's own: what renders gives way, and what answers for it does not.
    assert niceness(gateway) == {own}
    for renderer in up.renderers():
        assert renderer.nice() == own
        assert max(own, 15) in niceness(renderer), "who asks goes first"
    terminal.until(lambda: len(shop.told) >= 2, up.process)
    events = [Webhook(secret).verify(body, headers) for headers, body in shop.told]
    ended = [(event["type"], event["data"]["id"], event["data"]["counts"]["completed"]) for event in events]
    assert ended == [("batch.completed", id_, 2) for id_ in (batch, remote.json["batch"]["id"])]
    assert terminal.run("submit", str(catalog), "--model", "nothing").code == 2
    assert terminal.run("status", "batch_unknown").code == 2


def test_a_farm_never_swaps_a_diffusion_job_for_camera_moves(up: Up) -> None:
    large = {"prompt": "zoom in", "resolution_class": "1024p"}
    catalog = write_catalog(up.terminal.folder / "plain", [large, {"prompt": "zoom in", "model": "camera"}])
    result = up.terminal.run("submit", str(catalog), "--wait", "--json")
    assert result.code == 1
    jobs = {job["model"]: job for job in result.json["jobs"]}
    assert jobs["i2vgen-xl"]["reason"] == "no_card_fits"
    assert "GiB" in jobs["i2vgen-xl"]["problems"][0]["message"]
    assert jobs["camera"]["state"] == "completed"


def test_what_no_card_of_the_farm_holds_is_refused_at_once(up: Up) -> None:
    catalog = write_catalog(up.terminal.folder / "large", [{"prompt": "zoom in", "resolution_class": "1024p"}])
    before = up.terminal.rows("SELECT count(*) FROM batches")
    result = up.terminal.run("submit", str(catalog), "--wait", "--json")
    assert result.code == 2
    assert "no card of this farm can hold i2vgen-xl" in result.err
    assert up.terminal.rows("SELECT count(*) FROM batches") == before


def test_a_large_clip_lands_only_on_the_card_that_holds_it(up: Up) -> None:
    large = {"model": "i2vgen-xl-tiny", "prompt": "x", "resolution_class": "1024p", "frames": 32, "steps": 1}
    small = {"model": "i2vgen-xl-tiny", "prompt": "y", "frames": 4, "steps": 2}
    catalog = write_catalog(up.terminal.folder / "mixed", [large, small, small | {"prompt": "z"}])
    result = up.terminal.run("submit", str(catalog), "--wait", "--json")
    assert result.code == 0, result.out + result.err
    cards = up.terminal.rows(
        "SELECT jobs.name, attempts.card_class FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        f"WHERE attempts.batch_id = '{result.json['batch']['id']}'"
    )
    assert [card for name, card in cards if name == "row-0"] == ["c24"]


def test_cancel_stops_a_running_clip_within_a_step(up: Up) -> None:
    terminal = up.terminal
    long = {"model": "i2vgen-xl-tiny", "prompt": "waves", "frames": 16, "steps": 500}
    catalog = write_catalog(terminal.folder / "long", [long])
    batch = terminal.run("submit", str(catalog), "--json").json["batch"]["id"]
    query = f"SELECT step, outcome FROM attempts WHERE batch_id = '{batch}'"
    terminal.until(lambda: any(step >= 1 for step, _ in terminal.rows(query)), up.process)
    cancelled = terminal.run("cancel", batch, "--json")
    assert cancelled.code == 0
    terminal.until(lambda: terminal.rows(query)[0][1] is not None, up.process)
    [(step, outcome)] = terminal.rows(query)
    assert outcome == "stopped"
    assert step < 500
    assert terminal.rows(f"SELECT state FROM jobs WHERE batch_id = '{batch}'") == [("cancelled",)]
    # The card is free again: the next clip is rendered.
    quick = write_catalog(terminal.folder / "after", [{"prompt": "tilt up"}])
    assert terminal.run("submit", str(quick), "--model", "camera", "--wait").code == 0


def test_a_killed_renderer_costs_an_attempt_and_its_clip_is_rendered_all_the_same(up: Up) -> None:
    terminal = up.terminal
    clip = {"model": "i2vgen-xl-tiny", "prompt": "snow", "frames": 8, "steps": 60}
    catalog = write_catalog(terminal.folder / "killed", [clip])
    batch = terminal.run("submit", str(catalog), "--json").json["batch"]["id"]
    query = f"SELECT step, renderer FROM attempts WHERE batch_id = '{batch}' AND outcome IS NULL"
    terminal.until(lambda: any(step >= 1 for step, _ in terminal.rows(query)), up.process)
    renderers = up.renderers()
    assert renderers, "no renderer process was found"
    busiest = max(renderers, key=lambda p: p.cpu_times().user)
    began = time.monotonic()
    os.kill(busiest.pid, signal.SIGKILL)
    waited = terminal.run("wait", batch, "--json")
    assert waited.code == 0, waited.out
    outcomes = [o for (o,) in terminal.rows(f"SELECT outcome FROM attempts WHERE batch_id = '{batch}' ORDER BY id")]
    assert outcomes[-1] == "completed"
    assert len(outcomes) <= 2, (outcomes, time.monotonic() - began)
    terminal.until(up.is_ready, up.process)


def test_a_second_farm_on_one_home_is_refused(up: Up) -> None:
    second = up.terminal.run("up", "--cards", "c8")
    assert second.code == 3
    assert re.search(r"runs on .* already", second.err)


def test_without_a_farm_submit_says_how_to_start_one(terminal: Terminal, catalog: Path) -> None:
    result = terminal.run("submit", str(catalog))
    assert result.code == 3
    assert "clipmill up" in result.err
    assert terminal.run("status").code == 0
    assert terminal.run("status", "--url", f"http://127.0.0.1:{free_port()}").code == 3
