"""How videos, files and models look to clients of OpenAI's API. What only this farm has is under `clipmill`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.catalog.uploads import UploadedManifest
from cluster.explain.reasons import why_failed
from cluster.jobs.fidelity import SHORT
from cluster.jobs.model import Job, JobState
from cluster.jobs.review import fell_short
from cluster.store.videos import Video
from pipeline.families import Family
from pipeline.notes import as_json, distinct
from serve.gateway.openai.body import FILE_ID, MANIFEST_ID

_DAY_S = 86_400
#: A client comes back after so many milliseconds: at least, at most, and while its video waits at first. What has
#: waited for long is seldom looked at: a fifth of its wait later, as with any exponential backoff.
LEAST_POLL_MS = 500
MOST_POLL_MS = 10_000
_QUEUED_POLL_MS, _QUEUED_SHARE = 2000, 0.2
#: The only states that clients know.
_STATUS = {
    JobState.QUEUED: "queued",
    JobState.HELD: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}


def has_ended(job: Job) -> bool:
    """Whether nothing more comes of a video unless somebody decides."""
    return job.state.final or fell_short(job)


def video_view(video: Video, *, keep_days: float | None = None) -> dict[str, Any]:
    """A job as a video object. `keep_days`: for how long the farm keeps a clip (None: for ever)."""
    job, spec = video.job, video.job.spec
    size = f"{spec.width}x{spec.height}" if spec else None
    seconds = f"{spec.frames / spec.fps:.3f}".rstrip("0").rstrip(".") if spec else "0"
    notes = distinct([*job.notes, *(video.clip.notes if video.clip else ())])
    return {
        "id": job.id,
        "object": "video",
        "model": spec.family if spec else "",
        "prompt": job.row.get("prompt"),
        # Clients wait for as long as they are told to, and this one waits for a person: failed until somebody takes it.
        "status": "failed" if fell_short(job) else _STATUS[job.state],
        "progress": progress_of(video),
        "created_at": job.created_at,
        "completed_at": job.updated_at if job.state.final else None,
        "expires_at": _expires_at(video, keep_days),
        "size": size,
        "seconds": seconds,
        "quality": "standard",
        "remixed_from_video_id": None,
        "error": _error_of(video),
        "media_type": "video/mp4",
        "file_name": f"{job.id}.mp4" if job.state is JobState.COMPLETED else None,
        "inference_time_s": _seconds_of(video),
        "peak_memory_mb": round(video.measured_bytes / 1e6, 1),
        "clipmill": {
            "state": job.state.value,
            "reason": job.reason,
            "batch_id": job.batch_id,
            "interactive": job.interactive,
            "step": job.step,
            "steps": job.steps,
            "attempts": job.attempts,
            "card": video.card if job.state is JobState.RUNNING else None,
            "frames": spec.frames if spec else None,
            "fps": spec.fps if spec else None,
            "seed": spec.seed if spec else None,
            "resolution_class": spec.resolution_class.value if spec else None,
            "lossy": list(spec.lossy) if spec else [],
            "notes": as_json(notes),
            "file_expired": bool(video.clip and video.clip.expired_at),
        },
    }


def progress_of(video: Video) -> int:
    """Percent of the steps that are done; 100 only of a video that has completed."""
    job = video.job
    if job.state is JobState.COMPLETED:
        return 100
    # The last step is not the last of the work: frames are decoded and encoded after it.
    return min(99, 100 * job.step // job.steps) if job.steps else 0


def poll_after_ms(video: Video, now: int) -> int:
    """When a client may look again: about when the video is done at the pace of its attempt so far.

    Of one that waits, the later the longer it has waited.
    """
    job = video.job
    if has_ended(job):
        return LEAST_POLL_MS
    if job.state is not JobState.RUNNING or video.started_at is None or not job.step or not job.steps:
        waited = _QUEUED_SHARE * 1000 * (now - job.created_at)
        return int(min(max(waited, _QUEUED_POLL_MS), MOST_POLL_MS))
    left = (now - video.started_at) * (job.steps - job.step) / job.step
    return int(min(max(1000 * left, LEAST_POLL_MS), MOST_POLL_MS))


def model_view(family: Family) -> dict[str, Any]:
    """A family of models as a model object."""
    return {
        "id": family.name,
        "object": "model",
        "created": 0,
        "owned_by": (family.repo or "clipmill").split("/")[0],
        "clipmill": {
            "title": family.title,
            "weights": family.repo,
            "licence": family.licence,
            "resolution_classes": [one.value for one in family.classes],
            "tiers": {
                tier.value: {"frames": one.frames, "fps": one.fps, "steps": one.steps}
                for tier, one in family.tiers.items()
            },
            "reads_prompts": family.uses_prompt,
        },
    }


def file_view(sha256: str, size: int, created_at: int) -> dict[str, Any]:
    """A still that was handed in as a file object."""
    return {
        "id": f"{FILE_ID}{sha256}",
        "object": "file",
        "bytes": size,
        "created_at": created_at,
        "filename": f"{sha256[:16]}",
        "purpose": "vision",
        "status": "processed",
        "expires_at": None,
    }


def manifest_view(upload: UploadedManifest) -> dict[str, Any]:
    """A manifest that was handed in as a file object."""
    return {
        "id": f"{MANIFEST_ID}{upload.sha256}",
        "object": "file",
        "bytes": upload.size,
        "created_at": upload.created_at,
        "filename": upload.name,
        "purpose": "batch",
        "status": "processed",
        "expires_at": None,
    }


def page_view(found: Iterable[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of objects that have ids."""
    data = list(found)
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def _expires_at(video: Video, keep_days: float | None) -> int | None:
    if video.clip is None:
        return None
    if video.clip.expired_at is not None:
        return video.clip.expired_at
    return None if keep_days is None else int(video.job.updated_at + keep_days * _DAY_S)


def _error_of(video: Video) -> dict[str, Any] | None:
    job = video.job
    if job.state is JobState.CANCELLED:
        return {"code": "cancelled", "message": "it was cancelled", "param": None, "type": None}
    if fell_short(job):
        words = next((note.message for note in job.notes if note.code == SHORT), "its clip waits for a review")
        return {"code": SHORT, "message": f"{words}.", "param": "min_fidelity", "type": None}
    if job.state is not JobState.FAILED:
        return None
    code = job.reason or "error"
    words = " ".join(str(problem) for problem in job.problems) or f"{why_failed(job.reason)}."
    param = job.problems[0].field if job.problems else None
    return {"code": code, "message": words, "param": param, "type": None}


def _seconds_of(video: Video) -> float | None:
    if video.started_at is None or video.ended_at is None:
        return None
    return float(video.ended_at - video.started_at)
