"""A marked file as what it adds to another one: a few kilobytes, and stretches of that file's bytes between them."""

from __future__ import annotations

import io
import json
import mmap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_COMPARED_BYTES = 1 << 20
#: By so many of its last bytes the other file is found within a marked one.
_LAST_BYTES = 1024
_VERSION = 1


@dataclass(frozen=True)
class SourceStretch:
    """Bytes of the other file, from `start` to before `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Splice:
    """A file in pieces: bytes of its own, and stretches of another file, in their order."""

    pieces: tuple[bytes | SourceStretch, ...]

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return sum(map(len, self.pieces))

    @property
    def source_size(self) -> int:
        """Length that the other file has at least, in bytes."""
        return max((piece.stop for piece in self.pieces if isinstance(piece, SourceStretch)), default=0)

    def write(self, source: BinaryIO, target: BinaryIO) -> None:
        """Write the file; `source` is the other one."""
        for piece in self.pieces:
            if isinstance(piece, bytes):
                target.write(piece)
                continue
            source.seek(piece.start)
            left = len(piece)
            while left:
                part = source.read(min(left, _COMPARED_BYTES))
                if not part:
                    raise EOFError("the file that another one is made of is shorter than it was")
                target.write(part)
                left -= len(part)

    def to_bytes(self) -> bytes:
        """The splice as an object in storage: a line of JSON, and its own bytes."""
        told = [len(piece) if isinstance(piece, bytes) else [piece.start, piece.stop] for piece in self.pieces]
        own = b"".join(piece for piece in self.pieces if isinstance(piece, bytes))
        return json.dumps({"version": _VERSION, "pieces": told}).encode() + b"\n" + own

    @classmethod
    def from_bytes(cls, data: bytes) -> Splice:
        """What `to_bytes` wrote. Raises `ValueError` for what it did not."""
        line, _, own = data.partition(b"\n")
        told = json.loads(line)
        if not isinstance(told, dict) or told.get("version") != _VERSION:
            raise ValueError("it is no splice of this version")
        pieces: list[bytes | SourceStretch] = []
        at = 0
        for piece in told["pieces"]:
            if isinstance(piece, int):
                pieces.append(own[at : at + piece])
                at += piece
            else:
                pieces.append(SourceStretch(int(piece[0]), int(piece[1])))
        if at != len(own):
            raise ValueError("it is cut short")
        return cls(tuple(pieces))


def spliced(source: Path, marked: Path) -> Splice:
    """`marked` as a splice of `source`: the longest stretch that ends where `source` does, and what is around it."""
    with source.open("rb") as a, marked.open("rb") as b, ExitStack() as stack:
        own = stack.enter_context(mmap.mmap(a.fileno(), 0, access=mmap.ACCESS_READ))
        new = stack.enter_context(mmap.mmap(b.fileno(), 0, access=mmap.ACCESS_READ))
        last = own[-_LAST_BYTES:]
        found = new.rfind(last)
        if found < 0:
            return Splice((bytes(new),))
        stop = found + len(last)
        length = _common_end(own, new, stop)
        pieces = (bytes(new[: stop - length]), SourceStretch(len(own) - length, len(own)), bytes(new[stop:]))
        return Splice(tuple(piece for piece in pieces if len(piece)))


def _common_end(own: mmap.mmap, new: mmap.mmap, stop: int) -> int:
    most = min(len(own), stop)
    length = 0
    while length < most:
        step = min(_COMPARED_BYTES, most - length)
        a = own[len(own) - length - step : len(own) - length]
        b = new[stop - length - step : stop - length]
        if a == b:
            length += step
            continue
        while step > 1:
            half = step // 2
            if a[-half:] == b[-half:]:
                length += half
                a, b, step = a[:-half], b[:-half], step - half
            else:
                a, b, step = a[-half:], b[-half:], half
        return length + (a == b)
    return length


class SplicedFile(io.RawIOBase):
    """A splice, to be read from any place; `source` is the other file, which stays its caller's to close."""

    def __init__(self, splice: Splice, source: BinaryIO) -> None:
        self._splice, self._source = splice, source
        self._at = 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any place: always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._splice.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read on, to the end of one piece at most; 0 at the end of the file."""
        target = memoryview(buffer).cast("B")
        begin = 0
        for piece in self._splice.pieces:
            if self._at < begin + len(piece):
                inner = self._at - begin
                part = self._part(piece, inner, min(len(target), len(piece) - inner))
                target[: len(part)] = part
                self._at += len(part)
                return len(part)
            begin += len(piece)
        return 0

    def _part(self, piece: bytes | SourceStretch, inner: int, size: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[inner : inner + size]
        self._source.seek(piece.start + inner)
        return self._source.read(size)
