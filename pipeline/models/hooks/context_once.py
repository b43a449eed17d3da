"""Cross-attention whose context is the same in every step and for every frame: its keys and values are computed once.

The network of I2VGen-XL gives prompt and picture, 145 tokens, to each frame of a clip, and projects every copy in every
step. Frames of a clip share them, and so do steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pipeline.models.hooks.kept import KeptByConditions, before_evaluations


@contextmanager
def context_once(network: nn.Module, conditions: Sequence[str]) -> Iterator[None]:
    """Inside, each cross-attention of `network`, a diffusers UNet, projects a context of its conditions once.

    `conditions`: keyword arguments of the network that its context is made of, the first having one row a clip; the
    context itself may repeat each row, once a frame. Keys and values are kept for as long as the very same tensors are
    given, or two sets of them in turn. So whatever changes weights is laid on before and taken off after.
    """
    kept = KeptByConditions(conditions)
    laid: list[Any] = []
    blocks: Iterable[Any] = network.modules()
    try:
        for block in blocks:
            attention = getattr(block, "attn2", None)
            # In temporal layers the second attention is over the frames again.
            if isinstance(attention, Attention) and attention.is_cross_attention:
                for projection in (attention.to_k, attention.to_v):
                    laid.append(projection)
                    # Set on the object, where it hides the class's method.
                    projection.forward = _Projection(projection, kept)
        with before_evaluations(network, kept.begin):
            yield
    finally:
        for projection in laid:
            projection.__dict__.pop("forward", None)
        kept.forget()


class _Projection:
    """The forward of one layer that makes keys or values."""

    def __init__(self, layer: Any, kept: KeptByConditions) -> None:
        self._layer = layer
        self._kept = kept

    def __call__(self, context: torch.Tensor) -> torch.Tensor:
        """(rows × frames, tokens, dim) of a context of that many rows, the frames of each row alike."""
        frames = context.shape[0] // self._kept.rows
        made = self._kept.of(self._layer, lambda: type(self._layer).forward(self._layer, context[::frames]))
        return made.repeat_interleave(frames, dim=0, output_size=context.shape[0])
