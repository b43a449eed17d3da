"""What a row becomes that says how long its clip may take: class, tier and steps from picture, cards and time. Pure.

A column that the row fills in itself is never changed. Of the rest the best is taken that every card which may take the
clip is expected to be done with in time: whole clips before clips of fewer steps before drafts, and of those the
largest class. No class is larger than the picture has anything to show in, nor than the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.catalog.acceleration import denoises
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import ChosenRow
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import RowProblems, resolve
from cluster.estimates.times import ClipCost, TimeEstimates
from cluster.fleet.fleet_file import Cards
from cluster.forecast.suggest import largest_worth
from pipeline.clips.clip import ClipSpec, ResolutionClass, Tier
from pipeline.families import Family, family_named
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import footprint
from pipeline.notes import NewCell, Note
from pipeline.problems import BadInputError
from pipeline.units import format_duration

#: Columns of a row that decide what its clip takes: rows in which they are alike get one answer.
_DECIDING = (
    *("model", "resolution_class", "aspect", "tier", "frames", "seconds", "fps", "steps", "guidance", "sampler"),
    *("window", "window_overlap", "step_cache", "motion_class", "from_draft", "strength", "upscale"),
)
#: A prompt whose words decide nothing, for resolving.
_ANY_PROMPT = "pan left"
#: Answers that are kept.
_MOST_KEPT = 4096
#: Times that `longest_within` tries, each a plan of the whole batch.
_TRIES = 9


@dataclass(frozen=True, kw_only=True)
class CardTime:
    """What a clip takes on the cards of one group."""

    kind: str
    card_class: str
    cost: ClipCost

    @property
    def layout(self) -> Layout:
        """Layout that the clip is rendered in there."""
        return self.cost.layout

    @property
    def seconds(self) -> float:
        """Seconds from the clip's start on a warm card until it is published."""
        return self.cost.gap_s + self.cost.on_card_s() + self.cost.publish_s


def card_times(spec: ClipSpec, fleet: Sequence[Cards], estimates: TimeEstimates) -> tuple[CardTime, ...]:
    """What `spec` takes on each group of cards that may take it; () where no card holds it.

    As the farm places clips, these are the cards that hold the fastest layout which fits any card of the fleet.
    """
    largest = max((group.usable_bytes for group in fleet), default=0)
    peaks = (footprint(spec, layout).peak_bytes for layout in family_named(spec.family).layouts)
    needed = next((peak for peak in peaks if peak <= largest), None)
    if needed is None:
        return ()
    return tuple(
        CardTime(
            kind=group.kind,
            card_class=group.card_class,
            cost=estimates.cost_within(spec, group.kind, group.usable_bytes),
        )
        for group in fleet
        if group.usable_bytes >= needed
    )


@dataclass(frozen=True, kw_only=True)
class TimedClip:
    """One clip that a row could become, and what it takes."""

    #: The columns that are decided, and the values.
    cells: dict[str, NewCell]
    spec: ClipSpec
    on: tuple[CardTime, ...]

    @cached_property
    def slowest(self) -> CardTime | None:
        """The card that takes longest, of those which may take the clip; None where no card holds it."""
        return max(self.on, key=lambda one: one.seconds, default=None)

    @property
    def seconds(self) -> float:
        """Seconds on that card; infinite where no card holds it."""
        return self.slowest.seconds if self.slowest else math.inf

    @property
    def text(self) -> str:
        """The clip in words, such as `512p, 16 frames, 50 steps`."""
        steps = f", {self.spec.steps} steps" if denoises(family_named(self.spec.family)) else ""
        return f"{self.spec.resolution_class}, {self.spec.frames} frames{steps}"


@dataclass(frozen=True, kw_only=True)
class TimedChoice:
    """What was chosen of the clips that a row could become, and what was passed over."""

    clip: TimedClip
    #: The best of all, where it was passed over.
    better: TimedClip | None
    #: Seconds that were given; whether what was chosen keeps to them.
    within_s: float
    still_size: tuple[int, int]
    #: Whether classes were left out because the still has nothing to show in them.
    is_small: bool

    @property
    def in_time(self) -> bool:
        """Whether every card that may take the clip is expected to keep to the time."""
        return self.clip.seconds <= self.within_s

    @property
    def note(self) -> Note:
        """What was chosen and why, for the row."""
        where = self.clip.slowest
        if where is None:
            message = f"{self._asked}: no card of this farm holds {self.clip.text}, the least that was tried"
            return Note(code="within_missed", message=message, field="within")
        took = f"about {format_duration(where.seconds)} on {where.kind}"
        if not self.in_time:
            message = f"{self._asked} nothing is done: the quickest is {self.clip.text}, {took}"
            return Note(code="within_missed", message=message, field="within", fix={"within": math.ceil(where.seconds)})
        text = f"{self._asked}: {self.clip.text}, {took} ({where.layout.brief})"
        return Note(code="within_chosen", message=f"{text}. {self._why}", field="within")

    @property
    def _asked(self) -> str:
        return f"within {format_duration(self.within_s)}"

    @property
    def _why(self) -> str:
        if self.better is not None and self.better.slowest is not None:
            slow = self.better.slowest
            return f"{self.better.text} would take {format_duration(slow.seconds)} on {slow.kind}"
        if self.better is not None:
            return f"{self.better.text} fit no card"
        if self.is_small:
            width, height = self.still_size
            return f"A still of {width}×{height} pixels has nothing to show in a larger class"
        return "More is not asked for"


