"""What a dispatcher and its renderers say to each other, and what carries it. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from cluster.jobs import Checkpoint, Ended
from cluster.lessons import Factors
from cluster.store import Stretch
from pipeline.clip import ClipSpec


class Assignment(BaseModel):
    """What a renderer is told: everything it needs, and no credentials of the store."""

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
    resume: Checkpoint | None = None
    #: Who did the steps up to there, oldest first. Goes into the provenance.
    done: tuple[Stretch, ...] = ()
    #: What measured peaks say about this clip on this card.
    lessons: Factors = Factors()


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step finished; 0 of n (m of n where it goes on) says the weights are there and the first step begins."""

    step: int
    steps: int


@dataclass(frozen=True)
class CardFree:
    """The frames are off the card: it can take the next clip while this one is encoded."""


@dataclass(frozen=True)
class CheckpointSaved:
    """The clip can go on from here."""

    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """The clip goes on, but what is done since the last checkpoint is lost if its renderer is."""

    step: int
    detail: str


Event = StepDone | CardFree | CheckpointSaved | CheckpointFailed | Ended


class RendererPool(Protocol):
    """The renderers of a running farm, whatever carries the calls."""

    def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """Render on `assignment.renderer`; the last event is an `Ended`.

        Closing the iterator early stops the renderer within a step. Raises `RendererDiedError` when the renderer is
        known to be dead, `RendererLostError` when it cannot be reached.
        """
        ...


class RendererDiedError(Exception):
    """The renderer's process ended while its node lives."""


class RendererLostError(Exception):
    """The renderer cannot be reached: node or network lost."""


class Verdict(StrEnum):
    """Answer to a beat, per attempt."""

    GO_ON = "go_on"
    #: Save a checkpoint, then stop: another attempt will go on from it.
    CHECKPOINT = "checkpoint"
    #: Stop and give the job back: it is not (or no longer) this renderer's.
    STOP = "stop"
    CANCEL = "cancel"
