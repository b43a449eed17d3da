"""The schedulers that `makespan.py` compares: clipmill's own, and four that farms use."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from traces import CARDS, FLEET, Begin, Leave, Rig, Shape, Work, World

from cluster.jobs.model import Job
from cluster.scheduling.interactive import InteractiveBudget, InteractiveTerms, admitted
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Move, Preempt, Snapshot, Start, work_kind
from cluster.scheduling.tail.bound import shortest
from cluster.scheduling.tail.planner import Planner, suited
from pipeline.clips.clip import ClipSpec

#: Waiting jobs of one kind that a dispatcher looks at.
_HEADS = 80
#: Rounds of the Gavel-style policy, in seconds: clips take 2 to 800. Longer where moves cost more, as its authors do: a
#: round is twenty moves at least.
ROUND_S = 20.0
MOVES_A_ROUND = 20


class TracePace:
    """`Pace` of the frozen shapes, as calibrated estimates would give it."""

    def __init__(
        self, shapes: Iterable[Shape], move_s: float, load_s: Callable[[str, int], float] = lambda family, kind: 0.0
    ) -> None:
        self._load_s = load_s
        self._by_shape = {_key(shape.spec): shape for shape in shapes}
        self._kinds = {kind: number for number, (kind, _, _, _) in enumerate(CARDS)}
        self._move_s = move_s

    def clip_seconds(self, spec: ClipSpec, kind: str, *, usable_bytes: int | None = None, from_step: int = 0) -> float:
        """See `Pace`."""
        return self._by_shape[_key(spec)].seconds(self._kinds[kind], from_step)

    def gap_seconds(self, family: str, kind: str) -> float:
        """See `Pace`: it is in what a clip takes."""
        return 0.0

    def load_seconds(self, family: str, kind: str) -> float:
        """See `Pace`."""
        return self._load_s(family, self._kinds[kind])

    def move_costs(self, spec: ClipSpec, kind: str, *, warm: bool) -> tuple[float, float, float]:
        """See `Pace`: both cards are busy for the whole of it, the clip once."""
        return self._move_s, self._move_s, self._move_s


def _key(spec: ClipSpec) -> tuple[str, str, int, int]:
    return spec.family, str(spec.resolution_class), spec.frames, spec.steps


class Clipmill:
    """`cluster.scheduling.placement.place` with the planner, as the dispatcher calls them."""

    def __init__(
        self,
        shapes: Iterable[Shape],
        move_s: float,
        *,
        variants: int,
        load_s: Callable[[str, int], float] = lambda family, kind: 0.0,
        terms: InteractiveTerms | None = None,
    ) -> None:
        self._planner = Planner(TracePace(shapes, move_s, load_s), variants=variants)
        self._terms = terms or InteractiveTerms()
        self.budget = InteractiveBudget(self._terms, 0.0)
        #: How often each job made room for an interactive one.
        self.preempted: Counter[str] = Counter()
        #: Jobs for which a card is being made free.
        self._promised: set[str] = set()
        self._ids: dict[str, int] = {}
        self._suits_for = -1

    def __call__(self, world: World) -> Iterable[Begin | Leave]:
        """Decisions of one look."""
        cards = world.cards()
        names = {rig.name: rig.index for rig in world.rigs}
        heads: dict[object, int] = Counter()
        of_queue: Counter[tuple[object, ...]] = Counter()
        seen = []
        for index in world.waiting:
            job = world.job(world.work[index])
            heads[work_kind(job)] += 1
            of_queue[job.queue] += 1
            if of_queue[job.queue] <= _HEADS:
                seen.append(job)
                self._ids[job.id] = index
        snapshot = Snapshot.of(
            waiting=seen,
            cards=cards,
            fleet=FLEET,
            running=world.running(),
            unseen=len(world.waiting) - len(seen),
        )
        self._ids |= {r.job.id: r.job.number for r in snapshot.running}
        snapshot = self._with_interactive(snapshot, world)
        plan = self._planner.update(snapshot, world.now)
        suits = {}
        if plan is None and seen:
            suits = suited(dict(heads), seen, cards, self._planner.pace, snapshot.memory)  # type: ignore[arg-type]
        self.plan = plan
        for decision in place(replace(snapshot, plan=plan, suits=suits), world.now):
            if isinstance(decision, Start):
                self._promised.discard(decision.job.id)
                yield Begin(self._ids[decision.job.id], names[decision.card.card])
            elif isinstance(decision, Move):
                yield Leave(self._ids[decision.job.id])
            elif isinstance(decision, Preempt):
                self.preempted[decision.job.id] += 1
                self._promised.add(decision.waits.id)
                self.budget.charge(world.now, decision.cost_s)
                yield Leave(self._ids[decision.job.id])

    def _with_interactive(self, snapshot: Snapshot, world: World) -> Snapshot:
        """`snapshot` with the interactive jobs that go first, as `cluster.dispatch.interactive` finds them."""
        pace, on_cards = self._planner.pace, [r for r in snapshot.running if r.job.interactive]
        contended = any(not job.interactive for job in snapshot.waiting)
        self.budget.note(world.now, running=len(on_cards), contended=contended)
        kinds = sorted({kind for kind, *_ in CARDS})

        def seconds(job: Job) -> float:
            return min(pace.clip_seconds(job.spec, kind, from_step=job.step) for kind in kinds) if job.spec else 0.0

        left_s = self.budget.left_s(world.now, len(snapshot.cards)) - sum(seconds(r.job) for r in on_cards)
        first = admitted(snapshot.waiting, Counter(r.job.owner for r in on_cards), self._terms, left_s, seconds)
        if not first:
            return snapshot
        running = [replace(r, preempted=self.preempted[r.job.id]) for r in snapshot.running]
        return replace(snapshot, admitted=first, promised=frozenset(self._promised), pace=pace, running=running)

    def boundaries(self, world: World) -> Mapping[int, int]:
        """Where the plan has running jobs leave."""
        if self.plan is None:
            return {}
        found = {}
        for work in world.work:
            if work.on is None:
                continue
            part = self.plan.part_of(work.id, work.step)
            if part is not None and part.last < work.shape.spec.total_steps:
                found[work.index] = part.last
        return found


def nothing(_world: World) -> Mapping[int, int]:
    """No step is waited for."""
    return {}


def fifo(world: World) -> Iterable[Begin | Leave]:
    """In order of arrival, each on the fastest idle card; the first that fits nowhere now holds up the others."""
    idle = world.idle()
    for index in list(world.waiting):
        work = world.work[index]
        fitting = [rig for rig in idle if work.shape.step_s[rig.kind] < math.inf]
        if not fitting:
            return
        rig = min(fitting, key=lambda r: (work.shape.seconds(r.kind), r.index))
        idle.remove(rig)
        yield Begin(index, rig.index)


def first_fit(world: World) -> Iterable[Begin | Leave]:
    """In order of arrival, each on the first idle card that it fits, as Ray places tasks by resources."""
    idle = world.idle()
    for index in list(world.waiting):
        work = world.work[index]
        rig = next((rig for rig in idle if work.shape.step_s[rig.kind] < math.inf), None)
        if rig is not None:
            idle.remove(rig)
            yield Begin(index, rig.index)


def longest_first(world: World) -> Iterable[Begin | Leave]:
    """Longest job first, each where it would end earliest; it starts if that card is idle now."""
    free: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for rig in world.rigs:
        if world.now >= rig.dies_at:
            continue
        when = max(world.now, rig.busy_until)
        if rig.job is not None:
            work = world.work[rig.job]
            each = world.known_step_s(work) or work.shape.step_s[rig.kind]
            left = (work.shape.spec.total_steps - work.step) * each + work.shape.end_s[rig.kind]
            when = max(world.now, max(work.step_began, 0.0) + left)
        heapq.heappush(free[rig.kind], (when, rig.index))
    order = sorted(world.waiting, key=lambda i: (-min(map(world.work[i].shape.seconds, range(len(CARDS)))), i))
    unused = {rig.index for rig in world.idle()}
    for index in order:
        if not unused:
            return
        work = world.work[index]
        arrive = world.move_s if work.step else 0.0
        end, kind = min(
            (heap[0][0] + arrive + work.shape.seconds(kind, work.step), kind) for kind, heap in free.items()
        )
        when, number = heapq.heapreplace(free[kind], (end, free[kind][0][1]))
        if number in unused and when <= world.now:
            unused.discard(number)
            yield Begin(index, number)
        else:
            unused.discard(number)


class Gavel:
    """Rounds that give every job its share of every kind of card, as the makespan policy of Gavel (OSDI 2020) does."""

    def __init__(self, move_s: float) -> None:
        """`move_s`: what a move costs."""
        self._round_s = max(ROUND_S, MOVES_A_ROUND * move_s)
        self._had: dict[tuple[int, int], float] = defaultdict(float)
        self._round_ends = 0.0
        self._since = 0.0
        self._shares: dict[tuple[int, int], float] = {}

    def __call__(self, world: World) -> Iterable[Begin | Leave]:
        """Decisions of one look: a new assignment at every round's end, idle cards filled between."""
        waiting = set(world.waiting)
        live = [w for w in world.work if w.ended is None and (w.on is not None or w.index in waiting)]
        for work in live:
            if work.on is not None:
                self._had[work.index, world.rigs[work.on].kind] += world.now - self._since
        self._since = world.now
        if not live:
            return
        alive = [rig for rig in world.rigs if world.now < rig.dies_at]
        if world.now >= self._round_ends:
            self._round_ends = world.now + self._round_s
            number = [sum(rig.kind == kind for rig in alive) for kind in range(len(CARDS))]
            seconds = [[w.shape.seconds(k, w.step) if number[k] else math.inf for k in range(len(CARDS))] for w in live]
            makespan, parts = shortest(seconds, number)
            self._shares = {
                (w.index, k): parts[row][k] * seconds[row][k] / makespan
                for row, w in enumerate(live)
                for k in range(len(CARDS))
                if parts[row][k] > 1e-9
            }
            free = Counter(rig.kind for rig in alive)
            chosen: dict[int, int] = {}
            for _, index, kind in sorted(
                (-share / (1e-3 + self._had[index, kind]), index, kind) for (index, kind), share in self._shares.items()
            ):
                if index not in chosen and free[kind]:
                    chosen[index] = kind
                    free[kind] -= 1
            for work in live:
                if work.on is not None and chosen.get(work.index) != world.rigs[work.on].kind:
                    yield Leave(work.index)
        yield from self._fill(world, [w for w in live if w.on is None])

    def _fill(self, world: World, waiting: list[Work]) -> Iterable[Begin]:
        idle: list[Rig] = world.idle()
        for rig in sorted(idle, key=lambda r: r.kind):
            able = [w for w in waiting if w.shape.step_s[rig.kind] < math.inf]
            if not able:
                continue
            best = max(
                able,
                key=lambda w: (
                    self._shares.get((w.index, rig.kind), 0.0) / (1e-3 + self._had[w.index, rig.kind]),
                    -w.index,
                ),
            )
            waiting.remove(best)
            yield Begin(best.index, rig.index)

    def boundaries(self, world: World) -> Mapping[int, int]:
        """A look at the end of the round."""
        found = {}
        for work in world.work:
            if work.on is not None:
                each = work.step_s[world.rigs[work.on].kind]
                step = work.step + max(1, math.ceil((self._round_ends - work.step_began) / each))
                if step < work.shape.spec.total_steps:
                    found[work.index] = step
        return found
