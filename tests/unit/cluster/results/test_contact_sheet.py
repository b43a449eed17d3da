import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.results.contact_sheet import BatchSummary, ResultRow, file_url, render
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note
from pipeline.problems import Problem
from pipeline.units import format_duration

VOID = {"meta", "link", "input", "br", "img", "path", "source"}
HOSTILE = "\"'><script>alert(1)</script></script><!--</title>&amp; {{ 7*7 }} \u2028"


class Page(HTMLParser):
    """Elements with their attributes, the text of each, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open.pop() == tag

    def handle_data(self, data):
        for tag in self._open[-1:]:
            self.texts[tag][-1] += data

    def all(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and (not css or css in (a.get("class") or "").split())]

    def rows(self) -> list[dict[str, object]]:
        return json.loads(self.texts["script"][0])


def row(number: int = 1, **changes) -> ResultRow:
    values = {
        "id": f"SKU-{number}",
        "number": number,
        "prompt": "zoom in",
        "state": "completed",
        "model": "camera",
        "resolution_class": "512p",
        "width": 640,
        "height": 400,
        "frames": 48,
        "fps": 24,
        "seconds": 2.0,
        "seed": 7,
        "video_key": "v",
        "poster_key": "p",
        "provenance_key": "j",
    }
    return ResultRow(**(values | changes))


def failed(number: int = 2, **changes) -> ResultRow:
    problem = Problem(field="image", message="pics/2.png ends early", remedy="Export it again.")
    return row(number, **({"state": "failed", "problem": problem, "video_key": None} | changes))


def page(*rows: ResultRow, name: str = "batch", summary: BatchSummary | None = None) -> Page:
    return Page(render(name, rows, summary or BatchSummary()))


def test_each_clip_is_a_silent_lazy_video_with_its_poster():
    (video,) = page(row()).all("video")
    assert video["src"] == "SKU-1.mp4"
    assert video["poster"] == "SKU-1.jpg"
    assert video["preload"] == "none"
    assert {"muted", "loop", "playsinline"} <= video.keys()
    assert "autoplay" not in video


def test_tiles_have_the_clips_own_shape():
    styles = [a["style"] for a in page(row(), row(2, width=512, height=640)).all("article")]
    assert [float(s.removeprefix("--a:")) for s in styles] == [1.6, 0.8]


ADJUSTED = Note(code="frames_adjusted", message="frames 65 -> 64: <why>")
UNUSED = Note(code="prompt_unused", message="reads no prompts")
STILL = Note(code="no_motion", message="all 8 frames are the same picture")
SMALL = Note(code="enlarged", message="the still of 90×60 pixels is enlarged 7 times")


def test_rows_worth_a_look_are_marked_counted_and_can_be_filtered():
    sheet = page(row(noted=(STILL, SMALL, UNUSED)), row(2, noted=(SMALL, ADJUSTED)), row(3, noted=(UNUSED,)), row(4))
    assert [r["look"] for r in sheet.rows()] == [["no motion", "still enlarged"], ["still enlarged"], [], []]
    assert "2 rows: still enlarged (2), no motion (1)" in [" ".join(text.split()) for text in sheet.texts["dd"]]
    offered = [o["value"] for o in sheet.all("option") if o.get("value") in ("*", "no motion", "still enlarged")]
    assert offered == ["*", "still enlarged", "no motion"]
    looks = [fact for fact in sheet.rows()[0]["facts"] if fact[1] in (STILL.message, SMALL.message)]
    assert looks == [["Worth a look", STILL.message], ["", SMALL.message]]
    # Nothing to filter by where nothing is worth a look.
    assert [s.get("name") for s in page(row(noted=(UNUSED,))).all("select")] == ["state", "class", "sort"]


def test_scores_are_facts_and_an_order_where_clips_were_measured():
    sheet = page(row(fidelity=FidelityScore(score=0.42, parts={"colour": 0.42}, worst_frame=7)), row(2))
    assert [r["fidelity"] for r in sheet.rows()] == [0.42, None]
    assert ["Fidelity", "0.42, by its colour at frame 7"] in sheet.rows()[0]["facts"]
    assert "fidelity" in [o.get("value") for o in sheet.all("option")]
    assert "fidelity" not in [o.get("value") for o in page(row()).all("option")]


def test_a_short_cut_and_an_adjustment_can_be_seen():
    changes = {"lossy": ("few-step sampler lcm", "windows of 16"), "noted": (ADJUSTED, UNUSED)}
    sheet = page(row(**changes), row(2))
    assert [text for text in sheet.texts["span"] if text.startswith("lossy")] == [
        "lossy: few-step sampler lcm; windows of 16"
    ]
    facts, plain = [{label for label, _ in r["facts"]} for r in sheet.rows()]
    assert facts - plain == {"Lossy", "Adjusted", "Note"}
    assert ["Adjusted", "frames 65 -> 64: <why>"] in sheet.rows()[0]["facts"]


def test_a_failed_row_shows_field_reason_and_remedy():
    sheet = page(failed())
    assert not sheet.all("video")
    assert sheet.texts["code"] == ["image"]
    texts = [text.strip() for text in sheet.texts["p"]]
    assert "pics/2.png ends early" in texts
    assert "Export it again." in texts


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("failed", "out_of_memory", "out of memory"),
        ("failed", "", "Failed"),
        ("cancelled", "", "Cancelled"),
        ("held", "approval", "approval"),
        ("queued", "", "Waiting for a card"),
        ("running", "", "rendered"),
    ],
)
def test_a_row_without_a_problem_still_says_why(state, reason, shown):
    sheet = page(row(state=state, reason=reason, video_key=None))
    assert any(shown in text for text in sheet.texts["p"])
    assert sheet.all("article", state)


def test_the_header_counts_states_and_adds_up_only_finished_footage():
    summary = BatchSummary(batch_id="batch_1", finished_at=0, wall_s=3725, cards="2 × c24")
    sheet = page(row(1), row(2), failed(3, seconds=50.0), row(4, state="cancelled", video_key=None), summary=summary)
    assert [int(b) for b in sheet.texts["b"]] == [2, 1, 1]
    assert sheet.texts["dd"] == ["4.0 s", "camera", "2 × c24", "1 h 02 min", "batch_1"]
    assert sheet.all("time") == [{"datetime": "1970-01-01T00:00:00Z"}]
    assert sheet.texts["time"] == ["1 January 1970, 00:00 UTC"]


def test_classes_are_offered_by_size():
    sheet = page(row(1, resolution_class="1024p"), row(2, resolution_class="256p"), row(3))
    options = [text.strip() for text in sheet.texts["option"]]
    assert [o for o in options if o[0].isdigit()] == ["256p", "512p", "1024p"]


def test_nothing_is_fetched_from_elsewhere():
    html = render("batch", [row(), failed()], BatchSummary())
    sheet = Page(html)
    links = [a[k] for _, a in sheet.elements for k in ("src", "href", "poster", "action") if a.get(k)]
    assert {urlsplit(link).scheme for link in links} <= {"", "data"}
    assert not [link for link in links if link.startswith("/")]
    assert [a["rel"] for a in sheet.all("link")] == ["icon"]
    assert not re.search(r"https?://|@import|url\((?!data:)", html)


def test_hostile_text_stays_text_everywhere():
    problem = Problem(field=HOSTILE, message=HOSTILE, remedy=HOSTILE)
    plain = page(row(), failed(), name="n")
    facts = {"prompt": HOSTILE, "model": HOSTILE, "image": HOSTILE, "extra": {HOSTILE: HOSTILE}, "shared_with": HOSTILE}
    sheet = page(
        row(id=HOSTILE.replace("/", ""), resolution_class=HOSTILE, **facts),
        failed(id=HOSTILE.replace("/", ""), problem=problem, **facts),
        name=HOSTILE,
        summary=BatchSummary(batch_id=HOSTILE, cards=HOSTILE),
    )
    assert [t for t, _ in sheet.elements].count("script") == [t for t, _ in plain.elements].count("script") == 2
    assert sheet.texts["script"][1] == plain.texts["script"][1]
    known = {name for _, a in plain.elements for name in a}
    assert {name for _, a in sheet.elements for name in a} <= known
    assert sheet.texts["h1"] == [HOSTILE]
    assert sheet.rows()[0]["prompt"] == HOSTILE
    assert [HOSTILE, HOSTILE] in sheet.rows()[0]["facts"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_file_name_becomes_a_url_of_that_very_file(name):
    url = file_url(name + ".mp4")
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert unquote(parts.path) == name + ".mp4"
    assert re.fullmatch(r"[A-Za-z0-9._~%-]+", url)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_prompt_survives_in_the_data_and_breaks_no_tag(prompt):
    assert page(row(prompt=prompt)).rows()[0]["prompt"] == prompt


def test_facts_name_what_the_dialog_shows():
    extra = {"brand": "Aria", "price": 9.9, "empty": None}
    (data,) = page(row(extra=extra, attempts=3, shared_with="SKU-9", image="a.webp")).rows()
    facts = dict(data["facts"])
    assert facts["Size"] == "640 × 400"
    assert facts["Frames"] == "48 at 24 fps, 2.0 s"
    assert (facts["Seed"], facts["Attempts"], facts["Same clip as"]) == ("7", "3", "SKU-9")
    assert (facts["brand"], facts["price"]) == ("Aria", "9.9")
    assert "empty" not in facts


def test_an_unseeded_row_differs_from_seed_zero():
    zero, none = page(row(1, seed=0), row(2, seed=None)).rows()
    assert dict(zero["facts"])["Seed"] == "0"
    assert "Seed" not in dict(none["facts"])


def test_an_empty_batch_says_so():
    sheet = page()
    assert any("no rows" in text for text in sheet.texts["div"])


def test_a_thousand_rows_stay_a_small_page():
    html = render("batch", [row(n, prompt="slow orbit to the right " * 3) for n in range(1200)], BatchSummary())
    assert len(html) < 4_000_000
    assert html.count("<video ") == 1200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.84, "0.8 s"),
        (42, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text
