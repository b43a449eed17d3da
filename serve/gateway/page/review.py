"""Drafts and candidates that somebody has to look at, row by row, those of one row side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.farm import Farm
from cluster.jobs.model import Clip, Job, JobState, Pick
from cluster.jobs.review import in_review
from cluster.results.contact_sheet import why_no_clip
from cluster.results.rows import result_row
from pipeline.clips.clip import NO_PROMPT
from pipeline.families import family_named
from pipeline.problems import BadInputError
from pipeline.units import format_duration

#: Rows that a page has; the others come as these are decided on.
MOST_ROWS = 60
#: Jobs read for them: a row may have as many clips as candidates times prompts.
_MOST_JOBS = 2000
_OF_ROW = re.compile(r"(-p[0-9]+)?(-c[0-9]+)?$")


@dataclass(frozen=True, kw_only=True)
class ReviewClip:
    """One clip of a row in review."""

    job: Job
    #: Whether there is something to look at, and to decide on.
    plays: bool
    waits: bool
    width: int
    height: int
    #: `3.4 s`; empty where there is no clip.
    length: str
    prompt: str
    #: What makes it worth a look.
    looks: Sequence[str]
    #: Why there is no finished clip of it; empty where there is one.
    why: str = ""
    #: How true it is to still and prompt (0 to 1), for people and for the order; empty and 1 where not measured.
    fidelity: str = ""
    score: float = 1.0
    #: Place by its review, from 1: fewer findings first, then what is truer to the still.
    rank: int = 1
    #: Whether its model can make another from another seed, reads prompts, and has guidance.
    has_seed: bool = False
    reads_prompt: bool = False
    has_guidance: bool = False

    @property
    def state(self) -> str:
        """What is the matter with one that cannot be decided on, in words."""
        if self.waits:
            return "" if self.plays else self.why
        return "Picked." if self.plays and self.job.pick is Pick.PICKED else self.why


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """A row of a manifest with its clips, the best by review first."""

    name: str
    clips: tuple[ReviewClip, ...]

    @property
    def key(self) -> str:
        """Another one whenever its clips, or what they are, change."""
        parts = (f"{one.job.id} {one.job.clip_id} {one.job.state} {one.job.rounds_left}" for one in self.clips)
        return " ".join(parts)

    @property
    def looks(self) -> list[str]:
        """What is said of all of several clips, so that it is said once."""
        if len(self.clips) == 1:
            return []
        return [one for one in self.clips[0].looks if all(one in other.looks for other in self.clips)]

    @property
    def round(self) -> str:
        """The round that it is in; empty where candidates are finished clips."""
        return self.clips[0].job.round

    @property
    def following(self) -> str:
        """The round that an approved clip goes on to; empty where it is the last."""
        job = self.clips[0].job
        return job.rounds[-job.rounds_left].name if job.rounds and job.rounds_left else ""


def review_rows(farm: Farm, batch_id: str, limit: int = MOST_ROWS) -> tuple[list[ReviewRow], bool]:
    """(rows of a batch that somebody has to look at, in its order; whether there are more).

    Raises `NoSuchBatchError`.
    """
    store = farm.batch_store
    waiting = store.in_review(farm.owner, batch_id, limit=_MOST_JOBS)
    groups: dict[Any, list[Job]] = {}
    for job in waiting:
        groups.setdefault(job.id if job.row_number is None else job.row_number, []).append(job)
    more = len(groups) > limit or len(waiting) == _MOST_JOBS
    groups = dict(list(groups.items())[:limit])
    several = store.of_rows(farm.owner, batch_id, [key for key in groups if isinstance(key, int)])
    ids = {job.id for found in groups.values() for job in found}
    for job in several:
        # One of several that is not there yet is shown as coming: who decides knows that there will be another.
        if job.id not in ids and job.row_number in groups and job.pick is not Pick.LET_GO:
            groups[job.row_number].append(job)
    clips = store.clips(farm.owner, {job.clip_id for found in groups.values() for job in found if job.clip_id})
    return [_row(found, ids, clips) for found in groups.values()], more


def _row(jobs: Sequence[Job], waiting: set[str], clips: dict[str, Clip]) -> ReviewRow:
    made = [_clip(job, clips.get(job.clip_id or ""), job.id in waiting) for job in jobs]
    best = sorted(made, key=lambda one: (not one.waits, len(one.looks), -one.score, one.job.number))
    ranked = tuple(_ranked(one, place) for place, one in enumerate(best, start=1))
    name = jobs[0].name if jobs[0].row_number is None else _OF_ROW.sub("", min(jobs, key=lambda job: job.number).name)
    return ReviewRow(name=name, clips=ranked)


def _ranked(clip: ReviewClip, place: int) -> ReviewClip:
    return ReviewClip(**vars(clip) | {"rank": place})


def _clip(job: Job, clip: Clip | None, waits: bool) -> ReviewClip:
    row, spec = result_row(job, clip), job.spec
    shown = row.shows_clip and (in_review(job) or job.state is JobState.COMPLETED)
    try:
        family = family_named(spec.family) if spec else None
    except BadInputError:
        # Of a later version's catalog of models.
        family = None
    return ReviewClip(
        job=job,
        plays=shown,
        waits=waits,
        width=row.width or 4,
        height=row.height or 3,
        length=format_duration(row.seconds) if row.seconds and shown else "",
        prompt=spec.prompt if spec and spec.prompt != NO_PROMPT else str(job.row.get("prompt") or ""),
        looks=[note.message for note in row.noted if note.worth_a_look],
        why=why_no_clip(row),
        fidelity=row.fidelity.words if row.fidelity else "",
        score=row.fidelity.score if row.fidelity else 1.0,
        has_seed=family is not None and family.uses_seed,
        reads_prompt=family is not None and family.uses_prompt,
        has_guidance=family is not None and family.max_steps > 1,
    )
