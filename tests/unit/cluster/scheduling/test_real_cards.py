"""Placement on cards as they are: less than their class promises, or unable to compute what a model computes in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.estimates.memory import MemoryEstimates
from cluster.explain.trial import Trial
from cluster.explain.wait_words import WaitWords
from cluster.fleet.cards import NOMINAL_BYTES, Card, Fleet, card_class_of, promised_bytes
from cluster.jobs.model import Job, JobState
from cluster.scheduling.eligible import NOWHERE, expected_bytes, leaner_bytes
from cluster.scheduling.placement import PROMISE_S, place
from cluster.scheduling.snapshot import Refuse, Relax, Snapshot, Start, Wait, WaitReason
from pipeline.clips.clip import ResolutionClass
from pipeline.families import FAMILIES
from pipeline.memory.admission import margin
from pipeline.memory.footprint import cuda_model, footprint, leanest
from serve.settings import CardClassArgs, FarmArgs
from tests.building import spec
from tests.doubles.nvml import GIB, FakeGpu, h100, l4, l40s, rtx_4090, t4

GPUS = [t4(), l4(), l40s(), rtx_4090(), h100()]
FAMILY_NAMES = [name for name, family in FAMILIES.items() if family.repo]


def a_card(gpu: FakeGpu, name: str = "gpu0") -> Card:
    """As its renderer's beat tells of it, with nothing else on it."""
    total = gpu.total_bytes - gpu.reserved_bytes
    usable = total - cuda_model().context_bytes - margin(total)
    card_class = card_class_of(gpu.total_bytes)
    assert card_class is not None
    return Card(
        renderer=f"r-{name}", card=name, card_class=card_class, kind=gpu.name, usable_bytes=usable, idle=True,
        capability=gpu.capability,
    )  # fmt: skip


def a_fleet(*classes: str) -> Fleet:
    return Fleet(usable_bytes={name: promised_bytes(NOMINAL_BYTES[name]) for name in classes})


def a_job(family: str, resolution_class: ResolutionClass, fleet: Fleet, **changes) -> Job | None:
    """A row in the fastest layout that a class of the fleet is promised to hold; None where none is."""
    side = {"p256": 256, "p512": 512, "p768": 768, "p1024": 1024}[resolution_class.name.lower()]
    rule = FAMILIES[family].frame_rule
    frames = max(n for n in range(rule.minimum, 26) if rule.allows(n))
    clip = spec(family, width=side, height=side, frames=frames, resolution_class=resolution_class, guidance=5.0)
    needs = leaner_bytes(clip, NOWHERE, fleet)
    if needs is None:
        return None
    job = Job(
        id="video_1", owner="local", batch_id="batch_1", number=1, name="1", state=JobState.QUEUED, row={},
        created_at=0, spec=clip, content_key="key", needs_bytes=needs,
    )  # fmt: skip
    return replace(job, **changes)


def decide(job: Job, cards: list[Card], fleet: Fleet, now: float) -> tuple[Start | Wait | Refuse, Job]:
    """What becomes of a job, with leaner layouts given as the dispatcher gives them."""
    for _ in range(100):
        (decision,) = place(Snapshot.of(waiting=[job], cards=cards, fleet=fleet), now)
        if not isinstance(decision, Relax):
            return decision, job
        needs = leaner_bytes(job.spec, job.needs_bytes, fleet)
        assert needs is not None, "it is relaxed, and there is nothing leaner"
        assert needs < job.needs_bytes
        job = replace(job, needs_bytes=needs)
    raise AssertionError("it is relaxed without end")


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_nothing_waits_for_ever_that_some_layout_would_start_here(gpu, family):
    """A farm of one kind of card: whatever fits a card in any layout starts, at the latest after `PROMISE_S`."""
    card = a_card(gpu)
    fleet = a_fleet(card.card_class)
    for resolution_class in ResolutionClass:
        job = a_job(family, resolution_class, fleet)
        if job is None:
            continue
        decision, relaxed = decide(job, [card], fleet, PROMISE_S)
        lacking = (FAMILIES[family].least_capability or (0, 0)) > gpu.capability
        fits = leanest(job.spec)[1].peak_bytes <= card.usable_bytes and not lacking
        assert isinstance(decision, Start) is fits, (resolution_class, decision)
        if fits and job.needs_bytes <= card.usable_bytes:
            assert relaxed.needs_bytes == job.needs_bytes, "what fits keeps its fastest layout"


