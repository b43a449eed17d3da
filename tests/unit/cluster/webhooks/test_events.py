"""What receivers are told, and in which form."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from openai import OpenAI

from cluster.jobs.model import JobState
from cluster.webhooks.events import (
    SUBSCRIBABLE,
    BatchNews,
    EventType,
    RowNews,
    body_of,
    of_end,
    of_first_failure,
    of_review,
    of_video,
    payload_of,
)
from cluster.webhooks.model import check_webhook_url
from cluster.webhooks.signing import new_secret, signed_headers
from pipeline.problems import BadInputError


def batch(status: str = "completed", **counts: int) -> BatchNews:
    return BatchNews(
        id="batch_1", name="Täschchen", status=status, counts={JobState(name): n for name, n in counts.items()}
    )


def row(state: JobState, reason: str | None = None) -> RowNews:
    return RowNews(id="video_1", batch_id="batch_1", name="BAG-1", number=7, state=state, reason=reason)


def test_an_end_says_how_many_rows_ended_how() -> None:
    kind, data = of_end(batch("failed", completed=3, failed=1))
    assert kind is EventType.BATCH_COMPLETED
    assert (data["status"], data["counts"]["failed"], data["counts"]["total"]) == ("failed", 1, 4)
    assert of_end(batch("failed", completed=3, failed=1, cancelled=1))[0] is EventType.BATCH_CANCELLED


def test_a_first_failure_names_its_row() -> None:
    kind, data = of_first_failure(batch("running", queued=2, failed=1), row(JobState.FAILED, "out_of_memory"))
    assert kind is EventType.BATCH_FIRST_FAILURE
    assert data["row"] == {
        "id": "video_1",
        "name": "BAG-1",
        "number": 7,
        "reason": "out_of_memory",
        "url": "/v1/jobs/video_1",
    }


def test_drafts_that_wait_are_counted_and_where_they_are_is_said() -> None:
    kind, data = of_review(replace(batch("held", held=3, completed=1), drafts=2))
    assert kind is EventType.BATCH_NEEDS_REVIEW
    assert data["drafts"] == 2
    sent = json.loads(body_of(payload_of("evt_1", 5, (kind, data)), "https://farm.example/"))["data"]
    assert sent["review_url"] == "https://farm.example/v1/batches/batch_1/jobs?review=true"
    assert sent["page_url"] == "https://farm.example/batches/batch_1/review"


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        (JobState.COMPLETED, EventType.VIDEO_COMPLETED, None),
        (JobState.FAILED, EventType.VIDEO_FAILED, "crashed"),
        (JobState.CANCELLED, EventType.VIDEO_FAILED, "cancelled"),
    ],
)
def test_a_video_is_told_as_the_api_shows_it(state: JobState, kind: EventType, code: str | None) -> None:
    told, data = of_video(row(state, "crashed" if code == "crashed" else None))
    assert told is kind
    assert data.get("error", {}).get("code") == code
    assert ("content_url" in data) == (code is None)


def test_paths_become_urls_below_the_farm_s_address_and_nothing_else_changes() -> None:
    payload = payload_of("evt_1", 5, of_first_failure(batch("running", failed=1), row(JobState.FAILED, "error")))
    assert body_of(payload, "") == payload.encode()
    event, plain = json.loads(body_of(payload, "https://farm.example/x/")), json.loads(payload)
    assert event["data"]["url"] == "https://farm.example/x/v1/batches/batch_1"
    assert event["data"]["row"]["url"] == "https://farm.example/x/v1/jobs/video_1"
    for data in (event["data"], plain["data"], event["data"]["row"], plain["data"]["row"]):
        data.pop("url")
    assert event == plain


def test_openai_s_client_reads_events_that_it_knows() -> None:
    secret = new_secret()
    client = OpenAI(api_key="unused", webhook_secret=secret)
    for told in (of_end(batch(completed=2)), of_end(batch("cancelled", cancelled=2))):
        body = payload_of("evt_1", 1_795_000_000, told).encode()
        event = client.webhooks.unwrap(body, dict(signed_headers([secret], "evt_1", body, time.time())))
        assert (event.id, event.type, event.data.id) == ("evt_1", told[0].value, "batch_1")


def test_everything_but_a_test_can_be_registered_for() -> None:
    assert set(EventType) - set(SUBSCRIBABLE) == {EventType.WEBHOOK_TEST}


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "a.example/x", "https://me:secret@a.example/", "https://a.example/" + "x" * 3000, ""]
)
def test_what_is_no_url_to_send_to_is_refused_by_its_field(url: str) -> None:
    with pytest.raises(BadInputError) as refused:
        check_webhook_url(url, "webhook_url")
    assert refused.value.problem.field == "webhook_url"
    assert "picture" not in str(refused.value)
    assert "secret" not in str(refused.value)
