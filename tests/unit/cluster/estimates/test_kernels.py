"""Steps by eager and by compiled kernels, apart: what a farm knows of both, and that its rate is that of those used."""

from __future__ import annotations

import pytest

from cluster.estimates.kernels import kernels_about, kernels_in_use
from cluster.estimates.published import ClipPart, expected, expected_phases
from cluster.estimates.times import RECENT, TimeEstimates, key_of, observe
from cluster.jobs.outcomes import Timed
from cluster.store import measurements
from pipeline.clips.clip import Adapter, BaseClip, ClipSpec, ResolutionClass, Sampler
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.kernels.kernels import KernelMode
from pipeline.kernels.measured import KernelRun
from serve.cli.show import kernels_lines
from serve.gateway.views import kernels_view
from tests.building import spec

L4 = "NVIDIA L4"
EAGER, COMPILED, MIXED = KernelMode.EAGER, KernelMode.COMPILED, KernelMode.MIXED
SPLIT = Layout(split_guidance=True)


def clip(**changes) -> ClipSpec:
    values = {"resolution_class": ResolutionClass("512p"), "width": 512, "height": 512, "frames": 16}
    return spec("i2vgen-xl", **(values | {"steps": 50, "guidance": 9.0, "sampler": Sampler.DDIM} | changes))


CLIP = clip()
STEP_S = expected_phases(CLIP, L4, RESIDENT)[-1][1]


def run(mode: KernelMode, factor: float, **changes) -> KernelRun:
    """A run whose steps took `factor` times what is expected."""
    values = {"width": 512, "height": 512, "layout": RESIDENT, "mode": mode, "steps": 49}
    return KernelRun(**(values | {"steps_s": 49 * factor * STEP_S} | changes))


def learned(*runs: KernelRun, of: ClipSpec = CLIP, estimates: TimeEstimates | None = None) -> TimeEstimates:
    estimates = estimates or TimeEstimates()
    for one in runs:
        estimates = estimates.plus(observe(of, L4, None, [one]))
    return estimates


def step_s(estimates: TimeEstimates, of: ClipSpec = CLIP) -> float:
    return estimates.cost(of, L4, RESIDENT).phases[-1][1]


def of_a_base() -> ClipSpec:
    values = {name: getattr(CLIP, name) for name in BaseClip.model_fields}
    small = {"resolution_class": ResolutionClass("256p"), "width": 256, "height": 256}
    return clip(base=BaseClip(**(values | small)), strength=0.5)


def test_the_rate_is_that_of_the_kernels_that_are_used_from_the_first_clip_on():
    estimates = learned(*[run(EAGER, 1.0)] * RECENT)
    assert step_s(estimates) == pytest.approx(STEP_S)
    trials = learned(*[run(COMPILED, 0.5, trial=True)] * 2, estimates=estimates)
    assert step_s(trials) == pytest.approx(STEP_S), "a trial says nothing of what clips take"
    compiled = learned(run(COMPILED, 0.6), estimates=trials)
    assert step_s(compiled) == pytest.approx(0.5 * STEP_S), "the median of all three compiled ones"
    again = learned(run(EAGER, 1.0), estimates=compiled)
    assert step_s(again) == pytest.approx(STEP_S), "and back"


def test_clips_that_come_in_one_transaction_end_at_the_last_one_s_kernels():
    some = [one for mode in (COMPILED, EAGER, COMPILED) for one in observe(CLIP, L4, None, [run(mode, 0.5)])]
    estimates = learned(*[run(EAGER, 1.0)] * 5).plus(some)
    assert step_s(estimates) == pytest.approx(0.5 * STEP_S)


def test_a_clip_that_cannot_be_compiled_is_expected_at_the_eager_rate():
    estimates = learned(*[run(EAGER, 1.0)] * 3, *[run(COMPILED, 0.5)] * 3)
    adapted = clip(adapter=Adapter(name="lora", sha256="a" * 64))
    # Asked in both orders: what is remembered of one must not be told of the other.
    for of in (CLIP, adapted, CLIP):
        assert step_s(estimates, of) == pytest.approx(STEP_S * (0.5 if of is CLIP else 1.0))


def test_a_card_without_such_measurements_goes_by_its_clips_as_before():
    timed = Timed(layout=RESIDENT, first_s=3 * STEP_S, steps=49, steps_s=49 * 2 * STEP_S)
    assert step_s(TimeEstimates().plus(observe(CLIP, L4, timed))) == pytest.approx(2 * STEP_S)


