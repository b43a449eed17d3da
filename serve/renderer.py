"""The renderer deployment: one replica per card, one stream per job, a heartbeat to the dispatcher."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from cluster.cards import Beat, CardState
from cluster.jobs import Ended
from cluster.renderers import Assignment, Event, Verdict
from cluster.storage import Storage
from serve.cards import claim, emulated_card, gpu_card
from serve.checkpoints import CheckpointEvery
from serve.flight import CardIdentity, Flight, Hold, WeightsPlace
from serve.messages import ACCEPTED, event_to_wire
from serve.render_metrics import RayObserver
from serve.settings import FarmArgs
from serve.worker import CARD_LOCK, Worker

log = logging.getLogger("clipmill.renderer")

BEAT_S = 0.5
#: A renderer that had no answer from any dispatcher for this long stops: its lease is gone.
DEAF_S = 10.0
#: What a renderer that cannot go on leaves its last words to be sent in.
LAST_WORDS_S = 0.5


class Renderer:
    """Serve calls `run` once per assignment; everything else happens by heartbeat."""

    async def __init__(self, args: dict[str, Any], card_class: str) -> None:  # type: ignore[misc]  # Serve awaits it
        farm = FarmArgs.model_validate(args)
        settings = farm.settings()
        context = ray_serve.get_replica_context()
        self.uid = context.replica_id.unique_id
        identity, device, self._lock = await asyncio.to_thread(_open_card, farm, card_class, settings.home)
        self._identity: CardIdentity = identity
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
            hold=Hold(patience_s=farm.hold_s),
        )
        self._flights: dict[str, Flight] = {}
        #: A clip broke what this process holds of its card: it exits when its last clip has ended.
        self._broken = False
        self._stall_s = farm.stall_s
        self._dispatcher = ray_serve.get_deployment_handle("dispatcher", app_name=context.app_name)
        self._heard_at = time.monotonic()
        self._beats = asyncio.create_task(self._beat_for_ever())

    async def run(self, assignment: dict[str, Any], want: str) -> AsyncGenerator[dict[str, Any], None]:
        """Render one assignment; yields what `serve.messages` describes, an `ended` last.

        `want` is read by the router. Closing the stream stops the render within a step; the card is free only
        when its thread has really ended, which is waited for.
        """
        del want
        yield ACCEPTED
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        flight = Flight(Assignment.model_validate(assignment), emit)
        self._flights[flight.assignment.attempt_id] = flight
        work = asyncio.create_task(asyncio.to_thread(self._worker.run, flight))
        work.add_done_callback(lambda task: events.put_nowait(task.result()))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Ended) and event.sticky:
                    # Before it is sent: whoever has it may close this stream at once.
                    self._broken = True
                yield event_to_wire(event)
                if isinstance(event, Ended):
                    return
        finally:
            flight.stop()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(work)
            self._flights.pop(flight.assignment.attempt_id, None)
            if self._broken and not self._flights:
                log.error("this process cannot use its card any more; it exits so that Serve replaces it")
                loop.call_later(LAST_WORDS_S, os._exit, 1)

    async def pid(self, want: str) -> int:
        """Process id, for chaos tests and `doctor`."""
        del want
        return os.getpid()

    async def __del__(self) -> None:
        # Serve calls this once no clip is in flight. Without a farewell the dispatcher would send this card clips
        # until its silence is noticed.
        self._beats.cancel()
        for flight in self._flights.values():
            flight.stop(checkpoint=True)
        with suppress(Exception):
            farewell = self._beat() | {"state": CardState.DRAINING.value, "steps": {}}
            await asyncio.wait_for(self._dispatcher.beat.remote(farewell), timeout=2)
        await asyncio.to_thread(self._worker.close)

    async def check_health(self) -> None:
        """Raise when the heartbeat has died: Serve then replaces this replica."""
        if self._beats.done():
            raise RuntimeError("the heartbeat ended")

    async def _beat_for_ever(self) -> None:
        while True:
            began = time.monotonic()
            self._leave_if_stuck()
            try:
                verdicts = await asyncio.wait_for(self._dispatcher.beat.remote(self._beat()), timeout=5)
                self._heard_at = time.monotonic()
                for attempt_id, verdict in verdicts.items():
                    flight = self._flights.get(attempt_id)
                    if flight and verdict != Verdict.GO_ON:
                        flight.stop(checkpoint=verdict == Verdict.CHECKPOINT)
            except Exception as error:
                log.warning("no answer from the dispatcher: %s", error)
                if time.monotonic() - self._heard_at > DEAF_S:
                    for flight in self._flights.values():
                        flight.stop(checkpoint=True)
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))

    def _leave_if_stuck(self) -> None:
        # A thread cannot be ended, only its process. Clips that still get on are waited for; nothing more comes here.
        stuck = [flight for flight in self._flights.values() if flight.hangs(self._stall_s)]
        if not stuck:
            return
        if not self._broken:
            named = ", ".join(flight.assignment.attempt_id for flight in stuck)
            log.error("%s hangs and lets go of the card never: this process ends so that Serve replaces it", named)
        self._broken = True
        if len(stuck) == len(self._flights):
            asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, 1)

    def _beat(self) -> dict[str, Any]:
        device = self._worker.device
        beat = Beat(
            renderer=self.uid,
            card=self._identity.card,
            card_class=self._identity.card_class,
            kind=self._identity.kind,
            total_bytes=device.total_bytes,
            usable_bytes=device.usable_bytes(),
            used_bytes=device.used_bytes(),
            foreign_bytes=device.foreign_bytes,
            state=self._state(),
            family=self._worker.family,
            steps={attempt_id: flight.steps for attempt_id, flight in self._flights.items()},
            holding=self._holding(),
        )
        return beat.model_dump(mode="json")

    def _holding(self) -> str:
        loading = next((flight.loading for flight in self._flights.values() if flight.loading), "")
        return self._worker.holding or (loading and f"is not loaded yet: {loading}")

    def _state(self) -> CardState:
        if self._broken:
            return CardState.DRAINING
        return CardState.BUSY if CARD_LOCK.locked() else CardState.IDLE


def _open_card(farm: FarmArgs, card_class: str, home: Path) -> tuple[CardIdentity, Any, Any]:
    cards = farm.card_classes[card_class].cards
    card, lock = claim(cards, home / "cards") if cards else (None, None)
    if farm.emulate:
        context = ray_serve.get_replica_context()
        return *emulated_card(card or f"{card_class}-{context.replica_id.unique_id}", card_class), lock
    return *gpu_card(card, card_class), lock
