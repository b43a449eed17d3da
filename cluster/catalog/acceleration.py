"""Ways to a clip in less time: few steps, layers reused across steps, a start from a smaller rendering. All lossy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cluster.catalog.adjust import Findings
from cluster.catalog.defaults import FewStep
from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Tier
from pipeline.families import Family, size_for

MAX_STEP_CACHE = 1000
#: Frames a second of a clip that has to be as short as its draft; the most a specification can have.
MAX_FPS = 120
#: Shapes of a clip and of the smaller one it starts from that differ by more than this are noted.
MAX_STRETCH = 1.1


def denoises(family: Family) -> bool:
    """Whether the family makes its clips in denoising steps."""
    return family.max_steps > 1


def few_step(family: Family, tier: Tier, configured: Mapping[str, FewStep], found: Findings) -> FewStep | None:
    """What tier `fast` means for the family; None for another tier, or with a problem where it means nothing."""
    if tier is not Tier.FAST:
        return None
    if not found.check(
        denoises(family), "tier", f"{family.name} has no steps to save: there is no tier fast", "Choose draft."
    ):
        return None
    found.check(
        family.name in configured,
        "tier",
        f"this farm has no few-step weights for {family.name}",
        "Start it with --few-step FILE, which names an adapter (docs/parameters.md), or choose draft.",
    )
    return configured.get(family.name)


def check_step_cache(family: Family, step_cache: int, window: int, found: Findings) -> None:
    """Note what forbids reusing deep layers for `step_cache` steps."""
    if step_cache == 1:
        return
    found.check(
        1 <= step_cache <= MAX_STEP_CACHE, "step_cache", f"{step_cache} steps", f"Choose 1 (none) to {MAX_STEP_CACHE}."
    )
    message = f"{family.name} cannot reuse layers across steps"
    found.check(family.step_cacheable, "step_cache", message, "Leave it empty.")
    message = "layers cannot be reused across the steps of a clip in windows"
    found.check(not window, "step_cache", message, "Leave step_cache or window empty.")


def check_base(family: Family, resolution_class: ResolutionClass, asked: Callable[[str], Any], found: Findings) -> None:
    """Note what forbids the start that `motion_class` or `from_draft` ask for. `asked` gives a column's value."""
    motion: ResolutionClass | None = asked("motion_class")
    from_draft = bool(asked("from_draft"))
    if not motion and not from_draft:
        return
    field = "motion_class" if motion else "from_draft"
    message = "a clip starts from its draft or from a smaller class, not from both"
    found.check(not (motion and from_draft), "from_draft", message, "Leave motion_class or from_draft empty.")
    message = f"{family.name} cannot start from a smaller rendering"
    found.check(family.refinable, field, message, f"Leave {field} empty.")
    strength = asked("strength")
    found.check(0 < strength <= 1, "strength", f"{strength:g} is no share of the steps", "Choose above 0, at most 1.")
    if motion:
        smaller = [c for c in family.classes if c.side < resolution_class.side]
        message = f"the motion of a {resolution_class} clip cannot be made at {motion}"
        remedy = f"Choose one of: {', '.join(smaller)}." if smaller else "Leave it empty: no class is smaller."
        found.check(motion in smaller, "motion_class", message, remedy)


def motion_base(
    family: Family, spec: ClipSpec, motion_class: ResolutionClass, aspect: float, found: Findings
) -> BaseClip:
    """`spec` at a smaller class and the same aspect (width ÷ height), all else equal: the same row's clip there."""
    width, height = size_for(motion_class, aspect, family.stride, family.native_sizes)
    rule = family.frame_rule
    message = f"{family.name} cannot make the motion of {spec.frames} frames at once: it takes {rule}"
    found.check(rule.allows(spec.frames), "motion_class", message, f"Ask for at most {rule.maximum} frames.")
    stretch = spec.width / spec.height / (width / height)
    if abs(math.log(stretch)) > math.log(MAX_STRETCH):
        # Both sizes are rounded to the stride, which in a small class is coarse.
        found.note(
            "motion_stretched",
            f"motion of {width}×{height} is stretched to {spec.width}×{spec.height}: an aspect of {width}:{height} or "
            "a larger motion_class avoids it",
        )
    return base_of(spec.model_copy(update={"resolution_class": motion_class, "width": width, "height": height}))


def after_draft(spec: ClipSpec, draft: ClipSpec, asked_fps: int | None, found: Findings) -> ClipSpec:
    """`spec` started from the clip `draft`, and as long as it: people approved the motion, its pace included."""
    fps = min(max(1, round(spec.frames / draft.seconds)), MAX_FPS)
    started = spec.model_copy(update={"fps": fps, "base": base_of(draft)})
    if fps != spec.fps:
        why = f"{spec.frames} frames of {started.seconds:.3g} s, as the draft's {draft.seconds:.3g} s"
        if asked_fps is None:
            found.note("fps_of_draft", f"fps {spec.fps} -> {fps}: {why}")
        else:
            message = f"{asked_fps} frames per second would make it longer or shorter than its draft"
            found.adjust("fps", fps, f"{spec.fps} -> {fps}: {why}", message, f"Leave it empty for {fps}.")
    alone = started.base_spec
    differing = [name for name in ClipSpec.model_fields if getattr(alone, name) != getattr(draft, name)]
    message = f"the draft of this row is rendered with another {', '.join(differing)}"
    found.check(not differing, "from_draft", message, "Leave from_draft empty, or give the draft what the clip has.")
    return started


def base_of(spec: ClipSpec) -> BaseClip:
    """What a clip that starts from `spec` has to say of it."""
    return BaseClip.model_validate({name: getattr(spec, name) for name in BaseClip.model_fields})
