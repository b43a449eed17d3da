"""What measured peaks teach: against footprints of the real family, and for any order of observations."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.estimates.memory import (
    ENOUGH,
    RECENT,
    MeasurementsFileError,
    MemoryEstimates,
    MemoryFactors,
    corrected,
    factor_of,
    footprint_version,
    from_text,
    key_of,
    layout_key,
    observe,
    to_text,
)
from cluster.jobs.outcomes import Peak
from pipeline.clips.clip import ResolutionClass
from pipeline.families import FAMILIES
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory import footprint as footprint_module
from pipeline.memory.footprint import footprint, leanest, plan, weights_on_card
from tests.building import spec

GIB = 2**30
REAL = FAMILIES["i2vgen-xl"]
CLIP = spec("i2vgen-xl", width=512, height=512, resolution_class=ResolutionClass.P512, frames=16, guidance=9.0)
LARGE = spec("i2vgen-xl", width=768, height=768, resolution_class=ResolutionClass.P768, frames=16, guidance=9.0)
PREDICTED = footprint(CLIP)
KIND = "NVIDIA L4"

measured = st.integers(PREDICTED.peak_bytes * 2 // 3, PREDICTED.peak_bytes * 2)
layouts = st.sampled_from(REAL.layouts)


def peak(measured_bytes: int, layout: Layout = RESIDENT, **changes) -> Peak:
    values = {"layout": layout, "predicted_bytes": PREDICTED.peak_bytes, "measured_bytes": measured_bytes}
    return Peak(**(values | changes))


def learned(*peaks: Peak, clip=CLIP, kind: str = KIND, known: MemoryEstimates | None = None) -> MemoryEstimates:
    return (known or MemoryEstimates()).plus(observe(clip, kind, peaks))


def expected(memory: MemoryEstimates, clip=CLIP, layout: Layout = RESIDENT, kind: str = KIND) -> int:
    return memory.corrected(footprint(clip, layout), key_of(clip, layout, kind), layout)


def test_without_lessons_the_prediction_stands():
    assert expected(MemoryEstimates()) == PREDICTED.peak_bytes
    assert MemoryEstimates().about(CLIP, KIND) == MemoryFactors()


def test_weights_are_never_scaled():
    weights = weights_on_card(REAL, RESIDENT).denoise_bytes
    activations = PREDICTED.denoise_bytes - weights
    assert PREDICTED.peak_bytes == PREDICTED.denoise_bytes
    assert corrected("i2vgen-xl", RESIDENT, PREDICTED, 1.5) == pytest.approx(weights + 1.5 * activations, abs=2)
    assert corrected("i2vgen-xl", RESIDENT, PREDICTED, 0.0) >= weights


@given(layouts, measured)
def test_the_factor_of_a_peak_explains_it(layout, measured_bytes):
    predicted = footprint(CLIP, layout)
    factor = factor_of("i2vgen-xl", layout, predicted, measured_bytes)
    told = corrected("i2vgen-xl", layout, predicted, factor)
    if measured_bytes >= predicted.peak_bytes:
        assert told == pytest.approx(measured_bytes, abs=2)
    else:
        assert measured_bytes - 2 <= told <= predicted.peak_bytes


@given(layouts, st.lists(measured, min_size=1, max_size=3 * RECENT))
def test_nothing_is_expected_to_take_less_than_a_recent_peak_of_its_kind(layout, peaks):
    memory = learned(*(peak(count, layout) for count in peaks))
    assert expected(memory, layout=layout) >= max(peaks[-RECENT:]) - 2


@given(st.lists(measured, max_size=RECENT - 1), measured, st.integers(0, GIB))
def test_a_higher_peak_never_lowers_what_is_expected(before, last, more):
    known = learned(*map(peak, before))
    low, high = learned(peak(last), known=known), learned(peak(last + more), known=known)
    assert expected(low) <= expected(high)


@given(st.lists(measured, max_size=3 * RECENT))
def test_few_peaks_only_raise(peaks):
    few = learned(*map(peak, peaks[: ENOUGH - 1]))
    assert expected(few) >= PREDICTED.peak_bytes


def test_enough_low_peaks_lower_what_is_expected_and_keep_headroom():
    weights = weights_on_card(REAL, RESIDENT).denoise_bytes
    low = weights + (PREDICTED.peak_bytes - weights) * 7 // 10
    assert expected(learned(*[peak(low)] * (ENOUGH - 1))) == PREDICTED.peak_bytes
    lowered = expected(learned(*[peak(low)] * ENOUGH))
    assert lowered - weights == pytest.approx(1.1 * (low - weights), rel=0.001)


def test_one_high_peak_is_forgotten_after_enough_others():
    high, usual = peak(2 * PREDICTED.peak_bytes), peak(PREDICTED.peak_bytes)
    memory = learned(high, *[usual] * (RECENT - 1))
    assert expected(memory) > 2 * PREDICTED.peak_bytes
    memory = learned(usual, known=memory)
    assert expected(memory) == PREDICTED.peak_bytes
    (one,) = memory.measured
    assert (one.count, len(one.recent), one.largest > 2) == (RECENT + 1, RECENT, True)


def test_a_prediction_that_holds_is_left_alone():
    assert expected(learned(*[peak(PREDICTED.peak_bytes)] * 20)) == PREDICTED.peak_bytes
    # A little above it: a little more, not a whole tenth.
    above = PREDICTED.peak_bytes + 2**20
    assert above < expected(learned(peak(above))) < PREDICTED.peak_bytes + 3 * 2**20


def test_out_of_memory_needed_more_than_was_usable():
    usable = PREDICTED.peak_bytes + GIB
    memory = learned(peak(PREDICTED.peak_bytes // 2, usable_bytes=usable, out_of_memory=True))
    assert expected(memory) > usable
    (one,) = memory.measured
    assert (one.count, one.ooms) == (0, 1)


def test_out_of_memory_for_another_program_s_sake_teaches_nothing():
    squeezed = peak(PREDICTED.peak_bytes // 2, usable_bytes=PREDICTED.peak_bytes - GIB, out_of_memory=True)
    assert learned(squeezed) == MemoryEstimates()


def test_part_of_the_work_never_lowers_and_may_raise():
    low, high = PREDICTED.peak_bytes // 2, 2 * PREDICTED.peak_bytes
    assert learned(*[peak(low, partial=True)] * ENOUGH) == MemoryEstimates()
    assert expected(learned(peak(high, partial=True))) >= high
    # Without guidance only one half is evaluated at all.
    unguided = CLIP.model_copy(update={"guidance": 1.0})
    assert learned(*[peak(low)] * ENOUGH, clip=unguided) == MemoryEstimates()


def test_encoders_that_were_not_needed_are_counted_as_if_they_were_there():
    without = weights_on_card(REAL, Layout(evict_encoders=True))
    absent = weights_on_card(REAL, RESIDENT).denoise_bytes - without.denoise_bytes
    assert absent > GIB
    taken = PREDICTED.peak_bytes + GIB
    assert learned(peak(taken - absent, absent_bytes=absent)) == learned(peak(taken))


def test_a_low_peak_says_nothing_of_encoding():
    # Where encoding is the largest stage, it may have been skipped: its result is cached.
    small = spec("wan2.2-5b", frames=5, guidance=5.0, width=256, height=256)
    layout = Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True)
    predicted = footprint(small, layout)
    assert predicted.peak_bytes == predicted.encode_bytes > predicted.denoise_bytes
    memory = learned(*[peak(predicted.decode_bytes // 2, layout)] * ENOUGH, clip=small)
    assert expected(memory, small, layout) == predicted.peak_bytes


def test_neighbours_are_believed_by_half_and_never_lower():
    high = learned(peak(2 * PREDICTED.peak_bytes))
    own = high.factor(key_of(CLIP, RESIDENT, KIND))
    for clip, kind in ((LARGE, KIND), (CLIP, "NVIDIA A100"), (LARGE, "NVIDIA A100")):
        assert high.factor(key_of(clip, RESIDENT, kind)) == pytest.approx(1 + (own - 1) / 2)
    assert high.factor(key_of(LARGE, Layout(split_guidance=True), KIND)) == 1
    low = learned(*[peak(PREDICTED.peak_bytes * 3 // 4)] * ENOUGH)
    assert low.factor(key_of(CLIP, RESIDENT, KIND)) < 1
    assert low.factor(key_of(LARGE, RESIDENT, KIND)) == 1


def test_a_family_without_card_memory_teaches_nothing():
    assert learned(peak(GIB), clip=spec("camera")) == MemoryEstimates()
    assert learned(peak(0)) == MemoryEstimates()
    assert learned(peak(GIB), kind="") == MemoryEstimates()


def test_the_plan_takes_what_was_learned_and_tries_the_leanest_all_the_same():
    fastest = PREDICTED.peak_bytes
    assert plan(CLIP, fastest) == (RESIDENT, PREDICTED)
    factors = learned(peak(fastest + GIB)).about(CLIP, KIND)
    assert set(factors.factors) == {layout_key(RESIDENT)}
    leaner, _ = plan(CLIP, fastest, factors.corrector("i2vgen-xl"))
    assert leaner != RESIDENT
    assert plan(CLIP, 2 * fastest, factors.corrector("i2vgen-xl")) == (RESIDENT, PREDICTED)
    everything = MemoryFactors(factors={layout_key(layout): 50.0 for layout in REAL.layouts})
    layout, predicted = leanest(CLIP)
    assert plan(CLIP, predicted.peak_bytes, everything.corrector("i2vgen-xl")) == (layout, predicted)
    assert plan(CLIP, predicted.peak_bytes - 1, everything.corrector("i2vgen-xl")) is None
    lower = MemoryFactors(factors={layout_key(RESIDENT): 0.8})
    assert plan(CLIP, fastest - 1, lower.corrector("i2vgen-xl")) == (RESIDENT, PREDICTED)


def test_factors_travel_as_json():
    factors = learned(peak(2 * PREDICTED.peak_bytes)).about(CLIP, KIND)
    assert MemoryFactors.model_validate(json.loads(json.dumps(factors.model_dump(mode="json")))) == factors


# -- between farms ---------------------------------------------------------------------------------------------


def test_lessons_survive_a_file():
    memory = learned(peak(PREDICTED.peak_bytes + GIB), peak(PREDICTED.peak_bytes))
    assert from_text(to_text(memory, "0.1.0")) == memory


def test_of_two_farms_the_one_that_saw_more_is_believed():
    few, many = learned(peak(3 * PREDICTED.peak_bytes)), learned(*[peak(PREDICTED.peak_bytes)] * 3)
    elsewhere = learned(peak(2 * PREDICTED.peak_bytes), kind="NVIDIA A100")
    assert few.merged(many) == many
    assert many.merged(few) == many
    assert set(many.merged(elsewhere).measured) == {*many.measured, *elsewhere.measured}


def test_lessons_are_bound_to_the_estimate_of_workspaces_where_there_are_any(monkeypatch):
    versions = {name: footprint_version.__wrapped__(name) for name in ("i2vgen-xl", "i2vgen-xl-tiny")}
    read = footprint_module._read
    copies = {"convolution_copies": {"encode": 0.0, "denoise": 0.0, "decode": 0.0}}
    monkeypatch.setattr(footprint_module, "_read", lambda name: read(name) | (copies if name == "cuda" else {}))
    footprint_module.reread()
    try:
        after = {name: footprint_version.__wrapped__(name) for name in versions}
    finally:
        monkeypatch.undo()
        footprint_module.reread()
    assert after["i2vgen-xl"] != versions["i2vgen-xl"]
    assert after["i2vgen-xl-tiny"] == versions["i2vgen-xl-tiny"]


def test_lessons_of_other_predictions_are_not_taken_over():
    (one,) = learned(*[peak(PREDICTED.peak_bytes)] * 3).measured
    other = MemoryEstimates((one.model_copy(update={"prior": "0" * 16}),))
    assert MemoryEstimates().merged(other) == MemoryEstimates()
    assert one.prior == footprint_version("i2vgen-xl") != footprint_version("i2vgen-xl-tiny")
    # Knowledge of other predictions is worth less than any of ours, and what is seen anew replaces it.
    assert other.merged(MemoryEstimates((one.model_copy(update={"count": 1}),))).measured[0].count == 1
    assert learned(peak(PREDICTED.peak_bytes), known=other).measured[0].count == 1


GOOD = json.loads(to_text(learned(peak(PREDICTED.peak_bytes + GIB)), "x"))
FIRST = GOOD["lessons"][0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("{}", "lessons"),
        (json.dumps(GOOD | {"clipmill_lessons": 2}), "clipmill_lessons"),
        (json.dumps(GOOD | {"lessons": [FIRST | {"recent": [1e9]}]}), "recent"),
        (json.dumps(GOOD | {"lessons": [FIRST | {"recent": [float("nan")]}]}), "recent"),
        (json.dumps(GOOD | {"lessons": [FIRST | {"recent": [1.0] * (RECENT + 1)}]}), "recent"),
        (json.dumps(GOOD | {"lessons": [FIRST | {"count": -1}]}), "count"),
        (json.dumps(GOOD | {"lessons": [FIRST | {"key": {}}]}), "key"),
    ],
)
def test_a_file_that_holds_no_lessons_says_where_it_is_wrong(text, says):
    with pytest.raises(MeasurementsFileError, match=says):
        from_text(text)
