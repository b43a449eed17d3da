"""Wan2.2 TI2V-5B (arXiv:2503.20314): its networks' arithmetic, that of diffusers' `WanImageToVideoPipeline`.

The still is the first latent frame itself: the denoiser sees it clean, at timestep 0, in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.devices.emulated import off_card
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.causal_decoding import CausalDecoder
from pipeline.models.hooks.two_timesteps import two_timesteps
from pipeline.models.parts import Conditions, Halves, unit_floats
from pipeline.models.stages.conditioning import picture_sha256
from pipeline.models.stages.tiling import is_tiled, tiles_of
from pipeline.models.tokens import WAN_TOKENS, TokenCounter, clean_text, texts_of

#: Length, in tokens, of the prompt embeddings that the denoiser was trained on.
MAX_TOKENS = WAN_TOKENS


class Wan(DiffusionModel):
    """A loaded Wan2.2 TI2V-5B; see `pipeline.models.model.Model`."""

    def condition(self, picture: Image.Image, spec: ClipSpec) -> Halves:
        """Prompt embeddings, and the still's latents in place of the clip's first latent frame."""
        still = self._still(picture)
        return Halves(
            unconditional={"first": still, "encoder_hidden_states": self._prompt(spec.negative_prompt)},
            conditional={"first": still, "encoder_hidden_states": self._prompt(spec.prompt)},
        )

    def latent_shape(self, spec: ClipSpec) -> tuple[int, int, int, int]:
        """(channels, 1 + (frames - 1) / 4, height / 16, width / 16)."""
        config = self.parts.vae.config
        side = config.scale_factor_spatial
        frames = (spec.frames - 1) // config.scale_factor_temporal + 1
        return config.z_dim, frames, spec.height // side, spec.width // side

    def evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The transformer's prediction: a velocity, where the still's frame is there and done already."""
        first, text = conditions["first"], conditions["encoder_hidden_states"]
        network = self.parts.transformer
        _, high, wide = network.config.patch_size
        of_the_still = first.shape[2] * (latents.shape[3] // high) * (latents.shape[4] // wide)
        times = latents.new_zeros(latents.shape[0], 2)
        times[:, 1] = timestep
        with two_timesteps(network, of_the_still):
            prediction: torch.Tensor = network(
                hidden_states=_pinned(latents, first).to(self.dtype),
                timestep=times,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return prediction

    def settle(self, latents: torch.Tensor, conditions: Halves) -> torch.Tensor:
        """The first latent frame is the still's: what the sampler made of it was never looked at."""
        return _pinned(latents, conditions.conditional["first"])

    def cut(self, conditions: Conditions, first: int, end: int) -> Conditions:
        """The conditions of a window: only the first window has the still; what windows share ties the others to it."""
        return {**conditions, "first": conditions["first"][:, :, first:end]}

    def decode_chunks(self, latents: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """The first frame, then four at a time, whatever `layout.decode_frames` says.

        The decoder is causal: with what its convolutions saw last kept from one latent frame to the next, this is
        `AutoencoderKLWan.decode` itself, but the clip's pixels are never on the card at once. Tiles are not exact: its
        attention is over all of a frame that it is given. Each is decoded from the first frame to the last, since what
        is kept belongs to one place. The clip grows meanwhile in the host's memory, in float32, and comes by frames.
        """
        if not is_tiled(latents, layout):
            yield from self._decode_part(latents)
            return
        vae = self.parts.vae
        side = vae.config.scale_factor_spatial
        count = 1 + (latents.shape[2] - 1) * vae.config.scale_factor_temporal
        height, width = latents.shape[3:]
        dtype = torch.promote_types(vae.dtype, torch.float32)
        with off_card():
            clip = torch.zeros(count, 3, height * side, width * side, dtype=dtype)
        for tile in tiles_of(height, width, layout, side, latents):
            first = 0
            for frames in self._decode_part(latents[..., tile.latent_rows, tile.latent_columns]):
                part = tile.weigh(frames).cpu()
                with off_card():
                    clip[first : first + part.shape[0], :, tile.rows, tile.columns] += part
                first += part.shape[0]
                del frames, part
        for place in range(count):
            with off_card():
                part = clip[place : place + 1].clone()
            yield part.to(self.device.torch_device, copy=True)

    def _decode_part(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        vae = self.parts.vae
        decoder = CausalDecoder(vae.decoder)
        # Before anything is rounded, where the decoder is in half precision.
        wide = torch.promote_types(vae.dtype, torch.float32)
        mean, deviation = self._spread(wide)
        for place in range(latents.shape[2]):
            part = (latents[:, :, place : place + 1].to(wide) / deviation + mean).to(vae.dtype)
            part = decoder(vae.post_quant_conv(part))
            # Not clamped: an overflow has to stay visible.
            frames = [unpatchify(part, patch_size=vae.config.patch_size or 1)[0].transpose(0, 1)]
            del part
            yield frames.pop()  # not kept while the next are decoded

    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, channels, 1 + (frames - 1) / 4, height / 16, width / 16): the encoder's mode, normalised.

        Raises `ValueError` for a frame count that is not of the form 4n+1, whose last frames would be left out.
        """
        vae = self.parts.vae
        if (pixels.shape[2] - 1) % vae.config.scale_factor_temporal:
            raise ValueError(f"{pixels.shape[2]} frames are not of the form {vae.config.scale_factor_temporal}n+1")
        pixels = pixels.to(device=self.device.torch_device, dtype=vae.dtype)
        try:
            mode = vae.encode(pixels, return_dict=False)[0].mode().to(self.latents_dtype)
        finally:
            # Where it fails half way, it would keep activations.
            vae.clear_cache()
        mean, deviation = self._spread(mode.dtype)
        return (mode - mean) * deviation

    def embed_prompt(self, prompt: str) -> torch.Tensor:
        """(1, tokens, dim), the end token included; what is beyond `MAX_TOKENS` is cut, and `notes` tells."""
        tokens = self._tokens(prompt, truncation=True, padding="max_length", return_tensors="pt")
        device = self.device.torch_device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        states = self.parts.text_encoder(ids, mask).last_hidden_state
        return states[:, : len(self._tokens(prompt, truncation=True).input_ids[0])].to(self.dtype)

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance of one clip should say: which words of each prompt the encoder did not see."""
        return TokenCounter(self.family.engine, self.parts.tokenizer).cut(texts_of(spec))

    def _tokens(self, prompt: str, **options: Any) -> Any:
        return self.parts.tokenizer([clean_text(prompt)], max_length=MAX_TOKENS, add_special_tokens=True, **options)

    def _prompt(self, prompt: str) -> torch.Tensor:
        """(1, 512, dim): the prompt's embeddings, then zeros."""

        def embed() -> Mapping[str, torch.Tensor]:
            with self.residency.encoders():
                return {"embeddings": self.embed_prompt(prompt)}

        # Kept without the zeros, which are most of it.
        embeddings = self.conditioning.fetch("text", embed, text=clean_text(prompt))["embeddings"]
        zeros = embeddings.new_zeros(1, MAX_TOKENS - embeddings.shape[1], embeddings.shape[2])
        return torch.cat([embeddings, zeros], dim=1)

    def _still(self, picture: Image.Image) -> torch.Tensor:
        """(1, channels, 1, height / 16, width / 16): latents of the picture, as precise as the clip's own."""

        def encode() -> Mapping[str, torch.Tensor]:
            with self.residency.encoders():
                return {"latents": self.encode_frames(torch.from_numpy(unit_floats(picture) * 2.0 - 1.0).unsqueeze(2))}

        return self.conditioning.fetch("picture", encode, picture=picture_sha256(picture))["latents"]

    def _spread(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, 1 / standard deviation) of the VAE's latents by channel, shaped to spread over them."""
        config = self.parts.vae.config

        def spread(values: list[float]) -> torch.Tensor:
            return torch.tensor(values).view(1, -1, 1, 1, 1).to(device=self.device.torch_device, dtype=dtype)

        return spread(config.latents_mean), 1.0 / spread(config.latents_std)


def _pinned(latents: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """`latents` with its first frames replaced by those of `first`, of which there may be none."""
    return torch.cat([first, latents[:, :, first.shape[2] :]], dim=2)
