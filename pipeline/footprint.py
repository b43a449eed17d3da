"""Predicted peak bytes of a clip per stage, in closed form, without torch.

    stage = weights + coefficient × pixels × frames held at once

Coefficients come with the family; those of families measured by this project lie in
`pipeline/footprints/<family>.json`, written by `benchmarks/footprints.py --write`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pipeline.clip import ClipSpec
from pipeline.families import Family, MemoryModel, family_named
from pipeline.layouts import RESIDENT, Layout


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Peak bytes on the card per stage, weights included."""

    encode_bytes: int
    denoise_bytes: int
    decode_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The largest stage: what a card must have free before the clip starts."""
        return max(self.encode_bytes, self.denoise_bytes, self.decode_bytes)


NOTHING = Footprint(encode_bytes=0, denoise_bytes=0, decode_bytes=0)


@cache
def memory_model(family: Family) -> MemoryModel | None:
    """The family's coefficients: its own, else its measured table; None for a family that uses no card memory."""
    if family.memory is not None or not family.needs_torch:
        return family.memory
    table = resources.files("pipeline") / "footprints" / f"{family.name}.json"
    return MemoryModel(**json.loads(table.read_text(encoding="utf-8")))


@cache
def _footprint(family: Family, pixels: int, frames: int, layout: Layout) -> Footprint:
    model = memory_model(family)
    if model is None:
        return NOTHING
    per_step = model.denoise_split_per_pixel_frame if layout.split_guidance else model.denoise_per_pixel_frame
    decoded = min(frames, layout.decode_frames)
    return Footprint(
        encode_bytes=model.weights_bytes + round(model.encode_per_pixel * pixels),
        denoise_bytes=model.weights_bytes + round(per_step * pixels * frames),
        decode_bytes=model.weights_bytes + round(model.decode_per_pixel_frame * pixels * decoded),
    )


def footprint(spec: ClipSpec, layout: Layout = RESIDENT) -> Footprint:
    """Predicted peak bytes of `spec` under `layout`."""
    return _footprint(family_named(spec.family), spec.width * spec.height, spec.frames, layout)


def leanest(spec: ClipSpec) -> tuple[Layout, Footprint]:
    """The layout of the family that needs the least memory for `spec`, and that footprint."""
    return leanest_of(family_named(spec.family), spec.width * spec.height, spec.frames)


def leanest_of(family: Family, pixels: int, frames: int) -> tuple[Layout, Footprint]:
    """The same for any clip of `frames` frames of `pixels` each."""
    return min(
        ((layout, _footprint(family, pixels, frames, layout)) for layout in family.layouts),
        key=lambda pair: pair[1].peak_bytes,
    )


def plan(spec: ClipSpec, usable_bytes: int) -> tuple[Layout, Footprint] | None:
    """The fastest layout whose predicted peak fits in `usable_bytes`; None where none fits."""
    for layout in family_named(spec.family).layouts:
        predicted = footprint(spec, layout)
        if predicted.peak_bytes <= usable_bytes:
            return layout, predicted
    return None
