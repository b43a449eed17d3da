"""What a farm knows of eager and of compiled kernels, by card kind: for its renderers, and for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.estimates.measurements import EstimateKey
from cluster.estimates.memory import layout_key
from cluster.estimates.published import ClipPart, expected_phases, phases_of
from cluster.estimates.times import KernelPart, TimeEstimates, TimeKey, TimeMeasurements, by_kernels, key_of
from pipeline.clips.clip import ClipSpec
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import RESIDENT
from pipeline.kernels.buckets import eager_because
from pipeline.kernels.choosing import COMPILE_S
from pipeline.kernels.kernels import KernelChoice, KernelMode
from pipeline.kernels.measured import KernelMeasurements, ShapeMeasurements


def kernels_about(estimates: TimeEstimates, spec: ClipSpec, kind: str) -> tuple[ShapeMeasurements, ...]:
    """What was measured of the phases of `spec` on cards of `kind`, in each layout that can be compiled."""
    if not estimates.measured or spec.family not in FAMILIES:
        return ()
    found = []
    for phase in phases_of(spec):
        for layout in family_named(spec.family).layouts:
            if eager_because(KernelChoice.AUTO, phase, layout, watched=False):
                continue
            key = key_of(ClipPart.STEP, phase, layout, kind)
            if not any(_each(estimates, key)):
                continue
            step_s = expected_phases(phase, kind, layout)[-1][1]
            measured = _measurements(estimates, key, step_s)
            found.append(ShapeMeasurements(width=phase.width, height=phase.height, layout=layout, measured=measured))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class KernelsInUse:
    """Which kernels clips that are alike are rendered with on cards of one kind, and what was measured of both."""

    kind: str
    family: str
    resolution_class: str
    frames: int
    #: Width × height.
    pixels: int
    #: The layout as measured times are kept by; empty: the fastest of all, with everything on the card.
    layout: str
    used: KernelMode
    #: How many times as fast compiled steps are as eager ones; None until both were measured.
    speedup: float | None
    eager_clips: int
    compiled_clips: int
    #: Seconds that compiling takes; None where it was not measured.
    compile_s: float | None
    #: Runs in which compiled kernels were given up.
    failures: int


def kernels_in_use(estimates: TimeEstimates) -> list[KernelsInUse]:
    """What was measured by kernels, by card kind; within a kind what most clips were measured of first."""
    keys = {
        one.key.model_copy(update={"part": ClipPart.STEP}): None
        for one in estimates.measured
        if isinstance(one.key.part, KernelPart)
    }
    found = [_in_use(estimates, key) for key in keys]
    return sorted(found, key=lambda one: (one.kind, -one.eager_clips - one.compiled_clips, one.family, one.pixels))


def _in_use(estimates: TimeEstimates, key: TimeKey) -> KernelsInUse:
    # Ratios to one second are as good here as seconds are.
    measured = _measurements(estimates, key, 1.0)
    steps, compiled = estimates.get(key), estimates.get(by_kernels(key)[1])
    is_compiled = steps is not None and compiled is not None and steps.recent == compiled.recent
    return KernelsInUse(
        kind=key.kind,
        family=key.family,
        resolution_class=str(key.resolution_class),
        frames=key.frames,
        pixels=key.pixels,
        layout="" if key.layout == layout_key(RESIDENT) else key.layout,
        used=KernelMode.COMPILED if is_compiled else KernelMode.EAGER,
        speedup=measured.speedup,
        eager_clips=measured.eager_clips,
        compiled_clips=measured.compiled_clips,
        compile_s=measured.usual_compile_s,
        failures=measured.failures,
    )


def _each(estimates: TimeEstimates, key: TimeKey) -> Iterator[TimeMeasurements | None]:
    for part in KernelPart:
        of_part: EstimateKey = key.model_copy(update={"part": part})
        yield estimates.get(of_part)


def _measurements(estimates: TimeEstimates, key: TimeKey, step_s: float) -> KernelMeasurements:
    """What was measured of the steps of `key`, which are expected to take `step_s`."""
    eager, compiled, compiling, failed = _each(estimates, key)
    return KernelMeasurements(
        eager_s=_times(eager, step_s),
        compiled_s=_times(compiled, step_s),
        compile_s=_times(compiling, COMPILE_S),
        eager_clips=eager.count if eager else 0,
        compiled_clips=compiled.count if compiled else 0,
        failures=failed.count if failed else 0,
    )


def _times(one: TimeMeasurements | None, expected_s: float) -> tuple[float, ...]:
    return tuple(ratio * expected_s for ratio in one.recent) if one else ()
