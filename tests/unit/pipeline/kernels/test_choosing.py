"""`kernels: auto` against a known truth: it never takes much longer than the better of both fixed choices."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from pipeline.families.layouts import RESIDENT, Layout
from pipeline.kernels.buckets import Bucket
from pipeline.kernels.choosing import (
    COMPILE_S,
    ENOUGH,
    FAR_SLOWER,
    HYSTERESIS,
    PRIOR_GAIN,
    RECHECK,
    RETRY,
    ExpectedWork,
    choose,
)
from pipeline.kernels.history import BucketHistory
from pipeline.kernels.kernels import KernelMode
from pipeline.kernels.measured import KernelMeasurements, KernelRun, ShapeMeasurements

EAGER, COMPILED = KernelMode.EAGER, KernelMode.COMPILED
BUCKET = Bucket(family="svd-xt", width=64, height=32, frames=16, rows=2)


@dataclass
class Truth:
    """What a bucket really takes on a card."""

    eager_s: float
    compiled_s: float
    compile_s: float
    fails: bool = False
    #: Standard deviation of a clip's speed about the true one.
    noise: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(0))


class Process:
    """One renderer's process: what it spends on the clips of one bucket."""

    def __init__(self, truth: Truth, farm: list[KernelMeasurements] | None = None) -> None:
        self.truth, self.history, self.farm = truth, BucketHistory(), farm
        self.compiled = self.broken = False
        self.seconds = 0.0
        self.modes: list[KernelMode] = []
        self.trials = 0

    def clip(self, steps: int) -> None:
        told = self.farm[-1] if self.farm else KernelMeasurements()
        shapes = [ShapeMeasurements(width=64, height=32, layout=RESIDENT, measured=told)]
        chosen = self.history.choose(BUCKET, RESIDENT, steps=steps, compiled=self.compiled, told=shapes)
        mode, compile_s, failed = chosen.mode, 0.0, False
        self.trials += chosen.trial
        if self.broken:
            # As `eager_because` has it: this process does not try again.
            mode = EAGER
        if mode is COMPILED and not self.compiled:
            compile_s = self.truth.compile_s
            if self.truth.fails:
                self.broken = failed = True
                mode = EAGER
            else:
                self.compiled = True
        true_s = self.truth.compiled_s if mode is COMPILED else self.truth.eager_s
        step_s = true_s * math.exp(self.truth.dice.gauss(0, self.truth.noise))
        self.seconds += compile_s + steps * step_s
        self.modes.append(mode)
        run = KernelRun(
            width=64,
            height=32,
            layout=RESIDENT,
            mode=mode,
            trial=chosen.trial and not failed,
            steps=steps - 1,
            steps_s=(steps - 1) * step_s,
            compile_s=0.0 if failed else compile_s,
            failed=failed,
        )
        self.history.ran(BUCKET, run, steps)
        if self.farm is not None:
            self.farm.append(told.plus(run))


def bound(truth: Truth, clips: list[int]) -> float:
    """What the module promises for clips of so many steps in one process."""
    eager = sum(clips) * truth.eager_s
    compiled = math.inf if truth.fails else truth.compile_s + sum(clips) * truth.compiled_s
    longest_eager = max(clips) * truth.eager_s
    longest_compiled = 0.0 if truth.fails else max(clips) * truth.compiled_s
    return (
        (1 + HYSTERESIS) * min(eager, compiled)
        + truth.compile_s
        + max(COMPILE_S, truth.compile_s) / (1 - 1 / PRIOR_GAIN)
        + ENOUGH * (longest_eager + longest_compiled)
        + math.log(len(clips) / RECHECK + 1, 4) * (truth.compile_s + longest_eager + longest_compiled)
    )


def truths(seed: int, noise: float = 0.0) -> tuple[Truth, list[int]]:
    dice = random.Random(seed)
    eager_s = 10 ** dice.uniform(-2.5, 1.3)
    truth = Truth(
        eager_s=eager_s,
        compiled_s=eager_s / 10 ** dice.uniform(-0.4, 0.4),
        compile_s=10 ** dice.uniform(-0.5, 2.8),
        fails=dice.random() < 0.15,
        noise=noise,
        dice=dice,
    )
    longest = dice.choice([10, 50])
    return truth, [dice.randint(4, longest) for _ in range(int(10 ** dice.uniform(0, 2.9)))]


@pytest.mark.parametrize("first", range(0, 250, 50))
def test_all_clips_of_a_process_take_no_longer_than_promised(first: int) -> None:
    for seed in range(first, first + 50):
        truth, clips = truths(seed)
        process = Process(truth)
        for steps in clips:
            process.clip(steps)
        assert process.seconds <= bound(truth, clips) * (1 + 1e-9), (seed, truth)


def test_with_noise_the_promise_holds_but_for_what_the_noise_hides() -> None:
    for seed in range(100):
        truth, clips = truths(seed, noise=0.04)
        process = Process(truth)
        for steps in clips:
            process.clip(steps)
        # Speeds nearer to each other than medians of noisy clips are taken for one another.
        assert process.seconds <= 1.1 * bound(truth, clips), (seed, truth)


def test_of_much_work_the_faster_does_nearly_all() -> None:
    """The promise alone would be kept by eager kernels wherever compiled ones gain little."""
    for compiled_s, wanted in ((0.8, COMPILED), (0.9, COMPILED), (1.1, EAGER), (2.0, EAGER)):
        process = Process(Truth(eager_s=1.0, compiled_s=compiled_s, compile_s=60.0))
        for _ in range(1000):
            process.clip(50)
        assert process.modes.count(wanted) >= 980
        assert process.modes[-1] is wanted


