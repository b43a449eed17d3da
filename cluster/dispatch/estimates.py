"""What was measured of clips' memory and time, as the dispatcher last read it from the store."""

from __future__ import annotations

import math
from collections.abc import Callable

from cluster.dispatch.store_calls import StoreCalls
from cluster.estimates.memory import MemoryEstimates
from cluster.estimates.times import TimeEstimates
from cluster.store import DispatchStore

#: How often it is read again although this dispatcher recorded nothing new (it can be imported), in seconds.
_READ_AGAIN_S = 60.0


class EstimateReader:
    """Estimates of memory and time, read again after every attempt that was measured."""

    def __init__(self, dispatch_store: DispatchStore, store: StoreCalls, clock: Callable[[], float]) -> None:
        """`clock` in seconds; it never goes back."""
        self._dispatch_store, self._store, self._clock = dispatch_store, store, clock
        self.memory = MemoryEstimates()
        self.times = TimeEstimates()
        #: Peaks were recorded since.
        self._is_old = False
        self._read_at = -math.inf

    def outdate(self) -> None:
        """Peaks are in the store now that were not when it was read."""
        self._is_old = True

    async def refresh(self) -> bool:
        """Read both again where there may be something new. Whether they were read."""
        now = self._clock()
        if not self._is_old and now - self._read_at < _READ_AGAIN_S:
            return False
        self._is_old, self._read_at = False, now
        self.memory = await self._store(self._dispatch_store.memory_estimates)
        self.times = await self._store(self._dispatch_store.time_estimates)
        return True