class TimeChooser:
    """Chooses what rows become that say how long their clips may take, for one fleet."""

    def __init__(self, fleet: Sequence[Cards], estimates: TimeEstimates) -> None:
        """`fleet`: the cards that there are; where it is empty nothing is known of times."""
        self._fleet, self._estimates = fleet, estimates
        #: The clips that rows could become, the best first, and whether classes were left out for the still's sake.
        self._known: dict[tuple[object, ...], tuple[list[TimedClip], bool]] = {}

    def __call__(self, row: Row, still_size: tuple[int, int], defaults: Defaults) -> ChosenRow | None:
        """The row with class, tier and steps decided, and a note that says so.

        None where nothing is known of the cards, and for a row that cannot be rendered.
        """
        found = self.choice(row, still_size, defaults)
        if found is None:
            return None
        return ChosenRow(row=row.model_copy(update=_values(found.clip.cells)), note=found.note)

    def choice(self, row: Row, still_size: tuple[int, int], defaults: Defaults) -> TimedChoice | None:
        """What `row` becomes whose upright still has `still_size` (width, height) pixels; None as above."""
        within_s = defaults.within if row.within is None else row.within
        if not self._fleet or within_s is None:
            return None
        key = (*(getattr(row, name) for name in _DECIDING), bool(row.prompt), still_size, _without_time(defaults))
        if (found := self._known.get(key)) is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            found = self._known[key] = self._clips(row, still_size, defaults)
        clips, is_small = found
        if not clips:
            return None
        quickest = min(clips, key=lambda clip: clip.seconds)
        best = next((clip for clip in clips if clip.seconds <= within_s), quickest)
        return TimedChoice(
            clip=best,
            better=clips[0] if clips[0] is not best else None,
            within_s=within_s,
            still_size=still_size,
            is_small=is_small,
        )

    def _clips(self, row: Row, still_size: tuple[int, int], defaults: Defaults) -> tuple[list[TimedClip], bool]:
        try:
            family = family_named(row.model or defaults.model)
        except BadInputError:
            return [], False
        classes, is_small = _classes(family, row, still_size)
        found = (self._clip(row, cells, still_size, defaults) for cells in _rungs(family, row, defaults, classes))
        return [clip for clip in found if clip is not None], is_small

    def _clip(
        self, row: Row, cells: dict[str, NewCell], still_size: tuple[int, int], defaults: Defaults
    ) -> TimedClip | None:
        probe = row.model_copy(update={**_values(cells), **({"prompt": _ANY_PROMPT} if row.prompt else {})})
        try:
            spec = resolve(probe, still_size, defaults, "").spec
        except RowProblems:
            return None
        return TimedClip(cells=cells, spec=spec, on=card_times(spec, self._fleet, self._estimates))


def _without_time(defaults: Defaults) -> str:
    return defaults.model_dump_json(exclude={"within"})


def longest_within(done_s: float, finish_s: Callable[[float], float]) -> float | None:
    """The most seconds that each clip of a batch may take so that all are done in `done_s` seconds; None: too many.

    `finish_s` tells when all are done whose clips may take so many seconds each; more of these finish later.
    """
    if finish_s(done_s) <= done_s:
        return done_s
    low, high = min(1.0, done_s), done_s
    if finish_s(low) > done_s:
        return None
    for _ in range(_TRIES):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if finish_s(middle) <= done_s else (low, middle)
    return low


def _classes(family: Family, row: Row, still_size: tuple[int, int]) -> tuple[list[ResolutionClass], bool]:
    """(classes to choose from, the largest first, whether some were left out for the still's sake)."""
    if row.resolution_class is not None:
        return [row.resolution_class], False
    own = sorted((one for one in family.classes if one.side <= family.native_class.side), key=lambda one: -one.side)
    worth = [one for one in own if one.side <= largest_worth(*still_size).side]
    return worth or own[-1:], len(worth) < len(own)


def _rungs(
    family: Family, row: Row, defaults: Defaults, classes: Sequence[ResolutionClass]
) -> Iterator[dict[str, NewCell]]:
    """The columns of all clips that the row could become, the best first."""
    for tier, steps in _efforts(family, row, row.tier or defaults.tier):
        for one in classes:
            cells: dict[str, NewCell] = {}
            if row.resolution_class is None:
                cells["resolution_class"] = str(one)
            if tier is not (row.tier or defaults.tier):
                cells["tier"] = str(tier)
            if steps is not None:
                cells["steps"] = steps
            yield cells


def _efforts(family: Family, row: Row, most: Tier) -> Iterator[tuple[Tier, int | None]]:
    """Tiers from the one that is asked for down to a draft; before drafts, whole clips of a draft's steps."""
    yield most, None
    if most is Tier.HIGH:
        yield Tier.STANDARD, None
    if most in (Tier.HIGH, Tier.STANDARD):
        draft = family.tiers[Tier.DRAFT].steps
        if row.steps is None and denoises(family) and draft < family.tiers[Tier.STANDARD].steps:
            yield Tier.STANDARD, draft
        yield Tier.DRAFT, None


def _values(cells: dict[str, NewCell]) -> dict[str, object]:
    """Cells as a row has them."""
    made: dict[str, object] = dict(cells)
    if "resolution_class" in cells:
        made["resolution_class"] = ResolutionClass(str(cells["resolution_class"]))
    if "tier" in cells:
        made["tier"] = Tier(str(cells["tier"]))
    return made
