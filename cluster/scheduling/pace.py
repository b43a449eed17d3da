"""How long clips take, as far as placement has to know."""

from __future__ import annotations

from typing import Protocol

from pipeline.clips.clip import ClipSpec


class Pace(Protocol):
    """How long clips take on which kind of card; `cluster.estimates.times.TimeEstimates` is one."""

    def clip_seconds(self, spec: ClipSpec, kind: str, *, usable_bytes: int | None = None, from_step: int = 0) -> float:
        """Seconds on a card of `kind` from the first step's begin to the last frame decoded."""
        ...

    def gap_seconds(self, family: str, kind: str) -> float:
        """Seconds from a free card of `kind` to the first step of a clip whose family is loaded there."""
        ...

    def load_seconds(self, family: str, kind: str) -> float:
        """Seconds from a free card of `kind` to the first step of a clip whose family is not loaded there."""
        ...

    def move_costs(self, spec: ClipSpec, kind: str, *, warm: bool) -> tuple[float, float, float]:
        """Seconds that the card it leaves, the card of `kind` it comes to, and the clip itself lose by a move.

        `warm`: the family is loaded there.
        """
        ...
