"""Pauses between tries of what does not work yet."""

from __future__ import annotations

from collections.abc import Iterator


def doubling(first_s: float, longest_s: float) -> Iterator[float]:
    """Pauses in seconds without end: `first_s`, then each twice the one before, but none above `longest_s`."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, longest_s)
