"""Expected and measured times, against arithmetic by hand, medians counted apart, and the store."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import AsyncIterator, Sequence
from importlib import resources

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch.dispatcher import Dispatcher
from cluster.dispatch.protocol import Assignment, CardFree, Event, StepDone
from cluster.dispatch.retry import after_attempt
from cluster.estimates.memory import layout_key
from cluster.estimates.published import (
    BUS_EFFICIENCY,
    LAUNCH_S,
    ClipPart,
    canonical,
    card_name,
    checkpoint_bytes,
    expected,
    expected_phases,
    expected_start,
    rate_of,
    rate_table,
    tflops_of,
)
from cluster.estimates.times import ENOUGH, RECENT, TimeEstimates, TimeMeasurements, key_of, observe, ratios_of
from cluster.estimates.timing import Stopwatch
from cluster.jobs.outcomes import Completed, Ended, Peak, Timed
from cluster.store import BatchStore, DispatchStore, measurements
from cluster.store.schema import rates as table
from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Sampler, Upscale
from pipeline.denoising.denoise import window_spans
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import flops_per_step, footprint
from pipeline.memory.slowdown import CACHED_STEP, clip_flops, transferred_bytes
from tests.building import FLEET, Clock, beat, claim_one, completed, draft, spec

L4, H100 = "NVIDIA L4", "NVIDIA H100 80GB HBM3"
TINY = "i2vgen-xl-tiny"
ME = "local"


def clip(family: str = "i2vgen-xl", side: int = 512, **changes) -> ClipSpec:
    values = {"resolution_class": ResolutionClass(f"{side}p"), "width": side, "height": side, "frames": 16}
    return spec(family, **(values | {"steps": 50, "guidance": 9.0, "sampler": Sampler.DDIM} | changes))


CLIP = clip()


def timed(factor: float = 1.0, of: ClipSpec = CLIP, kind: str = L4, layout: Layout = RESIDENT, **changes) -> Timed:
    """What an attempt would see whose parts take `factor` times what is expected."""
    plain = expected(of, kind, layout)
    (steps, step_s), *_ = expected_phases(of, kind, layout)
    values = {
        "layout": layout,
        "start_s": factor * expected_start(ClipPart.GAP, of.family),
        "first_s": factor * (plain[ClipPart.ENCODE] + step_s),
        "first_step": 1,
        "steps": steps - 1,
        "steps_s": factor * (steps - 1) * step_s,
        "decode_s": factor * plain[ClipPart.DECODE],
        "publish_s": factor * plain[ClipPart.PUBLISH],
    }
    return Timed(**(values | changes))


def learned(
    factors: Sequence[float], of: ClipSpec = CLIP, kind: str = L4, estimates: TimeEstimates | None = None
) -> TimeEstimates:
    estimates = estimates or TimeEstimates()
    for factor in factors:
        estimates = estimates.plus(observe(of, kind, timed(factor, of, kind)))
    return estimates


def step_seconds(estimates: TimeEstimates, of: ClipSpec, kind: str, layout: Layout = RESIDENT) -> float:
    """Seconds of one step at the clip's own size."""
    return estimates.cost(of, kind, layout).phases[-1][1]


# -- what is published ------------------------------------------------------------------------------------------


def test_a_clip_by_hand():
    """512p × 16 × 50 steps on an L4: the operations of its table over half of what is published."""
    written = json.loads((resources.files("pipeline.memory") / "footprints" / "i2vgen-xl.json").read_text())
    pixels, frames = 512 * 512, 16
    flops = sum(
        coefficient * pixels ** int(term.split(",")[0]) * frames ** int(term.split(",")[1])
        for term, coefficient in written["flops"].items()
    )
    step_s = step_seconds(TimeEstimates(), CLIP, L4)
    assert step_s == pytest.approx(LAUNCH_S + flops / (121e12 * 0.5))
    # Facts of the model: about 42 T a step.
    assert flops == pytest.approx(41.9e12, rel=0.01)
    assert 50 * step_s < TimeEstimates().clip_seconds(CLIP, L4) < 50 * step_s + 3


