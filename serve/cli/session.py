"""One `clipmill render`: hand the catalog in, see that a farm runs on this home, wait, write the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cluster.farm import Farm
from cluster.ingest import IncomingRow, gather
from cluster.jobs import Batch, Job, JobState
from cluster.manifest import Manifest
from cluster.resolve import Defaults
from serve.cli.results import ResultsWriter
from serve.local import FarmLock

#: How often the store is asked, and how often the farm's lock is tried, in seconds.
POLL_S = 0.2
LOCK_S = 1.0
ATTEND_S = 4.0
#: How long a farm may take to close while it is still starting, or after it broke, in seconds.
CLOSE_S = 2.0


class RunningFarm(Protocol):
    """A farm this process can run."""

    def start(self) -> None:
        """Return once renderers answer."""
        ...

    def close(self, grace_s: float | None = None) -> None:
        """End everything, clips in flight after `grace_s`."""
        ...

    def lost(self) -> str | None:
        """What of it ended by itself, so that nothing renders any more; None while all is well."""
        ...


class FarmStartError(RuntimeError):
    """The embedded farm did not come up."""


class FarmLostError(RuntimeError):
    """The embedded farm came up, or nearly, and broke: a daemon of Ray was killed."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What there is to show right now."""

    batch: Batch | None
    running: list[Job]
    rows_read: int
    rows: int
    #: `starting`, `running`, `shared` (another process runs it) or `idle`.
    farm: str


@dataclass
class _Reading:
    """The thread that hands the catalog in."""

    batch: Batch | None = None
    rows_read: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class _Host(threading.Thread):
    """The thread in which a farm lives from start to close.

    One thread for both: the kernel ends Ray's daemons with the *thread* that started them.
    """

    def __init__(self, farm: RunningFarm) -> None:
        super().__init__(name="farm", daemon=True)
        self._farm = farm
        self._closing = threading.Event()
        self.up = threading.Event()
        self.error: BaseException | None = None
        self._grace_s: float | None = None

    def run(self) -> None:
        try:
            self._farm.start()
            self.up.set()
            self._closing.wait()
        except BaseException as error:
            self.error = error
        finally:
            self._farm.close(self._grace_s)

    def lost(self) -> str | None:
        """What of the farm ended by itself; None while all is well, or once it is closing."""
        return None if self._closing.is_set() or self.error else self._farm.lost()

    def close(self, grace_s: float | None, *, patient: bool) -> bool:
        """Close the farm and wait until all of it has ended; False where that would take too long.

        Ray's start cannot be interrupted and may never return, and a broken Ray goes slowly. Whoever gets False ends
        the process: the kernel then ends Ray's daemons.
        """
        starting = not self.up.is_set() and self.error is None
        patience_s = CLOSE_S if not patient and (starting or self.lost()) else None
        self._grace_s = grace_s
        self._closing.set()
        self.join(patience_s)
        return not self.is_alive()


class RenderSession:
    """Runs to the end of the batch, taking over the farm of the home whenever nobody else runs it."""

    def __init__(
        self,
        farm: Farm,
        lock: FarmLock,
        make_farm: Callable[[], RunningFarm],
        writer: ResultsWriter,
        show: Callable[[Moment], None],
    ) -> None:
        self._farm = farm
        self._lock = lock
        self._make_farm = make_farm
        self._writer = writer
        self._show = show
        self._host: _Host | None = None
        self._reading = _Reading()
        self.batch_id = ""

    def run(self, manifest: Manifest, defaults: Defaults, *, name: str, source: str) -> Batch:
        """Render the manifest; returns the finished batch.

        Raises `FarmStartError`, `FarmLostError`, and what the store raises.
        """
        threading.Thread(target=self._read, args=(manifest, defaults, name, source), name="ingest", daemon=True).start()
        lock_at = attend_at = 0.0
        rows = len(manifest.rows)
        while True:
            now = time.monotonic()
            self._raise_faults()
            batch, running = self._look()
            if batch and now >= attend_at:
                self._farm.attend(batch.id)
                attend_at = now + ATTEND_S
            if batch:
                self._writer.update(batch.id)
            if batch and batch.done and self._reading.done.is_set():
                self._show(self._moment(batch, running, rows))
                return batch
            # The farm is started by the first row that needs rendering: a catalog that is all done needs none.
            if batch and (batch.counts[JobState.QUEUED] or running) and now >= lock_at:
                self._see_to_farm()
                lock_at = now + LOCK_S
            self._show(self._moment(batch, running, rows))
            time.sleep(POLL_S)

    def close(self, grace_s: float | None = None, *, patient: bool = True) -> bool:
        """End the farm, if this session runs it, and let go of the home; clips in flight get `grace_s` to finish.

        False where that would have taken patience: then the process must end, which ends the farm.
        """
        if self._host and not self._host.close(grace_s, patient=patient):
            return False
        self._lock.release()
        return True

    def _read(self, manifest: Manifest, defaults: Defaults, name: str, source: str) -> None:
        reading = self._reading

        def counted() -> Any:
            row: IncomingRow
            for row in gather(manifest, self._farm.put_still):
                reading.rows_read += 1
                yield row

        try:
            reading.batch = self._farm.submit(
                counted(), defaults, name=name, source=source, attended=True, on_open=self._opened
            )
        except BaseException as error:
            reading.error = error
        finally:
            reading.done.set()

    def _opened(self, batch_id: str) -> None:
        self.batch_id = batch_id

    def _look(self) -> tuple[Batch | None, list[Job]]:
        if not self.batch_id:
            return None, []
        running = self._farm.desk.jobs(self._farm.owner, self.batch_id, state=JobState.RUNNING)
        return self._farm.batch(self.batch_id), running

    def _see_to_farm(self) -> None:
        if self._host or not self._lock.try_acquire():
            return
        self._host = _Host(self._make_farm())
        self._host.start()

    def _raise_faults(self) -> None:
        if self._reading.error:
            raise self._reading.error
        if self._host and (error := self._host.error):
            raise FarmStartError(
                f"the embedded farm did not start: {type(error).__name__}: {error}. "
                "`clipmill doctor` looks for what is missing."
            ) from error
        if self._host and (what := self._host.lost()):
            raise FarmLostError(
                f"the embedded farm broke: Ray's {what} was killed (out of memory? `dmesg` says). "
                "What is finished is kept."
            )

    def _moment(self, batch: Batch | None, running: list[Job], rows: int) -> Moment:
        if self._host:
            # Serve's last word on its start comes after the first clips.
            state = "running" if self._host.up.is_set() or running else "starting"
        else:
            state = "shared" if batch and not batch.done else "idle"
        return Moment(batch=batch, running=running, rows_read=self._reading.rows_read, rows=rows, farm=state)


def first_rows(manifest: Manifest, limit: int | None) -> Manifest:
    """The manifest with its first `limit` rows only."""
    return manifest if limit is None else replace(manifest, rows=manifest.rows[:limit])


def source_of(catalog: Path) -> str:
    """What makes two runs the same command: the catalog's real path."""
    return str(catalog.resolve())
