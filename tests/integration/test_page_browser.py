"""The page as a person uses it: a real browser, one gateway over one store, and no farm behind it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from tests.building import still_png
from tests.integration.test_contact_sheet_browser import ARGUMENTS
from tests.page_store import PageFarm, beats_of, fill, gateway, page_farm, row

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

MANY = 3000
#: A wall that has all of its rows.
LOADED = ".wall.live:not([aria-busy])"


class House:
    """A gateway that can be ended and started again at one address, and the batches of its store."""

    def __init__(self, it: PageFarm, ids: dict[str, str], url: str) -> None:
        self.it, self.ids, self.url = it, ids, url


@contextmanager
def beating(it: PageFarm, running: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Cards that are heard of for as long as this lasts."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(3):
            it.dispatch.record_cards(beats_of(running))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def house(tmp_path_factory: Any) -> Iterator[House]:
    with page_farm(tmp_path_factory.mktemp("page")) as it:
        ids = fill(it)
        ids["many"] = it.many_completed("Thousands", MANY)
        made = it.farm.batch_store.attempts_of("local", ids["running"])
        running = {one.id: (18, 30) for one in made if one.outcome is None}
        it.dispatch.record_cards(beats_of(running))
        with beating(it, running), gateway(it) as url:
            yield House(it, ids, url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, request: Any) -> Iterator[Any]:
    """A page of a context of its own, on whose console nothing is to be said."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | getattr(request, "param", {}))
    found = context.new_page()
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.said = said
    yield found
    context.close()
    # A gateway that is away, or says no, is what some tests are about.
    away = (
        "Failed to load resource",
        "net::ERR",
        "Response Status Error Code 5",
        "htmx:sendError",
        "htmx:afterRequest",
    )
    assert [text for text in said if not any(words in text for words in away)] == []


def faults(page: Any) -> list[str]:
    """What keeps people out of the page, as axe-core finds it (WCAG 2.1, A and AA)."""
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    return [f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}" for one in found]


def until(page: Any, expression: str, patience_ms: int = 60_000) -> None:
    """Wait for an expression to be true. Playwright's own way evaluates text in the page, which its policy forbids."""
    for _ in range(patience_ms // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def visit(page: Any, house: House, where: str) -> None:
    path = {"clip": f"/clips/{house.it.jobs(house.ids['running'])[0].id}"}.get(where)
    if path is None:
        path = f"/batches/{house.ids[where]}" if where in house.ids else where
    page.goto(house.url + path)


WHERE = ["/", "running", "clip", "/cards", "/new", "hostile", "failed"]


@pytest.mark.parametrize(
    "page",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
    ],
    indirect=True,
    ids=["light", "dark", "phone"],
)
def test_nobody_is_kept_out_and_nothing_is_wider_than_the_screen(page: Any, house: House) -> None:
    for where in WHERE:
        visit(page, house, where)
        if where in house.ids:
            page.wait_for_selector(LOADED)
        assert faults(page) == [], where
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
        assert page.evaluate("window.hacked") is None


def test_a_person_finds_a_clip_and_sees_it_play(page: Any, house: House) -> None:
    page.goto(house.url)
    page.get_by_role("link", name="Autumn catalogue").click()
    page.wait_for_selector(".wall.live .tile.completed video")
    until(page, "[...document.querySelectorAll('video')].some((v) => !v.paused && v.currentTime > 0)")
    page.get_by_label("Notes").select_option("*")
    until(page, "document.getElementById('count').value === '3 of 13 rows'")
    # A reload loses nothing of it.
    page.reload()
    until(page, "document.getElementById('count').value === '3 of 13 rows'")
    page.keyboard.press("/")
    page.keyboard.type("no such words")
    page.get_by_role("button", name="Show everything").click()
    until(page, "document.getElementById('count').value === '13 rows'")
    page.get_by_role("link", name=re.compile("^BROKEN-13, failed")).click()
    page.wait_for_selector("h1:has-text('BROKEN-13')")
    assert page.get_by_text("Export the picture again.").first.is_visible()


def test_thousands_of_rows_are_few_elements_and_keys_go_through_them(page: Any, house: House) -> None:
    visit(page, house, "many")
    page.wait_for_selector(LOADED)
    until(page, f"document.getElementById('count').value === '{MANY:,} rows'")
    assert page.evaluate("document.querySelectorAll('.tile').length") < 60
    page.locator(".tile .frame").first.focus()
    page.keyboard.press("End")
    page.wait_for_selector(f".tile:has-text('SKU-{MANY:05}')")
    until(page, f"document.activeElement.getAttribute('aria-label')?.startsWith('SKU-{MANY:05}')")
    assert page.evaluate("document.querySelectorAll('.tile').length") < 80
    page.keyboard.press("ArrowLeft")
    until(page, f"document.activeElement.getAttribute('aria-label')?.startsWith('SKU-{MANY - 1:05}')")
    page.keyboard.press("Home")
    until(page, "document.activeElement.getAttribute('aria-label')?.startsWith('SKU-00001')")
    # Few clips play at once, whatever was gone through.
    assert page.evaluate("document.querySelectorAll('video').length") <= 16


