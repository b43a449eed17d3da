"""A small random Stable Video Diffusion: the real code paths at a hundredth of the work.

Diffusers' classes of these networks normalise over 32 groups whatever their configuration says, so no level could
have fewer than 32 channels, and one 512p frame would take seconds to decode on a CPU. `SmallUNet` and `SmallVae` are
the same classes, their forward passes untouched, built with two groups wherever there are fewer channels than that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline.models.tiny import fill

_GROUPS = 2
_EMBEDDING = 16
#: fps, motion bucket and strength of the picture's noise.
_TIME_IDS = 3
_TIME_WIDTH = 8
#: diffusers' pipeline brings every picture to this side, whatever the encoder's own.
_PICTURE_SIDE = 224


class _Norm(nn.GroupNorm):
    """Group norm over as many groups as asked for, or over `_GROUPS` where that many do not fit."""

    def __init__(self, num_groups: int, num_channels: int, *args: Any, **options: Any) -> None:
        super().__init__(num_groups if num_channels % num_groups == 0 else _GROUPS, num_channels, *args, **options)


_building = threading.Lock()


@contextmanager
def _few_groups() -> Iterator[None]:
    # Another thread that builds a network meanwhile is not disturbed: what fits is built as asked for.
    with _building:
        plain, nn.GroupNorm = nn.GroupNorm, _Norm  # type: ignore[misc]
        try:
            yield
        finally:
            nn.GroupNorm = plain  # type: ignore[misc]


class SmallUNet(UNetSpatioTemporalConditionModel):
    """The denoiser, allowed fewer than 32 channels; built and loaded by `from_config` and `from_pretrained`."""

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Any:
        """A network of `config`, as diffusers builds it but for groups that fit its channels."""
        with _few_groups():
            return super().from_config(*args, **options)


class SmallVae(AutoencoderKLTemporalDecoder):
    """The autoencoder, allowed fewer than 32 channels; built and loaded by `from_config` and `from_pretrained`."""

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Any:
        """A network of `config`, as diffusers builds it but for groups that fit its channels."""
        with _few_groups():
            return super().from_config(*args, **options)


def write(folder: Path) -> None:
    """Write the networks, the sampler's settings and the picture's preprocessing into `folder`."""
    # Constructors draw from the global generator; every value they draw is replaced below.
    with torch.random.fork_rng(devices=[]):
        networks: dict[str, nn.Module] = {"image_encoder": _image_encoder(), "vae": _vae(), "unet": _unet()}
    for name, network in networks.items():
        fill(name, network)
        half: Any = network.half()
        half.save_pretrained(folder / name, variant="fp16", safe_serialization=True)
    CLIPImageProcessorPil(
        size={"shortest_edge": _PICTURE_SIDE}, crop_size={"height": _PICTURE_SIDE, "width": _PICTURE_SIDE}
    ).save_pretrained(folder / "feature_extractor")
    _scheduler().save_pretrained(folder / "scheduler")


def _image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            # Wide for its work, so that weights take a share of the card as the real ones do.
            hidden_size=256,
            intermediate_size=1024,
            projection_dim=_EMBEDDING,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=_PICTURE_SIDE,
            patch_size=32,
        )
    )


def _vae() -> nn.Module:
    config = {
        # Two: decoding works on pixels, and would else take longer than all steps together.
        "block_out_channels": (2, 2, 2, 2),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "force_upcast": True,
    }
    built: nn.Module = SmallVae.from_config(config)
    return built


def _unet() -> nn.Module:
    config = {
        "sample_size": 32,
        "block_out_channels": (4, 8, 8, 8),
        # Attention at the lowest level alone keeps 1024p within a few seconds a step.
        "down_block_types": ("DownBlockSpatioTemporal",) * 3 + ("CrossAttnDownBlockSpatioTemporal",),
        "up_block_types": ("CrossAttnUpBlockSpatioTemporal",) + ("UpBlockSpatioTemporal",) * 3,
        "layers_per_block": 1,
        "addition_time_embed_dim": _TIME_WIDTH,
        "projection_class_embeddings_input_dim": _TIME_WIDTH * _TIME_IDS,
        "cross_attention_dim": _EMBEDDING,
        "num_attention_heads": 2,
        "num_frames": 25,
    }
    built: nn.Module = SmallUNet.from_config(config)
    return built


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )
