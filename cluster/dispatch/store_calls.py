"""Calls of the store: one after the other in a thread of its own, and made again while the store does not answer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from cluster.backoff import doubling
from cluster.store import StaleEpochError
from cluster.store.outage import is_outage

log = logging.getLogger("clipmill.dispatcher")
T = TypeVar("T")

#: Pauses between two tries of a store that does not answer, in seconds: the first, and the longest. Each is twice the
#: one before.
_RETRY_S = (0.1, 5.0)


class StoreCalls:
    """Calls the store from the loop without blocking it, in the order in which it is called.

    A store that does not answer is asked again until it does: clips go on meanwhile, and what another dispatcher wrote
    since then shows as a stale epoch. So every call may be made twice: one whose answer was lost finds its attempt
    ended, its job taken, or the same values there.
    """

    def __init__(self, executor: Executor | None, on_replaced: Callable[[], None]) -> None:
        """`executor` runs the calls; None: a thread of its own. `on_replaced`: a call found another one in office."""
        # One thread: store calls stay in order and never block the beats.
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="store")
        self._on_replaced = on_replaced
        #: Another dispatcher is in office.
        self.replaced = False
        #: Since when the store does not answer, and until when it is waited for, by the loop's clock.
        self._out_since: float | None = None
        self._patience_until = math.inf

    async def __call__(self, call: Callable[..., T], *args: Any) -> T:
        """What `call` returns, or raises. An outage of the store is raised only after `hurry`."""
        loop = asyncio.get_running_loop()
        for pause_s in doubling(*_RETRY_S):
            future = loop.run_in_executor(self._executor, partial(call, *args))
            try:
                # A cancelled attempt must not abandon a store call half way.
                result = await asyncio.shield(future)
            except StaleEpochError:
                self.replaced = True
                self._on_replaced()
                raise
            except Exception as error:
                if not is_outage(error) or loop.time() + pause_s > self._patience_until:
                    raise
                if self._out_since is None:
                    self._out_since = loop.time()
                    log.warning("the store does not answer, asking again until it does: %s", error)
            else:
                if self._out_since is not None:
                    log.warning("the store answers again after %.0f s", loop.time() - self._out_since)
                    self._out_since = None
                return result
            await asyncio.sleep(pause_s)
        raise AssertionError("the pauses have no end")

    def hurry(self, within_s: float) -> None:
        """Wait no longer than this for a store that does not answer, whatever is called from now on."""
        self._patience_until = min(self._patience_until, asyncio.get_running_loop().time() + within_s)

    def close(self) -> None:
        """End the thread, where it is its own."""
        if self._owns_executor:
            self._executor.shutdown(wait=False)
