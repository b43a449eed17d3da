"""Deletes batches that are over: their rows, and of their clips what no other batch shows.

Objects go before the rows that know of them, some rows at a time: whatever breaks a deletion off, the batch is still
there with what is left of it, and deleting it again goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cluster.jobs.model import checkpoints_of
from cluster.maintenance.retention import is_ours
from cluster.storage import Storage, StoredObject
from cluster.store import Database
from cluster.store import deletion as store
from cluster.store.retention import attempts_in_use

log = logging.getLogger("clipmill.deletion")


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What went with a batch, or would go."""

    batch_id: str
    #: Whether it is gone; False: this is only what would go.
    deleted: bool
    rows: int
    #: Clips that no other batch showed.
    clips: int
    #: Clips that rows of other batches show too: they stay.
    shared: int
    #: Bytes that were freed in storage; before it is deleted those of the videos alone.
    freed_bytes: int


def plan(database: Database, owner: str, batch_id: str) -> Deletion:
    """What would go with a batch; nothing does. Raises `NoSuchBatchError`, and `RefusedError` where it is not over."""
    found = store.plan_deletion(database, owner, batch_id)
    return Deletion(
        batch_id=batch_id,
        deleted=False,
        rows=found.rows,
        clips=found.clips,
        shared=found.shared,
        freed_bytes=found.video_bytes,
    )


def delete_batch(database: Database, storage: Storage, owner: str, batch_id: str) -> Deletion:
    """Delete a batch that is over, beside a farm that runs.

    Results that were written to somebody's folder are not touched, nor stills: those that no row is made from any more
    go with a later sweep. Raises `NoSuchBatchError`, `RefusedError` where it is not over, and `StorageError`; called
    again it goes on where it broke off.
    """
    found = store.plan_deletion(database, owner, batch_id)
    store.begin_deletion(database, owner, batch_id)
    freed = 0
    while (rows := store.next_rows(database, owner, batch_id)) is not None:
        freed += _delete_objects(database, storage, rows)
        store.drop_rows(database, owner, batch_id, rows)
    store.drop_batch(database, owner, batch_id)
    log.info("batch %s of %s was deleted: %d rows, %d bytes", batch_id, owner, found.rows, freed)
    return Deletion(
        batch_id=batch_id, deleted=True, rows=found.rows, clips=found.clips, shared=found.shared, freed_bytes=freed
    )


def _delete_objects(database: Database, storage: Storage, rows: store.DyingRows) -> int:
    """Bytes of what was deleted."""
    # What other batches show of these jobs' attempts.
    used = attempts_in_use(database, rows.attempted)
    dying = {
        entry for entry in _written_by(storage, rows.attempted) if entry.key.split("/")[2] not in used[_job(entry)]
    }
    for made in rows.objects:
        # Under the job that made them, which may be gone with another batch.
        dying.update(entry for entry in storage.entries(made.video.rpartition("/")[0]) if is_ours(entry.key))
    kept = [entry for job_id in rows.attempted for entry in storage.entries(checkpoints_of(job_id))]
    wanted = store.wanted_checkpoints(database, {entry.key for entry in kept})
    dying.update(entry for entry in kept if is_ours(entry.key) and entry.key not in wanted)
    for entry in sorted(dying):
        storage.remove(entry)
    return sum(entry.size for entry in dying)


def _written_by(storage: Storage, job_ids: Collection[str]) -> Iterator[StoredObject]:
    for job_id in job_ids:
        for entry in storage.entries(f"clips/{job_id}"):
            if is_ours(entry.key):
                yield entry


def _job(entry: StoredObject) -> str:
    return entry.key.split("/")[1]
