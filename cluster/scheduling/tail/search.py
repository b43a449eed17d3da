"""Plans for the tail of a batch: which card does which steps of which clip, so that the last clip ends early. Pure.

A clip may move to another card between two steps, so the makespan can come close to that of the preemptive linear
program for unrelated machines (Lawler & Labetoulle, "On preemptive scheduling of unrelated parallel processors by
linear programming", J. ACM 25, 1978), whose value bounds every schedule from below. Its solution is cut into slices by
matching (ibid.), slices become an order of pieces on every card, and a second linear program finds the steps of each
piece in that order, now with what a move costs. Pieces that cost more than they gain are dropped, and a small integer
program rounds to whole steps. The longest-first list without moves is always among the candidates, so no plan is worse
than that.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.scheduling.tail.backfill import sooner
from cluster.scheduling.tail.bound import shortest
from cluster.scheduling.tail.schedule import (
    Floats,
    Order,
    Piece,
    Place,
    Schedule,
    Task,
    merged,
    order_lp,
    play,
    round_steps,
)
from cluster.scheduling.tail.slices import cut

#: Most tasks that slices are cut for; of more, the longest-first list is so close to the bound that nothing is gained.
MOST_SLICED = 80
#: Most tasks that the longest-first list is a plan for: of one batch nobody minds the order.
MOST_LISTED = 250
#: Vertices of the linear program that are tried: it is degenerate, and they differ in the moves they need.
VARIANTS = 6
#: A piece is dropped where the plan gets no worse; so many are tried each time, shortest first.
_SHORTEST = 10
#: Linear programs spent on dropping pieces of one variant.
_DROPS = 60
#: Moves that are added to the longest-first list at most.
_ADDED = 25
#: Other vertices are found by making seconds longer by up to this share.
_NOISE = 0.004
#: What a move must gain besides what it costs, as a share of the makespan: one saved is one less that can go wrong.
_WORTH = 0.0003
#: Dropping goes on through plans that are worse by up to this factor: the next piece may pay for it.
_WORSE = 1.01
#: A plan this close to the bound is good enough to stop looking.
_CLOSE = 1.005

#: Makespan, order of the pieces, and steps of each.
_Solved = tuple[float, Order, Floats]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every card does until the last task has ended."""

    schedule: Schedule
    #: Seconds until the last task ends, as predicted.
    makespan_s: float
    #: Seconds below which no schedule can end it, moves being free.
    bound_s: float
    #: Pieces of a task beyond its first.
    moves: int


def make_plan(
    tasks: Sequence[Task], places: Sequence[Place], *, variants: int = VARIANTS, keep: Schedule | None = None
) -> Plan:
    """The best plan found for `tasks` on `places`.

    `variants` are the vertices of the linear program that are tried; none: tasks stay where they begin. `keep` is what
    they do now: it is left only for one that ends earlier by more than a move costs, so that plans do not change to and
    fro. Raises `ValueError` where a task fits on no place.
    """
    bound, fractions = _fractions(tasks, places) if tasks else (0.0, [])
    best = play(longest_first(tasks, places), tasks, places)
    if variants and len(tasks) <= MOST_SLICED:
        for schedule in _sliced(tasks, places, bound, fractions, variants):
            played = play(schedule, tasks, places)
            if played.makespan_s < best.makespan_s:
                best = played
    if keep is not None:
        kept = play(keep, tasks, places)
        dearest = max((task.pause_s for task in tasks), default=0.0)
        if kept.makespan_s <= best.makespan_s * _CLOSE + dearest:
            best = kept
    if len(tasks) <= MOST_SLICED:
        best = play(sooner(best.schedule, tasks, places), tasks, places)
    return Plan(schedule=best.schedule, makespan_s=best.makespan_s, bound_s=bound, moves=best.moves)


def least_s(tasks: Sequence[Task], places: Sequence[Place]) -> float:
    """Seconds below which no schedule can end all tasks, moves being free.

    Raises `ValueError` where a task fits on no place.
    """
    return _fractions(tasks, places)[0] if tasks else 0.0


