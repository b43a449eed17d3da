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


def format_rows(count: int) -> str:
    """How many rows, as people say it: `1 row`, `12 rows`."""
    return "1 row" if count == 1 else f"{count} rows"
