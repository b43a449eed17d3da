"""When a message is tried again, and what an answer means for it and for the webhook. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.webhooks.model import DeliveryState

_MINUTE_S, _HOUR_S = 60, 3600
#: Seconds before each attempt after the one before it, as the Standard Webhooks scheme recommends: three days in all.
SCHEDULE_S = (
    0, 5, 5 * _MINUTE_S, 30 * _MINUTE_S, 2 * _HOUR_S, 5 * _HOUR_S, 10 * _HOUR_S, 14 * _HOUR_S, 20 * _HOUR_S,
    24 * _HOUR_S,
)  # fmt: skip
#: Pauses are longer by up to this share, so that what failed together is not tried again together.
JITTER = 0.1
#: Longest pause that a receiver can ask for by `Retry-After`.
LONGEST_PAUSE_S = SCHEDULE_S[-1]
#: Answer of a receiver that wants nothing any more.
GONE = 410


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How an attempt went: the answer's status, or why there was none."""

    #: None: there was no answer.
    status: int | None = None
    #: Why there was none.
    error: str = ""
    #: Seconds for which the receiver asks not to be asked again.
    retry_after_s: float = 0


@dataclass(frozen=True, kw_only=True)
class DeliveryVerdict:
    """What becomes of a message after an attempt."""

    state: DeliveryState
    #: Seconds until the next attempt, of a pending one.
    pause_s: int = 0
    error: str | None = None
    #: The receiver wants nothing more: all that is on its way there is given up.
    gone: bool = False
    #: Whether that was the last attempt.
    exhausted: bool = False


def judge(answered: Answered, attempts: int, draw: Callable[[], float], *, once: bool = False) -> DeliveryVerdict:
    """What becomes of a message after its attempt number `attempts` (from 1) went so.

    `draw` gives a number from 0 to 1 for the jitter. `once`: it is not tried again, as a test.
    """
    status = answered.status
    if status is not None and 200 <= status < 300:
        return DeliveryVerdict(state=DeliveryState.DELIVERED)
    error = answered.error if status is None else f"it answers {status}"
    if status is not None and 300 <= status < 400:
        error += ", and redirects are not followed"
    if status == GONE:
        return DeliveryVerdict(state=DeliveryState.FAILED, error=error, gone=True)
    if once or attempts >= len(SCHEDULE_S):
        return DeliveryVerdict(state=DeliveryState.FAILED, error=error, exhausted=not once)
    pause_s = SCHEDULE_S[attempts] * (1 + JITTER * draw())
    asked_s = min(max(answered.retry_after_s, 0), LONGEST_PAUSE_S)
    return DeliveryVerdict(state=DeliveryState.PENDING, error=error, pause_s=round(max(pause_s, asked_s)))
