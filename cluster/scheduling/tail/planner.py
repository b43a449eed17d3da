"""When a plan is made, kept and given up, and what of the present it is made from."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.estimates.memory import MemoryEstimates
from cluster.estimates.times import TimeEstimates
from cluster.fleet.breakers import Route, route_of
from cluster.fleet.cards import Card
from cluster.fleet.quotas import DEFAULT_SHARE
from cluster.jobs.model import Job
from cluster.scheduling.eligible import expected_bytes
from cluster.scheduling.pace import Pace
from cluster.scheduling.priority import effective_priority
from cluster.scheduling.snapshot import Running, Snapshot, Suit, WorkKind, work_kind
from cluster.scheduling.tail.arrivals import come_one_by_one, end_early
from cluster.scheduling.tail.backfill import sooner
from cluster.scheduling.tail.bound import shortest
from cluster.scheduling.tail.plan import PlannedPart, TailPlan
from cluster.scheduling.tail.schedule import Piece, Place, Schedule, Task, play
from cluster.scheduling.tail.search import MOST_LISTED, MOST_SLICED, VARIANTS, least_s, make_plan
from pipeline.families import FAMILIES, is_resumable

#: Work that all cards together have done in so many seconds is not worth a plan.
_LEAST_S = 20.0
#: Jobs that come are planned so often at most, in seconds.
_EVERY_S = 5.0
#: A plan that is late by this share of what is left, and by at least so many seconds, is looked at again.
_LATE = 0.03
_LATE_S = 1.0
#: A step that began no longer ago than this, in seconds, has not begun: a clip can still be stopped before it.
_JUST_S = 1e-6
#: A card may have so much less usable before a plan that counts on it is made anew.
_LESS = 0.99
#: Cheaper moves, in seconds, mend whatever was begun on the wrong card (benchmarks/makespan.py, 200 clips).
_DEAR_S = 2.0
#: A smaller share of its jobs on a card kind is no reason to send them there.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class _CardKind:
    """Cards that a plan need not tell apart."""

    kind: str
    usable_bytes: int
    #: Routes, but for their card, that a breaker blocks.
    blocked: frozenset[tuple[str, ...]] = frozenset()
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, card: Card, blocked: Iterable[tuple[str, ...]] = ()) -> _CardKind:
        """The kind of `card`, to which a breaker blocks the routes `blocked`."""
        return cls(card.kind, card.usable_bytes, frozenset(blocked), card.capability)

    def can_have(self, job: Job, memory: MemoryEstimates) -> bool:
        """Whether `job` may be started on such a card."""
        if job.spec is None or self.usable_bytes < expected_bytes(job, self.kind, memory, self.capability):
            return False
        return not self.blocked or tuple(route_of(job.spec, "", self.usable_bytes)[:-1]) not in self.blocked


def _kinds_of(cards: Iterable[Card], blocked: frozenset[Route]) -> dict[str, _CardKind]:
    routes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for route in blocked:
        routes[route.card].add(tuple(route[:-1]))
    return {card.card: _CardKind.of(card, routes[card.card]) for card in cards}


class Planner:
    """Keeps the plan of a farm's tail from one look to the next."""

    def __init__(self, pace: Pace, *, variants: int = VARIANTS) -> None:
        """`variants`: as `cluster.scheduling.tail.search.make_plan` takes them; fewer are quicker and worse."""
        self.pace = pace
        self._variants = variants
        #: What to go by; None where nothing is planned.
        self.plan: TailPlan | None = None
        #: The cards it was made for, as they were then.
        self._cards: Mapping[str, _CardKind] = {}
        #: Jobs it was last looked at for, with the bytes that they needed; of these, the ones that fit no card here.
        self._live: Mapping[str, int] = {}
        self._lost: frozenset[str] = frozenset()
        self._made_at = -math.inf
        #: The plan's tasks were few enough for moves.
        self._sliced = False

    def is_stale(self, snapshot: Snapshot, now: float) -> bool:
        """Whether `update` has anything to do: jobs or cards came, went or changed since, or are late."""
        group = self._group(snapshot, now)
        if group is None:
            return self.plan is not None
        kinds = _kinds_of(group[2], snapshot.blocked)
        return _live(*group[:2]) != self._live or not self._is_for(kinds) or self._is_late(group[0], now)

    def update(self, snapshot: Snapshot, now: float) -> TailPlan | None:
        """The plan to go by; None while more waits than is worth planning, or while owners compete for the cards.

        Made anew when jobs or cards come that it does not know, or cards are gone. When clips are late, another is
        looked for, and taken where it ends earlier by more than a move costs. While jobs come one by one it is made
        anew whenever one comes or ends, for many to end early (`cluster.scheduling.tail.arrivals`).
        """
        group = self._group(snapshot, now)
        if group is None:
            self.forget()
            return None
        live, kinds = _live(*group[:2]), _kinds_of(group[2], snapshot.blocked)
        same = self._is_for(kinds)
        late = self._is_late(group[0], now)
        if same and live == self._live and not late:
            return self.plan
        one_by_one = _come_one_by_one(*group[:2])
        often = now - self._made_at < _EVERY_S and not one_by_one
        if same and self.plan and live.keys() - self.plan.jobs - self._lost and often:
            # Where clips keep coming, they start where there is room until it is time for another plan.
            return self.plan
        before, self._live, self._made_at = self._live, live, now
        work = _PlanInput(snapshot, *group, self.pace, now)
        known = self.plan is not None and live.keys() <= self.plan.jobs | self._lost
        known = known and all(live[job] == before.get(job, live[job]) for job in live)
        keep = work.still(self.plan) if known and self.plan else None
        self._lost = frozenset(live) - work.jobs
        if not work.tasks:
            self.plan, self._cards = None, kinds
            return None
        if one_by_one and len(work.tasks) <= MOST_SLICED:
            schedule = end_early(work.tasks, work.places, least_s(work.tasks, work.places)).schedule
            self.plan, self._cards, self._sliced = work.parts(schedule), kinds, False
            return self.plan
        # Slices are cut when there are few enough.
        slices = not self._sliced and len(work.tasks) <= MOST_SLICED
        if keep is not None and self.plan is not None and same and not late and not slices:
            left = self.plan.ends_at - now
            ends_s = play(keep, work.tasks, work.places).makespan_s
            if ends_s <= left + max(_LATE_S, _LATE * left):
                # Clips that take less than was thought leave cards idle that others can have.
                if self._sliced and (found := sooner(keep, work.tasks, work.places)) is not keep:
                    # What it is late by is not forgiven.
                    self.plan = replace(work.parts(found), ends_at=self.plan.ends_at)
                return self.plan
        # A clip that cannot be stopped and go on elsewhere is not cut in pieces: then nothing of the plan is.
        variants = self._variants if work.movable else 0
        made = make_plan(work.tasks, work.places, variants=variants, keep=keep)
        self.plan, self._cards, self._sliced = work.parts(made.schedule), kinds, len(work.tasks) <= MOST_SLICED
        return self.plan

    def forget(self) -> None:
        """Plan nothing for now."""
        self.plan, self._live, self._cards = None, {}, {}

    def _is_dear(self, snapshot: Snapshot) -> bool:
        """Whether moves cost so much that where clips begin has to be right from the start."""
        job = next((job for job in snapshot.waiting if job.spec is not None), None)
        kinds = {card.kind for card in snapshot.card_index.cards.values()}
        if job is None or job.spec is None:
            return False
        return min((self.pace.move_costs(job.spec, kind, warm=True)[2] for kind in kinds), default=0.0) > _DEAR_S

    def _is_late(self, waiting: Sequence[Job], now: float) -> bool:
        """Whether a clip still waits that should have begun, long enough after the plan was made."""
        if self.plan is None or now - self._made_at < _EVERY_S:
            return False
        parts = [part for job in waiting if (part := self.plan.part_of(job.id, job.step)) is not None]
        by_s = max(_EVERY_S, _LATE * (self.plan.ends_at - now))
        return any(part.begins_at < now - by_s for part in parts)

    def _is_for(self, kinds: Mapping[str, _CardKind]) -> bool:
        """Whether the cards are those that the plan was made for."""
        same = kinds.keys() == self._cards.keys()
        return same and all(_is_as(card, kinds.get(name)) for name, card in self._cards.items())

    def _group(self, snapshot: Snapshot, now: float) -> tuple[list[Job], list[Running], list[Card]] | None:
        """What is planned together: waiting jobs of the highest priority, and what runs on the cards they can have."""
        number = len(snapshot.waiting) + len(snapshot.running)
        if snapshot.unseen or number > MOST_LISTED:
            return None
        several = len({job.batch_id for job in snapshot.waiting}) > 1
        if number > MOST_SLICED and (several or not self._is_dear(snapshot)):
            return None
        out = snapshot.locked | snapshot.unavailable
        # By name: which of equal cards a clip gets must not depend on which was heard first.
        cards = sorted((card for card in snapshot.cards if card.card not in out), key=lambda card: card.card)
        able = {card.card: card for card in cards}
        # Those that go before everything start where there is room first, whatever is planned.
        some = [job for job in snapshot.waiting if job.id not in snapshot.admitted]
        ready = [job for job in some if job.spec and (job.not_before is None or job.not_before <= now)]
        top = max((effective_priority(job, now) for job in ready), default=None)
        waiting = [job for job in ready if effective_priority(job, now) == top]
        if len({job.owner for job in waiting}) > 1 and len(waiting) > sum(card.idle for card in cards):
            return None
        running = [r for r in snapshot.running if r.card in able]
        clips = Counter(job.owner for job in waiting) + Counter(r.job.owner for r in snapshot.running)
        for owner in {job.owner for job in waiting}:
            most = snapshot.owners.get(owner, DEFAULT_SHARE).max_running
            if most is not None and most < min(clips[owner], len(cards)):
                # A plan counts on cards that its jobs may not have.
                return None
        # Of equal clips one is rendered.
        equal = {(r.job.owner, r.job.content_key): r.job.id for r in snapshot.running}
        waiting = [job for job in waiting if equal.setdefault((job.owner, job.content_key), job.id) == job.id]
        return (waiting, running, cards) if cards and (waiting or any(r.movable for r in running)) else None


