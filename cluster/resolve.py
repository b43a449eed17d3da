"""From a row and its still to the final specification of a clip."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.adjust import Findings, fit_aspect, fit_class, fit_frames
from cluster.few_step import FewStep
from cluster.manifest import Row
from cluster.shortcuts import after_draft, check_base, check_step_cache, denoises, few_step, motion_base
from pipeline.clip import NO_PROMPT, ClipSpec, Fit, ResolutionClass, Sampler, Tier, Upscale
from pipeline.families import Family, family_named, size_for
from pipeline.problems import BadInputError, Problem

MAX_PROMPT_CHARACTERS = 2000
MAX_GUIDANCE = 30.0
#: Timesteps that consistency distillation trains, of which the sampler takes some.
MAX_LCM_STEPS = 50
MAX_FPS = 60
#: A still's own aspect ratio (and its inverse) is followed up to here; a wider one has to be asked for.
MAX_OWN_ASPECT = 2.0
#: Share of the steps done on an enlarged clip where nobody says otherwise.
STRENGTH = 0.5

#: Columns that mean something only to a family that denoises.
_OF_DENOISING = (
    *("negative_prompt", "steps", "guidance", "sampler", "window", "window_overlap", "step_cache"),
    *("motion_class", "from_draft", "strength", "upscale"),
)


class RowDefaults(BaseModel):
    """What whoever hands in a batch may say for rows that are silent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution_class: ResolutionClass = ResolutionClass.P512
    tier: Tier = Tier.STANDARD
    fit: Fit = Fit.CONTAIN
    #: One seed for all; None derives each row's from its content.
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    #: See the columns of the same names in `cluster.manifest.Row`.
    sampler: Sampler | None = None
    window: int = Field(default=0, ge=0)
    window_overlap: int | None = Field(default=None, ge=0)
    step_cache: int = Field(default=1, ge=1)
    motion_class: ResolutionClass | None = None
    from_draft: bool = False
    strength: float = Field(default=STRENGTH, gt=0, le=1)
    upscale: Upscale = Upscale.LATENTS
    #: Refuse what a family cannot take instead of adjusting it.
    strict: bool = False
    #: UTC epoch seconds before which rows do not start.
    not_before: int | None = Field(default=None, ge=0, lt=2**40)


class Defaults(RowDefaults):
    """The same with what the farm adds."""

    #: A family's name; whoever offers `auto` decides before.
    model: str
    #: What tier `fast` means, by family.
    few_step: dict[str, FewStep] = Field(default_factory=dict)


class RowProblems(ValueError):  # noqa: N818 - named for what it carries
    """A row that its family cannot render; `problems` says everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(map(str, problems)))


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A row's clip, and what its writer should know about it."""

    spec: ClipSpec
    #: What the row asks for and does not get, with what it gets instead and why.
    adjusted: tuple[str, ...] = ()
    #: What else: columns without effect, values that follow from others.
    notes: tuple[str, ...] = ()


def resolve(row: Row, still_size: tuple[int, int], defaults: Defaults, still_sha256: str) -> Resolved:
    """The final specification of `row`'s clip.

    `still_size` is (width, height) in pixels of the upright still, both positive; `still_sha256` names its content.
    A frame count, window, class or aspect that the family cannot take is adjusted to the nearest it can, with a
    note, or refused when `defaults.strict`. What the family does not use (seed, steps, guidance of a family that does
    not denoise) is set to a constant, so that rows which would give the same pixels share one clip.

    Raises `RowProblems` with everything that is wrong.
    """
    try:
        family = family_named(row.model or defaults.model)
    except BadInputError as error:
        raise RowProblems([error.problem]) from None
    found = Findings(strict=defaults.strict)

    def said(name: str) -> Any:
        own = getattr(row, name)
        return getattr(defaults, name) if own is None else own

    prompt = _prompt(row, family, found)
    resolution_class = fit_class(family, said("resolution_class"), found)
    aspect = min(max(still_size[0] / still_size[1], 1 / MAX_OWN_ASPECT), MAX_OWN_ASPECT)
    if row.aspect is not None:
        aspect = fit_aspect(row.aspect, found)

    tier: Tier = said("tier")
    settings = family.tiers[Tier.DRAFT if tier is Tier.FAST else tier]
    few = few_step(family, tier, defaults.few_step, found)
    frames, window, overlap = fit_frames(
        family,
        settings.frames if row.frames is None else row.frames,
        said("window") if denoises(family) else 0,
        said("window_overlap"),
        found,
    )
    fps = settings.fps if row.fps is None else row.fps
    found.check(1 <= fps <= MAX_FPS, "fps", f"{fps} frames per second", f"Choose 1 to {MAX_FPS}.")
    denoising: dict[str, Any] = {"steps": 1, "guidance": 1.0}
    if denoises(family):
        denoising = _denoising(row, defaults, family, settings.steps, few, found)
        denoising |= {"window": window, "window_overlap": overlap, "step_cache": said("step_cache")}
        check_step_cache(family, said("step_cache"), window, found)
        check_base(family, resolution_class, said, found)
    elif unused := [name for name in _OF_DENOISING if getattr(row, name) is not None]:
        found.notes.append(f"{family.name} does not denoise: {', '.join(unused)} unused")
    if found.problems:
        raise RowProblems(found.problems)
    width, height = size_for(resolution_class, aspect, family.stride, family.native_sizes)
    spec = ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt=prompt,
        resolution_class=resolution_class,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=_seed(row, defaults, still_sha256, prompt) if family.uses_seed else 0,
        fit=said("fit"),
        **denoising,
    )
    if denoises(family):
        start = {"strength": said("strength"), "upscale": said("upscale")}
        if said("motion_class"):
            spec = spec.model_copy(
                update=start | {"base": motion_base(family, spec, said("motion_class"), aspect, found)}
            )
        elif said("from_draft") and tier is not Tier.DRAFT:
            own = row.model_copy(update={"tier": Tier.DRAFT})
            draft = resolve(own, still_size, defaults, still_sha256).spec
            spec = after_draft(spec.model_copy(update=start), draft, row.fps, found)
        elif unused := [name for name in start if getattr(row, name) is not None]:
            found.notes.append(f"{', '.join(unused)} unused: the clip starts from noise")
    if found.problems:
        raise RowProblems(found.problems)
    return Resolved(spec=spec, adjusted=tuple(found.adjusted), notes=tuple(found.notes))


