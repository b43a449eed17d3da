"""Values that a model takes and that seldom give a good clip: noted before a card spends time on them, never refused.

The bounds follow from what each family says of itself (its tiers, its guidance), so they are as different as the
families are; docs/parameters.md lists them. No bound was measured on pictures: they are rules of thumb.
"""

from __future__ import annotations

import math

from cluster.catalog.acceleration import denoises
from cluster.catalog.adjust import Findings
from cluster.catalog.defaults import STRENGTH
from pipeline.clips.clip import ClipSpec, Sampler, Tier
from pipeline.families import Family
from pipeline.memory.slowdown import clip_flops
from pipeline.notes import NewCell

#: Guidance is high from so many times the family's own.
HIGH_GUIDANCE = 2.0
#: Distilled weights are guided already: more than this is guided twice.
DISTILLED_GUIDANCE = 2.0
#: The sampler lcm is made for up to so many steps; more cost time and add nothing.
LCM_STEPS = 8
#: A smaller rendering is refined in this many steps at least, and starts anew from such a strength.
REFINING_STEPS, WHOLE_STRENGTH = 4, 0.95
#: Deep layers are computed this often at least, where they are reused across steps.
FRESH_STEPS = 5
#: Windows that take so many times the arithmetic of the clip cost more than they are worth where all fit at once.
COSTLY_WINDOWS = 1.25
#: A clip that is shorter is over before anybody has seen it, in seconds.
SHORT_S = 0.5


def few_steps(family: Family) -> int:
    """Fewer steps than this leave noise: half of what the family's draft takes, rounded up."""
    return (family.tiers[Tier.DRAFT].steps + 1) // 2


def high_guidance(family: Family) -> float:
    """More guidance than this burns colours and edges."""
    return HIGH_GUIDANCE * family.guidance


def many_steps(family: Family) -> int:
    """More steps than this take time and are seldom seen: those of the family's tier high."""
    return family.tiers[Tier.HIGH].steps


def note_traps(family: Family, spec: ClipSpec, found: Findings) -> None:
    """Note values of `spec` that seldom give a good clip. Small random networks are none to judge pictures by."""
    if not denoises(family) or family.repo is None:
        return
    if spec.adapter is not None or spec.sampler is Sampler.LCM:
        _distilled(family, spec, found)
    else:
        _steps_and_guidance(family, spec, found)
    _base(spec, found)
    _windows(family, spec, found)
    if spec.step_cache > 1 and spec.steps < FRESH_STEPS * spec.step_cache:
        most = max(1, spec.steps // FRESH_STEPS)
        message = f"step_cache {spec.step_cache} of {spec.steps} steps: deep layers are computed only a few times"
        found.note(
            "step_cache_long", f"{message}, and motion freezes or jumps. Take {most} or less", {"step_cache": most}
        )
    if spec.seconds < SHORT_S:
        message = f"{spec.frames} frames at {spec.fps} a second: the clip lasts {spec.seconds:.2g} s"
        fix = {"fps": max(1, int(spec.frames / SHORT_S))}
        found.note("clip_short", f"{message}. Lower fps, or ask for more frames or seconds", fix)


def _steps_and_guidance(family: Family, spec: ClipSpec, found: Findings) -> None:
    least, draft, most = few_steps(family), family.tiers[Tier.DRAFT].steps, high_guidance(family)
    own = f"{family.name}'s own is {family.guidance:g}"
    if spec.steps < least:
        message = f"{spec.steps} steps: {family.name} leaves noise and smears with fewer than about {least}"
        found.note("few_steps", f"{message}; a draft takes {draft}. For few steps there is tier fast", {"steps": draft})
    elif spec.steps > many_steps(family):
        most_steps = many_steps(family)
        message = f"{spec.steps} steps: more than the {most_steps} of tier high take time and are seldom seen"
        found.note("many_steps", f"{message}. Take {most_steps} or fewer", {"steps": most_steps})
    if spec.guidance > most:
        message = f"guidance {spec.guidance:g} burns colours and edges: {own}, and more than {most:g} is seldom better"
        found.note("guidance_high", message, {"guidance": family.guidance})
    elif spec.guidance > family.guidance and spec.steps < draft:
        # The cheaper of both cures.
        lower = {"guidance": family.guidance}
        message = f"guidance {spec.guidance:g} with {spec.steps} steps: each step goes too far, and colours burn"
        found.note("few_steps_high_guidance", f"{message}. Take {draft} steps or more, or lower guidance: {own}", lower)
    if spec.guidance == 1 and family.guidance > 1:
        reads = "follows prompt and picture" if family.uses_prompt else "follows the picture"
        message = f"guidance 1 is none: half the arithmetic, and the clip {reads} but loosely. {own}"
        found.note("guidance_off", message, {"guidance": family.guidance})


def _distilled(family: Family, spec: ClipSpec, found: Findings) -> None:
    if spec.guidance > DISTILLED_GUIDANCE:
        message = f"guidance {spec.guidance:g} with distilled weights, which are guided already, burns colours"
        found.note("guidance_of_distilled", f"{message}. Take 1 to {DISTILLED_GUIDANCE:g}", {"guidance": 1.0})
    if spec.sampler is Sampler.LCM and spec.adapter is None:
        message = "the sampler lcm is for weights that were distilled for it, and the row has no adapter"
        own: dict[str, NewCell] = {
            "sampler": family.samplers[0],
            "steps": family.tiers[Tier.DRAFT].steps,
            "guidance": family.guidance,
        }
        found.note(
            "lcm_undistilled", f"{message}: with a model's own weights clips are washed out. Take tier fast", own
        )
    if spec.sampler is Sampler.LCM and spec.steps > LCM_STEPS:
        message = f"{spec.steps} steps of the sampler lcm: beyond {LCM_STEPS} they cost time and blur"
        found.note("lcm_many_steps", f"{message}. Take 4 to {LCM_STEPS}, or another sampler", {"steps": LCM_STEPS})


def _base(spec: ClipSpec, found: Findings) -> None:
    if spec.base is None:
        return
    if spec.strength >= WHOLE_STRENGTH:
        message = f"strength {spec.strength:g} does nearly every step anew: little of the smaller clip is left"
        found.note("strength_whole", f"{message}, which was made for nothing. Take 0.3 to 0.7", {"strength": STRENGTH})
    elif spec.refined_steps < REFINING_STEPS and spec.adapter is None and spec.sampler is not Sampler.LCM:
        enough = math.ceil(100 * REFINING_STEPS / spec.steps) / 100
        fix = {"strength": enough} if enough < WHOLE_STRENGTH else {}
        message = f"strength {spec.strength:g} of {spec.steps} steps leaves {spec.refined_steps} for the enlarged clip"
        found.note("few_refining_steps", f"{message}, which stays soft. Take more strength or steps", fix)


def _windows(family: Family, spec: ClipSpec, found: Findings) -> None:
    if not spec.window or spec.frames > family.frame_rule.maximum or not family.frame_rule.allows(spec.frames):
        return
    times = clip_flops(spec) / clip_flops(spec.model_copy(update={"window": 0, "window_overlap": 0}))
    if times > COSTLY_WINDOWS:
        message = (
            f"windows of {spec.window} frames take {times:.1f} times the arithmetic of {spec.frames} frames at once"
        )
        found.note("windows_costly", f"{message}. Leave window empty unless memory is short", {"window": 0})
