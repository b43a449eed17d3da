"""What one owner may take of a farm. Pure data: placement obeys it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class OwnerShare(BaseModel):
    """An owner's share of the cards and the most clips of theirs that may run at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Card seconds are shared out in proportion to it among the owners that have something waiting.
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    #: None: as many as there are cards.
    max_running: int | None = Field(default=None, ge=0)


#: An owner that is not named in the configuration.
DEFAULT_SHARE = OwnerShare()
