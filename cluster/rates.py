"""How long clips take on which card: published speeds, corrected by what was measured. Pure.

Before anything is measured a clip takes what `cluster.speeds` expects. Every completed attempt then gives ratios
*measured / expected*, one for each part of it (`Part`). Of the newest
`RECENT` ratios of a key (part, family, class, frames, pixels, layout, card kind) the median counts: one slow clip
changes nothing. A key with fewer than `ENOUGH` of its own is filled up with the median of its family on the card kind;
without any of that family, with that of the kind; without those, the published speed holds, that is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.lessons import layout_key
from cluster.speeds import (
    MEMORYLESS,
    STORAGE_BYTES_S,
    STORAGE_S,
    Part,
    canonical,
    checkpoint_bytes,
    expected,
    expected_phases,
    expected_start,
    prior_version,
    rate_of,
    rate_table,
    tflops_of,
)
from cluster.stopwatch import Timed
from pipeline.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES, family_named
from pipeline.footprint import footprint
from pipeline.layouts import RESIDENT, Layout

__all__ = [
    "ClipCost",
    "Correction",
    "Key",
    "Measured",
    "Part",
    "Rates",
    "canonical",
    "key_of",
    "keys_of",
    "observe",
    "prior_version",
    "rate_of",
    "rate_table",
    "ratios_of",
    "tflops_of",
]

#: Ratios that a key remembers; older ones are forgotten.
RECENT = 15
#: Ratios of its own with which a key needs no neighbours.
ENOUGH = 3
#: Relative error of an expectation that nothing was measured for, as a standard deviation of its logarithm: four of
#: five lie within a factor of 1.6 either way.
PRIOR_SIGMA = 0.37
#: A ratio beyond this, or below its inverse, is a broken clock.
MOST_RATIO = 10_000.0
#: Costs that are remembered; beyond that all are forgotten and found anew.
_MOST_COSTS = 200_000


class Key(BaseModel):
    """The clips and cards that one row of ratios is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    family: str = Field(min_length=1, max_length=64)
    #: Of `FIRST`, `LOAD` and `GAP`, which are the same for every clip of a family: none, as with what follows.
    resolution_class: ResolutionClass | Literal[""] = ""
    frames: int = Field(default=0, ge=0)
    #: Width × height.
    pixels: int = Field(default=0, ge=0)
    #: `layout_key` of the layout.
    layout: str = Field(default="", max_length=255)
    #: Card kind.
    kind: str = Field(min_length=1, max_length=128)


Ratio = Annotated[float, Field(gt=0, le=MOST_RATIO, allow_inf_nan=False)]


class Measured(BaseModel):
    """Ratios *measured / expected* of one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    #: `prior_version` of the expectations.
    prior: str = Field(max_length=16)
    count: int = Field(default=0, ge=0)
    #: The newest, oldest first.
    recent: tuple[Ratio, ...] = Field(default=(), max_length=RECENT)

    def after(self, ratio: float) -> Measured:
        """With one more."""
        return self.model_copy(update={"count": self.count + 1, "recent": (*self.recent, ratio)[-RECENT:]})


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What was measured says about one key."""

    #: What the expectation is multiplied by.
    factor: float
    #: The ratios that `factor` is the median of, by key; empty where nothing was measured.
    ratios: tuple[tuple[float, ...], ...]
    #: Ratios over the median of their own key, sorted: how clips of one kind differ among themselves.
    residuals: tuple[float, ...]
    #: Where it comes from: `shape`, `family`, `kind` or `published`.
    source: str


@dataclass(frozen=True, kw_only=True)
class ClipCost:
    """What one clip takes on one card kind, in seconds, by part."""

    kind: str
    layout: Layout
    encode_s: float
    #: (steps, seconds of each) in the order they are done: those of a base rendering first.
    phases: tuple[tuple[int, float], ...]
    decode_s: float
    #: On the CPU, while the card takes the next clip.
    publish_s: float
    #: From one clip to the next on a warm card.
    gap_s: float
    #: In place of it where the family is not loaded.
    load_s: float
    #: And where the renderer's process has never loaded it.
    first_s: float
    #: By part, for intervals.
    corrections: Mapping[Part, Correction] = field(repr=False, compare=False)
    #: Whether the card kind is in the table.
    known: bool = True

    def steps_s(self, from_step: int = 0) -> float:
        """Seconds of the steps after the first `from_step`."""
        total, skip = 0.0, from_step
        for steps, seconds in self.phases:
            total += max(0, steps - skip) * seconds
            skip = max(0, skip - steps)
        return total

    def on_card_s(self, from_step: int = 0) -> float:
        """Seconds on the card from the first step's begin."""
        return (0.0 if from_step else self.encode_s) + self.steps_s(from_step) + self.decode_s


