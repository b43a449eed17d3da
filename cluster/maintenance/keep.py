"""For how long a farm keeps things. Settings name it, so it knows neither store nor storage."""

from __future__ import annotations

from dataclasses import dataclass

_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Keep:
    """For how many days things are kept; None: for ever."""

    #: Video, poster, spritesheet and provenance of a clip, and its still: since any job last asked for it.
    outputs_days: float | None = None
    #: Clips that were let go of in review: rejected, passed over for another candidate, or made again. Since then.
    let_go_days: float | None = None
    #: Stills of jobs that failed or were cancelled. Without them a retry needs the still to be handed in again.
    failed_days: float | None = None
    #: Checkpoints of jobs that wait or are held: since they last ran. They then begin anew.
    checkpoints_days: float | None = None
    #: Encodings and drafts that clips share: since they were written. They are made again where they are needed.
    cache_days: float | None = None
    #: Seconds that an unreferenced object is left alone: longer than any publication, and than any upload of stills.
    grace_s: float = _DAY_S

    def cutoffs(self, now: float) -> Cutoffs:
        """What goes at time `now` (seconds since the epoch); outputs and stills never within the grace."""

        def before(days: float | None) -> int | None:
            return None if days is None else int(now - max(days * _DAY_S, self.grace_s))

        return Cutoffs(
            outputs=before(self.outputs_days),
            outputs_asked=None if self.outputs_days is None else int(now - self.outputs_days * _DAY_S),
            let_go=before(self.let_go_days),
            failed=before(self.failed_days),
            checkpoints=None if self.checkpoints_days is None else int(now - self.checkpoints_days * _DAY_S),
            cache=None if self.cache_days is None else int(now - self.cache_days * _DAY_S),
            unreferenced=int(now - self.grace_s),
        )


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """What was last used before these times goes (seconds since the epoch); None: nothing does."""

    outputs: int | None
    #: What `outputs` would be without the grace.
    outputs_asked: int | None
    let_go: int | None
    failed: int | None
    checkpoints: int | None
    cache: int | None
    unreferenced: int
