"""What measured peaks say about predicted ones, so that the next clip of the kind is placed by what was seen. Pure.

A footprint counts tensors exactly; what a kernel takes besides differs by card and shape. So every attempt's peak is
compared with its prediction, as a factor on the *activations*: weights are known to the byte and are never scaled.

    corrected = largest of (stage + (factor − 1) × activations of that stage)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES, Stage, family_named
from pipeline.footprint import NOTHING, Footprint, footprint, memory_model, weights_on_card
from pipeline.layouts import Layout

#: Factors a lesson remembers; older ones are forgotten, so that one bad day does not count for ever.
RECENT = 8
#: Peaks measured before a lesson may also lower a prediction; until then it only raises.
ENOUGH = 5
#: Headroom over the largest recent factor, at most.
HEADROOM = 0.10
#: What a lesson about other clips counts for: half of what they took above their predictions.
DAMPING = 0.5
#: Kind of a card that is not there yet: whatever was learned comes from neighbours.
ELSEWHERE = "?"
#: Activations are taken for at least this share of a stage, so that a few stray bytes are no large factor.
_LEAST_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one layout took of a card in one attempt."""

    layout: Layout
    predicted_bytes: int
    #: Highest live bytes; of one that ran out of memory, those before the allocation that failed.
    measured_bytes: int
    #: Usable bytes of the card at its end.
    usable_bytes: int = 0
    out_of_memory: bool = False
    #: Weights that the layout keeps on the card and that were not there: of encoders whose results were cached.
    absent_bytes: int = 0
    #: It went on from a checkpoint: some stages were not there at their largest.
    partial: bool = False


class Key(BaseModel):
    """The clips and cards one lesson is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(min_length=1, max_length=64)
    resolution_class: ResolutionClass
    #: Frames evaluated at once: those of a window, where the clip has windows.
    frames: int = Field(gt=0)
    #: `layout_key` of the layout.
    layout: str = Field(max_length=255)
    dtype: str = Field(max_length=16)
    #: Card kind.
    kind: str = Field(max_length=128)


#: No card takes a thousand times what was predicted: a larger factor is a broken file or measurement.
MOST = 1000.0
Factor = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]


class Lesson(BaseModel):
    """What was seen of one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    #: `footprint_version` of the predictions that the factors are of.
    footprint: str = Field(max_length=16)
    #: Peaks measured, and attempts that ran out of memory.
    count: int = Field(default=0, ge=0)
    ooms: int = Field(default=0, ge=0)
    #: Largest factor ever seen.
    largest: Factor = 0.0
    #: The newest factors, oldest first.
    recent: tuple[Factor, ...] = Field(default=(), max_length=RECENT)

    def after(self, factor: float, *, out_of_memory: bool = False) -> Lesson:
        """With one more factor. Of an attempt that ran out of memory it says: more than this."""
        return self.model_copy(
            update={
                "count": self.count + (not out_of_memory),
                "ooms": self.ooms + out_of_memory,
                "largest": max(self.largest, factor),
                "recent": (*self.recent, factor)[-RECENT:],
            }
        )

    @property
    def factor(self) -> float:
        """What predicted activations are multiplied by; never below the largest of `recent`.

        Only ever raises before `ENOUGH` peaks were measured.
        """
        if not self.recent:
            return 1.0
        seen = max(self.recent)
        # Where a prediction holds there is nothing to add: the card's own margin is for that. Above it, headroom of
        # the overshoot again; below it, headroom up to the prediction.
        if seen > 1:
            return seen + min(seen - 1, HEADROOM * seen)
        return min(1.0, (1 + HEADROOM) * seen) if self.count >= ENOUGH else 1.0


