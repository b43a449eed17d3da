"""A Wan autoencoder's decoder, latent frame by latent frame, without the copies that diffusers' makes of each.

Its convolutions are causal: beside a chunk each sees the last two frames of what it was given before. diffusers' own
forward clones those frames, concatenates them with the chunk, and copies all of that once more between zeros; it clones
what every upsampling block is given, repeats that up to eightfold before it is added, and multiplies norms out of
place. Here a chunk is written once, between zeros and behind what is remembered, into what the convolution reads;
shortcuts are added by broadcasting, and norms multiply what is their own. Convolutions, sums and products are those of
the stock network, each of the same tensors, so the frames are its own to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    WanResidualBlock,
    WanResidualUpBlock,
    WanRMS_norm,
    WanUpsample,
)
from torch import nn


class CausalDecoder:
    """Decodes one clip, or one tile of it, by a `WanDecoder3d` whose weights are only read; for inference.

    Between two calls it keeps two frames for each convolution over time, and nothing is left on the network: several
    may take turns on one. Submodules are called as ever, so what is hooked to them stays in force.
    """

    def __init__(self, decoder: WanDecoder3d) -> None:
        """`decoder` of either form, with residual upsampling blocks (Wan2.2) or without (Wan2.1)."""
        self._decoder: Any = decoder
        #: (rows, channels, frames, height, width): what each convolution was last given.
        self._seen: dict[WanCausalConv3d, torch.Tensor] = {}
        self._is_first = True

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """(rows, values, frames, height, width) of the next latent frame, (rows, channels, 1, height, width).

        One frame for the first, as many as the network makes of one for those after it. Raises `ValueError` for
        several latent frames, and what the network raises; the clip cannot go on then.
        """
        if latents.shape[2] != 1:
            raise ValueError(f"one latent frame at a time, not {latents.shape[2]}")
        with self._laid_on():
            decoded: torch.Tensor = self._decoder(latents)
        self._is_first = False
        return decoded

    @contextmanager
    def _laid_on(self) -> Iterator[None]:
        # Made anew each time: kept, they would keep this object alive in a circle, and with it memory of the card.
        forwards: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
            WanDecoder3d: self._decode,
            WanResidualUpBlock: self._rise,
            WanResidualBlock: self._pass,
            WanResample: self._resample,
            WanRMS_norm: _normed,
            WanUpsample: _enlarged,
            # Told what is padded already.
            WanCausalConv3d: nn.Conv3d.forward,
        }
        modules: list[Any] = [module for module in self._decoder.modules() if type(module) in forwards]
        try:
            for module in modules:
                # Set on the object, where it hides the class's method.
                module.forward = partial(forwards[type(module)], module)
            yield
        finally:
            for module in modules:
                module.__dict__.pop("forward", None)

    def _decode(self, decoder: Any, x: torch.Tensor) -> torch.Tensor:
        x = self._convolved(decoder.conv_in, x)
        x = decoder.mid_block(x)
        for block in decoder.up_blocks:
            x = block(x, first_chunk=self._is_first)
        return self._convolved(decoder.conv_out, _activated(decoder.nonlinearity, decoder.norm_out(x)))

    def _pass(self, block: Any, x: torch.Tensor, **_cache: Any) -> torch.Tensor:
        """A residual block. The shortcut comes last: before, it would lie beside the largest tensors."""
        y = self._convolved(block.conv1, _activated(block.nonlinearity, block.norm1(x)))
        y = self._convolved(block.conv2, block.dropout(_activated(block.nonlinearity, block.norm2(y))))
        shortcut = block.conv_shortcut(x)
        return y.add_(shortcut)

    def _rise(self, block: Any, x: torch.Tensor, first_chunk: bool, **_cache: Any) -> torch.Tensor:
        """A block that upsamples, with its shortcut around all of it where it has one."""
        y = x
        for resnet in block.resnets:
            y = resnet(y)
        if block.upsampler is not None:
            y = block.upsampler(y)
        return y if block.avg_shortcut is None else _add_repeated(y, x, block.avg_shortcut, first_chunk)

    def _resample(self, resample: Any, x: torch.Tensor, **_cache: Any) -> torch.Tensor:
        """Twice as large, and for all but the first frame twice as many."""
        rows, channels, _, height, width = x.shape
        if resample.mode == "upsample3d" and not self._is_first:
            # (rows, 2 × channels, …): the two frames that each becomes, brought beside each other in time.
            pairs = self._convolved(resample.time_conv, x).unflatten(1, (2, channels))
            frames = pairs.permute(0, 3, 1, 2, 4, 5).reshape(-1, channels, height, width)
            del pairs
        else:
            # The first frame is not what later ones see before them: the network was trained with zeros there.
            frames = x.transpose(1, 2).reshape(-1, channels, height, width)
        y = resample.resample(frames)
        return y.unflatten(0, (rows, -1)).transpose(1, 2)

    def _convolved(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """`conv` of `x` (rows, channels, frames, height, width) behind what it was given before, between zeros."""
        left, right, top, bottom, before, _ = conv._padding
        rows, channels, count, height, width = x.shape
        padded = x.new_empty(rows, channels, before + count, top + height + bottom, left + width + right)
        for border in (padded[..., :top, :], padded[..., top + height :, :]):
            border.zero_()
        for border in (padded[..., :left], padded[..., left + width :]):
            border.zero_()
        inside = padded[..., top : top + height, left : left + width]
        inside[:, :, before:] = x
        if conv in self._seen:
            inside[:, :, :before] = self._seen[conv]
        else:
            inside[:, :, :before].zero_()
            self._seen[conv] = x.new_empty(rows, channels, before, height, width)
        self._seen[conv].copy_(inside[:, :, count:])
        del x
        convolved: torch.Tensor = conv(padded)
        return convolved


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """What `WanRMS_norm` makes of `x`, in a tensor of nobody else."""
    channels = 1 if norm.channel_first else -1
    if x.dtype in (torch.float16, torch.bfloat16):
        # In float32, as the stock norm does it; one after the other, or that would be twice what all else takes.
        normed = torch.empty_like(x)
        for part, of in zip(_frames(normed), _frames(x), strict=True):
            part.copy_(nn.functional.normalize(of.float(), dim=channels))
    else:
        normed = nn.functional.normalize(x, dim=channels)
    return normed.mul_(norm.scale).mul_(norm.gamma).add_(norm.bias)


def _frames(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of (rows, channels, frames, height, width) frame by frame; of another shape row by row."""
    return x.split(1, dim=2 if x.ndim == 5 else 0)


