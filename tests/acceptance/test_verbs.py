"""Complaints about other queues, on a running farm: it cannot pause, a batch is one job, a cancel leaves the card busy,
what waits is called in progress."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Terminal, write_catalog
from tests.acceptance.test_farm import Up

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


def test_a_queue_is_paused_outlives_the_farm_and_can_be_exported(up: Up) -> None:
    """Complaint: the queue cannot be paused, is lost with the program, and cannot be saved."""
    terminal = up.terminal
    batch = submit(up, "paused", [LONG | {"steps": 60}, SHORT | {"after": "row-0"}])
    query = f"SELECT step, outcome FROM attempts WHERE batch_id = '{batch}'"
    terminal.until(lambda: any(step >= 3 for step, _ in terminal.rows(query)), up.process)
    assert terminal.run("pause", batch, "--json").json["batch"]["status"] == "paused"
    terminal.until(lambda: terminal.rows(query)[0][1] == "stopped", up.process)
    up.process.send_signal(signal.SIGTERM)
    terminal.finish(up.process)
    exported = terminal.run("status", batch, "--json").json
    assert [(job["state"], job["reason"]) for job in exported["jobs"]] == [("held", "paused"), ("held", "after")]
    assert [job["row"]["image"] for job in exported["jobs"]] == ["still-0.png", "still-1.png"]
    up.__init__(terminal)  # type: ignore[misc]
    assert len(terminal.rows(query)) == 1, "nothing of it has started"
    assert terminal.run("resume", batch).code == 0
    assert terminal.run("wait", batch).code == 0
    [(first,), (second,)] = terminal.rows(
        "SELECT resumed_step FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        f"WHERE attempts.batch_id = '{batch}' AND outcome = 'completed' ORDER BY jobs.number"
    )
    assert first >= 3, "it went on where it was"
    assert second == 0
