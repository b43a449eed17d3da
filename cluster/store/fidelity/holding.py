"""Clips that are less true than their rows ask for: made again within the transaction that completed them, or held."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.fidelity import (
    AGAIN,
    FidelityTerms,
    FidelityTry,
    FidelityVerdict,
    decide,
    may_reroll,
    rejected,
    short_note,
    terms_of,
    tried_clips,
    with_note,
    without_story,
)
from cluster.jobs.model import HoldReason, Job, JobState
from cluster.jobs.review import ReviewChange, renewed, with_step
from cluster.jobs.transitions import Event, Happening, Verb
from cluster.store.bulk import among
from cluster.store.rows import job_from, review_value, select_jobs
from cluster.store.schema import clips, jobs
from cluster.store.transitions import moves, values_of
from cluster.store.webhooks.again import watch_again, watch_drafts
from pipeline.fidelity.score import score_from

_COMPLETED = select_jobs().where(among(jobs.c.id, "ids"), jobs.c.state == JobState.COMPLETED.value)
_STILL_COMPLETED = sa.select(jobs.c.id).where(among(jobs.c.id, "ids"), jobs.c.state == JobState.COMPLETED.value)


@dataclass(frozen=True, kw_only=True)
class AskedBefore:
    """What people had asked of jobs before a clip completed them, which forgets it: another clip obeys it still."""

    #: Jobs that were to be cancelled, for themselves, with their batch, or for another clip of their row.
    cancelled: frozenset[str] = frozenset()
    #: Why jobs were held, or were to be; None: they were not.
    held: Mapping[str, str | None] = field(default_factory=dict)


_NOTHING_ASKED = AskedBefore()
#: The verb after which a queued job is held for this reason.
_HOLDS: Mapping[str | None, Verb] = {HoldReason.PAUSED: Verb.PAUSE, HoldReason.APPROVAL: Verb.HOLD}


def hold_to_fidelity(
    c: Connection, now: int, job_ids: Collection[str], before: AskedBefore = _NOTHING_ASKED
) -> frozenset[str]:
    """Look at jobs that this transaction has completed, of those whose rows ask for a fidelity.

    One whose clip falls short is queued again with another seed, within what its row allows; where that is used up, the
    best of its clips is taken, and where that falls short too, it is held for a review with it. One that was to be
    cancelled is cancelled then, and one that was to wait does. Nobody outside sees it completed in between. Gives those
    that are not completed any more.
    """
    pending = list(job_ids)
    while pending:
        # Another seed's clip may be there already, and is looked at as well.
        found = [job_from(row) for row in c.execute(_COMPLETED, {"ids": pending})]
        pending = [job.id for job in found if _looked_at(c, now, job, before)]
    return frozenset(job_ids) - set(c.scalars(_STILL_COMPLETED, {"ids": list(job_ids)})) if job_ids else frozenset()


def asking(found: Iterable[Job]) -> list[str]:
    """Ids of those jobs whose rows ask for a fidelity."""
    return [job.id for job in found if terms_of(job.row) is not None]


def _looked_at(c: Connection, now: int, job: Job, before: AskedBefore) -> bool:
    """Whether the job has to be looked at again: another clip was looked up for it."""
    terms, made = terms_of(job.row), tried_clips(job)
    if terms is None or not made:
        return False
    tries = _scored(c, made)
    cancelled = job.id in before.cancelled
    decision = decide(terms, tries, again=may_reroll(job) and not cancelled and not rejected(job))
    if decision.verdict is FidelityVerdict.REROLL:
        found = _make_again(c, now, job, ReviewChange())
        if not found and (verb := _HOLDS.get(before.held.get(job.id))):
            _move(c, now, job.id, verb)
        return found
    own = job.spec.seed if job.spec else 0
    if decision.best.seed != own and not _make_again(c, now, job, ReviewChange(seed=decision.best.seed)):
        return False
    if decision.verdict is FidelityVerdict.SHORT:
        _hold(c, now, job, terms, tries, decision.best)
        if cancelled:
            _move(c, now, job.id, Verb.CANCEL)
    return False


def _scored(c: Connection, made: tuple[tuple[int, str | None], ...]) -> list[FidelityTry]:
    ids = [clip_id for _, clip_id in made if clip_id is not None]
    query = sa.select(clips.c.id, clips.c.objects).where(clips.c.id.in_(ids), clips.c.expired_at.is_(None))
    scores = {row.id: score_from(row.objects.get("fidelity")) for row in c.execute(query)}
    # A clip that is gone cannot be taken: of it there is nothing to say.
    return [FidelityTry(seed=seed, score=scores.get(clip_id) if clip_id else None) for seed, clip_id in made]


def _make_again(c: Connection, now: int, job: Job, change: ReviewChange) -> bool:
    """Have the job make, or take, the clip of another seed; whether it has that clip already."""
    renewal = renewed(without_story(job), Verb.REROLL, change)
    assert renewal is not None
    this = jobs.c.id == job.id
    c.execute(
        sa.update(jobs)
        .where(this)
        .values(
            spec=renewal.spec.model_dump(mode="json"),
            content_key=renewal.content_key,
            needs_bytes=renewal.needs_bytes,
            row=dict(renewal.row),
            review=review_value(renewal.rounds, with_step(job, AGAIN, now)),
            checkpoint_key=None,
            checkpoint_step=None,
        )
    )
    _move(c, now, job.id, Happening.MADE_AGAIN)
    watch_again(c, [job.batch_id])
    return c.scalar(sa.select(jobs.c.state).where(this)) == JobState.COMPLETED.value


def _hold(c: Connection, now: int, job: Job, terms: FidelityTerms, tries: list[FidelityTry], best: FidelityTry) -> None:
    if not rejected(job):
        # Another clip waits than the one that was told of, if any was. One that was rejected has its story.
        row = with_note(job.row, short_note(terms, tries, best))
        c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(row=row))
        watch_drafts(c, [job.batch_id])
    _move(c, now, job.id, Happening.FELL_SHORT)


def _move(c: Connection, now: int, job_id: str, event: Event) -> None:
    c.execute(sa.update(jobs).where(jobs.c.id == job_id, moves(event)).values(values_of(event, now)))