@dataclass(frozen=True)
class Rates:
    """Expected times: published speeds and what was measured of them."""

    measured: tuple[Measured, ...] = ()
    _memory: _Memory = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sort what was measured by whom it concerns."""
        object.__setattr__(self, "_memory", _Memory(self.measured))

    def cost(self, spec: ClipSpec, kind: str, layout: Layout = RESIDENT) -> ClipCost:
        """What `spec` takes in `layout` on a card of `kind`, by part. Raises `BadInputError` for an unknown family."""
        shape = (_shape(spec), kind, layout_key(layout))
        found = self._memory.costs.get(shape)
        if found is None:
            found = self._cost(spec, kind, layout)
            _remember(self._memory.costs, shape, found)
        return found

    def cost_within(self, spec: ClipSpec, kind: str, usable_bytes: int | None) -> ClipCost:
        """The same in the fastest layout that fits in `usable_bytes` (None: any), or the leanest where none does."""
        shape = (_shape(spec), kind, usable_bytes)
        found = self._memory.costs.get(shape)
        if found is None:
            found = self.cost(spec, kind, _layout_within(spec, usable_bytes))
            _remember(self._memory.costs, shape, found)
        return found

    def step_seconds(self, spec: ClipSpec, kind: str, layout: Layout = RESIDENT) -> float:
        """Seconds of one step at the clip's own size, as renderers report steps: of `camera` a frame."""
        return self.cost(spec, kind, layout).phases[-1][1]

    def clip_seconds(self, spec: ClipSpec, kind: str, *, usable_bytes: int | None = None, from_step: int = 0) -> float:
        """Seconds on a card of `kind` with `usable_bytes`: encoding (of a clip that begins), steps left, decoding."""
        key = (_shape(spec), kind, usable_bytes, from_step)
        found = self._memory.seconds.get(key)
        if found is None:
            found = self.cost_within(spec, kind, usable_bytes).on_card_s(from_step)
            _remember(self._memory.seconds, key, found)
        return found

    def load_seconds(self, family: str, kind: str) -> float:
        """Seconds from a free card of `kind` to the first step of a clip whose family is not loaded."""
        return self._start(Part.LOAD, family, kind)

    def first_seconds(self, family: str, kind: str) -> float:
        """The same where its process has never loaded it."""
        return self._start(Part.FIRST, family, kind)

    def gap_seconds(self, family: str, kind: str) -> float:
        """The same where the family is loaded."""
        return self._start(Part.GAP, family, kind)

    def move_seconds(self, spec: ClipSpec, kind: str, *, warm: bool) -> float:
        """Seconds a clip loses by leaving a card between two steps and going on on another of `kind`.

        Its checkpoint is written and read, and the card begins with it; `warm`: the family is loaded there.
        """
        return self.move_costs(spec, kind, warm=warm)[2]

    def move_costs(self, spec: ClipSpec, kind: str, *, warm: bool) -> tuple[float, float, float]:
        """Seconds that the card it leaves, the card of `kind` it comes to, and the clip itself lose by a move."""
        key = ("move", _shape(spec), spec.sampler in MEMORYLESS, kind, warm)
        found = self._memory.moves.get(key)
        if found is None:
            transfer_s = STORAGE_S + checkpoint_bytes(spec) / STORAGE_BYTES_S
            begin_s = (self.gap_seconds if warm else self.load_seconds)(spec.family, kind)
            found = (transfer_s, transfer_s + begin_s, 2 * transfer_s + begin_s)
            _remember(self._memory.moves, key, found)
        return found

    def price_per_hour(self, kind: str) -> float | None:
        """US dollars an hour of one card of `kind`, an estimate; None where nothing is known."""
        return rate_of(kind)[0].price_per_hour

    def knows(self, kind: str) -> bool:
        """Whether the speed of `kind` is published or was measured; else a stated default is used."""
        return rate_of(kind)[1] or canonical(kind) in self._memory.kinds

    def correction(self, part: Part, spec: ClipSpec, layout: Layout, kind: str) -> Correction:
        """What was measured of `part` of such clips."""
        return self._memory.correction(key_of(part, spec, layout, kind))

    def after(self, spec: ClipSpec, kind: str, timed: Timed) -> Rates:
        """With what one attempt took."""
        found = {one.key: one for one in self.measured}
        for one in observe(spec, kind, timed, found.get):
            found[one.key] = one
        return Rates(tuple(found.values()))

    def _start(self, part: Part, family: str, kind: str) -> float:
        key = (part, family, kind)
        found = self._memory.seconds.get(key)
        if found is None:
            found = expected_start(part, family) * self._memory.of_family(part, family, canonical(kind)).factor
            _remember(self._memory.seconds, key, found)
        return found

    def _cost(self, spec: ClipSpec, kind: str, layout: Layout) -> ClipCost:
        corrections = {part: self.correction(part, spec, layout, kind) for part in _OF_SHAPE}
        for part in (Part.GAP, Part.LOAD, Part.FIRST):
            corrections[part] = self._memory.of_family(part, spec.family, canonical(kind))
        plain = expected(spec, kind, layout)

        def corrected(part: Part) -> float:
            return plain[part] * corrections[part].factor

        step = corrections[Part.STEP].factor
        return ClipCost(
            kind=kind,
            layout=layout,
            encode_s=corrected(Part.ENCODE),
            phases=tuple((steps, seconds * step) for steps, seconds in expected_phases(spec, kind, layout)),
            decode_s=corrected(Part.DECODE),
            publish_s=corrected(Part.PUBLISH),
            gap_s=self.gap_seconds(spec.family, kind),
            load_s=self.load_seconds(spec.family, kind),
            first_s=self.first_seconds(spec.family, kind),
            corrections=corrections,
            known=self.knows(kind),
        )


