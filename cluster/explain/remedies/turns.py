"""Whose turn it is: priorities of a job and of other batches, and how many clips its owner may have at once. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from cluster.catalog.manifest import MAX_PRIORITY
from cluster.explain.model import Remedy, RemedyKind
from cluster.explain.trial import Trial
from cluster.fleet.quotas import DEFAULT_SHARE
from cluster.jobs.model import Job, stored_priority
from cluster.scheduling.priority import effective_priority

#: Batches that are tried to be lowered, and clips more that are tried for an owner.
_MOST_TRIED = 10


def raise_priority(trial: Trial) -> Remedy | None:
    """Raise the job to the lowest priority at which it starts."""
    job, snapshot = trial.job, trial.snapshot
    bonus = effective_priority(job, trial.now) - job.own_priority
    others = [one for one in snapshot.waiting if one.id != job.id]
    levels = {effective_priority(one, trial.now) for one in (*others, *(r.job for r in snapshot.running))}
    tried = sorted({level - bonus + more for level in levels for more in (0, 1)})
    for priority in tried:
        if not job.own_priority < priority <= MAX_PRIORITY:
            continue
        raised = replace(job, priority=stored_priority(priority, interactive=job.interactive))
        if (card := trial.start(snapshot, raised)) is not None:
            return Remedy(
                kind=RemedyKind.RAISE,
                text=f"raise its priority from {job.own_priority} to {priority}",
                command=f"clipmill prioritize {job.id} {_number(priority)}",
                priority=priority,
                card=card.card,
                card_class=card.card_class,
            )
    return None


def lower_priority(trial: Trial) -> Remedy | None:
    """Lower another batch of the job's owner by as little as lets the job start."""
    job, snapshot = trial.job, trial.snapshot
    mine = effective_priority(job, trial.now)
    batches: dict[str, list[Job]] = defaultdict(list)
    for other in snapshot.waiting:
        # What other owners hand in is not for this one to lower.
        if other.owner == job.owner and other.batch_id != job.batch_id and not other.interactive:
            batches[other.batch_id].append(other)
    for batch, waiting in list(batches.items())[:_MOST_TRIED]:
        if _is_cut(trial, waiting):
            continue
        bonus = max(effective_priority(one, trial.now) - one.priority for one in waiting)
        for priority in (mine - bonus, mine - bonus - 1):
            if priority < -MAX_PRIORITY or all(one.priority <= priority for one in waiting):
                continue
            lowered = [
                replace(one, priority=min(one.priority, priority)) if one.batch_id == batch else one
                for one in snapshot.waiting
            ]
            if (card := trial.start(replace(snapshot, waiting=lowered))) is not None:
                return Remedy(
                    kind=RemedyKind.LOWER,
                    text=f"lower the priority of batch {batch} to {priority}",
                    command=f"clipmill prioritize {batch} {_number(priority)}",
                    batch=batch,
                    priority=priority,
                    card=card.card,
                    card_class=card.card_class,
                )
    return None


def _is_cut(trial: Trial, waiting: Sequence[Job]) -> bool:
    """Whether behind these jobs others may wait that are not seen, and would come up in their place."""
    most = trial.known.per_queue
    if most is None:
        return False
    seen: dict[object, int] = defaultdict(int)
    for job in trial.snapshot.waiting:
        seen[job.queue] += 1
    return any(seen[job.queue] >= most for job in waiting)


def owner_limit(trial: Trial) -> Remedy | None:
    """Let the job's owner have so many clips on cards that it starts."""
    owner, snapshot = trial.job.owner, trial.snapshot
    share = snapshot.owners.get(owner, DEFAULT_SHARE)
    if share.max_running is None:
        return None
    have = sum(running.job.owner == owner for running in snapshot.running)
    least = max(share.max_running, have) + 1
    for more in range(least, least + min(_MOST_TRIED, len(snapshot.waiting))):
        wider = {**snapshot.owners, owner: share.model_copy(update={"max_running": more})}
        if (card := trial.start(replace(snapshot, owners=wider))) is not None:
            return Remedy(
                kind=RemedyKind.LIMIT,
                text=f"let {owner} have {more} clips on cards at once (`owners` in the farm's configuration)",
                number=more,
                card=card.card,
                card_class=card.card_class,
            )
    return None


def _number(priority: int) -> str:
    """A priority as the command line takes it: what begins with a minus would be an option."""
    return str(priority) if priority >= 0 else f"-- {priority}"
