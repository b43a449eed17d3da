"""Virtual time: an event loop that runs real coroutines and, when nothing is ready, jumps to the next timer."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

#: The epoch second at which a virtual loop begins.
BEGIN = 1_000_000.0


class NothingWillHappenError(RuntimeError):
    """Every coroutine waits for something that no timer and no thread will bring."""


class _Jump(selectors.DefaultSelector):
    """A selector that lets virtual time pass instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self.loop
        if loop.threads:
            # Work in a real thread takes no virtual time: it is waited for before the clock moves.
            return list(super().select(None if timeout is None or timeout > 0 else 0))
        if timeout is None:
            raise NothingWillHappenError(f"at {loop.time():.3f} s nothing is ready and nothing is planned")
        if timeout > 0:
            loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` moves only when nothing is ready to run. Work in real executors takes none of it."""

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self._now = BEGIN
        self.threads = 0
        self._thread = threading.get_ident()
        super().__init__(selector)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Seconds since the epoch, virtual."""
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # of any types
        """Run `func` as any event loop does; while a real executor works, time stands still."""
        if isinstance(executor, Inline | VirtualExecutor):
            return asyncio.wrap_future(executor.submit(func, *args), loop=self)
        self.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._back)
        return future

    def _back(self, _future: Any) -> None:
        self.threads -= 1

    def _write_to_self(self) -> None:
        # Only another thread has to wake the loop.
        if threading.get_ident() != self._thread:
            super()._write_to_self()  # type: ignore[misc]


class Inline(Executor):
    """Runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future that is done already."""
        future: Future[T] = Future()
        _fill(future, fn, args, kwargs)
        return future


class VirtualExecutor(Executor):
    """One thread that is none: calls come one after the other, each after a virtual delay."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, delay_s: float) -> None:
        """`delay_s`: the longest time that a call takes; drawn evenly from there to nothing."""
        self._loop, self._rng, self._delay_s = loop, rng, delay_s
        self._free_at = 0.0
        #: Raised instead of every call while it is not None.
        self.fault: Callable[[], Exception] | None = None

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future that is done after the delay, in order."""
        future: Future[T] = Future()
        self._free_at = max(self._loop.time(), self._free_at) + self._rng.random() * self._delay_s
        self._loop.call_at(self._free_at, self._run, future, fn, args, kwargs)
        return future

    def _run(self, future: Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if self.fault is not None:
            future.set_exception(self.fault())
        else:
            _fill(future, fn, args, kwargs)


def _fill(future: Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    try:
        future.set_result(fn(*args, **kwargs))
    except Exception as error:
        future.set_exception(error)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run `main` in a virtual loop of its own. Raises `NothingWillHappenError` where it waits for ever."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
