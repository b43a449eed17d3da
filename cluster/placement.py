"""Which waiting job starts on which card, and which running one moves: a pure function from a snapshot to decisions.

Six steps, one after the other: the *heads* of the queues that may start at all, the *eligible* cards of each, the
*order* in which owners and jobs take their turn, the *plan* of a batch's tail where there is one, the *moves* it asks
for, and the *reasons* of those that wait.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

from cluster.breaker import Route, route_of
from cluster.cards import Card, Fleet
from cluster.jobs import Job
from cluster.lessons import ELSEWHERE, Lessons, key_of
from cluster.owners import DEFAULT_SHARE, OwnerShare
from cluster.planning.parts import TailPlan
from cluster.standing import Extent, IdleCards, Standing
from pipeline.clip import ClipSpec
from pipeline.footprint import Footprint, leanest, plan

#: A waiting job rises by one priority each time it has waited so long, in seconds: nobody waits for ever.
AGEING_S = 1800
#: All of a clip that may say something of the memory it takes.
_shape = attrgetter(*(name for name in ClipSpec.model_fields if name not in ("prompt", "negative_prompt", "seed")))
#: More bytes than any card has.
_NOWHERE = 2**62
#: A job is passed over on a card that has another family loaded for one of that family that came up to so much later.
WARM_WINDOW_S = 60


class WaitReason(IntEnum):
    """Why a job does not start now, from the hardest to the lightest."""

    NO_CARD_OF_THIS_SIZE = 1
    #: Clips of this kind failed again and again on every card that holds it: none is tried for a while.
    FITTING_CARDS_FAILED = 2
    #: An operator, or too many errors, took every card that holds it out of use.
    FITTING_CARDS_LOCKED = 3
    #: It is not to start before a time of its own.
    NOT_BEFORE = 4
    #: Its owner has as many clips on cards as they may have.
    OWNER_AT_LIMIT = 5
    EQUAL_CLIP_RUNNING = 6
    #: The batch ends earlier when it starts later, on a faster card.
    PLANNED_LATER = 7
    #: The cards that hold it are kept for jobs of a higher priority, or for those that came earlier.
    BEHIND_OTHERS = 8
    ALL_FITTING_CARDS_BUSY = 9


class WorkKind(NamedTuple):
    """Jobs that placement need not tell apart."""

    family: str
    resolution_class: str
    needs_bytes: int


def work_kind(job: Job) -> WorkKind:
    """The kind of a job."""
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


@dataclass(frozen=True)
class Wait:
    """Leave `job` waiting."""

    job: Job
    reason: WaitReason


@dataclass(frozen=True)
class Refuse:
    """No card this farm can ever have holds `job`."""

    job: Job


@dataclass(frozen=True)
class Relax:
    """What was measured says that no card holds the layout `job` waits for: let it have a leaner one."""

    job: Job


@dataclass(frozen=True)
class ShowMore:
    """All that was shown of a queue starts, and it may be longer: what comes behind it is decided at the next look."""


Decision = Start | Move | Wait | Refuse | Relax | ShowMore


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job on a card."""

    job: Job
    #: Id of the card.
    card: str
    #: Steps done.
    step: int = 0
    #: Measured seconds of a step in this attempt; None before there are any.
    step_s: float | None = None
    #: Seconds since its last step ended, or since it came to the card.
    since_step_s: float = 0.0
    #: It can be stopped between two steps and go on elsewhere.
    movable: bool = False


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that placement may know."""

    #: The first jobs of every queue; a queue is one owner's jobs of one kind and priority.
    waiting: Sequence[Job]
    #: So many of each queue at most: one that has as many may be longer. None: all that wait are there.
    shown: int | None = None
    cards: Sequence[Card] = ()
    fleet: Fleet
    lessons: Lessons = field(default_factory=Lessons)
    #: Routes behind an open breaker.
    closed: frozenset[Route] = frozenset()
    running: Sequence[Running] = ()
    owners: Mapping[str, OwnerShare] = field(default_factory=dict)
    #: Card seconds that owners had of late: of two with equally many cards for their weight, whoever had less is next.
    used_s: Mapping[str, float] = field(default_factory=dict)
    #: Ids of cards that an operator, or too many errors, took out of use.
    locked: frozenset[str] = frozenset()
    #: Cards, what runs on them and what is locked, where whoever asks has it indexed already: those three need not be
    #: given then, but for a plan.
    standing: Standing | None = None
    #: What to do with the tail of a batch; None: nothing is planned.
    plan: TailPlan | None = None
    #: Jobs that wait besides: queues are longer than what is seen of them.
    unseen: int = 0
    #: Where jobs belong while many wait; kinds that are not named take the smallest cards that hold them.
    suits: Mapping[WorkKind, Suit] = field(default_factory=dict)


def expected_bytes(job: Job, kind: str, lessons: Lessons) -> int:
    """What a card of `kind` must have usable for `job`: its `needs_bytes`, as far as nothing better is known.

    A need that is a prediction is corrected by what was measured, upwards or downwards; one that was raised after an
    attempt failed is never lowered.
    """
    if not lessons.lessons or job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return job.needs_bytes
    layout, predicted = planned
    corrected = lessons.corrected(predicted, key_of(job.spec, layout, kind), layout)
    return corrected if _is_prediction(job, predicted) else max(job.needs_bytes, corrected)


def effective_priority(job: Job, now: float) -> int:
    """The job's priority, risen with its waiting."""
    return job.priority + max(0, int(now - job.created_at)) // AGEING_S


