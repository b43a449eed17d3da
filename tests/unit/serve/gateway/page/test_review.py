"""The page of drafts and candidates, and the same decisions over HTTP and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note
from serve.cli.main import app
from serve.client import LocalClient, RemoteClient
from tests.page_store import HOSTILE, PageFarm, page_farm
from tests.reviewing import hand_in, named, render, waiting
from tests.unit.serve.gateway.page.conftest import client_of
from tests.unit.serve.gateway.page.test_pages import Markup

FLAT = Note(code="uniform", message="all 8 frames are one flat colour")


@pytest.fixture
def it(tmp_path: Any) -> Iterator[PageFarm]:
    with page_farm(tmp_path, films=False) as found:
        yield found


@pytest.fixture
def http(it: PageFarm) -> TestClient:
    return client_of(it)


def clips_on(http: TestClient, batch_id: str) -> list[dict[str, str]]:
    """The clips on a batch's page of reviews, in its order."""
    answer = http.get(f"/batches/{batch_id}/review", headers={"Accept": "text/html"})
    assert answer.status_code == 200
    return [attributes for tag, attributes in Markup(answer.text).elements if tag == "article"]


def test_drafts_are_shown_with_what_may_be_done_and_go_as_they_are_decided(it: PageFarm, http: TestClient):
    batch = hand_in(it, 3, rounds="draft,final")
    assert clips_on(http, batch.id) == []
    assert "Drafts come here" in http.get(f"/batches/{batch.id}/review").text
    render(it, batch.id)
    assert "3 drafts wait for a review" in Markup(http.get("/").text).text
    assert [one["data-name"] for one in clips_on(http, batch.id)] == ["SKU-001", "SKU-002", "SKU-003"]
    assert 'id="review"' in http.get(f"/batches/{batch.id}").text
    job = named(it, batch.id, "SKU-001")
    assert http.post(f"/v1/jobs/{job.id}/approve").json()["review"]["round"] == "final"
    said = http.post(f"/v1/jobs/{named(it, batch.id, 'SKU-002').id}/reject", json={"prompt": "steam rises"}).json()
    assert (said["state"], said["row"]["prompt"], said["review"]["steps"][0]["verb"]) == (
        "queued",
        "steam rises",
        "reject",
    )
    assert [one["data-name"] for one in clips_on(http, batch.id)] == ["SKU-003"]


def test_candidates_stand_side_by_side_the_best_first_and_those_to_come_are_told(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, candidates=3)
    first, second, _third = it.jobs(batch.id)
    it.complete(first, notes=[FLAT])
    it.complete(second)
    found = clips_on(http, batch.id)
    assert [one["data-name"] for one in found] == ["SKU-001-c2", "SKU-001-c1", "SKU-001-c3"]
    assert ["data-waits" in one for one in found] == [True, True, False]


def test_of_candidates_with_equal_findings_the_truest_stands_first_and_says_so(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, candidates=3)
    for job, score in zip(it.jobs(batch.id), (0.6, 0.9, 0.7), strict=True):
        it.complete(job, fidelity=FidelityScore(score=score, parts={"colour": score}, worst_frame=4))
    assert [one["data-name"] for one in clips_on(http, batch.id)] == ["SKU-001-c2", "SKU-001-c3", "SKU-001-c1"]
    page = http.get(f"/batches/{batch.id}/review", headers={"Accept": "text/html"}).text
    assert "fidelity 0.60, by its colour at frame 4" in page
    told = http.get(f"/v1/jobs/{named(it, batch.id, 'SKU-001-c2').id}").json()["fidelity"]
    assert told == {"score": 0.9, "parts": {"colour": 0.9}, "worst_frame": 4}


def test_a_clip_that_fell_short_is_shown_with_its_story_and_taken(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, min_fidelity=0.8, rerolls=1)
    for score in (0.3, 0.4):
        [job] = it.jobs(batch.id)
        it.complete(job, fidelity=FidelityScore(score=score, parts={"colour": score}))
    [shown] = clips_on(http, batch.id)
    assert "data-waits" in shown
    page = http.get(f"/batches/{batch.id}/review", headers={"Accept": "text/html"}).text
    assert "fidelity 0.8 is asked for, and the best of 2 clips has 0.40" in page
    why = http.get(f"/v1/jobs/{job.id}/why").json()
    assert "the best of 2 clips" in why["text"]
    assert http.post(f"/v1/jobs/{job.id}/approve").json()["state"] == "completed"