def test_a_streamed_layout_waits_for_the_bus():
    layout = Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True)
    written = json.loads((resources.files("pipeline.memory") / "footprints" / "i2vgen-xl.json").read_text())
    more = step_seconds(TimeEstimates(), CLIP, L4, layout) - step_seconds(TimeEstimates(), CLIP, L4)
    copied_s = 2 * written["weights"]["denoise"] / (32e9 * BUS_EFFICIENCY)
    assert more > copied_s
    assert more == pytest.approx(copied_s, rel=0.15)


SHORT_CUTS = [
    {},
    {"guidance": 1.0},
    {"step_cache": 3},
    {"frames": 64, "window": 16, "window_overlap": 4},
    {"frames": 40, "window": 16, "window_overlap": 5},
    {
        "base": BaseClip(
            resolution_class=ResolutionClass.P256, width=256, height=256, frames=16, fps=8, steps=30, guidance=9.0,
            seed=1, sampler=Sampler.DDIM,
        ),
        "strength": 0.5,
    },
]  # fmt: skip


@pytest.mark.parametrize("changes", SHORT_CUTS)
@pytest.mark.parametrize("layout", family_named("i2vgen-xl").layouts)
def test_the_parts_add_up_to_the_clip(changes, layout):
    """Operations and copies of all parts are those that `pipeline.memory.slowdown` counts for the whole clip."""
    of = clip(**changes)
    rate = rate_of(H100)[0]
    phases = expected_phases(of, H100, layout)
    assert sum(steps for steps, _ in phases) == of.total_steps
    plain = expected(of, H100, layout)
    total = sum(steps * (seconds - LAUNCH_S) for steps, seconds in phases)
    total += plain[ClipPart.ENCODE] - expected(of, H100, RESIDENT)[ClipPart.ENCODE]
    resident = sum(steps * (seconds - LAUNCH_S) for steps, seconds in expected_phases(of, H100, RESIDENT))
    copied_s = transferred_bytes(of, layout) / (rate.bus_gb_s * 1e9 * BUS_EFFICIENCY)
    assert total >= resident + copied_s - 1e-9
    # Splitting and chunking lose at most a twentieth of the arithmetic.
    assert total <= 1.05 * resident + copied_s + 1e-9


def test_short_cuts_by_hand():
    whole = flops_per_step(family_named("i2vgen-xl"), 512 * 512, 16)

    def flops(**changes) -> float:
        (_, seconds), *_ = expected_phases(clip(**changes), H100, RESIDENT)
        return (seconds - LAUNCH_S) * 989e12 * 0.5

    assert flops() == pytest.approx(whole)
    assert flops(guidance=1.0) == pytest.approx(whole / 2)
    # Of 50 steps every third is whole, the first among them.
    assert flops(step_cache=3) == pytest.approx(whole * (17 + 33 * CACHED_STEP["i2vgen-xl"]) / 50)
    windows = len(window_spans(64, 16, 4))
    assert flops(frames=64, window=16, window_overlap=4) == pytest.approx(windows * whole)


@pytest.mark.parametrize(("frames", "window", "overlap"), [(81, 33, 8), (121, 49, 12), (33, 33, 4), (41, 33, 4)])
def test_windows_of_latent_frames_are_those_of_the_loop(frames, window, overlap):
    of = clip("wan2.2-5b", frames=frames, window=window, window_overlap=overlap, guidance=5.0)
    spans = window_spans((frames - 1) // 4 + 1, (window - 1) // 4 + 1, overlap // 4)
    one = flops_per_step(family_named("wan2.2-5b"), 512 * 512, min(frames, window))
    (_, seconds), *_ = expected_phases(of, H100, RESIDENT)
    assert (seconds - LAUNCH_S) * 989e12 * 0.5 == pytest.approx(len(spans) * one)


def test_a_checkpoint_by_hand():
    """Four channels in float32 at an eighth of the side; multistep samplers keep as much twice again."""
    latents = 4 * 4 * 16 * 64 * 64
    assert checkpoint_bytes(CLIP) == latents
    assert checkpoint_bytes(clip(sampler=Sampler.DPMPP_2M)) == 3 * latents
    assert checkpoint_bytes(spec("camera")) == 0
    estimates = TimeEstimates()
    assert estimates.move_costs(CLIP, L4, warm=False)[2] - estimates.move_costs(CLIP, L4, warm=True)[
        2
    ] == pytest.approx(estimates.load_seconds("i2vgen-xl", L4) - estimates.gap_seconds("i2vgen-xl", L4))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        # Other cards than their names begin with.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("Radeon Pro W7900", None),
    ],
)
def test_names_that_nvml_gives(kind, name):
    assert card_name(kind) == name
    assert tflops_of(kind) == (rate_table().cards[name].tflops if name else None)


