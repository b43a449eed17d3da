"""Networks that compute more precisely for a while: half precision overflows in some autoencoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def widened(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, `networks` compute in float32; afterwards in what they did before."""
    before = [network.dtype for network in networks]
    try:
        for network in networks:
            network.float()
        yield
    finally:
        for network, dtype in zip(networks, before, strict=True):
            # Not the class's own: diffusers' warns of every move to half precision, whatever is lost by it.
            nn.Module.to(network, dtype)  # type: ignore[arg-type]
