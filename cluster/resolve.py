"""From a row and its still to the final specification of a clip."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field

from cluster.manifest import Row
from pipeline.clip import ClipSpec, Fit, ResolutionClass, Tier
from pipeline.families import Family, FrameRule, family_named, parse_aspect, size_for
from pipeline.problems import BadInputError, Problem

MAX_PROMPT_CHARACTERS = 2000
MAX_GUIDANCE = 30.0
MAX_FPS = 60
#: A still's own aspect ratio (and its inverse) is followed up to here; a wider one has to be asked for.
MAX_OWN_ASPECT = 2.0


class Defaults(BaseModel):
    """What a batch says for rows that are silent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: A family's name; whoever offers `auto` decides before.
    model: str
    resolution_class: ResolutionClass = ResolutionClass.P512
    tier: Tier = Tier.STANDARD
    fit: Fit = Fit.CONTAIN
    #: One seed for all; None derives each row's from its content.
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class RowProblems(ValueError):  # noqa: N818 - named for what it carries
    """A row that its family cannot render; `problems` says everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(map(str, problems)))


def resolve(row: Row, still_size: tuple[int, int], defaults: Defaults, still_sha256: str) -> ClipSpec:
    """The final specification of `row`'s clip.

    `still_size` is (width, height) in pixels of the upright still, both positive; `still_sha256` names its content.
    What the family does not use (seed, steps, guidance of a family that does not denoise) is set to a constant,
    so that rows which would give the same pixels share one clip.

    Raises `RowProblems` with everything that is wrong.
    """
    try:
        family = family_named(row.model or defaults.model)
    except BadInputError as error:
        raise RowProblems([error.problem]) from None
    problems: list[Problem] = []

    def check(valid: bool, field: str, message: str, remedy: str) -> None:
        if not valid:
            problems.append(Problem(field=field, message=message, remedy=remedy))

    prompt = (row.prompt or "").strip()
    check(bool(prompt), "prompt", "the prompt is empty", "Say what moves.")
    negative_prompt = (row.negative_prompt or "").strip()
    for field, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        message = f"the text has {len(text)} characters, more than {MAX_PROMPT_CHARACTERS}"
        check(len(text) <= MAX_PROMPT_CHARACTERS, field, message, "Shorten it.")

    resolution_class = row.resolution_class or defaults.resolution_class
    check(
        resolution_class in family.classes,
        "resolution_class",
        f"{family.name} does not render {resolution_class}",
        f"Choose one of: {', '.join(family.classes)}.",
    )
    aspect = min(max(still_size[0] / still_size[1], 1 / MAX_OWN_ASPECT), MAX_OWN_ASPECT)
    if row.aspect is not None:
        try:
            aspect = parse_aspect(row.aspect)
        except BadInputError as error:
            problems.append(error.problem)

    settings = family.tiers[row.tier or defaults.tier]
    frames = settings.frames if row.frames is None else row.frames
    rule = family.frame_rule
    check(
        rule.allows(frames),
        "frames",
        f"{family.name} cannot render {frames} frames: it takes {rule}",
        f"The nearest it can do is {nearest_frames(rule, frames)}.",
    )
    fps = settings.fps if row.fps is None else row.fps
    check(1 <= fps <= MAX_FPS, "fps", f"{fps} frames per second", f"Choose 1 to {MAX_FPS}.")
    steps, guidance = 1, 1.0
    if _denoises(family):
        steps = settings.steps if row.steps is None else row.steps
        check(
            1 <= steps <= family.max_steps,
            "steps",
            f"{family.name} does not take {steps} steps",
            f"Choose 1 to {family.max_steps}.",
        )
        guidance = family.guidance if row.guidance is None else row.guidance
        check(
            1 <= guidance <= MAX_GUIDANCE, "guidance", f"{guidance:g} is out of range", f"Choose 1 to {MAX_GUIDANCE:g}."
        )
    if problems:
        raise RowProblems(problems)
    width, height = size_for(resolution_class, aspect, family.stride)
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt=prompt,
        negative_prompt=negative_prompt if _denoises(family) else "",
        resolution_class=resolution_class,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        steps=steps,
        guidance=guidance,
        seed=_seed(row, defaults, still_sha256, prompt) if family.uses_seed else 0,
        fit=row.fit or defaults.fit,
    )


def nearest_frames(rule: FrameRule, frames: int) -> int:
    """The frame count nearest to `frames` that `rule` allows; the smaller of two as near."""
    least = rule.minimum + (rule.offset - rule.minimum) % rule.multiple
    most = rule.maximum - (rule.maximum - rule.offset) % rule.multiple
    below = frames - (frames - rule.offset) % rule.multiple
    above = below if below == frames else below + rule.multiple
    nearest = below if frames - below <= above - frames else above
    return min(max(nearest, least), most)


def _denoises(family: Family) -> bool:
    return family.max_steps > 1


def _seed(row: Row, defaults: Defaults, still_sha256: str, prompt: str) -> int:
    """The row's seed, else the batch's, else one from the content: never from the id, so equal rows share a clip."""
    base = defaults.seed if row.seed is None else row.seed
    if base is None:
        content = json.dumps([still_sha256, prompt]).encode()
        # 32 bits: a person can copy it, and JavaScript can hold it.
        base = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
    return (base + row.candidate) % 2**63
