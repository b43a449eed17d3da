"""Examples of bodies and answers, one of each kind; a test holds them to their schemas."""

from __future__ import annotations

import json
from typing import Any

STILL = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
BATCH_ID = "batch_0197a3c2f1b07e5d8c4a6b90"
VIDEO_ID = "video_0197a3c2f1b57a41b2c3d4e5"
WEBHOOK_ID = "webhook_0197a3c2f1b0712f8a9b0c1d"
CARD_ID = "GPU-5f2c1d9e-7b1a-4c83-9c0e-3a1f6d2b8e47"
FILE_ID = f"file-{STILL}"
MANIFEST_ID = f"file-batch-{STILL}"
_AT = 1_782_000_000

NEW_BATCH = {
    "name": "bags",
    "defaults": {"resolution_class": "512p", "tier": "standard"},
    "rows": [{"still": STILL, "name": "BAG-1", "prompt": "pan left"}],
}
NEW_BATCH_OF_FILE = {"input_file_id": MANIFEST_ID, "endpoint": "/v1/videos", "completion_window": "24h"}
NEW_BATCH_OF_URL = {"manifest_url": "https://shop.example/catalog.csv", "defaults": {"tier": "draft"}}
CSV = "id,image,prompt\nBAG-1,https://shop.example/bag-1.png,pan left\n"
TSV = CSV.replace(",", "\t")
JSONL = (
    '{"custom_id": "BAG-1", "method": "POST", "url": "/v1/videos", "body": {"prompt": "pan left", '
    '"size": "1280x704", "input_reference": {"image_url": "https://shop.example/bag-1.png"}}}\n'
)
NEW_VIDEO = {
    "prompt": "the bag turns slowly",
    "size": "1280x704",
    "seconds": "4",
    "input_reference": {"file_id": FILE_ID},
}
VIDEO_FORM = {"prompt": "the bag turns slowly", "size": "1280x704", "seconds": "4", "input_reference": "@bag.png"}
BATCH_FORM = {"manifest": "@catalog.csv", "images": "@bag-1.png", "tier": "draft"}
FILE_FORM = {"purpose": "vision", "file": "@bag.png"}
FORECAST = {
    "rows": [{"row": {"number": 1, "id": "BAG-1", "image": "bag-1.png", "prompt": "pan left"}}],
    "fleet": {"cards": [{"kind": "NVIDIA L4", "count": 2}]},
}
BATCH_COMMAND = {"priority": 5}
JOB_COMMAND = {"priority": 5}
CARD_COMMAND = {"reason": "being moved", "for_s": 3600}

