"""How much time clips take on which card: published speeds, corrected by measured times. Pure.

Before anything is measured a clip takes what `cluster.estimates.published` expects. Every completed attempt then gives
ratios *measured ÷ expected*, one for each part of it (`ClipPart`). Of the newest
`RECENT` ratios of a key (part, family, class, frames, pixels, layout, card kind) the median counts: one slow clip
changes nothing. A key with fewer than `ENOUGH` of its own is filled up with the median of its family on the card kind;
without any of that family, with that of the kind; without those, the published speed holds, that is 1.

Steps by eager and by compiled kernels are measured apart (`KernelPart`); `ClipPart.STEP` is what steps take by those
that are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from statistics import median
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from cluster.estimates.measurements import Answers, EstimateKey, Estimates, Measurements, Neighbourhood
from cluster.estimates.memory import layout_key
from cluster.estimates.published import (
    MEMORYLESS,
    STORAGE_BYTES_S,
    STORAGE_S,
    ClipPart,
    canonical,
    checkpoint_bytes,
    expected,
    expected_phases,
    expected_start,
    phases_of,
    prior_version,
    rate_of,
)
from cluster.jobs.outcomes import Timed
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.kernels.buckets import eager_because
from pipeline.kernels.choosing import COMPILE_S
from pipeline.kernels.kernels import KernelChoice, KernelMode
from pipeline.kernels.measured import KernelRun
from pipeline.memory.footprint import footprint

#: Ratios kept of a key.
RECENT = 15
#: Ratios of its own with which a key needs no neighbours.
ENOUGH = 3
#: Relative error of an expectation that nothing was measured for, as a standard deviation of its logarithm: four of
#: five lie within a factor of 1.6 either way.
PRIOR_SIGMA = 0.37
#: A ratio beyond this, or below its inverse, is a broken clock.
MOST_RATIO = 10_000.0

_Ratio = Annotated[float, Field(gt=0, le=MOST_RATIO, allow_inf_nan=False)]


class KernelPart(StrEnum):
    """What is measured to choose between eager and compiled kernels, by each run of a clip's loop."""

    #: A step by eager kernels, and by compiled ones; as `ClipPart.STEP`.
    EAGER = "step_eager"
    COMPILED = "step_compiled"
    #: Compiling, as ratios to `pipeline.kernels.choosing.COMPILE_S`.
    COMPILING = "compile"
    #: Compiled kernels were given up: how often is the count; the ratios are 1.
    FAILED = "compile_failed"


class TimeKey(EstimateKey):
    """The part of clips, and the clips and cards, whose measured times count as one."""

    part: ClipPart | KernelPart
    family: str = Field(min_length=1, max_length=64)
    #: Empty, as the fields up to `layout`, for `FIRST`, `LOAD` and `GAP`: those are the same for all clips of a family.
    resolution_class: ResolutionClass | Literal[""] = ""
    frames: int = Field(default=0, ge=0)
    #: Width × height.
    pixels: int = Field(default=0, ge=0)
    #: `layout_key` of the layout.
    layout: str = Field(default="", max_length=255)
    #: Card kind, by its `canonical` name.
    kind: str = Field(min_length=1, max_length=128)

    @property
    def prior(self) -> str:
        """`prior_version` of the family on the card kind."""
        return prior_version(self.family, self.kind)

    @property
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """The part of all clips of the family on the card kind, and of all families on it."""
        return _neighbourhoods(self.part, self.family, self.kind)


def _neighbourhoods(part: ClipPart | KernelPart, family: str, kind: str) -> tuple[Neighbourhood, ...]:
    of_family, of_kind = (part, family, kind), (part, kind)
    # Loading depends on the networks: another family says nothing about it.
    return (of_family,) if part in (ClipPart.LOAD, ClipPart.FIRST) else (of_family, of_kind)


