"""What to do after an attempt ended: try again, on a larger card, or fail the job with the whole story. Pure.

A clip that runs out of memory goes down a ladder of two halves. On the card, its renderer tries leaner layouts
(`serve/renderer/fallback.py`); when none is left, the attempt ends, and here the job gets a larger card, or fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.fleet.cards import Fleet
from cluster.jobs.model import MAX_ATTEMPTS, MAX_RELEASES, Job, JobState, Reason
from cluster.jobs.outcomes import (
    Completed,
    Crashed,
    Ended,
    Errored,
    Invalid,
    OutOfMemory,
    Overflow,
    ShortOfMemory,
    StoodBeside,
    Stopped,
    Transition,
)
from cluster.jobs.transitions import Happening, ended_by, obey
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.problems import Problem
from pipeline.units import format_bytes

#: Cause of `Stopped` where a clip made room for an interactive one.
INTERACTIVE = "interactive"
#: Causes of `Stopped` that say nothing against the job or its cards: people asked for it, or wait for another.
_ASKED = frozenset({"pause", "hold", INTERACTIVE})
#: Cause of `Stopped` where nothing can be written to storage: nobody's fault, and nothing starts until it can.
STORAGE = "storage"


def after_attempt(
    job: Job, ended: Ended, fleet: Fleet, before: Sequence[Overflow] = (), deaths: Sequence[str] = ()
) -> Transition:
    """The job's next state after `ended`, given what cards the farm can have.

    A clip that ran out of memory in every layout of its card gets a larger card; where there is none it fails, and the
    problem tells all that was tried, `before` being what its earlier attempts tried. `deaths`: what is known of earlier
    renderers that died of it, in words, the oldest first.

    Always ends: crashes and errors are counted against `MAX_ATTEMPTS`, everything else against `MAX_RELEASES`;
    a clip that stood beside the death of another's renderer pays nothing, for each such death is counted elsewhere.
    Memory outcomes raise `needs_bytes` strictly besides, so most of them end at the largest card.
    """
    transition = obey(job, _after(job, ended, fleet, (*before, *ended.overflows), deaths))
    # A checkpoint may be what kills its renderers: whoever went on from one and failed is followed by a fresh start.
    cleared = isinstance(ended, Errored) and ended.denoised
    suspect = ended.resumed_step > 0 and isinstance(ended, Errored | Crashed) and not cleared
    over = transition.state.final or ended_by(transition) is Happening.PUBLISHED
    return replace(transition, keeps_checkpoint=not over and not suspect)


def _after(job: Job, ended: Ended, fleet: Fleet, tried: Sequence[Overflow], deaths: Sequence[str]) -> Transition:
    match ended:
        case Completed():
            return Transition(state=JobState.COMPLETED, costs_attempt=True)
        case Invalid():
            problem = ended.problem or Problem(field="row", message=ended.detail, remedy="Correct the row.")
            return Transition(state=JobState.FAILED, reason=Reason.INVALID, problem=problem, costs_attempt=True)
        case ShortOfMemory():
            return _after_memory(job, ended, fleet, tried)
        case Errored():
            return _after_error(job, ended)
        case Crashed():
            return _after_death(job, (*deaths, ended.detail or "no message"))
        case StoodBeside():
            return Transition(state=JobState.QUEUED, costs_release=False)
        case _:
            return _after_loss(job, ended)


def _after_memory(job: Job, ended: ShortOfMemory, fleet: Fleet, tried: Sequence[Overflow]) -> Transition:
    more = job.releases + 1 < MAX_RELEASES
    if ended.foreign_bytes and ended.usable_bytes < ended.predicted_bytes <= ended.usable_bytes + ended.foreign_bytes:
        # The card is large enough, but for other programs on it; no card with as little free as it had gets this job.
        needed = max(job.needs_bytes, ended.predicted_bytes)
        if more and fleet.smallest_class_for(needed):
            return Transition(state=JobState.QUEUED, needs_bytes=needed)
    # One byte more than what was not enough. That alone ends only after as many attempts as there are bytes where a
    # card's usable memory shrank below what was asked for (another process took it), so releases are counted too.
    floor = max(job.needs_bytes + 1, ended.usable_bytes + 1, ended.predicted_bytes)
    if more and fleet.smallest_class_for(floor):
        return Transition(state=JobState.QUEUED, needs_bytes=floor)
    if ended.sticky and job.attempts + 1 < MAX_ATTEMPTS:
        # Its process kept memory that it should have released: in a fresh one leaner layouts are still to be tried.
        return Transition(state=JobState.QUEUED, costs_attempt=True)
    assert job.spec is not None
    oom = isinstance(ended, OutOfMemory)
    message = ended.detail or f"no card of this farm can hold it ({format_bytes(floor)} needed)"
    return Transition(
        state=JobState.FAILED,
        reason=Reason.OUT_OF_MEMORY if oom else Reason.NO_CARD_FITS,
        problem=Problem(
            field="resolution_class",
            message=f"{message}; tried: {story(tried)}" if tried else message,
            remedy=_smaller(job.spec),
        ),
        costs_attempt=oom,
        needs_bytes=floor,
    )


def story(overflows: Sequence[Overflow]) -> str:
    """Where a clip ran out of memory, in words, oldest first; equal failures are told once, with their number."""
    counted: dict[str, int] = {}
    for o in overflows:
        text = (
            f"{o.stage} at step {o.step} on {o.card} with {o.layout} (predicted {format_bytes(o.predicted_bytes)}, "
            f"measured {format_bytes(o.measured_bytes)}, usable {format_bytes(o.usable_bytes)})"
        )
        counted[text] = counted.get(text, 0) + 1
    return "; ".join(text if count == 1 else f"{text}, {count} times" for text, count in counted.items())


def _after_error(job: Job, ended: Errored) -> Transition:
    if ended.storage and job.releases + 1 < MAX_RELEASES:
        # Of this renderer or this object only, for the dispatcher can write: others may be luckier.
        return Transition(state=JobState.QUEUED)
    if not ended.storage and job.attempts + 1 < MAX_ATTEMPTS:
        return Transition(state=JobState.QUEUED, costs_attempt=True)
    return Transition(
        state=JobState.FAILED,
        reason=Reason.ERROR,
        problem=ended.problem
        or Problem(
            field="row",
            message=f"rendering failed {MAX_ATTEMPTS} times: {ended.detail or 'no message'}",
            remedy="Look at the renderer's log; if other rows render, the still or its parameters are at fault.",
        ),
        costs_attempt=True,
    )


def _after_death(job: Job, deaths: Sequence[str]) -> Transition:
    if job.attempts + 1 < MAX_ATTEMPTS:
        return Transition(state=JobState.QUEUED, costs_attempt=True)
    times = f"{len(deaths)} times" if len(deaths) > 1 else "once more"
    return Transition(
        state=JobState.FAILED,
        reason=Reason.CRASHED,
        problem=Problem(
            field="row",
            message=f"the renderer died {times} of this row: {'; '.join(deaths)}",
            remedy="Look at their logs; if other rows render, the still or its parameters are at fault.",
        ),
        costs_attempt=True,
    )


def _after_loss(job: Job, ended: Ended) -> Transition:
    if isinstance(ended, Stopped) and ended.cause in _ASKED | {STORAGE}:
        # People may pause a job as often as they like, and a disk be full for as long as it takes.
        return Transition(state=JobState.QUEUED, costs_release=False)
    if job.releases + 1 < MAX_RELEASES:
        return Transition(state=JobState.QUEUED)
    return Transition(
        state=JobState.FAILED,
        reason=Reason.LOST_TOO_OFTEN,
        problem=Problem(
            field="row",
            message=f"its card was lost or taken away {MAX_RELEASES} times",
            remedy="Run it on cards that stay, then submit the row again.",
        ),
    )


def no_card_fits(spec: ClipSpec, needs_bytes: int, fleet: Fleet) -> Problem:
    """The problem of a row that fits no card of the fleet, in numbers."""
    return Problem(
        field="resolution_class",
        message=(
            f"no card of this farm can hold {spec.family} at {spec.width}×{spec.height} × {spec.frames} frames: "
            f"it needs {format_bytes(needs_bytes)}, the largest card has {format_bytes(fleet.largest_bytes)} usable"
        ),
        remedy=_smaller(spec),
    )


def _smaller(spec: ClipSpec) -> str:
    smallest = spec.resolution_class is min(ResolutionClass, key=lambda c: c.side)
    smaller = "" if smallest else f"a class below {spec.resolution_class} or "
    return (
        f"Choose {smaller}fewer than {spec.frames} frames, or add a card "
        "with more memory; `--model camera` needs no card at all."
    )
