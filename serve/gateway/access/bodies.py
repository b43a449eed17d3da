"""Bodies of the routes of keys, sessions and quotas."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.access.keys import LONGEST_S
from cluster.access.quotas import OwnerQuota
from cluster.access.scopes import USUAL_SCOPES, Scope
from cluster.catalog.cells import JsonNumbers
from cluster.store.access.keys import GRACE_S


class NewSession(BaseModel):
    """A key, for which a browser gets a session."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    key: str = Field(min_length=1, max_length=200)
    """The text of the key."""


class NewAccessKey(JsonNumbers):
    """A key that is to be made."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    owner: str = Field(min_length=1, max_length=64)
    """Whose work is seen and handed in with it."""
    name: str = Field(default="", max_length=200)
    """For people."""
    scopes: list[Scope] = Field(default=sorted(USUAL_SCOPES), min_length=1, max_length=len(Scope))
    """What it may do."""
    expires_s: int | None = Field(default=None, gt=0, le=LONGEST_S)
    """Seconds for which it is valid; null: until it is revoked."""


class KeyRotation(JsonNumbers):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    grace_s: int = Field(default=GRACE_S, ge=0, le=LONGEST_S)
    """The old key goes on for so many seconds."""


class NewQuota(JsonNumbers, OwnerQuota):
    """An owner's quota, as it is to be; what is left out is not limited."""