class TimeMeasurements(Measurements):
    """Ratios of measured to expected seconds of one key."""

    kept: ClassVar[int] = RECENT

    key: TimeKey
    recent: tuple[_Ratio, ...] = Field(default=(), max_length=RECENT)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What was measured of one key, or of its neighbours, says about the expected time."""

    #: What the expectation is multiplied by.
    factor: float
    #: The ratios that `factor` is the median of, by key; empty where nothing was measured.
    ratios: tuple[tuple[float, ...], ...]
    #: Ratios over the median of their own key, sorted: how clips of one kind differ among themselves.
    residuals: tuple[float, ...]
    #: Where the factor comes from: `shape`, `family`, `kind` or `published`.
    source: str


@dataclass(frozen=True, kw_only=True)
class ClipCost:
    """Seconds that one clip takes on one card kind, by part."""

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
    #: In place of `gap_s` where the family is not loaded.
    load_s: float
    #: In place of `load_s` where the renderer's process has never loaded the family.
    first_s: float
    #: By part, for intervals.
    corrections: Mapping[ClipPart, Correction] = field(repr=False, compare=False)

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
class TimeEstimates(Estimates[TimeMeasurements]):
    """Seconds that clips take on cards: at published speeds, and corrected by what a farm has measured."""

    of = TimeMeasurements

    _costs: Answers[ClipCost] = field(default_factory=Answers, init=False, repr=False, compare=False)
    _seconds: Answers[float] = field(default_factory=Answers, init=False, repr=False, compare=False)
    _moves: Answers[tuple[float, float, float]] = field(default_factory=Answers, init=False, repr=False, compare=False)

    def cost(self, spec: ClipSpec, kind: str, layout: Layout = RESIDENT) -> ClipCost:
        """What `spec` takes in `layout` on a card of `kind`, by part. Raises `BadInputError` for an unknown family."""
        shape = (_shape(spec), kind, layout_key(layout))
        if (found := self._costs.get(shape)) is None:
            found = self._costs[shape] = self._cost(spec, kind, layout)
        return found

    def cost_within(self, spec: ClipSpec, kind: str, usable_bytes: int | None) -> ClipCost:
        """`cost` in the fastest layout that fits in `usable_bytes` (None: any), or in the leanest where none does."""
        shape = (_shape(spec), kind, usable_bytes)
        if (found := self._costs.get(shape)) is None:
            found = self._costs[shape] = self.cost(spec, kind, _layout_within(spec, usable_bytes))
        return found

    def clip_seconds(self, spec: ClipSpec, kind: str, *, usable_bytes: int | None = None, from_step: int = 0) -> float:
        """Seconds on a card of `kind` with `usable_bytes`: encoding (of a clip that begins), steps left, decoding."""
        key = (_shape(spec), kind, usable_bytes, from_step)
        if (found := self._seconds.get(key)) is None:
            found = self._seconds[key] = self.cost_within(spec, kind, usable_bytes).on_card_s(from_step)
        return found

    def load_seconds(self, family: str, kind: str) -> float:
        """Seconds from a free card of `kind` to the first step of a clip whose family is not loaded."""
        return self._start(ClipPart.LOAD, family, kind)

    def first_seconds(self, family: str, kind: str) -> float:
        """`load_seconds` where the renderer's process has never loaded the family."""
        return self._start(ClipPart.FIRST, family, kind)

    def gap_seconds(self, family: str, kind: str) -> float:
        """Seconds from a free card of `kind` to the first step of a clip whose family is loaded."""
        return self._start(ClipPart.GAP, family, kind)

    def move_costs(self, spec: ClipSpec, kind: str, *, warm: bool) -> tuple[float, float, float]:
        """Seconds that the card a clip leaves between two steps, the card of `kind` it comes to, and the clip lose.

        Its checkpoint is written and read, and the card begins with it; `warm`: the family is loaded there.
        """
        key = (_shape(spec), spec.sampler in MEMORYLESS, kind, warm)
        if (found := self._moves.get(key)) is None:
            transfer_s = STORAGE_S + checkpoint_bytes(spec) / STORAGE_BYTES_S
            begin_s = (self.gap_seconds if warm else self.load_seconds)(spec.family, kind)
            found = self._moves[key] = (transfer_s, transfer_s + begin_s, 2 * transfer_s + begin_s)
        return found

    def knows(self, kind: str) -> bool:
        """Whether the speed of `kind` is published or was measured; else a stated default is used."""
        return rate_of(kind)[1] or bool(self.neighbours((ClipPart.STEP, canonical(kind))))

    def plus(self, newer: Iterable[TimeMeasurements]) -> Self:
        """A copy with the `newer` ones added in their order.

        Where steps follow those of the same clip by one kind of kernels, they are all that was measured by that kind:
        what steps took by the other says no longer what they take.
        """
        some = list(newer)
        after = super().plus(some)
        used: dict[TimeKey, TimeKey] = {}
        for before, one in zip([None, *some[:-1]], some, strict=True):
            if one.key.part is ClipPart.STEP:
                used.pop(one.key, None)
                if before is not None and before.key in by_kernels(one.key) and before.recent == one.recent:
                    used[one.key] = before.key
        found = {one.key: one for one in after.measured}
        for key, by in used.items():
            found[key] = found[key].model_copy(update={"recent": found[by].recent})
        return type(self)(tuple(found.values())) if used else after

    def correction(self, part: ClipPart, spec: ClipSpec, layout: Layout, kind: str) -> Correction:
        """What was measured of `part` of such clips."""
        key = key_of(part, spec, layout, kind)
        wider = self._wider(part, key.family, key.kind)
        own = self.get(key)
        if part is ClipPart.STEP and _stays_eager(spec):
            # Clips that are alike but for that may be compiled.
            own = self.get(by_kernels(key)[0]) or own
        if own is None or not own.recent:
            return wider
        ratios = (*own.recent, *(wider.factor for _ in range(ENOUGH - len(own.recent))))
        return Correction(factor=median(ratios), ratios=(ratios,), residuals=wider.residuals, source="shape")

    def _wider(self, part: ClipPart, family: str, kind: str) -> Correction:
        for source, neighbourhood in zip(("family", "kind"), _neighbourhoods(part, family, kind), strict=False):
            if found := self.neighbours(neighbourhood):
                return _pooled([one.recent for one in found], source)
        return Correction(factor=1.0, ratios=(), residuals=(), source="published")

    def _start(self, part: ClipPart, family: str, kind: str) -> float:
        key = (part, family, kind)
        if (found := self._seconds.get(key)) is None:
            factor = self._wider(part, family, canonical(kind)).factor
            found = self._seconds[key] = expected_start(part, family) * factor
        return found

    def _cost(self, spec: ClipSpec, kind: str, layout: Layout) -> ClipCost:
        corrections = {part: self.correction(part, spec, layout, kind) for part in _OF_SHAPE}
        for part in (ClipPart.GAP, ClipPart.LOAD, ClipPart.FIRST):
            corrections[part] = self._wider(part, spec.family, canonical(kind))
        plain = expected(spec, kind, layout)

        def corrected(part: ClipPart) -> float:
            return plain[part] * corrections[part].factor

        step = corrections[ClipPart.STEP].factor
        return ClipCost(
            kind=kind,
            layout=layout,
            encode_s=corrected(ClipPart.ENCODE),
            phases=tuple((steps, seconds * step) for steps, seconds in expected_phases(spec, kind, layout)),
            decode_s=corrected(ClipPart.DECODE),
            publish_s=corrected(ClipPart.PUBLISH),
            gap_s=self.gap_seconds(spec.family, kind),
            load_s=self.load_seconds(spec.family, kind),
            first_s=self.first_seconds(spec.family, kind),
            corrections=corrections,
        )


