"""Pieces of clips in order on cards: their times, and how many steps each should have. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

#: Nodes that the integer program may look at. Not a time, so that the same input gives the same plan on any machine.
_NODES = 200
#: The integer program stops where its answer is within this share of the best there can be.
_GAP = 0.002


@dataclass(frozen=True, kw_only=True)
class Task:
    """A clip as a plan sees it."""

    key: str
    #: Steps that are left, at least one.
    steps: int
    #: Seconds of a step by kind of card; infinite where it does not fit.
    step_s: tuple[float, ...]
    #: Seconds besides its steps by kind of card, spent where it ends: decoding.
    end_s: tuple[float, ...]
    #: Index of the place it runs on now.
    at: int | None = None
    #: The task has done steps already: to start it anywhere but where it runs is a move.
    begun: bool = False
    #: Seconds of a move: that the card it leaves is busy with it, that the card it comes to is, and that it stands
    #: still at least.
    leave_s: float = 0.0
    arrive_s: float = 0.0
    pause_s: float = 0.0
    #: Number of the family; seconds of beginning on a card where it is loaded, and where another is, or none.
    family: int = 0
    warm_s: float = 0.0
    cold_s: float = 0.0
    #: Seconds since it came.
    waited_s: float = 0.0
    #: The clip can be stopped between two steps and go on elsewhere.
    movable: bool = True

    def seconds(self, kind: int) -> float:
        """Seconds that all that is left takes on a card of the kind."""
        return self.steps * self.step_s[kind] + self.end_s[kind] if self.step_s[kind] < math.inf else math.inf

    @cached_property
    def shortest_s(self) -> float:
        """Seconds that all that is left takes on the fastest kind of card there is."""
        return min(map(self.seconds, range(len(self.step_s))))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A card as a plan sees it."""

    #: Index into `Task.step_s`.
    kind: int
    #: Seconds until it is free of what is not planned, such as the step that a task on it is in.
    free_s: float = 0.0
    #: The family it has loaded.
    family: int | None = None


@dataclass(frozen=True)
class Piece:
    """Steps of one task done in one go on one place; both by index."""

    task: int
    place: int
    steps: float


#: The pieces of a task and those of a place both follow each other as listed.
Schedule = tuple[Piece, ...]
#: (task, place) of the pieces, as in a schedule whose steps are not known yet.
Order = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Played:
    """A schedule with its times."""

    schedule: Schedule
    #: Seconds until the last task has ended.
    makespan_s: float
    #: Per piece: seconds at which its first step begins and at which it has ended.
    times: tuple[tuple[float, float], ...]
    moves: int


@dataclass(frozen=True)
class _Joint:
    """What lies before a piece: the previous piece of its task and of its place, and whether coming there is a move."""

    of_task: int | None
    of_place: int | None
    moved: bool
    #: The piece's task goes elsewhere after it.
    leaves: bool
    last: bool
    #: Seconds that the card needs to begin with it.
    begin_s: float


def joints(order: Order, tasks: Sequence[Task], places: Sequence[Place]) -> list[_Joint]:
    """How the pieces of an order hang together."""
    of_task: list[int | None] = []
    of_place: list[int | None] = []
    seen: dict[int, int] = {}
    on: dict[int, int] = {}
    following: dict[int, int] = {}
    loaded = {number: place.family for number, place in enumerate(places)}
    loaded |= {task.at: task.family for task in tasks if task.at is not None}
    begin_s: list[float] = []
    for p, (task, place) in enumerate(order):
        begin_s.append(tasks[task].warm_s if loaded[place] == tasks[task].family else tasks[task].cold_s)
        loaded[place] = tasks[task].family
        of_task.append(seen.get(task))
        of_place.append(on.get(place))
        if task in seen:
            following[seen[task]] = p
        seen[task] = on[place] = p

    def stays(p: int) -> bool:
        # It was on this card last, and nothing else has been there since.
        if of_task[p] is None:
            return of_place[p] is None and tasks[order[p][0]].at == order[p][1]
        return of_task[p] == of_place[p]

    return [
        _Joint(
            of_task=of_task[p],
            of_place=of_place[p],
            moved=not stays(p) and (of_task[p] is not None or tasks[task].begun or tasks[task].at is not None),
            leaves=p in following and not stays(following[p]),
            last=p not in following,
            begin_s=0.0 if stays(p) else begin_s[p],
        )
        for p, (task, _) in enumerate(order)
    ]


