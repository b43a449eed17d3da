"""What carries the dispatcher's calls to renderers: one Serve handle per card class."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import ray.exceptions
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.dispatch.protocol import Assignment, Event, Fate, RendererDiedError, RendererLostError
from serve.dispatcher.wire import event_from_wire
from serve.renderer.router import UNKNOWN_S

log = logging.getLogger("clipmill.dispatcher")

#: How long Ray may take to say what became of a renderer, in seconds.
FATE_S = 5.0
#: Characters of Ray's explanation that are kept.
_LONGEST = 300
#: A renderer that is there answers at once; a call to one that is gone, or not known yet, ends in the router before.
ACCEPT_S = UNKNOWN_S + 2.0


class ServePool:
    """`RendererPool` over one Serve handle per card class."""

    def __init__(self, handles: dict[str, DeploymentHandle]) -> None:
        self._handles = handles
        self._looking: asyncio.Task[dict[str, Fate]] | None = None

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """Render over the handle of the card's class, as `RendererPool.render` says."""
        accepted = False
        handle = self._handles[assignment.card_class].options(method_name="run", stream=True)
        stream: DeploymentResponseGenerator = handle.remote(
            assignment.model_dump(mode="json"), want=assignment.renderer
        )
        try:
            await asyncio.wait_for(anext(stream), ACCEPT_S)
            accepted = True
            async for message in stream:
                if (event := event_from_wire(message)) is not None:
                    yield event
        except ray.exceptions.ActorDiedError as died:
            raise RendererDiedError(f"renderer {assignment.renderer} died") from died
        except (TimeoutError, ConnectionError, StopAsyncIteration, ray.exceptions.RayError) as lost:
            # Of a process that dies Ray says first that it is unavailable, and that it died later or never.
            detail = f"renderer {assignment.renderer}: {type(lost).__name__}: {lost}"
            raise RendererLostError(detail, accepted=accepted) from lost
        finally:
            # Leaving the loop does not cancel the call; this does, and the renderer stops within a step.
            with suppress(Exception):
                stream.cancel()

    async def fate(self, renderer: str) -> Fate | None:
        """What Ray's table of actors says of a renderer, as `RendererPool.fate` says."""
        # One look at a time, in a thread that may be left behind: a control plane that is away answers late.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(_replicas_that_ended))
        try:
            ended = await asyncio.wait_for(asyncio.shield(self._looking), FATE_S)
        except Exception as error:
            log.warning("Ray does not say what became of renderer %s: %s: %s", renderer, type(error).__name__, error)
            return None
        return ended.get(renderer)


def _replicas_that_ended() -> dict[str, Fate]:
    """Fates of all replicas that Ray knows to be dead, by the unique id that ends their names.

    From the control plane itself: `ray.util.state` needs the dashboard, which a farm may run without.
    """
    from ray._private.state import actors

    return {
        str(actor["Name"]).rsplit("#", 1)[-1]: fate_of(actor["DeathCause"])
        for actor in actors(actor_state_name="DEAD").values()
        if str(actor["Name"]).startswith("SERVE_REPLICA::")
    }


def fate_of(cause: Any) -> Fate:
    """What an `ActorDeathCause` of Ray's control plane says: of the process, of its node, or that somebody ended it."""
    if cause.HasField("oom_context"):
        return Fate(died=True, detail=f"the host ran out of memory: {_line(cause.oom_context.error_message)}")
    context = cause.actor_died_error_context
    died = cause.HasField("actor_died_error_context") and context.reason == context.WORKER_DIED
    return Fate(
        died=died, detail=_line(context.error_message) or ("its process ended" if died else "it was taken away")
    )


def _line(text: str) -> str:
    # What follows is advice for whoever runs Ray, and the same for every death.
    return " ".join(text.split("Some common causes include")[0].split())[:_LONGEST]
