"""I2VGen-XL (Zhang et al., 2023, arXiv:2311.04145): its networks' arithmetic, that of diffusers' `I2VGenXLPipeline`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.context_once import context_once
from pipeline.models.parts import Conditions, Halves, unit_floats
from pipeline.models.stages.conditioning import picture_sha256
from pipeline.models.stages.tiling import decode_in_tiles
from pipeline.models.tokens import TokenCounter, texts_of

#: Conditions that the context of the network's cross-attention is made of.
_CONTEXT = ("encoder_hidden_states", "image_latents", "image_embeddings")


class I2VGenXL(DiffusionModel):
    """A loaded I2VGen-XL; see `pipeline.models.model.Model`."""

    def condition(self, picture: Image.Image, spec: ClipSpec) -> Halves:
        """Prompt embeddings, picture embedding, and the picture's latents with planes that tell each frame's place."""
        negative, positive = self._prompt(spec.negative_prompt), self._prompt(spec.prompt)
        seen = self._picture(picture)
        embedding = seen["embedding"]
        shared = {
            "image_latents": _with_places(seen["latents"], spec.frames),
            "fps": torch.tensor([spec.fps], device=self.device.torch_device),
        }
        return Halves(
            # Guidance drops the picture's embedding along with the prompt, but keeps its latents.
            unconditional=shared | {"encoder_hidden_states": negative, "image_embeddings": torch.zeros_like(embedding)},
            conditional=shared | {"encoder_hidden_states": positive, "image_embeddings": embedding},
        )

    def latent_shape(self, spec: ClipSpec) -> tuple[int, int, int, int]:
        """(channels, frames, height / 8, width / 8)."""
        factor = self._factor
        return self.parts.unet.config.in_channels, spec.frames, spec.height // factor, spec.width // factor

    def evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The UNet's prediction, shaped like `latents`."""
        return self.parts.unet(latents.to(self.dtype), timestep, **conditions, return_dict=False)[0]

    def hoisting(self, *, ahead: Callable[[], bool]) -> AbstractContextManager[None]:
        """Around one run of the loop: prompt and picture are projected once, and not for every frame and step.

        Not within compiled blocks, which would be compiled anew for each layer's own results: 0.6 % of a step at 512p.
        """
        return nullcontext() if ahead() else context_once(self.parts.unet, _CONTEXT)

    def decode_chunks(self, latents: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """`layout.decode_frames` frames at a time; the decoder knows no other frame, so any chunking is exact.

        Tiles are not: its norms and its attention are over all it is given.
        """
        vae = self.parts.vae
        for first in range(0, latents.shape[2], layout.decode_frames):
            chunk = latents[0, :, first : first + layout.decode_frames].transpose(0, 1) / vae.config.scaling_factor
            yield decode_in_tiles(chunk.to(vae.dtype), self._decode_part, layout, self._factor)

    def _decode_part(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.parts.vae.decode(latents, return_dict=False)[0]
        return decoded

    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 4, frames, height / 8, width / 8): every frame's latents, one frame at a time."""
        return torch.stack([self._latents_of(pixels[:, :, frame]) for frame in range(pixels.shape[2])], dim=2)

    def cut(self, conditions: Conditions, first: int, end: int) -> Conditions:
        """Every window begins with the still, as the network was trained; its places go on from the clip's."""
        latents = conditions["image_latents"]
        window = latents[:, :, first:end].clone()
        window[:, :, 0] = latents[:, :, 0]
        return {**conditions, "image_latents": window}

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
        device = self.device.torch_device
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
            images=unit_floats(square),
            do_resize=False,
            do_center_crop=False,
            do_rescale=False,
            do_normalize=True,
            input_data_format="channels_first",
            return_tensors="pt",
        ).pixel_values
        values = values.to(device=self.device.torch_device, dtype=self.dtype)
        return parts.image_encoder(values).image_embeds.unsqueeze(1)

    def _prompt(self, prompt: str) -> torch.Tensor:
        def embed() -> Mapping[str, torch.Tensor]:
            with self.residency.encoders():
                return {"embeddings": self.embed_prompts([prompt])[0]}

        return self.conditioning.fetch("text", embed, text=prompt)["embeddings"]

    def _picture(self, picture: Image.Image) -> Mapping[str, torch.Tensor]:
        def encode() -> Mapping[str, torch.Tensor]:
            with self.residency.encoders():
                pixels = torch.from_numpy(unit_floats(picture) * 2.0 - 1.0)
                return {"embedding": self.embed_picture(picture), "latents": self._latents_of(pixels)}

        return self.conditioning.fetch("picture", encode, picture=picture_sha256(picture))

    def _latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 4, height / 8, width / 8) of (n, 3, height, width) in -1…1.

        The encoder's mode is taken, where diffusers draws a sample from the global generator: its spread is far
        below the latents' own, and the clip then depends on the seed by its initial noise alone.
        """
        vae = self.parts.vae
        pixels = pixels.to(device=self.device.torch_device, dtype=vae.dtype)
        mode = vae.encode(pixels, return_dict=False)[0].mode() * vae.config.scaling_factor
        return mode.to(self.dtype)

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.parts.vae.config.block_out_channels) - 1)

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance of one clip should say: which words of each prompt the encoder did not see."""
        return TokenCounter(self.family.engine, self.parts.tokenizer).cut(texts_of(spec))


def _with_places(first: torch.Tensor, frames: int) -> torch.Tensor:
    """(1, 4, frames, height, width): the picture's latents, then planes with each frame's place, 0…1, in the clip."""
    places = torch.arange(frames, dtype=torch.float64) / (frames - 1)
    planes = places.to(device=first.device, dtype=first.dtype).view(1, 1, frames, 1, 1)
    latents = planes.expand(1, first.shape[1], frames, *first.shape[2:]).clone()
    latents[:, :, 0] = first
    return latents


def _centre_square(picture: Image.Image) -> Image.Image:
    """The centre square of a picture, scaled so that its side is the picture's width."""
    side = picture.width
    shorter = min(picture.size)
    scaled = picture.resize(
        (picture.width * side // shorter, picture.height * side // shorter), resample=Image.Resampling.BOX
    )
    left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
    return scaled.crop((left, top, left + side, top + side))
