"""What placement looks at, and what it decides. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from cluster.estimates.memory import MemoryEstimates
from cluster.fleet.breakers import Route
from cluster.fleet.card_index import CardIndex
from cluster.fleet.cards import Card, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.model import Job
from cluster.scheduling.pace import Pace
from cluster.scheduling.tail.plan import TailPlan


class WaitReason(IntEnum):
    """Why a job does not start now, from the hardest to the lightest."""

    NO_CARD_OF_THIS_SIZE = 1
    #: Clips of this kind failed again and again on every card that it fits: none is tried for a while.
    FITTING_CARDS_FAILED = 2
    #: An operator, or too many errors, took every card that it fits out of use.
    FITTING_CARDS_LOCKED = 3
    #: The job is not to start before a time of its own.
    NOT_BEFORE = 4
    #: The owner has as many clips on cards as they may have.
    OWNER_AT_LIMIT = 5
    EQUAL_CLIP_RUNNING = 6
    #: The job or its batch ends earlier when it starts later, on a faster card.
    PLANNED_LATER = 7
    #: The cards that it fits are kept for jobs of a higher priority, or for those that came earlier.
    BEHIND_OTHERS = 8
    ALL_FITTING_CARDS_BUSY = 9


class WorkKind(NamedTuple):
    """What jobs of several queues have in common: a `Job.queue` without its owner and priority."""

    family: str
    resolution_class: str
    needs_bytes: int


def work_kind(job: Job) -> WorkKind:
    """What `job` has in common with jobs of other owners and priorities."""
    spec = job.spec
    return WorkKind(spec.family if spec else "", str(spec.resolution_class) if spec else "", job.needs_bytes)


@dataclass(frozen=True, kw_only=True)
class Suit:
    """How jobs of one kind belong to a farm with much to do."""

    #: Kinds of cards that should have them.
    card_kinds: frozenset[str]
    #: What one takes on the fastest, in seconds: of one batch the longest go first.
    seconds: float


@dataclass(frozen=True)
class Start:
    """Start `job` on `card` now."""

    job: Job
    card: Card


@dataclass(frozen=True)
class Move:
    """Save a checkpoint of the running `job` and stop it on the card `source`: it goes on on the card `to`."""

    job: Job
    source: str
    to: str


@dataclass(frozen=True, kw_only=True)
class Preempt:
    """Save a checkpoint of the running `job` and stop it on `card`: the interactive job `waits` is to start there."""

    job: Job
    #: Id of the card.
    card: str
    waits: Job
    #: Card seconds that it costs: saving and loading, nothing else.
    cost_s: float


@dataclass(frozen=True)
class Wait:
    """Leave `job` waiting."""

    job: Job
    reason: WaitReason


@dataclass(frozen=True)
class Refuse:
    """`job` fits no card that this farm can ever have."""

    job: Job


@dataclass(frozen=True)
class Relax:
    """The layout `job` waits for fits no card, by what was measured or by the cards here: let it have a leaner one."""

    job: Job


@dataclass(frozen=True)
class ShowMore:
    """All that was shown of a queue starts, and it may be longer: what comes behind it is decided at the next look."""


Decision = Start | Move | Preempt | Wait | Refuse | Relax | ShowMore


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job on a card, and how far it is."""

    job: Job
    #: Id of the card.
    card: str
    #: Steps done.
    step: int = 0
    #: Measured seconds of a step in this attempt; None before there are any.
    step_s: float | None = None
    #: Seconds since its last step ended, or since it came to the card.
    since_step_s: float = 0.0
    #: The clip can be stopped between two steps and go on elsewhere.
    movable: bool = False
    #: The clip was told to save a checkpoint and stop.
    leaving: bool = False
    #: How often it has made room for an interactive clip.
    preempted: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that placement may know."""

    #: The first jobs of every `Job.queue`.
    waiting: Sequence[Job]
    #: So many of each queue at most: one that has as many may be longer. None: all that wait are there.
    shown: int | None = None
    #: Jobs that wait besides: queues are longer than what is seen of them.
    unseen: int = 0
    fleet: Fleet
    #: Cards, which of them are idle or out of use, and how many clips run for whom.
    card_index: CardIndex = field(default_factory=CardIndex)
    #: How far each running job is. Read only to make a plan, to follow one, and to make room for an interactive job:
    #: else it may be left out.
    running: Sequence[Running] = ()
    #: Ids of cards that come up, go away, cannot be used or are not heard: no plan counts on them.
    unavailable: frozenset[str] = frozenset()
    #: Routes that an open breaker blocks.
    blocked: frozenset[Route] = frozenset()
    memory: MemoryEstimates = field(default_factory=MemoryEstimates)
    owners: Mapping[str, OwnerShare] = field(default_factory=dict)
    #: Card seconds that owners had of late: of two with equally many cards for their weight, whoever had less is next.
    used_s: Mapping[str, float] = field(default_factory=dict)
    #: What to do with the tail of a batch; None: nothing is planned.
    plan: TailPlan | None = None
    #: Ids of the interactive jobs that go before all others, and for which running clips make room.
    admitted: frozenset[str] = frozenset()
    #: Ids of admitted jobs for which a clip was told to make room: their card is about to be free.
    promised: frozenset[str] = frozenset()
    #: How long things take, where that is known: for whose room costs least.
    pace: Pace | None = None
    #: Where jobs belong while many wait; kinds that are not named take the smallest cards that they fit.
    suits: Mapping[WorkKind, Suit] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        cards: Iterable[Card] = (),
        running: Sequence[Running] = (),
        locked: frozenset[str] = frozenset(),
        **rest: Any,
    ) -> Snapshot:
        """A snapshot of cards and of what runs on them, indexed here; `locked`: ids of cards that are out of use."""
        return cls(card_index=CardIndex(cards, (one.job for one in running), locked), running=running, **rest)

    @property
    def cards(self) -> Sequence[Card]:
        """All cards, those out of use among them: a list made anew, for those who look at every card."""
        return list(self.card_index.cards.values())

    @property
    def locked(self) -> frozenset[str]:
        """Ids of cards that are out of use."""
        return self.card_index.locked

    def but(
        self,
        *,
        cards: Iterable[Card] | None = None,
        running: Sequence[Running] | None = None,
        locked: frozenset[str] | None = None,
    ) -> Snapshot:
        """A copy with other cards, running jobs or cards out of use, indexed anew; None: as they are."""
        running = self.running if running is None else running
        index = CardIndex(
            self.card_index.cards.values() if cards is None else cards,
            (one.job for one in running),
            self.card_index.locked if locked is None else locked,
        )
        return replace(self, card_index=index, running=running)
