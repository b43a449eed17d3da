"""The types that describe a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.clip import ResolutionClass, Sampler, Tier
from pipeline.layouts import RESIDENT, Layout


@dataclass(frozen=True, kw_only=True)
class TierSettings:
    """What a tier means for one family."""

    frames: int
    steps: int
    fps: int


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """Frame counts a family can take: `minimum … maximum`, and frames % multiple == offset % multiple."""

    minimum: int = 1
    maximum: int
    multiple: int = 1
    offset: int = 0

    def allows(self, frames: int) -> bool:
        """Whether the family can render exactly this many frames."""
        in_range = self.minimum <= frames <= self.maximum
        return in_range and (frames - self.offset) % self.multiple == 0

    def __str__(self) -> str:
        step = "" if self.multiple == 1 else f" of the form {self.multiple}n+{self.offset}"
        return f"{self.minimum} to {self.maximum} frames{step}"


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Coefficients of the closed form in `pipeline.footprint`.

    A stage's activations grow linearly in the pixels it holds at once; weights are resident throughout.
    """

    #: Bytes of all networks on the card.
    weights_bytes: int
    #: Peak activation bytes per output pixel while the still is encoded.
    encode_per_pixel: float
    #: Peak activation bytes per output pixel and frame of one denoising step, guidance batched.
    denoise_per_pixel_frame: float
    #: The same with guidance split.
    denoise_split_per_pixel_frame: float
    #: Peak activation bytes per output pixel and frame decoded together.
    decode_per_pixel_frame: float
    #: Where the figures come from: a command of this project, or a document.
    source: str


class Stage(StrEnum):
    """The three stages of a clip, which are also the three groups of a family's networks."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Component:
    """One subfolder of a family's weights, as diffusers lays them out."""

    name: str
    #: Python package and class that load it.
    library: str
    cls: str
    #: The stage whose network it is; None for what holds no weights (tokenizer, scheduler).
    stage: Stage | None = None
    #: Files without any of which it cannot be loaded; networks need safetensors besides.
    files: tuple[str, ...] = ("config.json",)
    #: Whether it stays in float32 where the others compute in half precision.
    full_precision: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of image-to-video models, everything that can be said of it without loading it."""

    name: str
    title: str
    #: Which code in `pipeline.models` renders it.
    engine: str
    #: Pinned revision of the weights, or version of the code for a family without weights.
    revision: str
    #: Hub id of the weights; None where there are none to fetch.
    repo: str | None
    licence: str
    #: Said to the user before a first commercial use; empty where there is nothing to say.
    licence_note: str = ""
    #: Width and height are multiples of this many pixels.
    stride: int
    frame_rule: FrameRule
    tiers: Mapping[Tier, TierSettings] = field(hash=False)
    guidance: float
    max_steps: int = 1000
    classes: tuple[ResolutionClass, ...] = tuple(ResolutionClass)
    native_class: ResolutionClass = ResolutionClass.P512
    #: None for a family that uses no card memory.
    memory: MemoryModel | None
    #: Layouts the renderer may choose from, fastest first.
    layouts: tuple[Layout, ...] = (RESIDENT,)
    #: Whether it needs torch (the `render` extra).
    needs_torch: bool = True
    #: Whether a clip that stopped can go on from a checkpoint; where not, placement never moves it.
    resumable: bool = False
    #: Whether the seed changes the clip.
    uses_seed: bool = True
    #: Whether the prompt changes the clip.
    uses_prompt: bool = True
    #: Solvers it can be sampled with, the default first; empty for a family that does not denoise.
    samplers: tuple[Sampler, ...] = ()
    #: Most frames of a clip denoised in overlapping windows; 0 where it has none.
    max_windowed_frames: int = 0
    #: Frames per latent frame, the first frame having one of its own; windows are cut at latent frames.
    frames_per_latent: int = 1
    #: Pixels per latent pixel, a side.
    pixels_per_latent: int = 8
    #: Whether deep layers can be reused across steps (`ClipSpec.step_cache`).
    step_cacheable: bool = False
    #: Whether a clip can start from a smaller rendering (`ClipSpec.base`).
    refinable: bool = False
    #: The parts of its weights.
    components: tuple[Component, ...] = ()
    #: What cards compute in: `float16` or `bfloat16`.
    half: str = "float16"
    #: Infix of the weight files fetched from the hub, such as `fp16`; empty where there is none.
    variant: str = "fp16"
    #: Whether its licence has to be accepted before the weights are used (not a permissive one).
    licence_gate: bool = False
    licence_url: str = ""
