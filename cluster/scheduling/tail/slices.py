"""A solution of the linear program cut into slices of time, and these into an order of pieces. Pure.

By matching, as in Lawler & Labetoulle, "On preemptive scheduling of unrelated parallel processors by linear
programming", J. ACM 25, 1978.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.scheduling.tail.schedule import Floats, Order, Place, Task, merged


def cut(tasks: Sequence[Task], places: Sequence[Place], makespan: float, seconds_on: list[list[float]]) -> Order:
    """The order of pieces that spends `seconds_on`, by task and kind of card, until `makespan`, tasks staying on cards.

    In every slice run all tight tasks (as much left as there is time) and all cards of tight kinds; a slice ends where
    a piece does or where something becomes tight.
    """
    from scipy.optimize import linear_sum_assignment

    slicing = _Slicing(tasks, places, makespan, seconds_on)
    while slicing.is_anything_left():
        weight = slicing.weights()
        pairs = zip(*linear_sum_assignment(weight, maximize=True), strict=True)
        chosen = [(int(task), int(place)) for task, place in pairs if weight[task, place] > 0]
        slicing.run(chosen, slicing.length(chosen))
    begun = {(index, number) for index, number in slicing.order}
    # A task that runs begins where it is, be it with no step.
    here = [(i, task.at) for i, task in enumerate(tasks) if task.at is not None and (i, task.at) not in begun]
    return merged((*here, *slicing.order))


class _Slicing:
    """What is left of the seconds of each task on each kind of card, while slices are cut off from the beginning."""

    def __init__(
        self, tasks: Sequence[Task], places: Sequence[Place], makespan: float, seconds_on: list[list[float]]
    ) -> None:
        self._makespan, self._tasks, self._kinds = makespan, len(tasks), len(seconds_on[0])
        self._kind_of = np.array([place.kind for place in places])
        self._count = np.bincount(self._kind_of, minlength=self._kinds)
        #: Times below the first are none; a slice is at least as long as the second where nothing else bounds it.
        self._eps, self._quantum = 1e-6 * makespan, makespan / 400
        self._left_on = np.array(seconds_on)
        self._left_on[self._left_on <= self._eps] = 0.0
        #: When places are free, and when tasks have ended the step that they are in.
        self._free = np.array([place.free_s for place in places])
        self._late = np.array([self._free[task.at] if task.at is not None else 0.0 for task in tasks])
        #: The task on each place in the last slice.
        self._on: list[int | None] = [None] * len(places)
        for index, task in enumerate(tasks):
            if task.at is not None:
                self._on[task.at] = index
        #: When the next slice begins, and how long all that is left may take.
        self._now, self._left = 0.0, makespan
        #: (task, place) of the pieces so far; those of the last slice go on without a new one.
        self.order: list[tuple[int, int]] = []
        self._open: set[tuple[int, int]] = set()

    def is_anything_left(self) -> bool:
        """Whether some task has seconds left."""
        return bool(self._left_on.max(initial=0.0) > self._eps)

    def weights(self) -> Floats:
        """How much each task is wanted on each place in the next slice; 0 where it cannot be there."""
        eps, of_task, of_kind = self._eps, self._of_task(), self._of_kind()
        tight_task = of_task + np.clip(self._late - self._now, 0.0, None) >= self._left - 20 * eps
        tight_kind = of_kind >= self._count * self._left - 20 * eps
        # Longer tasks first; who runs stays, and whoever has more to do on a card is not sent away.
        weight = np.where(self._left_on[:, self._kind_of] > eps, 1.0 + 0.5 * of_task[:, None] / self._makespan, 0.0)
        weight[:, self._free > self._now + eps] = 0.0
        weight[self._late > self._now + eps, :] = 0.0
        for number, runs_here in enumerate(self._on):
            if runs_here is None:
                continue
            weight[runs_here, weight[runs_here] > 0] -= 0.5
            if self._left_on[runs_here, self._kind_of[number]] > eps:
                weight[:, number] = np.where(weight[:, number] > 0, weight[:, number] - 0.4, 0.0)
                if self._free[number] <= self._now + eps:
                    weight[runs_here, number] = 7.0
        must = tight_task[:, None].astype(float) + tight_kind[self._kind_of][None, :].astype(float)
        return np.where(weight > 0, weight + 1e4 * must, 0.0)

    def length(self, chosen: Sequence[tuple[int, int]]) -> float:
        """Seconds until a piece of the `chosen` (task, place) ends, a place is free or something becomes tight."""
        eps, of_task, of_kind = self._eps, self._of_task(), self._of_kind()
        length = max(self._left, self._quantum)
        runs = np.zeros(self._tasks, bool)
        busy = np.bincount(self._kind_of[self._free > self._now + eps], minlength=self._kinds)
        for task, place in chosen:
            length = min(length, self._left_on[task, self._kind_of[place]])
            runs[task] = True
            busy[self._kind_of[place]] += 1
        idle_tasks = of_task[(~runs) & (of_task > eps) & (self._late <= self._now + eps)]
        if idle_tasks.size:
            length = min(length, float((self._left - idle_tasks).min()))
        for kind in range(self._kinds):
            if busy[kind] < self._count[kind] and of_kind[kind] > eps:
                until_tight = (self._count[kind] * self._left - of_kind[kind]) / (self._count[kind] - busy[kind])
                length = min(length, until_tight)
        later = self._free[self._free > self._now + eps]
        if later.size:
            length = min(length, float(later.min()) - self._now)
        # Costs and rounding make room: exactness is not needed, but an end is.
        return max(length, self._quantum if not chosen or length <= eps else eps)

    def run(self, chosen: Sequence[tuple[int, int]], length: float) -> None:
        """Cut off a slice of `length` seconds in which the `chosen` (task, place) run."""
        self._on = [None] * len(self._on)
        for task, place in chosen:
            kind = self._kind_of[place]
            left = self._left_on[task, kind] - length
            self._left_on[task, kind] = left if left > self._eps else 0.0
            self._on[place] = task
            if (task, place) not in self._open:
                self.order.append((task, place))
        self._open = set(chosen)
        self._now, self._left = self._now + length, max(self._left - length, 0.0)

    def _of_task(self) -> Floats:
        """Seconds that are left of each task."""
        seconds: Floats = self._left_on.sum(axis=1)
        return seconds

    def _of_kind(self) -> Floats:
        """Seconds that are left on each kind of card, those in which a card is not free yet among them."""
        seconds: Floats = self._left_on.sum(axis=0)
        for kind in range(self._kinds):
            seconds[kind] += np.clip(self._free[self._kind_of == kind] - self._now, 0.0, self._left).sum()
        return seconds
