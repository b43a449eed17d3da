"""What somebody who looks at a clip makes of its job: the next round, or the same one again. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.jobs.model import HoldReason, Job, JobState, PlannedRound, ReviewStep
from cluster.jobs.transitions import Verb
from pipeline.clips.clip import MAX_GUIDANCE, MAX_PROMPT_CHARACTERS, ClipSpec, content_key
from pipeline.families import Family, family_named
from pipeline.lint.lint import lint_prompt
from pipeline.memory.footprint import footprint
from pipeline.notes import Note, as_json, distinct, notes_from
from pipeline.problems import BadInputError

#: Decisions that are kept of a job, the newest ones.
MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class ReviewChange:
    """What is to be different in another clip of the same round; None: as before."""

    seed: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is said: then the seed is another."""
        return all(value is None for value in vars(self).values())


@dataclass(frozen=True, kw_only=True)
class NextClip:
    """What a job renders next."""

    spec: ClipSpec
    content_key: str
    #: Peak bytes in the fastest layout.
    needs_bytes: int
    rounds: tuple[PlannedRound, ...]
    rounds_left: int
    #: The manifest's row with what is noted of it now.
    row: Mapping[str, Any]


def in_review(job: Job) -> bool:
    """Whether a draft of the job, or a clip that fell short of what its row asks for, waits for somebody who looks."""
    return job.state is JobState.HELD and job.reason == HoldReason.REVIEW


def fell_short(job: Job) -> bool:
    """Whether a finished clip of the job, which is less true than its row asks for, waits for somebody who looks."""
    return in_review(job) and not job.draft


def renewed(job: Job, verb: Verb, change: ReviewChange) -> NextClip | None:
    """What becomes of the content of `job` by `verb`; None where it stays as it is.

    APPROVE of a draft goes on to the next round, REROLL makes this one again. Raises `BadInputError` for a change
    that the model does not take.
    """
    if job.spec is None or job.still is None:
        return None
    # Nothing is left of rounds, or there were none, where a clip that fell short is taken.
    if verb is Verb.APPROVE and in_review(job) and job.rounds and job.rounds_left:
        following = job.rounds[-job.rounds_left]
        return _next_clip(job, following.spec, job.rounds, job.rounds_left - 1, following.noted, {})
    if verb is not Verb.REROLL:
        return None
    family = family_named(job.spec.family)
    changes = _changes(job, change, family)
    rounds = tuple(_changed_round(one, changes, family) for one in job.rounds)
    spec = _changed(job.spec, changes)
    noted: Sequence[Note] = notes_from(job.row.get("noted"))
    if "prompt" in changes or "negative_prompt" in changes:
        noted = _linted(noted, spec, family)
    told = {name: value for name, value in changes.items() if name in _TEXTS}
    return _next_clip(job, spec, rounds, job.rounds_left, noted, told)


def with_step(job: Job, verb: str, now: int) -> tuple[ReviewStep, ...]:
    """The decisions on `job` with one more, of the clip that it shows; `now` is in UTC epoch seconds."""
    seed = job.spec.seed if job.spec else 0
    step = ReviewStep(verb=verb, round=job.round, clip_id=job.clip_id, seed=seed, at=now)
    return (*job.reviewed, step)[-MAX_STEPS:]


def _next_clip(
    job: Job,
    spec: ClipSpec,
    rounds: tuple[PlannedRound, ...],
    rounds_left: int,
    noted: Sequence[Note],
    told: Mapping[str, Any],
) -> NextClip:
    assert job.still is not None
    said = {
        "adjusted": [note.message for note in noted if note.adjusted],
        "notes": [note.message for note in noted if not note.adjusted],
        "noted": as_json(noted),
    }
    kept = {name: value for name, value in job.row.items() if name not in said}
    return NextClip(
        spec=spec,
        content_key=content_key(job.still, spec),
        needs_bytes=footprint(spec).peak_bytes,
        rounds=rounds,
        rounds_left=rounds_left,
        row=kept | dict(told) | {name: value for name, value in said.items() if value},
    )


def _changes(job: Job, change: ReviewChange, family: Family) -> dict[str, Any]:
    """The fields of a specification that `change` sets, checked."""
    assert job.spec is not None
    given = {name: value for name, value in vars(change).items() if value is not None}
    for name in ("prompt", "negative_prompt"):
        if name in given:
            given[name] = _checked_text(name, given[name], family)
    if "guidance" in given:
        if family.max_steps <= 1:
            raise BadInputError("guidance", f"{family.name} has no guidance", "Leave it out.")
        if not 1 <= given["guidance"] <= MAX_GUIDANCE:
            what = f"{given['guidance']:g} is out of range"
            raise BadInputError("guidance", what, f"Choose 1 to {MAX_GUIDANCE:g}.")
    if "seed" in given and not 0 <= given["seed"] < 2**63:
        raise BadInputError("seed", f"{given['seed']} is no seed", "Give a whole number from 0.")
    if not family.uses_seed and (not given or "seed" in given):
        remedy = "Give another prompt." if family.uses_prompt else "Hand the row in with another setting."
        raise BadInputError("seed", f"{family.name} leaves nothing to chance: it would be the same clip", remedy)
    return given or {"seed": another_seed(job.spec.seed, len(job.reviewed))}


def another_seed(seed: int, tries: int) -> int:
    """The seed that follows `seed` after so many decisions; the same each time it is asked for."""
    # 32 bits, as those that are made of content: a person can copy it.
    return int.from_bytes(hashlib.sha256(f"{seed} {tries}".encode()).digest()[:4], "big")


def _checked_text(name: str, text: str, family: Family) -> str:
    text = text.strip()
    if not family.uses_prompt:
        raise BadInputError(name, f"{family.name} does not read prompts", "Leave it out.")
    if name == "prompt" and not text:
        raise BadInputError(name, "the prompt is empty", "Say what moves.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        what = f"the text has {len(text)} characters, more than {MAX_PROMPT_CHARACTERS}"
        raise BadInputError(name, what, "Shorten it.")
    return text


def _changed(spec: ClipSpec, changes: Mapping[str, Any]) -> ClipSpec:
    base = spec.base
    if base is not None:
        # The clip that it starts from is the one that was looked at.
        same = {name: value for name, value in changes.items() if name in ("seed", "guidance")}
        base = base.model_copy(update=same)
    return spec.model_copy(update={**changes, "base": base})


def _changed_round(planned: PlannedRound, changes: Mapping[str, Any], family: Family) -> PlannedRound:
    spec = _changed(planned.spec, changes)
    texts = "prompt" in changes or "negative_prompt" in changes
    noted = _linted(planned.noted, spec, family) if texts else planned.noted
    return replace(planned, spec=spec, noted=tuple(noted))


def _linted(noted: Sequence[Note], spec: ClipSpec, family: Family) -> tuple[Note, ...]:
    """The notes with those on texts as they are now."""
    others = (note for note in noted if note.field not in _TEXTS)
    return distinct([*others, *lint_prompt(family, spec.prompt, spec.negative_prompt)])


_TEXTS = ("prompt", "negative_prompt")