def test_an_unknown_card_has_a_stated_speed_and_says_so():
    estimates = TimeEstimates()
    assert not estimates.knows("Radeon Pro W7900")
    assert estimates.clip_seconds(CLIP, "Radeon Pro W7900") > 0
    assert not rate_of("Radeon Pro W7900")[1]
    assert rate_of("Radeon Pro W7900")[0].price_per_hour is None
    assert estimates.knows(L4)
    # Once it has rendered, its speed is known.
    assert learned([1.0], kind="Radeon Pro W7900").knows("Radeon Pro W7900")


def test_every_listed_card_finds_itself():
    for name, rate in rate_table().cards.items():
        assert card_name(name) == name
        assert rate.source
        assert 0 < rate.efficiency < 1


@settings(deadline=None)
@given(
    st.sampled_from([f for f in FAMILIES if FAMILIES[f].samplers]),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(1, 60),
)
def test_less_is_left_after_more_steps(family, first, second, steps):
    of = clip(family, steps=steps, guidance=max(1.0, FAMILIES[family].guidance), frames=33 if "wan" in family else 16)
    estimates = TimeEstimates()
    early, late = sorted((first, second))
    assert estimates.clip_seconds(of, L4, from_step=late) <= estimates.clip_seconds(of, L4, from_step=early)
    # Whatever is done, the frames must still be decoded.
    assert estimates.clip_seconds(of, L4, from_step=steps) == pytest.approx(estimates.cost(of, L4).decode_s)


def test_from_a_step_of_a_clip_with_a_base():
    of = clip(**SHORT_CUTS[5])
    (base_steps, base_s), (own_steps, own_s) = expected_phases(of, L4, RESIDENT)
    assert (base_steps, own_steps) == (30, 25)
    decode_s = TimeEstimates().cost(of, L4).decode_s
    assert TimeEstimates().clip_seconds(of, L4, from_step=29) == pytest.approx(base_s + 25 * own_s + decode_s)
    assert TimeEstimates().clip_seconds(of, L4, from_step=31) == pytest.approx(24 * own_s + decode_s)


def test_a_faster_card_is_never_slower():
    for family in FAMILIES:
        of = clip(family, frames=33 if "wan" in family else 16)
        assert TimeEstimates().clip_seconds(of, H100) <= TimeEstimates().clip_seconds(of, L4)


def test_memory_decides_the_layout():
    """As the renderer plans: the fastest layout that fits, whatever the clip's name and prompt."""
    of = clip(side=1024)
    peaks = {layout: footprint(of, layout).peak_bytes for layout in family_named("i2vgen-xl").layouts}
    for layout, peak in peaks.items():
        fastest = next(other for other, bytes_ in peaks.items() if bytes_ <= peak)
        assert (
            TimeEstimates().cost_within(of, L4, peak).layout
            == fastest
            == next(
                TimeEstimates().cost_within(of.model_copy(update={"prompt": "other", "seed": 9}), L4, peak).layout
                for _ in "x"
            )
        ), layout


# -- what was measured ------------------------------------------------------------------------------------------


def reference(own: Sequence[float], family: Sequence[float], kind: Sequence[float]) -> float:
    """The correction, written down once more: own ratios, filled up to three by the next wider median."""
    wider = statistics.median(family) if family else statistics.median(kind) if kind else 1.0
    own = list(own)[-RECENT:]
    return statistics.median(own + [wider] * (3 - len(own))) if own else wider


_FACTORS = st.lists(st.floats(0.2, 5.0), max_size=RECENT)


@settings(deadline=None)
@given(_FACTORS, _FACTORS, _FACTORS)
def test_corrections_follow_the_rule(own, sibling, other):
    """Own shape, another shape of the family, another family: each in turn decides what the next cannot."""
    large, alien = clip(side=768), clip("svd-xt", guidance=3.0)
    estimates = learned(own, CLIP, estimates=learned(sibling, large, estimates=learned(other, alien)))
    family = [*own, *sibling]
    found = step_seconds(estimates, CLIP, L4) / step_seconds(TimeEstimates(), CLIP, L4)
    assert found == pytest.approx(reference(own, family, family + list(other)))
    unseen = clip(side=256)
    found = step_seconds(estimates, unseen, L4) / step_seconds(TimeEstimates(), unseen, L4)
    assert found == pytest.approx(reference([], family, family + list(other)))
    # Nothing is known of other cards by that.
    assert step_seconds(estimates, CLIP, H100) == step_seconds(TimeEstimates(), CLIP, H100)