def test_the_file_of_a_draft_is_had_and_asked_for_again(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    draft = http.get(f"/v1/videos/{job.id}/content")
    assert (draft.status_code, draft.headers["cache-control"]) == (200, "private, no-cache")
    it.farm.command_job(job.id, Verb.APPROVE)
    assert http.get(f"/v1/videos/{job.id}/content").status_code == 404
    render(it, batch.id)
    final = http.get(f"/v1/videos/{job.id}/content", headers={"If-None-Match": draft.headers["etag"]})
    assert final.status_code == 200


def test_nobodys_text_becomes_markup(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, prompts=[HOSTILE, "pan left"], rounds="draft,final", name=HOSTILE[:400])
    render(it, batch.id)
    answer = http.get(f"/batches/{batch.id}/review").text
    markup = Markup(answer)
    assert HOSTILE[:60] in markup.text
    assert not [one for one in markup.elements if "onerror" in one[1]]


def test_what_waits_is_listed_by_the_api(it: PageFarm, http: TestClient):
    batch = hand_in(it, 3, rounds="draft,final")
    render(it, batch.id)
    it.farm.command_job(named(it, batch.id, "SKU-002").id, Verb.REJECT)
    page = http.get(f"/v1/batches/{batch.id}/jobs", params={"review": True, "limit": 1}).json()
    assert ([one["name"] for one in page["data"]], page["has_more"]) == (["SKU-001"], True)
    rest = http.get(f"/v1/batches/{batch.id}/jobs", params={"review": True, "after": page["data"][0]["number"]}).json()
    assert [one["name"] for one in rest["data"]] == ["SKU-003"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"guidance": 99}, 422), ({"seed": -1}, 422), ({"prompt": ""}, 400), ({"unknown": 1}, 422)],
)
def test_what_cannot_be_is_refused_and_changes_nothing(it: PageFarm, http: TestClient, body: Any, status: int):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    assert http.post(f"/v1/jobs/{job.id}/reroll", json=body).status_code == status
    assert waiting(it, batch.id) == ["SKU-001"]
    assert http.post("/v1/jobs/video_nobodys/approve").status_code == 404


@pytest.fixture(params=["home", "url"])
def clipmill(request: Any, it: PageFarm, http: TestClient, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line on the store of a home, and on a farm elsewhere."""
    client = LocalClient(it.farm, "camera")
    if request.param == "url":
        client = RemoteClient("http://localhost")
        client._http = http
    for module in ("serve.cli.commands", "serve.cli.review.verbs"):
        monkeypatch.setattr(f"{module}.connect", lambda _settings, _url: client)
    return lambda *words: CliRunner().invoke(app, [*words])


def test_reviews_on_the_command_line(it: PageFarm, clipmill: Any):
    batch = hand_in(it, 4, rounds="draft,final")
    render(it, batch.id)
    listed = json.loads(clipmill("review", batch.id, "--json").stdout)
    assert [one["name"] for one in listed["waiting"]] == [f"SKU-00{n}" for n in range(1, 5)]
    assert "SKU-001" in clipmill("review", batch.id).stderr
    assert clipmill("approve", batch.id, "--row", "SKU-001").exit_code == 0
    assert clipmill("reject", batch.id, "--row", "SKU-002").exit_code == 0
    assert clipmill("reroll", batch.id, "--row", "SKU-003", "--seed", "7").exit_code == 0
    assert clipmill("reject", batch.id, "--row", "SKU-004", "--prompt", "steam rises from it").exit_code == 0
    found = {job.name: job for job in it.jobs(batch.id)}
    assert [found[name].state for name in sorted(found)] == [
        JobState.QUEUED, JobState.CANCELLED, JobState.QUEUED, JobState.QUEUED,
    ]  # fmt: skip
    seven = found["SKU-003"].spec
    assert seven
    assert seven.seed == 7
    assert "nothing waits for a review" in clipmill("review", batch.id).stderr
    refused = clipmill("reject", batch.id, "--row", "SKU-001")
    assert (refused.exit_code, "nothing to look at yet" in refused.stderr) == (2, True)
    whole = clipmill("reject", batch.id, "--prompt", "pan")
    assert (whole.exit_code, "add --row" in whole.stderr) == (2, True)


def test_a_rejection_of_a_finished_candidate_is_taken_back_on_the_page_too(it: PageFarm, http: TestClient):
    batch = hand_in(it, 1, candidates=2)
    first, second = render(it, batch.id)
    assert http.post(f"/v1/jobs/{first.id}/reject").status_code == 200
    assert [one["data-name"] for one in clips_on(http, batch.id)] == [second.name]
    story = Markup(http.get(f"/clips/{first.id}", headers={"Accept": "text/html"}).text)
    assert "Take the rejection back" in story.text
    assert http.post(f"/v1/jobs/{first.id}/retry").status_code == 200
    assert {one["data-name"] for one in clips_on(http, batch.id)} == {first.name, second.name}