BATCH: dict[str, Any] = {
    "id": BATCH_ID,
    "object": "batch",
    "name": "bags",
    "source": "",
    "status": "running",
    "created_at": _AT,
    "attended": False,
    "counts": {"queued": 1, "running": 1, "held": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 2},
    "attempts": 1,
    "held": {"batch": None, "rows": {}},
    "limits": {"failures": None, "gpu_hours": None, "cost": None},
    "needs_approval": False,
    "proof": 0,
    "comment": "",
    "owner": "local",
    "key": None,
    "webhook_url": None,
}
BATCH_DELETION = {
    "id": BATCH_ID,
    "object": "batch.deleted",
    "deleted": True,
    "rows": 2,
    "clips": 1,
    "shared_clips": 1,
    "freed_bytes": 1_482_113,
}
JOB: dict[str, Any] = {
    "id": VIDEO_ID,
    "object": "job",
    "batch_id": BATCH_ID,
    "number": 1,
    "name": "BAG-1",
    "state": "running",
    "reason": None,
    "hold_requested": None,
    "priority": 0,
    "not_before": None,
    "after": None,
    "problems": [],
    "model": "wan2.2-5b",
    "resolution_class": "512p",
    "size": "704x512",
    "step": 12,
    "steps": 30,
    "attempts": 1,
    "releases": 0,
    "clip_id": None,
    "seed": 1234567890,
    "guidance": 5.0,
    "review": {"round": None, "rounds": [], "rounds_left": 0, "row": None, "pick": "open", "steps": []},
    "lossy": [],
    "adjusted": ["frames 80 -> 81: the model makes 4n + 1"],
    "notes": [],
    "row": {"number": 1, "line": None, "image": "bag-1.png", "prompt": "pan left", "extra": {}},
}
WHY = {
    "object": "why",
    "job": VIDEO_ID,
    "state": "queued",
    "reason": "no_card_fits_now",
    "text": "It needs 19.2 GiB, and the cards that have it are busy.",
    "changes": [{"kind": "wait", "text": "starts in about 40 s", "at": _AT + 40, "starts": True}],
}
RESULT = {
    "object": "result",
    "job": VIDEO_ID,
    "place": 1,
    "updated_at": _AT + 95,
    "row": {
        "id": "BAG-1",
        "number": 1,
        "state": "completed",
        "prompt": "pan left",
        "width": 704,
        "height": 512,
        "seconds": 3.375,
    },
    "files": {
        "video": f"http://127.0.0.1:8500/v1/videos/{VIDEO_ID}/content",
        "thumbnail": f"http://127.0.0.1:8500/v1/videos/{VIDEO_ID}/content?variant=thumbnail",
        "provenance": f"http://127.0.0.1:8500/v1/videos/{VIDEO_ID}/content?variant=provenance",
    },
}
DELIVERY = {
    "object": "delivery",
    "profile": "google",
    "state": "delivered",
    "url": f"http://127.0.0.1:8500/v1/jobs/{VIDEO_ID}/deliveries/google",
    "verdict": {
        "profile": "google",
        "passed": True,
        "checks": [{"rule": "seconds", "passed": True, "found": "6.000 s", "wanted": "6 to 240 s"}],
        "problem": None,
        "facts": {"frame": "crop round the product", "bytes": 1_204_551},
    },
}
VIDEO: dict[str, Any] = {
    "id": VIDEO_ID,
    "object": "video",
    "model": "wan2.2-5b",
    "prompt": "the bag turns slowly",
    "status": "in_progress",
    "progress": 40,
    "created_at": _AT,
    "completed_at": None,
    "expires_at": None,
    "size": "1280x704",
    "seconds": "4.042",
    "quality": "standard",
    "remixed_from_video_id": None,
    "error": None,
    "media_type": "video/mp4",
    "file_name": None,
    "inference_time_s": None,
    "peak_memory_mb": 0.0,
    "clipmill": {
        "state": "running",
        "reason": None,
        "batch_id": BATCH_ID,
        "step": 12,
        "steps": 30,
        "attempts": 1,
        "card": CARD_ID,
        "frames": 97,
        "fps": 24,
        "seed": 1042,
        "resolution_class": "1024p",
        "lossy": [],
        "notes": [{"code": "size_adjusted", "message": "size 1280x720 -> 1280x704"}],
        "file_expired": False,
    },
}
VIDEO_DELETION = {"id": VIDEO_ID, "object": "video.deleted", "deleted": True}
FILE = {
    "id": FILE_ID,
    "object": "file",
    "bytes": 184_022,
    "created_at": _AT,
    "filename": STILL[:16],
    "purpose": "vision",
    "status": "processed",
    "expires_at": None,
}
FILE_DELETION = {"id": FILE_ID, "object": "file", "deleted": True}
MODEL = {
    "id": "wan2.2-5b",
    "object": "model",
    "created": 0,
    "owned_by": "Wan-AI",
    "clipmill": {
        "title": "Wan 2.2 TI2V 5B",
        "weights": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "licence": "Apache-2.0",
        "resolution_classes": ["256p", "512p", "768p", "1024p"],
        "tiers": {"standard": {"frames": 81, "fps": 24, "steps": 30}},
        "reads_prompts": True,
    },
}
_ORDER = {"kind": "lock", "reason": "being moved", "given_by": "local", "since": _AT, "until": _AT + 3600}
CARDS = {
    "object": "list",
    "data": [
        {
            "card": CARD_ID,
            "card_class": "c24",
            "kind": "NVIDIA L4",
            "state": "idle",
            "family": "wan2.2-5b",
            "total_bytes": 24_152_899_584,
            "usable_bytes": 22_548_578_304,
            "used_bytes": 0,
            "foreign_bytes": 0,
            "used_share": 0.0,
            "order": None,
            "largest": {"wan2.2-5b": {"class": "1024p", "frames": 121}},
            "warning": "",
        }
    ],
    "kernels": [],
}
COMMANDED_CARD = {"object": "card", "card": CARD_ID, "order": _ORDER}
FORECAST_ANSWER = {
    "object": "forecast",
    "default_model": "wan2.2-5b",
    "finish_seconds": 512.4,
    "interval_seconds": [461.0, 590.2],
    "bound_seconds": 498.0,
    "startup_seconds": 61.5,
    "gpu_hours": 0.2765,
    "cost_usd": 0.1943,
    "rows_fit": 1,
    "rows": [{"id": "BAG-1", "number": 1, "fits": True, "why_not": None, "smallest_class": "c24", "on": {}}],
    "kinds": [],
    "halving": [],
    "fleet": [],
    "notes": [],
}
LINT = {"prompts": ["make it dynamic"], "defaults": {"model": "i2vgen-xl"}}
LINT_ANSWER = {
    "object": "lint",
    "default_model": "i2vgen-xl",
    "prompts_judged": True,
    "rows": [
        {
            "id": "prompt-1",
            "number": 1,
            "line": None,
            "prompt": "make it dynamic",
            "negative_prompt": "",
            "warns": True,
            "findings": [
                {
                    "code": "prompt_vague",
                    "severity": "warning",
                    "field": "prompt",
                    "message": "the prompt asks for motion or beauty without saying what moves, and how. …",
                    "fix": {"prompt": "Camera slowly zooming in, soft light"},
                }
            ],
            "problems": [],
            "fixed": {"prompt": "Camera slowly zooming in, soft light"},
        }
    ],
    "rows_warned": 1,
    "notes": ["1 row (prompt-1): the prompt asks for motion or beauty without saying what moves, and how. …"],
}
NEW_WEBHOOK = {
    "url": "https://shop.example/clipmill",
    "events": ["batch.completed", "batch.first_failure"],
    "description": "staging",
}
NEW_WEBHOOK_SECRET = {"grace_s": 86_400}
WEBHOOK: dict[str, Any] = {
    "id": WEBHOOK_ID,
    "object": "webhook",
    "url": "https://shop.example/clipmill",
    "events": ["batch.completed", "batch.first_failure"],
    "description": "staging",
    "created_at": _AT,
    "enabled": True,
    "disabled_at": None,
    "disabled_why": None,
    "delivered_at": _AT + 95,
}
#: The secret of an example, which signs nothing.
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
CREATED_WEBHOOK = WEBHOOK | {"delivered_at": None, "secret": _SECRET}
WEBHOOK_DELETION = {"id": WEBHOOK_ID, "object": "webhook.deleted", "deleted": True}
WEBHOOK_SECRET = {
    "object": "webhook.secret",
    "secret": _SECRET,
    "created_at": _AT,
    "previous_until": _AT + 86_400,
}
WEBHOOK_DELIVERY: dict[str, Any] = {
    "id": "delivery_0197a3c2f1b07c3d9e8f7a6b",
    "object": "webhook.delivery",
    "event": "evt_0197a3c2f1b07a2b3c4d5e6f",
    "type": "batch.completed",
    "subject": BATCH_ID,
    "webhook": WEBHOOK_ID,
    "url": "https://shop.example/clipmill",
    "state": "pending",
    "attempts": 2,
    "created_at": _AT + 90,
    "last_at": _AT + 96,
    "next_at": _AT + 408,
    "delivered_at": None,
    "status": 500,
    "error": "it answers 500",
}
ID = {"object": "id", "id": BATCH_ID}
HEALTH = {"status": "ok", "cards": 2}
KEY_ID = "key_k7f3q2mzx5ab"
KEY = {
    "id": KEY_ID,
    "object": "key",
    "owner": "team-shoes",
    "name": "catalog import",
    "scopes": ["read", "submit"],
    "status": "active",
    "created_at": _AT,
    "expires_at": _AT + 7_776_000,
    "revoked_at": None,
    "used_at": _AT,
    "replaced_by": None,
}
NEW_KEY = {"owner": "team-shoes", "name": "catalog import", "scopes": ["submit", "read"], "expires_s": 7_776_000}
MADE_KEY = KEY | {"used_at": None, "key": "clipmill_k7f3q2mzx5ab_…"}
ROTATION = {"grace_s": 86_400}
NEW_SESSION = {"key": "clipmill_k7f3q2mzx5ab_…"}
SESSION = {
    "object": "session",
    "owner": "team-shoes",
    "scopes": ["read", "submit"],
    "key_id": KEY_ID,
    "expires_s": 43_200,
}
SESSION_DELETION = {"object": "session", "deleted": True}
NEW_QUOTA = {"queued_jobs": 20_000, "cost_month": 500.0}
QUOTA = {
    "object": "quota",
    "owner": "team-shoes",
    "queued_jobs": 20_000,
    "gpu_seconds_day": None,
    "cost_month": 500.0,
    "requests_minute": None,
    "used": {"queued_jobs": 812, "gpu_seconds_day": 51_020.0, "cost_month": 122.4},
}
TABLE = f"id,row,state,file,…,job,video_url,thumbnail_url,provenance_url\nBAG-1,1,completed,BAG-1.mp4,…,{VIDEO_ID},…\n"
LINES = json.dumps(RESULT) + "\n"
STILL_ANSWER = {"object": "still", "sha256": STILL}
EVENTS = f'event: progress\nid: {_AT}\ndata: {{"id": "{VIDEO_ID}", "name": "BAG-1", "step": 12, "steps": 30}}\n\n'
ERROR = {
    "error": {
        "message": "size: 'huge' is not a size. Write it as 1280x720, width first.",
        "type": "invalid_request_error",
        "param": "size",
        "code": "bad_input",
        "remedy": "Write it as 1280x720, width first.",
        "clipmill": {
            "field": "size",
            "message": "'huge' is not a size",
            "remedy": "Write it as 1280x720, width first.",
        },
    }
}


def page(item: dict[str, Any], *, of_ids: bool = True) -> dict[str, Any]:
    """A page with one item."""
    ids = {"first_id": item["id"], "last_id": item["id"]} if of_ids else {}
    return {"object": "list", "data": [item], **ids, "has_more": False}
