"""What a renderer takes of its host's memory, in closed form. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.families import Family
from pipeline.memory.footprint import memory_model
from pipeline.units import GIB, MIB

#: Bytes of a renderer without weights: Python, torch, Ray and CUDA's part on the host. An estimate, not measured.
PROCESS_BYTES = 3 * GIB
#: Weights are moved into pinned memory by pieces of so many bytes (`pipeline.devices.pinning`).
PIECE_BYTES = 256 * MIB
#: Share of a pod's memory at which Ray ends the process that takes most (its `memory_usage_threshold`).
USABLE_SHARE = 0.95


def host_bytes(family: Family) -> int:
    """Most bytes of host memory that a renderer of `family` holds: the process, all weights, and some of them twice.

    The host keeps the weights while they are on the card, so that evicting them copies nothing. Those that are streamed
    or evicted are moved into pinned memory, piece by piece, and the largest piece may be one tensor. Where weights are
    a file mapped in the precision they are used in, and are never moved, they are cache that the kernel can drop, and
    it is less.
    """
    model = memory_model(family)
    if model is None:
        return PROCESS_BYTES
    # No tensor is larger than the groups that are streamed.
    return PROCESS_BYTES + sum(model.weights.values()) + max(PIECE_BYTES, *model.streamed.values())


def pod_bytes(families: Iterable[Family], renderers: int = 1) -> int:
    """Bytes that a pod of so many renderers needs, each with the largest of `families` loaded; 0 for no family."""
    largest = max((host_bytes(family) for family in families), default=0)
    return round(renderers * largest / USABLE_SHARE)
