"""One clip on its way through a renderer: what it may be told, what it tells, and what it is rendered with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster.jobs import Overflow
from cluster.lessons import Peak
from cluster.renderers import Assignment, Event, StepDone
from pipeline.clip import ClipSpec
from pipeline.models.model import Stopped

log = logging.getLogger("clipmill.renderer")

#: Weights that are fetched are told of every few per cent: what has not been heard of for so long, in seconds, may
#: stand still.
_FRESH_S = 120.0


@dataclass(frozen=True, kw_only=True)
class CardIdentity:
    """Which card a renderer holds."""

    card: str
    card_class: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """Where weights come from."""

    home: Path
    #: A local folder per family.
    folders: dict[str, Path]
    offline: bool
    #: Address asked instead of the hub; empty for the hub.
    mirror: str = ""
    #: Families whose licence was accepted in the farm's configuration.
    accepted: frozenset[str] = frozenset()
    #: Safetensors of the adapters that clips may name, by SHA-256.
    adapters: Mapping[str, Path] = field(default_factory=dict)


class Flight:
    """One assignment on its way through a worker; `stop` may be called from any thread."""

    def __init__(self, assignment: Assignment, emit: Callable[[Event], None]) -> None:
        self.assignment = assignment
        self.emit = emit
        self.steps = (assignment.resume.step if assignment.resume else 0, assignment.spec.total_steps)
        #: Why it begins anew although there was a checkpoint; empty where it does not.
        self.refused = ""
        #: What it took of the card in each layout it was tried in.
        self.peaks: list[Peak] = []
        #: Where it ran out of memory, and how often it waited for other programs to give memory back after that.
        self.overflows: list[Overflow] = []
        self.waits = 0
        #: When it last got anywhere, and when it was told to stop, by `time.monotonic`.
        self._moved_at = self._told_at = time.monotonic()
        #: What is fetched or loaded for it, and when that was last told.
        self._loading = ("", self._moved_at)
        self._stop = threading.Event()
        self._leave = threading.Event()
        #: Either of the two.
        self._told = threading.Event()

    def stop(self, *, checkpoint: bool = False) -> None:
        """Stop within a step; with `checkpoint`, save the clip first, or finish it where its frames are there."""
        if not self.told:
            self._told_at = time.monotonic()
        (self._leave if checkpoint else self._stop).set()
        self._told.set()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until told to stop."""
        self._told.wait(seconds)

    @property
    def told(self) -> bool:
        """Whether it was told to stop, with a checkpoint or without."""
        return self._told.is_set()

    def hangs(self, stall_s: float) -> bool:
        """Whether it was told to stop so long ago, and has got nowhere since: its thread never lets go of the card."""
        return self.told and time.monotonic() - max(self._moved_at, self._told_at) > stall_s

    def loads(self, text: str) -> None:
        """Tell of weights that are fetched or loaded for it: that is no step, but it is not nothing either."""
        log.info(text)
        self._moved_at = time.monotonic()
        self._loading = (text, self._moved_at)

    @property
    def loading(self) -> str:
        """What is fetched or loaded for it now; empty when nothing is, or when nothing of it was heard for long."""
        text, told_at = self._loading
        return text if time.monotonic() - told_at < _FRESH_S else ""

    @property
    def leaving(self) -> bool:
        """Whether it was told to save a checkpoint and stop."""
        return self._leave.is_set()

    def check(self, *, before: bool = False) -> None:
        """Raise `Stopped` once told to stop; `before` the first step there is nothing to save either."""
        if self._stop.is_set() or (before and self.leaving):
            raise Stopped

    def report(self, step: int, steps: int) -> None:
        """Tell of a finished step."""
        self.steps = (step, steps)
        self._moved_at = time.monotonic()
        self._loading = ("", self._moved_at)
        self.emit(StepDone(step=step, steps=steps))

    def begin_anew(self, reason: str) -> None:
        """The checkpoint cannot be used: all steps are still to be done."""
        log.warning("attempt %s begins anew: %s", self.assignment.attempt_id, reason)
        self.refused = reason
        self.steps = (0, self.assignment.spec.total_steps)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """How long a clip waits for memory that other programs have taken, in seconds."""

    patience_s: float = 30.0
    poll_s: float = 0.5
    #: Lets time pass; returns early where the flight is told to stop.
    pause: Callable[[Flight, float], None] = Flight.pause


class Observer(Protocol):
    """Hears what rendering takes. Called in the render's thread; must be quick and must not raise."""

    def step(self, spec: ClipSpec, seconds: float) -> None:
        """A step took so long. A clip's first step is left out: encoders and decoder of the still share its time."""

    def memory(self, spec: ClipSpec, predicted_bytes: int, measured_bytes: int) -> None:
        """Predicted and measured peak of a clip that was rendered, or that ran out of memory."""

    def checkpoint(self, spec: ClipSpec, nbytes: int) -> None:
        """A checkpoint of so many bytes is in storage."""


class Nobody:
    """An observer that heeds nothing."""

    def step(self, spec: ClipSpec, seconds: float) -> None:
        pass

    def memory(self, spec: ClipSpec, predicted_bytes: int, measured_bytes: int) -> None:
        pass

    def checkpoint(self, spec: ClipSpec, nbytes: int) -> None:
        pass
