"""The rows of a batch as results show them, and as JSON for who takes them home from another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cluster.jobs.model import Clip, Job, JobState, Pick
from cluster.results.contact_sheet import STATES, ResultRow
from cluster.store import BatchStore
from pipeline.clips.clip import NO_PROMPT
from pipeline.fidelity.score import score_from
from pipeline.notes import as_json, notes_from
from pipeline.problems import Problem

_FIELDS = {field.name for field in fields(ResultRow)}


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """A job and its row of the results."""

    job_id: str
    #: Place in the batch.
    number: int
    #: When the job last changed, in UTC epoch seconds.
    updated_at: int
    row: ResultRow

    def to_json(self) -> dict[str, Any]:
        """For the API."""
        row = asdict(self.row) | {
            "extra": dict(self.row.extra),
            "review": dict(self.row.review),
            "delivered": dict(self.row.delivered),
            "noted": as_json(self.row.noted),
            "fidelity": self.row.fidelity.model_dump() if self.row.fidelity else None,
            "problem": self.row.problem.model_dump() if self.row.problem else None,
        }
        facts = {"job": self.job_id, "place": self.number, "updated_at": self.updated_at}
        return {"object": "result", **facts, "row": row}


def result_from(value: Mapping[str, Any]) -> JobResult:
    """What `JobResult.to_json` wrote; fields that a later version has besides are passed over.

    Raises `KeyError`, `TypeError` and `ValueError` for what none wrote.
    """
    told = {name: one for name, one in dict(value["row"]).items() if name in _FIELDS}
    told["noted"] = notes_from(told.get("noted"))
    told["fidelity"] = score_from(told.get("fidelity"))
    told["problem"] = Problem.model_validate(told["problem"]) if told.get("problem") else None
    told["lossy"] = tuple(told.get("lossy") or ())
    told["deliver"] = None if told.get("deliver") is None else tuple(told["deliver"])
    if told["state"] not in STATES:
        raise ValueError(f"{told['state']!r} is no state of a row")
    row = ResultRow(**told)
    return JobResult(job_id=str(value["job"]), number=int(value["place"]), updated_at=int(value["updated_at"]), row=row)


def results_of(
    batch_store: BatchStore,
    owner: str,
    batch_id: str,
    *,
    completed_since: int | None = None,
    updated_since: int | None = None,
    after: int = -1,
    limit: int | None = None,
    everything: bool = False,
) -> list[JobResult]:
    """A batch's rows in its order, those behind the place `after`. Raises `NoSuchBatchError`.

    Of a row whose clip was picked among several there is that one, unless `everything` is wanted.
    `completed_since`: only those that completed at or after this time, in UTC epoch seconds; `updated_since`:
    those that changed in any way.
    """
    state = None if completed_since is None else JobState.COMPLETED
    since = updated_since if completed_since is None else completed_since
    jobs = batch_store.jobs(
        owner, batch_id, state=state, updated_since=since, after_number=after, limit=limit, chosen=not everything
    )
    clips = batch_store.clips(owner, {job.clip_id for job in jobs if job.clip_id})
    makers = batch_store.makers(owner, batch_id, [clip.attempt_id for clip in clips.values()])
    found = []
    for job in jobs:
        clip = clips.get(job.clip_id) if job.clip_id else None
        row = result_row(job, clip, makers.get(clip.attempt_id) if clip else None)
        found.append(JobResult(job_id=job.id, number=job.number, updated_at=job.updated_at, row=row))
    return found


def result_row(job: Job, clip: Clip | None, made_by: str | None = None) -> ResultRow:
    """A job with its clip as the contact sheet shows it. `made_by`: the row of its batch that the clip was made for."""
    spec = job.spec
    notes = replace(job, clip_notes=clip.notes).notes if clip else job.notes
    return ResultRow(
        id=job.name,
        number=int(job.row.get("number", job.number)),
        prompt=spec.prompt if spec and spec.prompt != NO_PROMPT else str(job.row.get("prompt") or ""),
        state=job.state.value,
        problem=job.problems[0] if job.problems else None,
        reason=job.reason or "",
        model=spec.family if spec else "",
        resolution_class=spec.resolution_class.value if spec else "",
        width=spec.width if spec else 0,
        height=spec.height if spec else 0,
        frames=spec.frames if spec else 0,
        fps=spec.fps if spec else 0,
        seconds=spec.seconds if spec else 0.0,
        seed=spec.seed if spec else None,
        image=str(job.row.get("image") or ""),
        extra=job.row.get("extra") or {},
        noted=notes,
        fidelity=clip.fidelity if clip else None,
        lossy=spec.lossy if spec else (),
        video_key=clip.objects.video if clip else None,
        poster_key=clip.objects.poster if clip else None,
        provenance_key=clip.objects.provenance if clip else None,
        attempts=job.attempts,
        shared_with=made_by if made_by != job.name else None,
        expired_at=clip.expired_at if clip else None,
        review=review_facts(job),
        content_key=job.content_key or "",
        deliver=tuple(job.row["deliver"]) if job.row.get("deliver") is not None else None,
    )


def review_facts(job: Job) -> dict[str, object]:
    """What was decided of a job in review, for results and provenance; empty where there is no review."""
    if not (job.rounds or job.reviewed or job.row_number is not None):
        return {}
    facts: dict[str, object] = {
        "picked": None if job.pick is Pick.OPEN else job.pick is Pick.PICKED,
        "round": job.round,
        "rounds": [one.name for one in job.rounds],
        "rounds_left": job.rounds_left,
        "candidates_of": job.row_number,
        "steps": [asdict(step) for step in job.reviewed],
    }
    return {name: value for name, value in facts.items() if value not in (None, "", [], 0) or value is False}
