"""Opaque identifiers: a prefix and a UUID of version 7, so that ids sort by time."""

from __future__ import annotations

import os
import time


def new_id(prefix: str) -> str:
    """`<prefix>_<32 hex digits>`, a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{prefix}_{value:032x}"
