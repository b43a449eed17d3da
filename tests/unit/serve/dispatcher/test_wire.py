import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.dispatch.protocol import Assignment, CardFree, CheckpointFailed, CheckpointSaved, StepDone
from cluster.jobs.model import Objects, Outcome, StoredCheckpoint
from cluster.jobs.outcomes import ENDINGS, Lost, Overflow, Peak
from pipeline.families.layouts import Layout
from pipeline.fidelity.score import FidelityScore
from pipeline.kernels.kernels import KernelMode
from pipeline.kernels.measured import KernelRun
from pipeline.notes import Note
from pipeline.problems import Problem
from serve.dispatcher.wire import event_from_wire, event_to_wire
from tests.building import ended_with, spec

texts = st.text(max_size=30)
numbers = st.integers(0, 2**50)
objects = st.builds(
    Objects,
    video=texts,
    poster=texts,
    spritesheet=texts,
    provenance=texts,
    video_bytes=numbers,
    frames_sha256=texts,
)
checkpoints = st.builds(StoredCheckpoint, texts, numbers)
peaks = st.builds(
    Peak,
    layout=st.builds(Layout, split_guidance=st.booleans(), chunk_feed_forward=st.integers(1, 8)),
    predicted_bytes=numbers,
    measured_bytes=numbers,
    usable_bytes=numbers,
    out_of_memory=st.booleans(),
    absent_bytes=numbers,
    partial=st.booleans(),
)
runs = st.builds(
    KernelRun,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    layout=st.builds(Layout, split_guidance=st.booleans()),
    mode=st.sampled_from(KernelMode),
    trial=st.booleans(),
    steps=st.integers(0, 100),
    steps_s=st.floats(0, 1e6),
    compile_s=st.floats(0, 1e6),
    failed=st.booleans(),
)
overflows = st.builds(
    Overflow,
    stage=texts,
    layout=texts,
    step=numbers,
    predicted_bytes=numbers,
    measured_bytes=numbers,
    usable_bytes=numbers,
    card=texts,
)
notes = st.builds(Note, code=st.sampled_from(["black", "no_motion", "of_a_later_version"]), message=texts)
fidelities = st.builds(
    FidelityScore,
    score=st.floats(0, 1),
    parts=st.dictionaries(texts, st.floats(0, 1), max_size=3),
    worst_frame=st.none() | numbers,
)
TOLD = {
    "detail": texts,
    "problem": st.none() | st.builds(Problem, field=texts, message=texts, remedy=texts),
    "objects": objects,
    "measured_bytes": numbers,
    "usable_bytes": numbers,
    "foreign_bytes": numbers,
    "predicted_bytes": numbers,
    "smallest_class": st.none() | texts,
    "stage": texts,
    "checkpoint": st.none() | checkpoints,
    "resumed_step": numbers,
    "cause": texts,
    "overflows": st.lists(overflows, max_size=2).map(tuple),
    "sticky": st.booleans(),
    "storage": st.booleans(),
    "denoised": st.booleans(),
    "peaks": st.lists(peaks, max_size=2).map(tuple),
    "kernel_runs": st.lists(runs, max_size=2).map(tuple),
    "notes": st.lists(notes, max_size=2, unique=True).map(tuple),
    "fidelity": st.none() | fidelities,
}
endings = st.one_of(
    st.builds(kind, **{field.name: TOLD[field.name] for field in fields(kind) if field.name in TOLD})
    for kind in ENDINGS.values()
)
events = (
    endings
    | st.builds(StepDone, step=numbers, steps=numbers)
    | st.just(CardFree())
    | st.builds(CheckpointSaved, checkpoints)
    | st.builds(CheckpointFailed, step=numbers, detail=texts)
)


@given(events)
def test_an_event_arrives_as_it_was_sent(event):
    arrived = event_from_wire(json.loads(json.dumps(event_to_wire(event))))
    assert arrived == event
    assert type(arrived) is type(event)


PEAK = Peak(layout=Layout(split_guidance=True), predicted_bytes=1, measured_bytes=2, usable_bytes=3)


def with_news(value: Any) -> Any:
    """A message as a newer version may send it: a key more in every object, but for layouts, which stand for work."""
    if isinstance(value, dict):
        return {k: v if k == "layout" else with_news(v) for k, v in value.items()} | {"hologram": {"depth": 3}}
    return [with_news(one) for one in value] if isinstance(value, list) else value


@given(events)
def test_a_newer_renderer_s_event_is_read_as_far_as_it_is_known(event):
    assert event_from_wire(with_news(json.loads(json.dumps(event_to_wire(event))))) == event


def test_a_kind_of_event_that_is_not_known_is_passed_over():
    assert event_from_wire({"event": "hologram", "depth": 3}) is None


def test_a_peak_in_a_layout_that_is_not_known_is_left_out():
    message = event_to_wire(ended_with(Outcome.COMPLETED, peaks=(PEAK, PEAK)))
    message["peaks"][0]["layout"]["hologram"] = True
    assert event_from_wire(json.loads(json.dumps(message))).peaks == (PEAK,)


def test_a_run_in_a_layout_or_by_kernels_that_are_not_known_is_left_out():
    run = KernelRun(width=64, height=64, layout=Layout(), mode=KernelMode.COMPILED, steps=2, steps_s=3.0)
    message = event_to_wire(ended_with(Outcome.COMPLETED, kernel_runs=(run, run, run)))
    message["kernel_runs"][0]["layout"]["hologram"] = True
    message["kernel_runs"][1]["mode"] = "hologram"
    assert event_from_wire(json.loads(json.dumps(message))).kernel_runs == (run,)
    del message["kernel_runs"]
    assert event_from_wire(message).kernel_runs == (), "a renderer of before"


def test_a_newer_dispatcher_s_assignment_is_read_and_a_spec_that_is_half_known_is_not():
    sent = Assignment(
        attempt_id="a1",
        job_id="j1",
        renderer="r1",
        card_class="c8",
        owner="o",
        still="ab",
        spec=spec(),
        content_key="k",
        row={"number": 1},
    )
    message = sent.model_dump(mode="json")
    assert Assignment.read(message | {"hologram": 3}) == sent
    with pytest.raises(ValidationError, match="hologram"):
        Assignment.read(message | {"spec": message["spec"] | {"hologram": True}})


def test_an_ending_has_the_keys_that_renderers_and_dispatchers_of_other_versions_know():
    for kind in ENDINGS.values():
        ended = ended_with(kind.outcome)
        # Notes and score are there only where something was judged.
        assert set(event_to_wire(ended)) == {"event", "outcome", *TOLD} - {"notes", "denoised", "fidelity"}
    lost = {
        "event": "ended",
        "outcome": "lost",
        "problem": None,
        "objects": None,
        "stage": "",
        "cause": "",
        "sticky": False,
    }
    assert event_from_wire(lost | {"checkpoint": None}) == Lost()
