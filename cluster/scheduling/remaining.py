"""What is left for the jobs of one snapshot while they are placed one after the other. No I/O."""

from __future__ import annotations

from collections import Counter

from cluster.fleet.card_index import IdleCards
from cluster.fleet.cards import Card
from cluster.fleet.quotas import DEFAULT_SHARE
from cluster.jobs.model import Job
from cluster.scheduling.snapshot import Snapshot


class Remaining:
    """Idle cards, what owners may still start, and how much was shown of each queue; less with every job placed."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot, self._index = snapshot, snapshot.card_index
        #: Cards that were idle and in use before anything started.
        self.idle_at_first = [card for card in self._index.idle.values() if card.card not in self._index.locked]
        #: Cards of `idle_at_first` that still are idle.
        self.idle = IdleCards(self.idle_at_first)
        #: (owner, content) of what starts now, on top of what runs.
        self._starting: set[tuple[str, str | None]] = set()
        self._more: Counter[str] = Counter()
        #: How many of each queue have neither started nor been passed over for an equal clip, if it may be longer.
        self._shown: Counter[tuple[object, ...]] = Counter()
        #: A queue of `_shown` has run out: nothing more is decided.
        self.is_short = False
        if (shown := snapshot.shown) is not None:
            seen = Counter(job.queue for job in snapshot.waiting)
            self._shown = Counter({queue: count for queue, count in seen.items() if count >= shown})

    def has_equal(self, job: Job) -> bool:
        """Whether a clip of equal content runs or starts now for the same owner."""
        key = (job.owner, job.content_key)
        return key in self._starting or key in self._index.running_contents

    def share_of(self, owner: str) -> tuple[float, float]:
        """(clips on cards, card seconds of late), each by the owner's weight: who has least is next."""
        weight = self._snapshot.owners.get(owner, DEFAULT_SHARE).weight
        return self._running_of(owner) / weight, self._snapshot.used_s.get(owner, 0.0) / weight

    def at_limit(self, owner: str) -> bool:
        """Whether the owner has as many clips on cards as they may."""
        most = self._snapshot.owners.get(owner, DEFAULT_SHARE).max_running
        return most is not None and self._running_of(owner) >= most

    def take(self, job: Job, card: Card) -> None:
        """`job` starts on `card`."""
        self.idle.remove(card)
        self._starting.add((job.owner, job.content_key))
        self._more[job.owner] += 1

    def settle(self, job: Job) -> None:
        """`job` has started, or an equal one has: of its queue one less is left to look at."""
        queue = job.queue if self._shown else ()
        if queue in self._shown:
            self._shown[queue] -= 1
            self.is_short |= self._shown[queue] == 0

    def pass_over(self, job: Job) -> None:
        """`job` was turned away for itself: it hides nothing that waits behind it in its queue."""
        if self._shown and (queue := job.queue) in self._shown:
            self._shown[queue] -= 1

    def _running_of(self, owner: str) -> int:
        return self._index.running_of_owner.get(owner, 0) + self._more[owner]