def _prompt(row: Row, family: Family, found: Findings) -> str:
    prompt = (row.prompt or "").strip()
    for field, text in (("prompt", prompt), ("negative_prompt", (row.negative_prompt or "").strip())):
        message = f"the text has {len(text)} characters, more than {MAX_PROMPT_CHARACTERS}"
        found.check(len(text) <= MAX_PROMPT_CHARACTERS, field, message, "Shorten it.")
    if family.uses_prompt:
        found.check(bool(prompt), "prompt", "the prompt is empty", "Say what moves.")
        return prompt
    if prompt:
        found.notes.append(f"{family.name} does not read prompts")
    return NO_PROMPT


def _denoising(
    row: Row, defaults: Defaults, family: Family, tier_steps: int, few: FewStep | None, found: Findings
) -> dict[str, Any]:
    steps = row.steps if row.steps is not None else few.steps if few else tier_steps
    most = family.max_steps
    found.check(1 <= steps <= most, "steps", f"{family.name} does not take {steps} steps", f"Choose 1 to {most}.")
    guidance = row.guidance if row.guidance is not None else few.guidance if few else family.guidance
    found.check(
        1 <= guidance <= MAX_GUIDANCE, "guidance", f"{guidance:g} is out of range", f"Choose 1 to {MAX_GUIDANCE:g}."
    )
    # Whoever names the tier names its sampler with it: what is said nearer to the row goes first.
    named = (row.sampler, few.sampler if few and row.tier else None, defaults.sampler, few.sampler if few else None)
    sampler: Sampler | None = next(filter(None, [*named, *family.samplers]), None)
    found.check(
        sampler is None or sampler in family.samplers,
        "sampler",
        f"{family.name} cannot be sampled with {sampler}",
        f"Choose one of: {', '.join(family.samplers)}." if family.samplers else "Leave it empty.",
    )
    found.check(
        sampler is not Sampler.LCM or steps <= MAX_LCM_STEPS,
        "steps",
        f"the sampler lcm has {MAX_LCM_STEPS} steps to choose from, not {steps}",
        "Choose 4 to 8 for distilled weights, or another sampler.",
    )
    negative_prompt = (row.negative_prompt or "").strip() if family.uses_prompt else ""
    if negative_prompt and guidance == 1:
        # Without guidance that half is never evaluated.
        found.notes.append("negative_prompt unused: guidance is 1")
        negative_prompt = ""
    return {
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "negative_prompt": negative_prompt,
        "adapter": few.lora if few else None,
    }


def _seed(row: Row, defaults: Defaults, still_sha256: str, prompt: str) -> int:
    """The row's seed, else the batch's, else one from the content: never from the id, so equal rows share a clip."""
    base = defaults.seed if row.seed is None else row.seed
    if base is None:
        content = json.dumps([still_sha256, prompt]).encode()
        # 32 bits: a person can copy it, and JavaScript can hold it.
        base = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
    return (base + row.candidate) % 2**63