def test_two_tabs_stay_true_and_a_gateway_that_was_away_is_said(page: Any, house: House) -> None:
    it = house.it
    batch = it.batch("Live", [row(n, f"LIVE-{n}", it.still) for n in range(1, 4)])
    with gateway(it) as url:
        other = page.context.new_page()
        for one in (page, other):
            one.goto(f"{url}/batches/{batch}")
            one.wait_for_selector(".tile.queued")
        it.complete(it.jobs(batch)[0])
        for one in (page, other):
            one.wait_for_selector(".tile.completed:has-text('LIVE-1')")
            one.wait_for_selector(".tally:has-text('1 completed')")
        port = int(url.rpartition(":")[2])
    page.wait_for_selector("#told:has-text('The gateway does not answer')", timeout=60_000)
    it.complete(it.jobs(batch)[1])
    with gateway(it, port):
        page.wait_for_selector("#told:has-text('Connected again')", timeout=60_000)
        page.wait_for_selector(".tile.completed:has-text('LIVE-2')")


def test_pictures_are_checked_and_then_handed_in(page: Any, house: House, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(still_png(seed=1))
    (tmp_path / "two.png").write_bytes(still_png(seed=2))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "bags.csv").write_text(
        "id,image,prompt,brand\nA,one.png,,Tonwerk\nB,two.png,tilt up,\nC,broken.png,pan,\n<b>,none.png,pan,\n"
    )
    before = len(house.it.farm.batch_store.batches("local", 100))
    page.goto(f"{house.url}/new")
    page.get_by_label("Prompt for rows that have none").fill("{brand} turning around")
    page.set_input_files("#files", [tmp_path / name for name in ("one.png", "two.png", "broken.png", "bags.csv")])
    page.wait_for_selector("h2:has-text('2 of 4 rows can be rendered')")
    assert faults(page) == []
    assert page.get_by_text("Tonwerk turning around").is_visible()
    assert page.get_by_text("Fits NVIDIA L4").is_visible()
    assert len(house.it.farm.batch_store.batches("local", 100)) == before
    page.get_by_role("button", name="Hand in 2 rows").click()
    page.wait_for_url("**/batches/batch_*")
    page.wait_for_selector(".tile.failed:has-text('C')")
    made = house.it.farm.batch_store.batches("local", 1)[0]
    assert (made.name, made.counts[JobState.FAILED], made.counts.total) == ("bags.csv", 2, 4)


