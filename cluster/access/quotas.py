"""Quotas: how much an owner may hand in. What of the cards running clips may take is a share (`cluster.fleet.quotas`).

All of them are asked when work comes in, and never of work that was taken: a row that waits is rendered, whatever is
used up meanwhile.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from pipeline.problems import Problem
from pipeline.units import format_rows

DAY_S = 86_400
#: Whose rows wait comes back after so many seconds: some of them will have been rendered.
QUEUE_RETRY_S = 60


class OwnerQuota(BaseModel):
    """What an owner may hand in; None: as much as they like."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    queued_jobs: int | None = Field(default=None, ge=0, le=10**12)
    """Rows that may wait at a time, held ones among them."""
    gpu_seconds_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Seconds of cards that may have been used today (UTC)."""
    cost_month: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Money that may have been spent this month (UTC), in the unit of the table of rates."""
    requests_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests a minute that each replica of the gateway answers."""


NO_QUOTA = OwnerQuota()


@dataclass(frozen=True, kw_only=True)
class OwnerUse:
    """What an owner has used, and how many of their rows wait."""

    queued_jobs: int = 0
    #: Seconds of attempts that ended today, and money of those that ended this month (UTC).
    gpu_seconds_day: float = 0.0
    cost_month: float = 0.0


class QuotaExceededError(RuntimeError):
    """An owner may hand in no more, for now. `retry_s`: seconds after which that may be otherwise."""

    def __init__(self, problem: Problem, retry_s: int) -> None:
        self.problem, self.retry_s = problem, retry_s
        super().__init__(str(problem))

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an answer that says so."""
        return {"Retry-After": str(self.retry_s)}


def check_quota(owner: str, quota: OwnerQuota, use: OwnerUse, adding: int, now: int) -> None:
    """Raise `QuotaExceededError` where `adding` more rows are too many for an owner at `now` (UTC epoch seconds)."""
    most = quota.queued_jobs
    if most is not None and use.queued_jobs + adding > most:
        what = f"{format_rows(use.queued_jobs)} of {owner} wait, and {most} may: {adding} more are too many"
        _refuse("queued_jobs", what, "Wait until some are rendered, or hand in fewer", owner, QUEUE_RETRY_S)
    if quota.gpu_seconds_day is not None and use.gpu_seconds_day >= quota.gpu_seconds_day:
        what = f"{owner} used {use.gpu_seconds_day:.0f} of {quota.gpu_seconds_day:.0f} GPU seconds today"
        _refuse("gpu_seconds_day", what, "Come back tomorrow (UTC)", owner, DAY_S - now % DAY_S)
    if quota.cost_month is not None and use.cost_month >= quota.cost_month:
        what = f"{owner} spent {use.cost_month:.2f} of {quota.cost_month:.2f} this month"
        _refuse("cost_month", what, "Come back next month (UTC)", owner, _until_next_month(now))


def first_day_of_month(now: int) -> int:
    """The first day of the month of `now` (UTC epoch seconds), in days since the epoch."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    return (today.replace(day=1) - datetime.date(1970, 1, 1)).days


def _until_next_month(now: int) -> int:
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    after = (today.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return (after - datetime.date(1970, 1, 1)).days * DAY_S - now


def _refuse(field: str, message: str, remedy: str, owner: str, retry_s: int) -> None:
    remedy = f"{remedy}, or ask whoever runs the farm for more (`clipmill keys quota {owner}`)."
    raise QuotaExceededError(Problem(field=field, message=message, remedy=remedy), max(1, retry_s))