def longest_first(tasks: Sequence[Task], places: Sequence[Place]) -> Schedule:
    """The list schedule without moves: longest task first, each where it ends earliest.

    Tasks that run stay where they are. Raises `ValueError` where a task fits on no place.
    """
    started: list[tuple[float, Piece]] = []
    running = {task.at: index for index, task in enumerate(tasks) if task.at is not None}
    #: Places by kind and loaded family: of those that are alike only the one that is free first comes into question.
    free: dict[tuple[int, int | None], list[tuple[float, int]]] = defaultdict(list)
    for number, place in enumerate(places):
        free_s, family = place.free_s, place.family
        if (index := running.get(number)) is not None:
            started.append((0.0, Piece(index, number, tasks[index].steps)))
            free_s, family = free_s + tasks[index].seconds(place.kind), tasks[index].family
        heapq.heappush(free[place.kind, family], (free_s, number))
    waiting = [index for index, task in enumerate(tasks) if task.at is None]
    for index in sorted(waiting, key=lambda i: -tasks[i].shortest_s):
        task = tasks[index]
        arrive = task.arrive_s if task.begun else 0.0
        end, number, at = min(
            (
                heap[0][0] + arrive + (task.warm_s if at[1] == task.family else task.cold_s) + task.seconds(at[0]),
                heap[0][1],
                at,
            )
            for at, heap in free.items()
            if heap
        )
        if end == math.inf:
            raise ValueError(f"{task.key} fits on none of {len(places)} cards")
        start, _ = heapq.heappop(free[at])
        heapq.heappush(free[at[0], task.family], (end, number))
        started.append((start, Piece(index, number, task.steps)))
    return tuple(piece for _, piece in sorted(started, key=lambda item: item[0]))


# -- from the linear program to an order of pieces ------------------------------------------------------------------


def _fractions(
    tasks: Sequence[Task], places: Sequence[Place], dearer: Sequence[Sequence[float]] | None = None
) -> tuple[float, list[list[float]]]:
    """(makespan, seconds of each task on each kind of card); `dearer` are factors by task and kind."""
    kinds = 1 + max(place.kind for place in places)
    seconds = [
        [task.seconds(kind) * (dearer[index][kind] if dearer else 1.0) for kind in range(kinds)]
        for index, task in enumerate(tasks)
    ]
    # A task ends the step that it is in before it goes elsewhere.
    late = [max(0.0, places[task.at].free_s) if task.at is not None else 0.0 for task in tasks]
    able, count = list(places), 0
    while len(able) != count:
        count, cards, busy = len(able), [0] * kinds, [0.0] * kinds
        for place in able:
            cards[place.kind] += 1
            busy[place.kind] += max(0.0, place.free_s)
        makespan, parts = shortest(seconds, cards, busy_s=busy, late_s=late)
        # A card that is not free before the end takes nothing, and its time must not be counted against the others.
        able = [place for place in able if place.free_s < makespan * (1 - 1e-9)]
    return makespan, [
        [part * second if part else 0.0 for part, second in zip(row, of_task, strict=True)]
        for row, of_task in zip(parts, seconds, strict=True)
    ]


def _sliced(
    tasks: Sequence[Task], places: Sequence[Place], bound: float, fractions: list[list[float]], variants: int
) -> Iterable[Schedule]:
    """Schedules with moves, best first as far as that is known before steps are rounded."""
    found: list[_Solved] = []
    for variant in range(variants):
        makespan, seconds_on = bound, fractions
        if variant:
            # Another vertex of the same optimal face, or of one nearby.
            rng = random.Random(variant)
            kinds = 1 + max(place.kind for place in places)
            dearer = [[1 + _NOISE * rng.random() for _ in range(kinds)] for _ in tasks]
            makespan, seconds_on = _fractions(tasks, places, dearer)
        order = cut(tasks, places, makespan, seconds_on)
        solved = order_lp(order, tasks, places)
        if solved is None:
            continue
        found.append(_without_slivers(order, solved[0], solved[1], tasks, places))
        if found[-1][0] <= bound * _CLOSE:
            break
    if not found or min(found, key=_value)[0] > bound * _CLOSE:
        found.append(_with_moves(longest_first(tasks, places), tasks, places))
    for value, order, steps in sorted(found, key=_value)[:2]:
        yield round_steps(order, steps, tasks, places, value)