_OF_SHAPE = (ClipPart.ENCODE, ClipPart.STEP, ClipPart.DECODE, ClipPart.PUBLISH)


def _pooled(found: Sequence[tuple[float, ...]], source: str) -> Correction:
    pooled = [ratio for recent in found for ratio in recent]
    residuals = sorted(ratio / median(recent) for recent in found if len(recent) > 1 for ratio in recent)
    return Correction(factor=median(pooled), ratios=tuple(found), residuals=tuple(residuals), source=source)


# -- what was measured ------------------------------------------------------------------------------------------


def key_of(part: ClipPart | KernelPart, spec: ClipSpec, layout: Layout, kind: str) -> TimeKey:
    """The key of `part` of `spec` in `layout` on cards of `kind`."""
    if part in (ClipPart.GAP, ClipPart.LOAD, ClipPart.FIRST):
        return TimeKey(part=part, family=spec.family, kind=canonical(kind))
    return TimeKey(
        part=part,
        family=spec.family,
        resolution_class=spec.resolution_class,
        frames=spec.frames,
        pixels=spec.width * spec.height,
        layout=layout_key(layout),
        kind=canonical(kind),
    )


def ratios_of(spec: ClipSpec, kind: str, timed: Timed) -> dict[ClipPart, float]:
    """*measured / expected* of the parts that `timed` saw; nothing of an unknown family or card."""
    if spec.family not in FAMILIES or not kind:
        return {}
    plain = expected(spec, kind, timed.layout)
    phases = expected_phases(spec, kind, timed.layout)

    def of_steps(first: int, count: int) -> float:
        each = [seconds for steps, seconds in phases for _ in range(steps)]
        return sum(each[first : first + count])

    found: dict[ClipPart, float] = {}
    expected_s = of_steps(timed.first_step, timed.steps)
    if timed.steps and expected_s:
        found[ClipPart.STEP] = timed.steps_s / expected_s
    if timed.first_s is not None:
        first_s = of_steps(timed.from_step, 1)
        if ClipPart.STEP not in found and first_s:
            # Of its only step nothing is known but that the encoding is in it.
            found[ClipPart.STEP] = timed.first_s / (first_s + (0 if timed.from_step else plain[ClipPart.ENCODE]))
        if timed.from_step == 0 and ClipPart.STEP in found:
            found[ClipPart.ENCODE] = (timed.first_s - first_s * found[ClipPart.STEP]) / plain[ClipPart.ENCODE]
    if timed.decode_s is not None:
        found[ClipPart.DECODE] = timed.decode_s / plain[ClipPart.DECODE]
    if timed.publish_s is not None:
        found[ClipPart.PUBLISH] = timed.publish_s / plain[ClipPart.PUBLISH]
    if timed.start_s is not None:
        part = ClipPart.FIRST if timed.first else ClipPart.LOAD if timed.cold else ClipPart.GAP
        found[part] = timed.start_s / expected_start(part, spec.family)
    # A part can be too short to be seen beside its neighbour.
    return {part: min(max(ratio, 1 / MOST_RATIO), MOST_RATIO) for part, ratio in found.items()}