_OF_SHAPE = (Part.ENCODE, Part.STEP, Part.DECODE, Part.PUBLISH)


class _Memory:
    """What was measured, by key, family and kind; and what was asked before."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self.costs: dict[object, ClipCost] = {}
        self.seconds: dict[object, float] = {}
        self.moves: dict[object, tuple[float, float, float]] = {}
        self._by_key: dict[Key, tuple[float, ...]] = {}
        self._family: dict[tuple[Part, str, str], list[tuple[float, ...]]] = {}
        self._kind: dict[tuple[Part, str], list[tuple[float, ...]]] = {}
        for one in measured:
            if not one.recent:
                continue
            key = one.key
            self._by_key[key] = one.recent
            self._family.setdefault((key.part, key.family, key.kind), []).append(one.recent)
            self._kind.setdefault((key.part, key.kind), []).append(one.recent)
        self.kinds = {kind for part, kind in self._kind if part is Part.STEP}

    def correction(self, key: Key) -> Correction:
        own = self._by_key.get(key, ())
        wider = self.of_family(key.part, key.family, key.kind)
        if not own:
            return wider
        ratios = (*own, *(wider.factor for _ in range(ENOUGH - len(own))))
        return Correction(factor=median(ratios), ratios=(ratios,), residuals=wider.residuals, source="shape")

    def of_family(self, part: Part, family: str, kind: str) -> Correction:
        if found := self._family.get((part, family, kind)):
            return _pooled(found, "family")
        # Loading and encoding depend on the networks: another family says nothing about them.
        if part not in (Part.LOAD, Part.FIRST) and (found := self._kind.get((part, kind))):
            return _pooled(found, "kind")
        return Correction(factor=1.0, ratios=(), residuals=(), source="published")


def _pooled(found: Sequence[tuple[float, ...]], source: str) -> Correction:
    pooled = [ratio for recent in found for ratio in recent]
    residuals = sorted(ratio / median(recent) for recent in found if len(recent) > 1 for ratio in recent)
    return Correction(factor=median(pooled), ratios=tuple(found), residuals=tuple(residuals), source=source)


# -- what was measured ------------------------------------------------------------------------------------------


def key_of(part: Part, spec: ClipSpec, layout: Layout, kind: str) -> Key:
    """Whom a ratio of `part` concerns."""
    if part in (Part.GAP, Part.LOAD, Part.FIRST):
        return Key(part=part, family=spec.family, kind=canonical(kind))
    return Key(
        part=part,
        family=spec.family,
        resolution_class=spec.resolution_class,
        frames=spec.frames,
        pixels=spec.width * spec.height,
        layout=layout_key(layout),
        kind=canonical(kind),
    )


def ratios_of(spec: ClipSpec, kind: str, timed: Timed) -> dict[Part, float]:
    """*measured / expected* of the parts that `timed` saw; nothing of an unknown family or card."""
    if spec.family not in FAMILIES or not kind:
        return {}
    plain = expected(spec, kind, timed.layout)
    phases = expected_phases(spec, kind, timed.layout)

    def of_steps(first: int, count: int) -> float:
        each = [seconds for steps, seconds in phases for _ in range(steps)]
        return sum(each[first : first + count])

    found: dict[Part, float] = {}
    expected_s = of_steps(timed.first_step, timed.steps)
    if timed.steps and expected_s:
        found[Part.STEP] = timed.steps_s / expected_s
    if timed.first_s is not None:
        first_s = of_steps(timed.from_step, 1)
        if Part.STEP not in found and first_s:
            # Of its only step nothing is known but that the encoding is in it.
            found[Part.STEP] = timed.first_s / (first_s + (0 if timed.from_step else plain[Part.ENCODE]))
        if timed.from_step == 0 and Part.STEP in found:
            found[Part.ENCODE] = (timed.first_s - first_s * found[Part.STEP]) / plain[Part.ENCODE]
    if timed.decode_s is not None:
        found[Part.DECODE] = timed.decode_s / plain[Part.DECODE]
    if timed.publish_s is not None:
        found[Part.PUBLISH] = timed.publish_s / plain[Part.PUBLISH]
    if timed.start_s is not None:
        part = Part.FIRST if timed.first else Part.LOAD if timed.cold else Part.GAP
        found[part] = timed.start_s / expected_start(part, spec.family)
    # A part can be too short to be seen beside its neighbour.
    return {part: min(max(ratio, 1 / MOST_RATIO), MOST_RATIO) for part, ratio in found.items()}


def keys_of(spec: ClipSpec, kind: str, timed: Timed) -> list[Key]:
    """Of whom `timed` says something."""
    return [key_of(part, spec, timed.layout, kind) for part in ratios_of(spec, kind, timed)]


def observe(spec: ClipSpec, kind: str, timed: Timed, known: Callable[[Key], Measured | None]) -> list[Measured]:
    """What is known of each key that one attempt says something of, with that; `known` gives what was there before."""
    version = prior_version(spec.family, kind)
    found = []
    for part, ratio in ratios_of(spec, kind, timed).items():
        key = key_of(part, spec, timed.layout, kind)
        before = known(key)
        if before is None or before.prior != version:
            before = Measured(key=key, prior=version)
        found.append(before.after(ratio))
    return found


# -- remembering ------------------------------------------------------------------------------------------------

_SHAPE = itemgetter(
    *("family", "width", "height", "frames", "steps", "guidance", "window", "window_overlap", "step_cache"),
    *("base", "strength"),
)


def _shape(spec: ClipSpec) -> tuple[object, ...]:
    """What of a specification decides its time: cheaper to hash than all of it, and shared by all rows of a shape."""
    return _SHAPE(spec.__dict__)  # type: ignore[no-any-return]


def _layout_within(spec: ClipSpec, usable_bytes: int | None) -> Layout:
    layouts = family_named(spec.family).layouts
    if usable_bytes is None:
        return layouts[0]
    peaks = [(footprint(spec, layout).peak_bytes, layout) for layout in layouts]
    fitting = [layout for peak, layout in peaks if peak <= usable_bytes]
    return fitting[0] if fitting else min(peaks, key=lambda pair: pair[0])[1]


def _remember(memory: dict[Any, Any], key: object, value: object) -> None:
    if len(memory) >= _MOST_COSTS:
        memory.clear()
    memory[key] = value
