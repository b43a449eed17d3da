"""Clips that wait in a plan for nothing: they end sooner on another card, and the last clip no later. Pure.

A plan is made for its last clip. Where that one decides alone, all else may come at any time before it ends, and a
card may stand idle beside a clip that is planned for a busy one: the conservative backfilling of batch schedulers
(Mu'alem & Feitelson, "Utilization, predictability, workloads, and user runtime estimates in scheduling the IBM SP2 with
backfilling", IEEE TPDS 12, 2001) after the fact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from cluster.scheduling.tail.schedule import Piece, Place, Schedule, Task, play

#: A clip goes elsewhere where it ends sooner by this share of what the plan takes, and by so many seconds.
_SHARE = 0.01
_LEAST_S = 0.5


def sooner(schedule: Schedule, tasks: Sequence[Task], places: Sequence[Place]) -> Schedule:
    """`schedule` with waiting tasks behind the last one of another place, where they end sooner there.

    Only tasks that are done in one piece and have not begun; the makespan gets no longer. `schedule` itself where
    nothing changes.
    """
    pieces = Counter(piece.task for piece in schedule)
    played = play(schedule, tasks, places)
    least_s = max(_LEAST_S, _SHARE * played.makespan_s)
    # Those that are to begin last have most to gain, and leave room to no other.
    order = sorted(range(len(schedule)), key=lambda p: -played.times[p][0])
    for index in [schedule[p].task for p in order]:
        task = tasks[index]
        if pieces[index] > 1 or task.at is not None or task.begun:
            continue
        at = next(p for p, piece in enumerate(schedule) if piece.task == index)
        ends_s = _ends(schedule, tasks, places, [end for _, end in played.times])
        for _, number in sorted(_candidates(task, schedule[at].place, ends_s, places, played.times[at][1] - least_s)):
            other = (*schedule[:at], *schedule[at + 1 :], Piece(index, number, schedule[at].steps))
            tried = play(other, tasks, places)
            if tried.makespan_s <= played.makespan_s and tried.times[-1][1] <= played.times[at][1] - least_s:
                schedule, played = other, tried
                break
    return schedule


def _ends(
    schedule: Schedule, tasks: Sequence[Task], places: Sequence[Place], ends_s: Sequence[float]
) -> list[tuple[float, int | None]]:
    """When the last task of each place ends, and the family that the place has loaded then."""
    found: list[tuple[float, int | None]] = [(place.free_s, place.family) for place in places]
    for piece, end_s in zip(schedule, ends_s, strict=True):
        if end_s >= found[piece.place][0]:
            found[piece.place] = (end_s, tasks[piece.task].family)
    return found


def _candidates(
    task: Task, here: int, ends_s: Sequence[tuple[float, int | None]], places: Sequence[Place], before_s: float
) -> list[tuple[float, int]]:
    """Ends of `task` on other places, of each kind and family the first that is free, and their numbers."""
    best: dict[tuple[int, int | None], tuple[float, int]] = {}
    for number, (free_s, family) in enumerate(ends_s):
        kind = places[number].kind
        end_s = free_s + (task.warm_s if family == task.family else task.cold_s) + task.seconds(kind)
        if number != here and end_s < min(before_s, best.get((kind, family), (math.inf, 0))[0]):
            best[kind, family] = (end_s, number)
    return list(best.values())
