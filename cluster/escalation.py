"""What to do after an attempt ended: try again, on a larger card, or give up with the whole story. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.cards import GIB, Fleet
from cluster.jobs import MAX_ATTEMPTS, MAX_RELEASES, Ended, Job, JobState, Outcome, Overflow, Reason, Transition
from cluster.verbs import obey
from pipeline.clip import ClipSpec, ResolutionClass
from pipeline.problems import Problem

#: Causes of `STOPPED` that say nothing against the job or its cards.
ASKED = frozenset({"pause", "hold"})


def after_attempt(job: Job, ended: Ended, fleet: Fleet, before: Sequence[Overflow] = ()) -> Transition:
    """The job's next state after `ended`, given what cards the farm can have.

    A clip that ran out of memory in every layout of its card gets a larger card; where there is none it fails, and the
    problem tells all that was tried, `before` being what its earlier attempts tried.

    Always ends: crashes and errors are counted against `MAX_ATTEMPTS`, everything else against `MAX_RELEASES`.
    Memory outcomes raise `needs_bytes` strictly besides, so most of them end at the largest card.
    """
    transition = obey(job, _after(job, ended, fleet, (*before, *ended.overflows)))
    # A checkpoint may be what kills its renderers: whoever went on from one and failed is followed by a fresh start.
    suspect = ended.resumed_step > 0 and ended.outcome in (Outcome.ERROR, Outcome.CRASHED)
    return replace(transition, keeps_checkpoint=not transition.state.final and not suspect)


def _after(job: Job, ended: Ended, fleet: Fleet, tried: Sequence[Overflow]) -> Transition:
    if ended.outcome is Outcome.COMPLETED:
        return Transition(state=JobState.COMPLETED, costs_attempt=True)
    match ended.outcome:
        case Outcome.INVALID:
            problem = ended.problem or Problem(field="row", message=ended.detail, remedy="Correct the row.")
            return Transition(state=JobState.FAILED, reason=Reason.INVALID, problem=problem, costs_attempt=True)
        case Outcome.OOM | Outcome.TOO_BIG:
            return _after_memory(job, ended, fleet, tried)
        case Outcome.ERROR | Outcome.CRASHED:
            return _after_fault(job, ended)
        case _:
            return _after_loss(job, ended)


def _after_memory(job: Job, ended: Ended, fleet: Fleet, tried: Sequence[Overflow]) -> Transition:
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
    oom = ended.outcome is Outcome.OOM
    message = ended.detail or f"no card of this farm can hold it ({_mib(floor)} needed)"
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
    """Where a clip ran out of memory, in words, oldest first; the same failure again is told once."""
    told: dict[str, int] = {}
    for o in overflows:
        text = (
            f"{o.stage} at step {o.step} on {o.card} with {o.layout} (predicted {_mib(o.predicted_bytes)}, "
            f"measured {_mib(o.measured_bytes)}, usable {_mib(o.usable_bytes)})"
        )
        told[text] = told.get(text, 0) + 1
    return "; ".join(text if count == 1 else f"{text}, {count} times" for text, count in told.items())


def _after_fault(job: Job, ended: Ended) -> Transition:
    if job.attempts + 1 < MAX_ATTEMPTS:
        return Transition(state=JobState.QUEUED, costs_attempt=True)
    crashed = ended.outcome is Outcome.CRASHED
    what = "the renderer died" if crashed else "rendering failed"
    return Transition(
        state=JobState.FAILED,
        reason=Reason.CRASHED if crashed else Reason.ERROR,
        problem=ended.problem
        or Problem(
            field="row",
            message=f"{what} {MAX_ATTEMPTS} times: {ended.detail or 'no message'}",
            remedy="Look at the renderer's log; if other rows render, the still or its parameters are at fault.",
        ),
        costs_attempt=True,
    )


def _after_loss(job: Job, ended: Ended) -> Transition:
    if ended.cause in ASKED:
        # People may pause a job as often as they like.
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
    """The problem of a row that no card of the fleet could hold, in numbers."""
    return Problem(
        field="resolution_class",
        message=(
            f"no card of this farm can hold {spec.family} at {spec.width}×{spec.height} × {spec.frames} frames: "
            f"it needs {_mib(needs_bytes)}, the largest card has {_mib(fleet.largest_bytes)} usable"
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


def _mib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
