"""A Wan transformer whose clip has two timesteps: its still's and everything else's.

Told a timestep for every token, diffusers' network embeds each of them, and every block then scales, shifts and gates
by a tensor of its own six vectors a token, in float32: at 1280×704×81 frames that is two thirds of a step's memory.
There are two different ones. Here two are embedded, and the tokens of either are scaled, shifted and gated by one
vector: the same products and sums, element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pipeline.models.hooks.rounding import REPEATED


@contextmanager
def two_timesteps(network: Any, first_tokens: int) -> Iterator[None]:
    """Inside, `network`, a `WanTransformer3DModel`, takes (rows, 2) timesteps: of its first tokens, and of the rest.

    `first_tokens`: how many of a row's tokens, in the network's order, are at the first timestep; none or all may be.
    Only inference without pictures as context is known (`hidden_states`, `timestep`, `encoder_hidden_states`). Its
    submodules are called as ever, so what is hooked to them, or laid over them, stays in force.
    """
    modules: list[Any] = [network, *network.blocks]
    forwards: list[Callable[..., Any]] = [_transform, *[_pass_block] * len(network.blocks)]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            # Set on the object, where it hides the class's method.
            module.forward = partial(forward, module, first_tokens)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _transform(
    network: Any,
    first_tokens: int,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    return_dict: bool = False,
) -> tuple[torch.Tensor]:
    """The network's output, shaped like `hidden_states` (rows, channels, frames, height, width), in a tuple."""
    assert timestep.shape == (hidden_states.shape[0], 2), timestep.shape
    assert not return_dict
    rotations = network.rope(hidden_states)
    patches = network.patch_embedding(hidden_states)
    grid = patches.shape[2:]
    tokens = patches.flatten(2).transpose(1, 2).contiguous()
    del patches
    times, projected, text, _ = network.condition_embedder(
        timestep.repeat(1, REPEATED).flatten(), encoder_hidden_states, None, timestep_seq_len=2 * REPEATED
    )
    times, projected = times[:, :2], projected[:, :2].unflatten(2, (6, -1))
    for block in network.blocks:
        tokens = block(tokens, text, projected, rotations)
    shift, scale = _vectors(network.scale_shift_table, times.unsqueeze(2))
    normed = _modulated(network.norm_out(tokens.float()), scale, shift, first_tokens).type_as(tokens)
    del tokens
    return (_unpatched(network.proj_out(normed), grid, network.config.patch_size),)


def _pass_block(
    block: Any, first_tokens: int, tokens: torch.Tensor, text: torch.Tensor, projected: torch.Tensor, rotations: Any
) -> torch.Tensor:
    """(rows, tokens, dim) after one block; `projected` (rows, 2, 6, dim): what the two timesteps say."""
    shift, scale, gate, ff_shift, ff_scale, ff_gate = _vectors(block.scale_shift_table, projected.float())
    normed = _modulated(block.norm1(tokens.float()), scale, shift, first_tokens).type_as(tokens)
    attended = block.attn1(normed, None, None, rotations)
    del normed
    tokens = _gated(tokens, attended, gate, first_tokens)
    del attended
    tokens = tokens + block.attn2(block.norm2(tokens.float()).type_as(tokens), text, None, None)
    normed = _modulated(block.norm3(tokens.float()), ff_scale, ff_shift, first_tokens).type_as(tokens)
    passed = block.ffn(normed)
    del normed
    return _gated(tokens, passed.float(), ff_gate, first_tokens)


def _vectors(table: nn.Parameter, said: torch.Tensor) -> list[torch.Tensor]:
    """Each (rows, 2, dim): `table` (1, n, dim) is what the layer learned, `said` (rows, 2, n or 1, dim) the times."""
    return [vector.squeeze(2) for vector in (table.unsqueeze(0) + said).split(1, dim=2)]


def _segments(tokens: int, first_tokens: int) -> list[tuple[slice, slice]]:
    """Which tokens, and which of the two vectors is theirs; a segment without tokens is left out."""
    spans = ((slice(0, first_tokens), slice(0, 1)), (slice(first_tokens, tokens), slice(1, 2)))
    return [span for span in spans if span[0].start < span[0].stop]


def _modulated(normed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, first_tokens: int) -> torch.Tensor:
    """`normed`, a tensor of nobody else, times 1 + scale plus shift, in place."""
    for tokens, which in _segments(normed.shape[1], first_tokens):
        normed[:, tokens].mul_(1 + scale[:, which]).add_(shift[:, which])
    return normed


def _gated(tokens: torch.Tensor, added: torch.Tensor, gate: torch.Tensor, first_tokens: int) -> torch.Tensor:
    """`tokens` plus `added` times gate, in the type of `tokens`; a new tensor."""
    # At least as wide as the gate, which is what the stock network's sum is in.
    total = tokens.to(torch.promote_types(tokens.dtype, gate.dtype), copy=True)
    for span, which in _segments(tokens.shape[1], first_tokens):
        # Not one fused operation: it would round once where these round twice.
        total[:, span].add_(added[:, span] * gate[:, which])
    return total.type_as(tokens)


def _unpatched(patches: torch.Tensor, grid: torch.Size, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """(rows, channels, frames, height, width) of (rows, tokens, values of a patch), patches by their `grid`."""
    rows = patches.unflatten(1, tuple(grid)).unflatten(-1, (*patch_size, -1))
    return rows.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
