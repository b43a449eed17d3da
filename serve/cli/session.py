"""One `clipmill render`: hand the catalog in, see that a farm runs on this home, wait, write the results."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import FIRST_ROWS, IncomingRow, gather
from cluster.catalog.manifest import Manifest
from cluster.farm import Farm
from cluster.fleet.cards import Beat, card_faults
from cluster.jobs.model import Batch, HoldReason, Job, JobState
from cluster.remote.stills import RemoteStills
from pipeline.memory.footprint import leanest
from serve.cli.results import ResultsWriter
from serve.embedded import FarmLock
from serve.niceness import give_way

#: How often the store is asked until the first clip is there and then, how often what is done is looked for where no
#: count has changed, and how often the farm's lock is tried, in seconds.
POLL_S, CALM_POLL_S = 0.2, 0.4
FOLLOW_S = 1.0
LOCK_S = 1.0
ATTEND_S = 4.0
#: How long no card may be able to take what waits, until that is the end, in seconds; where a fault may be over by
#: itself, long enough for its renderer to have tried again a few times.
SETTLE_S = 3.0
PASSES_S = 300.0
_SOME = 200
#: On so many cores a farm that starts needs all of them: rows behind the first ones are read once a clip is done, or
#: after so many seconds.
FEW_CORES = 4
READ_ON_S = 20.0
#: How long a farm may take to close while it is still starting, or after it broke, in seconds.
CLOSE_S = 2.0


class RunningFarm(Protocol):
    """A farm this process can run."""

    @property
    def renderers(self) -> int:
        """How many renderers it has, one a card."""
        ...

    def start(self) -> None:
        """Start the farm; returns once its renderers answer."""
        ...

    def close(self, grace_s: float | None = None) -> None:
        """End the farm; clips on cards get `grace_s` seconds to finish (None: the farm's own drain time)."""
        ...

    def lost(self) -> str | None:
        """Name of the part that ended by itself, so that nothing renders any more; None while all is well."""
        ...


class FarmStartError(RuntimeError):
    """The embedded farm did not come up."""


class NoUsableCardError(RuntimeError):
    """No card of the farm can ever take what still waits: those that could have faults."""


class FarmLostError(RuntimeError):
    """The embedded farm came up, or nearly, and broke: a daemon of Ray was killed."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The state of a render at one moment, for the display."""

    batch: Batch | None
    running: list[Job]
    rows_read: int
    rows: int
    #: Cards heard of, and why those that cannot be used cannot, by card.
    cards: int
    faults: Mapping[str, str]
    #: State of the farm: `starting`, `running`, `shared` (another process runs it) or `idle`.
    farm: str


@dataclass
class _Reading:
    """The thread that hands the catalog in."""

    batch: Batch | None = None
    rows_read: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    #: Set once rows behind the first ones may be read.
    on: threading.Event = field(default_factory=threading.Event)


class FarmHost(threading.Thread):
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
        """The thread: start the farm, and close it when told to."""
        try:
            self._farm.start()
            self.up.set()
            self._closing.wait()
        except BaseException as error:
            self.error = error
        finally:
            self._farm.close(self._grace_s)

    def lost(self) -> str | None:
        """Name of the part of the farm that ended by itself; None while all is well, or once it is closing."""
        return None if self._closing.is_set() or self.error else self._farm.lost()

    @property
    def renderers(self) -> int:
        """How many renderers the farm has; 0 while it is not up."""
        return self._farm.renderers if self.up.is_set() else 0

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


def waits_for_people(batch: Batch) -> bool:
    """Whether nothing of a batch is left but rows in review, and rows that wait for those."""
    waiting = batch.held_by.get(HoldReason.REVIEW, 0)
    held = waiting + batch.held_by.get(HoldReason.AFTER, 0)
    moving = batch.counts[JobState.QUEUED] + batch.counts[JobState.RUNNING]
    return waiting > 0 and not moving and held == batch.counts[JobState.HELD]


class RenderSession:
    """Renders one batch to its end, running the farm of the home whenever no other process does."""

    def __init__(
        self,
        farm: Farm,
        lock: FarmLock,
        make_farm: Callable[[], RunningFarm],
        writer: ResultsWriter,
        show: Callable[[Moment], None],
        facts: Mapping[str, Any] | None = None,
        remote: RemoteStills | None = None,
    ) -> None:
        """`facts` on the farm that this session may run, noted in the home's lock for other commands.

        `remote` reads the pictures of rows that name URLs.
        """
        self._remote = remote
        self._facts = facts or {}
        self._farm = farm
        self._lock = lock
        self._make_farm = make_farm
        self._writer = writer
        self._show = show
        self._host: FarmHost | None = None
        #: Whether another process held the home's lock when this one last tried it.
        self._shared = False
        self._reading = _Reading()
        self._cards: list[Beat] = []
        #: Renderers of an earlier farm, which stay on the roster for a moment.
        self._earlier: frozenset[str] = frozenset()
        #: Since when no card can take what waits, by `time.monotonic`; None: one may.
        self._stuck_since: float | None = None
        self.batch_id = ""

    def run(
        self,
        manifest: Manifest,
        defaults: Defaults,
        *,
        name: str,
        source: str,
        cards: str = "",
        on_read: Callable[[str], None] = lambda _batch_id: None,
    ) -> Batch:
        """Render the manifest; returns the finished batch. Clips and page are written as clips complete.

        `cards` in words, for the page. `on_read` is called with the batch's id once, when all rows are handed in.
        Raises `FarmStartError`, `FarmLostError`, `NoUsableCardError`, and what the store raises.
        """
        if manifest.good and not self._farm.batch_store.has_source(self._farm.owner, source):
            # The first time there is something to render, as good as certainly: the farm starts while rows are read.
            self._see_to_farm()
        threading.Thread(target=self._read, args=(manifest, defaults, name, source), name="ingest", daemon=True).start()
        lock_at = attend_at = 0.0
        rows, told = len(manifest.rows), False
        followed, follow_at = None, 0.0
        while True:
            now = time.monotonic()
            self._raise_faults()
            batch, running = self._look()
            if self._host is None or self._host.error or (batch and batch.counts.final):
                self._reading.on.set()
            if batch and now >= attend_at:
                self._farm.attend(batch.id)
                attend_at = now + ATTEND_S
            read = self._reading.done.is_set()
            if batch and read and not told:
                told = True
                on_read(batch.id)
            if batch and read and (batch.done or waits_for_people(batch)):
                self._writer.update(batch.id)
                self._show(self._moment(batch, running, rows))
                return batch
            if batch and (batch.counts != followed or now >= follow_at):
                self._writer.follow(batch.id, cards)
                followed, follow_at = batch.counts, now + FOLLOW_S
            # A catalog that was rendered before may need no farm: the first row that does starts it.
            if batch and (batch.counts[JobState.QUEUED] or running) and now >= lock_at:
                self._see_to_farm()
                self._see_to_cards(batch, running, now)
                lock_at = now + LOCK_S
            self._show(self._moment(batch, running, rows))
            time.sleep(POLL_S if not (batch and batch.counts[JobState.COMPLETED]) else CALM_POLL_S)

    def close(self, grace_s: float | None = None, *, patient: bool = True) -> bool:
        """End the farm, if this session runs it, and let go of the home; running clips get `grace_s` to finish.

        False where that would have taken patience: then the process must end, which ends the farm.
        """
        if self._host and not self._host.close(grace_s, patient=patient):
            return False
        self._lock.release()
        return True

    def _read(self, manifest: Manifest, defaults: Defaults, name: str, source: str) -> None:
        reading = self._reading
        # It is far ahead of the cards in any case.
        give_way()

        def counted() -> Any:
            row: IncomingRow
            for row in gather(manifest, self._farm.put_still, self._remote):
                if reading.rows_read >= FIRST_ROWS and (os.cpu_count() or 1) <= FEW_CORES:
                    reading.on.wait(READ_ON_S)
                    reading.on.set()
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
        running = self._farm.batch_store.jobs(self._farm.owner, self.batch_id, state=JobState.RUNNING)
        return self._farm.batch(self.batch_id), running

    def _see_to_farm(self) -> None:
        if self._host:
            return
        self._shared = not self._lock.try_acquire()
        if self._shared:
            return
        self._lock.note(**self._facts)
        self._earlier = frozenset(beat.renderer for beat in self._farm.batch_store.cards())
        self._host = FarmHost(self._make_farm())
        self._host.start()

    def _see_to_cards(self, batch: Batch, running: list[Job], now: float) -> None:
        """Look at the cards. Raises `NoUsableCardError` where none can take what waits, now or later."""
        cards = self._cards = [b for b in self._farm.batch_store.cards() if b.renderer not in self._earlier]
        faults = [beat for beat in cards if beat.fault]
        # Another terminal's farm may get cards that this one knows nothing of.
        complete = self._host is not None and 0 < self._host.renderers <= len(cards)
        if not (faults and complete and self._reading.done.is_set() and not running and self._is_stuck(batch, cards)):
            self._stuck_since = None
            return
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        if now - self._stuck_since < (PASSES_S if any(beat.fault_passes for beat in faults) else SETTLE_S):
            return
        first, more = faults[0], len(faults) - 1
        others = f" (and {more} more cards, see `clipmill cards`)" if more else ""
        raise NoUsableCardError(
            f"no card can take {_rows(batch.counts[JobState.QUEUED])}: {first.card} cannot be used: "
            f"{first.fault}{'' if first.fault.endswith('.') else '.'}{others} Rows with `--model camera` need no GPU. "
            "What is finished is kept."
        )

    def _is_stuck(self, batch: Batch, cards: list[Beat]) -> bool:
        """Whether every waiting row needs more than any card has that can be used, in its leanest layout too."""
        most = max((beat.usable_bytes for beat in cards), default=0)
        after, seen = -1, False
        # A few at a time: the first that fits tells.
        while some := self._farm.batch_store.jobs(
            self._farm.owner, batch.id, state=JobState.QUEUED, after_number=after, limit=_SOME
        ):
            if not all(job.spec is not None and leanest(job.spec)[1].peak_bytes > most for job in some):
                return False
            after, seen = some[-1].number, True
        return seen

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
                f"the embedded farm broke: Ray's {what}. `clipmill logs` has its last words. What is finished is kept."
            )

    def _moment(self, batch: Batch | None, running: list[Job], rows: int) -> Moment:
        if self._host:
            # Serve's last word on its start comes after the first clips.
            state = "running" if self._host.up.is_set() or running else "starting"
        else:
            state = "shared" if self._shared and batch and not batch.done else "idle"
        return Moment(
            batch=batch,
            running=running,
            rows_read=self._reading.rows_read,
            rows=rows,
            cards=len(self._cards),
            faults=card_faults(self._cards),
            farm=state,
        )


def _rows(count: int) -> str:
    return "the row that waits" if count == 1 else f"the {count} rows that wait"


def source_of(catalog: Path) -> str:
    """The catalog's real path, by which two runs of one command are known as such."""
    return str(catalog.resolve())
