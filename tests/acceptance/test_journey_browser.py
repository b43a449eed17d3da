"""The whole way of a person with a catalog, in a browser on a real farm: dropped, checked, mended, handed in,
looked at, approved and taken home, with reloads on the way, a second tab, and a farm that goes and comes back."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Terminal, draw_still
from tests.acceptance.test_farm import free_port
from tests.integration.test_page_browser import browser, faults, until  # noqa: F401 - a fixture
from tests.integration.test_review_browser import now, press

pytestmark = [pytest.mark.farm, pytest.mark.browser]

#: Of prompts as people write them: one lacks, and one says nothing that moves.
PROMPTS = {"MUG": "pan left", "LAMP": "slow zoom in", "CHAIR": "make it alive", "VASE": ""}
#: What a browser says by itself where nobody answers.
AWAY = ("Failed to load resource", "net::ERR", "htmx:sendError", "htmx:afterRequest", "Response Status Error Code 5")


class Farm:
    """A `clipmill up` that can be ended and started again on one home, at one address."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self.port = terminal, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = self.terminal.start("up", "--cards", "c8", "--port", str(self.port))
        self.terminal.until(lambda: self.terminal.is_up(self.url, cards=1), self.process)

    def stop(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        assert self.terminal.finish(self.process).code == 0

    def batch(self) -> dict[str, Any]:
        """The only batch, as the API has it."""
        (found,) = httpx.get(f"{self.url}/v1/batches").json()["data"]
        return dict(found)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """One farm for this module's tests, the first of which has it empty."""
    terminal = Terminal(tmp_path_factory.mktemp("journey"))
    found = Farm(terminal)
    found.start()
    yield found
    found.stop()
    terminal.close()


@pytest.fixture
def tabs(browser: Any) -> Iterator[tuple[Any, Any]]:  # noqa: F811 - the fixture
    """Two tabs of one browser, on whose consoles nothing is to be said but that nobody answers."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    said: list[str] = []
    context.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    context.on("weberror", lambda error: said.append(str(error.error)))
    yield context.new_page(), context.new_page()
    context.close()
    assert [text for text in said if not any(words in text for words in AWAY)] == []


def shop(folder: Path) -> Path:
    """A folder as people have it: a table, and the pictures that it names in a folder below."""
    (folder / "pics").mkdir(parents=True)
    lines = ["id,image,prompt,title,frames,fps"]
    for n, (name, prompt) in enumerate(PROMPTS.items()):
        draw_still(folder / "pics" / f"{name.lower()}.png", n)
        lines.append(f"{name},pics/{name.lower()}.png,{prompt},the {name.lower()},12,12")
    (folder / "spring.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def drop(page: Any, what: Path) -> None:
    """Drop a file or a folder of this machine on the page."""
    box = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(what)], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at})


def typed(page: Any) -> dict[str, str]:
    names = ("prompt", "model", "resolution_class", "rounds", "name")
    return {name: page.locator(f"#new-form [name={name}]").input_value() for name in names}


def hand_in(page: Any, folder: Path) -> None:
    """From an empty farm to a batch of four rows; a reload in the middle loses nothing."""
    page.get_by_role("link", name="New batch").first.click()
    page.get_by_label("Prompt for rows that have none").fill("camera tilting up slowly along {title}")
    for name, value in {"model": "camera", "resolution_class": "256p", "rounds": "draft,final"}.items():
        page.locator(f"#new-form [name={name}]").select_option(value)
    page.get_by_label("shop", exact=True).check()
    page.locator("#new-form [name=name]").fill("Spring")
    drop(page, folder)
    page.wait_for_selector("h2:has-text('4 rows, and all can be rendered')")
    assert page.get_by_text("camera tilting up slowly along the vase").is_visible()
    page.locator("button[data-fix][data-row=CHAIR]").first.click()
    until(page, "!document.querySelector('button[data-fix][data-row=CHAIR]')")
    before = (typed(page), page.locator("#fixed-text").inner_text(), page.locator("#chosen-text").inner_text())
    assert before[1].startswith("1 value of 1 row changed")
    page.reload()
    page.wait_for_selector("h2:has-text('4 rows, and all can be rendered')")
    assert page.locator("button[data-fix][data-row=CHAIR]").count() == 0
    assert before == (typed(page), page.locator("#fixed-text").inner_text(), page.locator("#chosen-text").inner_text())
    assert page.get_by_label("shop", exact=True).is_checked()
    assert faults(page) == []
    page.get_by_role("button", name="Hand in 4 rows").click()
    page.wait_for_url("**/batches/batch_*")


def decide(page: Any, other: Any, farm: Farm) -> None:
    """Three drafts are approved and one is rejected, by keys alone, while the farm goes away and comes back."""
    page.locator("#review").click()
    page.wait_for_selector(".review-clip.now")
    assert faults(page) == []
    assert now(page) == "MUG"
    press(page, "a", "LAMP")
    press(page, "r", "CHAIR")
    page.reload()
    page.wait_for_selector(".review-clip.now")
    assert now(page) == "CHAIR"
    # What was rejected before the reload is taken back after it.
    press(page, "u", "LAMP")
    press(page, "r", "CHAIR")
    farm.stop()
    for tab in (page, other):
        tab.wait_for_selector("#told:has-text('The gateway does not answer')", timeout=60_000)
    page.keyboard.press("a")
    page.wait_for_timeout(300)
    assert now(page) == "CHAIR"
    farm.start()
    for tab in (page, other):
        until(tab, "!document.getElementById('told').textContent.includes('does not answer')")
    press(page, "a", "VASE")
    page.keyboard.press("a")
    page.wait_for_selector("#none:not([hidden])")


def take_home(page: Any, farm: Farm) -> None:
    """The zip, and a file for a shop."""
    with page.expect_download() as told:
        page.get_by_role("link", name="All clips (zip)").click()
    assert told.value.suggested_filename == "Spring.zip"
    with zipfile.ZipFile(told.value.path()) as made:
        assert made.testzip() is None
        table = list(csv.DictReader(io.StringIO(made.read("results.csv").decode("utf-8-sig"))))
        names = {f"{row}.{kind}" for row in ("MUG", "CHAIR", "VASE") for kind in ("mp4", "jpg", "json")}
        assert set(made.namelist()) == names | {"results.csv"}
    rows = {row["id"]: row for row in table}
    assert {name: row["state"] for name, row in rows.items()} == {
        "MUG": "completed", "LAMP": "cancelled", "CHAIR": "completed", "VASE": "completed"
    }  # fmt: skip
    assert rows["MUG"]["prompt"] == "pan left"
    assert rows["CHAIR"]["prompt"] not in ("", "make it alive")
    assert rows["VASE"]["prompt"] == "camera tilting up slowly along the vase"
    assert page.get_by_role("link", name="With files for marketplaces").is_visible()
    page.get_by_role("link", name="MUG").first.click()
    page.wait_for_selector("h1:has-text('MUG')")
    assert faults(page) == []
    with page.expect_download(timeout=120_000) as told:
        page.locator(".deliveries a").click()
    assert told.value.suggested_filename == "MUG-shop.mp4"
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(told.value.path()) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (1080, 1080)


def test_from_a_folder_to_files_for_a_shop(farm: Farm, tabs: tuple[Any, Any], tmp_path: Path) -> None:
    page, other = tabs
    for tab in tabs:
        tab.goto(farm.url)
        tab.wait_for_selector("text=No batch yet")
    assert faults(page) == []
    hand_in(page, shop(tmp_path / "shop"))
    # The other tab has stood where it is all the time, and is true.
    other.get_by_role("link", name="Spring").click()
    for tab in tabs:
        tab.wait_for_selector("#review", timeout=60_000)
        tab.wait_for_selector(".tally:has-text('4 held')", timeout=60_000)
        until(tab, "document.querySelectorAll('.tile.held').length === 4")
    assert faults(other) == []
    decide(page, other, farm)
    page.get_by_role("link", name="Back to the batch").click()
    for tab in tabs:
        tab.wait_for_selector(".tally:has-text('3 completed')", timeout=60_000)
        tab.wait_for_selector(".tally:has-text('1 cancelled')", timeout=60_000)
        until(tab, "document.querySelectorAll('.tile.completed').length === 3")
        tab.wait_for_selector(".chip.completed")
    assert farm.batch()["counts"]["completed"] == 3
    take_home(page, farm)
    page.goto(f"{farm.url}/cards")
    assert faults(page) == []


def timed(farm: Farm, folder: Path, rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Render rows of one picture with the small network, one after the other: (what became of each, whole seconds)."""
    folder.mkdir()
    draw_still(folder / "still.png", 7)
    shared = {"image": "still.png", "prompt": "camera panning left", "model": "i2vgen-xl-tiny"}
    lines = [json.dumps({"id": f"row-{n}", "seed": n} | shared | row) for n, row in enumerate(rows)]
    (folder / "catalog.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = farm.terminal.run("submit", str(folder / "catalog.jsonl"), "--wait", "--json")
    assert done.code == 0, done.out + done.err
    took = farm.terminal.rows("SELECT job_id, ended_at - started_at FROM attempts WHERE outcome = 'completed'")
    return [(job, dict(took)[job["id"]]) for job in done.json["jobs"]]


def test_what_is_suggested_for_a_time_is_what_the_farm_does(farm: Farm, tmp_path: Path) -> None:
    """After three quick clips of the class, one that is asked for by its time alone: class, steps and seconds."""
    timed(farm, tmp_path / "first", [{"resolution_class": "256p", "steps": 6} for _ in range(3)])
    still = tmp_path / "first" / "still.png"
    words = ("suggest", "--image", str(still), "--model", "i2vgen-xl-tiny", "--within", "60", "--json")
    (choice,) = farm.terminal.run(*words).json["choices"]
    assert choice["in_time"], choice["reason"]
    ((job, seconds),) = timed(farm, tmp_path / "chosen", [{"within": 60, "seed": 99}])
    # A side is enlarged by no more than a quarter: of 320 pixels the smallest class is what the picture has to show.
    assert (choice["class"], job["resolution_class"]) == ("256p", "256p")
    assert (job["size"], job["steps"]) == (choice["size"], choice["steps"])
    # Times in the store are whole seconds.
    assert abs(choice["seconds"] - seconds) <= 0.2 * seconds + 1, (choice["reason"], seconds)
