"""Measurements that correct predictions: recent ratios of each key, and of its neighbours where it has none. Pure.

A *ratio* is measured ÷ predicted, seen in one attempt: of memory in `cluster.estimates.memory`, of time in
`cluster.estimates.times`. It holds for the prediction it was taken of, so the ratios of a key are bound to a hash of
that, their *prior*: where the prediction changes, a key begins anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

#: What a group of keys has in common.
Neighbourhood: TypeAlias = tuple[str, ...]

#: Answers that are remembered; beyond that all are forgotten and found anew.
_MOST_ANSWERS = 200_000


class EstimateKey(BaseModel):
    """The clips and cards that one row of measurements is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def prior(self) -> str:
        """Short hash of the prediction in use; empty where nothing is predicted."""

    @property
    @abstractmethod
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """Groups of keys that stand in for this one where it was not measured, the nearest first."""


class Measurements(BaseModel):
    """The recent ratios of one key: of one attempt, or of all so far. A subclass says how many are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    #: Ratios kept; older ones are forgotten, so that one bad day does not count for ever.
    kept: ClassVar[int]

    key: EstimateKey
    #: The key's `prior` when the ratios were taken.
    prior: str = Field(max_length=16)
    #: Attempts that ratios were taken of since the key began.
    count: int = Field(default=0, ge=0)
    #: The newest ratios, oldest first.
    recent: tuple[float, ...] = ()

    @property
    def attempts(self) -> int:
        """Attempts that these measurements know of."""
        return self.count

    def plus(self, newer: Self) -> Self:
        """A copy with the `newer` ratios of the same key and prior; itself where those say nothing new."""
        recent = (*self.recent, *newer.recent)[-self.kept :]
        return self.model_copy(update={"count": self.count + newer.count, "recent": recent})


M = TypeVar("M", bound=Measurements)


@dataclass(frozen=True)
class Estimates(Generic[M]):
    """Predictions and the measurements that correct them; at most one `Measurements` a key."""

    #: The class of `measured`.
    of: ClassVar[type[Any]]

    measured: tuple[M, ...] = ()

    @cached_property
    def _by_key(self) -> Mapping[EstimateKey, M]:
        return {one.key: one for one in self.measured}

    @cached_property
    def _neighbours(self) -> Mapping[Neighbourhood, Sequence[M]]:
        found = defaultdict(list)
        for one in self.measured:
            for neighbourhood in one.key.neighbourhoods if one.recent else ():
                found[neighbourhood].append(one)
        return dict(found)

    def get(self, key: EstimateKey) -> M | None:
        """What was measured of exactly this key."""
        return self._by_key.get(key)

    def neighbours(self, neighbourhood: Neighbourhood) -> Sequence[M]:
        """What was measured of the keys of one neighbourhood, in the order of `measured`."""
        return self._neighbours.get(neighbourhood, ())

    def plus(self, newer: Iterable[M]) -> Self:
        """A copy with the `newer` ones added in their order; one of another prior than its key's begins that anew."""
        found = dict(self._by_key)
        for one in newer:
            before = found.get(one.key)
            if before is None or before.prior != one.prior:
                before = self.of(key=one.key, prior=one.prior)
            after = before.plus(one)
            if after is not before:
                found[one.key] = after
        return type(self)(tuple(found.values()))

    def in_use(self) -> Self:
        """A copy without measurements of predictions that are not ours, which say nothing here."""
        return type(self)(tuple(one for one in self.measured if one.prior and one.prior == one.key.prior))

    def merged(self, other: Self) -> Self:
        """A copy with what another farm measured of our predictions: of two of a key, the one of more attempts."""
        found = dict(self._by_key)
        for theirs in other.in_use().measured:
            ours = found.get(theirs.key)
            if ours is None or ours.prior != theirs.prior or theirs.attempts > ours.attempts:
                found[theirs.key] = theirs
        return type(self)(tuple(found.values()))


V = TypeVar("V")


class Answers(dict[Hashable, V]):
    """Answers by question, for estimates that are asked the same again and again; bounded."""

    def __setitem__(self, question: Hashable, answer: V) -> None:
        """Remember an answer; where there are too many, forget the others."""
        if len(self) >= _MOST_ANSWERS:
            self.clear()
        super().__setitem__(question, answer)
