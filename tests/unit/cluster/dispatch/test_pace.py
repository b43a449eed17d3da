"""Patience with a clip by its own pace: to leave its card, to be told from one that hangs, when a farm closes."""

from __future__ import annotations

import asyncio

import pytest

from cluster.dispatch.leases import PREEMPT_S
from cluster.dispatch.protocol import StepDone, Verdict
from cluster.jobs.model import JobState
from cluster.jobs.outcomes import Stopped
from tests.building import beat
from tests.unit.cluster.dispatch.test_dispatcher import TIMING, clock, farm, resumable, saved  # noqa: F401


async def at_pace(farm, step_s: float, step: int, steps: int = 50):  # noqa: F811
    """A clip on the card that has done `step` steps of `step_s` seconds; its call, and the beat of its renderer."""
    batch_id = farm.submit(resumable())
    farm.dispatcher.beat(beat())
    call = await farm.called()
    for done in range(step + 1):
        call.report(StepDone(step=done, steps=steps))
        await farm.until(call.events.empty)
        await farm.looks_again(1)
        if done < step:
            farm.clock.now += step_s
            farm.dispatcher.beat(beat(steps={call.assignment.attempt_id: (done, steps)}))
    return batch_id, call, beat(steps={call.assignment.attempt_id: (step, steps)})


async def pass_by(farm, seconds: float, told) -> None:  # noqa: F811
    """Let time pass; long enough steps for a test, short enough for leases."""
    for _ in range(int(seconds / 4)):
        farm.clock.now += 4
        farm.dispatcher.beat(told)
        await farm.looks_again(1)


@pytest.mark.parametrize(
    ("step_s", "step", "least", "most"),
    [
        pytest.param(1.0, 3, PREEMPT_S - 4, PREEMPT_S + 8, id="quick steps: as ever"),
        pytest.param(17.0, 3, 52, 64, id="Wan on an L4: three steps and the write"),
        pytest.param(17.0, 50, 136, 152, id="a decode of several steps' length"),
    ],
)
async def test_a_clip_may_take_as_long_to_leave_as_its_own_steps_take(farm, step_s, step, least, most):  # noqa: F811
    steps = 50 if step < 50 else 4
    batch_id, call, told = await at_pace(farm, step_s, min(step, steps), steps)
    assert farm.dispatcher.preempt(farm.job(batch_id).id)
    await pass_by(farm, least, told)
    assert not call.closed
    await pass_by(farm, most - least, told)
    await farm.until(lambda: call.closed)


async def test_a_clip_that_hangs_between_quick_steps_is_not_waited_for_as_long_as_a_load(farm):  # noqa: F811
    _, call, told = await at_pace(farm, 1.0, 3)
    await pass_by(farm, 292, told)
    assert not call.closed
    await pass_by(farm, 20, told)
    await farm.until(lambda: call.closed)
    assert TIMING.stall_s > 400, "else this says nothing"
    await farm.until(lambda: farm.dispatcher.running_count() == 0)
    assert "nothing after step 3 for 300 s" in farm.truth.attempts()[0].detail


async def test_slow_steps_are_no_hang(farm):  # noqa: F811
    """Thirty of its own steps: in a leaner layout it may be that much slower from one step to the next."""
    _, call, told = await at_pace(farm, 20.0, 3)
    await pass_by(farm, 580, told)
    assert not call.closed
    await pass_by(farm, 40, told)
    await farm.until(lambda: call.closed)


@pytest.mark.parametrize(("step_s", "at_once"), [(1.0, False), (17.0, True)])
async def test_a_farm_that_closes_asks_slow_clips_while_there_is_time(farm, step_s, at_once):  # noqa: F811
    """`farewell_s` is shorter than one such step: asked only then, it would lose all since its last checkpoint."""
    batch_id, call, told = await at_pace(farm, step_s, 3)
    stopping = asyncio.create_task(farm.dispatcher.stop(grace_s=20))
    for _ in range(3):
        await asyncio.sleep(0)
    verdict = Verdict.CHECKPOINT if at_once else Verdict.GO_ON
    assert set(farm.dispatcher.beat(told).values()) == {verdict}
    checkpoint = saved(call, 4)
    call.report(Stopped(checkpoint=checkpoint))
    await stopping
    job = farm.job(batch_id)
    assert (job.state, job.checkpoint, job.attempts) == (JobState.QUEUED, checkpoint, 0)
