"""A storage with a quota: the file system below it takes so many bytes and no more, as a full disk or bucket does."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from cluster.storage import Storage


class QuotaFileSystem(MemoryFileSystem):
    """fsspec's memory, with `error` raised by every write beyond `room` bytes."""

    protocol = "quota"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    room: ClassVar[int] = 2**40
    error: ClassVar[Exception] = OSError(errno.ENOSPC, "No space left on device")

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).replace("quota://", "memory://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._take(len(value))
        super().pipe_file(path, value, mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def _take(self, size: int) -> None:
        held = sum(len(file.getbuffer()) for file in self.store.values())
        if held + size > type(self).room:
            raise type(self).error


fsspec.register_implementation("quota", QuotaFileSystem, clobber=True)


def quota_storage() -> Storage:
    """An empty storage with room for everything; `set_room` changes that."""
    QuotaFileSystem.store.clear()
    set_room(2**40)
    return Storage("quota://farm")


def set_room(size: int, error: Exception | None = None) -> None:
    """From now on the storage takes so many bytes in all; `error` is what more of them raise."""
    QuotaFileSystem.room = size
    QuotaFileSystem.error = error or OSError(errno.ENOSPC, "No space left on device")
