"""`kernels: auto`: whether a run is eager or compiled, by what both were measured to take. Pure.

Compiling is bought once for a bucket and a process, and pays by the step. Nobody knows how many clips will come, so it
is bought when the steps that came, with those of this clip, would have paid for it: the rule of renting skis, which
never spends more than twice what the best of both fixed choices spends on it. Before compiled steps were measured their
gain is a guess (`PRIOR_GAIN`), and the first `ENOUGH` compiled clips are a trial. Then the faster is kept.

For clips of a bucket in one process, eager steps of e seconds, compiled ones of c, compiling of C (expected: E), T(x)
the longest clip by x, no noise, and N clips, all of them take at most

    (1 + HYSTERESIS) · min(all eager, compiled from the first on)
    + C + E / (1 − 1 / PRIOR_GAIN) + ENOUGH · (T(e) + T(c)) + log4(N / RECHECK + 1) · (C + T(e) + T(c))
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from pipeline.kernels.kernels import KernelMode
from pipeline.kernels.measured import KernelMeasurements

#: How many times as fast compiled steps are thought to be until it is measured. Nothing of ours: what others report of
#: such networks lies between 1.15 and 1.25.
PRIOR_GAIN = 1.15
#: Seconds that compiling a bucket is thought to take until it is measured. A guess: a few seconds for each of the
#: graphs of a denoiser, which are 2 to 40.
COMPILE_S = 120.0
#: Clips of each kind before they are compared.
ENOUGH = 2
#: Relative difference of two speeds below which nothing changes.
HYSTERESIS = 0.03
#: A trial ends with its first clip where that was so many times slower.
FAR_SLOWER = 1.25
#: The slower is measured again after so many clips of the faster; then after four times as many, and so on.
RECHECK = 50
#: What failed to compile is tried again after four times so many eager clips; then after sixteen times, and so on.
RETRY = 8


@dataclass(frozen=True, kw_only=True)
class ExpectedWork:
    """What a renderer knows of the work in a bucket. Of clips that wait elsewhere it knows nothing."""

    #: Steps of this run.
    steps: int
    #: Steps of the bucket that this process did since it last had compiled kernels for it; as many are expected.
    earlier_steps: int = 0
    #: The process has compiled kernels for the bucket.
    compiled: bool = False
    #: What the bucket's last run that was no trial was computed with in this process.
    used: KernelMode | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenKernels:
    """What a run is computed with, and why in words."""

    mode: KernelMode
    because: str
    #: To measure it, though it is not known to be the faster.
    trial: bool = False

    @property
    def compiles(self) -> bool:
        """Whether blocks are to be compiled."""
        return self.mode is KernelMode.COMPILED


def choose(known: KernelMeasurements, work: ExpectedWork) -> ChosenKernels:
    """The kernels of a run, where nothing forbids compiled ones."""
    if known.eager_clips < ENOUGH and not known.compiled_clips:
        return _eager(f"eager steps are measured first ({known.eager_clips} of {ENOUGH} clips)")
    if known.eager_clips < ENOUGH:
        # A farm that was `compiled` knows the other half.
        return ChosenKernels(mode=KernelMode.EAGER, because="eager steps are not measured yet", trial=True)
    if known.failures > known.compiled_clips and known.eager_clips < RETRY << 2 * min(20, known.failures):
        return _eager(f"compiling failed {known.failures} times on such cards")
    speedup = known.speedup
    if speedup is None or (known.compiled_clips < ENOUGH and speedup * FAR_SLOWER > 1):
        return _bought(known, work, PRIOR_GAIN, f"compiled clip {known.compiled_clips + 1} of {ENOUGH} to measure")
    told = f"{speedup:.2f} times the eager speed in {known.compiled_clips} clips"
    wants = _faster(speedup, work.used)
    if wants is KernelMode.COMPILED:
        if _is_due(known.compiled_clips, known.eager_clips):
            return ChosenKernels(mode=KernelMode.EAGER, because=f"eager steps are measured again: {told}", trial=True)
        return _bought(known, work, speedup, "", told)
    if _is_due(known.eager_clips, known.compiled_clips):
        return _bought(known, work, PRIOR_GAIN, "compiled steps are measured again", told)
    return _eager(f"compiled steps have {told}")


def _faster(speedup: float, used: KernelMode | None) -> KernelMode:
    if speedup > 1 + HYSTERESIS:
        return KernelMode.COMPILED
    if speedup < 1 / (1 + HYSTERESIS) or used is None:
        return KernelMode.EAGER
    return used


def _is_due(faster_clips: int, slower_clips: int) -> bool:
    # Not 4 to the power of thousands.
    again = min(20, max(0, slower_clips - ENOUGH))
    return faster_clips >= RECHECK << 2 * again


def _bought(known: KernelMeasurements, work: ExpectedWork, gain: float, trial: str, told: str = "") -> ChosenKernels:
    """Compiled, where that is there already or the work of the bucket pays for it; `trial`: why it is one, if so."""
    because = trial or f"compiled steps have {told}"
    if work.compiled:
        return ChosenKernels(mode=KernelMode.COMPILED, because=because, trial=bool(trial))
    cost_s = known.usual_compile_s or COMPILE_S
    steps = work.steps + work.earlier_steps
    saved_s = steps * median(known.eager_s) * max(0.0, 1 - 1 / gain)
    sums = f"{steps} steps {'may ' if trial else ''}save {saved_s:.3g} s, compiling takes {cost_s:.3g} s"
    if saved_s < cost_s:
        return _eager(f"{sums}{f'; {because}' if told else ''}")
    return ChosenKernels(mode=KernelMode.COMPILED, because=f"{because}; {sums}", trial=bool(trial))


def _eager(because: str) -> ChosenKernels:
    return ChosenKernels(mode=KernelMode.EAGER, because=because)
