"""Feed-forward layers in chunks: every token passes them alone, so doing a part of the tokens at a time is exact."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from torch import nn


def chunk_feed_forward(networks: Iterable[nn.Module], chunks: int) -> None:
    """Let every feed-forward layer of `networks` do its tokens in `chunks` parts; 1 restores them.

    A layer widens its input four to eight times, which in spatial and temporal transformers is the largest
    activation there is. (diffusers' own switch wants a chunk size that divides the sequences of every level, and
    some families lack it.)
    """
    for network in networks:
        for module in network.modules():
            if isinstance(module, FeedForward):
                # Set on the object, where it hides the class's method.
                module.__dict__.pop("forward", None)
                if chunks > 1:
                    module.forward = partial(_in_chunks, module, chunks)


def _in_chunks(
    module: FeedForward, chunks: int, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    found: torch.Tensor | None = None
    first = 0
    for part in rows.chunk(chunks):
        done = type(module).forward(module, part, *args, **kwargs)
        if found is None:
            found = done.new_empty(rows.shape[0], done.shape[-1])
        found[first : first + part.shape[0]] = done
        first += part.shape[0]
        # Else it would be there beside the next one.
        del done
    assert found is not None
    return found.view(*hidden_states.shape[:-1], -1)
