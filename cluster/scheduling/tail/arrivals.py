"""Plans for clips that come one by one: many end early, and the last hardly later than it could. Pure.

While clips keep coming, the last one of a plan is seldom the last of all, and a plan made for it alone keeps short
clips on slow cards for what the next arrival undoes. So each clip goes where it ends first, and that chooses first
whose time since it came is longest for what it takes (Brinch Hansen, "Short-term scheduling in multiprogramming
systems", SOSP 1971): of those that have just come the shortest. It begins on a slower card meanwhile where that helps,
and moves up when a faster one is free. By that alone the longest clips end too late: those that would end beyond the
bound of the preemptive linear program, and a little more, are made *first*, one after the other. They choose before all
others, and clips that are not first make room for them. While there are more clips than cards they are so only from the
time on when they have to be. Nothing else moves.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cluster.jobs.model import Job
from cluster.scheduling.tail.schedule import Piece, Place, Played, Schedule, Task, play

#: The last clip may end later than the bound by this share.
LATER = 0.1
#: A clip that is made first while there are more clips than cards is so this long before its last moment at the latest,
#: as a share of what it takes; where that is too late, sooner by what it ended too late, times so many.
_SPARE, _SOONER = 0.1, 1.5
#: Sooner than after this share of what all may take is at once.
_AT_ONCE = 0.05
#: A running clip moves up where it ends sooner by this share of what is left, and by so many times what a move takes.
_UP_SHARE, _UP_COSTS = 0.2, 5.0
#: A clip that is to wait for a faster card begins on another where it does this share of its work meanwhile, in seconds
#: of the faster card, and so many times what a move takes.
_MEANWHILE_SHARE, _MEANWHILE_COSTS = 0.15, 5.0
#: Clips that are made first at most, schedules that are tried, and one after the other in vain.
_MOST_FIRST, _MOST_TRIED, _IN_VAIN = 20, 40, 6
#: Better by less, as a share, is no better.
_BETTER = 0.001
_EPS = 1e-9


def come_one_by_one(jobs: Iterable[Job]) -> bool:
    """Whether no more than half of `jobs` were handed in together: of one batch, in one second."""
    together = Counter((job.batch_id, job.created_at) for job in jobs)
    return 2 * max(together.values(), default=1) <= together.total()


def end_early(tasks: Sequence[Task], places: Sequence[Place], bound_s: float) -> Played:
    """A schedule of `tasks` on `places` in which many end early, and the last near `bound_s` where that is found.

    `bound_s` in seconds, as `cluster.scheduling.tail.search.least_s` has it. Raises `ValueError` for a task that fits
    on no place.
    """
    in_turn = sorted(
        range(len(tasks)), key=lambda i: (-tasks[i].waited_s / tasks[i].shortest_s, tasks[i].shortest_s, i)
    )
    until_s = bound_s * (1 + LATER)
    first: dict[int, float] = {}
    best: Played | None = None
    vain = tried = 0
    while True:
        cards = _VirtualCards(tasks, places, in_turn, first)
        played = play(cards.schedule(), tasks, places)
        vain, tried = vain + 1, tried + 1
        if best is None or played.makespan_s < best.makespan_s * (1 - _BETTER):
            best, vain = played, 0
        late = [i for i in in_turn if cards.end_s[i] > until_s and first.get(i, math.inf) > 0]
        if best.makespan_s <= until_s or not late or vain == _IN_VAIN or tried == _MOST_TRIED:
            return best
        last = max(late, key=lambda i: cards.end_s[i])
        if last not in first and len(first) == _MOST_FIRST:
            return best
        first[last] = _first_from_s(last, tasks[last], first.get(last), cards, until_s)


def _first_from_s(index: int, task: Task, before_s: float | None, cards: _VirtualCards, until_s: float) -> float:
    """When a task that ends after `until_s` is to be first; it was from `before_s` on (None: never).

    As long as there are more clips than cards no card falls idle: whoever made room by then would do it in vain. But
    the longest have to begin when it is time.
    """
    if before_s is None:
        since_s = min(cards.crowded_until_s(), until_s - (1 + _SPARE) * task.shortest_s)
    else:
        since_s = before_s - _SOONER * (cards.end_s[index] - until_s)
    return since_s if since_s > _AT_ONCE * until_s else 0.0


class _Option(NamedTuple):
    """A place where a task could go on."""

    end_s: float
    #: Another task has to make room.
    evicts: bool
    place: int
    begins_s: float
    #: When the place is free for it.
    free_s: float


class _VirtualCards:
    """Cards in virtual time: whenever one is free, all tasks that have not ended choose anew, one after the other."""

    def __init__(
        self, tasks: Sequence[Task], places: Sequence[Place], in_turn: Sequence[int], first: Mapping[int, float]
    ) -> None:
        """`in_turn`: tasks as they choose, by index; `first`: from when on some go before others, who give way."""
        self._tasks, self._places, self._in_turn, self._first_from_s = tasks, places, in_turn, first
        #: Tasks that are first by now.
        self._first: frozenset[int] = frozenset()
        #: When each task ends, or has ended.
        self.end_s = [math.inf] * len(tasks)
        self._open = set(range(len(tasks)))
        self._left = [float(task.steps) for task in tasks]
        self._begun = [task.begun for task in tasks]
        #: The place of each task, since when it renders there, and when one that has left may go on.
        self._at: list[int | None] = [None] * len(tasks)
        self._since_s, self._ready_s = [0.0] * len(tasks), [0.0] * len(tasks)
        #: The task on each place, when that is free of it, and the family it has loaded.
        self._on: list[int | None] = [None] * len(places)
        self._free_s = [place.free_s for place in places]
        self._loaded = [place.family for place in places]
        #: When each place is free of all that have chosen it by now, and those that a first task cannot have.
        self._chosen_s: list[float] = []
        self._kept: set[int] = set()
        #: Places of one kind with one family loaded, and of each such group the one that is free first.
        self._alike: dict[tuple[int, int | None], list[int]] = {}
        self._soonest: dict[tuple[int, int | None], int] = {}
        #: (task, place, steps), and the last of each task.
        self._pieces: list[tuple[int, int, float]] = []
        self._last_piece = [-1] * len(tasks)
        for index, task in enumerate(tasks):
            if task.at is not None:
                self._loaded[task.at] = task.family
                self._put(index, task.at, self._free_s[task.at])

    def schedule(self) -> Schedule:
        """What becomes of the tasks. Raises `ValueError` for one that fits on no place."""
        now = 0.0
        while self._open:
            self._choose(now)
            now = self._next_s(now)
            if now == math.inf:
                raise ValueError(f"{self._tasks[min(self._open)].key} fits on none of {len(self._places)} cards")
            for place, index in enumerate(self._on):
                if index is not None and self._free_s[place] <= now + _EPS:
                    self._on[place], self._at[index] = None, None
                    self._open.discard(index)
        return tuple(Piece(*piece) for piece in self._pieces if piece[2] > 0)

    def crowded_until_s(self) -> float:
        """When there are no more tasks than places left, as they were played."""
        many = len(self._tasks) - len(self._places)
        return sorted(self.end_s)[many - 1] if many > 0 else 0.0

    def _next_s(self, now: float) -> float:
        """When a place is free, or a task is first, after `now`."""
        first = (since_s for index, since_s in self._first_from_s.items() if index in self._open)
        return min((when_s for when_s in (*self._free_s, *first) if when_s > now + _EPS), default=math.inf)

    def _choose(self, now: float) -> None:
        self._chosen_s = [max(free_s, now) for free_s in self._free_s]
        self._kept = set()
        self._group()
        self._first = frozenset(i for i, since_s in self._first_from_s.items() if since_s <= now + _EPS)
        longest = sorted(self._first, key=lambda i: (-self._tasks[i].shortest_s, i))
        for index in (*longest, *(i for i in self._in_turn if i not in self._first)):
            if index not in self._open or (best := self._best(index, now)) is None:
                continue
            at = self._at[index]
            if at is not None and not self._is_worth_a_move(index, best, now):
                self._kept.add(at)
            elif self._is_free(best, now):
                if best.evicts and (other := self._on[best.place]) is not None:
                    self._leave(other, now)
                if at is not None:
                    self._leave(index, now)
                    self._is_chosen(at, max(now, self._free_s[at]))
                self._begin(index, best)
            else:
                self._kept.add(best.place)
                self._is_chosen(best.place, best.end_s)
                if at is None and (meanwhile := self._meanwhile(index, best, now)) is not None:
                    self._begin(index, meanwhile)

    # -- where a task could go on ------------------------------------------------------------------------------------

    def _best(self, index: int, now: float) -> _Option | None:
        """Where the task would end first, but for where it is; None: nowhere."""
        task, at = self._tasks[index], self._at[index]
        most_step_s = math.inf
        if at is not None:
            if not task.movable or self._leaves(index, now)[1] <= 0:
                return None
            # Nothing slower can be worth a move.
            most_step_s = (1 - _UP_SHARE) * task.step_s[self._places[at].kind]
        found = list(self._free_options(index, most_step_s))
        if index in self._first:
            found += self._taken_options(index, most_step_s, now)
        return min(found, default=None)

    def _free_options(self, index: int, most_step_s: float) -> Iterator[_Option]:
        for (kind, _), place in self._soonest.items():
            if self._tasks[index].step_s[kind] < most_step_s:
                option = self._option(index, place, self._chosen_s[place], evicts=False)
                if option is not None:
                    yield option

    def _taken_options(self, index: int, most_step_s: float, now: float) -> Iterator[_Option]:
        """Places that others would leave."""
        for place, other in enumerate(self._on):
            if other is None or other in self._first or place in self._kept or not self._tasks[other].movable:
                continue
            leaves_s, left = self._leaves(other, now)
            if left > 0 and self._tasks[index].step_s[self._places[place].kind] < most_step_s:
                option = self._option(index, place, leaves_s + self._tasks[other].leave_s, evicts=True)
                if option is not None:
                    yield option

    def _meanwhile(self, index: int, later: _Option, now: float) -> _Option | None:
        """An idle place for a task that waits for another, where it gets so far until then that the move pays."""
        task = self._tasks[index]
        if not task.movable:
            return None
        each_s = task.step_s[self._places[later.place].kind]
        least_s = max(_MEANWHILE_COSTS * _cost_s(task), _MEANWHILE_SHARE * (later.end_s - later.begins_s))
        best: _Option | None = None
        for option in self._free_options(index, math.inf):
            if not self._is_free(option, now):
                continue
            steps = (later.free_s - option.begins_s) / task.step_s[self._places[option.place].kind]
            if math.floor(steps) * each_s >= least_s:
                best, least_s = option, math.floor(steps) * each_s + _EPS
        return best

    def _option(self, index: int, place: int, free_s: float, *, evicts: bool) -> _Option | None:
        task, kind, left = self._tasks[index], self._places[place].kind, self._left[index]
        begins_s = free_s
        if self._at[index] is not None:
            leaves_s, left = self._leaves(index, free_s)
            if left <= 0:
                return None
            begins_s = max(free_s + task.arrive_s, leaves_s + task.pause_s)
        elif self._begun[index]:
            begins_s = max(free_s + task.arrive_s, self._ready_s[index])
        begins_s += task.warm_s if self._loaded[place] == task.family else task.cold_s
        return _Option(begins_s + left * task.step_s[kind] + task.end_s[kind], evicts, place, begins_s, free_s)

    def _leaves(self, index: int, now: float) -> tuple[float, float]:
        """When the task has ended the step that it is in at `now`, and the steps that it has left then."""
        since_s, at = self._since_s[index], self._at[index]
        if at is None or now <= since_s + _EPS:
            return since_s, self._left[index]
        each_s = self._tasks[index].step_s[self._places[at].kind]
        done = math.ceil((now - since_s) / each_s - 1e-6)
        return since_s + done * each_s, self._left[index] - done

    def _is_worth_a_move(self, index: int, option: _Option, now: float) -> bool:
        gain_s, left_s = self.end_s[index] - option.end_s, self.end_s[index] - now
        return gain_s >= max(_UP_COSTS * _cost_s(self._tasks[index]), _UP_SHARE * left_s)

    def _is_free(self, option: _Option, now: float) -> bool:
        return option.evicts or (self._on[option.place] is None and option.free_s <= now + _EPS)

    # -- what it does ------------------------------------------------------------------------------------------------

    def _begin(self, index: int, option: _Option) -> None:
        regroup = self._loaded[option.place] != self._tasks[index].family
        self._put(index, option.place, option.begins_s)
        self._kept.add(option.place)
        self._is_chosen(option.place, self._free_s[option.place])
        if regroup:
            self._group()

    def _put(self, index: int, place: int, begins_s: float) -> None:
        task, kind = self._tasks[index], self._places[place].kind
        self._on[place], self._at[index], self._since_s[index] = index, place, begins_s
        self._loaded[place], self._begun[index] = task.family, True
        self._free_s[place] = self.end_s[index] = begins_s + self._left[index] * task.step_s[kind] + task.end_s[kind]
        self._last_piece[index] = len(self._pieces)
        self._pieces.append((index, place, self._left[index]))

    def _leave(self, index: int, now: float) -> None:
        task, place = self._tasks[index], self._at[index]
        assert place is not None
        leaves_s, left = self._leaves(index, now)
        self._pieces[self._last_piece[index]] = (index, place, self._left[index] - left)
        self._left[index], self._ready_s[index] = left, leaves_s + task.pause_s
        self._on[place], self._at[index] = None, None
        self._free_s[place] = leaves_s + task.leave_s

    def _is_chosen(self, place: int, until_s: float) -> None:
        self._chosen_s[place] = until_s
        key = self._places[place].kind, self._loaded[place]
        if key in self._alike:
            self._soonest[key] = min(self._alike[key], key=self._chosen_s.__getitem__)

    def _group(self) -> None:
        self._alike = defaultdict(list)
        for number, place in enumerate(self._places):
            self._alike[place.kind, self._loaded[number]].append(number)
        self._soonest = {key: min(some, key=self._chosen_s.__getitem__) for key, some in self._alike.items()}


def _cost_s(task: Task) -> float:
    """Seconds that a move takes of both cards and of the clip."""
    return task.leave_s + task.arrive_s + task.pause_s
