"""Whether the cards there are hold a clip, and well: noted before one spends time on it, with what they would hold."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.catalog.acceleration import denoises
from cluster.forecast.suggest import max_frames
from pipeline.clips.clip import ClipSpec, Tier
from pipeline.families import Family, family_named, size_for
from pipeline.memory.footprint import leanest, plan
from pipeline.notes import NewCell, Note
from pipeline.units import format_bytes


def card_notes(spec: ClipSpec, largest_bytes: int) -> tuple[Note, ...]:
    """Notes on a clip for a fleet whose largest card has `largest_bytes` usable; 0: nothing is known of cards.

    `no_card_fits`: it runs out of memory in every layout. `card_tight`: it fits only in tiles, or with weights that are
    copied to the card at each step.
    """
    family = family_named(spec.family)
    if not largest_bytes or not denoises(family):
        return ()
    what = f"{spec.width}×{spec.height} × {spec.frames} frames"
    found = plan(spec, largest_bytes)
    fix = _smaller(family, spec, largest_bytes)
    instead = f". Take {', '.join(f'{name} {value}' for name, value in fix.items())}" if fix else ""
    if found is None:
        needs = format_bytes(leanest(spec)[1].peak_bytes)
        message = f"{what} of {family.name} need {needs}, and the largest card has {format_bytes(largest_bytes)} usable"
        return (_note("no_card_fits", f"{message}: it runs out of memory{instead}", fix),)
    layout = found[0]
    if layout.decode_tile or layout.stream_weights:
        how = "only in tiles, which change tones" if layout.decode_tile else "only with weights copied at every step"
        message = f"{what} of {family.name} fit the largest card ({format_bytes(largest_bytes)} usable) {how}"
        return (_note("card_tight", f"{message}{instead}", fix),)
    return ()


def _note(code: str, message: str, fix: dict[str, NewCell]) -> Note:
    return Note(code=code, message=message, field=next(iter(fix), "frames"), fix=fix)


def _smaller(family: Family, spec: ClipSpec, largest_bytes: int) -> dict[str, NewCell]:
    """The nearest clip that fits well: fewer frames of its class, down to a draft's; else the next class below."""
    aspect = spec.width / spec.height
    for name, width, height in _sizes(family, spec, aspect):
        most = max_frames(family, width * height, largest_bytes)
        while most is not None and most >= min(spec.frames, family.tiers[Tier.DRAFT].frames):
            frames = min(most, spec.frames)
            smaller = spec.model_copy(
                update={
                    "resolution_class": name,
                    "width": width,
                    "height": height,
                    "frames": frames,
                    "window": 0,
                    "base": None,
                }
            )
            found = plan(smaller, largest_bytes)
            if found is not None and not (found[0].decode_tile or found[0].stream_weights):
                new: dict[str, NewCell] = {}
                if name != spec.resolution_class:
                    new["resolution_class"] = str(name)
                if frames != spec.frames:
                    new["frames"] = frames
                return new
            most = frames - family.frame_rule.multiple if frames > family.frame_rule.minimum else None
    return {}


def _sizes(family: Family, spec: ClipSpec, aspect: float) -> Iterator[tuple[object, int, int]]:
    yield spec.resolution_class, spec.width, spec.height
    for smaller in sorted(family.classes, key=lambda c: -c.side):
        if smaller.side < spec.resolution_class.side:
            yield (smaller, *size_for(smaller, aspect, family.stride, family.native_sizes))