def place(snapshot: Snapshot, now: float = 0.0, *, reasons: bool = True) -> list[Decision]:
    """Decisions on every waiting job, and moves of running ones; `now` in seconds, on the clock of `Job.created_at`.

    No card gets two jobs and no job two cards. No card that holds a waiting job stays idle, except where the plan of a
    batch's tail says that the batch ends earlier so, or where `ShowMore` is among the decisions. Without `reasons` jobs
    that wait are left out.
    """
    return list(_Placing(snapshot, now).decide(reasons=reasons))


class _Line:
    """Jobs of one owner, kind and level of priority, with the same needs: if one of them gets no card, none does."""

    __slots__ = ("jobs", "needs", "suit")

    def __init__(self, needs: Mapping[str, int], suit: Suit | None) -> None:
        self.needs, self.suit = needs, suit
        #: The next one is last.
        self.jobs: list[Job] = []

    def rank(self) -> tuple[int, str, float, int]:
        """By age; of one batch the longest first."""
        job = self.jobs[-1]
        return job.created_at, job.batch_id, -self.suit.seconds if self.suit else 0.0, job.number


class _Placing:
    """One call of `place`."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self._snapshot = snapshot
        self._now = now
        standing = snapshot.standing
        if standing is None:
            standing = Standing(snapshot.cards, (r.job for r in snapshot.running), snapshot.locked)
        self._standing, self._all, self._usable = standing, standing.all, standing.usable
        self._began_idle = [card for card in standing.idle.values() if card.card not in standing.locked]
        self._idle = IdleCards(self._began_idle)
        self._kinds = tuple(sorted(self._all.largest))
        #: Of each job that was looked at; exceptions among them: experience may be wrong and refuses nothing.
        self._needs_of_job: dict[str, Mapping[str, int]] = {}
        self._held: dict[int, bool] = {}
        #: What is started now, on top of what runs.
        self._taken: set[tuple[str, str | None]] = set()
        self._more: Counter[str] = Counter()
        #: How many of each queue have neither started nor been passed over for an equal clip, if it may be longer.
        self._left: Counter[tuple[object, ...]] = Counter()
        #: One has run out: nothing more is decided.
        self._short = False
        if (shown := snapshot.shown) is not None:
            seen = Counter(job.queue for job in snapshot.waiting)
            self._left = Counter({queue: count for queue, count in seen.items() if count >= shown})

    def decide(self, *, reasons: bool) -> Iterator[Decision]:
        heads: list[Job] = []
        for job in self._snapshot.waiting:
            if (decision := self._head(job)) is None:
                heads.append(job)
                continue
            if self._left and (queue := job.queue) in self._left:
                # Turned away for itself: it hides nothing that waits behind it.
                self._left[queue] -= 1
            if reasons or not isinstance(decision, Wait):
                yield decision
        starts: dict[str, Start] = {}
        if self._snapshot.plan is not None:
            for start in self._in_order(self._urgent(self._snapshot.plan, heads)):
                starts[start.job.id] = start
            for start in self._planned(self._snapshot.plan, heads):
                starts[start.job.id] = start
            yield from self._moves(self._snapshot.plan)
        for start in self._in_order([job for job in heads if job.id not in starts and not self._is_planned(job)]):
            starts[start.job.id] = start
        yield from starts.values()
        if self._short:
            yield ShowMore()
        for job in heads if reasons else ():
            if job.id not in starts:
                yield Wait(job, self._reason(job))

    # -- heads: who may start at all ------------------------------------------------------------------------------

    def _head(self, job: Job) -> Decision | None:
        snapshot = self._snapshot
        if job.needs_bytes > snapshot.fleet.largest_bytes:
            return Refuse(job)
        if job.not_before is not None and job.not_before > self._now:
            return Wait(job, WaitReason.NOT_BEFORE)
        if self._is_taken(job):
            return Wait(job, WaitReason.EQUAL_CLIP_RUNNING)
        if not self._is_held(self._needs_of(job)) and self._nowhere_by_experience(job):
            if _can_relax(job):
                return Relax(job)
            # The largest card that should hold it is tried.
            most = max(card.usable_bytes for card in self._all.of_classes if card.usable_bytes >= job.needs_bytes)
            self._needs_of_job[job.id] = dict.fromkeys(self._all.largest, most)
        return None

    def _is_held(self, needs: Mapping[str, int]) -> bool:
        # Needs are shared by all jobs that have the same, and live as long as this.
        if (known := self._held.get(id(needs))) is None:
            known = self._held[id(needs)] = self._all.holds(needs)
        return known

    def _nowhere_by_experience(self, job: Job) -> bool:
        """Whether a card that is there should hold `job`, and by experience no class does that is not there."""
        snapshot = self._snapshot
        if all(usable < job.needs_bytes for usable in self._all.largest.values()):
            return False
        present = {card.card_class for card in self._all.of_classes}
        expected = expected_bytes(job, ELSEWHERE, snapshot.lessons)
        return not any(
            usable >= expected for name, usable in snapshot.fleet.usable_bytes.items() if name not in present
        )

    # -- eligible: which cards hold it ----------------------------------------------------------------------------

    def _needs_of(self, job: Job) -> Mapping[str, int]:
        """Bytes that a card must have usable for `job`, by card kind."""
        if (known := self._needs_of_job.get(job.id)) is None:
            known = self._needs_of_job[job.id] = self._needs_like(job)
        return known

    def _needs_like(self, job: Job) -> Mapping[str, int]:
        """The same object for all jobs that are alike."""
        lessons, spec = self._snapshot.lessons, job.spec
        # Without lessons and breakers there is nothing to tell kinds or shapes apart by.
        shape = _shape(spec) if spec is not None and (lessons.lessons or self._snapshot.closed) else None
        key = (job.needs_bytes, shape, self._kinds)
        if (known := lessons.memory.get(key)) is None:
            known = lessons.memory[key] = {kind: expected_bytes(job, kind, lessons) for kind in self._kinds}
        return known

    def _is_closed(self, job: Job, card: Card) -> bool:
        closed = self._snapshot.closed
        if not closed or job.spec is None or all(route.card != card.card for route in closed):
            return False
        return route_of(job.spec, card.card, card.usable_bytes) in closed

    # -- order: whose turn it is ----------------------------------------------------------------------------------

    def _in_order(self, heads: Sequence[Job]) -> Iterator[Start]:
        """Starts by priority; within one, owners in turn, and each owner's jobs by age.

        At each priority jobs first take cards that suit them, or of the smallest class that holds them; what is left
        of larger cards goes to whoever needs the largest. So a small clip takes a large card only where no larger one
        of its priority waits for it.
        """
        levels: dict[int, list[Job]] = defaultdict(list)
        for job in heads:
            levels[effective_priority(job, self._now)].append(job)
        for level in sorted(levels, reverse=True):
            if self._short or not self._idle:
                return
            warm, lines = _earliest(levels[level]), self._lines(levels[level])
            yield from self._in_turn(lines, warm, own_class=True)
            passed: dict[int, list[_Line]] = defaultdict(list)
            for line in lines:
                if line.jobs and (size := self._usable.rank_for(line.needs)) is not None:
                    passed[size].append(line)
            for size in sorted(passed, reverse=True):
                yield from self._in_turn(passed[size], warm, own_class=False)

    def _lines(self, jobs: Iterable[Job]) -> list[_Line]:
        lines: dict[tuple[object, ...], _Line] = {}
        for job in jobs:
            needs, spec = self._needs_of(job), job.spec
            key = (job.owner, id(needs), spec and spec.family, spec and spec.resolution_class)
            if (line := lines.get(key)) is None:
                line = lines[key] = _Line(needs, self._snapshot.suits.get(work_kind(job)))
            line.jobs.append(job)
        for line in lines.values():
            line.jobs.sort(key=_age, reverse=True)
        return list(lines.values())

    def _in_turn(self, lines: Iterable[_Line], warm: Mapping[str, int], *, own_class: bool) -> Iterator[Start]:
        """Starts by age, those of the owner first who has fewest running for their weight.

        Ends when no card is idle, or when what was shown of a queue has started. What did not start stays in `lines`.
        """
        of_owner: dict[str, list[tuple[object, int, _Line]]] = defaultdict(list)
        for number, line in enumerate(lines):
            of_owner[line.jobs[-1].owner].append((line.rank(), number, line))
        for mine in of_owner.values():
            heapq.heapify(mine)
        turns = [(self._share_of(owner), owner) for owner in of_owner]
        heapq.heapify(turns)
        while turns and self._idle and not self._short:
            _, owner = heapq.heappop(turns)
            if self._at_limit(owner):
                continue
            mine = of_owner[owner]
            _, number, line = mine[0]
            job, card = line.jobs[-1], None
            if taken := self._is_taken(job):
                self._settle(line.jobs.pop())
            elif card := self._card_for(job, line, warm, own_class=own_class):
                self._take(job, card)
                self._settle(line.jobs.pop())
                yield Start(job, card)
            if (taken or card) and line.jobs:
                heapq.heapreplace(mine, (line.rank(), number, line))
            else:
                heapq.heappop(mine)
            if mine:
                heapq.heappush(turns, (self._share_of(owner), owner))

    def _settle(self, job: Job) -> None:
        queue = job.queue if self._left else ()
        if queue in self._left:
            self._left[queue] -= 1
            self._short |= self._left[queue] == 0

    def _share_of(self, owner: str) -> tuple[float, float]:
        weight = self._snapshot.owners.get(owner, DEFAULT_SHARE).weight
        return self._running_of(owner) / weight, self._snapshot.used_s.get(owner, 0.0) / weight

    def _at_limit(self, owner: str) -> bool:
        most = self._snapshot.owners.get(owner, DEFAULT_SHARE).max_running
        return most is not None and self._running_of(owner) >= most

    def _running_of(self, owner: str) -> int:
        return self._standing.load.get(owner, 0) + self._more[owner]

    def _card_for(self, job: Job, line: _Line, warm: Mapping[str, int], *, own_class: bool) -> Card | None:
        needs, family = line.needs, job.spec.family if job.spec else ""
        only = None
        if own_class and line.suit:
            needs = {kind: count if kind in line.suit.card_kinds else _NOWHERE for kind, count in needs.items()}
        elif own_class:
            only = self._usable.class_for(needs)
        if not self._idle.holds(needs):
            return None
        # In the second round it may have those as well, if the others did not take them.
        others = {
            other
            for other, came in warm.items()
            if own_class and other != family and came <= job.created_at + WARM_WINDOW_S
        }
        for card in self._idle.fitting(needs, family, others):
            if only is not None and card.card_class != only:
                return None
            if not self._is_closed(job, card):
                return card
        return None

    def _may_start(self, job: Job) -> bool:
        return not self._at_limit(job.owner) and not self._is_taken(job)

    def _is_taken(self, job: Job) -> bool:
        key = (job.owner, job.content_key)
        return key in self._taken or key in self._standing.held

    def _take(self, job: Job, card: Card) -> None:
        self._idle.remove(card)
        self._taken.add((job.owner, job.content_key))
        self._more[job.owner] += 1

    # -- plan and moves: the tail of a batch ----------------------------------------------------------------------

    def _urgent(self, tail: TailPlan, heads: Sequence[Job]) -> list[Job]:
        """Jobs that have priority over all that is planned: no plan keeps them waiting."""
        planned = [job for job in heads if job.id in tail.jobs]
        planned = planned or [r.job for r in self._snapshot.running if r.job.id in tail.jobs]
        level = max((effective_priority(job, self._now) for job in planned), default=None)
        if level is None:
            return []
        return [job for job in heads if job.id not in tail.jobs and effective_priority(job, self._now) > level]

    def _planned(self, tail: TailPlan, heads: Sequence[Job]) -> Iterator[Start]:
        """Starts that the plan asks for now. Cards that it keeps for later are then no longer idle to anybody else."""
        waiting = {job.id: job for job in heads}
        steps = {job.id: job.step for job in heads} | {r.job.id: r.step for r in self._snapshot.running}
        for card in list(self._idle):
            part = tail.next_on(card.card, steps)
            if part is None:
                continue
            job = waiting.get(part.job)
            if job is None or not tail.is_turn(part, job.step):
                # A job that cannot go by the plan where it is now may never come here.
                if job is None or self._is_planned(job):
                    self._idle.remove(card)
            elif self._suits_plan(job, card):
                self._take(job, card)
                yield Start(job, card)

    def _is_planned(self, job: Job) -> bool:
        """Whether the plan has a card for `job`, and that can be kept to."""
        tail = self._snapshot.plan
        if tail is None or (part := tail.part_of(job.id, job.step)) is None:
            return False
        card = self._by_name.get(part.card)
        return card is not None and self._suits_plan(job, card)

    def _suits_plan(self, job: Job, card: Card) -> bool:
        return self._may_start(job) and self._is_able(job, card)

    def _is_able(self, job: Job, card: Card) -> bool:
        return card.usable_bytes >= self._needs_of(job)[card.kind] and not self._is_closed(job, card)

    @cached_property
    def _by_name(self) -> Mapping[str, Card]:
        return {card.card: card for card in self._standing.cards.values() if card.card not in self._standing.locked}

    def _moves(self, tail: TailPlan) -> Iterator[Move]:
        """Running jobs that have done the steps that they were to do where they are."""
        steps = {job.id: job.step for job in self._snapshot.waiting}
        steps |= {r.job.id: r.step for r in self._snapshot.running}
        for r in self._snapshot.running:
            if r.movable and (to := tail.leaves_for(r.job.id, r.card, steps)) is not None:
                # It stays where it is if the other card is out of use, or does not hold it any more.
                card = self._by_name.get(to)
                if card is not None and self._is_able(r.job, card):
                    yield Move(r.job, r.card, to)

    # -- reasons: why it waits ------------------------------------------------------------------------------------

    def _reason(self, job: Job) -> WaitReason:
        needs = self._needs_of(job)
        if not self._all.holds(needs):
            return WaitReason.NO_CARD_OF_THIS_SIZE
        if (
            self._snapshot.closed
            and not self._unbroken.holds(needs)
            and all(self._is_closed(job, card) for card in self._broken if card.usable_bytes >= needs[card.kind])
        ):
            return WaitReason.FITTING_CARDS_FAILED
        if not self._usable.holds(needs):
            return WaitReason.FITTING_CARDS_LOCKED
        if self._is_taken(job):
            return WaitReason.EQUAL_CLIP_RUNNING
        if self._at_limit(job.owner):
            return WaitReason.OWNER_AT_LIMIT
        if self._snapshot.plan is not None and job.id in self._snapshot.plan.jobs:
            return WaitReason.PLANNED_LATER
        if self._idle_at_first.holds(needs) or any(
            card.idle and card.usable_bytes >= needs[card.kind] and not self._is_closed(job, card)
            for card in self._broken
            if card.card not in self._standing.locked
        ):
            return WaitReason.BEHIND_OTHERS
        return WaitReason.ALL_FITTING_CARDS_BUSY

    @cached_property
    def _idle_at_first(self) -> Extent:
        names = {card.card for card in self._broken}
        return Extent(card for card in self._began_idle if card.card not in names)

    @cached_property
    def _broken(self) -> Sequence[Card]:
        """Cards on which a breaker is open, for whatever clips."""
        names = {route.card for route in self._snapshot.closed}
        return [card for card in self._standing.cards.values() if card.card in names]

    @cached_property
    def _unbroken(self) -> Extent:
        names = {card.card for card in self._broken}
        return Extent(card for card in self._standing.cards.values() if card.card not in names)


def _age(job: Job) -> tuple[int, str, int]:
    return job.created_at, job.batch_id, job.number


def _earliest(jobs: Iterable[Job]) -> dict[str, int]:
    """When the oldest of the jobs of each family came."""
    found: dict[str, int] = {}
    for job in jobs:
        if job.spec is not None:
            found[job.spec.family] = min(job.created_at, found.get(job.spec.family, job.created_at))
    return found


def _can_relax(job: Job) -> bool:
    if job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return False
    return _is_prediction(job, planned[1]) and leanest(job.spec)[1].peak_bytes < job.needs_bytes


def _is_prediction(job: Job, predicted: Footprint) -> bool:
    return job.needs_bytes == predicted.peak_bytes
