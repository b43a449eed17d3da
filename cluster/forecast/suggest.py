"""What a card can render: classes, frames, layouts and a first idea of the time, from footprints alone. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cluster.fleet.cards import promised_bytes
from pipeline.clips.clip import NO_PROMPT, ClipSpec, ResolutionClass, Tier
from pipeline.families import Family, TierSettings, size_for
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import Footprint, flops_per_step, leanest_of, plan
from pipeline.memory.slowdown import FasterLayout, clip_flops, slowdown, why_not_faster
from pipeline.units import GIB

#: Part of the published TFLOPS that video diffusion is taken to reach. A guess: 0.6 follows from the 525 s that
#: Wan2.2's authors publish of a 4090 (720p, 121 frames, 50 steps), networks made of convolutions reach less.
EFFICIENCY = 0.5
#: A still is not enlarged by more than this, a side: beyond it there is nothing more to see.
MAX_ENLARGEMENT = 1.25
#: Part of a card's memory above which it is called full.
FULL_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Option:
    """One class of one family on a card."""

    family: Family
    resolution_class: ResolutionClass
    #: Pixels.
    width: int
    height: int
    tier: Tier
    #: The tier's, or as many as fit.
    frames: int
    steps: int
    #: Most frames of a clip evaluated at once that fit under any layout, and within the time where one is given.
    max_frames: int
    #: The fastest layout that fits `frames`, and what it takes.
    layout: Layout
    predicted: Footprint
    #: Layouts that a clip would take before `layout`, best first, and what they lack.
    faster: tuple[FasterLayout, ...]
    #: Highest value that is known to be good for this model: its own. It costs no memory and no time, as any above 1.
    guidance: float
    flops_per_step: float
    #: Expected seconds of all steps and decoding in that layout; None where the card's speed is not known.
    seconds: float | None
    #: How many times as long it takes as where all fits at once; None where the card's speed is not known.
    slowdown: float | None
    #: The class to start with: the family's native one, or what comes nearest to it from below.
    recommended: bool = False


def usable_of(vram_gib: float) -> int:
    """Bytes that clips may use of a card with so many GiB of memory, as every card class counts them."""
    return max(0, promised_bytes(int(vram_gib * GIB)))


def largest_worth(width: int, height: int) -> ResolutionClass:
    """The largest class that a still of this many pixels has anything to show in."""
    side = math.sqrt(width * height) * MAX_ENLARGEMENT
    return max((c for c in ResolutionClass if c.side <= side), key=_side, default=min(ResolutionClass, key=_side))


def max_frames(family: Family, pixels: int, usable_bytes: int) -> int | None:
    """Most frames of `pixels` each, evaluated at once, that fit under any layout; None where the fewest do not."""
    allowed = _allowed(family)
    fitting = bisect_right(allowed, usable_bytes, key=lambda n: leanest_of(family, pixels, n)[1].peak_bytes)
    return allowed[fitting - 1] if fitting else None


def suggest(
    families: Iterable[Family],
    usable_bytes: int,
    *,
    aspect: float = 1.0,
    largest: ResolutionClass = ResolutionClass.P1024,
    tflops: float | None = None,
    within_s: float | None = None,
) -> list[Option]:
    """What fits in `usable_bytes`, by family and class up to `largest`.

    With `within_s` only what is expected to take no longer on a card of `tflops` (which it then needs): standard
    clips, else drafts, else as many frames of one as there is time for.
    """
    assert within_s is None or tflops is not None, "no time is known of a card without a speed"
    return [option for family in families for option in _of(family, usable_bytes, aspect, largest, tflops, within_s)]


def _of(
    family: Family,
    usable_bytes: int,
    aspect: float,
    largest: ResolutionClass,
    tflops: float | None,
    within_s: float | None,
) -> Iterator[Option]:
    found: list[Option] = []
    for resolution_class in sorted(family.classes, key=_side):
        if resolution_class.side > largest.side:
            break
        size = size_for(resolution_class, aspect, family.stride, family.native_sizes)
        options = [
            option
            for tier in (Tier.STANDARD, Tier.DRAFT)
            if (option := _option(family, resolution_class, size, tier, usable_bytes, tflops, within_s))
        ]
        if within_s is not None:
            whole = [option for option in options if option.frames == family.tiers[option.tier].frames]
            options = whole or options[-1:]
        found += options[:1]
    native = [option for option in found if option.resolution_class.side <= family.native_class.side]
    best = (native or found[:1])[-1:]
    return (replace(option, recommended=option in best) for option in found)


def _option(
    family: Family,
    resolution_class: ResolutionClass,
    size: tuple[int, int],
    tier: Tier,
    usable_bytes: int,
    tflops: float | None,
    within_s: float | None,
) -> Option | None:
    pixels = size[0] * size[1]
    settings = family.tiers[tier]

    def clip(frames: int) -> ClipSpec:
        return _clip(family, resolution_class, size, frames, settings)

    def planned(frames: int) -> tuple[Layout, Footprint] | None:
        return plan(clip(frames), usable_bytes)

    def seconds(frames: int) -> float:
        found = planned(frames)
        assert tflops is not None
        assert found is not None
        reached = tflops * EFFICIENCY
        return clip_flops(clip(frames)) / (reached * 1e12) * slowdown(clip(frames), found[0], tflops=reached)

    most = max_frames(family, pixels, usable_bytes)
    if most is not None and within_s is not None:
        # From above: a leaner layout may take longer than a faster one of a few frames more.
        in_time = (n for n in reversed(_allowed(family)) if n <= most and seconds(n) <= within_s)
        most = next(in_time, None)
    if most is None:
        return None
    frames = min(settings.frames, most)
    found = planned(frames)
    assert found is not None, "what fits in any shape of so many pixels fits in this one"
    reached = None if tflops is None else tflops * EFFICIENCY
    return Option(
        family=family,
        resolution_class=resolution_class,
        width=size[0],
        height=size[1],
        tier=tier,
        frames=frames,
        steps=settings.steps,
        max_frames=most,
        layout=found[0],
        predicted=found[1],
        faster=why_not_faster(clip(frames), usable_bytes, tflops=reached),
        guidance=family.guidance,
        flops_per_step=flops_per_step(family, pixels, frames),
        seconds=None if reached is None else seconds(frames),
        slowdown=None if reached is None else slowdown(clip(frames), found[0], tflops=reached),
    )


def _clip(
    family: Family, resolution_class: ResolutionClass, size: tuple[int, int], frames: int, settings: TierSettings
) -> ClipSpec:
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt=NO_PROMPT,
        resolution_class=resolution_class,
        width=size[0],
        height=size[1],
        frames=frames,
        fps=settings.fps,
        steps=settings.steps,
        guidance=family.guidance,
        seed=0,
        sampler=family.samplers[0] if family.samplers else None,
    )


def largest_fit(family: Family, usable_bytes: int) -> tuple[ResolutionClass, int] | None:
    """The largest class in which a draft fits, else anything at all, and its most frames; None where nothing fits."""
    fitting = [
        (c, most)
        for c in family.classes
        if (most := max_frames(family, math.prod(size_for(c, 1.0, family.stride)), usable_bytes))
    ]
    drafts = [(c, most) for c, most in fitting if most >= family.tiers[Tier.DRAFT].frames]
    return max(drafts or fitting, key=lambda pair: _side(pair[0]), default=None)


def _allowed(family: Family) -> list[int]:
    rule = family.frame_rule
    return [n for n in range(rule.minimum, rule.maximum + 1) if rule.allows(n)]


def _side(resolution_class: ResolutionClass) -> int:
    return resolution_class.side
