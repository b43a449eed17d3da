"""A double of one process's CUDA as torch reports it: figures of the allocator, the order of devices, and faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.doubles.nvml import FakeGpu, FakeNvml, FakeProgram, FakeSlice
from tests.doubles.words import CPU_ONLY, NO_ENGINE, NO_GPUS

MIB = 2**20


class FakeCuda:
    """What torch tells of the cards that `nvml` knows, in a process `pid` that CUDA_VISIBLE_DEVICES limits.

    `allocate` and `release` are live tensors; released blocks stay *reserved*, as the caching allocator keeps them,
    until `empty_cache` or until memory is short. cuBLAS and cuDNN take workspaces from the same allocator
    (`workspace_bytes`, with the first allocation). What the process has beside it is its context.
    Computes nothing: the operations of `pipeline.devices.probe` are answered too.
    """

    def __init__(self, nvml: FakeNvml, *, pid: int | None = None, context_bytes: int = 450 * MIB) -> None:
        self.nvml, self.pid, self.context_bytes = nvml, os.getpid() if pid is None else pid, context_bytes
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.workspace_bytes = 0
        #: OutOfMemoryErrors of the allocator, also those that cuDNN caught.
        self.ooms = 0
        self.fraction = 1.0
        #: Raised by whatever touches CUDA, from now on: a context that died, or one that cannot be made.
        self.dead: Exception | None = None
        #: Dtypes that the card can convolve.
        self.convolves: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)
        #: Names of the `torch.cuda` functions that were called.
        self.called: list[str] = []
        self._open: FakeSlice | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """Stand in for `torch.cuda`, and for the operations of `pipeline.devices.probe`, until the test ends."""
        answers: dict[str, Callable[..., Any]] = {
            "init": lambda: self.card and None,
            "is_available": lambda: bool(self.visible()),
            "device_count": lambda: len(self.visible()),
            "mem_get_info": lambda _i=0: (self.free_bytes, self.total_bytes),
            "memory_reserved": lambda _i=0: self._figure(self.reserved),
            "memory_allocated": lambda _i=0: self._figure(self.allocated),
            "max_memory_reserved": lambda _i=0: self._figure(self.peak_reserved),
            "max_memory_allocated": lambda _i=0: self._figure(self.peak_allocated),
            "memory_stats": lambda _i=0: self._figure({"num_ooms": self.ooms}),
            "reset_peak_memory_stats": lambda _i=0: self._reset(),
            "empty_cache": self._empty_cache,
            "get_per_process_memory_fraction": lambda _i=0: self.fraction,
            "set_per_process_memory_fraction": lambda fraction, _i=0: setattr(self, "fraction", fraction),
            "get_device_properties": lambda _i=0: SimpleNamespace(
                uuid=self.card.uuid.removeprefix("GPU-"), name=self.card.name, total_memory=self.total_bytes
            ),
            "get_device_capability": lambda _i=0: self.card.capability,
            "synchronize": lambda _i=0: self._figure(None),
            "device": lambda _i=0: _Current(),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._counted(name, answer))
        from pipeline.devices import probe

        monkeypatch.setattr(probe, "add_up", lambda _device: self._figure(None))
        monkeypatch.setattr(probe, "convolve", self._convolve)
        return self

    def _counted(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.called.append(name)
            return answer(*args)

        return call

    # -- devices ------------------------------------------------------------------------------------------------

    def visible(self) -> list[FakeSlice]:
        """The cards that this process sees, in CUDA's order: of slices one only."""
        gpus = list(self.nvml.gpus)
        if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            # Fastest first: by compute capability, then memory; equal ones stay as they lie on the bus.
            gpus.sort(key=lambda gpu: (gpu.capability, gpu.total_bytes), reverse=True)
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return [_computes(gpu) for gpu in gpus if _computes(gpu)]
        found: list[FakeSlice] = []
        for entry in named.split(","):
            card = _named(entry.strip(), gpus)
            if card is None:
                break
            found.append(card)
        return found

    @property
    def card(self) -> FakeSlice:
        """The first visible card, with a context on it. Raises what torch would."""
        if self.dead is not None:
            raise self.dead
        if self._open is None:
            if not self.visible():
                raise NO_GPUS
            self._open = self.visible()[0]
            self._tell()
        return self._open

    # -- memory -------------------------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> int:
        """As `cudaMemGetInfo` tells it: the driver's part is left out."""
        return self.card.total_bytes - self.card.reserved_bytes

    @property
    def free_bytes(self) -> int:
        """As `cudaMemGetInfo` tells it: cached blocks are not free."""
        return self.total_bytes - self.card.used_bytes

    def allocate(self, count: int) -> None:
        """A live tensor of `count` bytes. Raises `torch.OutOfMemoryError` where it does not fit."""
        count += self.workspace_bytes if not self.reserved else 0
        needed = count - (self.reserved - self.allocated)
        if needed > self.free_bytes:
            self._empty_cache()
            needed = count
        if needed > self.free_bytes or self.reserved + needed > self.fraction * self.total_bytes:
            self.ooms += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {count / MIB:.2f} MiB.")
        self.allocated += count
        self.reserved = max(self.reserved, self.allocated)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._tell()

    def release(self, count: int) -> None:
        """A tensor of `count` bytes is gone; its block is kept."""
        self.allocated -= count

    def convolve_without_memory(self, count: int) -> None:
        """A convolution whose workspace does not fit: torch tries every engine, and tells of none."""
        try:
            self.allocate(count)
        except torch.OutOfMemoryError:
            raise NO_ENGINE["get"] from None

    def _figure(self, value: Any) -> Any:
        return self.card and value

    def _reset(self) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _empty_cache(self) -> None:
        self._figure(None)
        self.reserved = self.allocated
        self._tell()

    def _convolve(self, _device: str, dtype: torch.dtype) -> None:
        self._figure(None)
        if dtype not in self.convolves:
            raise NO_ENGINE["get"]

    def _tell(self) -> None:
        """Let NVML see what this process has."""
        if self._open is not None:
            others = [program for program in self._open.programs if program.pid != self.pid]
            self._open.programs[:] = [*others, FakeProgram(self.pid, self.reserved + self.context_bytes)]


def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that was built without CUDA."""

    def refuse(*_: Any) -> None:
        raise CPU_ONLY

    for name in ("init", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, refuse)


class _Current:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _computes(gpu: FakeGpu) -> Any:
    """The part of a card that CUDA takes: of slices the first."""
    return gpu if gpu.slices is None else next(iter(gpu.slices), None)


def _named(entry: str, gpus: Sequence[FakeGpu]) -> FakeSlice | None:
    if entry.isdigit():
        return _computes(gpus[int(entry)]) if int(entry) < len(gpus) else None
    if entry.startswith("MIG-"):
        return next((part for gpu in gpus for part in gpu.slices or () if part.uuid == entry), None)
    return next((_computes(gpu) for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)), None)
