"""Answers about keys, sessions and quotas, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from cluster.access.keys import KeyState
from cluster.access.scopes import Scope
from serve.gateway.document.answers import DescribedAnswer


class SessionAnswer(DescribedAnswer):
    """Who asks, by a key, by a session, or because nobody is asked for a key."""

    object: Literal["session"]
    """Always `session`."""
    owner: str
    """Whose work is seen and handed in."""
    scopes: list[Scope]
    """What the key may do, with all that is within its scopes."""
    key_id: str | None
    """The key; null where nobody is asked for one."""
    expires_s: int | None
    """The session ends after so many seconds; null where none was opened."""


class SessionDeletionAnswer(DescribedAnswer):
    """A session that was ended."""

    object: Literal["session"]
    """Always `session`."""
    deleted: bool
    """Always true."""


class KeyAnswer(DescribedAnswer):
    """A key of the API, without its text."""

    id: str
    """The key's id."""
    object: Literal["key"]
    """Always `key`."""
    owner: str
    """Whose work is seen and handed in with it."""
    name: str
    """For people."""
    scopes: list[Scope]
    """What it may do."""
    status: KeyState
    """Whether it opens anything."""
    created_at: int
    """When it was made."""
    expires_at: int | None
    """When it ends; null: when it is revoked."""
    revoked_at: int | None
    """When it was revoked."""
    used_at: int | None
    """When it was last used, up to an hour late."""
    replaced_by: str | None
    """The key that was made in its place."""


class NewKeyAnswer(KeyAnswer):
    """A key that was made, with its text."""

    key: str
    """The text to ask with, `Authorization: Bearer …`. It is told this once."""
    replaces: KeyAnswer | None = None
    """The key in whose place it was made."""


class UseFacts(DescribedAnswer):
    """What an owner has used."""

    queued_jobs: int
    """Rows that wait, held ones among them."""
    gpu_seconds_day: float
    """Seconds of cards, of attempts that ended today (UTC)."""
    cost_month: float
    """Money of attempts that ended this month (UTC), in the unit of the table of rates."""


class QuotaAnswer(DescribedAnswer):
    """What an owner may hand in, and what they have used. Null: as much as they like."""

    object: Literal["quota"]
    """Always `quota`."""
    owner: str
    """Whose quota it is."""
    queued_jobs: int | None
    """Rows that may wait at a time."""
    gpu_seconds_day: float | None
    """Seconds of cards that may have been used today."""
    cost_month: float | None
    """Money that may have been spent this month."""
    requests_minute: int | None
    """Requests a minute that each replica of the gateway answers."""
    used: UseFacts
    """What they have used."""
