"""A double of NVIDIA's management library: cards of every kind, and what goes wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

GIB = 2**30


@dataclass
class FakeProgram:
    """A process on a card. `usedGpuMemory` in bytes; None where the driver does not tell it, as in containers."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815


@dataclass
class FakeSlice:
    """A MIG slice, which has a uuid, a name and memory of its own."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    total_bytes: int = int(9.75 * GIB)
    programs: list[FakeProgram] = field(default_factory=list)
    capability: tuple[int, int] = (9, 0)
    reserved_bytes: int = 0
    #: NVML function -> the NVML error it answers with, for this card only.
    refuses: dict[str, int] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        """What the programs have."""
        return sum(program.usedGpuMemory or 0 for program in self.programs)


@dataclass
class FakeGpu(FakeSlice):
    """A whole card. `total_bytes`: what `nvidia-smi` shows, ECC taken off; `reserved_bytes`: the driver's of it."""

    uuid: str = "GPU-0"
    name: str = "NVIDIA GeForce RTX 4090"
    total_bytes: int = int(23.99 * GIB)
    capability: tuple[int, int] = (8, 9)
    reserved_bytes: int = int(0.35 * GIB)
    #: Not None: MIG is on, with these slices.
    slices: list[FakeSlice] | None = None


def rtx_4090(uuid: str = "GPU-4090", **changes: Any) -> FakeGpu:
    """An RTX 4090: CUDA has 23.64 GiB of it."""
    return FakeGpu(uuid=uuid, **changes)


def t4(uuid: str = "GPU-t4", **changes: Any) -> FakeGpu:
    """A Tesla T4 with ECC on: CUDA has 14.56 GiB of it, Turing."""
    given = {"name": "Tesla T4", "total_bytes": 15 * GIB, "reserved_bytes": int(0.44 * GIB), "capability": (7, 5)}
    return FakeGpu(uuid=uuid, **(given | changes))


def l4(uuid: str = "GPU-l4", **changes: Any) -> FakeGpu:
    """An NVIDIA L4 with ECC on: CUDA has 22.03 GiB of it."""
    given = {"name": "NVIDIA L4", "total_bytes": int(22.49 * GIB), "reserved_bytes": int(0.46 * GIB)}
    return FakeGpu(uuid=uuid, **(given | changes))


def l40s(uuid: str = "GPU-l40s", **changes: Any) -> FakeGpu:
    """An NVIDIA L40S with ECC on: CUDA has 44.40 GiB of it."""
    given = {"name": "NVIDIA L40S", "total_bytes": int(44.99 * GIB), "reserved_bytes": int(0.59 * GIB)}
    return FakeGpu(uuid=uuid, **(given | changes))


def h100(uuid: str = "GPU-h100", **changes: Any) -> FakeGpu:
    """An H100 80GB; give `slices` for MIG."""
    given = {"name": "NVIDIA H100 80GB HBM3", "total_bytes": int(79.65 * GIB), "capability": (9, 0)}
    return FakeGpu(uuid=uuid, **(given | {"reserved_bytes": int(0.54 * GIB)} | changes))


def gb10(uuid: str = "GPU-gb10", **changes: Any) -> FakeGpu:
    """A GB10, whose memory is the host's: NVML tells nothing of it."""
    refuses = {"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}
    return FakeGpu(uuid=uuid, **({"name": "NVIDIA GB10", "capability": (12, 1), "refuses": refuses} | changes))


class FakeNvml:
    """The functions of `pynvml` that are used, over cards in PCI order. Pass it as `driver`, or `install` it.

    Like the library it raises `NVMLError`, counts its users, and refuses handles from before it was started anew.
    """

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2  # noqa: N815

    def __init__(
        self, gpus: Sequence[FakeGpu] = (), *, driver: str = "580.95.05", cuda: int = 13000, fails: int | None = None
    ) -> None:
        """`driver` and `cuda`: versions; `fails`: the NVML error of `nvmlInit`, such as for no library."""
        self.gpus, self.driver, self.cuda, self.fails = list(gpus), driver, cuda, fails
        #: Cards by uuid that fell off the bus.
        self.lost: set[str] = set()
        #: Before driver 510: memory in its first form only.
        self.old = False
        #: How often it was started.
        self.started = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
        """Stand in for `pynvml` until the test ends."""
        for name in dir(self):
            if name.startswith("nvml") and callable(getattr(self, name)):
                monkeypatch.setattr(pynvml, name, getattr(self, name))
        return self

    # -- the library --------------------------------------------------------------------------------------------

    def nvmlInit(self) -> None:
        if self.fails is not None:
            raise pynvml.NVMLError(self.fails)
        self.started += 1

    def nvmlShutdown(self) -> None:
        """The library counts who uses it."""

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    # -- cards --------------------------------------------------------------------------------------------------

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if not 0 <= index < len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._handle(self.gpus[index], "nvmlDeviceGetHandleByIndex")

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> Any:
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        for card in [*self.gpus, *(part for gpu in self.gpus for part in gpu.slices or ())]:
            if card.uuid == text:
                return self._handle(card, "nvmlDeviceGetHandleByUUID")
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self._card(handle, "nvmlDeviceGetUUID").uuid

    def nvmlDeviceGetName(self, handle: Any) -> bytes:
        return self._card(handle, "nvmlDeviceGetName").name.encode()

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> list[int]:
        return list(self._card(handle, "nvmlDeviceGetCudaComputeCapability").capability)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        card = self._card(handle, "nvmlDeviceGetMemoryInfo")
        if version is None:
            found = pynvml.c_nvmlMemory_t()
            found.used = card.used_bytes + card.reserved_bytes
        else:
            if self.old:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            found = pynvml.c_nvmlMemory_v2_t()
            found.reserved, found.used = card.reserved_bytes, card.used_bytes
        found.total = card.total_bytes
        found.free = card.total_bytes - card.reserved_bytes - card.used_bytes
        return found

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[FakeProgram]:
        return self._card(handle, "nvmlDeviceGetComputeRunningProcesses").programs

    # -- MIG ----------------------------------------------------------------------------------------------------

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        card = self._card(handle, "nvmlDeviceGetMigMode")
        if card.capability < (8, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(getattr(card, "slices", None) is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        self._card(handle, "nvmlDeviceGetMaxMigDeviceCount")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        slices = getattr(self._card(handle, "nvmlDeviceGetMigDeviceHandleByIndex"), "slices", None) or []
        if index >= len(slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self._handle(slices[index], "")

    # -- handles ------------------------------------------------------------------------------------------------

    def _handle(self, card: FakeSlice, function: str) -> Any:
        self._check(card, function)
        return (self.started, card)

    def _card(self, handle: Any, function: str) -> Any:
        started, card = handle
        if started > self.started or self.fails is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        self._check(card, function)
        return card

    def _check(self, card: FakeSlice, function: str) -> None:
        if card.uuid in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if function in card.refuses:
            raise pynvml.NVMLError(card.refuses[function])