def test_every_part_is_corrected_by_its_own_ratio():
    plain = TimeEstimates().cost(CLIP, L4)
    seen = timed(1.0, start_s=0.3, decode_s=2.0, publish_s=4.0)
    cost = TimeEstimates().plus(3 * observe(CLIP, L4, seen)).cost(CLIP, L4)
    assert cost.gap_s == pytest.approx(0.3)
    assert cost.decode_s == pytest.approx(2.0)
    assert cost.publish_s == pytest.approx(4.0)
    assert cost.steps_s() == pytest.approx(plain.steps_s())
    assert cost.encode_s == pytest.approx(plain.encode_s)
    assert cost.load_s == plain.load_s


def test_a_cold_start_is_loading():
    estimates = TimeEstimates().plus(observe(CLIP, L4, timed(1.0, start_s=33.0, cold=True)))
    assert estimates.load_seconds("i2vgen-xl", L4) == pytest.approx(33.0)
    assert estimates.gap_seconds("i2vgen-xl", L4) == TimeEstimates().gap_seconds("i2vgen-xl", L4)
    # Another family's weights are other weights.
    assert estimates.load_seconds("svd-xt", L4) == TimeEstimates().load_seconds("svd-xt", L4)


def test_one_slow_clip_changes_nothing():
    usual = learned([1.1, 1.2, 1.15, 1.18])
    assert step_seconds(learned([50.0], estimates=usual), CLIP, L4) <= 1.2 * step_seconds(TimeEstimates(), CLIP, L4)


def test_old_ratios_are_forgotten():
    estimates = learned([9.0] * RECENT + [2.0] * RECENT)
    assert step_seconds(estimates, CLIP, L4) == pytest.approx(2 * step_seconds(TimeEstimates(), CLIP, L4))
    assert all(len(one.recent) <= RECENT for one in estimates.measured)


def test_a_resumed_clip_says_nothing_of_encoding():
    whole, resumed = (
        ratios_of(CLIP, L4, timed(2.0)),
        ratios_of(CLIP, L4, timed(2.0, from_step=20, first_step=21, steps=9)),
    )
    assert ClipPart.ENCODE in whole
    assert ClipPart.ENCODE not in resumed


def test_a_family_of_one_step_is_timed_whole():
    of = clip(steps=1)
    plain, (_, step_s) = expected(of, L4, RESIDENT), expected_phases(of, L4, RESIDENT)[0]
    seen = Timed(layout=RESIDENT, first_s=3 * (plain[ClipPart.ENCODE] + step_s))
    assert ratios_of(of, L4, seen) == pytest.approx({ClipPart.STEP: 3.0, ClipPart.ENCODE: 3.0})


def test_broken_clocks_and_unknown_families():
    assert ratios_of(CLIP, "", timed()) == {}
    gone = spec("camera").model_copy(update={"family": "gone"})
    assert observe(gone, L4, timed()) == []
    ratios = ratios_of(CLIP, L4, timed(1.0, decode_s=-5.0, publish_s=1e12))
    assert all(0 < ratio <= 10_000 for ratio in ratios.values())


def test_ratios_of_other_expectations_are_dropped():
    """Where the table or a footprint changed, old ratios compare with something else."""
    key = key_of(ClipPart.STEP, CLIP, RESIDENT, L4)
    before = TimeMeasurements(key=key, prior="old", count=9, recent=(7.0,) * 9)
    after = TimeEstimates((before,)).plus(observe(CLIP, L4, timed(2.0))).get(key)
    assert (after.count, after.recent) == (1, pytest.approx((2.0,)))


def test_the_short_name_finds_what_was_measured():
    assert canonical("NVIDIA L4") == canonical("L4") == "L4"
    assert step_seconds(learned([3.0] * ENOUGH, kind="NVIDIA L4"), CLIP, "L4") == pytest.approx(
        3 * step_seconds(TimeEstimates(), CLIP, "L4")
    )


