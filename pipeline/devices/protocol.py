"""What a renderer knows of its card: how much is usable, how much is in use, and a place to work in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pipeline.memory.admission import Observation


@dataclass(frozen=True, kw_only=True)
class CardFigures:
    """What a card's memory holds, in bytes, as far as was noted last."""

    usable_bytes: int
    used_bytes: int
    foreign_bytes: int


class Device(Protocol):
    """One card as a model sees it: `CudaDevice`, or `EmulatedDevice` and `HostDevice`, which are host memory."""

    #: A torch device string: `cuda:0`, or `cpu` for emulated cards.
    torch_device: str
    #: Total bytes of the card.
    total_bytes: int

    def usable_bytes(self) -> int:
        """Bytes a clip may use now, resident weights of our own included."""
        ...

    @property
    def foreign_bytes(self) -> int:
        """Bytes of the card that other programs have now; already taken off `usable_bytes`."""
        ...

    def used_bytes(self) -> int:
        """Live bytes allocated by this process on the card."""
        ...

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since the last `reset_peak`."""
        ...

    def reset_peak(self) -> None:
        """Forget the peak."""
        ...

    def free_cached(self) -> None:
        """Give cached but unused memory back to the driver."""
        ...

    def observe(self, observation: Observation) -> None:
        """Learn how a clip's peak compares to its prediction: what is kept back of the card follows it."""
        ...

    def publish(self) -> None:
        """Note what `figures` is to tell. By the thread that works on the card, after each step."""
        ...

    def figures(self) -> CardFigures:
        """What the card's memory holds, for threads that do not work on it; never waits for one that does."""
        ...

    def work(self) -> AbstractContextManager[None]:
        """Enter in every thread that computes on the card; allocations inside are counted against it.

        Raises `torch.OutOfMemoryError` from the allocating operation.
        """
        ...