def first_free(order: Order, tasks: Sequence[Task], places: Sequence[Place]) -> list[float]:
    """Seconds until each place can begin its first piece: a task that runs there and goes on elsewhere leaves first."""
    free = [place.free_s for place in places]
    first: dict[int, int] = {}
    for task, place in order:
        first.setdefault(place, task)
    started: dict[int, int] = {}
    for task, place in order:
        started.setdefault(task, place)
    for index, running in enumerate(tasks):
        if running.at is not None and (first.get(running.at) != index or started.get(index) != running.at):
            free[running.at] += running.leave_s
    return free


def play(schedule: Schedule, tasks: Sequence[Task], places: Sequence[Place]) -> Played:
    """Times of a schedule: every piece as early as its card and the pieces before it allow."""
    order = tuple((piece.task, piece.place) for piece in schedule)
    joined, free = joints(order, tasks, places), first_free(order, tasks, places)
    times: list[tuple[float, float]] = []
    for piece, joint in zip(schedule, joined, strict=True):
        task = tasks[piece.task]
        before, beside = joint.of_task, joint.of_place
        start = free[piece.place] if beside is None else times[beside][1]
        if beside is not None and joined[beside].leaves:
            start += tasks[schedule[beside].task].leave_s
        if joint.moved:
            left = places[task.at].free_s if task.at is not None else 0.0
            left = left if before is None else times[before][1]
            # A task that waits, its steps in a checkpoint, has stood still long enough.
            pause = task.pause_s if before is not None or task.at is not None else 0.0
            start = max(start + task.arrive_s, left + pause) + joint.begin_s
        elif before is not None:
            start = max(start, times[before][1])
        else:
            start += joint.begin_s
        kind = places[piece.place].kind
        end = start + piece.steps * task.step_s[kind] + (task.end_s[kind] if joint.last else 0.0)
        times.append((start, end))
    return Played(
        schedule,
        max((end for _, end in times), default=max((p.free_s for p in places), default=0.0)),
        tuple(times),
        sum(joint.moved for joint in joined),
    )


def merged(order: Order) -> Order:
    """The order with two pieces of a task that follow each other on a place as one."""
    found: list[tuple[int, int]] = []
    seen: dict[int, int] = {}
    on: dict[int, int] = {}
    for task, place in order:
        if task in seen and seen[task] == on.get(place):
            continue
        seen[task] = on[place] = len(found)
        found.append((task, place))
    return tuple(found)


