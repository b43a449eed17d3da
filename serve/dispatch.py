"""The dispatcher deployment, and the pool that carries its calls over Serve handles."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import ray.exceptions
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.cards import Beat
from cluster.dispatcher import Assignment, Dispatcher, Event, RendererDiedError, RendererLostError
from cluster.store import Database, Ledger
from serve.messages import event_from_wire
from serve.settings import FarmArgs

log = logging.getLogger("clipmill.dispatcher")

#: A renderer that is there answers at once; one that is gone leaves its call waiting in the router for ever.
ACCEPT_S = 5.0


class ServePool:
    """`RendererPool` over one Serve handle per card class."""

    def __init__(self, handles: dict[str, DeploymentHandle]) -> None:
        self._handles = handles

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """See `RendererPool.render`."""
        handle = self._handles[assignment.card_class].options(method_name="run", stream=True)
        stream: DeploymentResponseGenerator = handle.remote(
            assignment.model_dump(mode="json"), want=assignment.renderer
        )
        try:
            await asyncio.wait_for(anext(stream), ACCEPT_S)
            async for message in stream:
                yield event_from_wire(message)
        except ray.exceptions.ActorDiedError as died:
            raise RendererDiedError(f"renderer {assignment.renderer} died") from died
        except (TimeoutError, StopAsyncIteration, ray.exceptions.RayError) as lost:
            raise RendererLostError(f"renderer {assignment.renderer}: {type(lost).__name__}: {lost}") from lost
        finally:
            # Leaving the loop does not cancel the call; this does, and the renderer stops within a step.
            with suppress(Exception):
                stream.cancel()


class DispatcherDeployment:
    """One replica. Renderers call `beat`; the loop runs beside."""

    async def __init__(self, args: dict[str, Any], **handles: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        farm = FarmArgs.model_validate(args)
        database = Database(farm.settings().database_url)
        await asyncio.to_thread(database.migrate)
        self._dispatcher = Dispatcher(
            Ledger(database),
            ServePool(handles),
            farm.fleet(),
            holder=f"{socket.gethostname()}:{os.getpid()}",
            clock=time.monotonic,
        )
        self._loop = asyncio.create_task(self._dispatcher.run())

    async def beat(self, beat: dict[str, Any]) -> dict[str, str]:
        """A renderer's heartbeat; the answer says per attempt whether to go on."""
        return {k: v.value for k, v in self._dispatcher.beat(Beat.model_validate(beat)).items()}

    async def nudge(self) -> None:
        """New work is in the store."""
        self._dispatcher.nudge()

    async def drain(self, grace_s: float) -> None:
        """Start nothing more; return when clips in flight have finished or were given back."""
        await self._dispatcher.stop(grace_s)

    async def check_health(self) -> None:
        """Raise when the loop has ended by a fault: Serve then replaces this replica."""
        if self._loop.done() and (fault := self._loop.exception()):
            raise RuntimeError(f"the dispatcher's loop broke: {fault}") from fault
