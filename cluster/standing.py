"""Cards and what runs on them, indexed for placement and kept up to date one change at a time.

With ten thousand cards a look at all of them takes longer than the decisions on those that changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cluster.cards import Card
from cluster.jobs import Job


class Extent:
    """How large some cards are, whichever of them are idle."""

    def __init__(self, cards: Iterable[Card]) -> None:
        most: dict[tuple[str, str], Card] = {}
        #: Usable bytes of the largest card of each kind.
        self.largest: dict[str, int] = {}
        for card in cards:
            at = (card.card_class, card.kind)
            if at not in most or card.usable_bytes > most[at].usable_bytes:
                most[at] = card
                self.largest[card.kind] = max(card.usable_bytes, self.largest.get(card.kind, 0))
        #: Of each class and kind the card with most memory usable, ascending.
        self.of_classes = sorted(most.values(), key=lambda c: (c.usable_bytes, c.card_class, c.kind))

    def holds(self, needs: Mapping[str, int]) -> bool:
        """Whether one of the cards has what is needed on its kind."""
        return any(usable >= needs[kind] for kind, usable in self.largest.items())

    def rank_for(self, needs: Mapping[str, int]) -> int | None:
        """Where in `of_classes` the first is that holds it."""
        return next((n for n, card in enumerate(self.of_classes) if card.usable_bytes >= needs[card.kind]), None)

    def class_for(self, needs: Mapping[str, int]) -> str | None:
        """The smallest class of which a card holds it."""
        rank = self.rank_for(needs)
        return None if rank is None else self.of_classes[rank].card_class


class Standing:
    """The cards of a farm and its running jobs."""

    def __init__(
        self, cards: Iterable[Card] = (), jobs: Iterable[Job] = (), locked: frozenset[str] = frozenset()
    ) -> None:
        """`locked`: ids of cards that are out of use."""
        #: By renderer.
        self.cards: dict[str, Card] = {}
        #: Of these, the ones that can take a job now.
        self.idle: dict[str, Card] = {}
        #: (owner, content) of running jobs, and clips running by owner.
        self.held: Counter[tuple[str, str | None]] = Counter()
        self.load: Counter[str] = Counter()
        self.locked: frozenset[str] = frozenset()
        self._extents: tuple[Extent, Extent] | None = None
        for card in cards:
            self.put(card)
        for job in jobs:
            self.began(job)
        self.lock(locked)

    def put(self, card: Card) -> None:
        """A card is there, or is as it now is."""
        before = self.cards.get(card.renderer)
        self.cards[card.renderer] = card
        if card.idle:
            self.idle[card.renderer] = card
        else:
            self.idle.pop(card.renderer, None)
        if before is None or (before.card_class, before.kind, before.usable_bytes) != (
            card.card_class, card.kind, card.usable_bytes,
        ):  # fmt: skip
            self._extents = None

    def drop(self, renderer: str) -> None:
        """A card is gone."""
        self.idle.pop(renderer, None)
        if self.cards.pop(renderer, None) is not None:
            self._extents = None

    def lock(self, cards: frozenset[str]) -> None:
        """These cards, and no others, are out of use."""
        if cards != self.locked:
            self.locked, self._extents = cards, None

    def began(self, job: Job) -> None:
        """A job runs."""
        self.held[job.owner, job.content_key] += 1
        self.load[job.owner] += 1

    def ended(self, job: Job) -> None:
        """It does no longer."""
        self.load[job.owner] -= 1
        self.held[job.owner, job.content_key] -= 1
        if self.held[job.owner, job.content_key] <= 0:
            del self.held[job.owner, job.content_key]

    @property
    def all(self) -> Extent:
        """Of all cards."""
        return self._both()[0]

    @property
    def usable(self) -> Extent:
        """Of those in use."""
        return self._both()[1]

    def _both(self) -> tuple[Extent, Extent]:
        if self._extents is None:
            whole = Extent(self.cards.values())
            used = Extent(c for c in self.cards.values() if c.card not in self.locked) if self.locked else whole
            self._extents = whole, used
        return self._extents
