"""Keys in the store: made, found by their text, revoked, replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.access.keys import (
    KEY_ID_PREFIX,
    LONGEST_S,
    AccessKey,
    KeyText,
    check_owner,
    digest_of,
    new_key_text,
    same_digest,
)
from cluster.access.scopes import USUAL_SCOPES, Scope
from cluster.store.database import Database
from cluster.store.lookup import AmbiguousIdError
from cluster.store.schema import access_keys
from pipeline.problems import BadInputError

#: The old key still works for so many seconds after it was replaced, where nobody says otherwise.
GRACE_S = 24 * 3600
#: The time of a key's last use is written at most once in so many seconds.
_USED_NEWS_S = 3600
_NAME_LENGTH = 200
#: Compared with where there is no key of an id, so that this takes as long.
_NO_DIGEST = digest_of("")


class NoSuchKeyError(LookupError):
    """There is no key of this id."""


class KeyStore:
    """The keys of a farm."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self,
        owner: str,
        scopes: Iterable[Scope] = USUAL_SCOPES,
        *,
        name: str = "",
        expires_s: int | None = None,
    ) -> tuple[AccessKey, KeyText]:
        """A new key of an owner, valid for `expires_s` seconds (None: until it is revoked), and its text.

        Nobody sees the text again. Raises `BadInputError`.
        """
        check_owner(owner)
        _check(name, expires_s)
        with self.database.write() as c:
            return self._insert(c, owner, frozenset(scopes), name, expires_s)

    def listed(self, owner: str | None = None) -> list[AccessKey]:
        """All keys, or those of an owner, the oldest first; revoked and expired ones among them."""
        query = sa.select(access_keys).order_by(access_keys.c.created_at, access_keys.c.id)
        if owner is not None:
            query = query.where(access_keys.c.owner == owner)
        with self.database.read() as c:
            return [key_from_columns(row) for row in c.execute(query)]

    def any(self) -> bool:
        """Whether a key was ever made: from then on the gateway asks for one."""
        with self.database.read() as c:
            return c.execute(sa.select(access_keys.c.id).limit(1)).first() is not None

    def key(self, begins: str, *, whole: bool = False) -> AccessKey:
        """The key whose id begins so; with `whole`, is so. Raises `NoSuchKeyError` and `AmbiguousIdError`."""
        with self.database.read() as c:
            return key_from_columns(_row_of(c, begins, whole=whole))

    def by_text(self, given: KeyText) -> tuple[AccessKey | None, int]:
        """The key of a text and the time by the store's clock; None where no key has this text."""
        with self.database.read() as c:
            row = c.execute(sa.select(access_keys).where(access_keys.c.id == given.key_id)).one_or_none()
            right = same_digest(given.digest, row.digest if row is not None else _NO_DIGEST)
            return (key_from_columns(row) if row is not None and right else None), self.database.now(c)

    def note_use(self, key: AccessKey, now: int) -> None:
        """Write that a key was used; does nothing where that was written within the last hour."""
        if key.used_at is not None and now - key.used_at < _USED_NEWS_S:
            return
        with self.database.write() as c:
            c.execute(sa.update(access_keys).where(access_keys.c.id == key.id).values(used_at=now))

    def revoke(self, begins: str, *, whole: bool = False) -> AccessKey:
        """Revoke a key for good; it stays in lists. Raises `NoSuchKeyError` and `AmbiguousIdError`."""
        with self.database.write() as c:
            row, now = _row_of(c, begins, whole=whole), self.database.now(c)
            unrevoked = sa.and_(access_keys.c.id == row.id, access_keys.c.revoked_at.is_(None))
            c.execute(sa.update(access_keys).where(unrevoked).values(revoked_at=now))
            return key_from_columns(_row_of(c, row.id, whole=True))

    def rotate(
        self, begins: str, *, grace_s: int = GRACE_S, whole: bool = False
    ) -> tuple[AccessKey, KeyText, AccessKey]:
        """Replace a key: a new one for as long as the old one was made for, its text, and the old one as it then is.

        The old one goes on for `grace_s` seconds, or until its own end where that comes first. Raises
        `NoSuchKeyError`, `AmbiguousIdError`, and `BadInputError` for a key that opens nothing any more.
        """
        if not 0 <= grace_s <= LONGEST_S:
            raise BadInputError("grace", f"{grace_s} s is no time of grace", "Give 0 s or more.")
        with self.database.write() as c:
            old, now = key_from_columns(_row_of(c, begins, whole=whole)), self.database.now(c)
            if (state := old.state(now)) != "active" or old.replaced_by is not None:
                what = f"{old.id} is {state.value}" if state != "active" else f"{old.id} was replaced before"
                raise BadInputError("key", what, "Make a new one with `clipmill keys create`.")
            lasts_s = None if old.expires_at is None else old.expires_at - old.created_at
            new, text = self._insert(c, old.owner, old.scopes, old.name, lasts_s)
            until = now + grace_s if old.expires_at is None else min(old.expires_at, now + grace_s)
            changed = {"expires_at": until, "replaced_by": new.id}
            c.execute(sa.update(access_keys).where(access_keys.c.id == old.id).values(changed))
            return new, text, key_from_columns(_row_of(c, old.id, whole=True))

    def _insert(
        self, c: Connection, owner: str, scopes: frozenset[Scope], name: str, expires_s: int | None
    ) -> tuple[AccessKey, KeyText]:
        text, now = new_key_text(), self.database.now(c)
        values: dict[str, Any] = {
            "id": text.key_id,
            "owner": owner,
            "name": name,
            "scopes": sorted(scope.value for scope in scopes),
            "digest": text.digest,
            "created_at": now,
            "expires_at": None if expires_s is None else now + expires_s,
        }
        c.execute(sa.insert(access_keys).values(values))
        return key_from_columns(_row_of(c, text.key_id, whole=True)), text


def key_from_columns(row: Any) -> AccessKey:
    """The key of a row with the columns of `access_keys`."""
    return AccessKey(
        id=row.id,
        owner=row.owner,
        name=row.name,
        scopes=frozenset(map(Scope, row.scopes)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        used_at=row.used_at,
        replaced_by=row.replaced_by,
    )


def _row_of(c: Connection, begins: str, *, whole: bool) -> sa.Row[Any]:
    name = begins if begins.startswith(KEY_ID_PREFIX) or whole else KEY_ID_PREFIX + begins
    match = access_keys.c.id == name if whole else access_keys.c.id.startswith(name, autoescape=True)
    found = c.execute(sa.select(access_keys).where(match).order_by(access_keys.c.id).limit(2)).all()
    if not found:
        raise NoSuchKeyError(f"there is no key {begins[:40]!r}: `clipmill keys list` lists those there are")
    if len(found) > 1:
        raise AmbiguousIdError(f"several keys begin with {begins[:40]!r}: give more of the id")
    return found[0]


def _check(name: str, expires_s: int | None) -> None:
    if len(name) > _NAME_LENGTH or not name.isprintable():
        raise BadInputError("name", "it is too long, or not on one line", f"Use up to {_NAME_LENGTH} characters.")
    if expires_s is not None and not 0 < expires_s <= LONGEST_S:
        raise BadInputError("expires", f"{expires_s} s is no time that a key is valid for", "Give up to ten years.")
