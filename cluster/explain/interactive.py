"""What is said of interactive jobs, and of clips that made room for one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.jobs.model import Attempt, Job
from cluster.jobs.outcomes import MADE_ROOM
from cluster.scheduling.interactive import InteractiveTerms
from cluster.scheduling.snapshot import Decision, Preempt, Snapshot


def room_for(job: Job, decisions: Iterable[Decision]) -> Preempt | None:
    """The clip that makes room for `job` at the dispatcher's next look; None where none does."""
    return next((one for one in decisions if isinstance(one, Preempt) and one.waits.id == job.id), None)


def making_room(room: Preempt, terms: InteractiveTerms) -> str:
    """Who makes room, in words; whether the share is used up is known to the dispatcher alone."""
    name = f"{room.job.name} ({room.job.id}) on {room.card}"
    return (
        f"It is interactive: {name} saves a checkpoint after the step that it is in, and makes room for it, while such "
        f"clips have less than {_share(terms)}; else it waits as any other."
    )


def turn_words(job: Job, snapshot: Snapshot, terms: InteractiveTerms) -> str:
    """Whether a waiting job goes before batches, in a sentence; empty for one that is not interactive."""
    if not job.interactive:
        return ""
    if not terms.share:
        return "It is interactive, but this farm lets no clip go before others."
    if job.id in snapshot.admitted:
        return f"It is interactive: it goes before batches while such clips have less than {_share(terms)}."
    return (
        f"It is interactive, but of each owner {terms.per_owner} such clips go before batches at a time: until one of "
        "those before it ends it waits as any other."
    )


def _share(terms: InteractiveTerms) -> str:
    hours = f"{terms.window_s / 3600:g} h" if terms.window_s != 3600 else "an hour"
    return f"{terms.share:.0%} of {hours}"


def room_words(job: Job, attempt: Attempt | None) -> str:
    """What to say of a waiting job whose clip made room for another, in a sentence; empty of others."""
    if attempt is None or not attempt.detail.startswith(MADE_ROOM):
        return ""
    return f"It made room for an interactive clip, and goes on after step {job.step}."
