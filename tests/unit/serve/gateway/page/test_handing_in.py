"""Rows are checked before they are handed in: nothing is submitted by that, and what is told is what then happens."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.clips.clip import Tier
from pipeline.families import family_named
from pipeline.units import GIB
from tests.building import beat, still_png
from tests.page_store import HOSTILE
from tests.unit.serve.gateway.page.conftest import client_of
from tests.unit.serve.gateway.page.test_pages import Markup

TABLE = """\
id,image,prompt,fps,brand
BAG-1,bag-1.png,pan left,8,Tonwerk
BAG-2,pics/bag-2.png,,8,Strider
BAG-3,bag-1.png,pan left,twelve,
BAG-4,missing.png,pan left,8,
BAG-5,broken.png,pan left,8,
BAG-6,bag-1.png,,8,
"""


def sent(http: TestClient) -> dict[str, Any]:
    """Pictures handed in one by one, as the page does, and the one that cannot be used with its problem."""
    found: dict[str, Any] = {}
    for number, name in enumerate(("bag-1.png", "pics/bag-2.png")):
        answer = http.put("/v1/stills", content=still_png(seed=number))
        found[name] = answer.json()["sha256"]
    answer = http.put("/v1/stills", content=b"no picture")
    found["broken.png"] = answer.json()["error"]["clipmill"]
    return found


def check(http: TestClient, table: str, stills: dict[str, Any], name: str = "bags.csv", **options: str) -> Any:
    files = {"manifest": (name, table.encode()), "stills": ("stills.json", json.dumps(stills).encode())}
    return http.post("/new/check", data=options, files=files)


def test_a_check_tells_what_handing_in_does_and_hands_nothing_in(empty: Any) -> None:
    http = client_of(empty)
    stills = sent(http)
    found = check(http, TABLE, stills, prompt="{brand} turning around").json()
    assert empty.farm.batch_store.batches("local", everything=True) == []
    assert (found["name"], found["good"], found["total"]) == ("bags.csv", 2, 6)
    body = {"name": "bags", "rows": found["rows"], "defaults": {"resolution_class": "512p", "tier": "standard"}}
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    made = {job.name: job for job in empty.jobs(answer.json()["id"])}
    assert {name for name, job in made.items() if not job.problems} == {"BAG-1", "BAG-2"}
    assert made["BAG-2"].spec.prompt == "Strider turning around"
    assert made["BAG-2"].still == stills["pics/bag-2.png"]
    text = Markup(found["html"]).text
    for name, job in made.items():
        for problem in job.problems:
            assert problem.message in text, name
            assert problem.remedy in text, name
    assert {job.problems[0].field for job in made.values() if job.problems} == {"fps", "image", "prompt"}


def test_a_check_says_when_and_for_how_much_as_the_forecast_does(empty: Any) -> None:
    empty.dispatch.record_cards([beat("gpu0", kind="NVIDIA L4", usable_bytes=21 * GIB, total_bytes=24 * GIB)])
    http = client_of(empty)
    table = "image,prompt\nbag-1.png,pan left\npics/bag-2.png,tilt up\n"
    text = " ".join(Markup(check(http, table, sent(http)).json()["html"]).text.split())
    assert "2 rows, and all can be rendered" in text
    assert "$ by the table of prices" in text
    assert "Fits NVIDIA L4 all" in text
    none = client_of(empty)
    empty.database.now = lambda _connection: 2_000_000_000
    assert "No card was heard of lately" in check(none, table, sent(none)).json()["html"]


def test_pictures_alone_are_rows_that_are_called_as_their_files(empty: Any) -> None:
    http = client_of(empty)
    stills = sent(http)
    lines = "\n".join(json.dumps({"image": name, "name": name[-9:-4]}) for name in stills)
    found = check(http, lines, stills, name="pictures.jsonl", prompt="{name} from above").json()
    assert (found["good"], found["total"]) == (2, 3)
    assert {row["row"]["prompt"] for row in found["rows"] if row["row"]} >= {"bag-1 from above", "bag-2 from above"}


def test_text_of_a_table_stays_text_in_the_report(empty: Any) -> None:
    http = client_of(empty)
    line = {"image": "bag-1.png", "prompt": HOSTILE, "id": "A", "fps": HOSTILE, HOSTILE[:50]: HOSTILE}
    other = {"image": "bag-1.png", "prompt": HOSTILE, "id": "B"}
    found = check(http, f"{json.dumps(line)}\n{json.dumps(other)}", sent(http), name="rows.jsonl").json()
    tags = {tag for tag, _ in Markup(found["html"]).elements}
    assert not tags & {"script", "img"}
    assert HOSTILE[:60] in Markup(found["html"]).text


@pytest.mark.parametrize(
    ("table", "name"), [("no table", "x.parquet"), ("", "x.csv"), ("id,prompt\n1,2\n", "x.csv"), ("a", "x.xlsx")]
)
def test_a_table_that_cannot_be_read_is_an_error_with_a_remedy(empty: Any, table: str, name: str) -> None:
    http = client_of(empty)
    answer = check(http, table, {}, name=name)
    if answer.status_code == 200:
        # Read, and no row of it is one.
        assert answer.json()["good"] == 0
        return
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["remedy"]


@pytest.mark.parametrize("stills", [b"[]x", b"[1]", b'{"a.png": {"field": 1}}', b'{"a.png": 7}'])
def test_pictures_in_another_form_are_refused(empty: Any, stills: bytes) -> None:
    files = {"manifest": ("x.csv", b"image\na.png\n"), "stills": ("s.json", io.BytesIO(stills))}
    answer = client_of(empty).post("/new/check", files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["clipmill"]["field"] == "stills"


def test_a_hole_in_the_prompt_for_all_is_a_problem_of_its_row_and_a_fault_where_no_row_has_the_column(
    empty: Any,
) -> None:
    http = client_of(empty)
    table = "id,image,prompt,brand\nA,bag-1.png,,Tonwerk\nB,bag-1.png,,\nC,bag-1.png,tilt up,\n"
    found = check(http, table, sent(http), prompt="{brand} turning around").json()
    assert [row["row"]["prompt"] if row["row"] else None for row in found["rows"]] == [
        "Tonwerk turning around",
        None,
        "tilt up",
    ]
    assert "{brand}" in Markup(found["html"]).text
    answer = check(http, "id,image\nA,bag-1.png\n", sent(http), prompt="{colour} bag")
    assert answer.status_code == 400
    assert "colour" in answer.json()["error"]["message"]
    typed = check(http, table, sent(http), prompt="{brand} turning {aro")
    assert (typed.status_code, typed.json()["error"]["clipmill"]["field"]) == (400, "prompt")


# -- fixes and times ----------------------------------------------------------------------------------------------

TRAPS = """\
id,image,prompt,guidance,steps
A,bag-1.png,pan left,25,50
B,bag-1.png,pan left,,400
C,bag-1.png,pan left,,
"""


def test_a_fix_is_applied_by_its_row_and_what_is_handed_in_then_is_what_was_shown(empty: Any) -> None:
    http = client_of(empty)
    stills, model = sent(http), {"model": "i2vgen-xl"}
    before = check(http, TRAPS, stills, **model).json()
    noted = {name: {one["code"]: one.get("fix") for one in notes} for name, notes in before["noted"].items()}
    assert noted["A"]["guidance_high"] == {"guidance": 9.0}
    buttons = [
        (attributes["data-fix"], attributes.get("data-row"))
        for tag, attributes in Markup(before["html"]).elements
        if tag == "button" and "data-fix" in attributes
    ]
    assert {("guidance_high", "A"), ("many_steps", "B")} <= set(buttons)
    fixes = {"A": noted["A"]["guidance_high"], "B": noted["B"]["many_steps"]}
    after = check(http, TRAPS, stills, fixes=json.dumps(fixes), **model).json()
    codes = {one["code"] for notes in after["noted"].values() for one in notes}
    assert not codes & {"guidance_high", "many_steps"}
    body = {"name": "bags", "rows": after["rows"], "defaults": model}
    made = {job.name: job.spec for job in empty.jobs(http.post("/v1/batches", json=body).json()["id"])}
    assert (made["A"].guidance, made["B"].steps) == (9.0, fixes["B"]["steps"])
    assert made["C"].steps == family_named("i2vgen-xl").tiers[Tier.STANDARD].steps


@pytest.mark.parametrize(
    "fixes",
    [
        '{"A": {"id": "Z"}}',
        '{"A": {"prompts": 2}}',
        '{"A": {"image": "other.png"}}',
        '{"A": {"nothing": 1}}',
        '{"A": {"steps": "many"}}',
    ],
)
def test_a_fix_that_no_note_proposes_is_a_problem_of_its_row(empty: Any, fixes: str) -> None:
    http = client_of(empty)
    found = check(http, TRAPS, sent(http), fixes=fixes, model="i2vgen-xl").json()
    assert [row["name"] for row in found["rows"] if row["problems"]] == ["A"]
    assert (found["good"], found["total"]) == (2, 3)


@pytest.mark.parametrize("fixes", ["[1]", "x", '{"A": 7}'])
def test_fixes_in_another_form_are_refused(empty: Any, fixes: str) -> None:
    answer = check(client_of(empty), TRAPS, {}, fixes=fixes)
    assert (answer.status_code, answer.json()["error"]["clipmill"]["field"]) == (400, "fixes")


@pytest.mark.parametrize(("rounds", "share"), [("", 0.6), ("quick,tune,final", 0.8)])
def test_all_is_done_by_the_time_that_is_asked_for_or_that_is_said(empty: Any, rounds: str, share: float) -> None:
    """Drafts are part of all."""
    empty.dispatch.record_cards([beat("gpu0", kind="NVIDIA L4", usable_bytes=21 * GIB, total_bytes=24 * GIB)])
    http = client_of(empty)
    stills = sent(http)
    table = "id,image,prompt\n" + "".join(f"R{number},bag-1.png,pan left\n" for number in range(6))

    def specs(done_in: int) -> tuple[float, Any, list[Any]]:
        found = check(http, table, stills, model="i2vgen-xl", done_in=str(done_in), rounds=rounds).json()
        defaults = {"model": "i2vgen-xl", "within": found["within"]} | ({"rounds": rounds} if rounds else {})
        forecast = {
            "rows": [{"row": one["row"], "still_size": [64, 48]} for one in found["rows"]],
            "defaults": defaults,
        }
        finish = http.post("/v1/forecast", json=forecast).json()["finish_seconds"]
        made = http.post("/v1/batches", json={"name": "x", "rows": found["rows"], "defaults": defaults}).json()["id"]
        return finish, found, [job.rounds[-1].spec if job.rounds else job.spec for job in empty.jobs(made)]

    hours, _, long = specs(8 * 3600)
    assert hours <= 8 * 3600
    tight, found, short = specs(int(hours * share))
    assert tight <= hours * share
    assert sum(spec.steps for spec in short) < sum(spec.steps for spec in long)
    assert "A clip may take" in found["html"]
    _, late, _ = specs(1)
    assert "Not all of it can be done by then" in late["html"]


def test_a_time_for_each_clip_is_taken_as_people_write_it(empty: Any) -> None:
    empty.dispatch.record_cards([beat("gpu0", kind="NVIDIA L4", usable_bytes=21 * GIB, total_bytes=24 * GIB)])
    http = client_of(empty)
    table = "id,image,prompt,within\nA,bag-1.png,pan left,2 min\nB,bag-1.png,pan left,\n"
    found = check(http, table, sent(http), model="i2vgen-xl", within="1 h").json()
    told = {name: [one["message"] for one in notes] for name, notes in found["noted"].items()}
    assert any("within 2 min" in text for text in told["A"])
    assert any("within 1 h" in text for text in told["B"])
    answer = check(http, table, {}, within="soon")
    assert answer.status_code in (400, 422)