def test_i2vgen_of_15_frames_at_720p_starts_on_a_t4():
    fleet, card = a_fleet("c16"), a_card(t4())
    clip = spec("i2vgen-xl", width=1280, height=704, frames=15, resolution_class=ResolutionClass.P1024)
    job = a_job("i2vgen-xl", ResolutionClass.P512, fleet, spec=clip, needs_bytes=leaner_bytes(clip, NOWHERE, fleet))
    assert card.usable_bytes < job.needs_bytes <= fleet.usable_bytes["c16"], "14.06 GiB, between promise and card"
    assert isinstance(decide(job, [card], fleet, PROMISE_S - 1)[0], Wait), "a larger card may come up meanwhile"
    assert isinstance(decide(job, [card], fleet, PROMISE_S)[0], Start)


def test_wan_at_720p_starts_on_an_l4_as_the_class_promises():
    fleet, card = a_fleet("c24"), a_card(l4())
    clip = spec("wan2.2-5b", width=1184, height=640, frames=81, resolution_class=ResolutionClass.P1024, guidance=5.0)
    job = a_job("wan2.2-5b", ResolutionClass.P512, fleet, spec=clip, needs_bytes=leaner_bytes(clip, NOWHERE, fleet))
    decision, kept = decide(job, [card], fleet, 0)
    assert isinstance(decision, Start)
    assert kept == job


def test_wan_beyond_720p_starts_on_an_l4_in_the_fastest_layout_that_does():
    fleet, card = a_fleet("c24"), a_card(l4())
    clip = spec("wan2.2-5b", width=2112, height=1088, frames=121, resolution_class=ResolutionClass.P1024, guidance=5.0)
    job = a_job("wan2.2-5b", ResolutionClass.P512, fleet, spec=clip, needs_bytes=leaner_bytes(clip, NOWHERE, fleet))
    assert card.usable_bytes < job.needs_bytes <= fleet.usable_bytes["c24"]
    decision, relaxed = decide(job, [card], fleet, PROMISE_S)
    assert isinstance(decision, Start)
    peaks = [footprint(clip, layout).peak_bytes for layout in FAMILIES["wan2.2-5b"].layouts]
    assert relaxed.needs_bytes == next(peak for peak in peaks if peak <= card.usable_bytes)


def test_a_larger_card_of_the_class_is_waited_for_while_it_is_busy():
    fleet, small, large = a_fleet("c24"), a_card(l4(), "small"), a_card(rtx_4090(), "large")
    clip = spec("wan2.2-5b", width=2112, height=1088, frames=121, resolution_class=ResolutionClass.P1024, guidance=5.0)
    job = a_job("wan2.2-5b", ResolutionClass.P512, fleet, spec=clip, needs_bytes=leaner_bytes(clip, NOWHERE, fleet))
    busy = large.model_copy(update={"idle": False})
    decision, kept = decide(job, [small, busy], fleet, 10 * PROMISE_S)
    assert decision == Wait(job, WaitReason.ALL_FITTING_CARDS_BUSY)
    assert kept == job


def test_a_class_that_is_not_up_is_waited_for():
    fleet, card = a_fleet("c16", "c24"), a_card(t4())
    clip = spec("wan2.2-5b", width=1280, height=704, frames=81, resolution_class=ResolutionClass.P1024, guidance=5.0)
    job = a_job("wan2.2-5b", ResolutionClass.P512, fleet, spec=clip, needs_bytes=leaner_bytes(clip, NOWHERE, fleet))
    assert decide(job, [card], fleet, 10 * PROMISE_S) == (Wait(job, WaitReason.NO_CARD_OF_THIS_SIZE), job)


