"""A small random Wan2.2 TI2V-5B: the same code paths, a millionth of the weights.

The autoencoder has the real one's form (residual blocks, patches, 16 pixels and 4 frames a latent), so that causal
decoding is exercised, but patches of 4×4 and one level less: convolutions over time are the slowest thing on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipeline.models.tiny import fill

_WIDTH = 16
_CHANNELS = 8


def write(folder: Path) -> None:
    """Write the networks, the tokenizer and the sampler's settings into `folder`, in the layout of the real one."""
    tokenizer = _tokenizer()
    # Constructors draw from the global generator; every value they draw is replaced below.
    with torch.random.fork_rng(devices=[]):
        networks: dict[str, Any] = {
            "text_encoder": _text_encoder(tokenizer),
            "vae": _vae(),
            "transformer": _transformer(),
        }
    for name, network in networks.items():
        fill(name, network)
        _near_one(network)
        network.save_pretrained(folder / name, safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).save_pretrained(
        folder / "scheduler"
    )


def _text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=_WIDTH,
            d_kv=8,
            d_ff=2 * _WIDTH,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.125 * (place - 4) for place in range(_CHANNELS)],
        latents_std=[0.5 + 0.125 * place for place in range(_CHANNELS)],
        is_residual=True,
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        text_dim=_WIDTH,
        freq_dim=32,
        ffn_dim=512,
        num_layers=2,
    )


def _near_one(network: nn.Module) -> None:
    """Norms' factors, which have the shape of weights here, are near 1."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.mul_(0.1).add_(1.0)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A T5 tokenizer whose every letter falls back to its bytes: none needs a downloaded vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
