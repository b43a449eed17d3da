"""Emulated cards, which count and refuse like real ones, and the host without a limit. Needs torch."""

from __future__ import annotations

import collections
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from pipeline.devices.protocol import CardFigures
from pipeline.memory.admission import Observation
from pipeline.units import MIB


@dataclass(frozen=True, kw_only=True)
class HiddenMemory:
    """Memory that operations of an emulated card take and no prediction knows of: other kernels, other rounding.

    Weights are counted as they are.
    """

    #: Bytes taken per byte that an operation returns.
    factor: float = 1.0
    #: Bytes taken besides while an operation runs, per byte that it returns.
    workspace: float = 0.0


class _LiveStorages:
    """Live storages of one emulated card, in bytes, each counted once however many views it has. Threads share it."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._lock = threading.Lock()
        # Bytes counted, bytes of the storage, the storage.
        self._sizes: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        # A storage may die at any bytecode of any thread, even inside the lock below: its callback only appends
        # here. It runs before the address can be used again, so `_settle` always comes before a reused address.
        self._dead: collections.deque[int] = collections.deque()
        self._live = 0
        self._peak = 0
        #: Bytes that stand for what other programs have of the card.
        self.foreign = 0
        self.hidden = HiddenMemory()

    def _settle(self) -> None:
        while self._dead:
            self._live -= self._sizes.pop(self._dead.popleft())[0]

    def _bury(self, address: int, _storage: object) -> None:
        self._dead.append(address)

    def take(self, storage: torch.UntypedStorage, hidden: HiddenMemory | None = None) -> None:
        """Count `storage` and what is hidden besides.

        Raises `torch.OutOfMemoryError`, counting nothing, where it does not fit.
        """
        address = storage._cdata
        nbytes = storage.nbytes()
        with self._lock:
            self._settle()
            known = self._sizes.get(address)
            grown = nbytes - (known[1] if known else 0)
            if grown == 0:
                return
            spike = 0
            if hidden is not None:
                spike = max(0, round(grown * hidden.workspace))
                grown = round(grown * hidden.factor)
            if grown > 0 and self._live + grown + spike > self._total - self.foreign:
                free = max(0, self._total - self.foreign - self._live)
                raise torch.OutOfMemoryError(
                    f"Emulated card out of memory. Tried to allocate {grown / MIB:.2f} MiB. The card has a total "
                    f"capacity of {self._total / MIB:.2f} MiB of which {free / MIB:.2f} MiB is free."
                )
            reference = known[2] if known else weakref.ref(storage, partial(self._bury, address))
            self._sizes[address] = ((known[0] if known else 0) + grown, nbytes, reference)
            self._live += grown
            self._peak = max(self._peak, self._live + spike)

    def live_bytes(self) -> int:
        """Bytes counted of the storages that are alive."""
        with self._lock:
            self._settle()
            return self._live

    def peak_bytes(self) -> int:
        """Highest `live_bytes` since the last `reset_peak`, workspaces included."""
        with self._lock:
            return self._peak

    def reset_peak(self) -> None:
        """Forget the peak."""
        with self._lock:
            self._settle()
            self._peak = self._live


class _Watch(TorchDispatchMode):
    """Shows every tensor that an operation returns to the count of what lives."""

    def __init__(self, live: _LiveStorages) -> None:
        super().__init__()
        self._live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._live.take(leaf.untyped_storage(), self._live.hidden)
        return result


class EmulatedDevice:
    """A card of `total_bytes` made of host memory; exact to the byte for what operations return.

    It follows live storages by weak reference, in every thread inside `work()`, and raises
    `torch.OutOfMemoryError` when they exceed the card. Scratch memory inside one operation is not seen.
    """

    torch_device = "cpu"

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._live = _LiveStorages(total_bytes)
        self._thread = threading.local()

    def usable_bytes(self) -> int:
        """All but 5 % and what other programs have: the share that a real card keeps back, without its constants."""
        return max(0, self.total_bytes - self.total_bytes // 20 - self.foreign_bytes)

    @property
    def foreign_bytes(self) -> int:
        """Bytes that stand for what other programs have of the card; may be set at any time, from any thread.

        What does not fit beside them raises `torch.OutOfMemoryError`; what was there before stays.
        """
        return self._live.foreign

    @foreign_bytes.setter
    def foreign_bytes(self, count: int) -> None:
        self._live.foreign = count

    @property
    def hidden(self) -> HiddenMemory:
        """What operations take besides what they return; may be set between clips."""
        return self._live.hidden

    @hidden.setter
    def hidden(self, hidden: HiddenMemory) -> None:
        self._live.hidden = hidden

    def observe(self, observation: Observation) -> None:
        """Nothing: an emulated card keeps back the same share whatever was seen."""

    def used_bytes(self) -> int:
        """Bytes of live storages counted on this card."""
        return self._live.live_bytes()

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since the last `reset_peak`."""
        return self._live.peak_bytes()

    def reset_peak(self) -> None:
        """Forget the peak."""
        self._live.reset_peak()

    def free_cached(self) -> None:
        """Nothing: an emulated card caches nothing."""

    def publish(self) -> None:
        """Nothing: `figures` counts by itself."""

    def figures(self) -> CardFigures:
        """What it holds now."""
        return CardFigures(
            usable_bytes=self.usable_bytes(), used_bytes=self.used_bytes(), foreign_bytes=self.foreign_bytes
        )

    def put_on(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Put a module's parameters and buffers on the card; those of floating point as `dtype`, where it is given.

        Each is copied first: loaders hand out slices of one mapped file, whose size is not the weights'.
        Without this, the first view of a weight would be counted as a new allocation.
        """
        for tensor in (*module.parameters(), *module.buffers()):
            # Not as an operation of the card: nothing is hidden in a copy of weights.
            with off_card():
                rounded = dtype if dtype and tensor.is_floating_point() else tensor.dtype
                tensor.data = tensor.data.to(rounded, copy=True)
            self._live.take(tensor.untyped_storage())

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count this thread's allocations; entering again inside changes nothing."""
        if getattr(self._thread, "inside", False):
            yield
            return
        self._thread.inside = True
        try:
            with _Watch(self._live):
                yield
        finally:
            self._thread.inside = False


class HostDevice(EmulatedDevice):
    """The CPU as a card without a limit: memory is counted, never refused.

    Not `counted`, operations are not followed one by one, and can be compiled.
    """

    def __init__(self, *, counted: bool = True) -> None:
        super().__init__(2**62)
        self._counted = counted

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count this thread's allocations, where they are counted."""
        if not self._counted:
            yield
            return
        with super().work():
            yield


@contextmanager
def off_card() -> Iterator[None]:
    """Inside, what is allocated is host memory that no emulated card counts."""
    with _disable_current_modes():
        yield
