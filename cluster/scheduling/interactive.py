"""Interactive jobs: which of them go before all others now, and what that may cost the rest. No I/O.

A job is interactive because whoever handed it in waits for it (`Job.interactive`). It goes before all batches, and
running clips of theirs make room for it (`preemption.py`), as long as it is *admitted*: each owner has so many at a
time, and all together have a share of the cards' time. Beyond that it is a job as any other.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cluster.jobs.model import Job

#: Into so many parts a window is divided: what is older than the window by one of them is forgotten.
_PARTS = 60


@dataclass(frozen=True, kw_only=True)
class InteractiveTerms:
    """What interactive clips may take of a farm."""

    #: Share of all cards' time, from 0 (no clip goes before others) to 1, while other clips wait.
    share: float = 0.2
    #: Clips of one owner that are admitted at a time, those on cards among them.
    per_owner: int = 4
    #: Seconds over which the share is meant.
    window_s: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.per_owner < 0 or self.window_s <= 0:
            raise ValueError(f"{self}: the share is from 0 to 1, the limit not negative, the window above 0 s")


class InteractiveBudget:
    """Card seconds that interactive clips had while others waited, over the last `InteractiveTerms.window_s`.

    What nobody else waited for counts nothing: a farm that has only interactive clips renders them as it can.
    """

    def __init__(self, terms: InteractiveTerms, now: float) -> None:
        """`now` in seconds, on a clock that never goes back."""
        self._terms, self._at = terms, now
        self._part_s = terms.window_s / _PARTS
        #: (number of the part, card seconds), the oldest first.
        self._used: deque[tuple[int, float]] = deque()
        #: Interactive clips on cards, and whether others wait, since `_at`.
        self._running, self._contended = 0, False

    def note(self, now: float, *, running: int, contended: bool) -> None:
        """From `now` on so many interactive clips are on cards, and other clips wait (`contended`) or not."""
        if self._contended and self._running:
            self.charge(now, self._running * max(0.0, now - self._at))
        self._at, self._running, self._contended = now, running, contended

    def charge(self, now: float, card_s: float) -> None:
        """Count so many card seconds, such as those that it takes to make room."""
        part = int(now // self._part_s)
        if self._used and self._used[-1][0] == part:
            card_s += self._used.pop()[1]
        self._used.append((part, card_s))

    def used_s(self, now: float) -> float:
        """Card seconds that were counted in the last window."""
        oldest = int(now // self._part_s) - _PARTS
        while self._used and self._used[0][0] < oldest:
            self._used.popleft()
        return sum(card_s for _, card_s in self._used)

    def left_s(self, now: float, cards: int) -> float:
        """Card seconds that interactive clips may have yet, of so many cards; negative where they had more."""
        return self._terms.share * self._terms.window_s * cards - self.used_s(now)


def admitted(
    waiting: Iterable[Job],
    running: Mapping[str, int],
    terms: InteractiveTerms,
    left_s: float,
    seconds: Callable[[Job], float],
) -> frozenset[str]:
    """Ids of the interactive jobs that go before all others now.

    `running`: interactive clips on cards, by owner. `left_s`: card seconds that are left of the budget when those that
    run have ended; the last job that is admitted may take more. `seconds` that a job is expected to take.

    Owners take turns: the first of each goes before the second of any.
    """
    if terms.share <= 0:
        return frozenset()
    taken: Counter[str] = Counter(running)
    in_turn: list[tuple[int, Job]] = []
    for job in sorted((job for job in waiting if job.interactive), key=_order):
        in_turn.append((taken[job.owner], job))
        taken[job.owner] += 1
    found = set()
    for turn, job in sorted(in_turn, key=lambda one: (one[0], _order(one[1]))):
        if left_s <= 0 or turn >= terms.per_owner:
            break
        left_s -= seconds(job)
        found.add(job.id)
    return frozenset(found)


def _order(job: Job) -> tuple[int, int, str, int]:
    return -job.own_priority, job.created_at, job.batch_id, job.number
