"""Queries, keys and values of a self-attention by one product in place of three, from one tensor of all weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import nn
from torch.nn import functional


class PackedLinear:
    """Several linear layers of one input as one; what it gives is theirs one after the other.

    No module: the weights are those of the layers, and would be counted and moved twice.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, sum of the layers' out)."""
        return functional.linear(hidden_states, self.weight, self.bias)


class _PackedProcessor(FusedAttnProcessor2_0):
    """diffusers' own for packed projections, where an attention looks at itself."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **others: Any
    ) -> Any:
        """What `AttnProcessor2_0` gives."""
        if encoder_hidden_states is not None:
            return _PLAIN(attn, hidden_states, encoder_hidden_states, **others)
        return super().__call__(attn, hidden_states, encoder_hidden_states, **others)


#: One for all layers, so that blocks which are alike share what is compiled of them.
_PLAIN, _PACKED = AttnProcessor2_0(), _PackedProcessor()


@contextmanager
def packed_projections(blocks: Iterable[nn.Module]) -> Iterator[int]:
    """Inside, self-attentions within `blocks` project by one product each; gives how many do.

    The weights of the three layers become views of one tensor, so nothing is held twice: it takes another one of the
    largest three for a moment. They stay so afterwards, where the layers are called one by one as before; moving a
    network moves each, and it is packed anew. Not those whose layers are no plain ones, such as an adapter's. All
    weights must be where they compute, and stay there.
    """
    packed: list[Any] = []
    try:
        for attention in (module for block in blocks for module in block.modules() if _is_packable(module)):
            _pack(attention)
            packed.append(attention)
        yield len(packed)
    finally:
        for attention in packed:
            del attention.to_qkv
            if _is_wan(attention):
                attention.fused_projections = False
            else:
                attention.processor = _PLAIN


def _pack(attention: Any) -> None:
    layers = [attention.to_q, attention.to_k, attention.to_v]
    weight = _joined([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])
    attention.to_qkv = PackedLinear(weight, bias)
    if _is_wan(attention):
        attention.fused_projections = True
    else:
        attention.processor = _PACKED


def _is_wan(module: Any) -> bool:
    """Whether it is diffusers' attention of Wan, computed as it came; by name, as blocks that repeat are known."""
    names = type(module).__name__, type(getattr(module, "processor", None)).__name__
    return names == ("WanAttention", "WanAttnProcessor")


def _is_packable(module: Any) -> bool:
    if type(module) is Attention:
        plain = type(module.processor) is AttnProcessor2_0 and not module.is_cross_attention
    else:
        plain = _is_wan(module) and not module.is_cross_attention and module.add_k_proj is None
    if not plain:
        return False
    layers = [module.to_q, module.to_k, module.to_v]
    return (
        all(type(layer) is nn.Linear for layer in layers)
        and len({layer.weight.shape for layer in layers}) == 1
        and len({layer.bias is None for layer in layers}) == 1
    )


def _joined(parts: list[nn.Parameter]) -> torch.Tensor:
    """One tensor of the parts, which become views of it; the one that they are views of already, where they are."""
    first = parts[0]
    size = first.numel()
    storage = first.untyped_storage().data_ptr()
    lies = all(
        part.untyped_storage().data_ptr() == storage
        and part.storage_offset() == first.storage_offset() + number * size
        and part.is_contiguous()
        for number, part in enumerate(parts)
    )
    shape = (len(parts) * first.shape[0], *first.shape[1:])
    if lies:
        return first.data.as_strided(shape, first.stride())
    joined = torch.cat([part.data for part in parts])
    for part, piece in zip(parts, joined.chunk(len(parts)), strict=True):
        part.data = piece
    return joined
