"""What a clip is: its class, its tier, its complete specification and its content key."""

from __future__ import annotations

import hashlib
import json
import operator
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: Raised whenever the same spec and picture would give other frames; part of every content key, checkpoint and cache.
RENDERER_VERSION = "2"
#: Raised whenever the same bytes of a still would give another picture; part of every content key. What is made of the
#: picture, such as checkpoints, is known by the picture itself.
STILLS_VERSION = "2"
#: What a content key says of the code.
CONTENT_VERSION = f"{RENDERER_VERSION}.{STILLS_VERSION}"

#: The prompt of a clip whose family reads none.
NO_PROMPT = "(none)"


class ResolutionClass(StrEnum):
    """A pixel budget of side², shared by all aspect ratios of the class."""

    P256 = "256p"
    P512 = "512p"
    P768 = "768p"
    P1024 = "1024p"

    @property
    def side(self) -> int:
        """Side in pixels of the class's square."""
        return int(self.value[:-1])

    @property
    def pixels(self) -> int:
        """The class's pixel budget."""
        return self.side**2


#: Characters of a prompt, and of a negative one.
MAX_PROMPT_CHARACTERS = 2000
#: Guidance goes from 1 (none) up to here.
MAX_GUIDANCE = 30.0


class Tier(StrEnum):
    """How much work goes into a clip; each family says what a tier means for it."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"
    #: A draft's frames in few steps, with distilled weights that the farm's configuration names.
    FAST = "fast"


class Fit(StrEnum):
    """How a still is brought to the clip's aspect ratio."""

    #: Whole picture, padded with its own border colour. The default: a product is never cut.
    CONTAIN = "contain"
    #: Fills the frame, centre crop.
    COVER = "cover"
    #: Fills the frame, distorted.
    STRETCH = "stretch"


class Autofix(StrEnum):
    """What of a still may be mended before its clip is made, in the order in which it is done."""

    #: Bars of one colour at its sides are cut off.
    CROP = "crop"
    #: Grain is smoothed.
    DENOISE = "denoise"
    #: A dark picture is brightened.
    EXPOSURE = "exposure"
    #: The levels of a pale picture are stretched.
    CONTRAST = "contrast"
    #: Soft edges are sharpened.
    SHARPEN = "sharpen"


def autofixes_of(value: object) -> tuple[Autofix, ...]:
    """What `value` names, each once and in the order of `Autofix`: a list of names, or a text with commas between them.

    `none` names nothing, and `all` everything. Raises `ValueError` for anything else.
    """
    names = value.replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"name some of {', '.join(Autofix)}, with commas between them")
    wanted = {name.lower() for name in names}
    if unknown := sorted(wanted - {*Autofix, "none", "all"}):
        raise ValueError(f"{unknown[0][:40]!r} is none of {', '.join(Autofix)}")
    return tuple(fix for fix in Autofix if fix in wanted or "all" in wanted)


#: A field of a model for what `autofixes_of` reads.
Autofixes = Annotated[tuple[Autofix, ...], BeforeValidator(autofixes_of)]


class Sampler(StrEnum):
    """Which solver takes the denoising steps."""

    #: Song et al., 2021, arXiv:2010.02502, without added noise.
    DDIM = "ddim"
    #: DPM-Solver++ of second order, multistep: Lu et al., 2022, arXiv:2211.01095.
    DPMPP_2M = "dpmpp-2m"
    #: Zhao et al., 2023, arXiv:2302.04867.
    UNIPC = "unipc"
    #: Karras et al., 2022, arXiv:2206.00364, algorithm 2 without its second-order correction; for flow matching too.
    EULER = "euler"
    #: Latent consistency models, for distilled weights: Luo et al., 2023, arXiv:2310.04378. Adds noise every step.
    LCM = "lcm"


class Upscale(StrEnum):
    """How a smaller rendering becomes the start of a larger one."""

    #: Latents are interpolated: cheap, a little soft.
    LATENTS = "latents"
    #: Frames are decoded, enlarged as pictures and encoded again.
    FRAMES = "frames"


