"""How much memory clips take on which card: predicted footprints, corrected by measured peaks. Pure.

A footprint counts tensors exactly; what a kernel takes besides differs by card and shape. So every attempt's peak is
compared with its prediction, as a ratio of the *activations*: weights are known to the byte and are never scaled.

    corrected = largest of (stage + (factor − 1) × activations of that stage)

Of a key (family, class, frames, layout, dtype, card kind) the largest of the newest `RECENT` ratios counts: too little
memory costs an attempt, too much a place on a smaller card. A key that was never measured takes a part of what its
worst neighbour took too much.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.estimates.measurements import Answers, EstimateKey, Estimates, Measurements, Neighbourhood
from cluster.jobs.outcomes import Peak
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES, Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import NOTHING, Footprint, cuda_model, footprint, memory_model, weights_on_card

#: Ratios kept of a key.
RECENT = 8
#: Peaks measured before a prediction may also be lowered; until then it is only raised.
ENOUGH = 5
#: Headroom over the largest recent ratio, at most.
HEADROOM = 0.10
#: What neighbours count for: half of what they took above their predictions.
DAMPING = 0.5
#: Kind of a card that is not there yet: all that is known of it comes from neighbours.
ELSEWHERE = "?"
#: Activations are taken for at least this share of a stage, so that a few stray bytes are no large ratio.
_LEAST_SHARE = 1 / 16
#: No card takes a thousand times what was predicted: a larger ratio is a broken file or measurement.
MOST = 1000.0

_Ratio = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]


class MemoryKey(EstimateKey):
    """The clips and cards whose measured peaks count as one."""

    family: str = Field(min_length=1, max_length=64)
    resolution_class: ResolutionClass
    #: Frames evaluated at once: those of a window, where the clip has windows.
    frames: int = Field(gt=0)
    #: `layout_key` of the layout.
    layout: str = Field(max_length=255)
    dtype: str = Field(max_length=16)
    #: Card kind.
    kind: str = Field(max_length=128)

    @property
    def prior(self) -> str:
        """`footprint_version` of the family."""
        return footprint_version(self.family)

    @property
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """One neighbourhood: the same networks in the same layout, of whatever class, frames and card kind."""
        return ((self.family, self.layout, self.dtype),)


class MemoryMeasurements(Measurements):
    """Ratios of measured to predicted activations of one key."""

    kept: ClassVar[int] = RECENT

    key: MemoryKey
    #: `footprint_version` of the predictions, under its name in files and in the store.
    prior: str = Field(alias="footprint", max_length=16)
    #: Attempts that ran out of memory; `count` is of those that did not.
    ooms: int = Field(default=0, ge=0)
    #: Largest ratio ever seen.
    largest: _Ratio = 0.0
    recent: tuple[_Ratio, ...] = Field(default=(), max_length=RECENT)

    @property
    def attempts(self) -> int:
        """Attempts that completed or ran out of memory."""
        return self.count + self.ooms

    def plus(self, newer: Self) -> Self:
        """A copy with the `newer` peaks; itself where an attempt ran out of less memory than is expected by now.

        Another program took the rest then, and nothing is learned about the clip.
        """
        if newer.ooms and newer.largest <= self.factor:
            return self
        update = {"ooms": self.ooms + newer.ooms, "largest": max(self.largest, newer.largest)}
        return super().plus(newer).model_copy(update=update)

    @property
    def factor(self) -> float:
        """What predicted activations are multiplied by; never below the largest of `recent`.

        At least 1 before `ENOUGH` peaks were measured.
        """
        if not self.recent:
            return 1.0
        seen = max(self.recent)
        # Where a prediction holds there is nothing to add: the card's own margin is for that. Above it, headroom of
        # the overshoot again; below it, headroom up to the prediction.
        if seen > 1:
            return seen + min(seen - 1, HEADROOM * seen)
        return min(1.0, (1 + HEADROOM) * seen) if self.count >= ENOUGH else 1.0


class MemoryFactors(BaseModel):
    """The factors that concern one clip on one card kind: what a renderer is told."""

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
        """`correct` of one family, as `pipeline.memory.footprint.plan` takes it."""
        return lambda layout, predicted: self.correct(family, layout, predicted)


@dataclass(frozen=True)
class MemoryEstimates(Estimates[MemoryMeasurements]):
    """Bytes that clips take of cards: predicted, and corrected by what a farm has measured."""

    of = MemoryMeasurements

    #: Bytes by card kind that placement has worked out from these.
    answers: Answers[dict[str, int]] = field(default_factory=Answers, init=False, repr=False, compare=False)

    def factor(self, key: MemoryKey) -> float:
        """The factor of exactly this key; of one never measured, half of what the worst neighbour took too much."""
        if (own := self.get(key)) is not None:
            return own.factor
        (neighbourhood,) = key.neighbourhoods
        return 1 + DAMPING * (max([1.0, *(one.factor for one in self.neighbours(neighbourhood))]) - 1)

    def corrected(self, predicted: Footprint, key: MemoryKey, layout: Layout) -> int:
        """Bytes to expect on the key's card kind where the peak of `predicted` was predicted."""
        return corrected(key.family, layout, predicted, self.factor(key))

    def about(self, spec: ClipSpec, kind: str) -> MemoryFactors:
        """What concerns `spec` on cards of `kind`."""
        if not self.measured or spec.family not in FAMILIES:
            return MemoryFactors()
        found = {layout: self.factor(key_of(spec, layout, kind)) for layout in family_named(spec.family).layouts}
        return MemoryFactors(factors={layout_key(layout): factor for layout, factor in found.items() if factor != 1})


