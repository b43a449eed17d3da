"""Every job that may be, and what of it must be so when an event happens: for tests of the table and of stores."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from cluster.jobs.model import HoldReason, JobState, Pick, Reason
from cluster.jobs.transitions import Before, Event, Happening, JobFacts, Verb

EVENTS: tuple[Event, ...] = (*Verb, *Happening)
REASONS: dict[JobState, list[str]] = {
    JobState.HELD: ["approval", "paused", "after", "review"],
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
            found += [one for one in (facts, *in_review(facts)) if one.legal]
    return found


def in_review(facts: JobFacts) -> list[JobFacts]:
    """The job as a draft, and as one of several clips of its row: of jobs that are little else besides."""
    if facts.before not in (Before.NONE, Before.COMING) or facts.batch_held or not facts.renderable:
        return []
    if facts.state is JobState.FAILED and facts.reason != Reason.ERROR:
        return []
    found = [replace(facts, draft=True)]
    if facts.before is Before.NONE and facts.hold_requested is None:
        found += [
            replace(facts, draft=draft, has_others=True, pick=pick, other_picked=other)
            for draft, pick, other in product((False, True), Pick, (False, True))
        ]
    return found


JOBS = every_job()


def told(facts: JobFacts, event: Event) -> JobFacts:
    """The job at the moment of the event."""
    if event is Happening.PASSED_OVER:
        return replace(facts, has_others=True, other_picked=True, pick=Pick.OPEN)
    return replace(facts, before=TOLD[event]) if event in TOLD else facts
