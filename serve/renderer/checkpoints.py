"""Checkpoints of the clip on the card: taken between two steps, written beside the steps that follow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cluster.dispatch.protocol import Assignment, CheckpointFailed, CheckpointSaved, Event
from cluster.jobs.model import StoredCheckpoint, checkpoint_key
from cluster.storage import Storage
from pipeline.models.model import Snapshot

log = logging.getLogger("clipmill.renderer")


@dataclass(frozen=True, kw_only=True)
class CheckpointEvery:
    """A clip is saved after so many steps or seconds, whichever comes first."""

    steps: int = 10
    seconds: float = 30.0


class CheckpointWriter:
    """Puts checkpoints of one attempt into storage; one that cannot be taken or written never fails the clip.

    Its methods are called by the thread that renders; `emit` is called by that and by the thread that writes.
    """

    def __init__(
        self,
        storage: Storage,
        assignment: Assignment,
        emit: Callable[[Event], None],
        every: CheckpointEvery,
        clock: Callable[[], float],
        observe: Callable[[int], None] = lambda _nbytes: None,
        on_fault: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """`observe` is told the bytes of each checkpoint that was written, `on_fault` why one was not."""
        self._observe, self._on_fault = observe, on_fault
        self._storage = storage
        self._assignment = assignment
        self._emit = emit
        self._every = every
        self._clock = clock
        #: The newest checkpoint that is in storage.
        self.newest: StoredCheckpoint | None = None
        #: Why the last checkpoint that was tried is not in storage; empty where it is.
        self.fault = ""
        self._writing: threading.Thread | None = None
        self._last_step = assignment.resume.step if assignment.resume else 0
        self._last_at: float | None = None
        #: The newest snapshot, whether it is in storage or not, and the steps done by then.
        self.snapshot: tuple[int, bytes] | None = None

    def begin_anew(self) -> None:
        """The clip starts at step 0 after all."""
        self._last_step = 0
        self.snapshot = None

    def after_step(self, step: int, steps: int, snapshot: Snapshot | None) -> None:
        """Save the clip if it is time to. Never waits for storage: while one is being written, none is taken."""
        if snapshot is None:
            return
        if step >= steps:
            # For a decode that fails; what is stored only once it does costs a copy and no writing.
            self._take(step, snapshot)
            return
        now = self._clock()
        if self._last_at is None:
            self._last_at = now
        due = step - self._last_step >= self._every.steps or now - self._last_at >= self._every.seconds
        if not due or (self._writing is not None and self._writing.is_alive()):
            return
        self._last_step, self._last_at = step, now
        data = self._take(step, snapshot)
        if data is not None:
            self._writing = threading.Thread(target=self._write, args=(step, data), name="checkpoint", daemon=True)
            self._writing.start()

    def save_now(self, step: int, snapshot: Snapshot) -> None:
        """Save the clip as it stands, and return when it is in storage or cannot be."""
        self.close()
        if self.newest is None or self.newest.step != step:
            data = self._take(step, snapshot)
            if data is not None:
                self._write(step, data)

    def save_snapshot(self) -> None:
        """Save the newest snapshot that was taken, and return when it is in storage or cannot be."""
        self.close()
        if self.snapshot is not None and (self.newest is None or self.newest.step < self.snapshot[0]):
            self._write(*self.snapshot)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, if one is."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _take(self, step: int, snapshot: Snapshot) -> bytes | None:
        try:
            data = snapshot()
        except Exception as error:
            self._failed(step, error)
            return None
        self.snapshot = (step, data)
        return data

    def _write(self, step: int, data: bytes) -> None:
        key = checkpoint_key(self._assignment.job_id, self._assignment.attempt_id, step)
        try:
            self._storage.put_bytes(key, data)
        except Exception as error:
            self._on_fault(error)
            self._failed(step, error)
            return
        self.newest, self.fault = StoredCheckpoint(key, step), ""
        self._observe(len(data))
        self._emit(CheckpointSaved(self.newest))

    def _failed(self, step: int, error: Exception) -> None:
        self.fault = f"{type(error).__name__}: {error}"
        log.warning("attempt %s has no checkpoint at step %d: %s", self._assignment.attempt_id, step, self.fault)
        self._emit(CheckpointFailed(step=step, detail=self.fault))
