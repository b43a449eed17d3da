"""Deletes checkpoints that nothing goes on from any more.

Only the dispatcher deletes, and only after the store has recorded that nothing goes on from the object: a renderer that
lost its lease cannot know whether its checkpoint is the one another goes on from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from cluster.dispatch.store_calls import StoreCalls
from cluster.jobs.model import CHECKPOINT_KEYS, checkpoints_of
from cluster.storage import Storage, StorageError
from cluster.store import DispatchStore, StaleEpochError

log = logging.getLogger("clipmill.dispatcher")

#: Jobs whose checkpoints are deleted in one sweep.
_AT_ONCE = 200
#: How long the checkpoints of the last clips may hold up a farm that closes, in seconds.
_LAST_SWEEP_S = 1.0


class CheckpointGc:
    """Deletes checkpoints in a thread of its own (or by `executor`), so that a slow storage holds up nothing."""

    def __init__(
        self,
        dispatch_store: DispatchStore,
        storage: Storage | None,
        store: StoreCalls,
        executor: Executor | None = None,
    ) -> None:
        """`executor` deletes; None: a thread of its own. Without a `storage` everything is left where it is."""
        self._dispatch_store = dispatch_store
        self._storage = storage
        self._store = store
        #: Jobs whose checkpoints are forgotten and not deleted yet, and the one that each named.
        self._owed: dict[str, str | None] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._is_ours = executor is None
        self._thread = executor or ThreadPoolExecutor(1, thread_name_prefix="storage")

    async def discard(self, *keys: str) -> None:
        """Delete single checkpoints soon, unless another job goes on from them too.

        One that stays behind goes with its job's others.
        """
        if self._storage is None or not keys:
            return
        for key in sorted(await self._store(self._dispatch_store.unwanted_checkpoints, keys)):
            self._thread.submit(_delete, self._storage.delete, key)

    def start_sweep(self, *, thorough: bool = False) -> bool:
        """Sweep in a task of its own. False where the last one is not done yet."""
        if self._sweeping is not None and not self._sweeping.done():
            return False
        self._sweeping = asyncio.create_task(self._sweep(thorough=thorough))
        return True

    async def _sweep(self, *, thorough: bool = False) -> None:
        """Delete all checkpoints of jobs that have ended; does not raise.

        What cannot be deleted is tried again. `thorough`: also those that were written but never recorded, found by
        listing the storage.
        """
        if self._storage is None:
            return
        loop = asyncio.get_running_loop()
        try:
            ended = set(await self._store(self._dispatch_store.checkpointed, _AT_ONCE))
            if thorough:
                there = await loop.run_in_executor(self._thread, self._storage.names_under, "checkpoints")
                ended |= await self._store(self._dispatch_store.ended_among, there)
            # Forgotten before they are deleted: while that takes its time, an equal job could go on from one of them.
            # Asked again of those that are owed: one may have been put back since then, and have new ones.
            ended |= self._owed.keys()
            forgotten = await self._store(self._dispatch_store.forget_checkpoints, sorted(ended)) if ended else {}
            self._owed = {job: key or self._owed.get(job) for job, key in forgotten.items()}
            for job_id in forgotten:
                delete = partial(_delete, self._delete_under, checkpoints_of(job_id))
                if not await loop.run_in_executor(self._thread, delete):
                    continue
                if (key := self._owed[job_id]) and not _is_of(job_id, key):
                    # Inherited from an equal job, which may have forgotten it before.
                    await self.discard(key)
                del self._owed[job_id]
        except StaleEpochError:
            pass
        except Exception:
            log.exception("old checkpoints could not be swept")

    def _delete_under(self, prefix: str) -> None:
        if self._storage is not None:
            # A folder may hold somebody else's things.
            self._storage.delete_under(prefix, CHECKPOINT_KEYS.fullmatch)

    async def close(self) -> None:
        """Delete what the last clips left, within a second, and nothing after that."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sweep(), _LAST_SWEEP_S)
        if self._is_ours:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _is_of(job_id: str, key: str) -> bool:
    return key.startswith(f"{checkpoints_of(job_id)}/")


def _delete(call: Callable[[str], None], key: str) -> bool:
    try:
        call(key)
    except StorageError as error:
        log.warning("%s", error)
        return False
    return True
