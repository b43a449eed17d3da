"""Whether this renderer can write to storage, as its own writes and, after one that failed, probes say."""

from __future__ import annotations

import logging
import threading

from cluster.backoff import doubling
from cluster.storage import Storage, StorageError, UnwritableError

log = logging.getLogger("clipmill.renderer")

#: Pauses between two tries, in seconds: the first, and the longest. Each is twice the one before.
PAUSES_S = (1.0, 30.0)


class StorageHealth:
    """Remembers why storage could not be written, and tries again in a thread until it can. For any thread."""

    def __init__(self, storage: Storage, pauses_s: tuple[float, float] = PAUSES_S) -> None:
        self._storage, self._pauses_s = storage, pauses_s
        #: Why storage cannot be written, in words; empty while it can, as far as is known.
        self.fault = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._probing: threading.Thread | None = None

    def failed(self, error: Exception) -> None:
        """A write failed: where storage is to blame, it is tried until it can be written."""
        if not isinstance(error, UnwritableError):
            return
        with self._lock:
            self.fault = error.problem.message
            if self._probing is None or not self._probing.is_alive():
                log.warning("storage cannot be written: %s", error)
                self._probing = threading.Thread(target=self._probe, name="probe", daemon=True)
                self._probing.start()

    def close(self) -> None:
        """Try no more."""
        self._closed.set()

    def _probe(self) -> None:
        for pause_s in doubling(*self._pauses_s):
            if self._closed.wait(pause_s):
                return
            try:
                self._storage.probe()
            except StorageError as error:
                self.fault = error.problem.message
                continue
            with self._lock:
                log.warning("storage can be written again")
                self.fault, self._probing = "", None
            return
