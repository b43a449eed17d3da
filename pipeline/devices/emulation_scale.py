"""Emulated cards: how many bytes of host memory stand for a card of a given size. No torch here."""

from __future__ import annotations

from functools import cache

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import family_named
from pipeline.memory.footprint import footprint
from pipeline.units import GIB

_TINY = "i2vgen-xl-tiny"

#: What 1024p × 32 frames of the small network weighs on an emulated card, resident, in nominal bytes.
_LARGEST_NOMINAL_BYTES = 22.1 * GIB


def largest_clip() -> ClipSpec:
    """The clip that sets the scale: 1024p × 32 frames of the small network."""
    family = family_named(_TINY)
    side = ResolutionClass.P1024.side
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="largest",
        resolution_class=ResolutionClass.P1024,
        width=side,
        height=side,
        frames=32,
        fps=8,
        steps=1,
        guidance=family.guidance,
        seed=0,
    )


@cache
def emulation_scale() -> float:
    """Emulated bytes per nominal byte.

    Set so that the small network's largest clip takes 22.1 GiB of nominal memory with guidance batched, what
    users report of the real model at 1024p. It then takes 12.1 GiB with guidance split. So it overflows a
    nominal 8 and a 12 GiB card under every layout, runs split on a 16 GiB one, and fits a 24 GiB one resident
    with the card's 5 % margin to spare. The small network's weights are sized for that ratio of 1.8 between
    its layouts.
    """
    return footprint(largest_clip()).peak_bytes / _LARGEST_NOMINAL_BYTES


def emulated_bytes(nominal_bytes: int) -> int:
    """Bytes of the emulated card that stands for one of `nominal_bytes`."""
    return round(nominal_bytes * emulation_scale())
