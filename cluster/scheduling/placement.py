"""Which waiting job starts on which card, and which running one moves: a pure function from a snapshot to decisions.

Seven steps, one after the other: the *heads* of the queues that may start at all, the *eligible* cards of each
(`eligible.py`), the *plan* of a batch's tail where there is one, and the *moves* it asks for (`tail/follow.py`), the
*order* in which owners and jobs take their turn, each on the smallest card that it fits, the *room* that running clips
make for interactive jobs (`interactive.py`, `preemption.py`), and the *reasons* of those that wait (`wait_reasons.py`).
What is left of cards and shares meanwhile is in `remaining.py`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cluster.fleet.cards import Card
from cluster.jobs.model import Job
from cluster.scheduling.eligible import NOWHERE, EligibleCards, can_relax
from cluster.scheduling.preemption import Room
from cluster.scheduling.priority import effective_priority
from cluster.scheduling.remaining import Remaining
from cluster.scheduling.snapshot import (
    Decision,
    Refuse,
    Relax,
    ShowMore,
    Snapshot,
    Start,
    Suit,
    Wait,
    WaitReason,
    work_kind,
)
from cluster.scheduling.tail.follow import FollowedPlan
from cluster.scheduling.wait_reasons import WaitReasons

#: So many seconds a job waits for a larger card of the class that it fits by promise, where those here are smaller.
PROMISE_S = 300
#: A job is passed over on a card that has another family loaded for one of that family that came up to so much later.
WARM_WINDOW_S = 60


def place(snapshot: Snapshot, now: float = 0.0, *, reasons: bool = True) -> list[Decision]:
    """Decisions on every waiting job, and moves of running ones; `now` in seconds, on the clock of `Job.created_at`.

    No card gets two jobs and no job two cards. No card that a waiting job fits stays idle, except where a plan says
    that the job or its batch ends earlier so, or where `ShowMore` is among the decisions. Without `reasons` jobs that
    wait are left out.
    """
    eligible, remaining = EligibleCards(snapshot), Remaining(snapshot)
    decisions: list[Decision] = []
    heads: list[Job] = []
    for job in snapshot.waiting:
        if (turned_away := _turned_away(job, snapshot, now, eligible, remaining)) is None:
            heads.append(job)
            continue
        remaining.pass_over(job)
        if reasons or not isinstance(turned_away, Wait):
            decisions.append(turned_away)
    turns = _Turns(snapshot, now, eligible, remaining)
    starts: dict[str, Start] = {}
    plan = None
    if snapshot.plan is not None:
        plan = FollowedPlan(snapshot.plan, snapshot, now, eligible, remaining)
        starts |= {start.job.id: start for start in turns.starts(plan.urgent(heads))}
        starts |= {start.job.id: start for start in plan.starts(heads)}
        decisions += plan.moves()
    others = [job for job in heads if job.id not in starts and not (plan is not None and plan.is_planned(job))]
    starts |= {start.job.id: start for start in turns.starts(others)}
    decisions += starts.values()
    left = [job for job in heads if job.id not in starts]
    if remaining.is_short:
        decisions.append(ShowMore())
    elif snapshot.admitted:
        first = sorted((job for job in left if job.id in snapshot.admitted), key=turns.turn_of)
        decisions += Room(snapshot, eligible, remaining).preemptions(first)
    if reasons:
        why = WaitReasons(snapshot, eligible, remaining)
        decisions += (Wait(job, why.of(job)) for job in left)
    return decisions


def _turned_away(
    job: Job, snapshot: Snapshot, now: float, eligible: EligibleCards, remaining: Remaining
) -> Decision | None:
    """What keeps `job` from being a head, whatever else waits; None where nothing does."""
    if job.needs_bytes > snapshot.fleet.largest_bytes:
        return Refuse(job)
    if job.not_before is not None and job.not_before > now:
        return Wait(job, WaitReason.NOT_BEFORE)
    if remaining.has_equal(job):
        return Wait(job, WaitReason.EQUAL_CLIP_RUNNING)
    if eligible.fits_somewhere(job):
        return None
    if eligible.is_ruled_out_by_experience(job):
        if can_relax(job):
            return Relax(job)
        eligible.try_largest(job)
    elif now - max(job.created_at, job.not_before or 0) >= PROMISE_S and eligible.is_promised_in_vain(job):
        return Relax(job) if can_relax(job) else None
    return None


class _Alike:
    """Jobs of one owner, kind and *effective* priority with the same needs: if one of them gets no card, none does.

    Not a `Job.queue`: jobs of several queues come to one priority as they age, and what was measured can tell shapes
    of one queue apart.
    """

    __slots__ = ("jobs", "needs", "suit")

    def __init__(self, needs: Mapping[str, int], suit: Suit | None) -> None:
        self.needs, self.suit = needs, suit
        #: The next one is last.
        self.jobs: list[Job] = []

    def rank(self) -> tuple[int, str, float, int]:
        """Sorts by the age of the next job; of one batch the longest first."""
        job = self.jobs[-1]
        return job.created_at, job.batch_id, -self.suit.seconds if self.suit else 0.0, job.number


class _Turns:
    """Starts jobs in turn, each on the smallest card that it fits."""

    def __init__(self, snapshot: Snapshot, now: float, eligible: EligibleCards, remaining: Remaining) -> None:
        self._suits, self._now, self._eligible, self._remaining = snapshot.suits, now, eligible, remaining
        self._usable, self._admitted = snapshot.card_index.usable, snapshot.admitted

    def starts(self, heads: Sequence[Job]) -> Iterator[Start]:
        """Starts by priority, admitted jobs before all others; within one, owners in turn, each owner's jobs by age.

        At each priority jobs first take cards that suit them, or of the smallest class that they fit; what is left of
        larger cards goes to whoever needs the largest. So a small clip takes a large card only where no larger one of
        its priority waits for it.
        """
        levels: dict[tuple[bool, int], list[Job]] = defaultdict(list)
        for job in heads:
            levels[job.id in self._admitted, effective_priority(job, self._now)].append(job)
        for level in sorted(levels, reverse=True):
            if self._remaining.is_short or not self._remaining.idle:
                return
            warm, groups = _earliest(levels[level]), self._groups(levels[level])
            yield from self._in_turn(groups, warm, own_class=True)
            passed: dict[int, list[_Alike]] = defaultdict(list)
            for group in groups:
                if group.jobs and (size := self._usable.rank_for(group.needs)) is not None:
                    passed[size].append(group)
            for size in sorted(passed, reverse=True):
                yield from self._in_turn(passed[size], warm, own_class=False)

    def turn_of(self, job: Job) -> tuple[int, int, str, int]:
        """Sorts admitted jobs by priority, then age."""
        return -effective_priority(job, self._now), *_age(job)

    def _groups(self, jobs: Iterable[Job]) -> list[_Alike]:
        groups: dict[tuple[object, ...], _Alike] = {}
        for job in jobs:
            needs, spec = self._eligible.needs_of(job), job.spec
            key = (job.owner, id(needs), spec and spec.family, spec and spec.resolution_class)
            if (group := groups.get(key)) is None:
                group = groups[key] = _Alike(needs, self._suits.get(work_kind(job)))
            group.jobs.append(job)
        for group in groups.values():
            group.jobs.sort(key=_age, reverse=True)
        return list(groups.values())

    def _in_turn(self, groups: Iterable[_Alike], warm: Mapping[str, int], *, own_class: bool) -> Iterator[Start]:
        """Starts by age, those of the owner first who has fewest running for their weight.

        Ends when no card is idle, or when what was shown of a queue has started. What did not start stays in `groups`.
        """
        remaining = self._remaining
        of_owner: dict[str, list[tuple[object, int, _Alike]]] = defaultdict(list)
        for number, group in enumerate(groups):
            of_owner[group.jobs[-1].owner].append((group.rank(), number, group))
        for mine in of_owner.values():
            heapq.heapify(mine)
        turns = [(remaining.share_of(owner), owner) for owner in of_owner]
        heapq.heapify(turns)
        while turns and remaining.idle and not remaining.is_short:
            _, owner = heapq.heappop(turns)
            if remaining.at_limit(owner):
                continue
            mine = of_owner[owner]
            _, number, group = mine[0]
            job, card = group.jobs[-1], None
            if has_equal := remaining.has_equal(job):
                remaining.settle(group.jobs.pop())
            elif card := self._card_for(job, group, warm, own_class=own_class):
                remaining.take(job, card)
                remaining.settle(group.jobs.pop())
                yield Start(job, card)
            if (has_equal or card) and group.jobs:
                heapq.heapreplace(mine, (group.rank(), number, group))
            else:
                heapq.heappop(mine)
            if mine:
                heapq.heappush(turns, (remaining.share_of(owner), owner))

    def _card_for(self, job: Job, group: _Alike, warm: Mapping[str, int], *, own_class: bool) -> Card | None:
        """The idle card with least memory that `job` fits, of equal ones a warm one."""
        needs, family = group.needs, job.spec.family if job.spec else ""
        only = None
        if own_class and group.suit:
            needs = {kind: count if kind in group.suit.card_kinds else NOWHERE for kind, count in needs.items()}
        elif own_class:
            only = self._usable.class_for(needs)
        if not self._remaining.idle.fits(needs):
            return None
        # In the second round it may have those as well, if the others did not take them.
        others = {
            other
            for other, came in warm.items()
            if own_class and other != family and came <= job.created_at + WARM_WINDOW_S
        }
        for card in self._remaining.idle.fitting(needs, family, others):
            if only is not None and card.card_class != only:
                return None
            if not self._eligible.is_blocked(job, card):
                return card
        return None


def _age(job: Job) -> tuple[int, str, int]:
    return job.created_at, job.batch_id, job.number


def _earliest(jobs: Iterable[Job]) -> dict[str, int]:
    """When the oldest of the jobs of each family came."""
    found: dict[str, int] = {}
    for job in jobs:
        if job.spec is not None:
            found[job.spec.family] = min(job.created_at, found.get(job.spec.family, job.created_at))
    return found
