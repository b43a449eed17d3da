"""Small random networks, made at run time; here I2VGen-XL's: the same code paths, a thousandth of the work.

It exists to prove plumbing, memory and arithmetic on a CPU. Three levels without attention over a lowest one
with it keep 1024p within a few seconds a step, and activations of denoising far above those of decoding.
"""

from __future__ import annotations

import importlib
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from pipeline.denoising.noise import noise
from pipeline.families import Family

_WIDTH = 16
_MAX_TOKENS = 77
_PICTURE_SIDE = 32

#: Engine -> module and function that writes a small network of its kind into a folder.
_WRITERS = {
    "i2vgen-xl": ("pipeline.models.tiny", "write_i2vgen_xl"),
    "svd": ("pipeline.models.tiny_svd", "write"),
    "wan": ("pipeline.models.tiny_wan", "write"),
}


def make_tiny(family: Family, folder: Path) -> None:
    """Write the family's small network into `folder`, in the layout of the real one. Does nothing where it exists.

    The weights are the same on every machine and leave global random states as they were. The folder appears
    complete or not at all, also when two processes make it at once.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        module, function = _WRITERS[family.engine]
        getattr(importlib.import_module(module), function)(building)
        building.chmod(0o755)
        try:
            os.replace(building, folder)  # noqa: PTH105 - Path.replace reads as if it could merge folders
        except OSError:
            if not folder.is_dir():  # else another process was first; its folder is equal
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_i2vgen_xl(folder: Path) -> None:
    """Write a small I2VGen-XL into `folder`, in the layout of the real one."""
    tokenizer = _tokenizer()
    # Constructors draw from the global generator; every value they draw is replaced below.
    with torch.random.fork_rng(devices=[]):
        networks: dict[str, nn.Module] = {
            "text_encoder": _text_encoder(tokenizer),
            "image_encoder": _image_encoder(),
            "vae": _vae(),
            "unet": _unet(),
        }
    for name, network in networks.items():
        fill(name, network)
        half: Any = network.half()
        half.save_pretrained(folder / name, variant="fp16", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPImageProcessorPil(
        size={"shortest_edge": _PICTURE_SIDE}, crop_size={"height": _PICTURE_SIDE, "width": _PICTURE_SIDE}
    ).save_pretrained(folder / "feature_extractor")
    _scheduler().save_pretrained(folder / "scheduler")


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            projection_dim=_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=_MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            # Wide for its work, so that weights take a share of the card as the real ones do (a tenth at
            # 1024p × 32 frames): halving the activations must not halve the footprint.
            hidden_size=512,
            intermediate_size=2048,
            projection_dim=_WIDTH,
            num_hidden_layers=6,
            num_attention_heads=8,
            image_size=_PICTURE_SIDE,
            patch_size=8,
        )
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


def _unet() -> I2VGenXLUNet:
    return I2VGenXLUNet(
        sample_size=32,
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownBlock3D",) * 3 + ("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",) + ("UpBlock3D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=_WIDTH,
        # In this network it sets the number of heads as well; `num_attention_heads` is ignored.
        attention_head_dim=1,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=1,
    )


def fill(component: str, network: nn.Module) -> None:
    """Random weights of the size that keeps activations near 1, by parameter name."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.from_numpy(noise(0, f"tiny/{component}/{name}", 0, 0, tuple(parameter.shape)))
            if parameter.ndim > 1:
                values /= math.sqrt(max(1, parameter[0].numel()))
            elif name.endswith("weight"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            parameter.copy_(values)


def _tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes: every prompt has tokens, none needs a downloaded vocabulary."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{piece}</w>" for piece in alphabet)]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=_MAX_TOKENS
    )