def test_speeds_that_are_nearly_equal_do_not_flip() -> None:
    for seed in range(20):
        truth = Truth(eager_s=1.0, compiled_s=1.0, compile_s=1.0, noise=0.05, dice=random.Random(seed))
        process = Process(truth)
        for _ in range(300):
            process.clip(50)
        changes = sum(a is not b for a, b in zip(process.modes, process.modes[1:], strict=False))
        assert changes <= 2 * process.trials + 6, seed


def test_a_bucket_that_comes_once_is_not_compiled_and_a_long_clip_pays_by_itself() -> None:
    both = {"eager_s": (1.0, 1.0), "compiled_s": (0.8, 0.8), "eager_clips": 2, "compiled_clips": 2}
    known = KernelMeasurements(**both, compile_s=(60.0,))
    assert choose(known, ExpectedWork(steps=50)).mode is EAGER
    assert choose(known, ExpectedWork(steps=400)).mode is COMPILED
    # With those that came before it, of which as many are expected again.
    assert choose(known, ExpectedWork(steps=50, earlier_steps=260)).mode is COMPILED
    assert choose(known, ExpectedWork(steps=50, compiled=True)).mode is COMPILED
    because = choose(known, ExpectedWork(steps=50)).because
    assert "50 steps save 10 s, compiling takes 60 s" in because
    assert "1.25 times the eager speed in 2 clips" in because


def test_a_second_renderer_of_the_kind_knows_at_once() -> None:
    farm = [KernelMeasurements()]
    truth = Truth(eager_s=1.0, compiled_s=0.7, compile_s=30.0)
    first, second = Process(truth, farm), Process(truth, farm)
    for _ in range(30):
        first.clip(50)
    assert first.trials == ENOUGH
    for _ in range(30):
        second.clip(50)
    assert second.trials == 0
    assert second.modes.count(EAGER) <= 2, "only until its own clips pay for compiling"


def test_failures_are_tried_again_ever_more_seldom() -> None:
    farm = [KernelMeasurements()]
    truth = Truth(eager_s=1.0, compiled_s=0.5, compile_s=20.0, fails=True)
    tried = []
    for clip in range(3000):
        # Each in a new process, which would try again.
        process = Process(truth, farm)
        process.clip(2000)
        if process.broken:
            tried.append(clip)
    assert len(tried) == 5
    assert tried == [ENOUGH, *(pytest.approx(RETRY * 4**n, abs=5) for n in range(1, 5))]


def test_a_trial_that_is_far_slower_ends_with_its_first_clip() -> None:
    known = KernelMeasurements(eager_s=(1.0, 1.0), eager_clips=2, compiled_s=(FAR_SLOWER + 0.01,), compiled_clips=1)
    assert choose(known, ExpectedWork(steps=50, compiled=True)).mode is EAGER
    known = KernelMeasurements(eager_s=(1.0, 1.0), eager_clips=2, compiled_s=(FAR_SLOWER - 0.01,), compiled_clips=1)
    assert choose(known, ExpectedWork(steps=50, compiled=True)).trial


def test_a_farm_that_was_compiled_measures_eager_steps_as_a_trial() -> None:
    known = KernelMeasurements(compiled_s=(1.0,) * 5, compiled_clips=5)
    found = choose(known, ExpectedWork(steps=50, compiled=True))
    assert (found.mode, found.trial) == (EAGER, True)


def test_compiled_kernels_that_went_are_paid_for_anew() -> None:
    history = BucketHistory()
    both = {"eager_s": (1.0, 1.0), "compiled_s": (0.5, 0.5), "eager_clips": 2, "compiled_clips": 2}
    known = KernelMeasurements(**both, compile_s=(40.0,))
    told = [ShapeMeasurements(width=64, height=32, layout=RESIDENT, measured=known)]

    def next_mode() -> KernelMode:
        return history.choose(BUCKET, RESIDENT, steps=50, compiled=False, told=told).mode

    run = KernelRun(width=64, height=32, layout=RESIDENT, mode=EAGER, steps=49, steps_s=49.0)
    modes = []
    for _ in range(2):
        modes.append(next_mode())
        history.ran(BUCKET, run, 50)
    assert [*modes, next_mode()] == [EAGER, COMPILED, COMPILED]
    history.dropped(BUCKET)
    assert next_mode() is EAGER


def test_measurements_of_another_layout_or_size_are_not_these() -> None:
    both = {"eager_s": (1.0, 1.0), "compiled_s": (0.5, 0.5), "eager_clips": 2, "compiled_clips": 2}
    known = KernelMeasurements(**both)
    for change in ({"width": 128}, {"layout": Layout(split_guidance=True)}):
        told = [ShapeMeasurements(**({"width": 64, "height": 32, "layout": RESIDENT, "measured": known} | change))]
        found = BucketHistory().choose(BUCKET, RESIDENT, steps=50, compiled=True, told=told)
        assert "measured first" in found.because


def test_of_two_who_know_of_the_same_clips_none_is_counted_twice() -> None:
    run = KernelRun(width=64, height=32, layout=RESIDENT, mode=EAGER, steps=4, steps_s=8.0)
    one = KernelMeasurements().plus(run)
    two = one.plus(run)
    assert one.merged(two) == two.merged(one) == two
    assert (two.eager_clips, two.eager_s) == (2, (2.0, 2.0))
    assert one.plus(run.model_copy(update={"mode": KernelMode.MIXED, "failed": True})).failures == 1
