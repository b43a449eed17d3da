"""What a renderer knows of its card: how much is usable, how much is in use, and a place to work in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Device(Protocol):
    """One card as a model sees it. Implementations: `pipeline.models.devices` (CUDA, emulated), `HOST` below."""

    #: A torch device string: `cuda:0`, or `cpu` for emulated cards.
    torch_device: str
    #: Total bytes of the card.
    total_bytes: int

    def usable_bytes(self) -> int:
        """Bytes a clip may use now, resident weights of our own included."""
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

    def work(self) -> AbstractContextManager[None]:
        """Enter in every thread that computes on the card; allocations inside are counted against it.

        Raises `torch.OutOfMemoryError` from the allocating operation.
        """
        ...