# -- the stopwatch ----------------------------------------------------------------------------------------------


def watch(*steps: tuple[int, float], free: float | None = None, before: float | None = None, **given) -> Stopwatch:
    made = Stopwatch(100.0, **given)
    for step, at in steps:
        made.step(step, at)
    if before is not None:
        made.published_before(before)
    if free is not None:
        made.card_free(free)
    return made


def test_parts_of_an_attempt():
    found = watch((0, 101.0), (1, 104.0), (2, 106.0), (3, 108.5), free=109.0, freed_at=99.5).timed(112.0, RESIDENT)
    assert found == Timed(
        layout=RESIDENT, start_s=1.5, from_step=0, first_s=3.0, first_step=1, steps=2, steps_s=4.5, decode_s=0.5,
        publish_s=3.0,
    )  # fmt: skip


def test_a_card_that_had_nothing_to_do_is_no_gap():
    assert watch((0, 101.0), (1, 104.0), freed_at=60.0).timed(112.0, RESIDENT).start_s == 1.0


def test_waiting_for_the_clip_before_is_no_decoding():
    steps = [(0, 101.0), (1, 104.0), (2, 106.0)]
    assert watch(*steps, before=107.0, free=107.1).timed(112.0, RESIDENT).decode_s is None
    assert watch(*steps, before=105.0, free=107.1).timed(112.0, RESIDENT).decode_s == pytest.approx(1.1)


def test_a_clip_that_began_anew_counts_from_there():
    found = watch((20, 101.0), (21, 104.0), (0, 105.0), (1, 108.0), (2, 109.0), free=110.0).timed(112.0, RESIDENT)
    assert (found.from_step, found.first_s, found.steps, found.steps_s) == (0, 3.0, 1, 1.0)


def test_a_lost_event_spoils_one_figure_only():
    """Steps may come in twos where the stream stalls."""
    found = watch((0, 101.0), (2, 104.0), (3, 106.0), free=107.0).timed(112.0, RESIDENT)
    assert (found.first_s, found.first_step, found.steps, found.steps_s) == (None, 2, 1, 2.0)
    assert watch().timed(112.0, RESIDENT) is None
    assert watch((0, 101.0)).timed(112.0, RESIDENT) is None


# -- the store --------------------------------------------------------------------------------------------------


def hand_in(batch_store: BatchStore, count: int, of: ClipSpec = CLIP) -> None:
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    needs = footprint(of).peak_bytes
    batch_store.add(ME, batch_id, [draft(n, spec=of, needs_bytes=needs, key=f"{batch_id} {n}") for n in range(count)])
    batch_store.seal(ME, batch_id)


def finish(dispatch_store: DispatchStore, claim, ended: Ended) -> bool:
    return dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def with_times(claim, seen: Timed | None) -> Ended:
    ended = completed(claim)
    return Completed(objects=ended.objects, timed=seen)


def test_the_completing_transaction_records_the_times(batch_store, dispatch_store, database):
    factors = [1.5, 4.0, 1.6, 1.7, 1.55]
    hand_in(batch_store, len(factors))
    for factor, job in zip(factors, batch_store.jobs(ME, batch_store.batches(ME)[0].id), strict=True):
        claim = claim_one(dispatch_store, job)
        assert finish(dispatch_store, claim, with_times(claim, timed(factor, kind="test")))
    found = dispatch_store.time_estimates()
    assert step_seconds(found, CLIP, "test") == pytest.approx(1.6 * step_seconds(TimeEstimates(), CLIP, "test"))
    assert set(found.measured) == set(learned(factors, kind="test").measured)
    with database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == len(found.measured) == 5


def test_a_second_ending_teaches_nothing(batch_store, dispatch_store):
    hand_in(batch_store, 1)
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_store.batches(ME)[0].id)[0])
    finish(dispatch_store, claim, with_times(claim, timed(2.0, kind="test")))
    before = dispatch_store.time_estimates().measured
    assert not finish(dispatch_store, claim, with_times(claim, timed(9.0, kind="test")))
    assert dispatch_store.time_estimates().measured == before


def test_times_of_another_table_are_not_loaded(batch_store, dispatch_store, database):
    hand_in(batch_store, 1)
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_store.batches(ME)[0].id)[0])
    finish(dispatch_store, claim, with_times(claim, timed(2.0, kind="test")))
    with database.write() as c:
        c.execute(sa.update(table).values(prior="older"))
    assert measurements.load_times(database).measured == ()


