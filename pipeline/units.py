"""Bytes and rows in a person's words, and the units that bytes are counted in."""

from __future__ import annotations

#: Bytes of a mebibyte and of a gibibyte.
MIB = 2**20
GIB = 2**30


def format_bytes(count: float) -> str:
    """`23.1 GiB`, `143 MiB`; what would round to 0 MiB is told as `30 bytes`, but for nothing at all: `0 MiB`."""
    # What rounds to 1024 MiB is 1.0 GiB.
    if count >= GIB - MIB / 2:
        return f"{count / GIB:.1f} GiB"
    if count > MIB / 2 or count == 0:
        return f"{count / MIB:.0f} MiB"
    return "1 byte" if count == 1 else f"{count:.0f} bytes"


def format_duration(seconds: float) -> str:
    """Seconds as people read them: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_rows(count: int) -> str:
    """How many rows, as people say it: `1 row`, `12 rows`."""
    return "1 row" if count == 1 else f"{count} rows"
