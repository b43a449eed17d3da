"""What becomes of a finished clip that is less true to its still than its row asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cluster.jobs.model import Job, ReviewStep
from cluster.jobs.transitions import Verb
from pipeline.families import FAMILIES
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note, as_json, notes_from

#: Clips that are made besides the first one, where a row asks for a fidelity and does not say; and at the most.
DEFAULT_REROLLS, MAX_REROLLS = 2, 10
#: What a `ReviewStep` is called by which the farm made another clip, or took one of those there were.
AGAIN = "fidelity"
#: Code of the note of a row none of whose clips is good enough.
SHORT = "fidelity_short"


@dataclass(frozen=True, kw_only=True)
class FidelityTerms:
    """What a row asks for."""

    #: The least score that is taken without a look, 0 to 1.
    least: float
    #: Clips that may be made besides the first one.
    rerolls: int = DEFAULT_REROLLS


@dataclass(frozen=True, kw_only=True)
class FidelityTry:
    """One clip that was made of a row."""

    seed: int
    #: None: not measured, or its clip is gone.
    score: FidelityScore | None


class FidelityVerdict(StrEnum):
    """What follows."""

    ENOUGH = "enough"
    #: Another clip is made, from another seed.
    REROLL = "reroll"
    #: None is good enough, and no more are made: somebody looks at the best one.
    SHORT = "short"


@dataclass(frozen=True, kw_only=True)
class FidelityDecision:
    """What follows for a row, and the best of its clips."""

    verdict: FidelityVerdict
    best: FidelityTry


def terms_of(row: Mapping[str, Any]) -> FidelityTerms | None:
    """What a job's row asks for; None where it asks for nothing, or in a form of another version."""
    least, rerolls = row.get("min_fidelity"), row.get("rerolls", DEFAULT_REROLLS)
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not isinstance(rerolls, int):
        return None
    return FidelityTerms(least=float(least), rerolls=rerolls)


def tried_clips(job: Job) -> tuple[tuple[int, str | None], ...]:
    """(seed, clip id) of the clips made of a completed job since a person last decided of it; its own is the last.

    () where a person has taken this very clip: nothing is held against that.
    """
    if job.spec is None:
        return ()
    earlier = list(job.reviewed)
    automatic: list[ReviewStep] = []
    while earlier and earlier[-1].verb == AGAIN:
        automatic.insert(0, earlier.pop())
    last = earlier[-1] if earlier else None
    if last is not None and last.verb == Verb.APPROVE and last.round == job.round:
        return ()
    found = [(step.seed, step.clip_id) for step in automatic]
    return (*found, (job.spec.seed, job.clip_id))


def rejected(job: Job) -> bool:
    """Whether the last that a person said of this very clip is that it is not wanted.

    Who takes that back wants to decide again, and asks for no other clip.
    """
    last = job.reviewed[-1] if job.reviewed else None
    return last is not None and last.verb == Verb.REJECT and last.clip_id == job.clip_id


def may_reroll(job: Job) -> bool:
    """Whether another seed makes another clip of the job."""
    family = FAMILIES.get(job.spec.family) if job.spec else None
    return family is not None and family.uses_seed


def decide(terms: FidelityTerms, tries: Sequence[FidelityTry], *, again: bool) -> FidelityDecision:
    """What follows from `tries`, of which there is one at least and the last is the newest.

    `again`: whether another seed would make another clip. A clip that nobody could measure is no reason for another.
    """
    last = tries[-1]
    if last.score is not None and last.score.score >= terms.least:
        return FidelityDecision(verdict=FidelityVerdict.ENOUGH, best=last)
    if again and last.score is not None and len(tries) <= terms.rerolls:
        return FidelityDecision(verdict=FidelityVerdict.REROLL, best=last)
    # Of equals the first: nothing was won by the others.
    best = max(tries, key=lambda one: -1.0 if one.score is None else one.score.score)
    enough = best.score is not None and best.score.score >= terms.least
    verdict = FidelityVerdict.ENOUGH if enough else FidelityVerdict.SHORT
    return FidelityDecision(verdict=verdict, best=best)


def short_note(terms: FidelityTerms, tries: Sequence[FidelityTry], best: FidelityTry) -> Note:
    """What a row says whose best clip waits for somebody who looks at it."""
    if best.score is None:
        what = f"fidelity {terms.least:g} is asked for, and the clip could not be measured"
    else:
        told = ", ".join(f"seed {one.seed}: {'-' if one.score is None else f'{one.score.score:.2f}'}" for one in tries)
        made = "1 clip" if len(tries) == 1 else f"{len(tries)} clips"
        what = f"fidelity {terms.least:g} is asked for, and the best of {made} has {best.score.words} ({told})"
    return Note(code=SHORT, message=f"{what}. Approve it, reject it, or make another", field="min_fidelity")


def with_note(row: Mapping[str, Any], note: Note | None) -> dict[str, Any]:
    """A job's row with this note in place of an earlier one of its kind; None: without one."""
    noted = [one for one in notes_from(row.get("noted")) if one.code != SHORT]
    noted += [note] if note else []
    said = {
        "adjusted": [one.message for one in noted if one.adjusted],
        "notes": [one.message for one in noted if not one.adjusted],
        "noted": as_json(noted),
    }
    return {name: value for name, value in row.items() if name not in said} | {k: v for k, v in said.items() if v}


def without_story(job: Job) -> Job:
    """The job without what was said of its earlier clips."""
    return replace(job, row=with_note(job.row, None)) if job.row.get("noted") else job