class BaseClip(BaseModel):
    """The smaller rendering of the same still and prompt that a clip starts from; what it does not name is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution_class: ResolutionClass
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(gt=0)
    fps: int = Field(gt=0, le=120)
    steps: int = Field(gt=0)
    guidance: float = Field(ge=1)
    seed: int = Field(ge=0, lt=2**63)
    sampler: Sampler


class Adapter(BaseModel):
    """A LoRA (Hu et al., 2021, arXiv:2106.09685) over the denoiser's weights, such as one for few steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    #: SHA-256 (hex) of its safetensors file.
    sha256: str = Field(min_length=64, max_length=64)
    scale: float = 1.0


class ClipSpec(BaseModel):
    """Everything besides the still that decides a clip's pixels. All values are final: nothing is defaulted later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Family name, a key of `pipeline.families.FAMILIES`.
    family: str
    #: Revision of the family's weights (or of its code, for a family without weights).
    revision: str
    prompt: str = Field(min_length=1)
    negative_prompt: str = ""
    resolution_class: ResolutionClass
    #: Pixels, multiples of the family's stride.
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(gt=0)
    #: Frames per second of playback.
    fps: int = Field(gt=0, le=120)
    #: Denoising steps; 1 for families that do not denoise.
    steps: int = Field(gt=0)
    #: Classifier-free guidance scale; 1 means none.
    guidance: float = Field(ge=1)
    seed: int = Field(ge=0, lt=2**63)
    fit: Fit = Fit.CONTAIN
    #: What of the still is mended first, where it is at fault; each once, in the order of `Autofix`. Left out where
    #: there is none: content keys are those of before, and versions without it refuse it.
    autofix: Autofixes = Field(default=(), exclude_if=operator.not_)
    #: None for families that do not denoise.
    sampler: Sampler | None = None
    #: Frames of one evaluation where a long clip is denoised in overlapping windows; 0: all frames at once.
    window: int = Field(default=0, ge=0)
    #: Frames that neighbouring windows share.
    window_overlap: int = Field(default=0, ge=0)
    #: Evaluations of the deep layers are reused for this many steps (Ma et al., 2023, arXiv:2312.00858); 1: never.
    step_cache: int = Field(default=1, ge=1)
    adapter: Adapter | None = None
    #: Start from a smaller rendering instead of from noise.
    base: BaseClip | None = None
    #: With `base`: the share of the steps that are done on the enlarged rendering.
    strength: float = Field(default=1.0, gt=0, le=1)
    #: With `base`: how it is enlarged.
    upscale: Upscale = Upscale.LATENTS

    @property
    def base_spec(self) -> ClipSpec | None:
        """The specification of the smaller rendering, equal to a clip's that was rendered on its own."""
        if self.base is None:
            return None
        alone = {"window": 0, "window_overlap": 0, "base": None, "strength": 1.0, "upscale": Upscale.LATENTS}
        return self.model_copy(update={**self.base.model_dump(), **alone})

    @property
    def refined_steps(self) -> int:
        """Steps done at the clip's own size: all of them, or the last `strength` of them over a `base`."""
        return self.steps if self.base is None else max(1, round(self.steps * self.strength))

    @property
    def total_steps(self) -> int:
        """Steps from start to finish, those of the base included."""
        return self.refined_steps + (self.base.steps if self.base else 0)

    @property
    def lossy(self) -> tuple[str, ...]:
        """Short cuts this clip takes that change the picture, in words; empty for the plain algorithm."""
        found = []
        if self.window:
            found.append(f"windows of {self.window} frames overlapping by {self.window_overlap}")
        if self.step_cache > 1:
            found.append(f"deep layers reused for {self.step_cache} steps")
        if self.adapter:
            found.append(f"adapter {self.adapter.name} at {self.adapter.scale:g}")
        if self.sampler is Sampler.LCM:
            found.append("few-step sampler lcm")
        if self.base:
            found.append(
                f"motion from {self.base.width}×{self.base.height} × {self.base.frames} frames, "
                f"{self.upscale} enlarged, strength {self.strength:g}"
            )
        return tuple(found)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def seconds(self) -> float:
        """Length of the clip in seconds."""
        return self.frames / self.fps


def content_key(still_sha256: str, spec: ClipSpec) -> str:
    """SHA-256 (hex) naming the clip that `spec` makes of a still.

    Two jobs of one owner with equal keys share one clip; the key changes with any parameter,
    with the family's revision, with `RENDERER_VERSION` and with `STILLS_VERSION`.
    """
    content = {"still": still_sha256, "spec": spec.model_dump(mode="json"), "renderer": CONTENT_VERSION}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
