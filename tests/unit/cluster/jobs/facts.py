"""Every job that may be, and what of it must be so when an event happens: for tests of the table and of stores."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from cluster.jobs.model import HoldReason, JobState, Reason
from cluster.jobs.transitions import Before, Event, Happening, JobFacts, Verb

EVENTS: tuple[Event, ...] = (*Verb, *Happening)
REASONS: dict[JobState, list[str]] = {
    JobState.HELD: ["approval", "paused", "after"],
    JobState.FAILED: [reason.value for reason in Reason],
}
#: What must be so of the job before when it is said to have done that.
TOLD = {
    Happening.BEFORE_DONE: Before.DONE,
    Happening.BEFORE_LOST: Before.LOST,
    Happening.BEFORE_REVIVED: Before.COMING,
}


def every_job() -> list[JobFacts]:
    """Every combination that a job may be in."""
    found = []
    for state in JobState:
        for reason, cancelling, asked, before, renderable, has_clip, held in product(
            REASONS.get(state, [None]),
            (False, True),
            (None, HoldReason.PAUSED, HoldReason.APPROVAL),
            Before,
            (False, True),
            (False, True),
            (False, True),
        ):
            facts = JobFacts(
                state=state,
                reason=reason,
                cancel_requested=cancelling,
                hold_requested=asked,
                before=before,
                renderable=renderable,
                has_clip=has_clip,
                batch_held=held,
            )
            if facts.legal:
                found.append(facts)
    return found


JOBS = every_job()


def told(facts: JobFacts, event: Event) -> JobFacts:
    """The job at the moment of the event."""
    return replace(facts, before=TOLD[event]) if event in TOLD else facts
