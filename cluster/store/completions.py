"""Attempts that end, several at once: each is fenced, its job moves and its clip is published, in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.fidelity import terms_of
from cluster.jobs.ids import new_ids
from cluster.jobs.model import Claim, HoldReason, Job, JobState
from cluster.jobs.outcomes import Completed, Ended, Lost, OutOfMemory, Stopped, TooBig, Transition
from cluster.jobs.transitions import RULES, Happening, JobFacts, ended_by, obey
from cluster.store import measurements
from cluster.store.access.quotas import add_use
from cluster.store.bulk import among, for_each, is_one_of, unindexed
from cluster.store.claims import contents_of
from cluster.store.counters import Counts
from cluster.store.database import Database
from cluster.store.dependencies import follow
from cluster.store.fidelity.holding import AskedBefore, asking, hold_to_fidelity
from cluster.store.measurements import AnyMeasurements
from cluster.store.rows import objects_value
from cluster.store.schema import attempts, clips, jobs
from cluster.store.transitions import moves, values_of

#: States out of which a clip of equal content completes a job; the one that runs is the clip's own.
_WAITING = sorted({rule.state.value for rule in RULES[Happening.PUBLISHED]} - {JobState.RUNNING.value})


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The end of one attempt: how it ended, and what becomes of its job if nothing else is asked of it by then."""

    claim: Claim
    ended: Ended
    transition: Transition


def observe(completions: Sequence[Completion]) -> list[list[AnyMeasurements]]:
    """What each attempt says of memory and time, for `end`.

    Operations and bytes of clips are counted for it, so it belongs before the transaction that all writers wait for.
    """
    return [
        measurements.observe(
            one.claim.job.spec, one.claim.kind, one.ended.peaks, one.ended.timed, one.ended.kernel_runs
        )
        for one in completions
    ]


def end(
    database: Database,
    c: Connection,
    now: int,
    completions: Sequence[Completion],
    observed: Sequence[Sequence[AnyMeasurements]],
) -> list[bool]:
    """Write all of them within the caller's transaction. False for an attempt that had ended before.

    `observed` is what `observe` gave of the same completions. What people asked of a job since its transition was
    decided is obeyed all the same. Raises `RuntimeError` where an attempt is live and its job is not running under its
    fence: a broken store.
    """
    live, counting, written = _live(c, completions), [], []
    learned: list[AnyMeasurements] = []
    for one, seen in zip(completions, observed, strict=True):
        # The first end of an attempt counts, also of two that come together.
        row = live.pop(one.claim.attempt_id, None)
        written.append(row is not None)
        if row is not None:
            _check_fence(one.claim, row)
            counting.append((_as_asked(one, row), row))
            learned += seen
    if not counting:
        return written
    ended = [one for one, _ in counting]
    for_each(c, _END, [_attempt_values(one, row, now) for one, row in counting])
    counts = Counts()
    published, shared = _publish(c, ended, now, counts)
    _move(c, ended, published, now)
    own = asking(one.claim.job for one in ended if one.claim.attempt_id in published)
    before = AskedBefore(
        cancelled=frozenset(one.claim.job.id for one, row in counting if row.cancel_requested),
        held=shared | {one.claim.job.id: row.hold_requested for one, row in counting},
    )
    short = hold_to_fidelity(c, now, [*own, *shared], before)
    for one, row in counting:
        job_id = one.claim.job.id
        outcome = "cancelled" if job_id in before.cancelled else "short"
        _tally(one, row, now, counts, instead=outcome if job_id in short else "")
    counts.write(database, c)
    used = [(one.claim.job.owner, row.kind, max(0, now - row.started_at)) for one, row in counting]
    add_use(database, c, now, used)
    measurements.record(database, c, now, learned)
    follow(database, c, now, _awaited(c, [one.claim.job for one in ended if one.transition.state.final], shared))
    return written


_ATTEMPT_COLUMNS = ("outcome", "ended_at", "detail", "measured_bytes", "resumed_step", "resumed_from")

