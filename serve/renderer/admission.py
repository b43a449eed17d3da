"""Whether a clip may start on this card: in which layout it fits, how long it waits for memory, and when it is refused.

What is promised of a card at any time is counted by `pipeline.memory.admission`, which knows no clips.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.fleet.cards import every_class
from cluster.jobs.outcomes import TooBig
from pipeline.clips.clip import ClipSpec
from pipeline.devices.emulation_scale import emulation_scale
from pipeline.devices.protocol import Device
from pipeline.families.layouts import Layout
from pipeline.memory.admission import Admission, NeedsBiggerCard, Reservation
from pipeline.memory.footprint import Footprint, leanest, plan
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity
from serve.settings import EMULATED_USABLE_SHARE

log = logging.getLogger("clipmill.renderer")


@dataclass(frozen=True, kw_only=True)
class MemoryWait:
    """How long a clip waits for memory that other programs have taken, in seconds."""

    patience_s: float = 30.0
    poll_s: float = 0.5
    #: Lets time pass; returns early where the clip is to end.
    pause: Callable[[ActiveClip, float], None] = ActiveClip.pause


class MemoryWaiter:
    """Lets the clip on the card wait for memory, and says in words what it waits for."""

    def __init__(self, wait: MemoryWait, clock: Callable[[], float]) -> None:
        self._wait = wait
        self._clock = clock
        #: What the clip on the card waits for, in words; empty where it does not wait.
        self.waiting_for = ""

    def deadline(self) -> float:
        """When, by the clock, a clip that begins to wait now stops waiting."""
        return self._clock() + self._wait.patience_s

    def is_over(self, deadline: float) -> bool:
        """Whether `deadline` has come."""
        return self._clock() >= deadline

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enter to wait inside, by `pause`: at the end `waiting_for` is empty again."""
        try:
            yield
        finally:
            self.waiting_for = ""

    def pause(self, clip: ActiveClip, waiting_for: str) -> None:
        """Let one interval pass, less where the clip is to end; `waiting_for` is what others are told."""
        self.waiting_for = waiting_for
        self._wait.pause(clip, self._wait.poll_s)


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A clip may start: in this layout, with so much of the card promised to it."""

    layout: Layout
    predicted: Footprint
    #: The predicted peak, corrected by what was measured before.
    expected_bytes: int
    reservation: Reservation


class ClipAdmission:
    """Promises a clip its part of the card, lets it wait for it, or refuses it with the numbers."""

    def __init__(self, identity: CardIdentity, device: Device, waiter: MemoryWaiter) -> None:
        self._identity = identity
        self._device = device
        self._waiter = waiter
        #: All that is promised of this card.
        self.account = Admission()

    def admit(self, clip: ActiveClip) -> Admitted | NeedsBiggerCard:
        """Promise the clip its part of the card; wait where others have it, a while only where other programs do.

        The caller releases the reservation once the clip is off the card. Raises `RenderStopped` where the clip is to
        end.
        """
        deadline: float | None = None
        with self._waiter.waiting():
            while True:
                found = self._try_now(clip)
                if isinstance(found, Admitted):
                    return found
                if found.predicted_bytes > found.usable_bytes + found.foreign_bytes:
                    return found
                # Another clip of this process ends by itself; how long another program stays nobody knows.
                if found.predicted_bytes > found.usable_bytes:
                    deadline = self._waiter.deadline() if deadline is None else deadline
                    if self._waiter.is_over(deadline):
                        return found
                if not self._waiter.waiting_for:
                    log.info("attempt %s waits for memory: it %s", clip.attempt_id, found)
                self._waiter.pause(clip, str(found))
                clip.check(before=True)

    def _try_now(self, clip: ActiveClip) -> Admitted | NeedsBiggerCard:
        # Foreign memory first: what appears between the two readings makes the clip wait, not start.
        foreign, usable = self._device.foreign_bytes, self._device.usable_bytes()
        reserved = self.account.reserved_bytes
        if planned := self.plan(clip, usable - reserved):
            layout, predicted, expected_bytes = planned
            reservation = self.account.reserve(min(expected_bytes, usable - reserved), usable)
            if isinstance(reservation, Reservation):
                return Admitted(
                    layout=layout, predicted=predicted, expected_bytes=expected_bytes, reservation=reservation
                )
        least = leanest(clip.spec)[1]
        return NeedsBiggerCard(
            predicted_bytes=least.peak_bytes,
            usable_bytes=usable,
            foreign_bytes=foreign,
            reserved_bytes=reserved,
            smallest_class=self._smallest_class(least.peak_bytes),
            stage=least.largest,
        )

    def plan(self, clip: ActiveClip, usable_bytes: int) -> tuple[Layout, Footprint, int] | None:
        """The fastest layout that fits `usable_bytes`, its prediction and the corrected peak; None where none fits."""
        correct = clip.assignment.lessons.corrector(clip.spec.family)
        planned = plan(clip.spec, usable_bytes, correct)
        return (*planned, correct(*planned)) if planned else None

    def _smallest_class(self, needed_bytes: int) -> str | None:
        if self._identity.kind == "emulated":
            return every_class(emulation_scale(), EMULATED_USABLE_SHARE).smallest_class_for(needed_bytes)
        return every_class().smallest_class_for(needed_bytes)

    def refusal(self, spec: ClipSpec, needs: NeedsBiggerCard) -> TooBig:
        """How an attempt ends whose clip may not start here, in words and numbers."""
        return TooBig(
            detail=(
                f"{spec.family} at {spec.width}×{spec.height} × {spec.frames} frames on {self._identity.card} "
                f"({self._identity.card_class}): {needs}"
            ),
            predicted_bytes=needs.predicted_bytes,
            usable_bytes=needs.usable_bytes,
            foreign_bytes=needs.foreign_bytes,
            smallest_class=needs.smallest_class,
        )
