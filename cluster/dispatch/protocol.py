"""Messages between the dispatcher and its renderers, and the interface of what carries them. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from cluster.estimates.memory import MemoryFactors
from cluster.jobs.model import StoredCheckpoint, Stretch
from cluster.jobs.outcomes import Ended
from pipeline.clips.clip import ClipSpec
from pipeline.kernels.measured import ShapeMeasurements

#: A clip hangs after so many of its own steps without news, and not before so many seconds: after an out-of-memory it
#: goes on in a leaner layout, up to twenty times slower where weights are streamed.
STALL_STEPS, STALL_LEAST_S = 30, 300.0


class Assignment(BaseModel):
    """An attempt as it is handed to a renderer: everything it needs, and no credentials of the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt_id: str
    job_id: str
    renderer: str
    card_class: str
    owner: str
    still: str
    spec: ClipSpec
    content_key: str
    #: Goes into the provenance.
    row: dict[str, Any]
    #: Go on from here; begin anew where it cannot be used.
    resume: StoredCheckpoint | None = None
    #: Who did the steps up to there, oldest first. Goes into the provenance.
    done: tuple[Stretch, ...] = ()
    #: Factors on predicted activations, by what was measured of such clips on such cards.
    lessons: MemoryFactors = MemoryFactors()
    #: What was measured of eager and of compiled kernels in such clips on such cards, by phase and layout.
    kernels: tuple[ShapeMeasurements, ...] = ()

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Assignment:
        """The assignment in `message`, of a dispatcher of this version or another; keys not known are ignored.

        Not those of its `spec`: a clip of which a renderer knows half would be another clip. Raises
        `pydantic.ValidationError`.
        """
        return cls.model_validate({key: value for key, value in message.items() if key in cls.model_fields})


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step is done. The first of a stream, 0 of n (m of n where it goes on), comes when the weights are there."""

    step: int
    steps: int


@dataclass(frozen=True)
class CardFree:
    """The frames are off the card: it can take the next clip while this one is encoded."""


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is in storage: the clip can go on from it."""

    checkpoint: StoredCheckpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """A checkpoint could not be written. The clip goes on, but steps since the last one are lost if its renderer is."""

    step: int
    detail: str


Event = StepDone | CardFree | CheckpointSaved | CheckpointFailed | Ended


class RendererPool(Protocol):
    """The renderers of a running farm, whatever carries the calls."""

    def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """Render on `assignment.renderer`; the last event is an `Ended`.

        Closing the iterator early stops the renderer within a step. Raises `RendererDiedError` when the renderer is
        known to be dead, `RendererLostError` when it cannot be reached, dead or not.
        """
        ...

    async def fate(self, renderer: str) -> Fate | None:
        """What became of a renderer that cannot be reached; None while nobody can say. Does not raise."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of a renderer that cannot be reached, as whoever runs its process says."""

    #: The process ended by itself while its node lived. Else it was taken away: with its node, or on purpose.
    died: bool
    #: In words, such as the signal it was killed by.
    detail: str


class RendererDiedError(Exception):
    """The renderer's process ended while its node lives."""


class RendererLostError(Exception):
    """The renderer cannot be reached: its process, its node or the network is gone."""

    def __init__(self, detail: str, *, accepted: bool = True) -> None:
        """Not `accepted`: it is known that the renderer never began with the assignment."""
        super().__init__(detail)
        self.accepted = accepted


class Verdict(StrEnum):
    """The answer to a beat, for each attempt that it names."""

    GO_ON = "go_on"
    #: Save a checkpoint, then stop: another attempt will go on from it.
    CHECKPOINT = "checkpoint"
    #: Stop: the attempt is not (or no longer) this renderer's.
    STOP = "stop"
    CANCEL = "cancel"
