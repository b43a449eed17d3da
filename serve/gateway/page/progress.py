"""How far a batch is, how long it takes from here on, and why it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.explain.context import why
from cluster.explain.reasons import Rules
from cluster.farm import Farm
from cluster.fleet.fleet_file import cards_of_roster
from cluster.forecast.forecast import Wanted, forecast
from cluster.jobs.model import Batch, BatchCounts, HoldReason, Job, JobState
from cluster.results.contact_sheet import STATES, State
from cluster.store.lookup import NoSuchJobError
from cluster.store.measurements import load_times

#: Waiting rows that are read for an estimate; the others are taken to be like them.
SAMPLED = 400
#: Clips that an estimate places; of more it takes as many times as long.
PLACED = 4000
#: For how many seconds what was found out about a batch is shown.
KEPT_S = 5.0
#: Batches that something is kept of.
_MOST_KEPT = 500
_WAITING = (JobState.QUEUED, JobState.HELD)


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """What a list shows of a batch besides its name."""

    batch: Batch
    #: Done of the whole, from 0 to 1, rows that are being rendered by their steps.
    share: float
    #: Seconds until the last of its rows that may start is done, were the farm to do nothing else; None: not known.
    left_s: float | None = None
    #: Why nothing of it is being rendered; empty where something is, and where nothing is to be.
    why: str = ""

    @property
    def percent(self) -> int:
        """Whole percent; 100 only where every row has ended."""
        return 100 if self.batch.done else min(99, int(100 * self.share))

    @property
    def drafts(self) -> int:
        """How many drafts wait for somebody who looks at them."""
        return self.batch.held_by.get(HoldReason.REVIEW, 0)

    @property
    def states(self) -> list[tuple[State, int]]:
        """States in the order in which people look for them, with the rows in each."""
        return states_of(self.batch.counts)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    until: float
    at: float
    counts: BatchCounts
    left_s: float | None
    why: str


class ProgressReader:
    """Reads the progress of batches; what takes long to find out is kept for some seconds. Safe between threads."""

    def __init__(self, farm: Farm, rules: Rules, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._farm, self._rules, self._clock = farm, rules, clock
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def of(self, batch: Batch, running: list[Job] | None = None) -> BatchProgress:
        """The progress of a batch. `running`: its jobs that are being rendered; None: they are read."""
        if batch.done:
            return BatchProgress(batch=batch, share=1.0)
        if running is None:
            running = self._farm.batch_store.running(batch.owner, batch.id) if batch.counts[JobState.RUNNING] else []
        under_way = sum(job.step / job.steps for job in running if job.steps)
        share = (batch.counts.final + under_way) / max(batch.counts.total, 1)
        kept = self._fresh(batch, running)
        left_s = kept.left_s if kept.left_s is None else max(0.0, kept.left_s - (self._clock() - kept.at))
        return BatchProgress(batch=batch, share=share, left_s=left_s, why=kept.why)

    def _fresh(self, batch: Batch, running: list[Job]) -> _Kept:
        with self._lock:
            kept = self._kept.get(batch.id)
            if kept is not None and kept.counts == batch.counts and self._clock() < kept.until:
                return kept
            began = self._clock()
            left_s = _left_s(self._farm, batch, running)
            words = "" if running else self._why(batch)
            now = self._clock()
            # What took long is not done again at once, however often the counts change.
            kept = _Kept(until=now + KEPT_S + 20 * (now - began), at=now, counts=batch.counts, left_s=left_s, why=words)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[batch.id] = kept
            return kept

    def _why(self, batch: Batch) -> str:
        """Why the first of its rows that waits does; empty where none does."""
        store = self._farm.batch_store
        for state in _WAITING:
            if not batch.counts[state]:
                continue
            for job in store.jobs(batch.owner, batch.id, state=state, limit=1):
                try:
                    return why(store.database, batch.owner, job.id, self._rules).text
                except NoSuchJobError:
                    return ""
        return ""


def states_of(counts: BatchCounts) -> list[tuple[State, int]]:
    """States in the order in which people look for them, with the rows in each; those that have none are left out."""
    return [(state, counts[JobState(state)]) for state in STATES if counts[JobState(state)]]


def _left_s(farm: Farm, batch: Batch, running: list[Job]) -> float | None:
    """The forecast of what is queued and being rendered, on the cards there are; None where none would be done."""
    queued_rows = batch.counts[JobState.QUEUED]
    store = farm.batch_store
    queued = store.jobs(batch.owner, batch.id, state=JobState.QUEUED, limit=SAMPLED) if queued_rows else []
    fleet = cards_of_roster(store.cards())
    if not fleet or not (queued or running):
        return None
    placed = min(queued_rows, PLACED)
    rows = [*running, *(queued[place % len(queued)] for place in range(placed if queued else 0))]
    wanted = [Wanted(name=job.name, number=place, spec=job.spec) for place, job in enumerate(rows)]
    found = forecast(wanted, fleet, load_times(store.database), changes=False, interval=False)
    if not any(row.fits for row in found.rows):
        return None
    return found.finish_s * (len(running) + queued_rows) / max(len(rows), 1)
