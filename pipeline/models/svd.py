"""Stable Video Diffusion (Blattmann et al., 2023, arXiv:2311.15127): its networks' arithmetic.

That of diffusers' `StableVideoDiffusionPipeline`, but for the noise on the conditioning picture, which comes from a
counter and is the same for every clip. Splitting guidance and evicting encoders are exact. How many frames are decoded
together is not: the decoder convolves along time within them, so a clip decoded in other groups differs slightly.
Neither are tiles: its norms and its attention are over all it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from PIL import Image

from pipeline.clips.clip import ClipSpec, Sampler
from pipeline.denoising.noise import noise
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.one_token import one_token_attention
from pipeline.models.hooks.precision import widened
from pipeline.models.parts import Conditions, Halves, unit_floats
from pipeline.models.stages.conditioning import picture_sha256
from pipeline.models.stages.tiling import decode_in_tiles

#: How much moves, 1…255; what the authors' demonstration and diffusers take.
MOTION_BUCKET = 127
#: Standard deviation of the noise on the conditioning picture, whose values are in -1…1.
PICTURE_NOISE = 0.02
#: Scale of guidance at the first frame, which is almost the picture itself; it rises linearly to the clip's own.
FIRST_GUIDANCE = 1.0


class StableVideo(DiffusionModel):
    """A loaded Stable Video Diffusion; see `pipeline.models.model.Model`."""

    def condition(self, picture: Image.Image, spec: ClipSpec) -> Halves:
        """The picture's embedding and latents, both zero in the unconditional half, and three numbers.

        `encoder_hidden_states` (1, 1, dim); `image_latents` (1, 4, height / 8, width / 8), not scaled as latents are;
        `added_time_ids` (1, 3).
        """
        seen = self._picture(picture)
        # The network was trained on one frame per second less than there were.
        numbers = torch.tensor(
            [[spec.fps - 1, MOTION_BUCKET, PICTURE_NOISE]], dtype=self.dtype, device=self.device.torch_device
        )
        conditional = {
            "encoder_hidden_states": seen["embedding"],
            "image_latents": seen["latents"],
            "added_time_ids": numbers,
        }
        nothing = {name: torch.zeros_like(seen[of]) for name, of in _SEEN.items()}
        return Halves(unconditional=conditional | nothing, conditional=conditional)

    def latent_shape(self, spec: ClipSpec) -> tuple[int, int, int, int]:
        """(channels, frames, height / 8, width / 8)."""
        factor = self._factor
        return self.parts.unet.config.out_channels, spec.frames, spec.height // factor, spec.width // factor

    def guidance(self, spec: ClipSpec) -> torch.Tensor:
        """(1, 1, frames, 1, 1), from `FIRST_GUIDANCE` at the first frame to the clip's guidance at the last."""
        scales = torch.linspace(FIRST_GUIDANCE, spec.guidance, spec.frames)
        return scales.view(1, 1, -1, 1, 1).to(device=self.device.torch_device, dtype=self.latents_dtype)

    def evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The UNet's prediction; it sees the picture's latents beside every frame."""
        by_frame = latents.to(self.dtype).transpose(1, 2)
        still = conditions["image_latents"].unsqueeze(1).expand(-1, by_frame.shape[1], -1, -1, -1)
        prediction: torch.Tensor = self.parts.unet(
            torch.cat([by_frame, still], dim=2),
            timestep,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            added_time_ids=conditions["added_time_ids"],
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def hoisting(self, *, ahead: Callable[[], bool]) -> AbstractContextManager[None]:
        """Around one run of the loop: the picture is one token, so what it gives to each layer is computed once."""
        return one_token_attention(self.parts.unet, ahead=ahead)

    def scheduler_of(self, spec: ClipSpec) -> Any:
        """Euler as the model came with it, or DPM-Solver++ on the same noise levels.

        The network is told the noise level as log σ / 4, which of diffusers' multistep solvers only the one in the
        form of Karras et al. (2022, arXiv:2206.00364) does; the others would tell it the place in a schedule of
        1,000 steps.
        """
        if spec.sampler is not Sampler.DPMPP_2M:
            return super().scheduler_of(spec)
        config = self.parts.scheduler.config
        return EDMDPMSolverMultistepScheduler(
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            # In these units v-prediction, √(σ² + 1) and all, is Karras' preconditioning.
            sigma_data=1.0,
            sigma_schedule="karras",
            prediction_type="v_prediction",
            num_train_timesteps=config.num_train_timesteps,
        )

    def decode_chunks(self, latents: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """`layout.decode_frames` frames at a time, each group on its own, as diffusers does."""
        vae = self.parts.vae
        for first in range(0, latents.shape[2], layout.decode_frames):
            chunk = latents[0, :, first : first + layout.decode_frames].transpose(0, 1) / vae.config.scaling_factor
            yield decode_in_tiles(chunk.to(vae.dtype), self._decode_part, layout, self._factor)

    def _decode_part(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.parts.vae.decode(latents, num_frames=latents.shape[0], return_dict=False)[0]
        return decoded

    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 4, frames, height / 8, width / 8): every frame's latents, scaled, one frame at a time."""
        with self._wide_vae():
            frames = [self._latents_of(pixels[:, :, frame]) for frame in range(pixels.shape[2])]
        return torch.stack(frames, dim=2) * self.parts.vae.config.scaling_factor

    def cut(self, conditions: Conditions, first: int, end: int) -> Conditions:
        """The conditions as they are: none belongs to one frame, and the network counts a window's frames from 0."""
        return conditions

    def embed_picture(self, picture: Image.Image) -> torch.Tensor:
        """(1, 1, dim): CLIP's projected embedding of the whole picture, squeezed into a square."""
        extractor = self.parts.feature_extractor
        side = (extractor.crop_size["height"], extractor.crop_size["width"])
        # Between -1 and 1 as diffusers does it: in another range it rounds differently.
        small = _resize_with_antialiasing(torch.from_numpy(unit_floats(picture)) * 2.0 - 1.0, side)
        values = extractor(
            images=(small + 1.0) / 2.0,
            do_resize=False,
            do_center_crop=False,
            do_rescale=False,
            do_normalize=True,
            return_tensors="pt",
        ).pixel_values
        values = values.to(device=self.device.torch_device, dtype=self.dtype)
        embedding: torch.Tensor = self.parts.image_encoder(values).image_embeds
        return embedding.unsqueeze(1)

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """Notes for the provenance: the prompt was not used, and what numbers beside the spec's condition a clip."""
        return {
            "prompt_used": False,
            "motion_bucket": MOTION_BUCKET,
            "picture_noise": PICTURE_NOISE,
            "first_frame_guidance": FIRST_GUIDANCE,
        }

    def _picture(self, picture: Image.Image) -> Conditions:
        def encode() -> Mapping[str, torch.Tensor]:
            with self.residency.encoders():
                pixels = torch.from_numpy(unit_floats(picture)) * 2.0 - 1.0
                # Of no clip's seed: pictures are encoded once for all clips.
                grain = noise(0, "svd picture", 0, 0, tuple(pixels.shape))
                noised = pixels + PICTURE_NOISE * torch.from_numpy(grain)
                return {"embedding": self.embed_picture(picture), "latents": self._latents_of(noised)}

        return self.conditioning.fetch("picture", encode, picture=picture_sha256(picture), noise=PICTURE_NOISE)

    def _latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 4, height / 8, width / 8) of (n, 3, height, width) in -1…1, unscaled: the encoder's mode."""
        vae = self.parts.vae
        with self._wide_vae():
            pixels = pixels.to(device=self.device.torch_device, dtype=vae.dtype)
            return vae.encode(pixels, return_dict=False)[0].mode().to(self.dtype)

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.parts.vae.config.block_out_channels) - 1)

    def _wide_vae(self) -> AbstractContextManager[None]:
        """Inside, an autoencoder that overflows in float16 computes in float32."""
        vae = self.parts.vae
        overflows = vae.dtype == torch.float16 and vae.config.force_upcast
        return widened([vae]) if overflows else nullcontext()


#: Conditions that the unconditional half does not see, and what of the picture each is.
_SEEN = {"encoder_hidden_states": "embedding", "image_latents": "latents"}
