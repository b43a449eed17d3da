"""Breakers: what failed again and again on one card is not offered to it for a while. Pure; time is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from cluster.jobs.outcomes import Completed, Crashed, Ended, OutOfMemory
from pipeline.clips.clip import ClipSpec
from pipeline.families.layouts import RESIDENT
from pipeline.memory.footprint import plan

#: Jobs that must fail in a row before a breaker opens.
FAULTS = 3
#: How long an open breaker keeps jobs away before one may try, in seconds.
REST_S = 15 * 60.0


class Route(NamedTuple):
    """What a breaker is about: clips of one kind, laid out in one way, on one card."""

    family: str
    resolution_class: str
    #: The layout as text.
    layout: str
    card: str


def route_of(spec: ClipSpec, card: str, usable_bytes: int) -> Route:
    """The route of `spec` to a card with so many usable bytes: in the layout predicted to be the fastest that fits.

    By prediction, although a renderer that has learned may choose another: it is known before a renderer is asked,
    and also of one that died without a word.
    """
    planned = plan(spec, usable_bytes)
    return Route(spec.family, str(spec.resolution_class), str(planned[0] if planned else RESIDENT), card)


class Blame(StrEnum):
    """What the end of an attempt says about the card."""

    #: The card rendered the clip.
    NONE = "none"
    #: The card ran out of memory in every layout, broke, or took its renderer with it.
    CARD = "card"
    #: Nothing: cancelled, preempted, refused before it started, a bad row, a lost node.
    UNKNOWN = "unknown"


def blame(ended: Ended) -> Blame:
    """What `ended` says about the card it ended on."""
    if isinstance(ended, Completed):
        return Blame.NONE
    failed = ended.sticky or isinstance(ended, OutOfMemory | Crashed)
    return Blame.CARD if failed else Blame.UNKNOWN


@dataclass(kw_only=True)
class _Breaker:
    #: Jobs that failed since the last success. By job: a row that kills whatever renders it says nothing of a card.
    failed: set[str] = field(default_factory=set)
    opened_at: float | None = None
    #: The attempt that tries whether it works again.
    probe: str | None = None


class Breakers:
    """All breakers of a farm. One is made by its first fault and forgotten with its first success."""

    def __init__(self, clock: Callable[[], float], *, faults: int = FAULTS, rest_s: float = REST_S) -> None:
        """`clock` in seconds; it never goes back."""
        self._clock, self._faults, self._rest_s = clock, faults, rest_s
        self._breakers: dict[Route, _Breaker] = {}

    def blocked(self) -> frozenset[Route]:
        """Routes that no job may take now: their breakers are open and rest, or are being probed."""
        now = self._clock()
        return frozenset(
            route
            for route, breaker in self._breakers.items()
            if breaker.opened_at is not None and (breaker.probe is not None or now - breaker.opened_at < self._rest_s)
        )

    def started(self, route: Route, attempt_id: str) -> None:
        """An attempt takes `route`: the probe of a breaker that has rested."""
        breaker = self._breakers.get(route)
        if breaker is not None and breaker.opened_at is not None and breaker.probe is None:
            breaker.probe = attempt_id

    def ended(self, route: Route, attempt_id: str, job_id: str, verdict: Blame) -> None:
        """An attempt that took `route` ended: a success closes its breaker, a failed probe opens it again."""
        if verdict is Blame.NONE:
            self._breakers.pop(route, None)
            return
        breaker = self._breakers.get(route)
        probed = breaker is not None and breaker.probe == attempt_id
        if breaker is not None and probed:
            breaker.probe = None
        if verdict is Blame.UNKNOWN:
            return
        breaker = breaker or self._breakers.setdefault(route, _Breaker())
        breaker.failed.add(job_id)
        if probed or (breaker.opened_at is None and len(breaker.failed) >= self._faults):
            breaker.opened_at = self._clock()