def is_worth_planning(snapshot: Snapshot, estimates: TimeEstimates) -> bool:
    """Whether there is enough to do, and enough known of how long it takes, to plan it.

    Of jobs that come one by one there is always enough: each ends early on a fast card, however few there are.
    """
    # Nothing that takes time is planned on a card without memory: one that cannot be used may be of no known kind.
    cards = [card for card in snapshot.cards if card.usable_bytes]
    kinds = sorted({card.kind for card in cards})
    if len(cards) < 2 or not all(map(estimates.knows, kinds)):
        return False
    if _come_one_by_one(snapshot.waiting, snapshot.running):
        return True
    left = [(job, job.step) for job in snapshot.waiting] + [(r.job, r.step) for r in snapshot.running]
    work_s = sum(
        min(estimates.clip_seconds(job.spec, kind, from_step=step) for kind in kinds)
        for job, step in left
        if job.spec is not None and job.spec.family in FAMILIES
    )
    return work_s > _LEAST_S * len(cards)


def _come_one_by_one(waiting: Sequence[Job], running: Sequence[Running]) -> bool:
    return come_one_by_one([*waiting, *(r.job for r in running if _has_steps(r))])


def _live(waiting: Sequence[Job], running: Sequence[Running]) -> dict[str, int]:
    """Jobs that have steps to do, with the bytes they need."""
    found = {job.id: job.needs_bytes for job in waiting}
    return found | {r.job.id: r.job.needs_bytes for r in running if _has_steps(r)}


