"""The story of one clip: its attempts with card and memory, the layouts that did not fit, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.explain.context import why
from cluster.explain.reasons import Explanation, Rules
from cluster.explain.words import layout_text
from cluster.farm import Farm
from cluster.jobs.model import Attempt, Clip, Job, JobState, Outcome, Pick
from cluster.results.contact_sheet import ResultRow, facts_of
from cluster.results.rows import result_row
from cluster.storage import StorageError
from pipeline.families.layouts import Layout

#: How an attempt ended, for people.
_ENDED = {
    Outcome.COMPLETED: "completed",
    Outcome.OOM: "out of memory",
    Outcome.TOO_BIG: "did not fit the card",
    Outcome.INVALID: "input at fault",
    Outcome.ERROR: "failed",
    Outcome.CRASHED: "renderer died",
    Outcome.LOST: "lost",
    Outcome.STOPPED: "stopped",
}


@dataclass(frozen=True, kw_only=True)
class ClipStory:
    """All that a page tells of one row."""

    job: Job
    row: ResultRow
    #: Newest first.
    attempts: tuple[Attempt, ...]
    clip: Clip | None = None
    why: Explanation | None = None
    #: Whether another clip of its row was picked.
    other_picked: bool = False
    #: What the clip's provenance says; empty where there is none.
    provenance: Mapping[str, Any]

    @property
    def playable(self) -> bool:
        """Whether its clip can be played."""
        return self.clip is not None and self.clip.expired_at is None and self.row.shows_clip

    @property
    def facts(self) -> list[tuple[str, str]]:
        """All that is known of the row, as the contact sheet has it."""
        return facts_of(self.row)

    @property
    def memory(self) -> list[tuple[str, int]]:
        """Predicted and measured bytes of the clip's peak, as far as they are known."""
        told = self.provenance.get("memory")
        memory = told if isinstance(told, dict) else {}
        measured = max((one.measured_bytes for one in self.attempts), default=0)
        found = [
            ("Predicted", memory.get("predicted_bytes") or self.job.needs_bytes),
            ("Predicted, corrected by what was measured", memory.get("corrected_bytes")),
            ("Measured", memory.get("measured_bytes") or measured),
        ]
        return [(label, value) for label, value in found if isinstance(value, int) and value > 0]

    @property
    def layout(self) -> str:
        """In which layout the clip was rendered, in words; empty where that is not known."""
        try:
            return layout_text(Layout.model_validate(self.provenance["layout"]))
        except (KeyError, ValidationError):
            return ""

    @property
    def rungs(self) -> list[Mapping[str, Any]]:
        """Layouts in which it ran out of memory, in the order in which they were tried."""
        told = self.provenance.get("escalated")
        return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []

    @property
    def prompt(self) -> str:
        """What it shows, as asked for."""
        return self.row.prompt


def outcome_text(attempt: Attempt) -> str:
    """How an attempt ended, or that it runs, for people."""
    return "running" if attempt.outcome is None else _ENDED.get(attempt.outcome, attempt.outcome.value)


def story_of(farm: Farm, job_id: str, rules: Rules) -> ClipStory:
    """The story of a job. Raises `NoSuchJobError`."""
    store = farm.batch_store
    job = store.job(farm.owner, job_id)
    clip = store.clips(farm.owner, [job.clip_id]).get(job.clip_id) if job.clip_id else None
    made_by = store.makers(farm.owner, job.batch_id, [clip.attempt_id]).get(clip.attempt_id) if clip else None
    completed = job.state.value == "completed"
    return ClipStory(
        job=job,
        row=result_row(job, clip, made_by),
        attempts=tuple(reversed(store.attempts_of_job(farm.owner, job.id))),
        clip=clip,
        why=None if completed else why(store.database, farm.owner, job.id, rules),
        other_picked=_other_picked(farm, job),
        provenance=_provenance(farm, clip),
    )


def _other_picked(farm: Farm, job: Job) -> bool:
    if job.row_number is None:
        return False
    others = farm.batch_store.of_rows(farm.owner, job.batch_id, [job.row_number])
    chosen = (one for one in others if one.pick is Pick.PICKED and one.state is not JobState.CANCELLED)
    return any(one.id != job.id for one in chosen)


def _provenance(farm: Farm, clip: Clip | None) -> Mapping[str, Any]:
    if clip is None or clip.expired_at is not None:
        return {}
    try:
        told = json.loads(farm.storage.get_bytes(clip.objects.provenance))
    except (StorageError, ValueError):
        # A page of a clip whose file is gone still tells what the store knows.
        return {}
    return told if isinstance(told, dict) else {}