def observe(spec: ClipSpec, kind: str, timed: Timed | None, runs: Sequence[KernelRun] = ()) -> list[TimeMeasurements]:
    """What the times of one attempt on a card of `kind` say, by part; nothing of an unknown family or card.

    `runs`: what the runs of its loop say of the kernels they were computed with.
    """
    found = {} if timed is None else ratios_of(spec, kind, timed)
    if any(run.compile_s for run in runs):
        # It was done in the step that the encoding is seen with.
        found.pop(ClipPart.ENCODE, None)
    if runs:
        # They tell the same without what was compiled meanwhile, and of which kernels it is.
        found.pop(ClipPart.STEP, None)
    layout = timed.layout if timed is not None else RESIDENT
    keyed = [(key_of(part, spec, layout, kind), ratio) for part, ratio in found.items()]
    for run in runs if spec.family in FAMILIES and kind else ():
        keyed += _of_run(spec, kind, run)
    return [TimeMeasurements(key=key, prior=key.prior, count=1, recent=(ratio,)) for key, ratio in keyed]


def _of_run(spec: ClipSpec, kind: str, run: KernelRun) -> list[tuple[TimeKey, float]]:
    """The ratios of a run; that of its kernels followed by that of its steps where it was no trial."""
    phases = [phase for phase in phases_of(spec) if phase.size == (run.width, run.height)]
    if not phases:
        return []
    phase = phases[-1]

    def keyed(part: ClipPart | KernelPart, ratio: float) -> tuple[TimeKey, float]:
        return key_of(part, phase, run.layout, kind), min(max(ratio, 1 / MOST_RATIO), MOST_RATIO)

    found = [keyed(KernelPart.FAILED, 1.0)] if run.failed else []
    if run.compile_s:
        found.append(keyed(KernelPart.COMPILING, run.compile_s / COMPILE_S))
    if run.step_s is not None:
        ratio = run.step_s / expected_phases(phase, kind, run.layout)[-1][1]
        found.append(keyed(KernelPart.COMPILED if run.mode is KernelMode.COMPILED else KernelPart.EAGER, ratio))
        if not run.trial:
            found.append(keyed(ClipPart.STEP, ratio))
    return found


def by_kernels(key: TimeKey) -> tuple[TimeKey, TimeKey]:
    """The keys of the steps of `key` by eager and by compiled kernels."""
    eager, compiled = (key.model_copy(update={"part": part}) for part in (KernelPart.EAGER, KernelPart.COMPILED))
    return eager, compiled


def _stays_eager(spec: ClipSpec) -> bool:
    """Whether the clip cannot be compiled whatever its layout."""
    return bool(eager_because(KernelChoice.AUTO, spec, RESIDENT, watched=False))


# -- remembering ------------------------------------------------------------------------------------------------

_SHAPE = itemgetter(
    *("family", "width", "height", "frames", "steps", "guidance", "window", "window_overlap", "step_cache"),
    *("base", "strength"),
)


def _shape(spec: ClipSpec) -> tuple[object, ...]:
    """What of a specification decides its time: cheaper to hash than all of it, and shared by all rows of a shape."""
    return (*_SHAPE(spec.__dict__), spec.adapter is None)


def _layout_within(spec: ClipSpec, usable_bytes: int | None) -> Layout:
    layouts = family_named(spec.family).layouts
    if usable_bytes is None:
        return layouts[0]
    peaks = [(footprint(spec, layout).peak_bytes, layout) for layout in layouts]
    fitting = [layout for peak, layout in peaks if peak <= usable_bytes]
    return fitting[0] if fitting else min(peaks, key=lambda pair: pair[0])[1]
