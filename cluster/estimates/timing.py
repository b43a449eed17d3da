"""How long the parts of one attempt took, as its events tell. Pure: whoever holds the clock says the time."""

from __future__ import annotations

from cluster.jobs.outcomes import Timed
from pipeline.families.layouts import Layout

#: A card that stood idle for longer than this had nothing to do: the wait says nothing about the farm.
_BACK_TO_BACK_S = 1.0


class Stopwatch:
    """Takes the times of one attempt from its events; all times come from one clock, in seconds."""

    def __init__(
        self, launched_at: float, *, freed_at: float | None = None, cold: bool = False, first: bool = False
    ) -> None:
        """Begin at `launched_at`, or at `freed_at`, when the card's last clip was off it, where that was just before.

        `cold`: another family, or none, is loaded; `first`: the renderer's process has never loaded the clip's family.
        """
        self._began_at = launched_at
        if freed_at is not None and 0 <= launched_at - freed_at <= _BACK_TO_BACK_S:
            self._began_at = freed_at
        self._cold, self._first_load = cold, first
        self._ready: tuple[int, float] | None = None
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._free_at: float | None = None
        #: When the clip before this one on the card was published, where that was during this one.
        self._before_at: float | None = None

    def step(self, step: int, now: float) -> None:
        """`step` steps are done. One that is not larger than the last means that the clip began anew."""
        if self._last is None or step < self._last[0]:
            self._ready, self._first, self._last = (step, now), None, (step, now)
            return
        if step == self._last[0]:
            return
        if self._first is None:
            self._first = (step, now)
        self._last = (step, now)

    def published_before(self, now: float) -> None:
        """The clip that the card rendered before this one is published."""
        self._before_at = now

    def card_free(self, now: float) -> None:
        """The clip's frames are off the card."""
        self._free_at = now

    @property
    def free_at(self) -> float | None:
        """When the clip's frames were off the card; None before."""
        return self._free_at

    def pace(self, now: float) -> tuple[float | None, float]:
        """(seconds of a step so far, None before two were seen; seconds since the last step's end, or the start)."""
        step_s = None
        if self._first is not None and self._last is not None and self._last[0] > self._first[0]:
            step_s = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return step_s, now - (self._last[1] if self._last is not None else self._began_at)

    def timed(self, now: float, layout: Layout) -> Timed | None:
        """The times of an attempt that completed `now` in `layout`; None where it said too little."""
        if self._ready is None or self._first is None or self._last is None:
            return None
        single = self._first[0] == self._ready[0] + 1
        # Frames wait on the card until those of the clip before are out: that is no decoding.
        waited = self._before_at is not None and self._before_at > self._last[1]
        free_at = self._free_at
        return Timed(
            layout=layout,
            start_s=self._ready[1] - self._began_at,
            cold=self._cold,
            first=self._first_load,
            from_step=self._ready[0],
            first_s=self._first[1] - self._ready[1] if single else None,
            first_step=self._first[0],
            steps=self._last[0] - self._first[0],
            steps_s=self._last[1] - self._first[1],
            decode_s=None if free_at is None or waited else free_at - self._last[1],
            publish_s=None if free_at is None else now - free_at,
        )
