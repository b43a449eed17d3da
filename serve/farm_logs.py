"""Logs of embedded farms: where those of a running one lie, and what is kept of one that has ended."""

from __future__ import annotations

import heapq
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.private import private_folder
from pipeline.units import MIB

#: Runs whose logs a home keeps, and bytes that are kept of one file: its end.
KEPT_RUNS = 10
KEPT_BYTES = 20 * MIB
#: Names of kept runs: when the farm was started (local time) and its process.
_RUN = re.compile(r"\d{8}-\d{6}-\d+")
#: How Serve begins a line: level, time, deployment, replica.
_TIMED = re.compile(r"^[A-Z]+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ")
#: Serve's files of one of our deployments: `replica_clipmill_renderer-c8_x1y2.log`.
_REPLICA = re.compile(r"^replica_clipmill_(?P<deployment>.+)_[a-z0-9]+\.log$")


def logs_folder(home: Path) -> Path:
    """Where a home keeps the logs of farms that have ended, a folder for each."""
    return home / "logs"


def kept_runs(home: Path) -> list[Path]:
    """Folders of the farms of this home that have ended and whose logs are kept, the newest first."""
    try:
        found = [folder for folder in logs_folder(home).iterdir() if _RUN.fullmatch(folder.name) and folder.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda folder: folder.name, reverse=True)


def keep_logs(logs: Path, home: Path, run: str) -> Path | None:
    """Copy the files of `logs` into the home as those of `run`, and forget the oldest runs; None where there are none.

    Of a large file its end is kept. Never raises: logs are not worth a farm that does not end.
    """
    target = logs_folder(home) / run
    try:
        sources = [path for path in sorted(logs.resolve(strict=True).rglob("*")) if _is_plain(path)]
        if not sources:
            return None
        private_folder(home)
        private_folder(logs_folder(home))
        for source in sources:
            place = target / source.relative_to(logs.resolve())
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _copy_end(source, place)
        for old in kept_runs(home)[KEPT_RUNS:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        # A full disk, or a home that is gone.
        return target if target.exists() else None
    return target


def _is_plain(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _copy_end(source: Path, place: Path) -> None:
    with source.open("rb") as read, place.open("wb") as write:
        size = os.fstat(read.fileno()).st_size
        if size > KEPT_BYTES:
            read.seek(size - KEPT_BYTES)
            # From the next whole line on.
            read.readline()
        shutil.copyfileobj(read, write)


@dataclass
class LogTail:
    """Lines of a farm's log files as they come, each with the deployment that wrote it."""

    folder: Path
    #: Ray's own files too, not only those of gateway, dispatcher and renderers.
    everything: bool = False
    _offsets: dict[Path, int] = field(default_factory=dict)

    def news(self) -> list[tuple[str, str]]:
        """(source, line) of all whole lines since the last call, by the time that they tell."""
        return [(label, line) for _, label, line in heapq.merge(*self._read_all(), key=lambda one: one[0])]

    def _read_all(self) -> Iterator[list[tuple[str, str, str]]]:
        for path, label in self._files():
            yield list(_timed(label, self._lines(path)))

    def _files(self) -> Iterable[tuple[Path, str]]:
        for path in sorted(self.folder.rglob("*")):
            replica = _REPLICA.fullmatch(path.name)
            if replica and path.is_file():
                yield path, replica["deployment"]
            elif self.everything and path.is_file():
                yield path, path.name

    def _lines(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
        except OSError:
            return []
        whole, _, rest = data.rpartition(b"\n")
        self._offsets[path] = self._offsets.get(path, 0) + len(data) - len(rest)
        return whole.decode(errors="replace").splitlines() if whole else []


def _timed(label: str, lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(time, label, line); a line without a time, of a traceback, has that of the line before."""
    at = ""
    for line in lines:
        if found := _TIMED.match(line):
            at = found[1]
        yield at, label, line
