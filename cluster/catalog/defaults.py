"""What rows of a catalog get where they are silent, and what tier `fast` means on a farm."""

from __future__ import annotations

import operator
from pathlib import PurePath
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.catalog.cells import JsonNumbers
from cluster.catalog.review.rounds import Rounds
from cluster.catalog.times import Duration
from cluster.jobs.fidelity import DEFAULT_REROLLS, MAX_REROLLS
from pipeline.clips.clip import Adapter, Autofixes, Fit, ResolutionClass, Sampler, Tier, Upscale
from pipeline.delivery.profiles import ProfileNames
from pipeline.families import FAMILIES

#: Share of the steps done on an enlarged clip where nobody says otherwise.
STRENGTH = 0.5


def _is_none(value: object) -> bool:
    return value is None


def _is_usual(value: object) -> bool:
    return value == DEFAULT_REROLLS


class FewStep(BaseModel):
    """What tier `fast` means for one family. Steps and guidance are what the weights were distilled for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Path of the LoRA's safetensors file, on every machine that renders.
    adapter: str = Field(min_length=1)
    #: SHA-256 (hex) of that file: decides the clip, wherever the file lies.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: For people; default: the file's name.
    name: str = ""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    sampler: Sampler = Sampler.LCM
    steps: int = Field(default=4, ge=1, le=1000)
    guidance: float = Field(default=1.0, ge=1, le=30)

    @model_validator(mode="after")
    def _safetensors(self) -> Self:
        if not self.adapter.endswith(".safetensors"):
            raise ValueError(f"{self.adapter} is not a .safetensors file; pickles can run code and are never loaded")
        return self

    @property
    def lora(self) -> Adapter:
        """The adapter as a clip's specification names it."""
        return Adapter(name=self.name or PurePath(self.adapter).stem, sha256=self.sha256, scale=self.scale)


def check_few_step(name: str, few: FewStep) -> None:
    """Raise `ValueError` unless the family `name` can be rendered in the few steps of `few`."""
    family = FAMILIES.get(name)
    if family is None or not family.samplers:
        able = ", ".join(other.name for other in FAMILIES.values() if other.samplers)
        raise ValueError(f"few_step.{name}: no model that denoises; choose from {able}")
    if few.sampler not in family.samplers:
        raise ValueError(f"few_step.{name}: it is not sampled with {few.sampler} but {', '.join(family.samplers)}")


class RowDefaults(JsonNumbers):
    """What whoever hands in a batch may say for rows that are silent."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    resolution_class: ResolutionClass = ResolutionClass.P512
    """Class of rows that name none."""
    tier: Tier = Tier.STANDARD
    """Tier of rows that name none."""
    fit: Fit = Fit.CONTAIN
    """How stills of another aspect are fitted, where a row does not say."""
    # Left out where it is not asked for, as versions without it refuse it.
    autofix: Autofixes = Field(default=(), exclude_if=operator.not_)
    """What of stills is mended first where it is at fault, where a row does not say: some of `crop`, `denoise`,
    `exposure`, `contrast` and `sharpen`, as a list or a text with commas."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """One seed for all; None derives each row's from its content."""
    sampler: Sampler | None = None
    """Sampler of rows that name none; None: the model's."""
    window: int = Field(default=0, ge=0)
    """Frames denoised at once, of longer clips; 0: all of them."""
    window_overlap: int | None = Field(default=None, ge=0)
    """Frames that windows share; None: a quarter of one."""
    step_cache: int = Field(default=1, ge=1)
    """Steps for which the deep layers are reused; 1: none."""
    motion_class: ResolutionClass | None = None
    """Smaller class in which the motion is made before it is enlarged; None: none."""
    from_draft: bool = False
    """Whether clips start from those that their rows would have at tier draft."""
    strength: float = Field(default=STRENGTH, gt=0, le=1)
    """With `motion_class` or `from_draft`: share of the steps done on the enlarged clip."""
    upscale: Upscale = Upscale.LATENTS
    """With either of these: what is enlarged."""
    # Left out where it is not said, as versions without it refuse it.
    within: Duration | None = Field(default=None, exclude_if=_is_none)
    """Seconds, or a text such as `2 min`, that a clip may take from its start on a card of the farm, where a row does
    not say: class, tier (this or a quicker one) and steps of rows that name none are chosen so, and `resolution_class`
    is then for no row."""
    strict: bool = False
    """Refuse what a family cannot take instead of adjusting it."""
    # Left out where it is not asked for, as versions without it refuse it.
    deliver: ProfileNames = Field(default=(), exclude_if=operator.not_)
    """Delivery profiles that files are made for, where a row does not say: as a list or a text with commas."""
    # Both are left out where they are not asked for, as versions without them refuse them.
    min_fidelity: float | None = Field(default=None, ge=0, le=1, exclude_if=_is_none)
    """The least score (0 to 1) that a clip's fidelity is taken with, where a row does not say: below it another seed is
    tried, and where none is good enough the best clip waits for a review."""
    rerolls: int = Field(default=DEFAULT_REROLLS, ge=0, le=MAX_REROLLS, exclude_if=_is_usual)
    """With `min_fidelity`: clips that may be made besides the first one, where a row does not say."""
    not_before: int | None = Field(default=None, ge=0, lt=2**40)
    """UTC epoch seconds before which rows do not start."""
    # Left out where it is not asked for, as versions without it refuse it.
    rounds: Rounds = Field(default=(), exclude_if=operator.not_)
    """Rounds that each clip goes through, somebody looking at each but the last: such as `draft,final`, or
    `quick,tune,final`, as a list or a text with commas. With `from_draft` the last starts from the latents of the one
    before it, else from its seed."""
    # Left out where it is not asked for, as versions without it refuse it.
    interactive: bool = Field(default=False, exclude_if=operator.not_)
    """Whether somebody waits for the clips: they may go before batches, as far as the farm's share for those goes."""


class Defaults(RowDefaults):
    """What rows that are silent get: from whoever hands in the batch, and from the farm."""

    #: A family's name; whoever offers `auto` decides before.
    model: str
    #: What tier `fast` means, by family.
    few_step: dict[str, FewStep] = Field(default_factory=dict)