def test_what_was_compiled_is_neither_encoding_nor_a_step():
    plain = expected(CLIP, L4, RESIDENT)
    timed = Timed(layout=RESIDENT, first_s=plain[ClipPart.ENCODE] + STEP_S + 90, steps=49, steps_s=49 * STEP_S)
    found = TimeEstimates().plus(observe(CLIP, L4, timed, [run(COMPILED, 1.0, compile_s=90.0)]))
    assert found.get(key_of(ClipPart.ENCODE, CLIP, RESIDENT, L4)) is None
    assert step_s(found) == pytest.approx(STEP_S)
    (told,) = kernels_about(found, CLIP, L4)
    assert told.measured.compile_s == pytest.approx((90.0,))
    # A second phase's compiling is among the steps that the dispatcher sees.
    base = of_a_base()
    small = run(EAGER, 1.0, width=256, height=256)
    timed = Timed(layout=RESIDENT, first_s=1.0, steps=49, steps_s=1000.0)
    found = TimeEstimates().plus(observe(base, L4, timed, [small, run(COMPILED, 0.7, compile_s=500.0)]))
    own = found.get(key_of(ClipPart.STEP, base, RESIDENT, L4))
    assert own.recent == pytest.approx((0.7,), rel=0.01)


def test_phases_are_measured_and_told_apart():
    base = of_a_base()
    found = learned(run(EAGER, 1.0, width=256, height=256), run(COMPILED, 0.5), of=base)
    told = {(one.width, one.height): one.measured for one in kernels_about(found, base, L4)}
    assert set(told) == {(256, 256), (512, 512)}
    assert (told[256, 256].eager_clips, told[256, 256].compiled_clips) == (1, 0)
    assert (told[512, 512].eager_clips, told[512, 512].compiled_clips) == (0, 1)
    # A run of a size that the clip has no phase of says nothing.
    assert observe(CLIP, L4, None, [run(EAGER, 1.0, width=64)]) == []


def test_seconds_arrive_as_they_were_measured_by_layout():
    found = learned(run(EAGER, 1.2), run(EAGER, 2.0, layout=SPLIT), run(COMPILED, 0.6))
    told = {one.layout: one.measured for one in kernels_about(found, CLIP, L4)}
    assert told[RESIDENT].eager_s == pytest.approx((1.2 * STEP_S,))
    assert told[RESIDENT].speedup == pytest.approx(2.0)
    assert told[SPLIT].eager_s == pytest.approx((2.0 * STEP_S,))
    assert kernels_about(found, CLIP, "NVIDIA H200") == ()
    assert kernels_about(found, clip(frames=8), L4) == ()


def test_a_failure_is_counted_and_a_clip_of_mixed_kernels_measures_no_step():
    found = learned(run(EAGER, 1.0, failed=True), run(MIXED, 1.0, failed=True))
    (told,) = kernels_about(found, CLIP, L4)
    assert (told.measured.failures, told.measured.eager_clips, told.measured.compiled_clips) == (2, 1, 0)
    assert found.get(key_of(ClipPart.STEP, CLIP, RESIDENT, L4)).count == 1


@pytest.mark.parametrize(("family", "kind"), [("gone", L4), ("i2vgen-xl", "")])
def test_of_an_unknown_family_or_card_nothing_is_said(family, kind):
    assert observe(CLIP.model_copy(update={"family": family}), kind, None, [run(EAGER, 1.0)]) == []


def test_people_read_one_line_a_kind(sqlite_database):
    wide = clip(width=704, height=384)
    slower = clip(frames=8)
    trial = {"trial": True}
    ran = {
        CLIP: [*[run(EAGER, 1.0)] * 4, *[run(COMPILED, 0.5, **trial)] * 2, *[run(COMPILED, 0.5, compile_s=30.0)] * 3],
        wide: [run(EAGER, 1.0, width=704, height=384, failed=True)],
        slower: [*[run(EAGER, 1.0)] * 2, *[run(COMPILED, 2.0, **trial)] * 2],
    }
    for of, runs in ran.items():
        for one in runs:
            with sqlite_database.write() as c:
                measurements.record(sqlite_database, c, 0, measurements.observe(of, L4, (), None, [one]))
    known = measurements.load_times(sqlite_database)
    views = kernels_view(known)
    assert [view["used"] for view in views] == ["compiled", "eager", "eager"]
    (line,) = kernels_lines(views, {L4})
    assert line == (
        "L4: kernels: compiled for i2vgen-xl 512p×16 (2.00x eager, 5 clips); "
        "eager for i2vgen-xl 512p×8 (compiled 0.50x eager, 2 clips); "
        "eager for i2vgen-xl 512p×16 (compiling failed 1x, 1 clip)"
    )
    assert kernels_lines(views, {"NVIDIA H200"}) == []
    assert [one.compile_s for one in kernels_in_use(known)] == [pytest.approx(30.0), None, None]