# Made once: to build a statement takes longer than to run it.
_OF_CONTENTS = sa.and_(among(jobs.c.owner, "owners"), among(jobs.c.content_key, "keys"))
_WAITER = jobs.alias("waiting")
_LIVE = (
    sa.select(
        *(attempts.c[name] for name in ("id", "kind", "started_at", "lease_until", "resumed_step", "resumed_from")),
        *(jobs.c[name] for name in ("state", "cancel_requested", "hold_requested", "rounds_left")),
        jobs.c.fence.label("job_fence"),
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(among(attempts.c.id, "ids"), attempts.c.outcome.is_(None))
)
_END = (
    sa.update(attempts)
    .where(attempts.c.id == sa.bindparam("its_id"), attempts.c.outcome.is_(None))
    .values({name: sa.bindparam(f"its_{name}") for name in _ATTEMPT_COLUMNS})
)
_CLIPS_THERE = sa.select(clips.c.id, clips.c.owner, clips.c.content_key, clips.c.expired_at).where(
    among(clips.c.owner, "owners"), among(clips.c.content_key, "keys")
)
_WAITED_FOR = (
    sa.select(jobs.c.owner, jobs.c.content_key)
    .distinct()
    .where(_OF_CONTENTS, is_one_of(unindexed(jobs.c.state), *_WAITING))
)
_AWAITED = sa.select(jobs.c.id).where(
    sa.or_(_OF_CONTENTS, among(jobs.c.id, "ids")),
    sa.exists().where(_WAITER.c.after == jobs.c.id, _WAITER.c.after.is_not(None)),
)


_PUBLISH = sa.insert(clips)
_REVIVE = (
    sa.update(clips)
    .where(clips.c.id == sa.bindparam("its_id"))
    .values(
        attempt_id=sa.bindparam("its_attempt_id"),
        objects=sa.bindparam("its_objects", type_=clips.c.objects.type),
        created_at=sa.bindparam("its_created_at"),
        expired_at=None,
    )
)
_OF_CONTENT = sa.and_(jobs.c.owner == sa.bindparam("its_owner"), jobs.c.content_key == sa.bindparam("its_key"))
_HELD = sa.select(jobs.c.id, jobs.c.reason).where(_OF_CONTENT, unindexed(jobs.c.state) == JobState.HELD.value)
_SHARE = (
    sa.update(jobs)
    .where(
        _OF_CONTENT,
        is_one_of(unindexed(jobs.c.state), *_WAITING),
        moves(Happening.PUBLISHED),
    )
    .values(
        values_of(Happening.PUBLISHED, sa.bindparam("now", type_=sa.BigInteger()))
        | {"clip_id": sa.bindparam("its_clip", type_=sa.String())}
    )
    .returning(jobs.c.id, jobs.c.row)
)


def _live(c: Connection, completions: Sequence[Completion]) -> dict[str, Any]:
    return {row.id: row for row in c.execute(_LIVE, {"ids": [one.claim.attempt_id for one in completions]}).all()}


def _check_fence(claim: Claim, row: Any) -> None:
    if (row.state, row.job_fence) != (JobState.RUNNING.value, claim.fence):
        # The attempt is live, so its job must be running under its fence: anything else is a broken store.
        raise RuntimeError(
            f"job {claim.job.id} is not running under fence {claim.fence} of {claim.attempt_id}; "
            "`clipmill store check` says what is broken"
        )


def _as_asked(one: Completion, row: Any) -> Completion:
    """The completion with the transition that is right for what is asked of the job in this transaction."""
    held = HoldReason(row.hold_requested) if row.hold_requested else None
    facts = JobFacts(
        state=JobState.RUNNING,
        cancel_requested=row.cancel_requested,
        hold_requested=held,
        draft=row.rounds_left > 0,
    )
    return replace(one, transition=obey(facts, one.transition))


def _awaited(c: Connection, those: Sequence[Job], shared: Iterable[str]) -> list[str]:
    """Jobs of these contents that others wait for: one completion may complete them all.

    Those of them that may have another content by now are named by their ids, as `shared`.
    """
    return list(c.scalars(_AWAITED, contents_of(those) | {"ids": [*(job.id for job in those), *shared]}))


def _attempt_values(one: Completion, row: Any, now: int) -> dict[str, Any]:
    # None of the steps were another's where the checkpoint was refused.
    resumed = bool(one.ended.resumed_step)
    return {
        "its_id": row.id,
        "its_outcome": one.ended.outcome.value,
        "its_ended_at": now,
        "its_detail": _storable(one.ended.detail)[:2000],
        "its_measured_bytes": one.ended.measured_bytes,
        "its_resumed_step": row.resumed_step if resumed else 0,
        "its_resumed_from": row.resumed_from if resumed else None,
    }


def _publish(
    c: Connection, completions: Sequence[Completion], now: int, counts: Counts
) -> tuple[dict[str, str], dict[str, str | None]]:
    """(clip ids by attempt, waiting jobs that were completed with them and ask for a fidelity: why each was held).

    Completes every waiting job of equal content, or has its draft reviewed.
    """
    done = [one for one in completions if ended_by(one.transition) is Happening.PUBLISHED]
    if not done:
        return {}, {}
    there = _clips_there(c, done)
    new, revived, published = [], [], {}
    for fresh_id, one in zip(new_ids("clip", len(done)), done, strict=True):
        assert isinstance(one.ended, Completed)
        job = one.claim.job
        known = there.get((job.owner, job.content_key))
        clip_id = published[one.claim.attempt_id] = known.id if known else fresh_id
        values = {
            "attempt_id": one.claim.attempt_id,
            "objects": objects_value(one.ended.objects, one.ended.notes, one.ended.fidelity),
            "created_at": now,
        }
        if known is None:
            new.append({"id": clip_id, "owner": job.owner, "content_key": job.content_key, **values})
        elif known.expired_at is not None:
            # An equal clip was there and has expired: this is it again, for the jobs that had it too.
            revived.append({"its_id": clip_id, **{f"its_{name}": value for name, value in values.items()}})
        # Else equal rows have a clip already, and this one's objects are swept.
    for_each(c, _PUBLISH, new)
    for_each(c, _REVIVE, revived)
    waited_for, sharing = _waited_for(c, done), dict[str, str | None]()
    for one in done if waited_for else ():
        job = one.claim.job
        if (job.owner, job.content_key) not in waited_for:
            continue
        content = {"its_owner": job.owner, "its_key": job.content_key}
        held = {row.id: row.reason for row in c.execute(_HELD, content)}
        clip = {"its_clip": published[one.claim.attempt_id], "now": now}
        shared = c.execute(_SHARE, clip | content).all()
        if shared:
            _count(counts, "clips", one.claim, outcome="shared", by=len(shared))
        sharing |= {row.id: held.get(row.id) for row in shared if terms_of(row.row) is not None}
    return published, sharing


def _clips_there(c: Connection, done: Sequence[Completion]) -> dict[tuple[str, str | None], Any]:
    found = c.execute(_CLIPS_THERE, contents_of([one.claim.job for one in done]))
    return {(row.owner, row.content_key): row for row in found}


def _waited_for(c: Connection, done: Sequence[Completion]) -> set[tuple[str, str | None]]:
    found = c.execute(_WAITED_FOR, contents_of([one.claim.job for one in done]))
    return {(row.owner, row.content_key) for row in found}


def _move(c: Connection, completions: Sequence[Completion], published: dict[str, str], now: int) -> None:
    # One statement for all that change the same columns.
    alike: dict[tuple[Happening, JobState, tuple[str, ...]], list[dict[str, Any]]] = defaultdict(list)
    for one in completions:
        values = _job_values(one, published.get(one.claim.attempt_id))
        bound = {f"new_{name}": value for name, value in values.items()}
        key = ended_by(one.transition), one.transition.state, (_cost(one.transition), *values)
        alike[key].append({"its_id": one.claim.job.id, "its_fence": one.claim.fence, "now": now} | bound)
    for (event, to, (cost, *names)), rows in alike.items():
        for_each(c, _moving(event, to, cost, tuple(names)), rows)


@cache
def _moving(event: Happening, to: JobState, cost: str, names: tuple[str, ...]) -> sa.Update:
    """What the table writes, but for the columns `names`, which are the completion's own."""
    return (
        sa.update(jobs)
        .where(
            jobs.c.id == sa.bindparam("its_id"),
            jobs.c.fence == sa.bindparam("its_fence"),
            jobs.c.state == JobState.RUNNING.value,
        )
        .values(
            values_of(event, sa.bindparam("now", type_=sa.BigInteger()), (JobState.RUNNING, to))
            | {name: sa.bindparam(f"new_{name}", type_=jobs.c[name].type) for name in names}
            | ({cost: jobs.c[cost] + 1} if cost else {})
        )
    )


def _cost(transition: Transition) -> str:
    """The column that counts this attempt."""
    if transition.costs_attempt:
        return "attempts"
    return "releases" if transition.costs_release else ""


def _job_values(one: Completion, clip_id: str | None) -> dict[str, Any]:
    ended, transition = one.ended, one.transition
    values: dict[str, Any] = {
        # The table's too, which `obey` has asked.
        "state": transition.state.value,
        "reason": transition.reason.value if transition.reason else None,
        "clip_id": clip_id,
    }
    if transition.problem:
        values["problems"] = [transition.problem.model_dump()]
    if transition.needs_bytes is not None:
        values["needs_bytes"] = transition.needs_bytes
    if not transition.state.final and not transition.keeps_checkpoint:
        values |= {"checkpoint_key": None, "checkpoint_step": None}
    elif ended.checkpoint:
        values |= {"checkpoint_key": ended.checkpoint.key, "checkpoint_step": ended.checkpoint.step}
    return values


def _tally(one: Completion, row: Any, now: int, counts: Counts, *, instead: str) -> None:
    claim, ended, transition = one.claim, one.ended, one.transition
    _count(counts, "attempts", claim, card_class=claim.card_class, outcome=ended.outcome)
    # Those that it recovered from on its card too; a renderer of before told of the last one only.
    full = [overflow.stage for overflow in ended.overflows]
    for stage in full or ([ended.stage] if isinstance(ended, OutOfMemory) else []):
        _count(counts, "oom", claim, card_class=claim.card_class, outcome=stage)
    admitted = "too_big" if isinstance(ended, TooBig) else "admitted"
    counts.add("admissions", card_class=claim.card_class, outcome=admitted)
    if isinstance(ended, Stopped) and not transition.state.final:
        # A cancelled job is no preemption.
        counts.add("preemptions", outcome=ended.cause or "drain")
    if instead:
        # Its clip was less true than its row asks for.
        _count(counts, "clips", claim, outcome=instead)
    elif transition.state.final:
        _count(counts, "clips", claim, outcome=transition.state)
    elif ended_by(transition) is Happening.PUBLISHED:
        _count(counts, "clips", claim, outcome="draft")
    _count(counts, "gpu_seconds", claim, card_class=claim.card_class, by=max(0, now - row.started_at))
    if isinstance(ended, Lost) and row.lease_until < now:
        counts.add("leases_expired")


def _count(counts: Counts, name: str, claim: Claim, *, card_class: str = "", outcome: str = "", by: float = 1) -> None:
    spec = claim.job.spec
    counts.add(
        name,
        model=spec.family if spec else "",
        resolution_class=spec.resolution_class if spec else "",
        card_class=card_class,
        outcome=outcome,
        by=by,
    )


def _storable(text: str) -> str:
    """`text` without what one store or the other refuses: PostgreSQL takes no NUL, neither takes half a surrogate."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
