"""What is assumed of a row, and what of it has no effect, without being at fault: notes on its final specification."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from cluster.catalog.acceleration import denoises
from cluster.catalog.adjust import Findings
from pipeline.clips.clip import ClipSpec, Fit
from pipeline.clips.prompts import read_motion
from pipeline.families import Family, parse_aspect, size_for

if TYPE_CHECKING:
    from cluster.catalog.defaults import RowDefaults
    from cluster.catalog.manifest import Row

#: A still that is enlarged by more than this factor is noted: a person sees it.
ENLARGED_FROM = 1.5
#: Share by which a clip's shape may differ from the aspect that was asked for, sides being multiples of the stride.
_SHAPE = 0.01

#: Columns that mean something only to a family that denoises.
_OF_DENOISING = (
    *("negative_prompt", "steps", "guidance", "sampler", "window", "window_overlap", "step_cache"),
    *("motion_class", "from_draft", "strength", "upscale"),
)


def note_assumed(
    row: Row, defaults: RowDefaults, family: Family, spec: ClipSpec, still_size: tuple[int, int], found: Findings
) -> None:
    """Note what `spec`, made of `row` for a still of `still_size` pixels, assumes, drops, rounds or enlarges."""
    _camera(family, spec, found)
    _enlarged(family, spec, still_size, found)
    _shape(row, family, spec, found)
    _unused(row, defaults, family, spec, found)


def _camera(family: Family, spec: ClipSpec, found: Findings) -> None:
    if family.engine != "camera":
        return
    motion = read_motion(spec.prompt)
    names = "Name one, such as 'pan left', or write 'static camera'"
    if motion.cancelled:
        instead = ": a slow zoom in is made instead" if motion.assumed else ""
        found.note("moves_cancelled", f"{' and '.join(motion.cancelled)} cancel each other{instead}. {names}")
    elif motion.assumed:
        found.note("no_camera_move", f"the prompt names no camera move: a slow zoom in is made. {names}")


def enlargement(still_size: tuple[int, int], size: tuple[int, int], fit: Fit) -> float:
    """How many times longer a still's sides are in a clip of `size` (width, height) than in the file."""
    across, down = size[0] / still_size[0], size[1] / still_size[1]
    return min(across, down) if fit is Fit.CONTAIN else max(across, down)


def _enlarged(family: Family, spec: ClipSpec, still_size: tuple[int, int], found: Findings) -> None:
    factor = enlargement(still_size, spec.size, spec.fit)
    if factor <= ENLARGED_FROM:
        return
    aspect = spec.width / spec.height
    smaller = [
        c
        for c in family.classes
        if c.side < spec.resolution_class.side
        and enlargement(still_size, size_for(c, aspect, family.stride, family.native_sizes), spec.fit) <= ENLARGED_FROM
    ]
    lower = f"resolution_class {max(smaller, key=lambda c: c.side)} shows all of it; " if smaller else ""
    message = f"the still of {still_size[0]}×{still_size[1]} pixels is enlarged {factor:.1f} times and will look soft"
    found.note("enlarged", f"{message}: {lower}a larger still is sharper")


def _shape(row: Row, family: Family, spec: ClipSpec, found: Findings) -> None:
    if row.aspect is None:
        return
    asked, made = parse_aspect(row.aspect), spec.width / spec.height
    # What is wider than any clip was adjusted, and said.
    if 1 / 3 <= asked <= 3 and abs(math.log(made / asked)) > _SHAPE:
        why = f"sides are multiples of {family.stride} pixels"
        found.note("size_rounded", f"aspect {row.aspect} is made {spec.width}×{spec.height}, {made:.3g}:1: {why}")


@cache
def _standard(defaults: type[RowDefaults]) -> dict[str, Any]:
    """What columns of denoising are where a batch says nothing of them."""
    return {name: field.get_default() for name, field in defaults.model_fields.items() if name in _OF_DENOISING}


def _unused(row: Row, defaults: RowDefaults, family: Family, spec: ClipSpec, found: Findings) -> None:
    if not denoises(family):
        standard = _standard(type(defaults))
        unused = [
            name
            for name in _OF_DENOISING
            if getattr(row, name) is not None or (name in standard and getattr(defaults, name) != standard[name])
        ]
        if unused:
            found.note("unused", f"{family.name} does not denoise: {', '.join(unused)} unused")
    elif row.negative_prompt and not family.uses_prompt:
        found.note("negative_prompt_unused", f"negative_prompt unused: {family.name} does not read prompts")
    if row.seed is not None and not family.uses_seed:
        found.note("unused", f"seed unused: {family.name} leaves nothing to chance")
    if row.candidates > 1 and not family.uses_seed:
        message = f"all {row.candidates} candidates are the same clip: {family.name} leaves nothing to chance"
        found.note("candidates_equal", message)
    if denoises(family) and row.window_overlap is not None and not spec.window:
        found.note("unused", "window_overlap unused: the clip has no windows")
