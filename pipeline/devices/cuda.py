"""A CUDA card: what torch has of it, and by NVML what other programs have. Needs torch."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from pipeline.devices import probe
from pipeline.devices.nvml import CardMemory, GpuMemory, Nvml, UnknownMemoryError
from pipeline.devices.protocol import CardFigures
from pipeline.memory.admission import MARGIN_MEMORY, Observation, margin
from pipeline.memory.footprint import context_share
from pipeline.units import MIB

#: Free memory below which a card is full, whatever is cached: no engine's workspace fits.
_SHORT_BYTES = 64 * MIB


class CudaDevice:
    """One CUDA card of this process. What other programs have of it shrinks what is usable."""

    def __init__(
        self, index: int = 0, *, uuid: str = "", memory: GpuMemory | None = None, graphs: bool = False
    ) -> None:
        """`uuid` as NVML writes it (default: as CUDA tells it); `memory`: tells what is in use (default: NVML).

        `graphs`: clips may record CUDA graphs, for which memory is kept.
        """
        self._graphs = graphs
        self._index = index
        self.torch_device = f"cuda:{index}"
        self.total_bytes = int(torch.cuda.mem_get_info(index)[1])
        self._uuid = uuid or f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        self._memory = memory or Nvml()
        self._note_before()
        self._observations: collections.deque[Observation] = collections.deque(maxlen=MARGIN_MEMORY)
        self.publish()

    def publish(self) -> None:
        """Note what torch has of the card."""
        self._noted = (
            torch.cuda.memory_reserved(self._index),
            torch.cuda.memory_allocated(self._index),
            int(torch.cuda.get_per_process_memory_fraction(self._index) * self.total_bytes),
        )
        self._published = self._figures(self._read())

    def figures(self) -> CardFigures:
        """What the card holds by the driver, and by what torch had of it when that was noted. Asks torch nothing."""
        try:
            return self._figures(self._memory.memory(self._uuid))
        except UnknownMemoryError:
            return self._published

    def _figures(self, found: CardMemory) -> CardFigures:
        reserved, allocated, allowed = self._noted
        total, foreign, context = self._shares(found, reserved)
        kept = margin(self.total_bytes, tuple(self._observations))
        return CardFigures(
            usable_bytes=max(0, min(total - foreign - context, allowed) - kept),
            used_bytes=allocated,
            foreign_bytes=foreign,
        )

    def usable_bytes(self) -> int:
        """All of the card but what other programs have, this process's context and `pipeline.memory.admission.margin`.

        Never more than the share of the card that torch is allowed
        (`torch.cuda.set_per_process_memory_fraction`), less the margin.
        """
        self.publish()
        return self._published.usable_bytes

    @property
    def foreign_bytes(self) -> int:
        """Bytes of the card that other programs have."""
        self.publish()
        return self._published.foreign_bytes

    def _read(self) -> CardMemory:
        try:
            return self._memory.memory(self._uuid)
        except UnknownMemoryError:
            free, total = torch.cuda.mem_get_info(self._index)
            return CardMemory(total_bytes=total, used_bytes=total - free)

    def _shares(self, found: CardMemory, reserved: int) -> tuple[int, int, int]:
        """(total, foreign, own context) in bytes, where torch has `reserved`."""
        # A context grows as kernels are loaded: it is counted with what it will take.
        context = context_share(graphs=self._graphs)
        own = reserved + context
        # Less than torch alone has cannot be all of ours: the driver saw another process, or none.
        if found.own_bytes is not None and found.own_bytes >= reserved:
            own = found.own_bytes
            context = max(context, own - reserved)
        return found.total_bytes, max(0, found.used_bytes - own), context

    def observe(self, observation: Observation) -> None:
        """Learn from a clip's peak: the margin follows it, and what the process took of the card beside its tensors."""
        torch_now = torch.cuda.memory_reserved(self._index)
        context = self._shares(self._read(), torch_now)[2]
        # Blocks that were cached before may be more than this clip needs at all: they are reused, not taken.
        promised = max(observation.predicted_bytes, self._reserved_before) + self._context_before
        taken = torch.cuda.max_memory_reserved(self._index) + context
        self._observations.append(replace(observation, beyond_bytes=max(0, taken - promised)))
        self.publish()

    def used_bytes(self) -> int:
        """Bytes of live tensors of this process."""
        return torch.cuda.memory_allocated(self._index)

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since the last `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._index)

    def reset_peak(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats(self._index)
        self._note_before()

    def _note_before(self) -> None:
        """Note what there is before a clip, to tell what it took."""
        self._ooms_before = self._ooms()
        self._reserved_before = torch.cuda.memory_reserved(self._index)
        self._context_before = self._shares(self._read(), self._reserved_before)[2]

    def ran_out(self) -> bool:
        """Whether an allocation failed since `reset_peak`, also one whose exception cuDNN kept to itself.

        What cuDNN allocates past torch is counted by nobody: then a card without free memory that can convolve in all
        that models compute in has run out too.
        """
        if self._ooms() > self._ooms_before:
            return True
        return int(torch.cuda.mem_get_info(self._index)[0]) < _SHORT_BYTES and probe.convolves(self.torch_device)

    def _ooms(self) -> int:
        return int(torch.cuda.memory_stats(self._index).get("num_ooms", 0))

    def computes(self) -> bool:
        """Whether a small operation still works: after some faults nothing does in this process."""
        return probe.computes(self.torch_device)

    def free_cached(self) -> None:
        """Give cached blocks back to the driver."""
        with torch.cuda.device(self._index):
            torch.cuda.empty_cache()
        self.publish()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Make this card the thread's current one."""
        with torch.cuda.device(self._index):
            yield
