"""Cards and what runs on them, indexed for placement and kept up to date one change at a time.

With ten thousand cards a look at all of them takes longer than the decisions on those that changed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from cluster.fleet.cards import Card
from cluster.jobs.model import Job


class Extent:
    """How large some cards are, whichever of them are idle."""

    def __init__(self, cards: Iterable[Card]) -> None:
        most: dict[tuple[str, str], Card] = {}
        #: Usable bytes of the largest card of each kind.
        self.largest: dict[str, int] = {}
        #: Compute capability of each kind, where it is known.
        self.capability: dict[str, tuple[int, int]] = {}
        for card in cards:
            at = (card.card_class, card.kind)
            if card.capability is not None:
                self.capability[card.kind] = card.capability
            if at not in most or card.usable_bytes > most[at].usable_bytes:
                most[at] = card
                self.largest[card.kind] = max(card.usable_bytes, self.largest.get(card.kind, 0))
        #: The card with most memory usable of each class and kind, ascending.
        self.of_classes = sorted(most.values(), key=lambda c: (c.usable_bytes, c.card_class, c.kind))

    def fits(self, needs: Mapping[str, int]) -> bool:
        """Whether a job fits one of the cards; `needs` are the bytes that it needs on each kind."""
        return any(usable >= needs[kind] for kind, usable in self.largest.items())

    def rank_for(self, needs: Mapping[str, int]) -> int | None:
        """Where in `of_classes` the first card is that a job with such `needs` fits; None where there is none."""
        return next((n for n, card in enumerate(self.of_classes) if card.usable_bytes >= needs[card.kind]), None)

    def class_for(self, needs: Mapping[str, int]) -> str | None:
        """The smallest class with a card that a job with such `needs` fits; None where there is none."""
        rank = self.rank_for(needs)
        return None if rank is None else self.of_classes[rank].card_class


class CardIndex:
    """The cards of a farm, which of them are idle or out of use, and how many clips run for whom."""

    def __init__(
        self, cards: Iterable[Card] = (), jobs: Iterable[Job] = (), locked: frozenset[str] = frozenset()
    ) -> None:
        """`jobs` are those that run; `locked`: ids of cards that an operator, or too many errors, took out of use."""
        #: By renderer.
        self.cards: dict[str, Card] = {}
        #: Cards that can take a job now, by renderer.
        self.idle: dict[str, Card] = {}
        #: How many jobs run of each (owner, content), and of each owner.
        self.running_contents: Counter[tuple[str, str | None]] = Counter()
        self.running_of_owner: Counter[str] = Counter()
        self.locked: frozenset[str] = frozenset()
        self._extents: tuple[Extent, Extent] | None = None
        for card in cards:
            self.put(card)
        for job in jobs:
            self.began(job)
        self.lock(locked)

    def copy(self) -> CardIndex:
        """Another index that is like this one now: for another thread, or to try a change on."""
        other = CardIndex()
        other.cards, other.idle = dict(self.cards), dict(self.idle)
        other.running_contents, other.running_of_owner = Counter(self.running_contents), Counter(self.running_of_owner)
        other.locked, other._extents = self.locked, self._extents
        return other

    def put(self, card: Card) -> None:
        """Take in a card, or what has changed of it."""
        before = self.cards.get(card.renderer)
        self.cards[card.renderer] = card
        if card.idle:
            self.idle[card.renderer] = card
        else:
            self.idle.pop(card.renderer, None)
        if before is None or (before.card_class, before.kind, before.usable_bytes, before.capability) != (
            card.card_class, card.kind, card.usable_bytes, card.capability,
        ):  # fmt: skip
            self._extents = None

    def drop(self, renderer: str) -> None:
        """Take out the card of a renderer that is gone."""
        self.idle.pop(renderer, None)
        if self.cards.pop(renderer, None) is not None:
            self._extents = None

    def lock(self, cards: frozenset[str]) -> None:
        """From now on `cards` (ids), and no others, are out of use."""
        if cards != self.locked:
            self.locked, self._extents = cards, None

    def began(self, job: Job) -> None:
        """Count a job that runs from now on."""
        self.running_contents[job.owner, job.content_key] += 1
        self.running_of_owner[job.owner] += 1

    def ended(self, job: Job) -> None:
        """Count a job no longer: it has ended or stopped."""
        self.running_of_owner[job.owner] -= 1
        self.running_contents[job.owner, job.content_key] -= 1
        if self.running_contents[job.owner, job.content_key] <= 0:
            del self.running_contents[job.owner, job.content_key]

    @property
    def all(self) -> Extent:
        """How large the cards are, those out of use among them."""
        return self._both()[0]

    @property
    def usable(self) -> Extent:
        """How large the cards in use are."""
        return self._both()[1]

    def _both(self) -> tuple[Extent, Extent]:
        if self._extents is None:
            whole = Extent(self.cards.values())
            used = Extent(c for c in self.cards.values() if c.card not in self.locked) if self.locked else whole
            self._extents = whole, used
        return self._extents


class IdleCards:
    """Idle cards by kind, usable memory and the family they have loaded."""

    def __init__(self, cards: Iterable[Card]) -> None:
        #: Per kind the memory sizes there are, ascending.
        self._sizes: dict[str, list[int]] = defaultdict(list)
        #: By kind, size and family, and there by id: the last is taken first.
        self._alike: dict[tuple[str, int], dict[str, dict[str, Card]]] = {}
        self._count = 0
        seen: set[str] = set()
        # Backwards: the first by name is taken first, from the end.
        for card in sorted(cards, key=lambda c: (c.card, c.renderer), reverse=True):
            # By the card: a renderer just replaced may still be on the roster beside its successor.
            if card.card in seen:
                continue
            seen.add(card.card)
            at = (card.kind, card.usable_bytes)
            if at not in self._alike:
                insort(self._sizes[card.kind], card.usable_bytes)
                self._alike[at] = defaultdict(dict)
            self._alike[at][card.family or ""][card.card] = card
            self._count += 1

    def __bool__(self) -> bool:
        return self._count > 0

    def __iter__(self) -> Iterator[Card]:
        return (card for alike in self._alike.values() for cards in alike.values() for card in cards.values())

    def fits(self, needs: Mapping[str, int]) -> bool:
        """Whether a job fits one of the cards; `needs` are the bytes that it needs on each kind."""
        return any(sizes and sizes[-1] >= needs[kind] for kind, sizes in self._sizes.items())

    def fitting(self, needs: Mapping[str, int], family: str, but: Collection[str] = ()) -> Iterator[Card]:
        """Cards that `needs` fit, those with least memory first; of equal ones first those with `family` loaded.

        Cards that have a family of `but` loaded are left out.
        """
        # Farms have few kinds of cards: the smallest of their next sizes is found faster than by a heap of generators.
        following = {
            kind: n for kind, sizes in self._sizes.items() if (n := bisect_left(sizes, needs[kind])) < len(sizes)
        }
        while following:
            size, kind = min((self._sizes[kind][n], kind) for kind, n in following.items())
            following[kind] += 1
            if following[kind] == len(self._sizes[kind]):
                del following[kind]
            alike = self._alike[kind, size]
            for loaded in sorted(alike, key=lambda name: (name != family, name)):
                if loaded not in but:
                    yield from reversed(alike[loaded].values())

    def remove(self, card: Card) -> None:
        """Take out `card`: a job starts on it, or it is kept for one."""
        at = (card.kind, card.usable_bytes)
        cards = self._alike[at][card.family or ""]
        # A dict that loses its last entry by `del` keeps its place, and walking backwards passes by all such places.
        name, last = cards.popitem()
        if name != card.card:
            cards[name] = last
            del cards[card.card]
        self._count -= 1
        if not cards:
            del self._alike[at][card.family or ""]
            if not self._alike[at]:
                del self._alike[at]
                self._sizes[card.kind].remove(card.usable_bytes)
