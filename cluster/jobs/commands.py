"""Commands to batches and cards, and what they do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.jobs.model import Batch, HoldReason, JobState, Limits
from cluster.jobs.transitions import Guard, RefusedError, Verb

#: Rows that a command to their whole batch leaves as they are, though each would obey it by itself: whoever puts back
#: what was cancelled does not mean clips that were passed over for another of their row.
SPARED: Mapping[Verb, Guard] = {Verb.RETRY: Guard.OTHER_PICKED}


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """What a verb does to a batch; None: that stays as it is."""

    #: The new flag; None: none.
    held: HoldReason | None
    #: Whether the verb goes to its rows too, each by the table.
    rows: bool
    needs_approval: bool


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a batch has used of its limits."""

    #: Rows that failed while being rendered.
    failures: int = 0
    gpu_seconds: float = 0.0
    cost: float = 0.0


def reached(used: Used, limits: Limits) -> HoldReason | None:
    """Which limit stops a batch; the failures first, because they are what somebody should look at."""
    if limits.failures is not None and used.failures >= limits.failures:
        return HoldReason.FAILURES
    for have, most in ((used.gpu_seconds, limits.gpu_seconds), (used.cost, limits.cost)):
        if most is not None and have >= most:
            return HoldReason.BUDGET
    return None


def for_batch(batch: Batch, verb: Verb, used: Used | None = None, *, cancelled: bool = False) -> BatchOrder:
    """What `verb` does to a batch. Raises `RefusedError`.

    `used` is asked for by RESUME of a batch that has reached a limit (`batch.limits` are the new ones); `cancelled` by
    RETRY, where cancelled rows are meant too.
    """
    stays = BatchOrder(held=batch.held, rows=True, needs_approval=batch.needs_approval)
    what = f"batch {batch.id}"
    if verb not in (Verb.RETRY, Verb.CANCEL) and batch.done:
        raise RefusedError(verb, what, "every row of it has ended")
    match verb:
        case Verb.PAUSE:
            if batch.held in (HoldReason.FAILURES, HoldReason.BUDGET):
                raise RefusedError(verb, what, f"it has stopped by itself ({batch.held}): nothing of it starts")
            return replace(stays, held=HoldReason.PAUSED, rows=False)
        case Verb.RESUME:
            stop = reached(used or Used(), batch.limits)
            if stop is not None:
                raise RefusedError(verb, what, _still_reached(stop, used or Used(), batch.limits))
            return replace(stays, held=None)
        case Verb.APPROVE:
            waits = batch.held_by.get(HoldReason.APPROVAL) or batch.held_by.get(HoldReason.REVIEW)
            if not batch.needs_approval and not waits:
                raise RefusedError(verb, what, "nothing of it waits for an approval or a review")
            return replace(stays, needs_approval=False)
        case Verb.REJECT | Verb.REROLL:
            if not batch.held_by.get(HoldReason.REVIEW):
                raise RefusedError(verb, what, "nothing of it waits for a review; name a row to decide on its clip")
            return replace(stays, rows=False)
        case Verb.HOLD:
            return replace(stays, needs_approval=True)
        case Verb.RETRY:
            if not batch.counts[JobState.FAILED] and not (cancelled and batch.counts[JobState.CANCELLED]):
                hint = ": with --cancelled its cancelled rows are put back" if batch.counts[JobState.CANCELLED] else ""
                raise RefusedError(verb, what, f"no row of it has failed{hint}")
            return stays
        case _:
            return stays


def _still_reached(stop: HoldReason, used: Used, limits: Limits) -> str:
    if stop is HoldReason.FAILURES:
        return (
            f"{used.failures} of its rows have failed and {limits.failures} may: raise the limit with "
            "--max-failures, or put the rows back with `clipmill retry`"
        )
    hours = f"{used.gpu_seconds / 3600:.2f} GPU hours"
    return f"it has used {hours} (cost {used.cost:.2f}): raise the limit with --max-gpu-hours or --max-cost"


class CardVerb(StrEnum):
    """A command to a card."""

    #: No new clip; the one on it is finished.
    LOCK = "lock"
    #: No new clip; the one on it is preempted and goes on elsewhere.
    DRAIN = "drain"
    #: No new clip, because something is wrong with the card; the one on it is finished.
    QUARANTINE = "quarantine"
    #: The card is free again.
    RELEASE = "release"


@dataclass(frozen=True, kw_only=True)
class CardOrder:
    """What holds for a card until it is released."""

    card: str
    #: Not `RELEASE`.
    kind: CardVerb
    reason: str
    given_by: str
    since: int
    #: UTC epoch seconds at which it ends by itself; None: never.
    until: int | None = None

    def stands(self, now: int) -> bool:
        """Whether it still holds."""
        return self.until is None or now < self.until

    @property
    def clears(self) -> bool:
        """Whether the clip on the card is preempted."""
        return self.kind is CardVerb.DRAIN


def give_order(card: str, now: CardOrder | None, new: CardOrder | None) -> CardOrder | None:
    """What holds for a card after a new order, or a release (None). Raises `RefusedError`.

    A person's order stands: the farm's own quarantine neither replaces nor shortens it.
    """
    if new is None and now is None:
        raise RefusedError(CardVerb.RELEASE, f"card {card}", "it is free already")
    if new is not None and now is not None and new.given_by == FARM and now.given_by != FARM:
        return now
    return new


#: Who gives the orders that the farm gives itself.
FARM = "farm"