@pytest.mark.parametrize(
    ("card_class", "memory_gib", "gpu"), [("c16", 14.56, t4()), ("c24", 22.03, l4()), ("c48", 44.40, l40s())]
)
def test_a_farm_that_is_told_its_cards_promises_what_they_have(card_class, memory_gib, gpu):
    farm = FarmArgs(card_classes={card_class: CardClassArgs(memory_gib=memory_gib)})
    usable = a_card(gpu).usable_bytes
    assert usable < promised_bytes(NOMINAL_BYTES[card_class])
    assert farm.usable_bytes(card_class) == pytest.approx(usable, abs=0.02 * GIB)
    # Never more than the class: rows would go to cards of it elsewhere that have less.
    assert FarmArgs(card_classes={card_class: CardClassArgs(memory_gib=400)}).usable_bytes(
        card_class
    ) == promised_bytes(NOMINAL_BYTES[card_class])


# -- B5: what a card can compute ----------------------------------------------------------------------------------


def test_wan_never_starts_on_turing_and_is_told_why():
    fleet, turing = a_fleet("c16", "c24"), a_card(t4())
    clip = spec("wan2.2-5b", width=256, height=256, frames=5, resolution_class=ResolutionClass.P256, guidance=5.0)
    job = a_job("wan2.2-5b", ResolutionClass.P256, fleet, spec=clip, needs_bytes=leanest(clip)[1].peak_bytes)
    assert job.needs_bytes < turing.usable_bytes, "memory is not the reason"
    snapshot = Snapshot.of(waiting=[job], cards=[turing], fleet=fleet)
    assert place(snapshot, 1e6) == [Wait(job, WaitReason.NO_CARD_OF_THIS_SIZE)]
    from cluster.estimates.times import TimeEstimates
    from cluster.explain.model import Known

    trial = Trial(job, snapshot, 0, TimeEstimates(), Known())
    assert not trial.fits(turing)
    text = WaitWords(trial).of(WaitReason.NO_CARD_OF_THIS_SIZE)
    assert "wan2.2-5b computes in bfloat16" in text
    assert "capability 8.0 or newer; those here have less: Tesla T4 (7.5)" in text
    # Beside a card that can, it goes there, and a model in float16 still takes the T4.
    ampere = a_card(l4(), "gpu1")
    assert place(Snapshot.of(waiting=[job], cards=[turing, ampere], fleet=fleet)) == [Start(job, ampere)]
    other = a_job("i2vgen-xl", ResolutionClass.P256, fleet, id="video_2", content_key="other")
    both = place(Snapshot.of(waiting=[job, other], cards=[turing, ampere], fleet=fleet))
    assert {d.job.id: d.card.card for d in both if isinstance(d, Start)} == {"video_1": "gpu1", "video_2": "gpu0"}


def test_what_one_job_needs_says_nothing_of_another_model_s():
    """Answers are kept for jobs that are alike: equal bytes do not make them so."""
    fleet, turing = a_fleet("c16"), a_card(t4())
    wan = a_job("wan2.2-5b", ResolutionClass.P256, fleet, needs_bytes=GIB)
    i2v = a_job("i2vgen-xl", ResolutionClass.P256, fleet, needs_bytes=GIB, id="video_2", content_key="other")
    memory = MemoryEstimates()
    for first, second in ((wan, i2v), (i2v, wan)):
        found = place(Snapshot.of(waiting=[first, second], cards=[turing], fleet=fleet, memory=memory))
        assert [d.job.id for d in found if isinstance(d, Start)] == ["video_2"]
    assert expected_bytes(wan, "Tesla T4", memory, (7, 5)) == NOWHERE
    assert expected_bytes(wan, "Tesla T4", memory) == GIB, "a card that does not say is not held back"
