"""Drafts and candidates as a person decides on them: in a browser, with keys alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.jobs.model import JobState, Pick
from cluster.jobs.transitions import Verb
from cluster.results.rows import results_of
from pipeline.notes import Note
from tests.integration.test_page_browser import browser, faults, page, until  # noqa: F401 - fixtures
from tests.page_store import OWNER, PageFarm, gateway, page_farm
from tests.reviewing import hand_in, named, render, waiting

pytestmark = pytest.mark.browser

FLAT = Note(code="uniform", message="all 8 frames are one flat colour")
NOW = ".review-clip.now"


class Reviewing:
    """A gateway over a store of its own."""

    def __init__(self, it: PageFarm, url: str) -> None:
        self.it, self.url = it, url

    def open(self, page: Any, batch_id: str) -> None:  # noqa: F811 - not the fixture
        page.goto(f"{self.url}/batches/{batch_id}/review")
        page.wait_for_selector(f"{NOW}, #none:not([hidden])")


@pytest.fixture(scope="module")
def house(tmp_path_factory: Any) -> Iterator[Reviewing]:
    with page_farm(tmp_path_factory.mktemp("review")) as it, gateway(it) as url:
        yield Reviewing(it, url)


def now(page: Any) -> str:  # noqa: F811
    """The row that keys mean."""
    return str(page.locator(NOW).get_attribute("data-name"))


def press(page: Any, key: str, until_now: str) -> None:  # noqa: F811
    """Press a key and wait until another row is meant."""
    page.keyboard.press(key)
    until(page, f"document.querySelector('{NOW}')?.dataset.name === {until_now!r}")


def test_twelve_drafts_are_decided_with_keys_and_four_finals_are_made(page: Any, house: Reviewing) -> None:  # noqa: F811
    it = house.it
    batch = hand_in(it, 12, rounds="draft,final", from_draft=True, name="Twelve")
    drafts = {job.name: job.spec for job in render(it, batch.id)}
    page.goto(f"{house.url}/batches/{batch.id}")
    page.locator("#review").click()
    page.wait_for_selector(NOW)
    names = [f"SKU-{n:03}" for n in range(1, 13)]
    for n, name in enumerate(names[:-1]):
        assert now(page) == name
        press(page, "a" if n % 3 == 0 else "r", names[n + 1])
    page.keyboard.press("r")
    page.wait_for_selector("#none:not([hidden])")
    until(page, "document.getElementById('left').textContent.startsWith('0 rows')")
    approved = [job.name for job in it.jobs(batch.id) if job.state is JobState.QUEUED]
    assert approved == names[::3]
    finals = render(it, batch.id)
    assert [job.name for job in finals] == approved
    for job in finals:
        draft = drafts[job.name]
        assert job.spec
        assert draft
        assert (job.spec.seed, job.spec.base_spec) == (draft.seed, draft)
    assert it.farm.batch(batch.id).counts[JobState.CANCELLED] == 8
    page.goto(f"{house.url}/batches/{batch.id}")
    with page.expect_download() as told:
        page.get_by_role("link", name="zip").first.click()
    assert told.value.suggested_filename.endswith(".zip")


def test_rows_are_gone_through_made_again_and_taken_back(page: Any, house: Reviewing) -> None:  # noqa: F811
    it = house.it
    batch = hand_in(it, 4, rounds="quick,tune,final", name="Tuned")
    render(it, batch.id)
    house.open(page, batch.id)
    press(page, "n", "SKU-002")
    press(page, "ArrowDown", "SKU-003")
    press(page, "ArrowUp", "SKU-002")
    press(page, "ArrowRight", "SKU-003")
    playing = "[...document.querySelectorAll('video')].map((one) => !one.paused)"
    until(page, f"{playing}.join() === 'false,false,true,false'")
    page.keyboard.press("Space")
    until(page, f"!{playing}.includes(true)")
    press(page, "s", "SKU-004")
    press(page, "+", "SKU-002")
    page.keyboard.press("e")
    page.locator("#edit-prompt").fill("the camera tilts up slowly")
    page.get_by_role("button", name="Make it again").click()
    until(page, f"document.querySelector('{NOW}')?.dataset.name === 'SKU-001'")
    made = {job.name: job for job in render(it, batch.id)}
    assert set(made) == {"SKU-002", "SKU-003", "SKU-004"}
    assert made["SKU-002"].spec.prompt == "the camera tilts up slowly"
    assert made["SKU-004"].spec.guidance == named(it, batch.id, "SKU-001").spec.guidance + 1
    # What has been rendered meanwhile comes by itself, in the order of the catalog, and what is looked at stays.
    until(page, "document.querySelectorAll('.review-clip[data-waits]').length === 4")
    assert now(page) == "SKU-001"
    press(page, "r", "SKU-002")
    press(page, "u", "SKU-001")
    assert waiting(it, batch.id)[0] == "SKU-001"


def test_the_best_candidate_stands_first_and_one_is_picked_by_its_number(page: Any, house: Reviewing) -> None:  # noqa: F811
    it = house.it
    batch = hand_in(it, 2, candidates=3, name="Several")
    render(it, batch.id, {"SKU-001-c1": [FLAT]})
    house.open(page, batch.id)
    order = (
        page.locator(".review-row").first.locator(".review-clip").evaluate_all("all => all.map((a) => a.dataset.name)")
    )
    assert order == ["SKU-001-c2", "SKU-001-c3", "SKU-001-c1"]
    press(page, "2", "SKU-002-c1")
    assert named(it, batch.id, "SKU-001-c3").pick is Pick.PICKED
    assert [one.row.id for one in results_of(it.farm.batch_store, OWNER, batch.id)][:1] == ["SKU-001-c3"]


def test_a_rejected_candidate_is_taken_back_by_a_key_and_after_a_reload_by_a_button(
    page: Any,  # noqa: F811
    house: Reviewing,
) -> None:
    it = house.it
    batch = hand_in(it, 1, candidates=2, name="Taken back", seed=3)
    render(it, batch.id)
    house.open(page, batch.id)
    assert page.locator("#undo").is_hidden()
    press(page, "r", "SKU-001-c2")
    assert named(it, batch.id, "SKU-001-c1").pick is Pick.LET_GO
    press(page, "u", "SKU-001-c1")
    assert named(it, batch.id, "SKU-001-c1").pick is Pick.OPEN
    press(page, "r", "SKU-001-c2")
    page.reload()
    page.wait_for_selector(NOW)
    assert page.locator(".review-clip[data-waits]").count() == 1
    page.get_by_role("button", name="Take back").click()
    until(page, f"document.querySelector('{NOW}')?.dataset.name === 'SKU-001-c1'")
    assert page.locator("#undo").is_hidden()
    # Without anything rejected, the key says so and asks for nothing.
    page.keyboard.press("u")
    page.wait_for_selector("#told:has-text('Nothing was rejected')")
    assert len(it.farm.batch_store.in_review(OWNER, batch.id)) == 2


def test_a_second_tab_and_a_second_person_are_told(page: Any, house: Reviewing) -> None:  # noqa: F811
    it = house.it
    batch = hand_in(it, 3, rounds="draft,final", name="Two people")
    render(it, batch.id)
    house.open(page, batch.id)
    other = page.context.new_page()
    house.open(other, batch.id)
    press(other, "a", "SKU-002")
    # The events of the batch bring it here: the row is gone, and the next is meant.
    until(page, f"document.querySelector('{NOW}')?.dataset.name === 'SKU-002'")
    it.farm.command_job(named(it, batch.id, "SKU-002").id, Verb.REJECT)
    page.keyboard.press("a")
    until(page, f"document.querySelector('{NOW}')?.dataset.name === 'SKU-003'")
    assert named(it, batch.id, "SKU-002").state is JobState.CANCELLED
    page.reload()
    page.wait_for_selector(NOW)
    assert now(page) == "SKU-003"
    other.close()


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
def test_nobody_is_kept_out_of_reviews(page: Any, house: Reviewing) -> None:  # noqa: F811
    it = house.it
    batch = hand_in(it, 2, candidates=2, rounds="draft,final", name="Looked at")
    empty = hand_in(it, 1, rounds="draft,final", name="Nothing yet", seed=5)
    render(it, batch.id, {"SKU-001-c1": [FLAT]})
    for batch_id in (batch.id, empty.id):
        house.open(page, batch_id)
        if batch_id == batch.id:
            page.keyboard.press("?")
            page.wait_for_selector("#help:not([hidden])")
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_drafts_can_be_seen_without_scripts(page: Any, house: Reviewing) -> None:  # noqa: F811
    batch = hand_in(house.it, 1, rounds="draft,final", name="Plain", seed=9)
    render(house.it, batch.id)
    page.goto(f"{house.url}/batches/{batch.id}/review")
    assert page.locator("video[controls]").count() == 1
    assert page.get_by_role("button").count() == 0
