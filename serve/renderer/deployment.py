"""The renderer deployment: one replica per card, one stream per job, a heartbeat to the dispatcher."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import ray
from ray import serve as ray_serve

from cluster.dispatch.protocol import Assignment, Event
from cluster.jobs.outcomes import Ended, Lost
from cluster.storage import Storage
from pipeline.kernels.cache import keep_compiled_under
from pipeline.kernels.kernels import KernelChoice
from serve.dispatcher.wire import ACCEPTED, event_to_wire
from serve.loopback import replica_on_loopback
from serve.niceness import give_way, gives_way
from serve.renderer.active_clip import ActiveClip, StepReports
from serve.renderer.admission import MemoryWait
from serve.renderer.cards import (
    CardIdentity,
    LazyDevice,
    UnusableDevice,
    cards_to_choose_from,
    claim,
    emulated_card,
    open_gpu,
)
from serve.renderer.checkpoints import CheckpointEvery
from serve.renderer.heartbeat import Heartbeat
from serve.renderer.metrics import RayObserver
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import RENDER_THREAD, Worker
from serve.settings import FarmArgs

log = logging.getLogger("clipmill.renderer")

#: A renderer whose card cannot be used for now says so for so many seconds, and ends the clips that need none; then a
#: new process tries.
TRY_AGAIN_S = 60.0
#: The niceness of renderers, as Ray's own workers have it: gateway and dispatcher have little to do, and at once.
NICENESS = 15


class Renderer:
    """The renderer of one card as Serve runs it: `run` is called once per assignment, all else happens by heartbeat."""

    #: Whether its threads are nice to what shares the processor with them.
    _gives_way = False

    async def __init__(self, args: dict[str, Any], card_class: str) -> None:  # type: ignore[misc]  # Serve awaits it
        farm = FarmArgs.model_validate(args)
        farm.set_umask()
        replica_on_loopback()
        settings = farm.settings()
        self._gives_way = gives_way(farm)
        context = ray_serve.get_replica_context()
        kernels = farm.kernels_of(card_class)
        if kernels is not KernelChoice.EAGER:
            keep_compiled_under(settings.home)
        # On the thread that will work on the card: trying it makes handles and plans already.
        opening = partial(_open_card, farm, card_class, settings.home)
        identity, device, self._lock = await asyncio.to_thread(RENDER_THREAD.run, opening)
        self._worker = Worker(
            identity,
            device,
            Storage(settings.storage_url),
            WeightsPlace(
                home=settings.home,
                folders={name: Path(folder) for name, folder in farm.weights.items()},
                offline=settings.offline,
                mirror=settings.mirror,
                accepted=frozenset(settings.accept_licenses),
                adapters={sha256: Path(file) for sha256, file in farm.adapters.items()},
            ),
            RayObserver(identity),
            every=CheckpointEvery(steps=farm.checkpoint_steps, seconds=farm.checkpoint_s),
            memory_wait=MemoryWait(patience_s=farm.hold_s),
            kernels=kernels,
            cuda_graphs=farm.cuda_graphs,
            measures=farm.fidelity != "off",
        )
        #: Clips on the card or being published, by attempt.
        self._clips: dict[str, ActiveClip] = {}
        dispatcher = ray_serve.get_deployment_handle("dispatcher", app_name=context.app_name)
        self._heartbeat = Heartbeat(context.replica_id.unique_id, self._worker, dispatcher, self._clips, farm.stall_s)
        if isinstance(device, UnusableDevice):
            log.error("this card takes only clips that need no GPU: %s", device.fault)
            if device.fault.passes:
                # CUDA is opened once in a process: only a new one can find that it works by now.
                asyncio.get_running_loop().call_later(TRY_AGAIN_S, self._heartbeat.retire)

    async def run(self, assignment: dict[str, Any], want: str) -> AsyncGenerator[dict[str, Any], None]:
        """Render one assignment; yields what `serve.dispatcher.wire` describes, an `ended` last.

        `want` is read by the router. Closing the stream stops the render within a step; the card is free only
        when its thread has really ended, which is waited for.
        """
        del want
        yield ACCEPTED
        if self._heartbeat.broken:
            # Sent before its last beat was heard: it would not live to end it.
            yield event_to_wire(Lost(detail="this renderer is being replaced"))
            return
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        reports = StepReports()

        def emit(event: Event) -> None:
            if reports.passes(event, time.monotonic()):
                loop.call_soon_threadsafe(events.put_nowait, event)

        clip = ActiveClip(Assignment.read(assignment), emit)
        self._clips[clip.attempt_id] = clip
        work = asyncio.create_task(asyncio.to_thread(self._render, clip))
        work.add_done_callback(lambda task: events.put_nowait(task.result()))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Ended) and event.sticky:
                    # Before it is sent: whoever has it may close this stream at once.
                    self._heartbeat.broken = True
                yield event_to_wire(event)
                if isinstance(event, Ended):
                    return
        finally:
            clip.stop()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(work)
            self._clips.pop(clip.attempt_id, None)
            if self._heartbeat.broken and not self._clips:
                log.error("this process cannot use its card any more; it exits so that Serve replaces it")
                self._heartbeat.exit_soon()

    def _render(self, clip: ActiveClip) -> Ended:
        if self._gives_way:
            give_way()
        return self._worker.run(clip)

    async def pid(self, want: str) -> int:
        """Process id, for chaos tests and `doctor`."""
        del want
        return os.getpid()

    async def __del__(self) -> None:
        # Serve calls this once no call is in progress.
        await self._heartbeat.stop()
        await asyncio.to_thread(self._worker.close)

    async def check_health(self) -> None:
        """Raise when the heartbeat has died: Serve then replaces this replica."""
        if self._heartbeat.ended:
            raise RuntimeError("the heartbeat ended")


def _open_card(farm: FarmArgs, card_class: str, home: Path) -> tuple[CardIdentity, LazyDevice, IO[str] | None]:
    """The card of this renderer, its device and its lock: opened and tried, where it is a GPU and torch is there."""
    unique = f"{card_class}-{ray_serve.get_replica_context().replica_id.unique_id}"
    cards = farm.card_classes[card_class].cards
    if gives_way(farm):
        give_way()
    if farm.emulate:
        emulated, lock = claim(cards, home / "cards") if cards else (unique, None)
        return *emulated_card(emulated, card_class), lock
    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    cards = cards or cards_to_choose_from(card_class, given)
    card, lock = claim(cards, home / "cards") if cards else (None, None)
    return *open_gpu(card, card_class, given, unnamed=unique, graphs=farm.cuda_graphs), lock
