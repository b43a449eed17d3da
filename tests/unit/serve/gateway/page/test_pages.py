"""Pages as a browser gets them: what they may load, what stands in them, and that nobody's text becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs.model import HoldReason, JobState
from cluster.jobs.transitions import Verb
from cluster.results.contact_sheet import BatchSummary, ResultRow, render
from cluster.results.rows import JobResult
from cluster.store.batches import Terms
from serve.gateway.page.cards import MemoryBar
from serve.gateway.page.templating import PAGE_POLICY, static_files, static_version
from serve.gateway.page.wall import tile
from tests.building import beat
from tests.page_store import HOSTILE, PROBLEM, PageFarm, row
from tests.unit.serve.gateway.page.conftest import Shown, client_of


class Markup(HTMLParser):
    """The elements of a page, and its text without them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.text += " "

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_load_from_their_own_gateway_only_and_nothing_stands_within_them(shown: Shown) -> None:
    assert "unsafe" not in PAGE_POLICY
    for path in shown.paths():
        answer = shown.http.get(path)
        assert answer.headers["content-security-policy"] == PAGE_POLICY
        assert answer.headers["cache-control"] == "no-store"
        for tag, attributes in Markup(answer.text).elements:
            assert tag != "style"
            assert tag != "script" or attributes.keys() >= {"src"}
            assert not [name for name in attributes if name == "style" or name.startswith("on")], (
                path,
                tag,
                attributes,
            )
            for name in ("src", "href", "poster", "data-events", "data-url", "data-rows", "hx-get"):
                # An address of the gateway's own, neither `//host` nor `javascript:`.
                assert re.fullmatch(r"(/[^/].*|/|#main)?", attributes.get(name, "")), (path, attributes)


