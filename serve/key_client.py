"""Keys and quotas of a farm for commands: through its store, or through its API with a key of scope `admin`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from cluster.access.keys import KEY_ID_PREFIX
from cluster.access.quotas import OwnerQuota
from cluster.access.scopes import Scope
from cluster.jobs.ids import beginning
from cluster.store import Database
from cluster.store.access.keys import KeyStore, NoSuchKeyError
from cluster.store.access.quotas import QuotaStore
from cluster.store.lookup import AmbiguousIdError
from serve.gateway.access.views import key_view, quota_view

View = dict[str, Any]


class KeyClient(Protocol):
    """What commands do with keys and quotas, in the API's shapes.

    Methods that name a key take the beginning of its id, and raise `NoSuchKeyError` and `AmbiguousIdError`.
    """

    def create(self, owner: str, scopes: Sequence[Scope], name: str, expires_s: int | None) -> View:
        """Make a key; its text is in the view as `key`. Raises `BadInputError`."""
        ...

    def all(self, owner: str | None) -> list[View]:
        """Views of all keys, or of an owner's, the oldest first."""
        ...

    def revoke(self, begins: str) -> View:
        """Revoke a key for good; returns its view."""
        ...

    def rotate(self, begins: str, grace_s: int) -> View:
        """Make a key in place of another, which goes on for `grace_s` seconds and is in the view as `replaces`."""
        ...

    def quota(self, owner: str) -> View:
        """What an owner may hand in, and has used."""
        ...

    def quotas(self) -> list[View]:
        """What every owner who has a quota may hand in, and has used."""
        ...

    def set_quota(self, owner: str, changes: Mapping[str, object]) -> View:
        """Change some limits of an owner (None: no limit); returns the whole. Raises `BadInputError`."""
        ...


class LocalKeys:
    """Keys and quotas of the farm of a store."""

    def __init__(self, database: Database) -> None:
        self._keys, self._quotas = KeyStore(database), QuotaStore(database)

    def create(self, owner: str, scopes: Sequence[Scope], name: str, expires_s: int | None) -> View:
        """Make a key; its text is in the view as `key`. Raises `BadInputError`."""
        key, text = self._keys.create(owner, scopes, name=name, expires_s=expires_s)
        return key_view(key, key.created_at, text)

    def all(self, owner: str | None) -> list[View]:
        """Views of all keys, or of an owner's, the oldest first."""
        now = self._now()
        return [key_view(key, now) for key in self._keys.listed(owner)]

    def revoke(self, begins: str) -> View:
        """Revoke a key for good; returns its view."""
        return key_view(self._keys.revoke(begins), self._now())

    def rotate(self, begins: str, grace_s: int) -> View:
        """Make a key in place of another, which goes on for `grace_s` seconds and is in the view as `replaces`."""
        new, text, old = self._keys.rotate(begins, grace_s=grace_s)
        return key_view(new, new.created_at, text) | {"replaces": key_view(old, new.created_at)}

    def quota(self, owner: str) -> View:
        """What an owner may hand in, and has used."""
        return quota_view(owner, self._quotas.quota(owner), self._quotas.use(owner))

    def quotas(self) -> list[View]:
        """What every owner who has a quota may hand in, and has used."""
        return [self.quota(owner) for owner in self._quotas.quotas()]

    def set_quota(self, owner: str, changes: Mapping[str, object]) -> View:
        """Change some limits of an owner (None: no limit); returns the whole. Raises `BadInputError`."""
        self._quotas.set(owner, OwnerQuota.model_validate(self._quotas.quota(owner).model_dump() | dict(changes)))
        return self.quota(owner)

    def _now(self) -> int:
        with self._keys.database.read() as c:
            return self._keys.database.now(c)


class RemoteKeys:
    """Keys and quotas of a farm by its API."""

    def __init__(self, call: Callable[..., View]) -> None:
        """`call` asks the farm: method, path, and arguments as httpx takes them."""
        self._call = call

    def create(self, owner: str, scopes: Sequence[Scope], name: str, expires_s: int | None) -> View:
        """Make a key; its text is in the view as `key`. Raises `BadInputError`."""
        body = {"owner": owner, "name": name, "expires_s": expires_s}
        asked = {"scopes": sorted(scope.value for scope in scopes)} if scopes else {}
        return self._call("POST", "/v1/keys", json=body | asked)

    def all(self, owner: str | None) -> list[View]:
        """Views of all keys, or of an owner's, the oldest first."""
        return list(self._call("GET", "/v1/keys", params={"owner": owner} if owner else {})["data"])

    def revoke(self, begins: str) -> View:
        """Revoke a key for good; returns its view."""
        return self._call("DELETE", self._path(begins))

    def rotate(self, begins: str, grace_s: int) -> View:
        """Make a key in place of another, which goes on for `grace_s` seconds and is in the view as `replaces`."""
        return self._call("POST", f"{self._path(begins)}/rotate", json={"grace_s": grace_s})

    def quota(self, owner: str) -> View:
        """What an owner may hand in, and has used."""
        return self._call("GET", _quota_path(owner))

    def quotas(self) -> list[View]:
        """What every owner who has a quota may hand in, and has used."""
        return list(self._call("GET", "/v1/quotas")["data"])

    def set_quota(self, owner: str, changes: Mapping[str, object]) -> View:
        """Change some limits of an owner (None: no limit); returns the whole. Raises `BadInputError`."""
        now = self.quota(owner)
        # As a person writes it or as a number: the farm reads both as the store's own command does.
        whole = OwnerQuota.model_validate({name: now[name] for name in OwnerQuota.model_fields} | dict(changes))
        return self._call("PUT", _quota_path(owner), json=whole.model_dump(mode="json"))

    def _path(self, begins: str) -> str:
        # Routes take whole ids alone: half of one may name another key by the time that it is read.
        found = beginning(begins, [str(view["id"]) for view in self.all(None)], KEY_ID_PREFIX)
        if len(found) > 1:
            raise AmbiguousIdError(f"several keys begin with {begins[:40]!r}: give more of the id")
        if not found or not begins:
            raise NoSuchKeyError(f"there is no key {begins[:40]!r}: `clipmill keys list` lists those there are")
        return f"/v1/keys/{quote(found[0], safe='')}"


def _quota_path(owner: str) -> str:
    return f"/v1/quotas/{quote(owner, safe='')}"