class MeasurementsFileError(ValueError):
    """The text holds no measurements; says what is wrong with it."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    #: Version of the file's format, not of clipmill.
    clipmill_lessons: Literal[1] = 1
    #: The clipmill that wrote it, for people.
    written_by: str = ""
    lessons: tuple[MemoryMeasurements, ...]


def to_text(estimates: MemoryEstimates, written_by: str) -> str:
    """What was measured as JSON for another farm; `written_by` is the version of clipmill that wrote it."""
    return _File(written_by=written_by, lessons=estimates.measured).model_dump_json(indent=1, by_alias=True) + "\n"


def from_text(text: str | bytes) -> MemoryEstimates:
    """The estimates in what `to_text` wrote. Raises `MeasurementsFileError`."""
    try:
        return MemoryEstimates(_File.model_validate_json(text).lessons)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MeasurementsFileError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def key_of(spec: ClipSpec, layout: Layout, kind: str) -> MemoryKey:
    """The key of `spec` in `layout` on cards of `kind`. Raises `BadInputError` for an unknown family."""
    model = memory_model(family_named(spec.family))
    return MemoryKey(
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
    figures: tuple[object, ...] = (
        sorted(model.weights.items()), model.encode, sorted(model.denoise.items()), model.decode, model.latents,
    )  # fmt: skip
    if model.decode_half:
        # Only where a layout decodes so, for the same reason as below.
        figures += model.decode_half, model.half_weights
    if FAMILIES[family].repo and model.convolutions:
        # Only where there are workspaces: what was learned of other families keeps its version.
        figures += sorted(model.convolutions.items()), sorted(cuda_model().convolution_copies.items())
    return hashlib.sha256(repr(figures).encode()).hexdigest()[:16]


def observe(spec: ClipSpec, kind: str, peaks: Iterable[Peak]) -> list[MemoryMeasurements]:
    """What the peaks of one attempt on a card of `kind` say, each by itself; nothing of an unknown family or card.

    An attempt that ran out of memory needed more than what it had reached and more than what was usable. What did only
    a part of the work may raise what is expected of the whole, and never lower it.
    """
    if spec.family not in FAMILIES or not kind:
        return []
    found = []
    for seen in peaks:
        predicted = footprint(spec, seen.layout)
        if predicted == NOTHING or seen.measured_bytes <= 0:
            continue
        bound = max(seen.measured_bytes, seen.usable_bytes) if seen.out_of_memory else seen.measured_bytes
        ratio = min(factor_of(spec.family, seen.layout, predicted, bound + seen.absent_bytes), MOST)
        if ratio <= 1 and (seen.partial or spec.guidance == 1 or spec.base is not None):
            continue
        key, failed = key_of(spec, seen.layout, kind), int(seen.out_of_memory)
        found.append(
            MemoryMeasurements(key=key, prior=key.prior, count=1 - failed, ooms=failed, largest=ratio, recent=(ratio,))
        )
    return found


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
