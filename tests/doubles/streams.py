"""A double of CUDA's streams: what is ordered before what, and which block of memory holds which copy."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RaceError(AssertionError):
    """Two operations on one block that nothing orders."""


@dataclass(frozen=True)
class _Moment:
    """One operation: the number it has on its stream."""

    stream: FakeStream
    number: int


class FakeStream:
    """A queue of operations. It knows of other streams what its waits have told it."""

    def __init__(self, _device: Any = None) -> None:
        self.count = 0
        #: Of each other stream, how many operations are done before the next one here.
        self.knows: dict[FakeStream, int] = {}

    def put(self) -> _Moment:
        """Queue one operation."""
        self.count += 1
        return _Moment(self, self.count)

    def record_event(self) -> dict[FakeStream, int]:
        """All that is queued here so far, and what that waited for."""
        return {**self.knows, self: self.count}

    def wait_event(self, event: dict[FakeStream, int]) -> None:
        """Let what is queued from now on come after `event`."""
        for stream, count in event.items():
            self.knows[stream] = max(self.knows.get(stream, 0), count)

    def comes_after(self, moment: _Moment) -> bool:
        """Whether an operation queued now comes after `moment`."""
        return moment.stream is self or self.knows.get(moment.stream, 0) >= moment.number


@dataclass
class _Block:
    nbytes: int
    written: _Moment
    reads: list[_Moment] = field(default_factory=list)


class FakeStreams:
    """Runs operations at once on the host's memory, and raises `RaceError` where streams might not have.

    Each copy that is made inside `torch.cuda.stream` has a block of the stream's pool, and gives it back when its
    tensor dies; the next copy of that stream takes it, as the caching allocator does: the oldest that is large enough.
    Any operation on a copy reads its block, on the current stream.
    """

    def __init__(self) -> None:
        self.compute = FakeStream()
        self.current = self.compute
        self.live_bytes = self.peak_bytes = 0
        self.reused = 0
        #: What was done with blocks, in the order of the program: `copy`, `read`, `free`.
        self.trace: list[tuple[str, int]] = []
        self._blocks: dict[int, _Block] = {}
        self._free: dict[FakeStream, list[_Block]] = defaultdict(list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
        """Stand in for the streams of `torch.cuda` until the test ends."""
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        return self

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, operations are followed."""
        with _Follow(self):
            yield

    @contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def did(self, args: Any, result: Any) -> None:
        """Note one operation on tensors."""
        made = {leaf.untyped_storage()._cdata for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(args):
            at = leaf.untyped_storage()._cdata if isinstance(leaf, torch.Tensor) else 0
            if at in self._blocks and at not in made:  # a view reads nothing
                self._read(at)
        if self.current is not self.compute:
            for leaf in tree_leaves(result):
                self._copied(leaf.untyped_storage())

    def _read(self, at: int) -> None:
        block = self._blocks[at]
        if not self.current.comes_after(block.written):
            raise RaceError("read before its copy was waited for")
        block.reads.append(self.current.put())
        self.trace.append(("read", block.nbytes))

    def _copied(self, storage: torch.UntypedStorage) -> None:
        nbytes, pool = storage.nbytes(), self._free[self.current]
        block = next((each for each in pool if each.nbytes >= nbytes), None)
        if block is None:
            block = _Block(nbytes, self.current.put())
        else:
            pool.remove(block)
            self.reused += 1
            if not all(self.current.comes_after(read) for read in block.reads):
                raise RaceError("overwritten while it is read")
            block.written, block.reads = self.current.put(), []
        self._blocks[storage._cdata] = block
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.trace.append(("copy", nbytes))
        weakref.finalize(storage, self._freed, storage._cdata, nbytes, self.current)

    def _freed(self, at: int, nbytes: int, stream: FakeStream) -> None:
        self._free[stream].append(self._blocks.pop(at))
        self.live_bytes -= nbytes
        self.trace.append(("free", nbytes))


class _Follow(TorchDispatchMode):
    def __init__(self, streams: FakeStreams) -> None:
        super().__init__()
        self._streams = streams

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._streams.did((args, kwargs), result)
        return result


class FakePinnedMemory:
    """torch's pinned memory, up to `limit_bytes` in all; each piece is rounded up to a power of two."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken: list[int] = []
        self._pieces: dict[int, int] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakePinnedMemory:
        """Stand in for `torch.empty(pin_memory=True)` and `Tensor.is_pinned` until the test ends."""
        empty = torch.empty

        def allocate(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            made: torch.Tensor = empty(*size, **options)
            if pin_memory:
                rounded = 1 << (made.nbytes - 1).bit_length()
                if sum(self.taken) + rounded > self.limit_bytes:
                    raise RuntimeError("CUDA error: out of memory")
                self.taken.append(rounded)
                self._pieces[made.data_ptr()] = made.nbytes
            return made

        def is_pinned(tensor: torch.Tensor) -> bool:
            return any(at <= tensor.data_ptr() < at + nbytes for at, nbytes in self._pieces.items())

        monkeypatch.setattr(torch, "empty", allocate)
        monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
        return self
