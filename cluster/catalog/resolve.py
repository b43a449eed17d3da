"""From a row and its still to the final specification of a clip."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cluster.catalog.acceleration import after_draft, check_base, check_step_cache, denoises, few_step, motion_base
from cluster.catalog.adjust import Findings, fit_aspect, fit_class, fit_frames, fit_seconds
from cluster.catalog.assumed import note_assumed
from cluster.catalog.cells import MAX_FPS
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.manifest import Row
from cluster.catalog.traps import note_traps
from pipeline.clips.clip import MAX_GUIDANCE, MAX_PROMPT_CHARACTERS, NO_PROMPT, ClipSpec, Sampler, Tier
from pipeline.families import Family, family_named, size_for
from pipeline.lint.lint import lint_prompt
from pipeline.notes import Note, distinct
from pipeline.problems import BadInputError, Problem

#: Timesteps that consistency distillation trains, of which the sampler takes some.
MAX_LCM_STEPS = 50
#: A still's own aspect ratio (and its inverse) is followed up to here; a wider one has to be asked for.
MAX_OWN_ASPECT = 2.0


class RowProblems(ValueError):  # noqa: N818 - named for what it carries
    """A row that its family cannot render; `problems` says everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(map(str, problems)))


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A row's clip, and what its writer should know about it."""

    spec: ClipSpec
    #: Each once, in the order in which it was met.
    noted: tuple[Note, ...] = ()

    @property
    def adjusted(self) -> tuple[str, ...]:
        """What the row asks for and does not get, with what it gets instead and why."""
        return tuple(note.message for note in self.noted if note.adjusted)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know besides: columns without effect, values that follow from others, what is judged."""
        return tuple(note.message for note in self.noted if not note.adjusted)


def resolve(
    row: Row, still_size: tuple[int, int], defaults: Defaults, still_sha256: str, *, draft: ClipSpec | None = None
) -> Resolved:
    """The final specification of `row`'s clip.

    `still_size` is (width, height) in pixels of the upright still, both positive; `still_sha256` names its content.
    A frame count, window, class or aspect that the family cannot take is adjusted to the nearest it can, with a
    note, or refused when `defaults.strict`. What the family does not use (seed, steps, guidance of a family that does
    not denoise) is set to a constant, so that rows which would give the same pixels share one clip. `draft`: a clip of
    the same row that it starts from, whatever the row asks for.

    Raises `RowProblems` with everything that is wrong.
    """
    try:
        family = family_named(row.model or defaults.model)
    except BadInputError as error:
        raise RowProblems([error.problem]) from None
    asked, found = _Asked(row, defaults), Findings(strict=defaults.strict)
    spec, aspect = _alone(asked, family, still_size, still_sha256, found)
    if denoises(family):
        if draft is not None:
            spec = _after(asked, family, spec, draft, found)
        else:
            spec = _with_start(asked, family, spec, aspect, still_size, still_sha256, found)
    if found.problems:
        raise RowProblems(found.problems)
    found.notes += lint_prompt(family, spec.prompt, spec.negative_prompt)
    note_assumed(row, defaults, family, spec, still_size, found)
    note_traps(family, spec, found)
    return Resolved(spec=spec, noted=distinct(found.notes))


class _Asked:
    """The columns of a row, and what its batch says for those that it leaves empty."""

    def __init__(self, row: Row, defaults: Defaults) -> None:
        self.row, self.defaults = row, defaults
        self.tier: Tier = self("tier")

    def __call__(self, name: str) -> Any:
        """The value of a column that rows and batches have."""
        own = getattr(self.row, name)
        return getattr(self.defaults, name) if own is None else own


def _alone(
    asked: _Asked, family: Family, still_size: tuple[int, int], still_sha256: str, found: Findings
) -> tuple[ClipSpec, float]:
    """(the clip as it is without another to start from, its aspect as width ÷ height). Raises `RowProblems`."""
    row, defaults = asked.row, asked.defaults
    prompt = _prompt(row, family, found)
    resolution_class = fit_class(family, asked("resolution_class"), found)
    own = still_size[0] / still_size[1]
    aspect = min(max(own, 1 / MAX_OWN_ASPECT), MAX_OWN_ASPECT)
    if row.aspect is None and aspect != own:
        limit = f"{MAX_OWN_ASPECT:g}:1" if own > 1 else f"1:{MAX_OWN_ASPECT:g}"
        message = f"the still of {still_size[0]}×{still_size[1]} pixels is made {limit}: name a wider or taller aspect"
        found.note("aspect_limited", f"{message}, up to 3:1 or 1:3, to follow it")
    if row.aspect is not None:
        aspect = fit_aspect(row.aspect, found)
    settings = family.tiers[Tier.DRAFT if asked.tier is Tier.FAST else asked.tier]
    few = few_step(family, asked.tier, defaults.few_step, found)
    fps = settings.fps if row.fps is None else row.fps
    asked_window = asked("window") if denoises(family) else 0
    windows = (asked_window, asked("window_overlap"))
    if row.seconds is not None and 1 <= fps <= MAX_FPS:
        frames, window, overlap = fit_seconds(family, row.seconds, fps, *windows, found)
    else:
        asked_frames = settings.frames if row.frames is None else row.frames
        frames, window, overlap = fit_frames(family, asked_frames, *windows, found)
    if asked_window and not window and not found.problems:
        found.note("unused", f"window {asked_window} unused: all {frames} frames are denoised at once")
    found.check(1 <= fps <= MAX_FPS, "fps", f"{fps} frames per second", f"Choose 1 to {MAX_FPS}.")
    denoising: dict[str, Any] = {"steps": 1, "guidance": 1.0}
    if denoises(family):
        denoising = _denoising(row, defaults, family, settings.steps, few, found)
        denoising |= {"window": window, "window_overlap": overlap, "step_cache": asked("step_cache")}
        check_step_cache(family, asked("step_cache"), window, found)
        check_base(family, resolution_class, asked, found)
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
        fit=asked("fit"),
        autofix=asked("autofix"),
        **denoising,
    )
    return spec, aspect


def _with_start(
    asked: _Asked,
    family: Family,
    spec: ClipSpec,
    aspect: float,
    still_size: tuple[int, int],
    still_sha256: str,
    found: Findings,
) -> ClipSpec:
    """`spec` with the smaller clip or the draft that it starts from, where the row asks for one."""
    start = _start_of(asked)
    if asked("motion_class"):
        base = motion_base(family, spec, asked("motion_class"), aspect, found)
        return spec.model_copy(update=start | {"base": base})
    if asked("from_draft") and asked.tier is not Tier.DRAFT:
        own = asked.row.model_copy(update={"tier": Tier.DRAFT})
        draft = resolve(own, still_size, asked.defaults, still_sha256).spec
        return after_draft(spec.model_copy(update=start), draft, asked.row.fps, found)
    if unused := [name for name in start if getattr(asked.row, name) is not None]:
        found.note("unused", f"{', '.join(unused)} unused: the clip starts from noise")
    return spec


def _after(asked: _Asked, family: Family, spec: ClipSpec, draft: ClipSpec, found: Findings) -> ClipSpec:
    """`spec` started from a clip that was made, and looked at, before."""
    message = f"{family.name} cannot start from a smaller rendering"
    if not found.check(family.refinable, "from_draft", message, "Leave from_draft empty: the seed is the same."):
        return spec
    strength = asked("strength")
    found.check(0 < strength <= 1, "strength", f"{strength:g} is no share of the steps", "Choose above 0, at most 1.")
    message = "a clip starts from its draft or from a smaller class, not from both"
    found.check(not asked("motion_class"), "from_draft", message, "Leave motion_class or from_draft empty.")
    return after_draft(spec.model_copy(update=_start_of(asked)), draft, asked.row.fps, found)


def _start_of(asked: _Asked) -> dict[str, Any]:
    return {"strength": asked("strength"), "upscale": asked("upscale")}


def _prompt(row: Row, family: Family, found: Findings) -> str:
    prompt = (row.prompt or "").strip()
    for field, text in (("prompt", prompt), ("negative_prompt", (row.negative_prompt or "").strip())):
        message = f"the text has {len(text)} characters, more than {MAX_PROMPT_CHARACTERS}"
        found.check(len(text) <= MAX_PROMPT_CHARACTERS, field, message, "Shorten it.")
    if family.uses_prompt:
        found.check(bool(prompt), "prompt", "the prompt is empty", "Say what moves.")
        return prompt
    if prompt:
        found.note("prompt_unused", f"{family.name} does not read prompts")
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
        found.note("negative_prompt_unused", "negative_prompt unused: guidance is 1")
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
        # 32 bits: a person can copy it, and it is exact in JavaScript.
        base = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
    return (base + row.candidate) % 2**63
