"""The results of a batch as one zip, made as it is read: never more than a part of one clip is in memory."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from cluster.catalog.names import file_stem, folded, id_fault
from cluster.results.contact_sheet import ResultRow
from cluster.results.export import TABLE, provenance_of
from cluster.results.rows import JobResult
from cluster.results.table import table_lines
from cluster.storage import MissingObjectError, StorageError
from pipeline.problems import Problem
from pipeline.units import MIB

#: What is read of an object at once, and the most that is in memory of one.
_AT_ONCE = MIB
#: Which files are not in the archive, and why; only there where some are not. No row's files end so.
MISSING = "missing.txt"
#: The earliest and the latest time that a zip can tell, in UTC epoch seconds.
_FIRST_S, _LAST_S = 315_532_800, 4_354_819_198


#: What comes along of a row, besides its clip: (name of a delivery profile, key of the file or why there is none).
DeliveriesOf = Callable[[JobResult], Iterable[tuple[str, str | Problem]]]


class ArchivedObjects(Protocol):
    """Objects of clips as an archive reads them."""

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The object, to be read. Raises `MissingObjectError`, `StorageError`."""
        ...

    def size(self, key: str) -> int:
        """The object's length in bytes. Raises `MissingObjectError`, `StorageError`."""
        ...

    def get_bytes(self, key: str) -> bytes:
        """The whole object. Raises `MissingObjectError`, `StorageError`."""
        ...


class _Sink:
    """What `zipfile` writes to: nothing can be read back or changed. `taken` gives what came since."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def taken(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def archive(
    results: Callable[[], Iterable[JobResult]],
    storage: ArchivedObjects,
    extra_provenance: Mapping[str, object],
    deliveries: DeliveriesOf = lambda _result: (),
) -> Iterator[bytes]:
    """The zip of a batch, part by part: `<id>.mp4`, `.jpg` and `.json` of each clip, and `results.csv` of all rows.

    Names are those that `write_clip` gives in a folder, and the table has those that are in the zip. Nothing is packed,
    as clips and posters are packed already; lengths and offsets have 64 bits where they need them. `results` gives the
    rows, and is asked twice; `deliveries` what comes along of each, as `<profile>/<id>.mp4`. Files that are gone, or
    cannot be made, are named in `missing.txt`. Raises `StorageError` half way where an object cannot be read: whoever
    reads then has a zip without an end, which no program takes for whole.
    """
    sink, missing, taken = _Sink(), list[str](), set[str]()
    #: Videos that are in the zip, by the places of their rows.
    videos: dict[int, str] = {}
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as made:  # type: ignore[call-overload]
        for result in results():
            row = result.row
            if row.state != "completed" or id_fault(row.id):
                continue
            stem = _stem(result, taken)
            for name, key in _files(row, stem):
                try:
                    if name.endswith(".json"):
                        data = provenance_of(row, storage.get_bytes(key), extra_provenance)
                        if data is None:
                            missing.append(f"{name}: its object is damaged")
                            continue
                        made.writestr(_entry(name, len(data), result.updated_at), data)
                        yield sink.taken()
                    else:
                        yield from _copied(made, sink, storage, key, _entry(name, storage.size(key), result.updated_at))
                        if name.endswith(".mp4"):
                            videos[result.number] = name
                except MissingObjectError:
                    missing.append(f"{name}: its object is gone")
            for profile, found in deliveries(result):
                name = f"{profile}/{stem}.mp4"
                if isinstance(found, Problem):
                    missing.append(f"{name}: {found.message}")
                    continue
                try:
                    yield from _copied(made, sink, storage, found, _entry(name, storage.size(found), result.updated_at))
                except MissingObjectError:
                    missing.append(f"{name}: its object is gone")
        yield from _tables(made, sink, results, videos, missing)
    yield sink.taken()


def _stem(result: JobResult, taken: set[str]) -> str:
    """What a row's files are called, with the row's place where some disks take that for another row's name."""
    stem = file_stem(result.row.id)
    while folded(stem) in taken:
        stem = f"{stem}-{result.number}"
    taken.add(folded(stem))
    return stem


def _files(row: ResultRow, stem: str) -> list[tuple[str, str]]:
    keys = ((".mp4", row.video_key), (".jpg", row.poster_key), (".json", row.provenance_key))
    return [(stem + suffix, key) for suffix, key in keys if key is not None]


def _copied(
    made: zipfile.ZipFile, sink: _Sink, storage: ArchivedObjects, key: str, entry: zipfile.ZipInfo
) -> Iterator[bytes]:
    begun = False
    # Drivers tell in their own words that an object went while it was read: only `storage.open`, left, says which.
    try:
        with storage.open(key) as source:
            part = source.read(_AT_ONCE)
            with made.open(entry, "w") as target:
                begun = True
                while part:
                    target.write(part)
                    yield sink.taken()
                    part = source.read(_AT_ONCE)
    except MissingObjectError as error:
        if not begun:
            raise
        # Half of it is out: what follows would be taken for a whole zip with a short clip.
        raise StorageError(key, f"{key!r} went while it was read", "Ask for the results again.") from error


def _tables(
    made: zipfile.ZipFile,
    sink: _Sink,
    results: Callable[[], Iterable[JobResult]],
    videos: Mapping[int, str],
    missing: list[str],
) -> Iterator[bytes]:
    now = int(time.time())
    with made.open(_entry(TABLE, 0, now), "w") as target:
        # Rows may have completed since, and some have another name here.
        for line in table_lines((one.row, {"file": videos.get(one.number, "")}) for one in results()):
            target.write(line)
            if len(found := sink.taken()):
                yield found
    if missing:
        told = "\n".join(missing).encode("utf-8", "replace") + b"\n"
        made.writestr(_entry(MISSING, len(told), now), told)
    yield sink.taken()


def _entry(name: str, size: int, at: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.gmtime(min(max(at, _FIRST_S), _LAST_S))[:6])
    # By its size `zipfile` tells whether an entry needs numbers of 64 bits.
    entry.file_size = size
    entry.external_attr = 0o644 << 16
    return entry
