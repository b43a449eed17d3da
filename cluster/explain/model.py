"""What can be done about a waiting job, and what is known of one besides the snapshot. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.fleet.breakers import Route
from cluster.fleet.cards import Beat
from cluster.jobs.commands import CardOrder
from cluster.jobs.model import Attempt, Batch, Job
from cluster.scheduling.interactive import InteractiveTerms


class RemedyKind(StrEnum):
    """What can be done about a waiting job, from the cheapest to the dearest."""

    APPROVE = "approve"
    RESUME = "resume"
    RETRY = "retry"
    RELEASE = "release_card"
    LEANER = "leaner_layout"
    RAISE = "raise_priority"
    LOWER = "lower_priority"
    WAIT = "wait"
    LIMIT = "owner_limit"
    ADD = "add_cards"
    FEWER = "fewer_frames"
    SMALLER = "smaller_class"


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One change, and all that has to be known to make it."""

    kind: RemedyKind
    #: In words.
    text: str
    #: The command that makes it; empty where none does.
    command: str = ""
    #: When the job starts then, in UTC epoch seconds; None: at once.
    at: float | None = None
    #: The job starts then; False: the change comes first, and something else keeps the job waiting after that.
    starts: bool = True
    #: The card it starts on, or that is released.
    card: str = ""
    card_class: str = ""
    #: Cards to be added, or clips that its owner may have on cards.
    number: int | None = None
    batch: str = ""
    #: New priority of the job, or of all that waits of the batch.
    priority: int | None = None
    #: Bytes that a leaner layout, or fewer frames, need of a card.
    needs_bytes: int | None = None
    layout: str = ""
    #: Times as long as in the layout it waits for.
    slowdown: float | None = None
    frames: int | None = None
    resolution_class: str = ""


_TERMS = InteractiveTerms()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a job and its farm besides the snapshot; all of it may be missing."""

    batch: Batch | None = None
    #: The job it waits for.
    after: Job | None = None
    #: The job's newest attempt, and what the renderer says that has it.
    attempt: Attempt | None = None
    beat: Beat | None = None
    #: By card.
    orders: Mapping[str, CardOrder] = field(default_factory=dict)
    #: Until when breakers block routes, in UTC epoch seconds.
    blocked_until: Mapping[Route, float] = field(default_factory=dict)
    #: Jobs that go before it; counted up to `ahead_most`.
    ahead: int | None = None
    ahead_most: int | None = None
    #: How many jobs of each queue the snapshot has at most; None: it has all.
    per_queue: int | None = None
    #: Whether jobs of its own queue that go before it are not in the snapshot.
    hidden: bool = False
    #: Why cards cannot be used, and what to do, by card.
    card_faults: Mapping[str, str] = field(default_factory=dict)
    #: What interactive clips may take of the farm.
    interactive: InteractiveTerms = _TERMS
    #: Why storage cannot be written; empty while it can.
    storage_fault: str = ""
