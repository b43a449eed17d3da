"""Virtual time runs real coroutines, and only it passes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.simulation.clock import BEGIN, Inline, NothingWillHappenError, VirtualExecutor, run_virtually


def test_an_hour_passes_in_the_order_of_the_timers():
    async def main(loop):
        told = []

        async def after(seconds):
            await asyncio.sleep(seconds)
            told.append((seconds, loop.time() - BEGIN))

        async with asyncio.timeout(4000), asyncio.TaskGroup() as group:
            for seconds in (3600, 1, 60):
                group.create_task(after(seconds))
        return told

    begun = time.monotonic()
    assert run_virtually(main) == [(1, pytest.approx(1)), (60, pytest.approx(60)), (3600, pytest.approx(3600))]
    assert time.monotonic() - begun < 60, "an hour would have taken an hour"


def test_a_timeout_ends_what_takes_longer():
    async def main(loop):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        return loop.time() - BEGIN

    assert run_virtually(main) == pytest.approx(5)


def test_time_stands_still_while_a_real_thread_works():
    async def main(loop):
        release = threading.Event()
        ticks = []
        loop.call_later(10, ticks.append, "tick")
        with ThreadPoolExecutor(1) as pool:
            work = loop.run_in_executor(pool, release.wait)
            for _ in range(5):
                await asyncio.sleep(0)
            release.set()
            assert await work
            assert (ticks, loop.time()) == ([], BEGIN)
        await asyncio.sleep(11)
        return ticks

    assert run_virtually(main) == ["tick"]


def test_waiting_for_nothing_is_an_error_and_no_hang():
    async def main(_loop):
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappenError, match="nothing is planned"):
        run_virtually(main)


def test_an_inline_executor_runs_in_the_callers_thread():
    async def main(loop):
        return await loop.run_in_executor(Inline(), threading.get_ident)

    assert run_virtually(main) == threading.get_ident()


def test_calls_of_a_virtual_executor_keep_their_order_and_take_time():
    async def main(loop):
        executor = VirtualExecutor(loop, random.Random(1), 0.5)
        told = []
        await asyncio.gather(*(loop.run_in_executor(executor, told.append, n) for n in range(20)))
        return told, loop.time() - BEGIN

    told, took = run_virtually(main)
    assert told == list(range(20))
    assert 1 < took < 10


def test_what_a_call_raises_reaches_who_awaits_it():
    async def main(loop):
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(Inline(), lambda: 1 / 0)
        executor = VirtualExecutor(loop, random.Random(1), 0.5)
        executor.fault = lambda: OSError("away")
        with pytest.raises(OSError, match="away"):
            await loop.run_in_executor(executor, print, "never")

    run_virtually(main)