def test_answers_of_the_api_are_as_strict_as_before(shown: Shown) -> None:
    job = shown.job("done")
    for path in ("/v1/batches", "/docs", "/v1/cards", f"/v1/videos/{job}/content", "/healthz", "/nowhere", "/metrics"):
        policy = shown.http.get(path).headers["content-security-policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'", path


def test_every_file_that_a_page_loads_is_there_and_kept_under_its_version(shown: Shown) -> None:
    loaded = {
        attributes.get("src") or attributes.get("href", "")
        for path in shown.paths()
        for tag, attributes in Markup(shown.page(path)).elements
        if tag in ("script", "link")
    }
    assert loaded
    # What scripts load of each other.
    loaded |= {
        f"/static/{static_version()}/{name}"
        for data in static_files().values()
        for name in re.findall(r'from "\./([^"]+)"', data.decode())
    }
    for path in loaded:
        answer = shown.http.get(path)
        assert answer.status_code == 200, path
        assert "immutable" in answer.headers["cache-control"]
    old = shown.http.get(f"/static/before/{path.rpartition('/')[2]}")
    assert old.headers["cache-control"] == "no-cache"
    for name in ("none.js", "..%2Froutes.py", "../routes.py"):
        assert shown.http.get(f"/static/{static_version()}/{name}").status_code == 404


@pytest.mark.parametrize("where", ["/", "batch", "clip 0", "clip 1", "/cards"])
def test_text_of_a_catalog_stays_text(shown: Shown, where: str) -> None:
    path = {"batch": f"/batches/{shown.ids['hostile']}"}.get(where, where)
    if where.startswith("clip"):
        path = f"/clips/{shown.job('hostile', int(where[-1]))}"
    found = Markup(shown.page(path))
    # As it was written, to the last sign: not cut at a tag, not shown as entities.
    assert HOSTILE[:100] in found.text
    assert [a for tag, a in found.elements if tag == "script" and "src" not in a] == []
    assert [a for tag, a in found.elements if tag == "img" and not a["src"].startswith("/v1/videos/")] == []
    assert not any("hacked" in value for tag, a in found.elements if tag in ("img", "script") for value in a.values())


def test_what_scripts_get_is_json_and_never_a_page(shown: Shown) -> None:
    answer = shown.http.get(f"/batches/{shown.ids['hostile']}/rows")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["rows"][0]["prompt"] == HOSTILE[:300]


def test_a_page_that_there_is_not_says_so_in_words(shown: Shown) -> None:
    for path in ("/batches/batch_none", "/clips/video_none"):
        assert "there is no" in Markup(shown.page(path, 404)).text.replace("There is no such thing", "").lower()
        # A script asks otherwise, and is answered as programs are.
        answer = shown.http.get(path, headers={"Accept": "*/*"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_without_batches_and_cards_pages_say_what_to_do(empty: Any) -> None:
    http = client_of(empty)
    assert "No batch yet" in http.get("/").text
    assert "clipmill up" in http.get("/cards").text


def test_a_batch_is_shown_with_its_counts_and_why_it_waits(shown: Shown) -> None:
    text = " ".join(Markup(shown.page(f"/batches/{shown.ids['running']}")).text.split())
    for words in ("8 completed", "1 failed", "1 running", "3 queued", PROBLEM.message, "All clips (zip)"):
        assert words in text
    assert "Its batch is paused." in Markup(shown.page("/")).text


def test_a_clip_tells_its_attempts_memory_and_the_layouts_that_did_not_fit(shown: Shown) -> None:
    text = " ".join(Markup(shown.page(f"/clips/{shown.job('running')}")).text.split())
    for words in ("Predicted 2.8 GiB", "Measured 3.0 GiB", "everything: 7.2 GiB of 7.0 GiB in denoise", "still dark"):
        assert words in text
    text = " ".join(Markup(shown.page(f"/clips/{shown.job('failed')}")).text.split())
    assert text.count("RuntimeError: the sampler raised") >= 3


def test_cards_show_whose_memory_it_is_and_what_they_render(shown: Shown) -> None:
    text = " ".join(Markup(shown.page("/cards")).text.split())
    for words in ("84% of 8.0 GiB in use, 5.8 GiB of it by other programs", "MUG-09 being rendered 18 / 30"):
        assert words in text
    assert "The driver does not answer" in text


@given(*(st.integers(0, 2**40) for _ in range(4)))
def test_parts_of_a_cards_memory_add_up_whatever_its_renderer_says(
    total: int, usable: int, used: int, foreign: int
) -> None:
    memory = MemoryBar.of(beat(total_bytes=total, usable_bytes=usable, used_bytes=used, foreign_bytes=foreign))
    parts = (memory.used_bytes, memory.foreign_bytes, memory.reserved_bytes, memory.free_bytes)
    assert sum(parts) == total
    assert min(parts) >= 0
    assert sum(width for _, _, width in memory.parts) <= 100.0001
    assert all(0 <= x <= 100 for _, x, _ in memory.parts)


# -- the wall ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
def test_pages_of_a_wall_have_every_row_once_in_their_order(shown: Shown, limit: int) -> None:
    batch, seen, after = shown.ids["running"], [], -1
    while True:
        answer = shown.http.get(f"/batches/{batch}/rows", params={"after": after, "limit": limit}).json()
        seen += [one["id"] for one in answer["rows"]]
        assert len(answer["rows"]) <= limit
        if not answer["has_more"]:
            break
        after = answer["rows"][-1]["place"]
    assert seen == [job.name for job in shown.it.jobs(batch)]


def test_what_changed_since_is_sent_and_nothing_else(empty: Any) -> None:
    http = client_of(empty)
    clock = [1_000_000]
    empty.database.now = lambda _connection: clock[0]
    batch = empty.batch("a", [row(n, f"A-{n}", empty.still) for n in range(1, 5)])
    first = http.get(f"/batches/{batch}/rows").json()
    assert [one["state"] for one in first["rows"]] == ["queued"] * 4
    clock[0] += 10
    empty.complete(empty.jobs(batch)[2])
    changed = http.get(f"/batches/{batch}/rows", params={"since": first["now"] + 1}).json()
    assert [(one["id"], one["state"], one["plays"]) for one in changed["rows"]] == [("A-3", "completed", True)]


# -- verbs ---------------------------------------------------------------------------------------------------------


def buttons(text: str) -> list[dict[str, str]]:
    return [a for tag, a in Markup(text).elements if tag == "button" and "verb" in a.get("class", "").split()]


def made(it: PageFarm, kind: str, number: int) -> str:
    """A batch of two rows of a kind, other ones for each number."""
    terms = {"terms": Terms(needs_approval=True)} if kind == "approval" else {}
    batch = it.batch(kind, [row(n, f"{kind}-{number}-{n}", it.still) for n in (1, 2)], **terms)
    first = it.jobs(batch)[0]
    match kind:
        case "running":
            it.claim(first)
        case "failed":
            it.fail(first)
        case "paused":
            it.farm.command_batch(batch, Verb.PAUSE)
        case "row paused":
            it.farm.command_job(first.id, Verb.PAUSE)
        case "cancelled":
            it.farm.command_batch(batch, Verb.CANCEL)
    return batch


KINDS = ["queued", "running", "failed", "paused", "row paused", "cancelled", "approval"]


def test_every_verb_that_is_offered_is_obeyed_and_grave_ones_ask_before(empty: PageFarm) -> None:
    http, obeyed = client_of(empty), set()

    def offered(kind: str, number: int) -> list[dict[str, str]]:
        batch = made(empty, kind, number)
        paths = [f"/batches/{batch}", f"/clips/{empty.jobs(batch)[0].id}"]
        return [one for path in paths for one in buttons(http.get(path).text)]

    for kind in KINDS:
        # A batch for each: one verb takes the next one's reason away.
        for number, _ in enumerate(offered(kind, 0)):
            one = offered(kind, number + 1)[number]
            verb = one["data-url"].rpartition("/")[2]
            assert "data-confirm" in one or verb != "cancel"
            answer = http.post(one["data-url"], json={"priority": 5} if "data-priority" in one else {})
            assert answer.status_code == 200, (kind, one, answer.text)
            obeyed.add(verb)
    assert obeyed == {"approve", "resume", "retry", "pause", "prioritize", "cancel"}


def test_no_verb_is_offered_of_a_batch_that_is_done(shown: Shown) -> None:
    assert buttons(shown.page(f"/batches/{shown.ids['done']}")) == []


def test_a_row_of_a_paused_batch_does_not_offer_to_resume_what_is_not_held(shown: Shown) -> None:
    job = shown.it.jobs(shown.ids["paused"])[0]
    assert job.state is JobState.HELD
    verbs = {one["data-url"].rpartition("/")[2] for one in buttons(shown.page(f"/clips/{job.id}"))}
    assert Verb.RESUME.value not in verbs
    assert Verb.CANCEL.value in verbs


def test_the_configuration_of_htmx_runs_no_text_as_a_script(shown: Shown) -> None:
    [content] = [a["content"] for tag, a in Markup(shown.page("/")).elements if a.get("name") == "htmx-config"]
    told = json.loads(content)
    assert (told["allowEval"], told["allowScriptTags"], told["selfRequestsOnly"]) == (False, False, True)
    assert told["includeIndicatorStyles"] is False


@pytest.mark.parametrize("held", [reason.value for reason in HoldReason])
@pytest.mark.parametrize("state", ["failed", "cancelled", "held", "running", "queued", "completed"])
def test_a_wall_says_why_there_is_no_clip_in_the_words_of_the_sheet(state: str, held: str) -> None:
    for review, expired in product(({}, {"picked": False}), (None, 5)):
        row = ResultRow(
            id="A", number=1, prompt="pan", state=state, reason=held if state == "held" else "", review=review,
            video_key="k" if expired else None, expired_at=expired,
        )  # fmt: skip
        live = tile(JobResult(job_id="j", number=1, updated_at=1, row=row))["message"]
        (sheet,) = json.loads(re.search(r'id="rows"[^>]*>(.*?)</script>', render("b", [row], BatchSummary()), re.S)[1])
        # A sheet is a look back: what goes on went on when it was written.
        assert sheet["message"].replace(" when this sheet was written", "") == live
        assert live.endswith(".")
        assert "_" not in live
