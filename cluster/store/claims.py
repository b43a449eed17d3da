"""Attempts that begin, several at once: the jobs are moved, and what each goes on from is found."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.fleet.cards import Card
from cluster.jobs.ids import new_ids
from cluster.jobs.model import Claim, Job, JobState, StoredCheckpoint, Stretch
from cluster.jobs.transitions import Happening
from cluster.store.bulk import among, for_each, is_one_of, unindexed
from cluster.store.checkpoints import RECORD_CHECKPOINT
from cluster.store.rows import JOBS_BY_ID, job_from, may_start
from cluster.store.schema import attempts, batches, jobs
from cluster.store.transitions import values_of
from pipeline.families import is_resumable

log = logging.getLogger("clipmill.store")


def begin(c: Connection, now: int, epoch: int, starts: Sequence[tuple[Job, Card]], lease_s: int) -> list[Claim]:
    """Claim jobs for cards within the caller's transaction; those that may not start any more are left out."""
    moved = _move(c, now, [job for job, _ in starts])
    # A job named twice has started on the first card.
    chosen = [(job, card, row) for job, card in starts if (row := moved.pop(job.id, None)) is not None]
    resumes = _resumes(c, [(job, row) for job, _, row in chosen])
    done = _stretches(c, resumes.values())
    claims = []
    for attempt_id, (job, card, row) in zip(new_ids("attempt", len(chosen)), chosen, strict=True):
        resume = resumes.get(job.id)
        claims.append(
            Claim(
                attempt_id=attempt_id,
                job=job,
                fence=row.fence,
                renderer=card.renderer,
                card=card.card,
                card_class=card.card_class,
                kind=card.kind,
                resumed_step=resume.step if resume else 0,
                resume=resume,
                done=done.get(resume, ()) if resume else (),
            )
        )
    for_each(c, _INSERT, [_values(claim, now, epoch, lease_s) for claim in claims])
    return claims


def claims_of(c: Connection, rows: Sequence[Any]) -> list[Claim]:
    """The claims of rows of `attempts`.

    One whose job cannot be read is left out and logged, so that it holds up no other: `clipmill store check` finds it.
    """
    found: dict[str, Job] = {}
    if rows:
        for row in c.execute(JOBS_BY_ID, {"ids": [row.job_id for row in rows]}):
            if (job := readable(row)) is not None:
                found[job.id] = job
    return [
        Claim(
            attempt_id=row.id,
            job=found[row.job_id],
            fence=row.fence,
            renderer=row.renderer,
            card=row.card,
            card_class=row.card_class,
            resumed_step=row.resumed_step,
        )
        for row in rows
        if row.job_id in found
    ]


def readable(row: Any) -> Job | None:
    """The job of a row of `select_jobs`, or None where it cannot be read."""
    try:
        return job_from(row)
    except (ValueError, TypeError) as error:
        log.error("job %s cannot be read and is passed over, see `clipmill store check`: %s", row.id, error)
        return None


# Made once: to build a statement takes longer than to run it.
_RUNS = jobs.alias("runs")
# Looked up one by one and by no index of states, and not as EXISTS, of which PostgreSQL would make a join: it would go
# through all that runs for each of the jobs, or where it has no statistics yet, through all there is.
_EQUAL_RUNS = (
    sa.select(sa.literal_column("1"))
    .where(
        _RUNS.c.owner == jobs.c.owner,
        _RUNS.c.content_key == jobs.c.content_key,
        unindexed(_RUNS.c.state) == JobState.RUNNING.value,
    )
    .limit(1)
    .scalar_subquery()
)
_FREE = (
    sa.select(jobs.c.id, jobs.c.owner, jobs.c.content_key)
    .join(batches, batches.c.id == jobs.c.batch_id)
    .where(
        among(jobs.c.id, "ids"),
        unindexed(jobs.c.state) == JobState.QUEUED.value,
        may_start(sa.bindparam("now", type_=sa.BigInteger())),
        _EQUAL_RUNS.is_(None),
    )
)
_START = (
    sa.update(jobs)
    .where(among(jobs.c.id, "ids"), unindexed(jobs.c.state) == JobState.QUEUED.value)
    .values(values_of(Happening.STARTED, sa.bindparam("now", type_=sa.BigInteger())) | {"fence": jobs.c.fence + 1})
    .returning(jobs.c.id, jobs.c.fence, jobs.c.family, jobs.c.checkpoint_key, jobs.c.checkpoint_step)
)


_INSERT = sa.insert(attempts)
_LEFT_BY_OTHERS = (
    sa.select(jobs.c.owner, jobs.c.content_key, jobs.c.checkpoint_key, jobs.c.checkpoint_step)
    .where(
        among(jobs.c.owner, "owners"),
        among(jobs.c.content_key, "keys"),
        # A failed job's checkpoint may be what it failed of.
        is_one_of(jobs.c.state, JobState.QUEUED, JobState.HELD, JobState.CANCELLED),
        jobs.c.checkpoint_key.is_not(None),
    )
    # The newest last: of several it is the one that is kept.
    .order_by(jobs.c.checkpoint_step, jobs.c.checkpoint_key)
)
_ATTEMPTS_OF = sa.select(
    *(attempts.c[name] for name in ("id", "job_id", "card", "card_class", "resumed_from", "resumed_step"))
).where(among(attempts.c.job_id, "ids"))


