"""The types that describe a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.clips.clip import ResolutionClass, Sampler, Tier
from pipeline.families.layouts import RESIDENT, Layout


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


class Stage(StrEnum):
    """The three stages of a clip, which are also the three groups of a family's networks."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes = fixed + per_pixel × pixels + per_pixel_frame × pixels × frames computed together."""

    fixed: float = 0.0
    per_pixel: float = 0.0
    per_pixel_frame: float = 0.0

    def at(self, pixels: int, frames: int) -> int:
        """Bytes for this many output pixels a frame and frames computed together."""
        return round(self.fixed + pixels * (self.per_pixel + self.per_pixel_frame * frames))


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """What `pipeline.memory.footprint` knows of a family; written by `clipmill footprint FAMILY --write`.

    A stage takes the weights on the card at that time and the largest of its lines; several where the peak is
    elsewhere in small clips than in large ones.
    """

    #: Bytes of the networks of each stage.
    weights: Mapping[Stage, int] = field(hash=False)
    #: Most of them at a time with `Layout.stream_weights`; the decoder's are never streamed.
    streamed: Mapping[Stage, int] = field(hash=False)
    #: Bytes besides the weights while prompt and still are encoded; frames are those of the clip.
    encode: tuple[Line, ...]
    #: Bytes besides the weights in one denoising step, by `Layout.denoise_switches`; frames are latent frames of one
    #: evaluation.
    denoise: Mapping[str, tuple[Line, ...]] = field(hash=False)
    #: Bytes besides the weights and the clip's own latents while decoding; frames are those decoded together.
    decode: tuple[Line, ...]
    #: Bytes of the clip's latents per output pixel and latent frame.
    latents: float
    #: Floating point operations of a step with guidance: coefficients of pixels^a × latent frames^b by "a,b".
    flops: Mapping[str, float] = field(hash=False)
    #: What the denoiser computes in, such as `float16`.
    dtype: str
    #: SHA-256 (hex) of the configurations of its networks.
    configs: str
    #: Where the figures come from: a command of this project and the versions it ran with.
    source: str
    #: Floating point operations of decoding, per output pixel and frame.
    decode_flops: float = 0.0
    #: While decoding in tiles, besides what a tile takes: bytes of the blended frames per output pixel and frame.
    canvas: float = 0.0
    #: After decoding in tiles, when no tile is there any more: bytes per output pixel and frame decoded together.
    blended: float = 0.0
    #: Like `decode`, by networks in float32, which repeat a decode that overflowed. Empty where none can overflow.
    decode_single: tuple[Line, ...] = ()
    #: Like `decode`, by networks in half precision (`Layout.decode_half`), and the bytes of those networks. Empty and 0
    #: where no layout of the family decodes so.
    decode_half: tuple[Line, ...] = ()
    half_weights: int = 0
    #: Bytes besides the weights while a clip's frames are encoded again at another size (`Upscale.FRAMES`); frames are
    #: those of the clip.
    reencode: tuple[Line, ...] = ()
    #: Bytes of the largest convolution's input and output, by stage or by `Layout.denoise_switches`; pixels and frames
    #: are those of the stage's own lines. Empty: not known.
    convolutions: Mapping[str, tuple[Line, ...]] = field(default_factory=dict, hash=False)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all networks."""
        return sum(self.weights.values())


@dataclass(frozen=True, kw_only=True)
class Component:
    """One subfolder of a family's weights, as diffusers lays them out."""

    name: str
    #: Python package and class that load it.
    library: str
    cls: str
    #: The stage whose network it is; None for what has no weights (tokenizer, scheduler).
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
    #: Schedules have 1,000 noise levels. Closer to one a step, diffusers' tables overrun or hold one level twice.
    max_steps: int = 998
    classes: tuple[ResolutionClass, ...] = tuple(ResolutionClass)
    native_class: ResolutionClass = ResolutionClass.P512
    #: (width, height) it was trained at: taken within their class for stills of about that aspect ratio.
    native_sizes: tuple[tuple[int, int], ...] = ()
    #: None where `pipeline/memory/footprints` has a table of it, as for every family with networks, or where it uses
    #: no card memory.
    memory: MemoryModel | None
    #: Layouts the renderer may choose from: those that are exact, fastest first, then those that decode in half
    #: precision, fastest first, then those in tiles, fastest first.
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
    #: Compute capability of the cards that can do that; None where all can. Turing and older have no bfloat16:
    #: attention would fall back to a way that takes many times the memory, and convolutions have none at all.
    least_capability: tuple[int, int] | None = None
    #: Infix of the weight files fetched from the hub, such as `fp16`; empty where there is none.
    variant: str = "fp16"
    #: Whether its licence has to be accepted before the weights are used (not a permissive one).
    licence_gate: bool = False
    licence_url: str = ""
