"""Opaque identifiers: a prefix and a UUID of version 7, so that ids sort by time."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate

#: Draws for so many ids: milliseconds since the epoch, and random bits for each.
_Source = Callable[[int], tuple[int, list[int]]]

#: Bits of an id that are neither time, version nor variant.
_RANDOM = (1 << 80) - 1 - (0xF << 76) - (0x3 << 62)
#: The highest of the bits by which ids of one millisecond are counted on, and how far at most with each.
_HEADROOM, _STRIDE = 1 << 61, (1 << 32) - 1


def beginning(begins: str, known: Collection[str], prefix: str = "") -> list[str]:
    """The ids of `known` that begin so, with or without their `prefix`, in order; one that is called so, alone."""
    if begins in known:
        return [begins]
    return sorted(one for one in known if one.startswith(begins) or one.removeprefix(prefix).startswith(begins))


class _System:
    """The system's clock and random bits; ids of one process ascend, also within a millisecond (RFC 9562, 6.2)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = (0, 0)

    def draw(self, number: int) -> tuple[int, list[int]]:
        """Milliseconds since the epoch, and the rest of so many ids."""
        # At once: a call of the system takes longer than all the rest of an id.
        data = os.urandom(10 * number)
        if not number:
            return 0, []
        drawn = [int.from_bytes(data[n : n + 10], "big") for n in range(0, 10 * number, 10)]
        with self._lock:
            now, (then, last) = time.time_ns() // 1_000_000, self._last
            # Half of the numbers are left for those that follow within the millisecond.
            first = last + 1 + (drawn[0] & _STRIDE) if now == then else drawn[0] & _RANDOM & ~_HEADROOM
            found = list(accumulate((value & _STRIDE for value in drawn[1:]), lambda a, b: a + 1 + b, initial=first))
            self._last = (now, found[-1])
        return now, found


_SOURCE: ContextVar[_Source] = ContextVar("source of ids", default=_System().draw)


@contextmanager
def ids_from(clock: Callable[[], float], rng: random.Random) -> Iterator[None]:
    """Within this context (and the tasks made in it) draw ids from a clock in seconds and a seeded generator."""
    token = _SOURCE.set(lambda number: (int(clock() * 1000), [rng.getrandbits(80) for _ in range(number)]))
    try:
        yield
    finally:
        _SOURCE.reset(token)


def new_id(prefix: str) -> str:
    """`<prefix>_<32 hex digits>`, a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits."""
    return new_ids(prefix, 1)[0]


def new_ids(prefix: str, number: int) -> list[str]:
    """`number` ids of this prefix, as `new_id` makes them, in their order."""
    milliseconds, drawn = _SOURCE.get()(number)
    fixed = (milliseconds << 80) | (0x7 << 76) | (0x2 << 62)
    return [f"{prefix}_{fixed | (value & _RANDOM):032x}" for value in drawn]


def is_batch_id(text: str) -> bool:
    """Whether `text` is a whole id of a batch, not the beginning of one."""
    return re.fullmatch(r"batch_[0-9a-f]{32}", text) is not None
