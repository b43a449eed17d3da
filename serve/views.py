"""How batches, jobs and cards look in the API and in `--json`."""

from __future__ import annotations

from typing import Any

from cluster.jobs import Batch, Job, JobState


def batch_view(batch: Batch) -> dict[str, Any]:
    """A batch as the API and `--json` show it."""
    return {
        "id": batch.id,
        "object": "batch",
        "name": batch.name,
        "source": batch.source,
        "status": batch.status,
        "created_at": batch.created_at,
        "attended": batch.attended_until is not None,
        "counts": {state.value: batch.counts[state] for state in JobState} | {"total": batch.counts.total},
        "attempts": batch.attempts,
    }


def job_view(job: Job) -> dict[str, Any]:
    """A job as the API and `--json` show it."""
    return {
        "id": job.id,
        "object": "job",
        "batch_id": job.batch_id,
        "number": job.number,
        "name": job.name,
        "state": job.state.value,
        "reason": job.reason,
        "problems": [p.model_dump() for p in job.problems],
        "model": job.spec.family if job.spec else None,
        "resolution_class": job.spec.resolution_class.value if job.spec else None,
        "size": f"{job.spec.width}x{job.spec.height}" if job.spec else None,
        "step": job.step,
        "steps": job.steps,
        "attempts": job.attempts,
        "releases": job.releases,
        "clip_id": job.clip_id,
        "lossy": list(job.spec.lossy) if job.spec else [],
        "adjusted": job.row.get("adjusted") or [],
        "notes": job.row.get("notes") or [],
        "row": job.row,
    }
