"""What is kept for how long, and the sweep of what is not: outputs, stills, checkpoints, cached encodings, leftovers.

Only objects go. Rows of batches, jobs and attempts stay, so that every count, every story and every `why` stays true; a
clip whose objects went says so (`Clip.expired_at`). What is rendered again takes its place.

An object counts as *unreferenced* where no clip of the store names its attempt and that attempt does not run any more.
It goes once it is older than the longest publication can last (`Keep.grace_s`). Nothing that was published can be among
them: the fenced completion that names the objects is the publication, so what was written and never named was never
published, and there is nothing to adopt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from cluster.chunks import chunks
from cluster.jobs import Objects
from cluster.storage import Entry, Storage, StorageError
from cluster.store import Database
from cluster.store import retention as store

log = logging.getLogger("clipmill.retention")

_DAY_S = 86_400
#: Clips, jobs or stills looked at in one transaction.
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Keep:
    """For how many days things are kept; None: for ever."""

    #: Video, poster, spritesheet and provenance of a clip, and its still: since any job last asked for it.
    outputs_days: float | None = None
    #: Stills of jobs that failed or were cancelled. Without them a retry needs the still to be handed in again.
    failed_days: float | None = None
    #: Checkpoints of jobs that wait or are held: since they last ran. They then begin anew.
    checkpoints_days: float | None = None
    #: Encodings and drafts that clips share: since they were written. They are made again where they are needed.
    cache_days: float | None = None
    #: Seconds that an unreferenced object is left alone: longer than any publication, and than any upload of stills.
    grace_s: float = _DAY_S

    def cutoffs(self, now: float) -> Cutoffs:
        """The same as times: what is older goes. Never younger than the grace."""

        def before(days: float | None) -> int | None:
            return None if days is None else int(now - max(days * _DAY_S, self.grace_s))

        return Cutoffs(
            outputs=before(self.outputs_days),
            failed=before(self.failed_days),
            checkpoints=None if self.checkpoints_days is None else int(now - self.checkpoints_days * _DAY_S),
            cache=None if self.cache_days is None else int(now - self.cache_days * _DAY_S),
            unreferenced=int(now - self.grace_s),
        )


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """What was last used before these times goes (seconds since the epoch); None: nothing does."""

    outputs: int | None
    failed: int | None
    checkpoints: int | None
    cache: int | None
    unreferenced: int


def unreferenced(entries: Iterable[Entry], used_attempts: Collection[str], before: float) -> list[Entry]:
    """Of objects `clips/<job>/<attempt>/…` of one job: those of attempts that are not used, written before `before`."""
    found = []
    for entry in entries:
        parts = entry.key.split("/")
        if len(parts) > 3 and parts[2] not in used_attempts and entry.modified_at < before:
            found.append(entry)
    return found


def older(entries: Iterable[Entry], before: float) -> list[Entry]:
    """Objects that were written before that time."""
    return [entry for entry in entries if entry.modified_at < before]


@dataclass(kw_only=True)
class Swept:
    """What a sweep deleted, or would have."""

    clips: int = 0
    checkpoints: int = 0
    stills: int = 0
    cached: int = 0
    unreferenced: int = 0
    #: Bytes of what was listed: all but clips and checkpoints.
    freed_bytes: int = 0
    #: Objects of jobs that this store does not know: another farm's, or of a store that is lost. They are left.
    foreign: int = 0
    #: Objects that could not be deleted; the next sweep tries again.
    failed: int = 0
    errors: list[str] = field(default_factory=list)


class Sweeper:
    """One sweep of a store and its storage. Two at once, or one that is killed, do no harm."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        keep: Keep,
        *,
        dry_run: bool = False,
        stop: threading.Event | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`stop`: set to end the sweep soon. `clock`: seconds since the epoch; None: the store's own."""
        self._db = database
        self._storage = storage
        self._keep = keep
        self._dry = dry_run
        self._stop = stop or threading.Event()
        self._clock = clock
        self._swept = Swept()

    def run(self) -> Swept:
        """Sweep everything once. An object that cannot be deleted is told of and left to the next sweep."""
        self._swept = Swept()
        with self._db.read() as c:
            now = self._clock() if self._clock else self._db.now(c)
        cutoffs = self._keep.cutoffs(now)
        for step in (
            self._expire_clips,
            self._drop_checkpoints,
            self._sweep_clips,
            self._sweep_stills,
            self._sweep_cache,
        ):
            if self._stop.is_set():
                break
            try:
                step(cutoffs)
            except StorageError as error:
                # A listing failed: this part waits for the next sweep, the others need not.
                self._tell(error)
        return self._swept

    def _expire_clips(self, cutoffs: Cutoffs) -> None:
        if cutoffs.outputs is None:
            return
        last: store.OldClip | None = None
        while not self._stop.is_set():
            page = store.old_clips(self._db, cutoffs.outputs, _AT_ONCE, last)
            if not page:
                return
            last = page[-1]
            # The mark first: whoever asks meanwhile is told that it has expired, not that its objects are missing.
            gone = page if self._dry else store.expire(self._db, [clip.id for clip in page], cutoffs.outputs)
            self._swept.clips += len(gone)
            for key in _keys_of(clip.objects for clip in gone):
                self._delete(lambda key=key: self._storage.delete(key))  # type: ignore[misc]

    def _drop_checkpoints(self, cutoffs: Cutoffs) -> None:
        if cutoffs.checkpoints is None:
            return
        old = store.old_checkpoints(self._db, cutoffs.checkpoints)
        for some in chunks(old, _AT_ONCE):
            gone = some if self._dry else store.drop_checkpoints(self._db, some, cutoffs.checkpoints)
            for one in gone:
                self._swept.checkpoints += self._delete(lambda key=one.key: self._storage.delete(key))  # type: ignore[misc]

    def _sweep_clips(self, cutoffs: Cutoffs) -> None:
        for some in chunks(self._storage.names_under("clips"), _AT_ONCE):
            # The storage first, then the store: what is published in between is seen as used.
            listed = {job_id: self._entries(f"clips/{job_id}") for job_id in some if not self._stop.is_set()}
            known = store.known_jobs(self._db, listed)
            used = store.attempts_in_use(self._db, known)
            for job_id, entries in listed.items():
                if job_id not in known:
                    self._swept.foreign += len(entries)
                    continue
                for entry in unreferenced(entries, used[job_id], cutoffs.unreferenced):
                    self._swept.unreferenced += self._remove(entry)

    def _sweep_stills(self, cutoffs: Cutoffs) -> None:
        for folder in self._storage.names_under("stills"):
            if self._stop.is_set():
                return
            old = {e.key.rsplit("/", 1)[-1]: e for e in older(self._entries(f"stills/{folder}"), cutoffs.unreferenced)}
            stills = [name for name in old if not name.startswith(".")]
            unwanted = store.unwanted_stills(
                self._db,
                stills,
                completed_before=cutoffs.outputs,
                failed_before=cutoffs.failed,
                seen=cutoffs.unreferenced,
            )
            if not self._dry:
                unwanted = store.forget_stills(self._db, unwanted, cutoffs.unreferenced)
            half_written = [name for name in old if name.startswith(".")]
            for name in [*unwanted, *half_written]:
                self._swept.stills += self._remove(old[name])

    def _sweep_cache(self, cutoffs: Cutoffs) -> None:
        if cutoffs.cache is None:
            return
        for kind in self._storage.names_under("cache"):
            for entry in older(self._entries(f"cache/{kind}"), cutoffs.cache):
                if self._stop.is_set():
                    return
                self._swept.cached += self._remove(entry)

    def _entries(self, prefix: str) -> list[Entry]:
        try:
            return self._storage.entries(prefix)
        except (StorageError, ValueError) as error:
            self._tell(error)
            return []

    def _remove(self, entry: Entry) -> int:
        removed = self._delete(lambda: self._storage.remove(entry))
        self._swept.freed_bytes += entry.size * removed
        return removed

    def _delete(self, delete: Callable[[], None]) -> int:
        if self._dry:
            return 1
        try:
            delete()
        except (StorageError, ValueError) as error:
            self._tell(error)
            return 0
        return 1

    def _tell(self, error: Exception) -> None:
        self._swept.failed += 1
        self._swept.errors.append(str(error))
        log.warning("%s", error)


def _keys_of(made: Iterable[Objects]) -> Iterator[str]:
    for objects in made:
        yield from (objects.video, objects.poster, objects.spritesheet, objects.provenance)
