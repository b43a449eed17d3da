"""The router of calls to renderers, driven by Ray Serve's own routing loop."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from serve.renderer import router as router_module
from serve.renderer.router import PinnedRouter


def replica(unique_id: str):
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=unique_id))


def request(want: str):
    return SimpleNamespace(
        kwargs={"want": want},
        created_at=time.time(),
        future=asyncio.get_running_loop().create_future(),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def routing(*replicas) -> PinnedRouter:
    """A router of these replicas, without the parts that talk to them."""
    made = object.__new__(PinnedRouter)
    made.initial_backoff_s, made.backoff_multiplier, made.max_backoff_s = 0.001, 2, 0.01
    made.num_routing_tasks_in_backoff = 0
    made.num_routing_tasks_in_backoff_gauge = SimpleNamespace(set=lambda value: None)
    put(made, *replicas)
    return made


def put(made: PinnedRouter, *replicas) -> None:
    made._replicas = {one.replica_id.unique_id: one for one in replicas}
    made._replicas_list = list(replicas)


async def first(made: PinnedRouter, pending) -> list:
    choices = made._choose_replicas_with_backoff(pending)
    try:
        return await anext(choices)
    finally:
        await choices.aclose()


def test_a_call_goes_to_the_renderer_that_it_names():
    async def routed():
        one, other = replica("one"), replica("other")
        return await first(routing(one, other), request("other")) == [other]

    assert asyncio.run(routed())


def test_news_of_a_replica_is_read_while_a_call_waits_for_it():
    """The event loop runs on meanwhile: everything that the router learns comes over it."""

    async def routed():
        made, young = routing(replica("old")), replica("young")
        waiting = asyncio.create_task(first(made, request("young")))
        await asyncio.sleep(0)
        put(made, replica("old"), young)
        return await asyncio.wait_for(waiting, 20) == [young]

    assert asyncio.run(routed())


def test_a_call_for_a_renderer_that_never_comes_fails_and_gives_its_routing_task_back(monkeypatch):
    monkeypatch.setattr(router_module, "UNKNOWN_S", 0.05)

    async def routed():
        old, pending = replica("old"), request("gone")
        # Anything but nothing: Serve ends the task when it sees the future done.
        assert await first(routing(old), pending) == [old]
        with pytest.raises(ConnectionError, match="there is no renderer gone"):
            pending.future.result()

    asyncio.run(routed())
