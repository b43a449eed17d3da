"""Replicas wanted per card class."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.cards import Fleet
from cluster.fleet.demand import (
    UNKNOWN_CLIP_SECONDS,
    ClassState,
    WaitingKind,
    backlog_gpu_seconds,
    replicas_kept,
    replicas_wanted,
)

states = st.builds(
    lambda backlog, present, busy, minimum, more: ClassState(
        backlog_gpu_seconds=backlog, present=present, busy=min(busy, present), minimum=minimum, maximum=minimum + more
    ),
    backlog=st.floats(0, 1e6),
    present=st.integers(0, 50),
    busy=st.integers(0, 50),
    minimum=st.integers(0, 3),
    more=st.integers(0, 60),
)


@given(states, st.floats(1, 3600))
def test_within_bounds_and_never_below_what_has_work(state: ClassState, target_s: float) -> None:
    wanted = replicas_wanted(state, target_s=target_s)
    assert state.minimum <= wanted <= state.maximum
    if state.busy or state.backlog_gpu_seconds:
        assert replicas_kept(state) >= state.present, "a renderer with work in its class may not be taken"
    if state.backlog_gpu_seconds:
        assert wanted >= min(1, state.maximum), "work waits and nobody comes"


@given(states)
def test_a_class_without_work_goes_down_to_its_minimum(state: ClassState) -> None:
    idle = ClassState(
        backlog_gpu_seconds=0, present=state.present, busy=0, minimum=state.minimum, maximum=state.maximum
    )
    assert replicas_wanted(idle, target_s=60) == state.minimum
    assert replicas_kept(idle) == 0


def test_the_backlog_is_worked_off_in_about_the_target_time() -> None:
    state = ClassState(backlog_gpu_seconds=3000, present=0, busy=0, minimum=0, maximum=100)
    assert replicas_wanted(state, target_s=300) == 10
    assert replicas_wanted(state, target_s=299) == math.ceil(3000 / 299)


def test_each_kind_counts_for_the_smallest_class_that_holds_it() -> None:
    fleet = Fleet(usable_bytes={"c24": 24, "c8": 8})
    waiting = [
        WaitingKind(model="m", resolution_class="512p", needs_bytes=5, jobs=3),
        WaitingKind(model="m", resolution_class="1024p", needs_bytes=9, jobs=2),
        WaitingKind(model="n", resolution_class="512p", needs_bytes=8, jobs=1),
        WaitingKind(model="m", resolution_class="1024p", needs_bytes=25, jobs=7),
    ]
    means = {("m", "512p"): 10.0, ("m", "1024p"): 100.0}
    assert backlog_gpu_seconds(waiting, means, fleet) == {"c8": 30.0 + UNKNOWN_CLIP_SECONDS, "c24": 200.0}
