"""The ladder after an out-of-memory, first half: what this card can still do about it.

The clip goes on from its newest snapshot, in a layout that is leaner in the stage that did not fit. Where no leaner one
fits and other programs have the memory, it waits for them. When nothing is left here, the attempt ends as
`OutOfMemory`, with every layout that was tried and the snapshot in storage.

The second half is `cluster.dispatch.retry`: a larger card, and without one the failed job with the whole story.
"""

from __future__ import annotations

import gc
import logging

from cluster.dispatch.retry import story
from cluster.jobs.outcomes import OutOfMemory, Overflow
from pipeline.devices.protocol import Device
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import Footprint, footprint, leaner_fit
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import Admitted, MemoryWaiter
from serve.renderer.cards import CardIdentity
from serve.renderer.rendering import LayoutRender, RenderedClip, RenderInput
from serve.renderer.warm_model import WarmModel

log = logging.getLogger("clipmill.renderer")

#: How often a clip waits for other programs to give memory back after it ran out of it, and tries its layout again.
_MOST_WAITS = 3


class LayoutFallback:
    """Renders a clip in the layout it was admitted in, and in ever leaner ones where the card's memory runs out.

    After each out-of-memory:

    1. The tensors of the failed try are released. A process that keeps some of them ends here and is replaced.
    2. `next_layout`: leaner in the stage that failed; the same layout again once other programs gave memory back.
    3. The clip goes back to its newest snapshot, and is rendered from there.
    4. Without a next layout the attempt ends; the snapshot goes to storage for the attempt on a larger card.
    """

    def __init__(
        self, identity: CardIdentity, device: Device, model: WarmModel, render: LayoutRender, waiter: MemoryWaiter
    ) -> None:
        self._identity = identity
        self._device = device
        self._model = model
        self._render = render
        self._waiter = waiter

    def render(self, given: RenderInput, admitted: Admitted) -> RenderedClip | OutOfMemory:
        """Render the clip, or say in which layouts the card's memory did not suffice.

        Ends: every layout after the first has a switch more than the one before, and waits are counted. Raises what
        `LayoutRender.run` raises.
        """
        clip, resume = given.clip, given.resume
        layout, predicted = admitted.layout, admitted.predicted
        while True:
            tried = self._render.run(given, layout, predicted, resume)
            if isinstance(tried, RenderedClip):
                return tried
            # Outside the `except`: while the exception lives, its traceback keeps the tensors alive.
            gc.collect()
            self._device.free_cached()
            self._render.record_peak(clip, layout, predicted, out_of_memory=True)
            overflow = self._overflow(clip, layout, predicted, tried.stage)
            clip.overflows.append(overflow)
            log.warning("attempt %s is out of memory: %s", clip.attempt_id, story([overflow]))
            if kept := self._kept_bytes():
                failure = f"{tried.failure}; {kept} bytes of it are not released, so this process is replaced"
                return self._out_of_memory(given, overflow, failure, sticky=True)
            following = self.next_layout(clip, layout, tried.stage)
            if following is None:
                return self._out_of_memory(given, overflow, tried.failure)
            layout, predicted = following
            resume = _go_back(given)

    def next_layout(self, clip: ActiveClip, layout: Layout, stage: str) -> tuple[Layout, Footprint] | None:
        """The next layout with `stage` leaner that fits; `layout` once more where other programs gave memory back."""
        spec, usable = clip.spec, self._device.usable_bytes()
        factors, failed = clip.assignment.lessons, footprint(spec, layout)

        def expect(tried: Layout, predicted: Footprint) -> int:
            return factors.correct_stage(spec.family, tried, predicted, stage)

        if following := leaner_fit(spec, layout, Stage(stage), usable, expect):
            return following
        foreign = self._device.foreign_bytes
        needed = expect(layout, failed)
        if needed > usable + foreign:
            needed = failed.stages[stage]
        if clip.waits >= _MOST_WAITS or not usable < needed <= usable + foreign:
            return None
        clip.waits += 1
        waiting_for = f"{stage} needs {needed} bytes, {usable} usable beside other programs"
        return (layout, failed) if self._wait_for(clip, needed, waiting_for) else None

    def _wait_for(self, clip: ActiveClip, needed_bytes: int, waiting_for: str) -> bool:
        """True once so much is usable or the clip is to end, as it does before its next step; False after too long."""
        deadline = self._waiter.deadline()
        with self._waiter.waiting():
            while self._device.usable_bytes() < needed_bytes:
                if self._waiter.is_over(deadline):
                    return False
                self._waiter.pause(clip, waiting_for)
                if clip.ending:
                    break
        return True

    def _overflow(self, clip: ActiveClip, layout: Layout, predicted: Footprint, stage: str) -> Overflow:
        return Overflow(
            stage=stage,
            layout=str(layout),
            step=clip.steps[0],
            predicted_bytes=predicted.peak_bytes,
            measured_bytes=self._device.peak_bytes(),
            usable_bytes=self._device.usable_bytes(),
            card=self._identity.card,
        )

    def _kept_bytes(self) -> int:
        """Bytes that a failed try left on the card beside the weights; 0 where it left none to speak of."""
        weights_bytes = self._model.weights_bytes
        if weights_bytes is None:
            return 0
        kept = self._device.used_bytes() - weights_bytes
        # Below a hundredth of the card are workspaces that cuBLAS keeps, and blocks rounded up.
        return kept if kept > self._device.total_bytes // 100 else 0

    def _out_of_memory(
        self, given: RenderInput, overflow: Overflow, failure: str, *, sticky: bool = False
    ) -> OutOfMemory:
        given.checkpoints.save_snapshot()
        step, steps = given.clip.steps
        return OutOfMemory(
            stage=overflow.stage,
            detail=f"out of memory in {overflow.stage} at step {step} of {steps} on {self._identity.card}: {failure}",
            measured_bytes=overflow.measured_bytes,
            predicted_bytes=overflow.predicted_bytes,
            usable_bytes=overflow.usable_bytes,
            foreign_bytes=self._device.foreign_bytes,
            sticky=sticky,
        )


def _go_back(given: RenderInput) -> bytes | None:
    """The newest snapshot of the clip, whose steps are set back to it; None where it begins anew.

    Raises `RenderStopped` where the clip is to end; a preempted one has its snapshot in storage by then.
    """
    clip, checkpoints = given.clip, given.checkpoints
    if clip.preempting:
        checkpoints.save_snapshot()
    clip.check(before=True)
    step, data = 0, None
    if checkpoints.snapshot is not None:
        step, data = checkpoints.snapshot
    elif clip.assignment.resume is not None and clip.resumed:
        step, data = clip.assignment.resume.step, given.resume
    clip.steps = (step, clip.steps[1])
    return data
