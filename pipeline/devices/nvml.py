"""What a card's memory holds and whose it is, by uuid, from the driver. No torch here."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import pynvml

from pipeline.devices.discovery import memory_of, text


class UnknownMemoryError(RuntimeError):
    """The driver does not tell what a card's memory holds."""


@dataclass(frozen=True, kw_only=True)
class CardMemory:
    """Memory of one card at one moment, in bytes."""

    #: What programs can have in all: the driver's own part is left out.
    total_bytes: int
    #: Taken by all programs.
    used_bytes: int
    #: Taken by this process, its context included; None where the driver does not say.
    own_bytes: int | None = None


class GpuMemory(Protocol):
    """Tells what the memory of the cards holds."""

    def memory(self, uuid: str) -> CardMemory:
        """The card `uuid` now. Raises `UnknownMemoryError` where it cannot be known."""
        ...


class Nvml:
    """NVIDIA's management library. It sees every program on the card and needs no context on it.

    May be called from any thread; takes well below a millisecond once it runs.
    """

    def __init__(self, driver: Any = pynvml, pid: int | None = None) -> None:
        """`driver`: a module with the functions of `pynvml`; `pid`: of the process whose memory is one's own."""
        self._driver = driver
        self._pid = os.getpid() if pid is None else pid
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}
        self._running = False

    def memory(self, uuid: str) -> CardMemory:
        """The card `uuid` (`GPU-…` or `MIG-…`) now. Raises `UnknownMemoryError` for no driver or no such card."""
        try:
            handle = self._handle(uuid)
            return self._totals(handle, self._own(handle))
        except (self._driver.NVMLError, OSError) as error:
            # A handle of a driver that was reloaded is of no use any more.
            with self._lock:
                self._handles.pop(uuid, None)
                self._running = False
            raise UnknownMemoryError(f"NVML does not tell the memory of {uuid}: {error}") from error

    def versions(self) -> tuple[str, int]:
        """(the driver's version, the newest CUDA it knows as 1000 × major + 10 × minor); ("", 0) where it is silent."""
        try:
            # Counted by the library: others may start and end it meanwhile.
            self._driver.nvmlInit()
            return text(self._driver.nvmlSystemGetDriverVersion()), int(self._driver.nvmlSystemGetCudaDriverVersion())
        except (self._driver.NVMLError, OSError):
            return "", 0

    def _handle(self, uuid: str) -> Any:
        with self._lock:
            if not self._running:
                # Counted by the library: others may start and end it meanwhile.
                self._driver.nvmlInit()
                self._running = True
            if uuid not in self._handles:
                self._handles[uuid] = self._driver.nvmlDeviceGetHandleByUUID(uuid)
            return self._handles[uuid]

    def _totals(self, handle: Any, own_bytes: int | None) -> CardMemory:
        _, free, total = memory_of(self._driver, handle)
        # Not `used`, which is not the rest in every version: nobody can have more than what is free.
        return CardMemory(total_bytes=total, used_bytes=max(0, total - free), own_bytes=own_bytes)

    def _own(self, handle: Any) -> int | None:
        try:
            processes = self._driver.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._driver.NVMLError:
            return None
        # In a container the ids are often those of the host, and the figure may be missing or 0 even for the right one.
        found = [p.usedGpuMemory for p in processes if p.pid == self._pid and p.usedGpuMemory]
        return sum(found) if found else None
