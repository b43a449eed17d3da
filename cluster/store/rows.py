"""From table rows to the types of `cluster.jobs.model`, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from cluster.jobs.model import (
    Attempt,
    Clip,
    Draft,
    HoldReason,
    Job,
    JobState,
    Limits,
    Objects,
    Outcome,
    Pick,
    PlannedRound,
    Reason,
    ReviewStep,
    StoredCheckpoint,
)
from cluster.store.bulk import among, is_one_of
from cluster.store.schema import attempts, batches, clips, jobs
from pipeline.clips.clip import ClipSpec
from pipeline.fidelity.score import FidelityScore, score_from
from pipeline.notes import Note, as_json, notes_from
from pipeline.problems import Problem

_OBJECTS = tuple(field.name for field in fields(Objects))
#: Rows of a detached batch, by number, that wait in the common lane (`cluster.store.queues`).
COMMON_ROWS = 16

#: The class of the clip that an attempt of a job rendered.
CLASS_OF_ATTEMPT = sa.func.coalesce(attempts.c.resolution_class, jobs.c.resolution_class)

#: All columns of a job, with the step of its newest attempt. While it waits, steps that were lost with that attempt
#: are no progress: what counts is where it goes on.
JOB_COLUMNS = (
    *(column for column in jobs.c if column is not jobs.c.spec),
    # As text, so that a specification which was read before need not be parsed and checked again.
    sa.cast(jobs.c.spec, sa.Text).label("spec"),
    sa.case(
        (
            is_one_of(jobs.c.state, JobState.QUEUED, JobState.HELD),
            sa.func.coalesce(jobs.c.checkpoint_step, 0),
        ),
        else_=sa.func.coalesce(attempts.c.step, 0),
    ).label("step"),
    sa.func.coalesce(attempts.c.steps, 0).label("steps"),
)


def select_jobs() -> sa.Select[Any]:
    """SELECT of whole jobs; `job_from` reads its rows."""
    newest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence)
    return sa.select(*JOB_COLUMNS).select_from(jobs.outerjoin(attempts, newest))


#: What was judged of a clip, as `job_from` reads it.
CLIP_JUDGEMENTS = (clips.c.objects["notes"].label("clip_notes"), clips.c.objects["fidelity"].label("clip_fidelity"))


def with_clip_notes(query: sa.Select[Any]) -> sa.Select[Any]:
    """`query` of jobs, with what was judged of the clip that each has."""
    return query.add_columns(*CLIP_JUDGEMENTS).outerjoin(clips, clips.c.id == jobs.c.clip_id)


#: Whole jobs of the parameter `ids`.
JOBS_BY_ID = select_jobs().where(among(jobs.c.id, "ids"))


@lru_cache(maxsize=10_000)
def _spec_from(text: str) -> ClipSpec | None:
    values = json.loads(text)
    return ClipSpec.model_validate(values) if values else None


def may_start(now: int | sa.BindParameter[int]) -> sa.ColumnElement[bool]:
    """Whether a queued row of `jobs`, joined with its row of `batches`, may start at `now` (UTC epoch seconds).

    It may where its batch may and its own time has come.
    """
    return sa.and_(batch_may_start(batches, now), sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now))


def batch_may_start(of: sa.FromClause, now: int | sa.BindParameter[int]) -> sa.ColumnElement[bool]:
    """Whether jobs of a row of `batches` (or of an alias of it) may start at `now` (UTC epoch seconds).

    The one place that says so: it is detached or waited for by somebody, and neither paused nor stopped at a limit.
    """
    return sa.and_(of.c.held.is_(None), sa.or_(of.c.attended_until.is_(None), of.c.attended_until >= now))


def limits_of(row: Any) -> Limits:
    """The limits of a row of `batches`."""
    return Limits(failures=row.max_failures, gpu_seconds=row.max_gpu_seconds, cost=row.max_cost)


def job_from(row: Any) -> Job:
    """A `Job` of a row of `select_jobs`, or of one that has the notes of its clip as well (`with_clip_notes`)."""
    return Job(
        id=row.id,
        owner=row.owner,
        batch_id=row.batch_id,
        number=row.number,
        name=row.name,
        state=JobState(row.state),
        row=row.row,
        created_at=row.created_at,
        updated_at=row.updated_at,
        still=row.still,
        spec=_spec_from(row.spec) if row.spec else None,
        content_key=row.content_key,
        needs_bytes=row.needs_bytes,
        priority=row.priority,
        reason=row.reason,
        problems=tuple(Problem.model_validate(p) for p in row.problems),
        attempts=row.attempts,
        releases=row.releases,
        cancel_requested=row.cancel_requested,
        hold_requested=HoldReason(row.hold_requested) if row.hold_requested else None,
        not_before=row.not_before,
        after=row.after,
        clip_id=row.clip_id,
        step=row.step,
        steps=row.steps,
        checkpoint=StoredCheckpoint(row.checkpoint_key, row.checkpoint_step) if row.checkpoint_key else None,
        rounds=rounds_from(row.review),
        rounds_left=row.rounds_left,
        row_number=row.row_number,
        pick=pick_from(row.picked),
        reviewed=tuple(ReviewStep(**one) for one in (row.review or {}).get("steps", ())),
        clip_notes=notes_from(getattr(row, "clip_notes", None)),
        fidelity=score_from(getattr(row, "clip_fidelity", None)),
    )


def pick_from(picked: bool | None) -> Pick:
    """What the column `picked` says."""
    return Pick.OPEN if picked is None else Pick.PICKED if picked else Pick.LET_GO


def rounds_from(review: Mapping[str, Any] | None) -> tuple[PlannedRound, ...]:
    """The rounds in the column `review`."""
    return tuple(
        PlannedRound(name=one["name"], spec=ClipSpec.model_validate(one["spec"]), noted=notes_from(one.get("noted")))
        for one in (review or {}).get("rounds", ())
    )


def review_value(rounds: Sequence[PlannedRound], steps: Sequence[ReviewStep] = ()) -> dict[str, Any] | None:
    """What the column `review` has of rounds, and of what was decided; None where there is neither."""
    if not rounds and not steps:
        return None
    planned = [
        {"name": one.name, "spec": one.spec.model_dump(mode="json"), "noted": as_json(one.noted)} for one in rounds
    ]
    return {"rounds": planned, "steps": [vars(one) for one in steps]}


def as_shown(job: Job, held: str | None) -> Job:
    """The job as people see it: queued in a batch that is `held`, it is held itself, for the same reason."""
    return replace(job, state=JobState.HELD, reason=held) if held and job.state is JobState.QUEUED else job


def clip_from(row: Any) -> Clip:
    """A `Clip` of a row of `clips`."""
    return Clip(
        id=row.id,
        owner=row.owner,
        content_key=row.content_key,
        attempt_id=row.attempt_id,
        objects=objects_from(row.objects),
        created_at=row.created_at,
        expired_at=row.expired_at,
        notes=notes_from(row.objects.get("notes")),
        fidelity=score_from(row.objects.get("fidelity")),
    )


def attempt_from(row: Any) -> Attempt:
    """An `Attempt` of a row of `attempts`."""
    return Attempt(
        id=row.id,
        job_id=row.job_id,
        owner=row.owner,
        fence=row.fence,
        renderer=row.renderer,
        card=row.card,
        card_class=row.card_class,
        outcome=Outcome(row.outcome) if row.outcome else None,
        started_at=row.started_at,
        ended_at=row.ended_at,
        measured_bytes=row.measured_bytes,
        detail=row.detail,
        step=row.step,
        steps=row.steps,
        resumed_step=row.resumed_step,
        resumed_from=row.resumed_from,
    )


def job_values(
    draft: Draft,
    *,
    job_id: str,
    owner: str,
    batch_id: str,
    now: int,
    clip_id: str | None,
    needs_approval: bool = False,
    attended: bool = False,
) -> dict[str, Any]:
    """Column values of a new job."""
    reason: str | None = None
    if draft.problems:
        state, reason = JobState.FAILED, Reason.INVALID.value
    elif clip_id and len(draft.rounds) > 1:
        state, reason = JobState.HELD, HoldReason.REVIEW.value
    elif clip_id:
        state = JobState.COMPLETED
    elif needs_approval or draft.after:
        state = JobState.HELD
        reason = HoldReason.APPROVAL.value if needs_approval else HoldReason.AFTER.value
    else:
        state = JobState.QUEUED
    return {
        "id": job_id,
        "owner": owner,
        "batch_id": batch_id,
        "number": draft.number,
        "name": draft.name,
        "state": state.value,
        "reason": reason,
        "problems": [p.model_dump() for p in draft.problems],
        "row": draft.row,
        "still": draft.still,
        "spec": draft.spec.model_dump(mode="json") if draft.spec else None,
        "content_key": draft.content_key,
        "family": draft.spec.family if draft.spec else "",
        "resolution_class": draft.spec.resolution_class.value if draft.spec else "",
        "needs_bytes": draft.needs_bytes,
        "priority": draft.priority,
        "created_at": now,
        "updated_at": now,
        "attempts": 0,
        "releases": 0,
        "fence": 0,
        "cancel_requested": False,
        "hold_requested": None,
        "not_before": draft.not_before,
        "after": draft.after,
        "lane": batch_id if attended or draft.number > COMMON_ROWS else "",
        "clip_id": clip_id,
        "checkpoint_key": None,
        "checkpoint_step": None,
        "review": review_value(draft.rounds),
        "rounds_left": max(0, len(draft.rounds) - 1) if draft.spec else 0,
        "row_number": draft.row_number if draft.spec else None,
        "picked": None,
    }


def objects_value(
    objects: Objects, notes: Sequence[Note] = (), fidelity: FidelityScore | None = None
) -> dict[str, Any]:
    """JSON column value of a clip's objects, and of what was judged of it."""
    # Left out where nothing was: versions without them do not read them.
    judged = {"notes": as_json(notes)} if notes else {}
    measured = {"fidelity": fidelity.model_dump()} if fidelity else {}
    return dict(vars(objects)) | judged | measured


def objects_from(value: Mapping[str, Any]) -> Objects:
    """A clip's objects of their JSON column."""
    return Objects(**{name: value[name] for name in _OBJECTS if name in value})
