"""When a card is set aside by the farm itself: renderers died on it again and again. Pure; time is handed in."""

from __future__ import annotations

from collections.abc import Callable

from cluster.jobs.outcomes import Completed, Crashed, Ended

#: Jobs whose renderer must have died or broken on a card, within `WITHIN_S` and without a success between them.
FAULTS = 6
WITHIN_S = 600.0
#: How long a card is set aside; it then gets clips again.
REST_S = 30 * 60


class Quarantine:
    """Counts faults by card. A breaker is about clips of one kind on a card; this is about the card."""

    def __init__(self, clock: Callable[[], float], *, faults: int = FAULTS, within_s: float = WITHIN_S) -> None:
        """`clock` in seconds; it never goes back."""
        self._clock, self._faults, self._within_s = clock, faults, within_s
        self._failed: dict[str, dict[str, float]] = {}

    def ended(self, card: str, job_id: str, ended: Ended) -> str | None:
        """An attempt ended on `card`; why the card is to be set aside now, None where it is not.

        Faults count once a job, so that one row which kills whatever renders it says nothing of a card. Running out of
        memory does not count either: that is between a clip's size and a card's.
        """
        if isinstance(ended, Completed):
            self._failed.pop(card, None)
            return None
        if not ended.sticky and not isinstance(ended, Crashed):
            return None
        now = self._clock()
        recent = {job: at for job, at in self._failed.get(card, {}).items() if now - at <= self._within_s}
        recent[job_id] = now
        self._failed[card] = recent
        if len(recent) < self._faults:
            return None
        del self._failed[card]
        within = f"{self._within_s / 60:.0f} min"
        return f"{len(recent)} clips broke their renderer here within {within}; the last: {_last(ended)}"


def _last(ended: Ended) -> str:
    return ended.detail[:200] or str(ended.outcome)
