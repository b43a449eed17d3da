"""What a renderer measures while it renders, without a word on where the figures go."""

from __future__ import annotations

from typing import Protocol

from pipeline.clips.clip import ClipSpec
from pipeline.kernels.kernels import KernelCounts


class Observer(Protocol):
    """Hears what rendering takes. Called in the render's thread; must be quick and must not raise."""

    def step(self, spec: ClipSpec, seconds: float) -> None:
        """A step took so long. A clip's first step is left out: encoders and decoder of the still share its time."""

    def memory(self, spec: ClipSpec, predicted_bytes: int, measured_bytes: int) -> None:
        """Predicted and measured peak of a clip that was rendered, or that ran out of memory."""

    def checkpoint(self, spec: ClipSpec, nbytes: int) -> None:
        """A checkpoint of so many bytes is in storage."""

    def kernels(self, spec: ClipSpec, counts: KernelCounts) -> None:
        """What compiling kernels came to while one clip was rendered, whatever became of it."""


class NullObserver:
    """An `Observer` that keeps nothing."""

    def step(self, spec: ClipSpec, seconds: float) -> None:
        """Do nothing."""

    def memory(self, spec: ClipSpec, predicted_bytes: int, measured_bytes: int) -> None:
        """Do nothing."""

    def checkpoint(self, spec: ClipSpec, nbytes: int) -> None:
        """Do nothing."""

    def kernels(self, spec: ClipSpec, counts: KernelCounts) -> None:
        """Do nothing."""