def test_the_dispatcher_times_what_it_sees(sqlite_database):
    """Events at known times, through the real dispatcher and store: the ratios are those of the clock."""
    database, clock = sqlite_database, Clock()
    of = spec(TINY, steps=4, guidance=9.0, sampler=Sampler.DDIM)
    batch_store = BatchStore(database)
    hand_in(batch_store, 3, of)

    class Pool:
        def render(self, assignment: Assignment) -> AsyncIterator[Event]:
            return self._render(assignment)

        async def _render(self, assignment: Assignment) -> AsyncIterator[Event]:
            clock.now += 0.5
            yield StepDone(step=0, steps=4)
            for step, seconds in enumerate((3.0, 1.0, 1.0, 1.0), start=1):
                clock.now += seconds
                yield StepDone(step=step, steps=4)
            clock.now += 0.25
            yield CardFree()
            clock.now += 0.75
            peak = Peak(layout=RESIDENT, predicted_bytes=1, measured_bytes=1)
            done = with_times_of(assignment.attempt_id)
            yield Completed(objects=done, peaks=(peak,))

    def with_times_of(attempt_id: str):
        return completed(type("Claim", (), {"attempt_id": attempt_id})()).objects

    async def go() -> None:
        dispatcher = Dispatcher(DispatchStore(database), Pool(), FLEET, holder="test", clock=clock)
        loop = asyncio.create_task(dispatcher.run())
        dispatcher.beat(beat(usable_bytes=21 * 2**30, family=None))
        batch = batch_store.batches(ME)[0].id
        async with asyncio.timeout(20):
            while not batch_store.batch(ME, batch).done:
                dispatcher.beat(beat(usable_bytes=21 * 2**30, family=None))
                await asyncio.sleep(0.01)
        await dispatcher.stop(0)
        await loop

    asyncio.run(go())
    cost = measurements.load_times(database).cost(of, "test")
    assert cost.phases[-1][1] == pytest.approx(1.0)
    assert cost.encode_s == pytest.approx(2.0)
    assert cost.first_s == pytest.approx(0.5), "no process had loaded it before"
    counts = {one.key.part: one.count for one in measurements.load_times(database).measured}
    # The first began on a card with nothing loaded, the other two on a warm one.
    assert (counts[ClipPart.FIRST], counts[ClipPart.GAP], counts[ClipPart.STEP]) == (1, 2, 3)


def test_a_million_questions_need_no_million_entries():
    """Rows differ in prompt and seed; what is remembered is by shape."""
    estimates, draw = TimeEstimates(), random.Random(1)
    for _ in range(300):
        other = CLIP.model_copy(update={"prompt": str(draw.random()), "seed": draw.randrange(2**60)})
        estimates.clip_seconds(other, L4, usable_bytes=20 * 2**30)
    assert len(estimates._costs) < 5


def test_layout_keys_are_those_of_the_lessons():
    assert key_of(ClipPart.STEP, CLIP, RESIDENT, L4).layout == layout_key(RESIDENT)
    assert clip_flops(clip(upscale=Upscale.FRAMES)) == clip_flops(CLIP)


def test_a_familys_first_load_in_a_process_is_told_from_the_later_ones():
    """The first one imports libraries and reads the disk: ten seconds; the later ones none of it."""
    first = TimeEstimates().plus(observe(CLIP, L4, timed(1.0, start_s=33.0, cold=True, first=True)))
    assert first.first_seconds("i2vgen-xl", L4) == pytest.approx(33.0)
    assert first.load_seconds("i2vgen-xl", L4) == TimeEstimates().load_seconds("i2vgen-xl", L4)
    both = first.plus(observe(CLIP, L4, timed(1.0, start_s=4.0, cold=True)))
    assert (both.first_seconds("i2vgen-xl", L4), both.load_seconds("i2vgen-xl", L4)) == pytest.approx((33.0, 4.0))
    assert TimeEstimates().first_seconds("i2vgen-xl", L4) > TimeEstimates().load_seconds("i2vgen-xl", L4)
    assert TimeEstimates().first_seconds("camera", L4) == TimeEstimates().gap_seconds("camera", L4)
