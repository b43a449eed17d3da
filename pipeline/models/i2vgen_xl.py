"""I2VGen-XL (Zhang et al., 2023, arXiv:2311.04145): still and prompt to frames, in three stages.

The algebra is diffusers' `I2VGenXLPipeline`; the loop is ours, so that a clip reports its steps, stops within
one, depends on no global random state and frees whatever it held.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from pipeline.clip import ClipSpec
from pipeline.denoise import Guided, denoise, start
from pipeline.devices import Device
from pipeline.layouts import Layout
from pipeline.models.errors import NotFiniteError
from pipeline.models.model import Frames, OnStep
from pipeline.noise import clip_noise
from pipeline.stills import fit_still


@dataclass(kw_only=True)
class Parts:
    """The components of the model, loaded; networks on the card and in evaluation mode."""

    tokenizer: Any
    text_encoder: Any
    feature_extractor: Any
    image_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The components that hold weights."""
        return (self.text_encoder, self.image_encoder, self.vae, self.unet)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What one clip's denoising is conditioned on: arguments of the UNet for each half of guidance, batch 1."""

    unconditional: Mapping[str, torch.Tensor]
    conditional: Mapping[str, torch.Tensor]


class I2VGenXL:
    """A loaded I2VGen-XL; see `pipeline.models.model.Model`."""

    def __init__(self, parts: Parts, device: Device, origin: Mapping[str, str]) -> None:
        self._parts: Parts | None = parts
        self._device = device
        self._origin = dict(origin)
        self._dtype: torch.dtype = parts.unet.dtype

    @property
    def parts(self) -> Parts:
        """The components; raises `RuntimeError` after `unload`."""
        if self._parts is None:
            raise RuntimeError("This I2VGen-XL was unloaded; load it again to render")
        return self._parts

    def render(self, still: Image.Image, spec: ClipSpec, layout: Layout, on_step: OnStep) -> Frames:
        """Render one clip; see `Model.render`. Raises `NotFiniteError` when the decoder returns NaN."""
        try:
            return self._render(still, spec, layout, on_step)
        except BaseException as error:
            # Whoever handles the error holds its traceback, whose frames hold activations: release them here.
            _clear_frames(error)
            if isinstance(error, torch.OutOfMemoryError):
                self._device.free_cached()
            raise

    def _render(self, still: Image.Image, spec: ClipSpec, layout: Layout, on_step: OnStep) -> Frames:
        conditions = self.encode(still, spec)
        latents = self.denoise(conditions, spec, layout, on_step)
        del conditions
        return self.decode(latents, layout)

    def encode(self, still: Image.Image, spec: ClipSpec) -> Conditions:
        """First stage: prompt, picture embedding and picture latents."""
        with self._device.work(), torch.no_grad():
            picture = fit_still(still, spec.size, spec.fit)
            negative, positive = self.embed_prompts([spec.negative_prompt, spec.prompt])
            embedding = self.embed_picture(picture)
            shared = {
                "image_latents": self.picture_latents(picture, spec.frames),
                "fps": torch.tensor([spec.fps], device=self._device.torch_device),
            }
            return Conditions(
                # Guidance drops the picture's embedding along with the prompt, but keeps its latents.
                unconditional=shared
                | {"encoder_hidden_states": negative, "image_embeddings": torch.zeros_like(embedding)},
                conditional=shared | {"encoder_hidden_states": positive, "image_embeddings": embedding},
            )

    def denoise(self, conditions: Conditions, spec: ClipSpec, layout: Layout, on_step: OnStep) -> torch.Tensor:
        """Second stage: (1, 4, frames, height/8, width/8) latents of the finished clip."""
        with self._device.work(), torch.no_grad():
            parts = self.parts
            scheduler = type(parts.scheduler).from_config(parts.scheduler.config)
            predict = Guided(
                self._evaluate,
                conditions.unconditional,
                conditions.conditional,
                spec.guidance,
                split=layout.split_guidance,
            )
            state = start(scheduler, self._first_noise(spec), spec.steps)
            return denoise(scheduler, predict, state, on_step)

    def decode(self, latents: torch.Tensor, layout: Layout) -> Frames:
        """Last stage: (frames, height, width, 3) uint8, `layout.decode_frames` on the card at a time.

        Raises `NotFiniteError` where the decoder returns NaN or infinity.
        """
        with self._device.work(), torch.no_grad():
            vae = self.parts.vae
            factor = 2 ** (len(vae.config.block_out_channels) - 1)
            _, _, count, height, width = latents.shape
            frames = np.empty((count, height * factor, width * factor, 3), dtype=np.uint8)
            for first in range(0, count, layout.decode_frames):
                chunk = latents[0, :, first : first + layout.decode_frames].transpose(0, 1) / vae.config.scaling_factor
                decoded = vae.decode(chunk.to(vae.dtype), return_dict=False)[0].float()
                if not bool(torch.isfinite(decoded).all()):
                    raise NotFiniteError("decode", first, str(self._dtype).removeprefix("torch."))
                pixels = decoded.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
                frames[first : first + len(pixels)] = pixels.permute(0, 2, 3, 1).cpu().numpy()
                del chunk, decoded, pixels
            return frames

    def embed_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, ...]:
        """(1, 77, dim) for each prompt: the last but one layer's output under the final layer norm.

        That is "clip skip 1", what the network was trained on. Prompts beyond the encoder's length are cut;
        `notes` tells.
        """
        parts = self.parts
        tokens = parts.tokenizer(
            prompts,
            padding="max_length",
            max_length=parts.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = parts.text_encoder
        device = self._device.torch_device
        mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
        layers = encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=True).hidden_states
        # transformers 4 keeps the norm one level deeper than 5 does.
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(layers[-2]).split(1)

    def embed_picture(self, picture: Image.Image) -> torch.Tensor:
        """(1, 1, dim): CLIP's projected embedding of the picture's centre square."""
        parts = self.parts
        crop = parts.feature_extractor.crop_size
        square = _centre_square(picture).resize((crop["width"], crop["height"]), Image.Resampling.BILINEAR)
        values = parts.feature_extractor(
            images=_unit_floats(square),
            do_resize=False,
            do_center_crop=False,
            do_rescale=False,
            do_normalize=True,
            input_data_format="channels_first",
            return_tensors="pt",
        ).pixel_values
        values = values.to(device=self._device.torch_device, dtype=self._dtype)
        return parts.image_encoder(values).image_embeds.unsqueeze(1)

    def picture_latents(self, picture: Image.Image, frames: int) -> torch.Tensor:
        """(1, 4, frames, height/8, width/8): the picture's latents, then planes that tell each frame's place.

        The encoder's mode is taken, where diffusers draws a sample from the global generator: its spread is far
        below the latents' own, and the clip then depends on the seed by its initial noise alone.
        """
        vae = self.parts.vae
        pixels = torch.from_numpy(_unit_floats(picture) * 2.0 - 1.0)
        pixels = pixels.to(device=self._device.torch_device, dtype=self._dtype)
        first = vae.encode(pixels, return_dict=False)[0].mode() * vae.config.scaling_factor
        places = torch.arange(frames, dtype=torch.float64) / (frames - 1)
        planes = places.to(device=first.device, dtype=first.dtype).view(1, 1, frames, 1, 1)
        latents = planes.expand(1, first.shape[1], frames, *first.shape[2:]).clone()
        latents[:, :, 0] = first
        return latents

    def _first_noise(self, spec: ClipSpec) -> torch.Tensor:
        channels = self.parts.unet.config.in_channels
        factor = 2 ** (len(self.parts.vae.config.block_out_channels) - 1)
        shape = (channels, spec.height // factor, spec.width // factor)
        by_frame = torch.from_numpy(clip_noise(spec.seed, "latents", spec.frames, shape))
        dtype = torch.promote_types(self._dtype, torch.float32)
        return by_frame.transpose(0, 1).unsqueeze(0).to(device=self._device.torch_device, dtype=dtype)

    def _evaluate(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return self.parts.unet(latents.to(self._dtype), timestep, **conditions, return_dict=False)[0]

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance of one clip should say: how many tokens of each prompt the encoder did not see."""
        tokenizer = self.parts.tokenizer
        cut = {}
        for name, prompt in (("prompt", spec.prompt), ("negative_prompt", spec.negative_prompt)):
            beyond = len(tokenizer(prompt, truncation=False, verbose=False).input_ids) - tokenizer.model_max_length
            if beyond > 0:
                cut[f"{name}_tokens_cut"] = beyond
        return cut

    def describe(self) -> dict[str, Any]:
        """Revision as loaded, dtype, sampler and library versions."""
        return {
            **self._origin,
            "dtype": str(self._dtype).removeprefix("torch."),
            "sampler": type(self.parts.scheduler).__name__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    def unload(self) -> None:
        """Free the weights; the model cannot render afterwards."""
        if self._parts is None:
            return
        for network in self._parts.networks:
            # Frees the storages now, whoever else still refers to the module.
            network.to("meta")
        self._parts = None
        self._device.free_cached()


def _clear_frames(error: BaseException | None) -> None:
    """Drop the locals of every finished frame that `error`, its cause and its context hold."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _centre_square(picture: Image.Image) -> Image.Image:
    """The centre square of a picture, scaled so that its side is the picture's width."""
    side = picture.width
    shorter = min(picture.size)
    scaled = picture.resize(
        (picture.width * side // shorter, picture.height * side // shorter), resample=Image.Resampling.BOX
    )
    left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
    return scaled.crop((left, top, left + side, top + side))


def _unit_floats(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(1, 3, height, width) float32 in 0…1."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])