def _enlarged(upsample: nn.Upsample, x: torch.Tensor) -> torch.Tensor:
    """The nearest pixels, in the type they are in; the stock one copies them to float32 and back."""
    if x.dtype is torch.float64:
        # What float32 does not hold is lost in the stock one.
        x = x.float().double()
    return nn.Upsample.forward(upsample, x)


def _activated(nonlinearity: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`nonlinearity` of `x`, a tensor of nobody else, in place where that is known."""
    # In the layout it has: a CPU rounds the ends of rows, which vectors do not fill, in another way.
    return nn.functional.silu(x, inplace=True) if isinstance(nonlinearity, nn.SiLU) else nonlinearity(x)


def _add_repeated(x: torch.Tensor, source: torch.Tensor, shortcut: Any, first_chunk: bool) -> torch.Tensor:
    """`x` plus what `shortcut`, a `DupUp3D`, makes of `source`, in place."""
    factors = (shortcut.factor_t, shortcut.factor_s, shortcut.factor_s)
    kept = _not_repeated(factors, shortcut.repeats)
    if kept is None:
        return x.add_(shortcut(source, first_chunk=first_chunk))
    # (rows, channels, frames, its factor, height, its factor, width, its factor), 1 where all of a factor is alike.
    pixels = source.unflatten(1, (shortcut.out_channels, *kept)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    in_time = shortcut.factor_t
    if first_chunk:
        # Of one frame's repetitions the network drops all but the last.
        pixels, in_time = pixels[:, :, :, -1:], 1
    side = shortcut.factor_s
    x.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, in_time)).add_(pixels)
    return x


def _not_repeated(factors: tuple[int, int, int], repeats: int) -> tuple[int, int, int] | None:
    """How many different channels each factor takes, where channels in a row are repeated; None: not one after another.

    Repeating each channel and then dealing them out to time, rows and columns makes the last ones alike first.
    """
    kept: list[int] = []
    for factor in reversed(factors):
        alike = repeats % factor == 0
        if not alike and repeats != 1:
            return None
        kept.append(1 if alike else factor)
        repeats = repeats // factor if alike else repeats
    return (kept[2], kept[1], kept[0]) if repeats == 1 else None
