"""Another clip, or the same in another layout, that would start in a job's place. Pure.

`clipmill suggest` says what a card can render in any layout; what starts on a card of this farm is less, as a farm lays
clips out for the largest card that it can have (docs/decisions/0025).
"""

from __future__ import annotations

from dataclasses import replace

from cluster.estimates.published import rate_of
from cluster.explain.model import Remedy, RemedyKind
from cluster.explain.trial import Trial, first_needs
from cluster.explain.words import hour_text, layout_text
from cluster.fleet.cards import Card
from pipeline.clips.clip import ClipSpec
from pipeline.families import FAMILIES, family_named, size_for
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import footprint, plan
from pipeline.memory.slowdown import slowdown
from pipeline.units import format_bytes

#: A clip that takes less than so many times as long is said to take the same time.
_NOTABLE = 1.05


def leaner(trial: Trial, until: float) -> Remedy | None:
    """The fastest leaner layout that starts on a card which is too small now: at once, else before `until`."""
    spec = trial.job.spec
    if spec is None or spec.family not in FAMILIES:
        return None
    taken = plan(spec, trial.job.needs_bytes)
    # One that was raised after an attempt failed is no prediction, and leaner layouts were tried then.
    if taken is None or taken[1].peak_bytes != trial.job.needs_bytes:
        return None
    found: list[tuple[float, Layout, int, Card]] = []
    seen: set[int] = set()
    for layout in family_named(spec.family).layouts:
        needs = footprint(spec, layout).peak_bytes
        if needs >= trial.job.needs_bytes or needs in seen:
            continue
        seen.add(needs)
        other = replace(trial.job, needs_bytes=needs)
        # On a card that it fits as it is, another layout would gain nothing.
        if (card := trial.start(trial.snapshot, other)) is not None and not trial.fits(card):
            return _in_layout(trial, taken[0], layout, needs, card, None)
        later = None if found or card else trial.ahead(trial.snapshot, other, by=until)
        if later is not None and not trial.fits(later[1]):
            found.append((later[0], layout, needs, later[1]))
    return _in_layout(trial, taken[0], *found[0][1:], found[0][0]) if found else None


def _on(trial: Trial, at: float, card: Card) -> str:
    return f"on {card.card} ({card.card_class}) from about {hour_text(at, trial.now)}"


def _in_layout(trial: Trial, taken: Layout, layout: Layout, needs: int, card: Card, at: float | None) -> Remedy:
    spec, rate = trial.job.spec, rate_of(card.kind)[0]
    assert spec is not None
    reached = rate.tflops * rate.efficiency
    times = max(1.0, slowdown(spec, layout, tflops=reached) / slowdown(spec, taken, tflops=reached))
    slower = f"about {times:.1f} times as long" if times >= _NOTABLE else "in about the same time"
    where = f"on {card.card} ({card.card_class})" if at is None else _on(trial, at, card)
    return Remedy(
        kind=RemedyKind.LEANER,
        text=f"{layout_text(layout)}: {format_bytes(needs)}, {where}, {slower}",
        card=card.card,
        card_class=card.card_class,
        needs_bytes=needs,
        layout=str(layout),
        slowdown=times,
        at=at,
    )


def fewer_frames(trial: Trial) -> Remedy | None:
    """The most frames with which the clip starts at once on an idle card."""
    spec = _plain(trial)
    if spec is None:
        return None
    rule = family_named(spec.family).frame_rule
    best, before = None, _idle_for(trial, trial.job.needs_bytes)
    for frames in range(spec.frames - 1, rule.minimum - 1, -1):
        if not rule.allows(frames) or not _may_fit(trial, fewer := spec.model_copy(update={"frames": frames})):
            continue
        # Without another card that it fits, fewer frames make no difference to placement.
        fitting = _idle_for(trial, first_needs(fewer, trial.snapshot.fleet.largest_bytes) or 0)
        if fitting != before and (found := _other(trial, fewer)) is not None:
            best = frames, found
            break
        before = fitting
    if best is None:
        return None
    frames, (needs, card) = best
    return Remedy(
        kind=RemedyKind.FEWER,
        text=f"hand it in with {frames} frames instead of {spec.frames}: {format_bytes(needs)}, on {card.card}",
        frames=frames,
        needs_bytes=needs,
        card=card.card,
        card_class=card.card_class,
    )


def smaller_class(trial: Trial) -> Remedy | None:
    """The largest smaller class in which the clip starts at once on an idle card."""
    spec = _plain(trial)
    if spec is None:
        return None
    family = family_named(spec.family)
    classes = [c for c in family.classes if c.side < spec.resolution_class.side]
    for smaller in sorted(classes, key=lambda c: -c.side):
        width, height = size_for(smaller, spec.width / spec.height, family.stride, family.native_sizes)
        changed = spec.model_copy(update={"resolution_class": smaller, "width": width, "height": height})
        if _may_fit(trial, changed) and (found := _other(trial, changed)) is not None:
            needs, card = found
            return Remedy(
                kind=RemedyKind.SMALLER,
                text=f"hand it in as {smaller} instead of {spec.resolution_class}: {format_bytes(needs)}, "
                f"on {card.card}",
                resolution_class=str(smaller),
                needs_bytes=needs,
                card=card.card,
                card_class=card.card_class,
            )
    return None


def _plain(trial: Trial) -> ClipSpec | None:
    """The job's specification, where fewer frames or pixels take less memory and nothing else depends on them."""
    spec = trial.job.spec
    if spec is None or spec.family not in FAMILIES or spec.window or spec.base is not None:
        return None
    return spec if footprint(spec).peak_bytes else None


def _idle_for(trial: Trial, needs: int) -> int:
    """How many idle cards have so many bytes."""
    return sum(card.usable_bytes >= needs for card in trial.idle)


def _may_fit(trial: Trial, spec: ClipSpec) -> bool:
    """Whether `spec` takes less memory than the job, and by prediction no more than an idle card has."""
    needs = first_needs(spec, trial.snapshot.fleet.largest_bytes)
    return needs is not None and needs < trial.job.needs_bytes and needs <= _largest_idle(trial)


def _largest_idle(trial: Trial) -> int:
    return max((card.usable_bytes for card in trial.idle), default=0)


def _other(trial: Trial, spec: ClipSpec) -> tuple[int, Card] | None:
    """(bytes, card) of a clip that starts in place of the job; None where it does not."""
    needs = first_needs(spec, trial.snapshot.fleet.largest_bytes)
    if needs is None or needs >= trial.job.needs_bytes:
        return None
    other = replace(
        trial.job, spec=spec, needs_bytes=needs, content_key=f"{trial.job.id} changed", step=0, checkpoint=None
    )
    card = trial.start(trial.snapshot, other)
    return None if card is None else (needs, card)
