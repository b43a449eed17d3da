"""What was measured of eager and of compiled kernels: by one run of a clip's loop, and of all clips that are alike."""

from __future__ import annotations

from statistics import median

from pydantic import BaseModel, ConfigDict, Field

from pipeline.families.layouts import Layout
from pipeline.kernels.kernels import KernelMode


class KernelRun(BaseModel):
    """What one run of the loop, of a clip or of one of its phases, says of the kernels it was computed with.

    Of runs only that could have been compiled: those of streamed weights, say, tell nothing of the choice.
    """

    model_config = ConfigDict(frozen=True)

    #: Size of the phase in pixels: a clip's base is smaller than the clip.
    width: int
    height: int
    layout: Layout
    mode: KernelMode
    #: Compiled, or eager again, to see how fast that is: it says nothing about what clips take from now on.
    trial: bool = False
    #: Steps from one's end to another's in which nothing was compiled, and the seconds they took.
    steps: int = Field(default=0, ge=0)
    steps_s: float = Field(default=0.0, ge=0)
    #: Seconds that compiling added to the steps it was done in; 0 where nothing was compiled.
    compile_s: float = Field(default=0.0, ge=0)
    #: Compiled kernels were given up in this run.
    failed: bool = False

    @property
    def step_s(self) -> float | None:
        """Seconds of a step; None where none was seen alone, or the run was of both kinds of kernels."""
        return self.steps_s / self.steps if self.steps and self.mode is not KernelMode.MIXED else None


class KernelMeasurements(BaseModel):
    """What was measured of clips that are alike, on cards of one kind, by both kinds of kernels."""

    model_config = ConfigDict(frozen=True)

    #: Seconds of a step in recent clips, oldest first.
    eager_s: tuple[float, ...] = ()
    compiled_s: tuple[float, ...] = ()
    #: Seconds that compiling took before; also where most of it was read from files.
    compile_s: tuple[float, ...] = ()
    #: Clips that were measured so far, and runs in which compiled kernels were given up.
    eager_clips: int = 0
    compiled_clips: int = 0
    failures: int = 0

    @property
    def speedup(self) -> float | None:
        """How many times as fast compiled steps are as eager ones, by medians; None until both were measured."""
        return median(self.eager_s) / median(self.compiled_s) if self.eager_s and self.compiled_s else None

    @property
    def usual_compile_s(self) -> float | None:
        """Seconds that compiling takes, by the median; None where it was not measured."""
        return median(self.compile_s) if self.compile_s else None

    def plus(self, run: KernelRun, most: int = 15) -> KernelMeasurements:
        """With one more run; `most` seconds are kept of each kind, the newest."""
        values = self.model_dump()
        if run.step_s is not None:
            name = "compiled" if run.mode is KernelMode.COMPILED else "eager"
            values[f"{name}_s"] = (*values[f"{name}_s"], run.step_s)[-most:]
            values[f"{name}_clips"] += 1
        if run.compile_s:
            values["compile_s"] = (*self.compile_s, run.compile_s)[-most:]
        values["failures"] += run.failed
        return KernelMeasurements(**values)

    def merged(self, other: KernelMeasurements) -> KernelMeasurements:
        """Two that may tell of the same clips as one: for each kind of kernels, what knows of more clips."""
        eager = max(self, other, key=lambda one: one.eager_clips)
        compiled = max(self, other, key=lambda one: one.compiled_clips)
        compiling = max(self, other, key=lambda one: len(one.compile_s))
        return KernelMeasurements(
            eager_s=eager.eager_s,
            eager_clips=eager.eager_clips,
            compiled_s=compiled.compiled_s,
            compiled_clips=compiled.compiled_clips,
            compile_s=compiling.compile_s,
            failures=max(self.failures, other.failures),
        )


class ShapeMeasurements(BaseModel):
    """`KernelMeasurements` of one phase of a clip in one layout: what a renderer is told with the clip."""

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    layout: Layout
    measured: KernelMeasurements
