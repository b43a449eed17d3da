"""What a diffusion family brings: its networks on one card, and their arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.denoising.caches import TensorCache
from pipeline.denoising.noise import clip_noise
from pipeline.denoising.samplers import make_scheduler
from pipeline.devices.protocol import Device
from pipeline.families import Family, Stage
from pipeline.families.layouts import Layout
from pipeline.models.parts import Conditions, Halves, Parts
from pipeline.models.stages.conditioning import ConditioningCache
from pipeline.models.stages.denoiser import DenoiserHooks
from pipeline.models.stages.kernels import DenoiserKernels
from pipeline.models.stages.residency import Residency


class DiffusionNetworks(ABC):
    """The networks of one family and what is computed with them; subclassed by way of `DiffusionModel`.

    A family fills in the abstract methods: conditioning, one evaluation, decoding, encoding. Whatever holds latents
    has the shape (clips, channels, frames, height, width), and pixels are in -1…1.
    """

    def __init__(
        self, family: Family, parts: Parts, device: Device, origin: Mapping[str, str], cache: TensorCache | None = None
    ) -> None:
        """`parts` may lie on the host: each stage's networks are put on the card when first needed.

        `origin`: what the provenance says of where the weights came from; `cache`: shared with other models, or None.
        """
        self.family = family
        self._parts: Parts | None = parts
        self._device = device
        self._origin = dict(origin)
        # The network's own word: some classes keep a few parameters, the first of all among them, in float32.
        denoiser: Any = parts.of(Stage.DENOISE)[0]
        self._dtype: torch.dtype = denoiser.dtype
        self.residency = Residency(parts, device, getattr(torch, family.half))
        self.hooks = DenoiserHooks(parts, self.residency)
        self.kernels = DenoiserKernels(parts, device.torch_device)
        #: How this host rounds the sampler of each phase of the clip that is denoised, or was last.
        self.sampler_tables: tuple[str, ...] = ()
        self.conditioning = ConditioningCache(
            cache or TensorCache(),
            family=family.name,
            weights=self.weights,
            dtype=self._dtype,
            torch_device=device.torch_device,
        )

    # -- what a family brings -------------------------------------------------------------------------------

    @abstractmethod
    def condition(self, picture: Image.Image, spec: ClipSpec) -> Halves:
        """Encode prompt and picture (fitted to `spec.size`) by `conditioning.fetch`; tensors on the card, batch 1.

        Enter `residency.encoders()` around whatever needs the encoders or the VAE's, so that they are on the card.
        """

    @abstractmethod
    def latent_shape(self, spec: ClipSpec) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the clip's latents."""

    @abstractmethod
    def evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The network's raw prediction, shaped like `latents` (rows, channels, frames, height, width)."""

    @abstractmethod
    def decode_chunks(self, latents: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Decode (1, channels, frames, height, width) to chunks of (frames, 3, height, width) in -1…1, in order."""

    @abstractmethod
    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of a clip's pixels, (1, 3, frames, height, width) in -1…1, as `decode_chunks` would take them."""

    def guidance(self, spec: ClipSpec) -> float | torch.Tensor:
        """Scale of guidance: a number, or one for each latent frame, shaped to spread over latents."""
        return spec.guidance

    def cut(self, conditions: Conditions, first: int, end: int) -> Conditions:
        """The conditions of a window of latent frames `first … end`. Raises `NotImplementedError` without windows."""
        raise NotImplementedError(f"{self.family.name} has no windows")

    def settle(self, latents: torch.Tensor, conditions: Halves) -> torch.Tensor:
        """The finished latents after the last step; a family that pins some of them does so here."""
        return latents

    def hoisting(self, *, ahead: Callable[[], bool]) -> AbstractContextManager[None]:
        """Around one run of the loop, its adapter laid on: inside, what evaluations share is computed once.

        `ahead`: asked before each evaluation whether it is computed then and not within, as compiled blocks want it.
        All weights are on the card where it is.
        """
        return nullcontext()

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance of one clip should say beyond its spec."""
        return {}

    def scheduler_of(self, spec: ClipSpec) -> Any:
        """A fresh scheduler for `spec`. Raises `ValueError` for a sampler that cannot follow the model's schedule."""
        sampler = spec.sampler or self.family.samplers[0]
        return make_scheduler(sampler, self.parts.scheduler.config)

    # -- what a family finds --------------------------------------------------------------------------------

    @property
    def parts(self) -> Parts:
        """The components; raises `RuntimeError` after `unload`."""
        if self._parts is None:
            raise RuntimeError(f"This {self.family.title} was unloaded; load it again to render")
        return self._parts

    @property
    def device(self) -> Device:
        """The card."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self._dtype

    @property
    def latents_dtype(self) -> torch.dtype:
        """What latents are kept and stepped in: float32, or what the denoiser computes in where that is wider."""
        return torch.promote_types(self._dtype, torch.float32)

    @property
    def weights(self) -> str:
        """Names the weights that were loaded: their revision, or a digest of a folder of unknown revision."""
        return self._origin.get("index_sha256") or self._origin.get("revision") or self.family.revision

    def noise(self, spec: ClipSpec, purpose: str, step: int = 0) -> torch.Tensor:
        """(1, *latent_shape) of standard normal noise on the card, by counter: see `pipeline.denoising.noise`."""
        channels, frames, height, width = self.latent_shape(spec)
        by_frame = torch.from_numpy(clip_noise(spec.seed, purpose, frames, (channels, height, width), step))
        return by_frame.transpose(0, 1).unsqueeze(0).to(device=self._device.torch_device, dtype=self.latents_dtype)

    def first_noise(self, spec: ClipSpec) -> torch.Tensor:
        """(1, *latent_shape): the standard normal noise a clip starts from."""
        return self.noise(spec, "latents")
