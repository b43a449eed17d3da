"""Whether a clip may start on a card: how much is kept back, and one account of all that is promised. No torch here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pipeline.memory.footprint import cuda_model
from pipeline.units import MIB, format_bytes

#: Peaks in a row, none above its prediction, for which a quarter of the margin is given up.
MARGIN_STEP = 5
#: Peaks after which older ones make no difference.
MARGIN_MEMORY = 4 * MARGIN_STEP


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a clip took of a card."""

    predicted_bytes: int
    measured_bytes: int
    out_of_memory: bool = False
    #: What the process took of the card beyond the prediction and the context it had before: cached blocks' rests,
    #: workspaces, kernels loaded meanwhile. That is what a margin is for. None where nobody can tell.
    beyond_bytes: int | None = None

    def kept(self, margin_bytes: int) -> bool:
        """Whether its tensors stayed within the prediction, and all else within a margin of so many bytes."""
        within = self.beyond_bytes is None or self.beyond_bytes <= margin_bytes
        return not self.out_of_memory and self.measured_bytes <= self.predicted_bytes and within


def margin(total_bytes: int, observations: Sequence[Observation] = ()) -> int:
    """Bytes of a real card that no clip is promised: for workspaces, loaded kernels and rests between blocks.

    The larger of 512 MiB and 5 % of the card. Every `MARGIN_STEP` newest `observations` (oldest first) that all stayed
    within their predictions, and beside them within this margin, take a quarter off it; one that did not, or ran out of
    memory, brings all of it back. It never falls below the project's own estimate of what it is for on a full card
    (`pipeline.memory.footprint.cuda_share`), nor below what the last `MARGIN_MEMORY` clips took of it and a quarter.
    """
    full = max(512 * MIB, total_bytes // 20)
    streak = 0
    for observation in reversed(observations):
        if not observation.kept(full):
            break
        streak += 1
    seen = max((each.beyond_bytes or 0 for each in observations[-MARGIN_MEMORY:]), default=0)
    model = cuda_model()
    estimate = model.workspace_bytes + round(model.fragmentation * total_bytes)
    least = min(full, max(256 * MIB, estimate, seen + seen // 4))
    return max(least, full - full * (streak // MARGIN_STEP) // 4)


@dataclass(frozen=True, kw_only=True)
class NeedsBiggerCard:
    """Why a clip may not start, in numbers; as text, in words."""

    #: What its leanest layout takes.
    predicted_bytes: int
    #: What a clip may have of the card, memory of other programs taken off.
    usable_bytes: int
    #: Taken by other programs.
    foreign_bytes: int = 0
    #: Promised to clips that are on the card already.
    reserved_bytes: int = 0
    #: Smallest card class that it fits; None where it fits none.
    smallest_class: str | None = None
    #: The stage that takes so much even in the leanest layout: `encode`, `denoise` or `decode`.
    stage: str = ""

    def __str__(self) -> str:
        taken = [
            f"{format_bytes(count)} {whose}"
            for count, whose in (
                (self.foreign_bytes, "taken by other programs"),
                (self.reserved_bytes, "promised to clips in flight"),
            )
            if count
        ]
        besides = f" ({', '.join(taken)})" if taken else ""
        fits = f"the smallest card class that holds it is {self.smallest_class}" if self.smallest_class else ""
        most = f"{self.stage.removesuffix('e')}ing takes most, in its leanest layout; " if self.stage else ""
        return (
            f"needs {format_bytes(self.predicted_bytes)}, {format_bytes(self.usable_bytes)} usable{besides}; {most}"
            f"{fits or 'no card class holds it'}"
        )


class Admission:
    """What is promised of one card to all that runs on it; threads share it. It never promises more than there is.

    A promise is taken back by the thread that works on it, when that thread has ended its work: a clip that was
    cancelled keeps its memory until then, whatever those who cancelled it believe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promised: dict[Reservation, int] = {}

    @property
    def reserved_bytes(self) -> int:
        """Bytes promised and not taken back."""
        with self._lock:
            return sum(self._promised.values())

    def reserve(self, predicted_bytes: int, usable_bytes: int) -> Reservation | NeedsBiggerCard:
        """Promise `predicted_bytes` where all promises together stay within `usable_bytes`, else say by how much not.

        `usable_bytes` is what all work of this process may have of the card now, whatever of it is in use.
        """
        with self._lock:
            reserved = sum(self._promised.values())
            if reserved + predicted_bytes > usable_bytes:
                return NeedsBiggerCard(
                    predicted_bytes=predicted_bytes, usable_bytes=usable_bytes, reserved_bytes=reserved
                )
            reservation = Reservation(self)
            self._promised[reservation] = predicted_bytes
            return reservation

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            self._promised.pop(reservation, None)


class Reservation:
    """A promise of an `Admission`. Leaving it as a context, or `release`, takes it back; twice is once."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def release(self) -> None:
        """Take the promise back: what it was for is off the card."""
        self._admission._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()