def _has_steps(running: Running) -> bool:
    """Whether a running job has steps left that it could do on another card."""
    if not running.movable or running.job.interactive or running.job.spec is None:
        return False
    return running.step + _is_in_step(running) < running.job.spec.total_steps


def _is_in_step(running: Running) -> bool:
    """Whether a running job has begun a step: it ends that one where it is."""
    return running.since_step_s > _JUST_S


def _is_as(before: _CardKind, now: _CardKind | None) -> bool:
    """Whether a card is still what a plan took it for."""
    if now is None or (now.kind, now.blocked) != (before.kind, before.blocked):
        return False
    return now.usable_bytes >= _LESS * before.usable_bytes


class _PlanInput:
    """Jobs and cards as the tasks and places of a plan, and a schedule of these as a plan of those."""

    def __init__(
        self,
        snapshot: Snapshot,
        waiting: Sequence[Job],
        running: Sequence[Running],
        cards: Sequence[Card],
        pace: Pace,
        now: float,
    ) -> None:
        self._cards, self._now, self._pace, self._memory = cards, now, pace, snapshot.memory
        kinds = _kinds_of(cards, snapshot.blocked)
        self._kinds = sorted(set(kinds.values()), key=lambda k: (k.kind, k.usable_bytes, sorted(k.blocked)))
        kind_of = {name: self._kinds.index(kind) for name, kind in kinds.items()}
        self._place_of = {card.card: number for number, card in enumerate(cards)}
        self._families: dict[str, int] = {}
        for card in cards:
            if card.family:
                self._families.setdefault(card.family, len(self._families))
        self._running = {r.card: r for r in running}
        self._jobs: list[tuple[Job, int]] = []
        self.tasks: list[Task] = []
        free: dict[int, float] = defaultdict(float)
        for r in running:
            number = self._place_of[r.card]
            kind = kind_of[r.card]
            task = self._task(r.job, r.step, r, kind)
            if _has_steps(r):
                within = _is_in_step(r)
                free[number] = max(0.0, within * task.step_s[kind] - r.since_step_s)
                self._add(r.job, r.step + within, replace(task, at=number, steps=task.steps - within))
            else:
                left = task.seconds(kind)
                free[number] = max(0.0, (left if left < math.inf else 0.0) - r.since_step_s)
        for job in waiting:
            task = self._task(job, job.step, None, None)
            if task.shortest_s < math.inf:
                self._add(job, job.step, task)
        self.places = [
            Place(kind=kind_of[card.card], free_s=free[number], family=self._families.get(card.family or ""))
            for number, card in enumerate(cards)
        ]
        self.jobs = frozenset(job.id for job, _ in self._jobs)
        self.movable = all(job.spec is None or is_resumable(job.spec.family) for job, _ in self._jobs)

    def still(self, tail: TailPlan) -> Schedule | None:
        """What is left of an earlier plan; None where it does not end all tasks."""
        index_of = {job.id: index for index, (job, _) in enumerate(self._jobs)}
        pieces: list[Piece] = []
        done = {job.id: base for job, base in self._jobs}
        for part in tail.parts:
            index, number = index_of.get(part.job), self._place_of.get(part.card)
            if index is None or part.last <= done[part.job]:
                continue
            if number is None:
                return None
            pieces.append(Piece(index, number, part.last - done[part.job]))
            done[part.job] = part.last
        complete = all(
            done[job.id] == base + task.steps for (job, base), task in zip(self._jobs, self.tasks, strict=True)
        )
        return tuple(pieces) if complete else None

    def parts(self, schedule: Schedule) -> TailPlan:
        """`schedule`, which is of tasks and places, as a plan of jobs and cards."""
        played = play(schedule, self.tasks, self.places)
        done = [base for _, base in self._jobs]
        parts: list[PlannedPart] = []
        for piece, (begin, end) in zip(schedule, played.times, strict=True):
            first = done[piece.task]
            done[piece.task] = first + round(piece.steps)
            parts.append(
                PlannedPart(
                    job=self._jobs[piece.task][0].id,
                    card=self._cards[piece.place].card,
                    first=first,
                    last=done[piece.task],
                    begins_at=self._now + begin,
                    ends_at=self._now + end,
                )
            )
        return TailPlan(parts=tuple(parts), ends_at=self._now + played.makespan_s)

    def _add(self, job: Job, step: int, task: Task) -> None:
        self._jobs.append((job, step))
        if not task.steps:
            # A job whose last step is done is decoded again where it goes on: that is a step to a plan.
            task = replace(
                task, steps=1, step_s=tuple(max(s, 1e-6) for s in task.end_s), end_s=(0.0,) * len(task.end_s)
            )
        self.tasks.append(replace(task, begun=step > 0))

    def _task(self, job: Job, step: int, running: Running | None, on: int | None) -> Task:
        spec = job.spec
        assert spec is not None
        total = spec.total_steps
        step_s, end_s = [], []
        for kind in self._kinds:
            if not kind.can_have(job, self._memory):
                step_s.append(math.inf)
                end_s.append(math.inf)
                continue

            def seconds(from_step: int, kind: _CardKind = kind) -> float:
                return self._pace.clip_seconds(spec, kind.kind, usable_bytes=kind.usable_bytes, from_step=from_step)

            each = (seconds(1) - seconds(total)) / (total - 1) if total > 1 else seconds(0) - seconds(total)
            step_s.append(max(each, 1e-6))
            end_s.append(max(0.0, seconds(step) - each * (total - step)))
        if running is not None and running.step_s is not None and on is not None and step_s[on] < math.inf:
            # What this very clip takes a step says what it would take elsewhere.
            factor = running.step_s / step_s[on]
            step_s, end_s = [s * factor for s in step_s], [s * factor for s in end_s]
        if running is not None and on is not None and step_s[on] == math.inf:
            # It runs there, whatever was expected.
            step_s[on], end_s[on] = running.step_s or 1.0, 0.0
        cheapest = self._kinds[on if on is not None else 0].kind
        leave, arrive, pause = self._pace.move_costs(spec, cheapest, warm=True)
        # Of these the beginning is told apart, for that depends on what the card has done before.
        gap = self._pace.gap_seconds(spec.family, cheapest)
        return Task(
            key=job.id,
            steps=max(0, total - step),
            step_s=tuple(step_s),
            end_s=tuple(end_s),
            leave_s=leave,
            arrive_s=max(0.0, arrive - gap),
            pause_s=max(0.0, pause - gap),
            family=self._families.setdefault(spec.family, len(self._families)),
            warm_s=gap,
            cold_s=self._pace.load_seconds(spec.family, cheapest),
            waited_s=max(0.0, self._now - job.created_at),
            movable=is_resumable(spec.family),
        )