def test_a_product_feed_is_taken_as_a_table_is(page: Any, house: House, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(still_png(seed=3))
    (tmp_path / "feed.xml").write_text(
        '<rss xmlns:g="http://base.google.com/ns/1.0"><channel><item><g:id>MUG</g:id><g:brand>Tonwerk</g:brand>'
        "<g:image_link>mug.png</g:image_link></item></channel></rss>"
    )
    page.goto(f"{house.url}/new")
    page.get_by_label("Prompt for rows that have none").fill("{brand} turning around")
    page.set_input_files("#files", [tmp_path / "mug.png", tmp_path / "feed.xml"])
    page.wait_for_selector("text=Taken for a Google Merchant feed (RSS 2.0)")
    assert page.get_by_text("Tonwerk turning around").is_visible()
    assert faults(page) == []


def test_a_warning_is_fixed_with_one_click_and_time_is_left_to_the_farm(
    page: Any, house: House, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(still_png((700, 600), seed=1))
    lines = [
        "id,image,prompt,guidance,steps",
        *(f"R{n},one.png,pan left,25," for n in range(3)),
        "S,one.png,pan left,,400",
    ]
    (tmp_path / "traps.csv").write_text("\n".join(lines))
    page.goto(f"{house.url}/new")
    page.get_by_label("Model").select_option("i2vgen-xl")
    page.set_input_files("#files", [tmp_path / "one.png", tmp_path / "traps.csv"])
    page.get_by_role("button", name="Fix guidance high of R1").click()
    until(page, "document.querySelectorAll('[data-fix=guidance_high][data-row]').length === 2")
    page.get_by_role("button", name="Fix all 2").click()
    until(page, "!document.querySelector('[data-fix=guidance_high]')")
    page.get_by_role("button", name="Fix many steps of S").click()
    until(page, "!document.querySelector('[data-fix=many_steps]')")
    assert page.locator("#fixed").inner_text().startswith("4 values of 4 rows changed")
    page.get_by_label("Or a clip within").fill("1 min")
    page.wait_for_selector("text=A clip may take 1 min")
    assert page.locator("[name=resolution_class]").is_disabled()
    assert faults(page) == []
    page.get_by_role("button", name="Hand in 4 rows").click()
    page.wait_for_url("**/batches/batch_*")
    made = house.it.jobs(house.it.farm.batch_store.batches("local", 1)[0].id)
    assert {job.spec.guidance for job in made if job.spec} == {9.0}
    assert {note.code for note in made[0].notes} & {"within_chosen", "within_missed"}


def test_a_batch_that_had_ended_and_goes_on_is_followed_again(page: Any, house: House) -> None:
    it = house.it
    batch = it.batch("Ended once", [row(1, "AGAIN-1", it.still)])
    it.fail(it.jobs(batch)[0])
    page.goto(f"{house.url}/batches/{batch}")
    page.wait_for_selector(".tile.failed")
    # Elsewhere somebody puts it back; the page, which looks now and then, is made to look at once.
    it.farm.command_batch(batch, Verb.RETRY)
    page.evaluate("document.dispatchEvent(new Event('clipmill:again'))")
    page.wait_for_selector(".tile.queued")
    page.wait_for_selector("#live:not([data-ended])")
    it.complete(it.jobs(batch)[0])
    page.wait_for_selector(".tile.completed")


def test_what_was_begun_on_new_outlives_a_reload_and_is_gone_once_it_is_begun_anew(
    page: Any, house: House, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(still_png(seed=1))
    page.goto(f"{house.url}/new")
    page.get_by_label("Prompt for rows that have none").fill("pan left across {name}")
    page.get_by_label("Or a clip within").fill("2 min")
    page.set_input_files("#files", [tmp_path / "one.png"])
    page.wait_for_selector("h2:has-text('1 row, and all can be rendered')")
    page.reload()
    page.wait_for_selector("h2:has-text('1 row, and all can be rendered')")
    assert page.get_by_label("Or a clip within").input_value() == "2 min"
    assert page.locator("[name=resolution_class]").is_disabled()
    assert page.get_by_text("pan left across one").is_visible()
    page.get_by_role("button", name="Begin anew").click()
    page.reload()
    assert page.locator("#chosen").is_hidden()
    assert page.get_by_label("Prompt for rows that have none").input_value() == "pan left across {name}"
    # Another tab begins with nothing.
    other = page.context.new_page()
    other.goto(f"{house.url}/new")
    assert other.get_by_label("Prompt for rows that have none").input_value() == ""


def test_an_administrator_chooses_whose_batches_are_shown(page: Any, house: House) -> None:
    other = house.it.farm.of("team-shoes")
    still = other.put_still(still_png())
    theirs = Row(number=1, id="T", image="t.png", prompt="pan left")
    incoming = IncomingRow(position=1, name="T", row=theirs, still=still, number=1)
    other.submit([incoming], Defaults(model="camera"), name="Theirs alone")
    page.goto(house.url)
    assert page.get_by_text("Theirs alone").count() == 0
    page.locator("#owner").select_option("team-shoes")
    page.wait_for_selector("text=Theirs alone")
    assert faults(page) == []
    page.reload()
    assert page.get_by_text("Theirs alone").is_visible()
    page.locator("#owner").select_option("local")
    page.wait_for_selector("text=Thousands")


def test_verbs_are_asked_before_where_they_cannot_be_undone(page: Any, house: House) -> None:
    it = house.it
    batch = it.batch("To be cancelled", [row(n, f"GONE-{n}", it.still) for n in range(1, 4)])
    page.goto(f"{house.url}/batches/{batch}")
    page.get_by_role("button", name="Pause").click()
    page.wait_for_selector(".chip:has-text('paused')")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Back").click()
    assert it.farm.batch(batch).counts[JobState.CANCELLED] == 0
    page.get_by_role("button", name="Cancel").first.click()
    page.locator("#ask-yes").click()
    page.wait_for_selector(".tile.cancelled")
    assert it.farm.batch(batch).counts[JobState.CANCELLED] == 3


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_everything_can_be_read(page: Any, house: House) -> None:
    page.goto(house.url)
    page.get_by_role("link", name="Thousands").click()
    assert page.locator(".tile").count() == 48
    page.get_by_role("link", name="Next rows").click()
    page.get_by_role("link", name="SKU-00049").click()
    assert page.locator("video").count() == 1
    assert page.get_by_role("button").count() == 0


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_who_wants_no_motion_gets_none(page: Any, house: House) -> None:
    visit(page, house, "many")
    page.wait_for_selector(".wall.live .tile img")
    page.mouse.wheel(0, 600)
    page.wait_for_timeout(500)
    assert page.locator("video").count() == 0
    page.locator(".tile .frame").first.hover()
    page.wait_for_selector(".tile video")
    assert page.locator("video").count() == 1


def test_colours_can_be_chosen_and_stay(page: Any, house: House) -> None:
    page.goto(house.url)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    page.locator("#theme").click()
    dark = page.evaluate(colour)
    assert dark != light
    page.goto(f"{house.url}/cards")
    assert page.evaluate(colour) == dark
