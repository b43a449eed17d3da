"""Which finished steps of a clip are worth a message to the dispatcher."""

from __future__ import annotations

from cluster.dispatch.protocol import Event, StepDone

#: Seconds between two reports of one clip.
REPORT_EVERY_S = 0.2


class StepReports:
    """Lets one finished step in a while through, and all other events of a clip.

    Leases, forecasts and people look a few times a second at most, while a clip of camera moves has forty steps in one:
    to send each takes more than a tenth of the time in which it is made. Steps that times are taken from pass: the one
    a clip begins at, the first that it does, and the last; so do those of a clip that begins anew.
    """

    def __init__(self, every_s: float = REPORT_EVERY_S) -> None:
        self._every_s = every_s
        self._first: int | None = None
        self._last = -1
        self._passed_at = 0.0

    def passes(self, event: Event, now: float) -> bool:
        """Whether to send an event that happened `now`, in seconds of a clock that never goes back."""
        if not isinstance(event, StepDone):
            return True
        if self._first is None or event.step < self._last:
            self._first = event.step
        self._last = event.step
        if event.step <= self._first + 1 or event.step >= event.steps or now - self._passed_at >= self._every_s:
            self._passed_at = now
            return True
        return False
