"""A loaded diffusion model of any family: stills and specifications in, frames out, nothing left behind."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames, FrameSink
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.kernels.kernels import KernelCounts
from pipeline.models.model import OnStep
from pipeline.models.networks import DiffusionNetworks
from pipeline.models.parts import Halves
from pipeline.models.stages.decoding import decode
from pipeline.models.stages.denoising import ClipDenoising, denoise_from_noise
from pipeline.models.stages.residency import leaving_nothing


class DiffusionModel(DiffusionNetworks):
    """A loaded model of one family; follows `pipeline.models.model.Model`.

    A family brings its networks' arithmetic (`DiffusionNetworks`). The life of a clip is the same for all:

    1. `Residency.lay_out`: weights that the clip's layout streams or evicts leave the card.
    2. `ClipDenoising.run`: for each phase (a smaller base rendering first, if there is one, then the clip)
       a. `DiffusionNetworks.condition`: prompt and picture, encoded or taken from the `ConditioningCache`;
       b. `Residency.ready`: the denoiser is placed;
       c. the state to start from: noise, the enlarged base, or a checkpoint;
       d. `DenoiserHooks.laid_on` around the loop (`pipeline.denoising.denoise`): after every step `PhaseProgress`
          reports it and can take a checkpoint;
       e. the finished latents are kept for a larger clip, or enlarged (`pipeline.models.stages.enlarging`).
    3. `decode`: the decoder is placed; chunks of frames come off the card, and the `FrameSink` is told of them.

    An error in any of them, a cancelled clip included, leaves no activations on the card (`leaving_nothing`).
    """

    def render(
        self,
        still: Image.Image,
        spec: ClipSpec,
        layout: Layout,
        on_step: OnStep,
        resume: bytes | None = None,
        sink: FrameSink | None = None,
    ) -> Frames:
        """Render one clip; see `Model.render`. Raises `NotFiniteError` or `BlackOutputError` for a failed decode."""
        with leaving_nothing(self.device), self.device.work(), torch.no_grad():
            self.residency.lay_out(layout)
            latents = ClipDenoising(self, spec, layout, on_step, self.describe).run(still, resume)
            return decode(self, latents, layout, sink)

    def denoise(self, halves: Halves, spec: ClipSpec, layout: Layout, on_step: OnStep) -> torch.Tensor:
        """The middle stage alone, from noise: (1, *latent_shape) latents of the finished clip."""
        with self.device.work(), torch.no_grad():
            self.residency.lay_out(layout)
            return denoise_from_noise(self, halves, spec, layout, on_step)

    def decode(self, latents: torch.Tensor, layout: Layout) -> Frames:
        """The last stage alone: (frames, height, width, 3) uint8 of (1, channels, frames, height, width) latents.

        Raises `NotFiniteError` or `BlackOutputError`, see `pipeline.models.stages.decoding.decode`.
        """
        with self.device.work(), torch.no_grad():
            return decode(self, latents, layout)

    @property
    def stage(self) -> Stage:
        """What is being done, or was last: tells where memory ran out."""
        return self.residency.stage

    @property
    def weights_bytes(self) -> int:
        """Bytes of the networks that are on the card while nothing is evaluated: between clips nothing else is."""
        return self.residency.placed_bytes

    def describe(self) -> dict[str, Any]:
        """Revision as loaded, dtype, library versions; kernels and sampler's tables of the newest clip."""
        return {
            **self._origin,
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "sampler_tables": list(self.sampler_tables),
            "kernels": self.kernels.used.told(),
        }

    @property
    def kernel_counts(self) -> KernelCounts:
        """What compiling came to since the model was loaded."""
        return self.kernels.counts

    def unload(self) -> None:
        """Free the weights; the model cannot render afterwards."""
        if self._parts is None:
            return
        self.kernels.release()
        self.residency.unload()
        self._parts = None
