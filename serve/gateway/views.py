"""How batches, jobs and cards look in the API and in `--json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.estimates.kernels import kernels_in_use
from cluster.estimates.times import TimeEstimates
from cluster.explain.reasons import Explanation
from cluster.fleet.cards import Beat
from cluster.forecast.suggest import FULL_SHARE, largest_fit
from cluster.jobs.commands import CardOrder
from cluster.jobs.model import Batch, Job, JobState
from cluster.maintenance.deletion import Deletion
from cluster.remote.urls import shown
from pipeline.families import FAMILIES
from pipeline.notes import as_json
from pipeline.units import format_bytes


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
        "held": {
            "batch": batch.held.value if batch.held else None,
            "rows": {reason.value: number for reason, number in sorted(batch.held_by.items())},
        },
        "limits": {
            "failures": batch.limits.failures,
            "gpu_hours": None if batch.limits.gpu_seconds is None else batch.limits.gpu_seconds / 3600,
            "cost": batch.limits.cost,
        },
        "needs_approval": batch.needs_approval,
        "proof": batch.proof,
        "comment": batch.comment,
        "owner": batch.owner,
        "key": batch.key,
        "webhook_url": shown(batch.webhook_url) if batch.webhook_url else None,
    }


def deletion_view(deletion: Deletion) -> dict[str, Any]:
    """What went with a batch, or would go, as the API and `--json` show it."""
    return {
        "id": deletion.batch_id,
        "object": "batch.deleted",
        "deleted": deletion.deleted,
        "rows": deletion.rows,
        "clips": deletion.clips,
        "shared_clips": deletion.shared,
        "freed_bytes": deletion.freed_bytes,
    }


def job_view(job: Job) -> dict[str, Any]:
    """A job as the API and `--json` show it. `noted` has the notes with their machine names,
    and `fidelity` how true the clip is, where there are any.
    """
    row = job.row
    # The row as it was before typed notes, for whoever reads it there; here it would say all of them twice.
    noted = {"noted": as_json(job.notes)} if job.clip_notes or row.get("noted") else {}
    view = {
        "id": job.id,
        "object": "job",
        "batch_id": job.batch_id,
        "number": job.number,
        "name": job.name,
        "state": job.state.value,
        "reason": job.reason,
        "hold_requested": job.hold_requested.value if job.hold_requested else None,
        "priority": job.own_priority,
        "interactive": job.interactive,
        "not_before": job.not_before,
        "after": job.after,
        "problems": [p.model_dump() for p in job.problems],
        "model": job.spec.family if job.spec else None,
        "resolution_class": job.spec.resolution_class.value if job.spec else None,
        "size": f"{job.spec.width}x{job.spec.height}" if job.spec else None,
        "step": job.step,
        "steps": job.steps,
        "attempts": job.attempts,
        "releases": job.releases,
        "clip_id": job.clip_id,
        "seed": job.spec.seed if job.spec else None,
        "guidance": job.spec.guidance if job.spec else None,
        "review": _review_view(job),
        "lossy": list(job.spec.lossy) if job.spec else [],
        "adjusted": [note.message for note in job.notes if note.adjusted],
        "notes": [note.message for note in job.notes if not note.adjusted],
        "row": {name: value for name, value in row.items() if name != "noted"},
    }
    measured = {"fidelity": job.fidelity.model_dump()} if job.fidelity else {}
    return view | noted | measured


def _review_view(job: Job) -> dict[str, Any]:
    """Where a job is in its review."""
    return {
        "round": job.round or None,
        "rounds": [one.name for one in job.rounds],
        "rounds_left": job.rounds_left,
        "row": job.row_number,
        "pick": job.pick.value,
        "steps": [asdict(step) for step in job.reviewed],
    }


def why_view(found: Explanation) -> dict[str, Any]:
    """An explanation of why a job is where it is, as the API and `--json` show it."""
    changes = [
        {name: value for name, value in asdict(change).items() if name in _ALWAYS or value not in (None, "")}
        for change in found.changes
    ]
    return {
        "object": "why",
        "job": found.job,
        "state": found.state.value,
        "reason": found.reason,
        "text": found.text,
        "changes": changes,
    }


#: Fields of a proposed change that are shown even where they are empty.
_ALWAYS = ("kind", "text", "command", "at", "starts")


def order_view(order: CardOrder | None) -> dict[str, Any] | None:
    """The order that holds for a card as the API shows it; None where the card is free."""
    if order is None:
        return None
    facts = asdict(order)
    return {name: facts[name] for name in ("kind", "reason", "given_by", "since", "until")}


def card_view(beat: Beat, order: CardOrder | None = None) -> dict[str, Any]:
    """A card as the API and `--json` show it: its heartbeat, the largest clips that fit now, the order that holds."""
    # Small networks are for emulated cards, whose bytes the real ones would overflow.
    families = [f for f in FAMILIES.values() if f.needs_torch and (f.repo is None) == (beat.kind == "emulated")]
    fits = {family.name: largest_fit(family, beat.usable_bytes) for family in families}
    used = (beat.used_bytes + beat.foreign_bytes) / beat.total_bytes if beat.total_bytes else 0.0
    return {
        **beat.model_dump(mode="json"),
        "used_share": round(used, 3),
        "order": order_view(order),
        "largest": {
            name: {"class": found[0].value, "frames": found[1]} if found else None for name, found in fits.items()
        },
        "warning": _warning(beat, used),
    }


def kernels_view(estimates: TimeEstimates) -> list[dict[str, Any]]:
    """What was measured of eager and of compiled kernels, by card kind, as the API and `--json` show it."""
    return [asdict(one) for one in kernels_in_use(estimates)]


def _warning(beat: Beat, used: float) -> str:
    if used <= FULL_SHARE:
        return ""
    others = f", {format_bytes(beat.foreign_bytes)} of it by other programs" if beat.foreign_bytes else ""
    return f"{used:.0%} of {format_bytes(beat.total_bytes)} in use{others}"
