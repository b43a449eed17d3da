"""Copies from the host to a card beside what the card computes, ordered by events. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(kw_only=True)
class SentTensors:
    """Copies that are on their way to a card, or there."""

    tensors: list[torch.Tensor]
    #: When the copies are done; None where they are.
    done: Any = None


class CopyLane(Protocol):
    """Brings tensors to a card: `send`, then `wait` before they are read, then `retire` before they are let go of."""

    def send(self, hosts: Iterable[torch.Tensor]) -> SentTensors:
        """Begin to copy `hosts` to the card, behind all that was retired. Raises `torch.OutOfMemoryError`."""
        ...

    def wait(self, sent: SentTensors) -> None:
        """What is computed from now on comes after the copies."""
        ...

    def retire(self, sent: SentTensors) -> None:
        """Copies that are begun from now on come after all that was computed so far: the memory may be theirs."""
        ...


class DirectLane:
    """Copies in the order of the program, on the stream that computes: for host memory that stands for a card."""

    def __init__(self, torch_device: str) -> None:
        self._device = torch_device

    def send(self, hosts: Iterable[torch.Tensor]) -> SentTensors:
        """Copy `hosts`; see `CopyLane.send`."""
        return SentTensors(tensors=[host.to(self._device, copy=True) for host in hosts])

    def wait(self, sent: SentTensors) -> None:
        """Nothing: the copies are there."""

    def retire(self, sent: SentTensors) -> None:
        """Nothing: what was computed is done."""


class StreamLane:
    """Copies on a CUDA stream of its own, beside the one that computes; from pinned memory nobody waits for them.

    Copies live in memory that the caching allocator took for this stream, so a block that is let go of is given to a
    later copy at once. That copy has to wait for the computation that read the block, which `retire` tells the stream.
    (`Tensor.record_stream` would keep the block until the host sees that computation end; a host that runs ahead would
    have taken more and more blocks by then.)
    """

    def __init__(self, torch_device: str) -> None:
        self._device = torch_device
        self._stream = torch.cuda.Stream(torch_device)  # type: ignore[no-untyped-call]

    def send(self, hosts: Iterable[torch.Tensor]) -> SentTensors:
        """Begin to copy `hosts`; see `CopyLane.send`."""
        with torch.cuda.stream(self._stream):
            tensors = [host.to(self._device, copy=True, non_blocking=True) for host in hosts]
        return SentTensors(tensors=tensors, done=self._stream.record_event())

    def wait(self, sent: SentTensors) -> None:
        """Let the stream that computes wait for the copies."""
        torch.cuda.current_stream(self._device).wait_event(sent.done)

    def retire(self, sent: SentTensors) -> None:
        """Let later copies wait for the stream that computes."""
        # What was never waited for is not read either, but it is cheap to be sure.
        self._stream.wait_event(torch.cuda.current_stream(self._device).record_event())


def copy_lane(torch_device: str) -> CopyLane:
    """The way to `torch_device`: a stream of its own on a CUDA card."""
    return StreamLane(torch_device) if torch.device(torch_device).type == "cuda" else DirectLane(torch_device)
