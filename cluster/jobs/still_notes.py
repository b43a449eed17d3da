"""What is noted of stills that were handed in: found out once a picture, and remembered by its SHA-256."""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict

from cluster.storage import Storage, StorageShelf
from pipeline.clips.clip import STILLS_VERSION
from pipeline.clips.inspection.judge import JUDGE_VERSION
from pipeline.clips.still_check import still_notes
from pipeline.notes import Note, as_json, notes_from

#: Stills whose notes are kept in memory, beside storage.
_KEPT = 10_000
#: Storages of one process.
_STORAGES = 64
#: Notes that another version made of the same bytes are made anew.
_KIND = f"still-notes-{STILLS_VERSION}.{JUDGE_VERSION}"


class StillNotes:
    """Notes on the stills of one storage, kept under `cache/`; where they are gone they are made anew, or missing."""

    def __init__(self, storage: Storage) -> None:
        self._shelf = StorageShelf(storage)
        self._kept: OrderedDict[str, tuple[Note, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    @functools.lru_cache(maxsize=_STORAGES)
    def shared(url: str) -> StillNotes:
        """The one of this process for the storage at `url`."""
        return StillNotes(Storage(url))

    def learn(self, sha256: str, data: bytes, size: tuple[int, int]) -> tuple[Note, ...]:
        """What is noted of the still in `data`, of `size` as `check_still` has it; looked at only the first time."""
        found = self._remembered(sha256)
        if found is None:
            found = still_notes(data, size)
            self._shelf.put(f"{_KIND}/{sha256}", json.dumps(as_json(found)).encode())
            self._keep(sha256, found)
        return found

    def of(self, sha256: str) -> tuple[Note, ...]:
        """What is noted of the still with this SHA-256; () where nobody has looked at it."""
        return self._remembered(sha256) or ()

    def _remembered(self, sha256: str) -> tuple[Note, ...] | None:
        with self._lock:
            if (kept := self._kept.get(sha256)) is not None:
                self._kept.move_to_end(sha256)
                return kept
        data = self._shelf.get(f"{_KIND}/{sha256}")
        if data is None:
            return None
        try:
            found = notes_from(json.loads(data))
        except ValueError:
            return None
        self._keep(sha256, found)
        return found

    def _keep(self, sha256: str, notes: tuple[Note, ...]) -> None:
        with self._lock:
            self._kept[sha256] = notes
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
