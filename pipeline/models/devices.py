"""Cards as the models see them: CUDA, the host, and emulated cards that count and refuse like real ones."""

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

from pipeline.admission import MARGIN_MEMORY, Observation, margin
from pipeline.devices import Device
from pipeline.footprint import cuda_model
from pipeline.nvml import CardMemory, GpuMemory, Nvml, UnknownMemoryError

_MIB = 2**20


class CudaDevice:
    """One CUDA card. What others hold on it shrinks what is usable."""

    def __init__(self, index: int = 0, *, uuid: str = "", memory: GpuMemory | None = None) -> None:
        """`uuid` as NVML writes it (default: as CUDA tells it); `memory`: who knows what it holds (default: NVML)."""
        self._index = index
        self.torch_device = f"cuda:{index}"
        self.total_bytes = int(torch.cuda.mem_get_info(index)[1])
        self._uuid = uuid or f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        self._memory = memory or Nvml()
        self._observations: collections.deque[Observation] = collections.deque(maxlen=MARGIN_MEMORY)

    def usable_bytes(self) -> int:
        """All of the card but what others hold, this process's context and the margin (`pipeline.admission.margin`).

        Never more than the share of the card that torch is allowed
        (`torch.cuda.set_per_process_memory_fraction`), less the margin.
        """
        total, foreign, context = self._shares()
        allowed = int(torch.cuda.get_per_process_memory_fraction(self._index) * self.total_bytes)
        return max(0, min(total - foreign - context, allowed) - margin(self.total_bytes, tuple(self._observations)))

    @property
    def foreign_bytes(self) -> int:
        """Bytes that other programs hold on the card."""
        return self._shares()[1]

    def _shares(self) -> tuple[int, int, int]:
        """(total, foreign, own context) in bytes."""
        reserved = torch.cuda.memory_reserved(self._index)
        try:
            found = self._memory.memory(self._uuid)
        except UnknownMemoryError:
            free, total = torch.cuda.mem_get_info(self._index)
            found = CardMemory(total_bytes=total, used_bytes=total - free)
        # A context grows as kernels are loaded: it is counted with what it will take.
        context = cuda_model().context_bytes
        own = reserved + context
        # Less than torch alone has cannot be all of ours: the driver saw another process, or none.
        if found.own_bytes is not None and found.own_bytes >= reserved:
            own = found.own_bytes
            context = max(context, own - reserved)
        return found.total_bytes, max(0, found.used_bytes - own), context

    def observe(self, observation: Observation) -> None:
        """Learn from a clip's peak: the margin follows it."""
        self._observations.append(observation)

    def used_bytes(self) -> int:
        """Bytes of live tensors of this process."""
        return torch.cuda.memory_allocated(self._index)

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since the last `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._index)

    def reset_peak(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats(self._index)

    def free_cached(self) -> None:
        """Give cached blocks back to the driver."""
        with torch.cuda.device(self._index):
            torch.cuda.empty_cache()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Make this card the thread's current one."""
        with torch.cuda.device(self._index):
            yield


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What an emulated card takes and no prediction knows: other kernels, other rounding. Weights are what they are."""

    #: Bytes taken per byte that an operation returns.
    factor: float = 1.0
    #: Bytes taken besides while an operation runs, per byte that it returns.
    workspace: float = 0.0


class _Ledger:
    """Live storages of one emulated card, each counted once however many views it has. Threads share it."""

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
        #: What others hold of the card.
        self.foreign = 0
        self.hidden = Hidden()

    def _settle(self) -> None:
        while self._dead:
            self._live -= self._sizes.pop(self._dead.popleft())[0]

    def _bury(self, address: int, _storage: object) -> None:
        self._dead.append(address)

    def take(self, storage: torch.UntypedStorage, hidden: Hidden | None = None) -> None:
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
                    f"Emulated card out of memory. Tried to allocate {grown / _MIB:.2f} MiB. The card has a total "
                    f"capacity of {self._total / _MIB:.2f} MiB of which {free / _MIB:.2f} MiB is free."
                )
            reference = known[2] if known else weakref.ref(storage, partial(self._bury, address))
            self._sizes[address] = ((known[0] if known else 0) + grown, nbytes, reference)
            self._live += grown
            self._peak = max(self._peak, self._live + spike)

    def live_bytes(self) -> int:
        with self._lock:
            self._settle()
            return self._live

    def peak_bytes(self) -> int:
        with self._lock:
            return self._peak

    def reset_peak(self) -> None:
        with self._lock:
            self._settle()
            self._peak = self._live


class _Watch(TorchDispatchMode):
    """Shows every tensor that an operation returns to the ledger."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._ledger.take(leaf.untyped_storage(), self._ledger.hidden)
        return result


class EmulatedDevice:
    """A card of `total_bytes` made of host memory; exact to the byte for what operations return.

    It follows live storages by weak reference, in every thread inside `work()`, and raises
    `torch.OutOfMemoryError` when they exceed the card. Scratch memory inside one operation is not seen.
    """

    torch_device = "cpu"

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._ledger = _Ledger(total_bytes)
        self._thread = threading.local()

    def usable_bytes(self) -> int:
        """All but 5 % and what others hold: the share that a real card keeps back, without its constants."""
        return max(0, self.total_bytes - self.total_bytes // 20 - self.foreign_bytes)

    @property
    def foreign_bytes(self) -> int:
        """Bytes that stand for what other programs hold; may be set at any time, from any thread.

        What does not fit beside them raises `torch.OutOfMemoryError`; what was there before stays.
        """
        return self._ledger.foreign

    @foreign_bytes.setter
    def foreign_bytes(self, count: int) -> None:
        self._ledger.foreign = count

    @property
    def hidden(self) -> Hidden:
        """What operations take besides what they return; may be set between clips. Weights held are not scaled."""
        return self._ledger.hidden

    @hidden.setter
    def hidden(self, hidden: Hidden) -> None:
        self._ledger.hidden = hidden

    def observe(self, observation: Observation) -> None:
        """Nothing: an emulated card keeps back the same share whatever was seen."""

    def used_bytes(self) -> int:
        """Bytes of live storages counted on this card."""
        return self._ledger.live_bytes()

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since the last `reset_peak`."""
        return self._ledger.peak_bytes()

    def reset_peak(self) -> None:
        """Forget the peak."""
        self._ledger.reset_peak()

    def free_cached(self) -> None:
        """Nothing: an emulated card caches nothing."""

    def hold(self, module: nn.Module) -> None:
        """Put a module's parameters and buffers on the card.

        Each is copied first: loaders hand out slices of one mapped file, whose size is not the weights'.
        Without this, the first view of a weight would be counted as a new allocation.
        """
        for tensor in (*module.parameters(), *module.buffers()):
            # Not as an operation of the card: nothing is hidden in a copy of weights.
            with off_card():
                tensor.data = tensor.data.clone()
            self._ledger.take(tensor.untyped_storage())

    def let_go(self, module: nn.Module) -> None:
        """Take a module's parameters and buffers off the card; what others still hold of them stays counted."""
        with off_card():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.clone()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count this thread's allocations; entering again inside changes nothing."""
        if getattr(self._thread, "inside", False):
            yield
            return
        self._thread.inside = True
        try:
            with _Watch(self._ledger):
                yield
        finally:
            self._thread.inside = False


class HostDevice(EmulatedDevice):
    """The CPU without a limit: direct renders and tests. Memory is counted, never refused."""

    def __init__(self) -> None:
        super().__init__(2**62)


@contextmanager
def off_card() -> Iterator[None]:
    """Inside, what is allocated is host memory that no emulated card counts."""
    with _disable_current_modes():
        yield


def place(module: nn.Module, device: Device) -> None:
    """Move `module` to the card and count it there. Raises `torch.OutOfMemoryError` where it does not fit."""
    if isinstance(device, EmulatedDevice):
        device.hold(module)
    else:
        module.to(device.torch_device)


def displace(module: nn.Module, device: Device) -> None:
    """Move `module` off the card into host memory."""
    if isinstance(device, EmulatedDevice):
        device.let_go(module)
    else:
        module.to("cpu")