class Factors(BaseModel):
    """The lessons that concern one clip on one card kind: what a renderer is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Factor on the activations by `layout_key`; 1 for a layout that is not named.
    factors: dict[str, float] = Field(default_factory=dict)

    def correct(self, family: str, layout: Layout, predicted: Footprint) -> int:
        """Bytes to expect where the peak of `predicted` was predicted."""
        return corrected(family, layout, predicted, self.factors.get(layout_key(layout), 1.0))

    def correct_stage(self, family: str, layout: Layout, predicted: Footprint, stage: str) -> int:
        """Bytes to expect of one stage."""
        return corrected_stages(family, layout, predicted, self.factors.get(layout_key(layout), 1.0))[stage]

    def corrector(self, family: str) -> Callable[[Layout, Footprint], int]:
        """`correct` of one family, as `pipeline.footprint.plan` takes it."""
        return lambda layout, predicted: self.correct(family, layout, predicted)


class Lessons(BaseModel):
    """All that a farm has learned; at most one lesson a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lessons: tuple[Lesson, ...] = ()

    @cached_property
    def memory(self) -> dict[tuple[object, ...], dict[str, int]]:
        """What placement has worked out from these: it asks for the same again and again."""
        return {}

    @cached_property
    def _by_key(self) -> Mapping[Key, Lesson]:
        return {lesson.key: lesson for lesson in self.lessons}

    @cached_property
    def _neighbours(self) -> Mapping[tuple[str, str, str], float]:
        largest: dict[tuple[str, str, str], float] = {}
        for lesson in self.lessons:
            kin = _kin(lesson.key)
            largest[kin] = max(largest.get(kin, 1.0), lesson.factor)
        return largest

    def get(self, key: Key) -> Lesson | None:
        """The lesson of exactly this key."""
        return self._by_key.get(key)

    def factor(self, key: Key) -> float:
        """The factor of the key's own lesson; of a key never seen, half of what the worst neighbour took too much.

        Neighbours are the same networks in the same layout: other classes, frames and card kinds.
        """
        if (own := self._by_key.get(key)) is not None:
            return own.factor
        return 1 + DAMPING * (self._neighbours.get(_kin(key), 1.0) - 1)

    def corrected(self, predicted: Footprint, key: Key, layout: Layout) -> int:
        """Bytes to expect on the key's card kind where the peak of `predicted` was predicted."""
        return corrected(key.family, layout, predicted, self.factor(key))

    def about(self, spec: ClipSpec, kind: str) -> Factors:
        """What concerns `spec` on cards of `kind`."""
        if not self.lessons or spec.family not in FAMILIES:
            return Factors()
        found = {layout: self.factor(key_of(spec, layout, kind)) for layout in family_named(spec.family).layouts}
        return Factors(factors={layout_key(layout): factor for layout, factor in found.items() if factor != 1})

    def after(self, spec: ClipSpec, kind: str, peaks: Iterable[Peak]) -> Lessons:
        """With what one attempt saw; as it is where `kind` is not known."""
        if not kind:
            return self
        found = dict(self._by_key)
        for seen in peaks:
            if observed := observe(spec, kind, seen, found.get(key_of(spec, seen.layout, kind))):
                found[observed.key] = observed
        return Lessons(lessons=tuple(found.values()))

    def merged(self, other: Lessons) -> Lessons:
        """With what another farm learned: of two lessons of one key, the one that saw more attempts.

        What was seen under other predictions than ours is of no use here and is left out.
        """
        found = dict(self._by_key)
        for theirs in other.lessons:
            ours = found.get(theirs.key)
            if theirs.footprint != footprint_version(theirs.key.family):
                continue
            if ours is None or better(theirs, ours):
                found[theirs.key] = theirs
        return Lessons(lessons=tuple(found.values()))


