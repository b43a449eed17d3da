"""Events that receivers are told of, and the JSON they get: ids, counts and URLs, nothing secret. Pure.

Types and form are those of OpenAI's webhooks where it has the event, so that its clients read them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.jobs.model import JobState


class EventType(StrEnum):
    """What may be told."""

    #: Every row of a batch has ended by itself, some perhaps failed: `data.status` and `data.counts` say.
    BATCH_COMPLETED = "batch.completed"
    #: Every row of a batch has ended, some of them because they were cancelled.
    BATCH_CANCELLED = "batch.cancelled"
    #: A row of a batch has failed, and none had before.
    BATCH_FIRST_FAILURE = "batch.first_failure"
    #: Nothing of a batch goes on before somebody has looked at its drafts.
    BATCH_NEEDS_REVIEW = "batch.needs_review"
    #: A video that was asked for by itself is there.
    VIDEO_COMPLETED = "video.completed"
    #: A video that was asked for by itself will not come.
    VIDEO_FAILED = "video.failed"
    #: Somebody tries whether messages arrive.
    WEBHOOK_TEST = "webhook.test"


#: Types that a webhook can be registered for; a test goes to any.
SUBSCRIBABLE = tuple(one for one in EventType if one is not EventType.WEBHOOK_TEST)


@dataclass(frozen=True, kw_only=True)
class BatchNews:
    """A batch as its events tell of it."""

    id: str
    name: str
    status: str
    counts: Mapping[JobState, int]
    #: Cancelled rows that a review let go.
    let_go: int = 0
    #: Drafts that wait for a review.
    drafts: int = 0


@dataclass(frozen=True, kw_only=True)
class RowNews:
    """A row as its events tell of it."""

    id: str
    batch_id: str
    name: str
    number: int
    state: JobState
    reason: str | None


def of_end(batch: BatchNews) -> tuple[EventType, dict[str, Any]]:
    """What is told when every row of a batch has ended."""
    cancelled = batch.counts.get(JobState.CANCELLED, 0) > batch.let_go
    kind = EventType.BATCH_CANCELLED if cancelled else EventType.BATCH_COMPLETED
    return kind, _of_batch(batch) | {"results_url": f"/v1/batches/{batch.id}/results"}


def of_first_failure(batch: BatchNews, row: RowNews) -> tuple[EventType, dict[str, Any]]:
    """What is told when the first row of a batch has failed."""
    failed = {"id": row.id, "name": row.name, "number": row.number, "reason": row.reason, "url": f"/v1/jobs/{row.id}"}
    return EventType.BATCH_FIRST_FAILURE, _of_batch(batch) | {"row": failed}


def of_review(batch: BatchNews) -> tuple[EventType, dict[str, Any]]:
    """What is told when nothing of a batch goes on before somebody has looked at its drafts."""
    waits = {"drafts": batch.drafts, "review_url": f"/v1/batches/{batch.id}/jobs?review=true"}
    return EventType.BATCH_NEEDS_REVIEW, _of_batch(batch) | waits | {"page_url": f"/batches/{batch.id}/review"}


def of_video(row: RowNews) -> tuple[EventType, dict[str, Any]]:
    """What is told when a video that was asked for by itself has ended."""
    done = row.state is JobState.COMPLETED
    url = f"/v1/videos/{row.id}"
    data = {"id": row.id, "object": "video", "batch_id": row.batch_id, "url": url}
    if done:
        return EventType.VIDEO_COMPLETED, data | {"status": "completed", "content_url": f"{url}/content"}
    code = "cancelled" if row.state is JobState.CANCELLED else row.reason or "error"
    return EventType.VIDEO_FAILED, data | {"status": "failed", "error": {"code": code}}


def of_test(webhook_id: str) -> tuple[EventType, dict[str, Any]]:
    """What is told where somebody tries a webhook."""
    return EventType.WEBHOOK_TEST, {"id": webhook_id, "object": "webhook"}


def payload_of(event_id: str, created_at: int, told: tuple[EventType, dict[str, Any]]) -> str:
    """An event as JSON in which URLs are paths of the farm's API; `told` as the functions of this module give it."""
    kind, data = told
    event = {"id": event_id, "object": "event", "type": kind.value, "created_at": created_at, "data": data}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def body_of(payload: str, base: str) -> bytes:
    """An event as it is sent: its paths as URLs below `base`, the farm's own address; empty: as paths."""
    if not base:
        return payload.encode()
    event = json.loads(payload)
    event["data"] = _with_base(event["data"], base.rstrip("/"))
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _with_base(data: dict[str, Any], base: str) -> dict[str, Any]:
    return {
        name: _with_base(value, base)
        if isinstance(value, dict)
        else base + value
        if name == "url" or name.endswith("_url")
        else value
        for name, value in data.items()
    }


def _of_batch(batch: BatchNews) -> dict[str, Any]:
    counts = {state.value: batch.counts.get(state, 0) for state in JobState}
    return {
        "id": batch.id,
        "object": "batch",
        "name": batch.name,
        "status": batch.status,
        "counts": counts | {"total": sum(counts.values())},
        "url": f"/v1/batches/{batch.id}",
    }
