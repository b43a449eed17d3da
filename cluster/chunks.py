"""Long things in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: int, *, first: int | None = None) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter. Reads no further than it has to.

    With `first` the first list has so many, and each the double of the one before, up to `size`.
    """
    iterator = iter(items)
    length = min(first or size, size)
    while chunk := list(islice(iterator, length)):
        yield chunk
        length = min(2 * length, size)
