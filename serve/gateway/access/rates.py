"""How many requests a minute an owner may send: a token bucket for each, in the memory of one gateway replica."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: Owners whose buckets are remembered; a forgotten one is full again.
_REMEMBERED = 10_000
#: Error of sums of fractions, in seconds: nobody waits a second more for it.
_NOISE = 1e-6


class RequestRates:
    """Buckets of owners: each holds a minute's requests, and fills evenly.

    Every gateway replica has its own, so that of several each lets as many through. Of one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._clock = clock
        #: Tokens left, and when that was so.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, owner: str, per_minute: int) -> int | None:
        """Take one request out of the owner's bucket; None where there was one, else seconds until there is."""
        now = self._clock()
        left, at = self._buckets.pop(owner, (float(per_minute), now))
        left = min(float(per_minute), left + max(0.0, now - at) * per_minute / 60)
        if len(self._buckets) >= _REMEMBERED:
            self._buckets.pop(next(iter(self._buckets)))
        self._buckets[owner] = (left - 1 if left >= 1 else left), now
        return None if left >= 1 else max(1, math.ceil((1 - left) * 60 / per_minute - _NOISE))
