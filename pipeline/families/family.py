"""The types that describe a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.clip import ResolutionClass, Tier
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
    #: Whether a clip that stopped can go on from a checkpoint.
    resumable: bool = False
    #: Whether the seed changes the clip.
    uses_seed: bool = True
