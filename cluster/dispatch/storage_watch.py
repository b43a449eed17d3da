"""Whether storage can be written: asked when somebody doubts it, and again until it can."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from cluster.backoff import doubling
from cluster.fleet.cards import Beat
from cluster.storage import Storage, StorageError

log = logging.getLogger("clipmill.dispatcher")

#: Pauses between two tries of a storage that cannot be written, in seconds: the first, and the longest. Each is twice
#: the one before.
PAUSES_S = (1.0, 60.0)
#: A storage that was found writable is not asked again for so long, whoever doubts it by a heartbeat, in seconds.
_TRUST_S = 30.0
#: A probe that takes longer says that storage does not answer, in seconds.
_ANSWER_S = 30.0


class StorageWatch:
    """Writes and deletes a probe object, by `executor` or a thread of its own, while storage is in doubt."""

    def __init__(
        self,
        storage: Storage | None,
        clock: Callable[[], float],
        *,
        executor: Executor | None = None,
        on_writable: Callable[[], None] = lambda: None,
        pauses_s: tuple[float, float] = PAUSES_S,
    ) -> None:
        """Nothing is ever in doubt where there is no `storage`. `on_writable`: it can be written again."""
        self._storage, self._clock, self._on_writable, self._pauses_s = storage, clock, on_writable, pauses_s
        #: Why storage cannot be written, in words; empty while it can, as far as is known.
        self.fault = ""
        self._is_ours = executor is None
        self._thread = executor or ThreadPoolExecutor(1, thread_name_prefix="probe")
        self._first: asyncio.Task[bool] | None = None
        self._until_writable: asyncio.Task[None] | None = None
        self._fine_at = float("-inf")

    def doubt(self, why: str = "") -> None:
        """Somebody could not write: find out soon whether anybody can. Many who say so are asked about once."""
        if self._storage is None or self.fault or self._clock() - self._fine_at < _TRUST_S:
            return
        if self._first is None or self._first.done():
            if why:
                log.warning("storage is in doubt: %s", why)
            self._first = asyncio.create_task(self._is_writable())

    async def confirms(self) -> bool:
        """Whether storage can be written by nobody now: asked at once, unless that is known. Does not raise."""
        if self._storage is None:
            return False
        if not self.fault:
            if self._first is None or self._first.done():
                self._first = asyncio.create_task(self._is_writable())
            await asyncio.shield(self._first)
        return bool(self.fault)

    def stamped(self, beats: list[Beat]) -> list[Beat]:
        """Beats as they are written for those who ask: with what is wrong with storage, as long as it is."""
        return [beat.model_copy(update={"storage_fault": self.fault}) for beat in beats] if self.fault else beats

    def close(self) -> None:
        """Ask no more."""
        for task in (self._first, self._until_writable):
            if task is not None:
                task.cancel()
        if self._is_ours:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _is_writable(self) -> bool:
        assert self._storage is not None
        probe = asyncio.get_running_loop().run_in_executor(self._thread, self._storage.probe)
        try:
            await asyncio.wait_for(asyncio.shield(probe), _ANSWER_S)
        except StorageError as error:
            fault = error.problem.message
        except TimeoutError:
            fault = f"{self._storage.url} does not answer within {_ANSWER_S:.0f} s"
        except Exception:
            log.exception("whether storage can be written was not found out")
            return True
        else:
            fault = ""
        if fault:
            if not self.fault:
                log.error("storage cannot be written, nothing starts until it can: %s", fault)
                self._until_writable = asyncio.create_task(self._wait())
            self.fault = fault
            return False
        self._fine_at = self._clock()
        return True

    async def _wait(self) -> None:
        for pause_s in doubling(*self._pauses_s):
            await asyncio.sleep(pause_s)
            if await self._is_writable():
                break
        self.fault = ""
        log.warning("storage can be written again")
        self._on_writable()
