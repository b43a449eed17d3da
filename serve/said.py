"""What may be said of batches, jobs and cards, as it is written in a request."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.jobs import Limits
from cluster.manifest import MAX_PRIORITY
from cluster.store.desk import Terms


class LimitFields(BaseModel):
    """Where a batch stops by itself."""

    model_config = ConfigDict(extra="forbid")

    max_failures: int | None = Field(default=None, ge=1)
    max_gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    def limits(self) -> Limits:
        """The same as the store counts."""
        seconds = None if self.max_gpu_hours is None else self.max_gpu_hours * 3600
        return Limits(failures=self.max_failures, gpu_seconds=seconds, cost=self.max_cost)


class OfBatch(LimitFields):
    """Body of `POST /v1/batches/{id}/{verb}`; all of it may be left out."""

    #: Of `prioritize`.
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    #: Of `retry`: cancelled rows too.
    cancelled: bool = False


class OfJob(BaseModel):
    """Body of `POST /v1/jobs/{id}/{verb}`; all of it may be left out."""

    model_config = ConfigDict(extra="forbid")

    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)


class OfCard(BaseModel):
    """Body of `POST /v1/cards/{id}/{verb}`; all of it may be left out."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=500)
    #: Ends by itself after so many seconds.
    for_s: int | None = Field(default=None, ge=1, le=10**9)


class TermFields(LimitFields):
    """When a batch is held."""

    #: Until somebody resumes it.
    paused: bool = False
    #: Its rows wait for an approval, all but the first `proof`.
    needs_approval: bool = False
    proof: int = Field(default=0, ge=0, lt=2**31)
    #: For people.
    comment: str = Field(default="", max_length=2000)

    def terms(self) -> Terms:
        """The same for the store."""
        return Terms(
            paused=self.paused,
            needs_approval=self.needs_approval,
            proof=self.proof,
            limits=self.limits(),
            comment=self.comment,
        )
