"""Few-step rendering: distilled weights laid over a family's own, as a farm's configuration names them."""

from __future__ import annotations

from pathlib import PurePath
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.clips.clip import Adapter, Sampler
from pipeline.families import FAMILIES


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
