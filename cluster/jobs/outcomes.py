"""How an attempt ends: one class an outcome, what was measured of it, and what becomes of its job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cluster.jobs.model import HoldReason, JobState, Objects, Outcome, Reason, StoredCheckpoint
from pipeline.families.layouts import Layout
from pipeline.fidelity.score import FidelityScore
from pipeline.kernels.measured import KernelRun
from pipeline.notes import Note
from pipeline.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """One layout in which a clip ran out of memory on a card."""

    stage: str
    #: The layout as text.
    layout: str
    #: Steps done by then.
    step: int
    #: Predicted peak, highest live bytes before the allocation that failed, and usable bytes of the card.
    predicted_bytes: int
    measured_bytes: int
    usable_bytes: int
    card: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended, as the renderer (or the dispatcher, for a dead one) reports it: one subclass an outcome."""

    outcome: ClassVar[Outcome]

    detail: str = ""
    #: Measured peak of the attempt in bytes; 0 where nothing was measured.
    measured_bytes: int = 0
    #: The newest checkpoint of this attempt that is in storage.
    checkpoint: StoredCheckpoint | None = None
    #: The step it went on from; 0: it began anew.
    resumed_step: int = 0
    #: What each layout it was tried in took of the card, oldest first.
    peaks: tuple[Peak, ...] = ()
    #: Layouts that ran out of memory, also where the clip was rendered after all; oldest first.
    overflows: tuple[Overflow, ...] = ()
    #: How long its parts took, as the dispatcher saw it; None where it was not to be seen.
    timed: Timed | None = None
    #: What each run of its loop says of the kernels it was computed with, oldest first.
    kernel_runs: tuple[KernelRun, ...] = ()
    #: The renderer's process cannot go on, whatever the clip: it exits after this, and Serve replaces it.
    sticky: bool = False


@dataclass(frozen=True, kw_only=True)
class Completed(Ended):
    """The clip is in storage under `objects`."""

    outcome = Outcome.COMPLETED

    objects: Objects
    #: What was judged of the clip.
    notes: tuple[Note, ...] = ()
    #: How true the clip is to its still and prompt; None where that was not measured.
    fidelity: FidelityScore | None = None
    #: Predicted peak, and usable bytes of the card.
    predicted_bytes: int = 0
    usable_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ShortOfMemory(Ended):
    """The card was too small: what was predicted, in bytes, and what of the card was usable."""

    predicted_bytes: int = 0
    usable_bytes: int = 0
    #: Bytes that other programs have of the card; already taken off `usable_bytes`.
    foreign_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class OutOfMemory(ShortOfMemory):
    """The clip ran out of memory in every layout that its card was tried with."""

    outcome = Outcome.OOM

    #: Stage that ran out of memory.
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class TooBig(ShortOfMemory):
    """The renderer refused it before it began: no layout of it fits the card."""

    outcome = Outcome.TOO_BIG

    #: The smallest card class that it fits; None where there is none.
    smallest_class: str | None = None


@dataclass(frozen=True, kw_only=True)
class Invalid(Ended):
    """The input or its parameters are at fault."""

    outcome = Outcome.INVALID

    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Errored(Ended):
    """The render raised."""

    outcome = Outcome.ERROR

    #: What to do about it, where the fault knows that better than whoever counts attempts: a full disk.
    problem: Problem | None = None
    #: Storage could not be written or read: nobody's fault.
    storage: bool = False
    #: The clip was denoised to its end, and what failed came after: no fault of the checkpoint that it went on from.
    denoised: bool = False


@dataclass(frozen=True, kw_only=True)
class Crashed(Ended):
    """The renderer died while its node lived."""

    outcome = Outcome.CRASHED


@dataclass(frozen=True, kw_only=True)
class Lost(Ended):
    """Node, dispatcher or connection was lost, or the lease ran out."""

    outcome = Outcome.LOST


@dataclass(frozen=True, kw_only=True)
class StoodBeside(Lost):
    """The renderer died, and not of this clip: it was being encoded beside another, or had not come on the card."""

    #: No clip was on the card either: the card or its process is to blame.
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Stopped(Ended):
    """The renderer was told to stop."""

    outcome = Outcome.STOPPED

    #: Why, such as `drain` or `preempt`; empty: cancelled, or as the renderer closed.
    cause: str = ""


#: Detail of an attempt that was stopped for an interactive clip.
MADE_ROOM = "made room for an interactive clip"
#: The class of each outcome.
ENDINGS: Mapping[Outcome, type[Ended]] = {
    kind.outcome: kind for kind in (Completed, OutOfMemory, TooBig, Invalid, Errored, Crashed, Lost, Stopped)
}


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What becomes of a job when an attempt ends."""

    state: JobState
    reason: Reason | HoldReason | None = None
    problem: Problem | None = None
    #: Whether the attempt counts towards `MAX_ATTEMPTS`.
    costs_attempt: bool = False
    #: Whether one that does not counts towards `MAX_RELEASES`.
    costs_release: bool = True
    #: New floor for `Job.needs_bytes`.
    needs_bytes: int | None = None
    #: Whether the next attempt may go on from a checkpoint.
    keeps_checkpoint: bool = False


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one layout took of a card in one attempt."""

    layout: Layout
    predicted_bytes: int
    #: Highest live bytes; of one that ran out of memory, those before the allocation that failed.
    measured_bytes: int
    #: Usable bytes of the card at its end.
    usable_bytes: int = 0
    out_of_memory: bool = False
    #: Weights that the layout keeps on the card and that were not there: of encoders whose results were cached.
    absent_bytes: int = 0
    #: The clip went on from a checkpoint: some stages were not there at their largest.
    partial: bool = False


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What one completed attempt took, in seconds. None: not seen, or seen together with something else."""

    layout: Layout
    #: From the card being free (of a card that waited for work: from the assignment) to the first step's begin.
    start_s: float | None = None
    #: The card had not loaded the clip's family, so `start_s` is mostly loading.
    cold: bool = False
    #: The renderer's process had never loaded the clip's family.
    first: bool = False
    #: The step it began at: conditions were encoded only where that is 0.
    from_step: int = 0
    #: From the first step's begin to its end, encoding included.
    first_s: float | None = None
    #: Steps seen from one's end to another's, how many were done before them, and how long they took.
    first_step: int = 1
    steps: int = 0
    steps_s: float = 0.0
    #: From the last step to the card being free.
    decode_s: float | None = None
    #: From the card being free to the clip being published.
    publish_s: float | None = None
