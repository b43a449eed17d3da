"""Complaints about other queues, on a running farm: it cannot pause, a batch is one job, a cancel leaves the card busy,
what waits is called in progress, a server that dies forgets what it was asked for, whoever reaches it may use it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Terminal, draw_still, write_catalog
from tests.acceptance.test_farm import Up
from tests.acceptance.test_security import ports

pytestmark = pytest.mark.farm

#: Long enough for a command to come while it runs, on a fast machine too.
LONG = {"model": "i2vgen-xl-tiny", "frames": 8, "steps": 900}
SHORT = {"model": "i2vgen-xl-tiny", "frames": 8, "steps": 2}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One farm for this module's tests; one of them starts it anew."""
    terminal = Terminal(tmp_path_factory.mktemp("verbs"))
    farm = Up(terminal)
    yield farm
    farm.process.send_signal(signal.SIGTERM)
    terminal.finish(farm.process)
    terminal.close()


def submit(up: Up, name: str, rows: list[dict[str, Any]], *options: str) -> str:
    catalog = write_catalog(up.terminal.folder / name, [{"prompt": f"{name} {n}"} | row for n, row in enumerate(rows)])
    made = up.terminal.run("submit", str(catalog), *options, "--json")
    assert made.code == 0, made.err
    return str(made.json["batch"]["id"])


def states(up: Up, batch: str) -> list[str]:
    return [
        state for (state,) in up.terminal.rows(f"SELECT state FROM jobs WHERE batch_id = '{batch}' ORDER BY number")
    ]


def gauge(up: Up) -> dict[str, float]:
    """Rows of 256p by state, as Prometheus would read them."""
    text = httpx.get(f"{up.url}/metrics", timeout=30).text
    found = re.findall(r"^clipmill_jobs\{(.*)\} (\S+)$", text, re.MULTILINE)
    labels = [(dict(re.findall(r'(\w+)="([^"]*)"', names)), float(value)) for names, value in found]
    return {names["state"]: value for names, value in labels if names["resolution_class"] == "256p"}


def cards(up: Up) -> dict[str, dict[str, Any]]:
    """Every card's newest beat, as the store has it."""
    beats = [json.loads(beat) for (beat,) in up.terminal.rows("SELECT beat FROM cards")]
    return {beat["card"]: beat for beat in beats}


def idle(up: Up) -> bool:
    return all(card["state"] == "idle" and card["family"] for card in cards(up).values())


def restart(up: Up, *words: str) -> None:
    """End the farm as systemd does, and start it again on its home."""
    up.process.send_signal(signal.SIGTERM)
    up.terminal.finish(up.process)
    up.__init__(up.terminal, *words)  # type: ignore[misc]


