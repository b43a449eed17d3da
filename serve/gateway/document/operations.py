"""What each route takes and answers, by method and path: the part of its description that FastAPI does not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from serve.gateway.batches.bodies import NewBatch, NewBatchOfManifest
from serve.gateway.document import access_answers, answers, examples, farm_answers, webhook_answers


@dataclass(frozen=True, kw_only=True)
class DescribedOperation:
    """The description of one route."""

    #: A line for lists.
    summary: str
    group: str
    #: JSON that it answers with, and an example of that; None: files.
    answer: type[BaseModel] | None = None
    example: Any = None
    status: int = 200
    #: Media types of files that it answers with, each with an example (None: bytes).
    files: Mapping[str, str | None] = field(default_factory=dict)
    #: Statuses below 500 with which it refuses, beside those of every request.
    refusals: tuple[int, ...] = (422,)
    #: An example of its body by media type; "@name" within a form is a file.
    bodies: Mapping[str, Any] = field(default_factory=dict)
    #: Values of its parameters in the example.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Answers besides with other statuses, in the same form.
    also: tuple[int, ...] = ()


_BATCHES, _ROWS, _VIDEOS, _FILES, _FARM, _KEYS = "batches", "rows", "videos", "files", "farm", "keys"
_WEBHOOKS = "webhooks"
_JSON, _FORM = "application/json", "multipart/form-data"
_BATCH = {"batch_id": examples.BATCH_ID}
_JOB = {"job_id": examples.VIDEO_ID}
_VIDEO = {"video_id": examples.VIDEO_ID}
_FILE = {"file_id": examples.FILE_ID}
_KEY = {"key_id": examples.KEY_ID}
_OWNER = {"owner": "team-shoes"}
_WEBHOOK = {"webhook_id": examples.WEBHOOK_ID}
_VIDEO_BODIES = {_JSON: examples.NEW_VIDEO, _FORM: examples.VIDEO_FORM}
_MANIFESTS = {
    "text/csv": examples.CSV,
    "text/tab-separated-values": examples.TSV,
    "application/jsonl": examples.JSONL,
    "application/vnd.apache.parquet": None,
}

OPERATIONS: dict[tuple[str, str], DescribedOperation] = {
    ("post", "/v1/batches"): DescribedOperation(
        summary="Hand in a batch",
        group=_BATCHES,
        answer=answers.BatchAnswer,
        example=examples.BATCH,
        status=202,
        refusals=(400, 404, 415, 422),
        bodies={_JSON: examples.NEW_BATCH, _FORM: examples.BATCH_FORM} | _MANIFESTS,
    ),
    ("get", "/v1/batches"): DescribedOperation(
        summary="List batches",
        group=_BATCHES,
        answer=answers.ListAnswer[answers.BatchAnswer],
        example=examples.page(examples.BATCH, of_ids=False),
    ),
    ("get", "/v1/batches/{batch_id}"): DescribedOperation(
        summary="One batch",
        group=_BATCHES,
        answer=answers.BatchAnswer,
        example=examples.BATCH,
        refusals=(404, 422),
        parameters=_BATCH,
    ),
    ("get", "/v1/batches/{batch_id}/jobs"): DescribedOperation(
        summary="Rows of a batch",
        group=_BATCHES,
        answer=answers.ListAnswer[answers.JobAnswer],
        example=examples.page(examples.JOB, of_ids=False),
        refusals=(404, 422),
        parameters=_BATCH,
    ),
    ("get", "/v1/batches/{batch_id}/results"): DescribedOperation(
        summary="Results of a batch, as rows or as files",
        group=_BATCHES,
        answer=answers.ResultPageAnswer,
        example=examples.page(examples.RESULT, of_ids=False) | {"marks": "5f0c1a77e2b94d36"},
        files={"text/csv": examples.TABLE, "application/jsonl": examples.LINES, "application/zip": None},
        refusals=(400, 404, 422),
        parameters=_BATCH | {"format": "zip"},
    ),
    ("get", "/v1/batches/{batch_id}/events"): DescribedOperation(
        summary="Follow a batch",
        group=_BATCHES,
        files={"text/event-stream": examples.EVENTS},
        refusals=(404, 422),
        parameters=_BATCH,
    ),
    ("post", "/v1/batches/{batch_id}/{verb}"): DescribedOperation(
        summary="Command a batch",
        group=_BATCHES,
        answer=answers.BatchAnswer,
        example=examples.BATCH,
        refusals=(400, 404, 409, 422),
        bodies={_JSON: examples.BATCH_COMMAND},
        parameters=_BATCH | {"verb": "prioritize"},
    ),
    ("delete", "/v1/batches/{batch_id}"): DescribedOperation(
        summary="Delete a batch that has ended",
        group=_BATCHES,
        answer=answers.BatchDeletionAnswer,
        example=examples.BATCH_DELETION,
        refusals=(404, 409, 422),
        parameters=_BATCH,
    ),
    ("get", "/v1/jobs/{job_id}"): DescribedOperation(
        summary="One row",
        group=_ROWS,
        answer=answers.JobAnswer,
        example=examples.JOB,
        refusals=(404, 422),
        parameters=_JOB,
    ),
    ("get", "/v1/jobs/{job_id}/why"): DescribedOperation(
        summary="Why a row is where it is",
        group=_ROWS,
        answer=answers.WhyAnswer,
        example=examples.WHY,
        refusals=(404, 422),
        parameters=_JOB,
    ),
    ("get", "/v1/jobs/{job_id}/deliveries"): DescribedOperation(
        summary="A row's deliveries",
        group=_ROWS,
        answer=answers.DeliveryListAnswer,
        example={"object": "list", "data": [examples.DELIVERY]},
        refusals=(404, 422),
        parameters=_JOB,
    ),
    ("get", "/v1/jobs/{job_id}/deliveries/{profile}"): DescribedOperation(
        summary="A row's file for a marketplace",
        group=_ROWS,
        files={"video/mp4": None},
        refusals=(400, 404, 416, 422),
        parameters=_JOB | {"profile": "google"},
        also=(206, 304),
    ),
    ("post", "/v1/jobs/{job_id}/{verb}"): DescribedOperation(
        summary="Command a row",
        group=_ROWS,
        answer=answers.JobAnswer,
        example=examples.JOB,
        refusals=(400, 404, 409, 422),
        bodies={_JSON: examples.JOB_COMMAND},
        parameters=_JOB | {"verb": "prioritize"},
    ),
    ("get", "/v1/ids"): DescribedOperation(
        summary="A whole id by its beginning",
        group=_ROWS,
        answer=answers.IdAnswer,
        example=examples.ID,
        refusals=(400, 404, 422),
        parameters={"begins": examples.BATCH_ID[:14]},
    ),
    ("post", "/v1/videos"): DescribedOperation(
        summary="Make a video",
        group=_VIDEOS,
        answer=answers.VideoAnswer,
        example=examples.VIDEO,
        refusals=(400, 415, 422),
        bodies=_VIDEO_BODIES,
    ),
    ("post", "/v1/videos/sync"): DescribedOperation(
        summary="Make a video and wait for it",
        group=_VIDEOS,
        files={"video/mp4": None},
        refusals=(400, 404, 409, 415, 422),
        also=(500, 504),
        bodies=_VIDEO_BODIES,
    ),
    ("get", "/v1/videos"): DescribedOperation(
        summary="List videos",
        group=_VIDEOS,
        answer=answers.PageAnswer[answers.VideoAnswer],
        example=examples.page(examples.VIDEO),
    ),
    ("get", "/v1/videos/{video_id}"): DescribedOperation(
        summary="One video",
        group=_VIDEOS,
        answer=answers.VideoAnswer,
        example=examples.VIDEO,
        refusals=(404, 422),
        parameters=_VIDEO,
    ),
    ("get", "/v1/videos/{video_id}/content"): DescribedOperation(
        summary="The file of a video",
        group=_VIDEOS,
        files={"video/mp4": None, "image/jpeg": None, _JSON: None},
        refusals=(404, 416, 422),
        also=(206, 304),
        parameters=_VIDEO,
    ),
    ("post", "/v1/videos/{video_id}/cancel"): DescribedOperation(
        summary="Cancel a video",
        group=_VIDEOS,
        answer=answers.VideoAnswer,
        example=examples.VIDEO,
        refusals=(404, 409, 422),
        parameters=_VIDEO,
    ),
    ("delete", "/v1/videos/{video_id}"): DescribedOperation(
        summary="Delete a video",
        group=_VIDEOS,
        answer=answers.DeletionAnswer,
        example=examples.VIDEO_DELETION,
        refusals=(404, 409, 422),
        parameters=_VIDEO,
    ),
    ("put", "/v1/stills"): DescribedOperation(
        summary="Hand in a picture as its own bytes",
        group=_FILES,
        answer=answers.StillAnswer,
        example=examples.STILL_ANSWER,
        refusals=(400,),
        bodies={"application/octet-stream": None},
    ),
    ("post", "/v1/files"): DescribedOperation(
        summary="Hand in a picture or a manifest",
        group=_FILES,
        answer=answers.FileAnswer,
        example=examples.FILE,
        refusals=(400, 415, 422),
        bodies={_FORM: examples.FILE_FORM},
    ),
    ("get", "/v1/files"): DescribedOperation(
        summary="List files",
        group=_FILES,
        answer=answers.PageAnswer[answers.FileAnswer],
        example=examples.page(examples.FILE),
        refusals=(400, 422),
    ),
    ("get", "/v1/files/{file_id}"): DescribedOperation(
        summary="One file",
        group=_FILES,
        answer=answers.FileAnswer,
        example=examples.FILE,
        refusals=(404, 422),
        parameters=_FILE,
    ),
    ("get", "/v1/files/{file_id}/content"): DescribedOperation(
        summary="A file's bytes",
        group=_FILES,
        files={"application/octet-stream": None},
        refusals=(404, 422),
        parameters=_FILE,
    ),
    ("delete", "/v1/files/{file_id}"): DescribedOperation(
        summary="Forget a file",
        group=_FILES,
        answer=answers.DeletionAnswer,
        example=examples.FILE_DELETION,
        refusals=(404, 422),
        parameters=_FILE,
    ),
    ("post", "/v1/webhooks"): DescribedOperation(
        summary="Register a URL that is told of events",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookAnswer,
        example=examples.CREATED_WEBHOOK,
        refusals=(400, 422),
        bodies={_JSON: examples.NEW_WEBHOOK},
    ),
    ("get", "/v1/webhooks"): DescribedOperation(
        summary="List webhooks",
        group=_WEBHOOKS,
        answer=answers.ListAnswer[webhook_answers.WebhookAnswer],
        example=examples.page(examples.WEBHOOK, of_ids=False),
        refusals=(),
    ),
    ("get", "/v1/webhooks/{webhook_id}"): DescribedOperation(
        summary="One webhook",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookAnswer,
        example=examples.WEBHOOK,
        refusals=(404, 422),
        parameters=_WEBHOOK,
    ),
    ("delete", "/v1/webhooks/{webhook_id}"): DescribedOperation(
        summary="Delete a webhook",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookDeletionAnswer,
        example=examples.WEBHOOK_DELETION,
        refusals=(404, 422),
        parameters=_WEBHOOK,
    ),
    ("post", "/v1/webhooks/{webhook_id}/test"): DescribedOperation(
        summary="Try a webhook",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookDeliveryAnswer,
        example=examples.WEBHOOK_DELIVERY | {"type": "webhook.test", "subject": examples.WEBHOOK_ID},
        refusals=(404, 422),
        parameters=_WEBHOOK,
    ),
    ("post", "/v1/webhooks/{webhook_id}/enable"): DescribedOperation(
        summary="Enable a webhook again",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookAnswer,
        example=examples.WEBHOOK,
        refusals=(404, 422),
        parameters=_WEBHOOK,
    ),
    ("post", "/v1/webhooks/rotate"): DescribedOperation(
        summary="Change the secret that messages are signed with",
        group=_WEBHOOKS,
        answer=webhook_answers.WebhookSecretAnswer,
        example=examples.WEBHOOK_SECRET,
        refusals=(422,),
        bodies={_JSON: examples.NEW_WEBHOOK_SECRET},
    ),
    ("get", "/v1/webhooks/deliveries"): DescribedOperation(
        summary="What became of messages",
        group=_WEBHOOKS,
        answer=answers.ListAnswer[webhook_answers.WebhookDeliveryAnswer],
        example=examples.page(examples.WEBHOOK_DELIVERY, of_ids=False),
        refusals=(404, 422),
    ),
    ("get", "/v1/models"): DescribedOperation(
        summary="List models",
        group=_FARM,
        answer=answers.PageAnswer[farm_answers.ModelAnswer],
        example=examples.page(examples.MODEL),
        refusals=(),
    ),
    ("get", "/v1/models/{name}"): DescribedOperation(
        summary="One model",
        group=_FARM,
        answer=farm_answers.ModelAnswer,
        example=examples.MODEL,
        refusals=(404, 422),
        parameters={"name": "wan2.2-5b"},
    ),
    ("get", "/v1/cards"): DescribedOperation(
        summary="List cards",
        group=_FARM,
        answer=farm_answers.CardsAnswer,
        example=examples.CARDS,
        refusals=(),
    ),
    ("post", "/v1/cards/{card}/{verb}"): DescribedOperation(
        summary="Command a card",
        group=_FARM,
        answer=farm_answers.CommandedCardAnswer,
        example=examples.COMMANDED_CARD,
        refusals=(400, 404, 409, 422),
        bodies={_JSON: examples.CARD_COMMAND},
        parameters={"card": examples.CARD_ID, "verb": "lock"},
    ),
    ("post", "/v1/forecast"): DescribedOperation(
        summary="Forecast a catalog",
        group=_FARM,
        answer=farm_answers.ForecastAnswer,
        example=examples.FORECAST_ANSWER,
        refusals=(400, 422),
        bodies={_JSON: examples.FORECAST},
    ),
    ("post", "/v1/lint"): DescribedOperation(
        summary="Judge prompts and rows",
        group=_FARM,
        answer=farm_answers.LintAnswer,
        example=examples.LINT_ANSWER,
        refusals=(400, 422),
        bodies={_JSON: examples.LINT},
    ),
    ("post", "/v1/session"): DescribedOperation(
        summary="Open a session of a browser",
        group=_KEYS,
        answer=access_answers.SessionAnswer,
        example=examples.SESSION,
        bodies={_JSON: examples.NEW_SESSION},
    ),
    ("get", "/v1/session"): DescribedOperation(
        summary="Who asks",
        group=_KEYS,
        answer=access_answers.SessionAnswer,
        example=examples.SESSION | {"expires_s": None},
        refusals=(),
    ),
    ("delete", "/v1/session"): DescribedOperation(
        summary="End a session",
        group=_KEYS,
        answer=access_answers.SessionDeletionAnswer,
        example=examples.SESSION_DELETION,
        refusals=(),
    ),
    ("post", "/v1/keys"): DescribedOperation(
        summary="Make a key",
        group=_KEYS,
        answer=access_answers.NewKeyAnswer,
        example=examples.MADE_KEY,
        status=201,
        refusals=(400, 422),
        bodies={_JSON: examples.NEW_KEY},
    ),
    ("get", "/v1/keys"): DescribedOperation(
        summary="List keys",
        group=_KEYS,
        answer=answers.ListAnswer[access_answers.KeyAnswer],
        example=examples.page(examples.KEY, of_ids=False),
    ),
    ("get", "/v1/keys/{key_id}"): DescribedOperation(
        summary="One key",
        group=_KEYS,
        answer=access_answers.KeyAnswer,
        example=examples.KEY,
        refusals=(404, 422),
        parameters=_KEY,
    ),
    ("post", "/v1/keys/{key_id}/rotate"): DescribedOperation(
        summary="Replace a key",
        group=_KEYS,
        answer=access_answers.NewKeyAnswer,
        example=examples.MADE_KEY,
        status=201,
        refusals=(400, 404, 422),
        bodies={_JSON: examples.ROTATION},
        parameters=_KEY,
    ),
    ("delete", "/v1/keys/{key_id}"): DescribedOperation(
        summary="Revoke a key",
        group=_KEYS,
        answer=access_answers.KeyAnswer,
        example=examples.KEY | {"status": "revoked", "revoked_at": examples.KEY["used_at"]},
        refusals=(404, 422),
        parameters=_KEY,
    ),
    ("get", "/v1/quotas"): DescribedOperation(
        summary="List quotas",
        group=_KEYS,
        answer=answers.ListAnswer[access_answers.QuotaAnswer],
        example=examples.page(examples.QUOTA, of_ids=False),
        refusals=(),
    ),
    ("get", "/v1/quotas/{owner}"): DescribedOperation(
        summary="An owner's quota",
        group=_KEYS,
        answer=access_answers.QuotaAnswer,
        example=examples.QUOTA,
        refusals=(400, 422),
        parameters=_OWNER,
    ),
    ("put", "/v1/quotas/{owner}"): DescribedOperation(
        summary="Set an owner's quota",
        group=_KEYS,
        answer=access_answers.QuotaAnswer,
        example=examples.QUOTA,
        refusals=(400, 422),
        bodies={_JSON: examples.NEW_QUOTA},
        parameters=_OWNER,
    ),
    ("get", "/healthz"): DescribedOperation(
        summary="Whether the farm can work",
        group=_FARM,
        answer=answers.HealthAnswer,
        example=examples.HEALTH,
        refusals=(),
        also=(503,),
    ),
}
#: Classes of bodies that no route declares to FastAPI, as it reads them by hand.
BODY_CLASSES: tuple[type[BaseModel], ...] = (NewBatch, NewBatchOfManifest)
#: What each group of routes is about.
GROUPS = {
    _BATCHES: "Catalogs of pictures, each row of which becomes a clip.",
    _ROWS: "The rows of batches, each of which is also a video.",
    _VIDEOS: "One clip of one picture, as clients of OpenAI's and vLLM-Omni's APIs ask for it.",
    _FILES: "Pictures and manifests that requests name.",
    _WEBHOOKS: "URLs that are told of what becomes of batches and videos (docs/webhooks.md).",
    _FARM: "Models, cards, and what the farm can do.",
    _KEYS: "Keys, sessions of browsers and quotas; [keys.md](keys.md) explains them.",
}