def _move(c: Connection, now: int, wanted: Sequence[Job]) -> dict[str, Any]:
    """Move to running what may start, the first of equal jobs only; rows by job id."""
    # Writers come one after the other: what is read here stays true until this commits.
    found = c.execute(_FREE, {"ids": [job.id for job in wanted], "now": now}).all()
    free = {job_id: (owner, content_key) for job_id, owner, content_key in found}
    taken: set[tuple[str, str]] = set()
    chosen: list[str] = []
    for job in wanted:
        content = free.pop(job.id, None)
        if content is None or content in taken:
            continue
        if content[1] is not None:
            taken.add(content)
        chosen.append(job.id)
    return {row.id: row for row in c.execute(_START, {"ids": chosen, "now": now}).all()} if chosen else {}


def _resumes(c: Connection, chosen: Sequence[tuple[Job, Any]]) -> dict[str, StoredCheckpoint]:
    """What each job goes on from, by job id; one that begins anew is not among them."""
    resumable = [(job, row) for job, row in chosen if is_resumable(row.family)]
    found = {
        job.id: StoredCheckpoint(row.checkpoint_key, row.checkpoint_step)
        for job, row in resumable
        if row.checkpoint_key
    }
    fresh = [job for job, row in resumable if not row.checkpoint_key and row.fence == 1]
    left = _left_by_others(c, fresh)
    inherited = {job.id: left[job.owner, job.content_key] for job in fresh if (job.owner, job.content_key) in left}
    if inherited:
        # Their own from here on.
        c.execute(
            RECORD_CHECKPOINT,
            [{"its_id": job_id, "its_key": kept.key, "its_step": kept.step} for job_id, kept in inherited.items()],
        )
    return found | inherited


def contents_of(those: Sequence[Job]) -> dict[str, Any]:
    """Owners and content keys of jobs, for statements that are asked by both: `owners`, `keys`."""
    # A key of another owner's among them finds nothing that is not looked up by the pair.
    return {
        "owners": list({job.owner for job in those}),
        "keys": list({job.content_key for job in those if job.content_key is not None}),
    }


def _left_by_others(c: Connection, fresh: Sequence[Job]) -> dict[tuple[str, str | None], StoredCheckpoint]:
    """The newest checkpoints of equal clips that earlier jobs left half way."""
    if not (contents := contents_of(fresh))["keys"]:
        return {}
    return {
        (row.owner, row.content_key): StoredCheckpoint(row.checkpoint_key, row.checkpoint_step)
        for row in c.execute(_LEFT_BY_OTHERS, contents)
    }


def _stretches(c: Connection, resumes: Iterable[StoredCheckpoint]) -> dict[StoredCheckpoint, tuple[Stretch, ...]]:
    """Who did the steps up to each checkpoint, oldest first."""
    wanted = list(resumes)
    made: Mapping[str, dict[str, Any]] = defaultdict(dict)
    # By the job that the checkpoint lies under: it may be an earlier one of equal content.
    if wanted:
        for row in c.execute(_ATTEMPTS_OF, {"ids": list({kept.key.split("/")[1] for kept in wanted})}):
            made[row.job_id][row.id] = row
    found = {}
    for kept in wanted:
        _, job_id, by, *_ = (*kept.key.split("/"), "", "")
        rows, chain = dict(made.get(job_id, {})), []
        next_by: str | None = by
        step = kept.step
        while next_by is not None and (row := rows.pop(next_by, None)) is not None:
            chain.append(Stretch(step=step, attempt=next_by, card=row.card, card_class=row.card_class))
            next_by, step = row.resumed_from, row.resumed_step
        found[kept] = tuple(reversed(chain))
    return found


def _values(claim: Claim, now: int, epoch: int, lease_s: int) -> dict[str, Any]:
    job = claim.job
    return {
        "id": claim.attempt_id,
        "owner": job.owner,
        "job_id": job.id,
        "batch_id": job.batch_id,
        "fence": claim.fence,
        "epoch": epoch,
        "renderer": claim.renderer,
        "card": claim.card,
        "card_class": claim.card_class,
        "kind": claim.kind,
        "resolution_class": job.spec.resolution_class.value if job.spec else None,
        "outcome": None,
        "started_at": now,
        "lease_until": now + lease_s,
        "ended_at": None,
        "step": claim.resumed_step,
        "steps": job.spec.total_steps if job.spec else 0,
        "predicted_bytes": job.needs_bytes,
        "measured_bytes": 0,
        "detail": "",
        "resumed_from": claim.done[-1].attempt if claim.done else None,
        "resumed_step": claim.resumed_step,
    }
