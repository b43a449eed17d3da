"""Opaque identifiers: a prefix and a UUID of version 7, so that ids sort by time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Milliseconds since the epoch, and ten random bytes.
_Source = Callable[[], tuple[int, int]]


def _system() -> tuple[int, int]:
    return time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big")


_SOURCE: ContextVar[_Source] = ContextVar("source of ids", default=_system)


@contextmanager
def ids_from(clock: Callable[[], float], rng: random.Random) -> Iterator[None]:
    """Within this context (and the tasks made in it) draw ids from a clock in seconds and a seeded generator."""
    token = _SOURCE.set(lambda: (int(clock() * 1000), rng.getrandbits(80)))
    try:
        yield
    finally:
        _SOURCE.reset(token)


def new_id(prefix: str) -> str:
    """`<prefix>_<32 hex digits>`, a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits."""
    milliseconds, drawn = _SOURCE.get()()
    value = (milliseconds << 80) | drawn
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{prefix}_{value:032x}"
