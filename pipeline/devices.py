"""What a renderer knows of its card: how much is usable, how much is in use, and a place to work in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from pipeline.admission import Observation


class Device(Protocol):
    """One card as a model sees it. Implementations: `pipeline.models.devices` (CUDA, emulated), `HOST` below."""

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

    def work(self) -> AbstractContextManager[None]:
        """Enter in every thread that computes on the card; allocations inside are counted against it.

        Raises `torch.OutOfMemoryError` from the allocating operation.
        """
        ...