class _Rows:
    """Rows of a sparse matrix with their right sides."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: tuple[list[int], list[int], list[float]] = ([], [], [])
        self.right: list[float] = []

    def add(self, entries: Iterable[tuple[int, float]], right: float) -> None:
        for column, value in entries:
            self._entries[0].append(len(self.right))
            self._entries[1].append(column)
            self._entries[2].append(value)
        self.right.append(right)

    def matrix(self) -> Any:
        from scipy.sparse import csr_matrix

        rows, columns, values = self._entries
        return csr_matrix((values, (rows, columns)), shape=(len(self.right), self._columns))


def _program(order: Order, tasks: Sequence[Task], places: Sequence[Place]) -> tuple[_Rows, _Rows]:
    """(rows that are at most their right side, rows that equal it) over steps, starts and the makespan."""
    count = len(order)
    joined, free = joints(order, tasks, places), first_free(order, tasks, places)
    most, equal = _Rows(2 * count + 1), _Rows(2 * count + 1)
    steps_of: dict[int, list[int]] = defaultdict(list)
    for p, (index, number) in enumerate(order):
        task, joint = tasks[index], joined[p]
        steps_of[index].append(p)
        arrive = joint.begin_s + (task.arrive_s if joint.moved else 0.0)
        if joint.of_place is None:
            most.add([(count + p, -1.0)], -free[number] - arrive)
        else:
            q = joint.of_place
            beside = tasks[order[q][0]]
            gap = arrive + (beside.leave_s if joined[q].leaves else 0.0)
            gap += beside.end_s[places[number].kind] if joined[q].last else 0.0
            most.add(
                [(count + q, 1.0), (q, beside.step_s[places[number].kind]), (count + p, -1.0)],
                -gap,
            )
        if joint.of_task is not None:
            q = joint.of_task
            pause = task.pause_s + joint.begin_s if joint.moved else 0.0
            most.add(
                [(count + q, 1.0), (q, task.step_s[places[order[q][1]].kind]), (count + p, -1.0)],
                -pause,
            )
        elif joint.moved and task.at is not None:
            most.add([(count + p, -1.0)], -places[task.at].free_s - task.pause_s - joint.begin_s)
        if joint.last:
            kind = places[number].kind
            most.add([(count + p, 1.0), (p, task.step_s[kind]), (2 * count, -1.0)], -task.end_s[kind])
    for index, pieces in steps_of.items():
        equal.add([(p, 1.0) for p in pieces], float(tasks[index].steps))
    return most, equal


def order_lp(order: Order, tasks: Sequence[Task], places: Sequence[Place]) -> tuple[float, Floats] | None:
    """(makespan, steps of each piece) that is best for an order, steps being divisible; None where there is none."""
    from scipy.optimize import linprog

    count = len(order)
    most, equal = _program(order, tasks, places)
    cost = np.zeros(2 * count + 1)
    cost[2 * count] = 1.0
    # Among equals that which begins early.
    cost[count : 2 * count] = 1e-6
    found = linprog(cost, A_ub=most.matrix(), b_ub=most.right, A_eq=equal.matrix(), b_eq=equal.right, method="highs-ds")
    return None if found.x is None else (float(found.x[2 * count]), found.x[:count])


def round_steps(
    order: Order, steps: Floats, tasks: Sequence[Task], places: Sequence[Place], makespan: float
) -> Schedule:
    """A schedule with whole steps near `steps`, the best that a small integer program finds."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(order)
    most, equal = _program(order, tasks, places)
    cost = np.zeros(2 * count + 1)
    cost[2 * count] = 1.0
    lower, upper = np.zeros(2 * count + 1), np.full(2 * count + 1, np.inf)
    lower[:count] = np.maximum(0.0, np.floor(steps) - 1)
    upper[:count] = np.floor(steps) + 2
    upper[2 * count] = makespan * 1.1
    found = milp(
        cost,
        constraints=[
            LinearConstraint(most.matrix(), -np.inf, most.right),
            LinearConstraint(equal.matrix(), equal.right, equal.right),
        ],
        integrality=np.concatenate([np.ones(count), np.zeros(count + 1)]),
        bounds=Bounds(lower, upper),
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    whole = _nearest(order, steps, tasks) if found.x is None else np.rint(found.x[:count]).astype(int).tolist()
    return tuple(Piece(index, number, n) for (index, number), n in zip(order, whole, strict=True) if n > 0)


def _nearest(order: Order, steps: Floats, tasks: Sequence[Task]) -> list[int]:
    """Whole steps nearest to `steps` that add up for every task."""
    whole = np.floor(steps + 1e-9).astype(int)
    for index, task in enumerate(tasks):
        mine = [p for p, (owner, _) in enumerate(order) if owner == index]
        missing = task.steps - int(whole[mine].sum())
        for p in sorted(mine, key=lambda p: whole[p] - steps[p])[:missing]:
            whole[p] += 1
    return [int(n) for n in whole]
