"""What was fetched before: by URL its validators and the still, so that an unchanged picture is not sent again."""

from __future__ import annotations

import hashlib
import logging
import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.storage import MissingObjectError, Storage, StorageError

log = logging.getLogger("clipmill.remote")

#: A validator that is kept, and sent again as it came.
_VALIDATOR = r"[\x20-\x7e]{0,300}"


class FetchedStill(BaseModel):
    """A picture as its host sent it: the host's words for this state of it, and the SHA-256 of the still it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    etag: str = Field(default="", pattern=rf"\A{_VALIDATOR}\z")
    last_modified: str = Field(default="", pattern=rf"\A{_VALIDATOR}\z")
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


class RememberedStills:
    """Records under `cache/remote/` in a farm's storage; a storage that fails remembers nothing."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def get(self, key: str) -> FetchedStill | None:
        """What was fetched of the URL with this key, if its still lies in storage yet; else None."""
        try:
            found = FetchedStill.model_validate_json(self._storage.get_bytes(_path(key)))
            return found if self._storage.exists(Storage.still_key(found.sha256)) else None
        except MissingObjectError:
            return None
        except (StorageError, ValidationError) as error:
            log.warning("what was fetched before is not known: %s", error)
            return None

    def put(self, key: str, data: bytes, *, etag: str = "", last_modified: str = "") -> None:
        """Remember the bytes that were fetched of the URL with this key, in place of what was before.

        Nothing is remembered where the host gave no validator, or one that is too long or no plain text.
        """
        usable = all(re.fullmatch(_VALIDATOR, text) for text in (etag, last_modified))
        if not usable or not (etag or last_modified):
            return
        sha256 = hashlib.sha256(data).hexdigest()
        record = FetchedStill(etag=etag, last_modified=last_modified, sha256=sha256).model_dump_json()
        try:
            self._storage.put_bytes(_path(key), record.encode(), replace=True)
        except StorageError as error:
            log.warning("what was fetched is not remembered: %s", error)

    def still(self, fetched: FetchedStill) -> bytes | None:
        """The bytes of a still that was fetched before, checked against its SHA-256; None where they are gone."""
        try:
            return self._storage.get_still(fetched.sha256)
        except StorageError as error:
            log.warning("a still that was fetched before is fetched anew: %s", error)
            return None


def _path(key: str) -> str:
    return f"cache/remote/{key}"