class LessonsFileError(ValueError):
    """The text holds no lessons; says what is wrong with it."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    #: Of the format, not of clipmill.
    clipmill_lessons: Literal[1] = 1
    #: The clipmill that wrote it, for people.
    written_by: str = ""
    lessons: tuple[Lesson, ...]


def to_text(lessons: Lessons, written_by: str) -> str:
    """`lessons` as JSON for another farm; `written_by` is the version that wrote it."""
    return _File(written_by=written_by, lessons=lessons.lessons).model_dump_json(indent=1) + "\n"


def from_text(text: str | bytes) -> Lessons:
    """The lessons in what `to_text` wrote. Raises `LessonsFileError`."""
    try:
        return Lessons(lessons=_File.model_validate_json(text).lessons)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LessonsFileError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def better(theirs: Lesson, ours: Lesson) -> bool:
    """Whether `theirs` knows more of a key than `ours`: it is of the predictions in use, and saw more attempts."""
    current = footprint_version(ours.key.family)
    return (theirs.footprint == current, theirs.count + theirs.ooms) > (
        ours.footprint == current,
        ours.count + ours.ooms,
    )


def key_of(spec: ClipSpec, layout: Layout, kind: str) -> Key:
    """The key of `spec` in `layout` on cards of `kind`. Raises `BadInputError` for an unknown family."""
    model = memory_model(family_named(spec.family))
    return Key(
        family=spec.family,
        resolution_class=spec.resolution_class,
        frames=min(spec.frames, spec.window or spec.frames),
        layout=layout_key(layout),
        dtype=model.dtype if model else "",
        kind=kind,
    )


@cache
def layout_key(layout: Layout) -> str:
    """A layout as text: the switches that are not at rest, so that a switch added later changes no key."""
    return layout.model_dump_json(exclude_defaults=True)


@cache
def footprint_version(family: str) -> str:
    """Short hash of the coefficients that predict `family`; empty for one that is unknown or uses no card memory."""
    model = memory_model(FAMILIES[family]) if family in FAMILIES else None
    if model is None:
        return ""
    told = (sorted(model.weights.items()), model.encode, sorted(model.denoise.items()), model.decode, model.latents)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def observe(spec: ClipSpec, kind: str, seen: Peak, lesson: Lesson | None = None) -> Lesson | None:
    """`lesson` (None: the first of its key) with one more peak; None where the peak teaches nothing.

    An attempt that ran out of memory needed more than what it had reached and more than what was usable. Where that
    is less than was predicted, another program took the rest: nothing is learned about the clip. What did only a part
    of the work may raise what is expected of the whole, and never lower it.
    """
    if spec.family not in FAMILIES or not kind:
        return None
    predicted = footprint(spec, seen.layout)
    if predicted == NOTHING or seen.measured_bytes <= 0:
        return None
    bound = max(seen.measured_bytes, seen.usable_bytes) if seen.out_of_memory else seen.measured_bytes
    bound += seen.absent_bytes
    factor = factor_of(spec.family, seen.layout, predicted, bound)
    key, version = key_of(spec, seen.layout, kind), footprint_version(spec.family)
    if lesson is None or lesson.footprint != version:
        lesson = Lesson(key=key, footprint=version)
    partial = seen.partial or spec.guidance == 1 or spec.base is not None
    if (seen.out_of_memory and factor <= lesson.factor) or (partial and factor <= 1):
        return None
    return lesson.after(min(factor, MOST), out_of_memory=seen.out_of_memory)


def factor_of(family: str, layout: Layout, predicted: Footprint, measured_bytes: int) -> float:
    """The factor on activations whose `corrected` is `measured_bytes`, or the prediction where no factor gives it."""
    weights = weights_on_card(family_named(family), layout).stages
    of = {
        name: max(0.0, 1 + (measured_bytes - count) / _activations(count, weights[name]))
        for name, count in predicted.stages.items()
    }
    least = min(of.values())
    # Encoding may have been skipped, its result being cached: a low peak says nothing of it.
    return least if least >= 1 else min(1.0, *(factor for name, factor in of.items() if name != Stage.ENCODE))


def corrected(family: str, layout: Layout, predicted: Footprint, factor: float) -> int:
    """Peak of `predicted` with the activations of its stages multiplied by `factor`."""
    return max(corrected_stages(family, layout, predicted, factor).values())


def corrected_stages(family: str, layout: Layout, predicted: Footprint, factor: float) -> Mapping[str, int]:
    """`predicted` by stage with the activations multiplied by `factor`.

    Weights are what they are, and encoding is never taken for less than predicted: it is not measured apart.
    """
    if factor == 1 or predicted == NOTHING:
        return predicted.stages
    weights = weights_on_card(family_named(family), layout).stages
    return {
        name: max(weights[name], count + math.ceil((by - 1) * _activations(count, weights[name])))
        for name, count in predicted.stages.items()
        for by in [max(1.0, factor) if name == Stage.ENCODE else factor]
    }


def _activations(stage_bytes: int, weights_bytes: int) -> float:
    return max(stage_bytes - weights_bytes, _LEAST_SHARE * stage_bytes, 1.0)


def _kin(key: Key) -> tuple[str, str, str]:
    return key.family, key.layout, key.dtype
