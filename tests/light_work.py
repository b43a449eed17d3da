"""Work for another process that loads nothing, so that what it takes is told from what its imports take."""

from __future__ import annotations

import os


def process_id(data: bytes) -> int:
    """The process that this is."""
    return os.getpid()