def own_address() -> str:
    """An address of this machine that others reach it by."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family is socket.AF_INET and not one.address.startswith(("127.", "169.254.")):
                return one.address
    pytest.skip("this machine has no address but loopback")


def beyond_loopback(up: Up) -> tuple[str, dict[str, str]]:
    """The farm at the address by which others reach it, and the header that has a key; started so where it is not."""
    kept = up.terminal.folder / "key"
    if not kept.exists():
        made = up.terminal.run("keys", "create", "--scope", "admin")
        assert made.code == 0, made.err
        restart(up, "--host", "0.0.0.0")
        kept.write_text(made.out.strip())
    return up.url.replace("127.0.0.1", own_address()), {"Authorization": f"Bearer {kept.read_text()}"}


def test_a_cancel_gives_the_card_back_with_its_memory(up: Up) -> None:
    """Complaint: a cancelled job goes on on the GPU."""
    # With the weights loaded on both cards, what a clip takes besides them can be told.
    while not idle(up):
        assert up.terminal.run("wait", submit(up, "warm", [SHORT, SHORT])).code == 0
        up.terminal.until(lambda: all(card["state"] == "idle" for card in cards(up).values()), up.process)
    before = {name: card["used_bytes"] for name, card in cards(up).items()}
    batch = submit(up, "cancelled", [LONG, LONG])
    up.terminal.until(lambda: all(c["used_bytes"] > before[name] for name, c in cards(up).items()), up.process)
    assert up.terminal.run("cancel", batch).code == 0
    up.terminal.until(lambda: idle(up), up.process)
    # What stays is the sampler's table of times: eight bytes a step.
    assert all(card["used_bytes"] - before[name] <= 8 * LONG["steps"] for name, card in cards(up).items())
    assert states(up, batch) == ["cancelled", "cancelled"]
    assert not up.terminal.rows("SELECT id FROM attempts WHERE outcome IS NULL")


def test_many_images_are_many_jobs(up: Up) -> None:
    """Complaint: several images in one request are one job, which fails or is cancelled as a whole."""
    batch = submit(up, "many", [SHORT, SHORT | {"frames": 0}, SHORT, SHORT], "--hold")
    jobs = up.terminal.run("status", batch, "--json").json["jobs"]
    assert len({job["id"] for job in jobs}) == 4
    assert [job["state"] for job in jobs] == ["held", "failed", "held", "held"]
    assert up.terminal.run("cancel", batch, "--row", "row-2").code == 0
    assert up.terminal.run("approve", batch).code == 0
    assert up.terminal.run("wait", batch).code == 1
    assert states(up, batch) == ["completed", "failed", "cancelled", "completed"]


def test_what_waits_is_queued_and_the_gauges_agree_with_the_store(up: Up) -> None:
    """Complaint: `in_progress` while it waits, and gauges that say something else."""
    before = gauge(up)
    for card in cards(up):
        assert up.terminal.run("cards", "lock", card, "--reason", "nothing is to start").code == 0
    batch = submit(up, "waiting", [SHORT, SHORT, SHORT])
    view = httpx.get(f"{up.url}/v1/batches/{batch}", timeout=30).json()
    assert (view["counts"]["queued"], view["counts"]["running"]) == (3, 0)
    assert gauge(up) == before | {"queued": before["queued"] + 3}
    assert up.terminal.run("pause", batch, "--row", "row-1").code == 0
    assert gauge(up) == before | {"queued": before["queued"] + 2, "held": before["held"] + 1}
    assert up.terminal.run("pause", batch).code == 0
    assert gauge(up) == before | {"held": before["held"] + 3}
    assert up.terminal.run("cancel", batch).code == 0
    assert gauge(up) == before
    shown = up.terminal.run("cards", "--json").json["cards"]
    assert {card["order"]["reason"] for card in shown} == {"nothing is to start"}
    for card in cards(up):
        assert up.terminal.run("cards", "unlock", card).code == 0


@dataclass(frozen=True)
class AskedVideo:
    """A video that was asked for, and what the gateway said of it before it died."""

    fields: dict[str, str]
    still: bytes
    answer: dict[str, Any]

    def again(self, up: Up) -> httpx.Response:
        """The same request, under the same key."""
        return httpx.post(
            f"{up.url}/v1/videos",
            data=self.fields,
            files={"input_reference": ("still.png", self.still)},
            headers={"Idempotency-Key": self.fields["prompt"]},
            timeout=30,
        )


def ask_and_kill_the_gateway(up: Up) -> list[AskedVideo]:
    """One video for much later and one for now; the gateway dies before anybody asks for either again."""
    still = up.terminal.folder / "asked.png"
    draw_still(still, 7)
    clip = {"model": "i2vgen-xl-tiny", "size": "256x256", "num_frames": "8", "num_inference_steps": "2"}
    asked = []
    for fields in (clip | {"prompt": "much later", "not_before": "2099-01-01T00:00"}, clip | {"prompt": "now"}):
        one = AskedVideo(fields, still.read_bytes(), {})
        made = one.again(up)
        assert made.status_code == 200, made.text
        asked.append(replace(one, answer=made.json()))
    (gateway,) = up.replicas("gateway")
    gateway.kill()
    return asked


def answers_as_before(up: Up, asked: list[AskedVideo]) -> None:
    """Whoever polls hears what the gateway that died would have said."""
    later, now = asked
    assert httpx.get(f"{up.url}/v1/videos/{later.answer['id']}", timeout=30).json() == later.answer
    for one in asked:
        assert one.again(up).json()["id"] == one.answer["id"], "a repeated request made another video"
    video = f"{up.url}/v1/videos/{now.answer['id']}"
    up.terminal.until(lambda: httpx.get(video, timeout=30).json()["status"] == "completed", up.process)
    done = httpx.get(video, timeout=30).json()
    changed = {name for name, value in done.items() if value != now.answer[name]}
    assert changed <= {
        "status",
        "progress",
        "completed_at",
        "file_name",
        "inference_time_s",
        "peak_memory_mb",
        "clipmill",
    }
    assert httpx.get(f"{video}/content", timeout=30).content[4:8] == b"ftyp"
    prompts = "json_extract(row, '$.prompt') IN ('much later', 'now')"
    assert up.terminal.rows(f"SELECT count(*) FROM jobs WHERE {prompts}") == [(2,)]


def test_a_queue_is_paused_outlives_the_farm_and_can_be_exported(up: Up) -> None:
    """Complaint: the queue cannot be paused or saved, is lost with the program, and a server that dies forgets."""
    terminal = up.terminal
    batch = submit(up, "paused", [LONG | {"steps": 60}, SHORT | {"after": "row-0"}])
    query = f"SELECT step, outcome FROM attempts WHERE batch_id = '{batch}'"
    terminal.until(lambda: any(step >= 3 for step, _ in terminal.rows(query)), up.process)
    assert terminal.run("pause", batch, "--json").json["batch"]["status"] == "paused"
    terminal.until(lambda: terminal.rows(query)[0][1] == "stopped", up.process)
    asked = ask_and_kill_the_gateway(up)
    up.process.send_signal(signal.SIGTERM)
    terminal.finish(up.process)
    exported = terminal.run("status", batch, "--json").json
    assert [(job["state"], job["reason"]) for job in exported["jobs"]] == [("held", "paused"), ("held", "after")]
    assert [job["row"]["image"] for job in exported["jobs"]] == ["still-0.png", "still-1.png"]
    up.__init__(terminal)  # type: ignore[misc]
    answers_as_before(up, asked)
    assert len(terminal.rows(query)) == 1, "nothing of it has started"
    assert terminal.run("resume", batch).code == 0
    assert terminal.run("wait", batch).code == 0
    [(first,), (second,)] = terminal.rows(
        "SELECT resumed_step FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        f"WHERE attempts.batch_id = '{batch}' AND outcome = 'completed' ORDER BY jobs.number"
    )
    assert first >= 3, "it went on where it was"
    assert second == 0


def test_whoever_reaches_the_farm_from_elsewhere_shows_a_key(up: Up) -> None:
    """Complaint: a server that listens beyond its machine is everybody's."""
    url, shown = beyond_loopback(up)
    ports(up.process.pid, urlsplit(url).port or 0, everywhere=True)
    assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    paths = httpx.get(f"{url}/openapi.json", headers=shown, timeout=30).json()["paths"]
    asked = [(m.upper(), re.sub(r"\{\w+\}", "x", path)) for path, methods in paths.items() for m in methods]
    asked += [("GET", path) for path in ("/openapi.json", "/docs", "/metrics")]
    open_to_all = {("GET", "/healthz"), ("POST", "/v1/session")}
    told = {(m, path): httpx.request(m, f"{url}{path}", timeout=30).status_code for m, path in asked}
    assert {one for one, status in told.items() if status != 401} == open_to_all, told
    assert len(told) > 40
    assert httpx.post(f"{url}/v1/session", json={"key": "clipmill_guessed"}, timeout=30).status_code == 401


