"""Manifests that were handed in to be named by an id later: objects in storage, each of one owner."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cluster.storage import MissingObjectError, Storage

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class UploadedManifest:
    """A manifest in storage."""

    sha256: str
    #: The file's name with what no object's name may have written as `_`; its suffix says what kind it is.
    name: str
    size: int
    #: When it was last handed in, in UTC epoch seconds.
    created_at: int


class ManifestUploads:
    """One owner's manifests; whoever knows the SHA-256 of another owner's learns nothing of it."""

    def __init__(self, storage: Storage, owner: str) -> None:
        self._storage = storage
        self._root = f"manifests/{hashlib.sha256(owner.encode()).hexdigest()[:16]}"

    def put(self, data: bytes, name: str) -> str:
        """Store a manifest and return its SHA-256; of one that is there, its name and its time become these."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = safe_name(name)
        for other in self._storage.names_under(self._folder(sha256)):
            if other != name and not other.startswith("."):
                self._storage.delete(f"{self._folder(sha256)}/{other}")
        self._storage.put_bytes(f"{self._folder(sha256)}/{name}", data, replace=True)
        return sha256

    def find(self, sha256: str) -> UploadedManifest | None:
        """What is known of a manifest; None where the owner handed in none of this SHA-256, or it is gone."""
        return next(iter(self._listed(self._folder(sha256))), None) if _SHA256.fullmatch(sha256) else None

    def read(self, upload: UploadedManifest) -> bytes:
        """The bytes of a manifest. Raises `MissingObjectError` and `StorageError`."""
        return self._storage.get_bytes(f"{self._folder(upload.sha256)}/{upload.name}")

    def listed(self, *, after: str | None = None, limit: int = 20) -> list[UploadedManifest]:
        """The owner's manifests by their SHA-256, those behind `after`."""
        found = self._listed(self._root)
        return [one for one in found if after is None or one.sha256 > after][:limit]

    def delete(self, sha256: str) -> bool:
        """Remove a manifest; whether it was there. Batches that were made of it stay."""
        if self.find(sha256) is None:
            return False
        self._storage.delete_under(self._folder(sha256))
        return True

    def _folder(self, sha256: str) -> str:
        return f"{self._root}/{sha256}"

    def _listed(self, prefix: str) -> list[UploadedManifest]:
        try:
            entries = self._storage.entries(prefix)
        except MissingObjectError:
            return []
        parts = [(entry.key.split("/"), entry) for entry in entries]
        return [
            UploadedManifest(sha256=where[2], name=where[3], size=entry.size, created_at=int(entry.modified_at))
            for where, entry in parts
            if len(where) == 4 and not where[3].startswith(".")
        ]


def safe_name(name: str) -> str:
    """A file's name as a segment of a storage key, its suffix kept."""
    stem, dot, suffix = re.split(r"[/\\]", name)[-1].rpartition(".")
    if not dot:
        stem, suffix = suffix, ""
    kept = re.sub(r"[^A-Za-z0-9_@=+,~.-]", "_", stem).lstrip(".")[:_NAME_CHARACTERS] or "manifest"
    ends = re.sub(r"[^A-Za-z0-9]", "", suffix)[:12]
    return f"{kept}.{ends}" if ends else kept
