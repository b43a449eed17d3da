"""Sessions of browsers in the store: opened with a key, over when the key is."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from cluster.access.keys import AccessKey, digest_of
from cluster.store.access.keys import key_from_columns
from cluster.store.database import Database
from cluster.store.schema import access_keys, access_sessions

#: How long a session lasts, in seconds.
SESSION_S = 12 * 3600


class SessionStore:
    """The sessions of a farm, which every gateway replica knows."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def open(self, key: AccessKey) -> tuple[str, int]:
        """A new session of a key: the secret that stands for it, and how many seconds it lasts."""
        secret = secrets.token_urlsafe(32)
        with self.database.write() as c:
            now = self.database.now(c)
            until = now + SESSION_S if key.expires_at is None else min(key.expires_at, now + SESSION_S)
            # Those that are over go whenever one is opened: there is never more than half a day of them.
            c.execute(sa.delete(access_sessions).where(access_sessions.c.expires_at <= now))
            values = {"digest": digest_of(secret), "key_id": key.id, "created_at": now, "expires_at": until}
            c.execute(sa.insert(access_sessions).values(values))
        return secret, until - now

    def key_of(self, secret: str) -> tuple[AccessKey | None, int]:
        """The key that a session was opened with, and the time by the store's clock; None where it is over."""
        query = (
            sa.select(access_keys)
            .join(access_sessions, access_sessions.c.key_id == access_keys.c.id)
            .where(access_sessions.c.digest == digest_of(secret))
        )
        with self.database.read() as c:
            now = self.database.now(c)
            row = c.execute(query.where(access_sessions.c.expires_at > now)).one_or_none()
            return (None if row is None else key_from_columns(row)), now

    def close(self, secret: str) -> None:
        """End a session; does nothing where there is none."""
        with self.database.write() as c:
            c.execute(sa.delete(access_sessions).where(access_sessions.c.digest == digest_of(secret)))
