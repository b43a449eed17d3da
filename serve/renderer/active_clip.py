"""One clip on its way through a renderer: what others may ask of it, and what it reports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cluster.dispatch.protocol import STALL_LEAST_S, STALL_STEPS, Assignment, Event, StepDone
from cluster.jobs.outcomes import Overflow, Peak
from pipeline.clips.clip import ClipSpec
from pipeline.kernels.measured import KernelRun
from pipeline.models.model import RenderStopped

log = logging.getLogger("clipmill.renderer")

#: A fetch of weights reports every few per cent: one that reported nothing for so long, in seconds, may stand still.
_FRESH_S = 120.0
#: Seconds between two reports of one clip.
REPORT_EVERY_S = 0.2


class ActiveClip:
    """One assignment on its way through a worker; `stop` and `preempt` may be called from any thread."""

    def __init__(self, assignment: Assignment, emit: Callable[[Event], None]) -> None:
        self.assignment = assignment
        self.emit = emit
        #: The last finished step, and how many there are.
        self.steps = (assignment.resume.step if assignment.resume else 0, assignment.spec.total_steps)
        #: Why it begins anew although there was a checkpoint; empty where it does not.
        self.refused = ""
        #: What the clip took of the card in each layout it was tried in.
        self.peaks: list[Peak] = []
        #: What runs of its loop say of the kernels they were computed with.
        self.kernel_runs: list[KernelRun] = []
        #: Where the clip ran out of memory.
        self.overflows: list[Overflow] = []
        #: How often it waited, after that, for other programs to give memory back.
        self.waits = 0
        #: The clip failed in a way after which this process can do nothing more on its card.
        self.broke_card = False
        #: The clip was promised the card's memory and is not off the card yet.
        self.on_card = False
        #: When it last got anywhere, and when it was first asked to end, by `time.monotonic`.
        self._moved_at = self._asked_at = time.monotonic()
        #: What its last step took, in seconds; None before there was one.
        self._step_s: float | None = None
        #: What is fetched or loaded for it, and when that was last reported.
        self._loading = ("", self._moved_at)
        self._stop = threading.Event()
        self._preempt = threading.Event()
        #: Set with `_stop`, and with `_preempt`.
        self._ending = threading.Event()

    @property
    def spec(self) -> ClipSpec:
        """What is rendered."""
        return self.assignment.spec

    @property
    def attempt_id(self) -> str:
        """Id of the attempt."""
        return self.assignment.attempt_id

    @property
    def resumed(self) -> bool:
        """Whether it goes on from an earlier attempt's checkpoint, as far as is known by now."""
        return self.assignment.resume is not None and not self.refused

    def stop(self) -> None:
        """Have it end within a step, without a checkpoint."""
        self._ask(self._stop)

    def preempt(self) -> None:
        """Have it save a checkpoint and end within a step, or be published where its frames are there."""
        self._ask(self._preempt)

    def _ask(self, how: threading.Event) -> None:
        if not self.ending:
            self._asked_at = time.monotonic()
        how.set()
        self._ending.set()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until it is to end."""
        self._ending.wait(seconds)

    @property
    def ending(self) -> bool:
        """Whether it was asked to end, by `stop` or `preempt`."""
        return self._ending.is_set()

    @property
    def preempting(self) -> bool:
        """Whether it was asked to save a checkpoint and end."""
        return self._preempt.is_set()

    def hangs(self, stall_s: float) -> bool:
        """Whether it was asked to end over `stall_s` seconds ago and has got nowhere since; sooner by its own pace.

        The thread of such a clip never releases the card.
        """
        if self._step_s is not None and self.steps[0] < self.steps[1]:
            stall_s = min(stall_s, max(STALL_LEAST_S, STALL_STEPS * self._step_s))
        return self.ending and time.monotonic() - max(self._moved_at, self._asked_at) > stall_s

    def loads(self, text: str) -> None:
        """Report weights that are fetched or loaded for it: no step, but progress all the same."""
        log.info(text)
        self._moved_at = time.monotonic()
        self._loading = (text, self._moved_at)

    @property
    def loading(self) -> str:
        """What is fetched or loaded for it now; empty when nothing is, or when no news of it came for two minutes."""
        text, reported_at = self._loading
        return text if time.monotonic() - reported_at < _FRESH_S else ""

    def check(self, *, before: bool = False) -> None:
        """Raise `RenderStopped` once it is to stop.

        `before` its first step also where it is preempted: there is nothing to save yet.
        """
        if self._stop.is_set() or (before and self.preempting):
            raise RenderStopped

    def report(self, step: int, steps: int) -> None:
        """Report that `step` of `steps` is finished."""
        now = time.monotonic()
        if step == self.steps[0] + 1:
            self._step_s = now - self._moved_at
        self.steps = (step, steps)
        self._moved_at = now
        self._loading = ("", self._moved_at)
        self.emit(StepDone(step=step, steps=steps))

    def begin_anew(self, reason: str) -> None:
        """Start from step 0 after all, as the checkpoint cannot be used for this `reason`."""
        log.warning("attempt %s begins anew: %s", self.attempt_id, reason)
        self.refused = reason
        self.steps = (0, self.spec.total_steps)


class StepReports:
    """Lets one finished step in a while through, and all other events of a clip.

    Leases, forecasts and people look a few times a second at most, while a clip of camera moves has forty steps in one:
    to send each takes more than a tenth of the time in which it is made. Steps that times are taken from pass: the one
    a clip begins at, the first that it does, and the last; so do those of a clip that begins anew.
    """

    def __init__(self, every_s: float = REPORT_EVERY_S) -> None:
        self._every_s = every_s
        self._first: int | None = None
        self._last = -1
        self._passed_at = 0.0

    def passes(self, event: Event, now: float) -> bool:
        """Whether to send an event that happened `now`, in seconds of a clock that never goes back."""
        if not isinstance(event, StepDone):
            return True
        if self._first is None or event.step < self._last:
            self._first = event.step
        self._last = event.step
        if event.step <= self._first + 1 or event.step >= event.steps or now - self._passed_at >= self._every_s:
            self._passed_at = now
            return True
        return False
