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
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from cluster.chunks import chunks
from cluster.jobs.model import CHECKPOINT_KEYS, MARKS_KEYS, Objects
from cluster.maintenance.keep import Cutoffs, Keep
from cluster.storage import Storage, StorageError, StoredObject
from cluster.store import Database
from cluster.store import retention as store

log = logging.getLogger("clipmill.retention")

#: Clips, jobs or stills looked at in one transaction.
_AT_ONCE = 500
#: What a killed process leaves of an object that it was writing.
_HALF = r"\.[^/]{1,40}\.[0-9a-f]{12}\.part"
_OURS = (
    re.compile(rf"clips/[^/]+/[^/]+/(video\.mp4|poster\.jpg|spritesheet\.jpg|provenance\.json|{_HALF})"),
    MARKS_KEYS,
    re.compile(rf"stills/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}}|{_HALF})"),
    re.compile(rf"cache/[^/]+/([0-9a-f]{{64}}|{_HALF})"),
    re.compile(rf"manifests/[0-9a-f]{{16}}/[0-9a-f]{{64}}/([A-Za-z0-9_@=+,~-][A-Za-z0-9._@=+,~-]*|{_HALF})"),
    re.compile(rf"probe/([0-9a-f]{{16}}|{_HALF})"),
    CHECKPOINT_KEYS,
)


def unreferenced(entries: Iterable[StoredObject], used_attempts: Collection[str], before: float) -> list[StoredObject]:
    """One job's objects `clips/<job>/<attempt>/…` whose attempt is not used, written before `before`."""
    found = []
    for entry in entries:
        parts = entry.key.split("/")
        if len(parts) > 3 and parts[2] not in used_attempts and entry.modified_at < before:
            found.append(entry)
    return found


def is_ours(key: str) -> bool:
    """Whether an object has a name that a farm gives: a folder or bucket may hold somebody else's things too."""
    return any(form.fullmatch(key) for form in _OURS)


def older(entries: Iterable[StoredObject], before: float) -> list[StoredObject]:
    """The `entries` that were written before the time `before`, in seconds since the epoch."""
    return [entry for entry in entries if entry.modified_at < before]


@dataclass(kw_only=True)
class Swept:
    """What a sweep deleted, or would have."""

    clips: int = 0
    checkpoints: int = 0
    stills: int = 0
    cached: int = 0
    unreferenced: int = 0
    #: Clips that are older than they are kept for, and spared because they are younger than the grace.
    spared_clips: int = 0
    #: Bytes of the deleted objects whose size is known from a listing: all but clips and checkpoints.
    freed_bytes: int = 0
    #: Objects of jobs and stills that this store does not know (another farm's, or of a store that is lost), and
    #: whatever no farm has written. They are left.
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
        """Sweep everything once. An object that cannot be deleted is counted and left to the next sweep."""
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
            self._sweep_probes,
            self._sweep_manifests,
        ):
            if self._stop.is_set():
                break
            try:
                step(cutoffs)
            except StorageError as error:
                # A listing failed: this part waits for the next sweep, the others need not.
                self._count_failure(error)
        return self._swept

    def _expire_clips(self, cutoffs: Cutoffs) -> None:
        if cutoffs.let_go is not None:
            self._expire(cutoffs.let_go, let_go=True)
        if cutoffs.outputs is None:
            return
        self._expire(cutoffs.outputs)
        if cutoffs.outputs_asked is not None and cutoffs.outputs_asked > cutoffs.outputs:
            old = sum(map(len, self._old_clips(cutoffs.outputs_asked)))
            # In a dry run those that go are still among them.
            self._swept.spared_clips = old - self._swept.clips if self._dry else old

    def _expire(self, before: int, *, let_go: bool = False) -> None:
        for page in self._old_clips(before, let_go=let_go):
            # The mark first: whoever asks meanwhile hears that it has expired, not that its objects are missing.
            gone = page if self._dry else store.expire(self._db, [clip.id for clip in page], before, let_go=let_go)
            self._swept.clips += len(gone)
            for key in _keys_of(clip.objects for clip in gone):
                self._delete(lambda key=key: self._storage.delete(key))  # type: ignore[misc]

    def _old_clips(self, before: int, *, let_go: bool = False) -> Iterator[list[store.OldClip]]:
        last: store.OldClip | None = None
        while not self._stop.is_set() and (page := store.old_clips(self._db, before, _AT_ONCE, last, let_go=let_go)):
            last = page[-1]
            yield page

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
            known = store.known_stills(self._db, stills)
            self._swept.foreign += len(stills) - len(known)
            stills = [name for name in stills if name in known]
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

    def _sweep_probes(self, cutoffs: Cutoffs) -> None:
        # Whoever probes deletes the object at once, unless it is killed in between.
        for entry in older(self._entries("probe"), cutoffs.unreferenced):
            self._swept.unreferenced += self._remove(entry)

    def _sweep_manifests(self, cutoffs: Cutoffs) -> None:
        # No batch refers to the manifest that it was read from: it is kept for as long as outputs are.
        if cutoffs.outputs is not None:
            for entry in older(self._entries("manifests"), cutoffs.outputs):
                self._swept.unreferenced += self._remove(entry)

    def _entries(self, prefix: str) -> list[StoredObject]:
        """What farms have written below `prefix`; the rest is counted and left."""
        try:
            listed = self._storage.entries(prefix)
            ours = [entry for entry in listed if is_ours(entry.key)]
            self._swept.foreign += len(listed) - len(ours)
            return ours
        except ValueError:
            # A name that no farm gives.
            self._swept.foreign += 1
            return []
        except StorageError as error:
            self._count_failure(error)
            return []

    def _remove(self, entry: StoredObject) -> int:
        removed = self._delete(lambda: self._storage.remove(entry))
        self._swept.freed_bytes += entry.size * removed
        return removed

    def _delete(self, delete: Callable[[], None]) -> int:
        if self._dry:
            return 1
        try:
            delete()
        except (StorageError, ValueError) as error:
            self._count_failure(error)
            return 0
        return 1

    def _count_failure(self, error: Exception) -> None:
        self._swept.failed += 1
        self._swept.errors.append(str(error))
        log.warning("%s", error)


def _keys_of(made: Iterable[Objects]) -> Iterator[str]:
    for objects in made:
        yield from (objects.video, objects.poster, objects.spritesheet, objects.provenance)