def suited(
    counts: Mapping[WorkKind, int], examples: Iterable[Job], cards: Iterable[Card], pace: Pace, memory: MemoryEstimates
) -> dict[WorkKind, Suit]:
    """How jobs of each kind belong to card kinds while many wait: as in the shortest schedule of all of them.

    `counts` says how many wait, `examples` how long some of each kind take. Kinds without an example are left out.
    """
    there = list(cards)
    card_kinds = sorted({_CardKind.of(c) for c in there}, key=lambda k: (k.kind, k.usable_bytes))
    number_of = [sum(_CardKind.of(c) == kind for c in there) for kind in card_kinds]
    seconds: dict[WorkKind, list[list[float]]] = defaultdict(list)
    for job in examples:
        if job.spec is None or work_kind(job) not in counts:
            continue
        seconds[work_kind(job)].append(
            [
                pace.clip_seconds(job.spec, kind.kind, usable_bytes=kind.usable_bytes, from_step=job.step)
                if kind.can_have(job, memory)
                else math.inf
                for kind in card_kinds
            ]
        )
    means = {kind: [sum(column) / len(column) for column in zip(*rows, strict=True)] for kind, rows in seconds.items()}
    means = {kind: row for kind, row in means.items() if min(row, default=math.inf) < math.inf}
    if not means:
        return {}
    _, found = shortest(list(means.values()), number_of, [counts[kind] for kind in means])
    return {
        kind: Suit(
            card_kinds=frozenset(
                card.kind for card, jobs in zip(card_kinds, row, strict=True) if jobs > _LEAST_SHARE * counts[kind]
            ),
            seconds=min(means[kind]),
        )
        for kind, row in zip(means, found, strict=True)
    }
