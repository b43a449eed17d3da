"""The schedule that a forecast counts with: what a farm does, simplified. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.fleet.fleet_file import Cards


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one clip takes on one group of cards, in seconds, maybe drawn."""

    gap_s: float
    load_s: float
    first_s: float
    on_card_s: float
    publish_s: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Who rendered what, and when all were published."""

    finish_s: float
    #: By group of cards.
    busy_s: tuple[float, ...]
    clips: tuple[int, ...]


#: What is loaded on a card, and all that its process has ever loaded: cards of a group for which both are the same are
#: alike but for when they are free.
_Had = tuple[str, frozenset[str]]
#: Cards that are alike in this, those that are free first: (free at, last clip published at, number).
_Heap = list[tuple[float, float, int]]


def schedule(groups: Sequence[Cards], clips: Sequence[tuple[str, Callable[[int], Times | None]]]) -> Schedule:
    """Place `clips` in their order, each on the card that would be done with it first.

    A clip is its family and what it takes on a group of cards, by the group's number; None: it does not fit there.
    """
    fresh: _Had = ("", frozenset())
    # More cards of a group than there are clips would only idle.
    free: list[dict[_Had, _Heap]] = [
        {fresh: [(group.startup_s, 0.0, n) for n in range(min(group.count, len(clips)))]} for group in groups
    ]
    busy, counted = [0.0] * len(groups), [0] * len(groups)
    finish = 0.0
    for family, times_on in clips:
        best: tuple[float, float, int, _Had, Times] | None = None
        for number, alike in enumerate(free):
            times = times_on(number)
            if times is None:
                continue
            for had, heap in alike.items():
                if not heap:
                    continue
                again = times.load_s if family in had[1] else times.first_s
                begun = times.gap_s if had[0] == family else again
                done = max(heap[0][0] + begun + times.on_card_s, heap[0][1])
                if best is None or (done, begun) < best[:2]:
                    best = (done, begun, number, had, times)
        if best is None:
            continue
        done, _, number, had, times = best
        free_at, _, card = heapq.heappop(free[number][had])
        published = done + times.publish_s
        heapq.heappush(free[number].setdefault((family, had[1] | {family}), []), (done, published, card))
        busy[number] += done - free_at
        counted[number] += 1
        finish = max(finish, published)
    return Schedule(finish_s=finish, busy_s=tuple(busy), clips=tuple(counted))