def test_verbs_from_another_machine(up: Up) -> None:
    """A home that has no farm, and nothing but the address and a key."""
    url, _ = beyond_loopback(up)
    folder = up.terminal.folder / "elsewhere"
    folder.mkdir()
    other = Terminal(folder)
    other.env |= {"CLIPMILL_CONFIG": str(folder / "config"), "CLIPMILL_URL": url}
    try:
        refused = other.run("status")
        assert refused.code == 2
        assert "clipmill login" in refused.err
        logged = other.run("login", url, "--key-file", str(up.terminal.folder / "key"))
        assert logged.code == 0, logged.err
        assert other.run("whoami", "--json").json["owner"] == "local"
        rows = [{"prompt": "zoom in", "model": "camera"}, {"prompt": "pan left", "model": "camera"}]
        catalog = write_catalog(folder / "shop", rows)
        made = other.run("submit", str(catalog), "--hold", "--json")
        assert made.code == 0, made.err
        batch = made.json["batch"]["id"]
        assert other.run("cancel", batch, "--row", "row-1").code == 0
        assert "approve it" in other.run("why", batch, "--row", "row-0").err
        assert other.run("approve", batch).code == 0
        assert other.run("wait", batch, "--out", "out").code == 1, "one row was cancelled"
        assert [path.name for path in (folder / "out").glob("*.mp4")] == ["row-0.mp4"]
        assert len(other.run("cards", "--json").json["cards"]) == 2
        assert other.run("delete", batch, "--yes").code == 0
        assert other.run("status", batch).code == 2
        assert other.run("logout").code == 0
        assert other.run("whoami").code == 2
        assert not other.home.exists(), "a client keeps nothing here"
    finally:
        other.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_elsewhere_logs_in_by_key(up: Up) -> None:
    """A page by plain http and an address is no secure context: browsers allow it less than on loopback."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from tests.integration.test_contact_sheet_browser import ARGUMENTS

    url, shown = beyond_loopback(up)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"{url}/cards")
        assert urlsplit(page.url).path == "/login"
        page.fill("#key", "clipmill_guessed")
        page.click("button[type=submit]")
        page.wait_for_selector("#fault:visible")
        page.fill("#key", shown["Authorization"].removeprefix("Bearer "))
        page.click("button[type=submit]")
        page.wait_for_url(f"{url}/cards")
        page.wait_for_selector("text=emulated-c8-0")
        browser.close()
