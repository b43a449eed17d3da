import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs import Checkpoint, Ended, Objects, Outcome, Overflow
from cluster.lessons import Peak
from cluster.renderers import CardFree, CheckpointFailed, CheckpointSaved, StepDone
from pipeline.layouts import Layout
from pipeline.problems import Problem
from serve.messages import event_from_wire, event_to_wire

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
checkpoints = st.builds(Checkpoint, texts, numbers)
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
endings = st.builds(
    Ended,
    outcome=st.sampled_from(Outcome),
    detail=texts,
    problem=st.none() | st.builds(Problem, field=texts, message=texts, remedy=texts),
    objects=st.none() | objects,
    measured_bytes=numbers,
    usable_bytes=numbers,
    predicted_bytes=numbers,
    stage=texts,
    checkpoint=st.none() | checkpoints,
    resumed_step=numbers,
    cause=texts,
    overflows=st.lists(overflows, max_size=2).map(tuple),
    sticky=st.booleans(),
    peaks=st.lists(peaks, max_size=2).map(tuple),
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


def test_an_unknown_event_is_told_by_name():
    with pytest.raises(ValueError, match="'hologram'"):
        event_from_wire({"event": "hologram"})
