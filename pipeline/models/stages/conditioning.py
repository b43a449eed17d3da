"""What a clip is conditioned on, and the cache that keeps it: prompts and pictures are encoded once for many clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from pipeline.clips.clip import RENDERER_VERSION, ClipSpec
from pipeline.denoising.caches import TensorCache, Tensors, cache_key, digest
from pipeline.models.parts import Conditions, Halves
from pipeline.units import MIB

#: Latents up to this size are kept on the shelf when a clip is done, so that a larger one can start from them.
KEPT_LATENTS_BYTES = 2 * MIB


class ConditioningCache:
    """Embeddings, picture latents and finished latents of one model by everything that decides their values.

    Keys name the family, the weights and what they compute in, so that renderers may share a shelf.
    """

    def __init__(self, cache: TensorCache, *, family: str, weights: str, dtype: torch.dtype, torch_device: str) -> None:
        """`weights`: revision or digest; `dtype`: what the denoiser computes in; `torch_device`: of the card."""
        self.cache = cache
        #: Names the weights in keys; whoever loads from a folder of unknown content makes it stricter.
        self.weights_name = weights
        self._family = family
        self._dtype = str(dtype)
        self._torch_device = torch_device

    def fetch(self, kind: str, make: Callable[[], Tensors], **of: Any) -> Conditions:
        """Copies on the card of the tensors of `kind` (`text`, `picture`) that `of` decides, made where not kept."""
        key = cache_key(kind, weights=self.weights_name, family=self._family, dtype=self._dtype, **of)
        return self._to_card(self.cache.fetch(key, make))

    def finished_latents(self, picture: Image.Image, spec: ClipSpec) -> torch.Tensor | None:
        """(1, channels, frames, height, width) on the card: where `spec` ended on `picture` before, or None."""
        kept = self.cache.get(self._latents_key(picture, spec))
        return kept["latents"].to(self._torch_device) if kept else None

    def keep_latents(self, picture: Image.Image, spec: ClipSpec, latents: torch.Tensor) -> None:
        """Keep where a clip ended, for a larger one to start from; nothing where it is not finite or too large."""
        sound = bool(torch.isfinite(latents).all())
        if sound and latents.nbytes <= KEPT_LATENTS_BYTES:
            self.cache.put(self._latents_key(picture, spec), {"latents": latents})

    def _to_card(self, tensors: Mapping[str, torch.Tensor]) -> Conditions:
        return {name: tensor.to(self._torch_device, copy=True) for name, tensor in tensors.items()}

    def _latents_key(self, picture: Image.Image, spec: ClipSpec) -> str:
        return cache_key(
            "latents",
            picture=picture_sha256(picture),
            spec=spec.model_dump(mode="json"),
            dtype=self._dtype,
            weights=self.weights_name,
            renderer=RENDERER_VERSION,
        )


def picture_sha256(picture: Image.Image) -> str:
    """SHA-256 (hex) of a picture's size and RGB bytes."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.convert("RGB").tobytes()).hexdigest()


def conditions_sha256(halves: Halves) -> str:
    """SHA-256 (hex) over both halves' names, shapes, types and bytes: a checkpoint goes on under equal ones only."""
    named = digest({f"u.{name}": tensor for name, tensor in halves.unconditional.items()}) + digest(
        {f"c.{name}": tensor for name, tensor in halves.conditional.items()}
    )
    return hashlib.sha256(named.encode()).hexdigest()