def _value(item: _Solved) -> float:
    return item[0]


def _with_moves(schedule: Schedule, tasks: Sequence[Task], places: Sequence[Place]) -> _Solved:
    """(makespan, order, steps) with moves added one by one for the task that ends last: few, where they are dear."""
    order: Order = tuple((piece.task, piece.place) for piece in schedule)
    steps: Floats = np.array([float(piece.steps) for piece in schedule])
    makespan = play(schedule, tasks, places).makespan_s
    for _ in range(_ADDED):
        ends = _ends(order, steps, tasks, places)
        last = max(range(len(order)), key=lambda p: ends[p])
        task, place = order[last]
        free = [place.free_s for place in places]
        for p, (_, number) in enumerate(order):
            free[number] = max(free[number], ends[p])
        # Of each kind the card that is free first: the task ends there, or begins there.
        earliest: dict[int, int] = {}
        for number in sorted(range(len(places)), key=lambda i: free[i]):
            if number != place and tasks[task].step_s[places[number].kind] < math.inf:
                earliest.setdefault(places[number].kind, number)
        best: _Solved | None = None
        for number in earliest.values():
            for more in ((*order, (task, number)), (*order[:last], (task, number), *order[last:])):
                solved = order_lp(merged(more), tasks, places)
                if solved and solved[0] < makespan * 0.999 and (best is None or solved[0] < best[0]):
                    best = (solved[0], merged(more), solved[1])
        if best is None:
            break
        makespan, order, steps = best
        order, steps = _some(order, steps)
    return makespan, order, steps


def _ends(order: Order, steps: Floats, tasks: Sequence[Task], places: Sequence[Place]) -> list[float]:
    # Fractions of steps are as good as whole ones here.
    pieces = tuple(Piece(index, number, n) for (index, number), n in zip(order, steps.tolist(), strict=True))
    return [end for _, end in play(pieces, tasks, places).times]


def _without_slivers(
    order: Order, makespan: float, steps: Floats, tasks: Sequence[Task], places: Sequence[Place]
) -> _Solved:
    """(makespan, order, steps) without pieces that cost more than they gain: each is a move."""
    worth = _WORTH * makespan
    spent, least = 0, (makespan, order, steps)
    while spent < _DROPS and makespan <= least[0] * _WORSE:
        order, steps = _some(order, steps)
        pieces: dict[int, int] = defaultdict(int)
        for index, _number in order:
            pieces[index] += 1
        seconds = {
            p: float(steps[p]) * tasks[index].step_s[places[number].kind]
            for p, (index, number) in enumerate(order)
            if pieces[index] > 1
        }
        briefest = sorted(seconds, key=lambda q: (seconds[q], q))
        best: _Solved | None = None
        # All that are shorter than their own move at once, then the shortest one by one.
        short = [p for p in briefest if seconds[p] < tasks[order[p][0]].leave_s + tasks[order[p][0]].arrive_s]
        for gone in ([short] if len(short) > 1 else []) + [[p] for p in briefest[:_SHORTEST]]:
            if any(pieces[order[p][0]] == sum(order[q][0] == order[p][0] for q in gone) for p in gone):
                continue
            fewer = merged(tuple(piece for q, piece in enumerate(order) if q not in gone))
            spent += 1
            solved = order_lp(fewer, tasks, places)
            if solved and (best is None or solved[0] < best[0]):
                best = (solved[0], fewer, solved[1])
                if best[0] <= makespan + worth * len(gone):
                    break
        if best is None:
            break
        makespan, order, steps = best
        if makespan + worth * len(order) <= least[0] + worth * len(least[1]):
            least = best
    return (least[0], *_some(*least[1:]))


def _some(order: Order, steps: Floats) -> tuple[Order, Floats]:
    """(order, steps) without the pieces that have no step."""
    some = [p for p in range(len(order)) if steps[p] > 1e-6]
    return tuple(order[p] for p in some), steps[some]
