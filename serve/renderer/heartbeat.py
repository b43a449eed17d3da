"""The heartbeat of a renderer: it tells the dispatcher what its card does, and does what it is answered."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from cluster.dispatch.protocol import Verdict
from cluster.fleet.cards import Beat, CardState
from serve.renderer.active_clip import ActiveClip
from serve.renderer.worker import CARD_LOCK, Worker

log = logging.getLogger("clipmill.renderer")

#: How often a renderer tells the dispatcher that it is there, in seconds.
BEAT_S = 0.5
#: A renderer that had no answer from any dispatcher for so many seconds preempts its clips: their leases are gone.
DEAF_S = 10.0
#: What a renderer that cannot go on leaves its last event to be sent in, in seconds.
LAST_EVENT_S = 0.5
#: How long one beat waits for its answer, in seconds.
_ANSWER_S = 5.0


class Heartbeat:
    """Beats from its making until `stop`, also while the card works or drains.

    `clips` are those on the card or being published, by attempt; whoever renders keeps them.
    """

    def __init__(
        self, uid: str, worker: Worker, dispatcher: Any, clips: Mapping[str, ActiveClip], stall_s: float
    ) -> None:
        """`dispatcher`: the Serve handle of the dispatcher. `stall_s`: a clip that got nowhere for so long hangs.

        To be made within a running event loop.
        """
        self._uid, self._worker, self._dispatcher, self._clips = uid, worker, dispatcher, clips
        self._stall_s = stall_s
        #: A clip broke what this process has of its card: it exits when its last clip has ended.
        self.broken = False
        self._heard_at = time.monotonic()
        self._task = asyncio.create_task(self._beat_for_ever())

    @property
    def ended(self) -> bool:
        """Whether it beats no more."""
        return self._task.done()

    async def stop(self) -> None:
        """Beat no more, preempt what runs, and say good-bye."""
        # Without a farewell the dispatcher would send this card clips until its silence is noticed.
        self._task.cancel()
        self._preempt_all()
        with suppress(Exception):
            farewell = self._beat() | {"state": CardState.DRAINING.value, "steps": {}}
            await asyncio.wait_for(self._dispatcher.beat.remote(farewell), timeout=2)

    def exit_soon(self) -> None:
        """End this process once its last event is sent, so that Serve replaces it."""
        asyncio.get_running_loop().call_later(LAST_EVENT_S, os._exit, 1)

    def retire(self) -> None:
        """Take no more clips, and end this process once its last one has ended, so that Serve replaces it."""
        self.broken = True
        if not self._clips:
            self.exit_soon()

    async def _beat_for_ever(self) -> None:
        while True:
            began = time.monotonic()
            self._exit_if_stuck()
            try:
                verdicts = await asyncio.wait_for(self._dispatcher.beat.remote(self._beat()), timeout=_ANSWER_S)
                self._heard_at = time.monotonic()
                for attempt_id, verdict in verdicts.items():
                    if clip := self._clips.get(attempt_id):
                        _obey(clip, verdict)
            except Exception as error:
                log.warning("no answer from the dispatcher: %s", error)
                if time.monotonic() - self._heard_at > DEAF_S:
                    self._preempt_all()
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))

    def _preempt_all(self) -> None:
        for clip in self._clips.values():
            clip.preempt()

    def _exit_if_stuck(self) -> None:
        # A thread cannot be ended, only its process. Clips that still get on are waited for; nothing more comes here.
        stuck = [clip for clip in self._clips.values() if clip.hangs(self._stall_s)]
        if not stuck:
            return
        if not self.broken:
            named = ", ".join(clip.attempt_id for clip in stuck)
            log.error("%s hangs and does not let the card go: this process ends so that Serve replaces it", named)
        self.broken = True
        if len(stuck) == len(self._clips):
            self.exit_soon()

    def _beat(self) -> dict[str, Any]:
        device = self._worker.device
        # Not asked of torch here: its allocator may be locked for as long as a queue of kernels runs, and the whole
        # process would be silent until then.
        figures = device.figures()
        beat = Beat(
            renderer=self._uid,
            card=self._worker.identity.card,
            card_class=self._worker.identity.card_class,
            kind=self._worker.identity.kind,
            total_bytes=device.total_bytes,
            usable_bytes=figures.usable_bytes,
            used_bytes=figures.used_bytes,
            foreign_bytes=figures.foreign_bytes,
            state=self._state(),
            family=self._worker.family,
            steps={attempt_id: clip.steps for attempt_id, clip in self._clips.items()},
            waiting_for=self._waiting_for(),
            fault=self._worker.fault,
            fault_passes=self._worker.fault_passes,
            capability=self._worker.identity.capability,
            storage_fault=self._worker.storage_health.fault,
            boot=_boot_id(),
            pid=os.getpid(),
            on_card=next((attempt_id for attempt_id, clip in self._clips.items() if clip.on_card), ""),
        )
        return beat.model_dump(mode="json")

    def _waiting_for(self) -> str:
        loading = next((clip.loading for clip in self._clips.values() if clip.loading), "")
        return self._worker.waiting_for or (loading and f"is not loaded yet: {loading}")

    def _state(self) -> CardState:
        if self.broken:
            return CardState.DRAINING
        # Also of a card that cannot be used: it has no usable bytes, so it gets the clips that need none.
        return CardState.BUSY if CARD_LOCK.locked() else CardState.IDLE


@cache
def _boot_id() -> str:
    """The kernel's id of this start of the host, the same in every container; empty where there is none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _obey(clip: ActiveClip, verdict: str) -> None:
    if verdict == Verdict.CHECKPOINT:
        clip.preempt()
    elif verdict != Verdict.GO_ON:
        # Also at a word that this version does not know.
        clip.stop()
