"""Long things in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter. Reads no further than it has to."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
