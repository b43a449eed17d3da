"""Checkpoints that nothing goes on from any more, deleted from storage.

Only the dispatcher deletes, and only after the store has recorded that nothing goes on from the object: a renderer that
lost its lease cannot know whether its checkpoint is the one another goes on from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from cluster.jobs import checkpoints_of
from cluster.storage import Storage, StorageError
from cluster.store import Ledger, StaleEpochError

log = logging.getLogger("clipmill.dispatcher")
T = TypeVar("T")

#: Jobs whose checkpoints are deleted in one sweep.
_AT_ONCE = 200


class InStoreThread(Protocol):
    """Runs a call in the thread that owns the store."""

    async def __call__(self, call: Callable[..., T], *args: Any) -> T:
        """What `call` returns, or raises."""
        ...


class Leftovers:
    """Deletes in a thread of its own (or by `executor`), so that a slow storage holds up nothing."""

    def __init__(
        self, ledger: Ledger, storage: Storage | None, store: InStoreThread, executor: Executor | None = None
    ) -> None:
        """Without a `storage` everything is left where it is."""
        self._ledger = ledger
        self._storage = storage
        self._store = store
        #: Jobs whose checkpoints are forgotten and not deleted yet, and the one that each named.
        self._owed: dict[str, str | None] = {}
        self._is_ours = executor is None
        self._thread = executor or ThreadPoolExecutor(1, thread_name_prefix="storage")

    async def discard(self, *keys: str) -> None:
        """Delete single checkpoints soon, unless another job goes on from them too.

        One that stays behind goes with its job's others.
        """
        if self._storage is None or not keys:
            return
        for key in sorted(await self._store(self._ledger.unwanted_checkpoints, keys)):
            self._thread.submit(_delete, self._storage.delete, key)

    async def sweep(self, *, thorough: bool = False) -> None:
        """Delete all checkpoints of jobs that have ended; does not raise.

        What cannot be deleted is tried again. Thorough: also those that were written but never recorded, found by
        listing the storage.
        """
        if self._storage is None:
            return
        loop = asyncio.get_running_loop()
        try:
            ended = set(await self._store(self._ledger.checkpointed, _AT_ONCE))
            if thorough:
                there = await loop.run_in_executor(self._thread, self._storage.names_under, "checkpoints")
                ended |= await self._store(self._ledger.ended_among, there)
            # Forgotten before they are deleted: while that takes its time, an equal job could go on from one of them.
            # Asked again of those that are owed: one may have been put back since then, and have new ones.
            ended |= self._owed.keys()
            forgotten = await self._store(self._ledger.forget_checkpoints, sorted(ended)) if ended else {}
            self._owed = {job: key or self._owed.get(job) for job, key in forgotten.items()}
            for job_id in forgotten:
                delete = partial(_delete, self._storage.delete_under, checkpoints_of(job_id))
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

    def close(self) -> None:
        """Delete nothing more."""
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
