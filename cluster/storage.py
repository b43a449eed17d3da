"""Stills, clips and checkpoints as immutable objects under one root: a folder, S3, GCS, whatever fsspec speaks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.problems import BadInputError, Problem
from pipeline.units import MIB, format_bytes

log = logging.getLogger("clipmill.storage")

_SEGMENT = re.compile(r"[A-Za-z0-9_@=+,~-][A-Za-z0-9._@=+,~-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: What `Storage._explained` is told of a write.
_WRITTEN = "written"
#: A probe object has so many bytes: about what a clip takes.
PROBE_BYTES = 4 * MIB
#: The largest file that a still may be; larger ones are neither taken nor read.
MAX_STILL_BYTES = 200 * MIB
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: The limit of AWS and of Google on the length of an object's name, in bytes.
_MAX_KEY_BYTES = 1024


class StorageError(RuntimeError):
    """An object could not be read or written; `key` names it, `problem` says what to do."""

    def __init__(self, key: str, message: str, remedy: str) -> None:
        self.key = key
        self.problem = Problem(field="storage", message=message, remedy=remedy)
        super().__init__(str(self.problem))


class MissingObjectError(StorageError):
    """No object has this key."""


class CorruptObjectError(StorageError):
    """The object's bytes are not those its name promises."""


class UnwritableError(StorageError):
    """Storage could not be written, whatever was to be: it is full, read-only, denied, away or does not answer."""


class StorageFullError(UnwritableError):
    """No room is left where the object was to be written; retrying helps only after making some."""


@dataclass(frozen=True, order=True)
class StoredObject:
    """An object in a listing."""

    key: str
    #: Length in bytes.
    size: int
    #: When it was written, in seconds since the epoch, by the storage's clock; the present where it does not say.
    modified_at: float
    #: What the storage says of its content, another for another one (an S3 ETag, of whatever parts); else its time.
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class ObjectHeaders:
    """What a bucket says of an object to whoever fetches it; a folder says nothing."""

    content_type: str
    #: `Cache-Control`; empty: none.
    cache_control: str = ""


class Storage:
    """Objects under one root. An object is written once, whole or not at all, and never changed.

    Safe to use from several threads and processes at once: whoever writes a key first wins.
    """

    def __init__(self, url: str | Path) -> None:
        """`url`: a folder, `file://…`, `s3://bucket/prefix`, `gs://…`. Raises `BadInputError` for one it cannot use."""
        #: The URL as given: what another process needs to open the same storage.
        self.url = str(url)
        try:
            # Listings of a bucket are cached per process by default: another node's object would stay unseen.
            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            remedy = "Install the driver, for S3: pip install 'clipmill[s3]'."
            raise BadInputError("storage_url", f"{self.url!r} needs a driver ({error})", remedy) from error
        except ValueError as error:
            remedy = "Give a folder, or a URL such as s3://bucket/prefix."
            raise BadInputError("storage_url", f"{self.url!r} is not understood ({error})", remedy) from error
        self._root = str(root).rstrip("/")
        self._folder = Path(root) if isinstance(self._fs, LocalFileSystem) else None

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def put_bytes(self, key: str, data: bytes, *, replace: bool = False, headers: ObjectHeaders | None = None) -> None:
        """Create the object `key` with this content; does nothing where the key exists. Raises `StorageError`.

        `replace`: what exists is replaced, whole or not at all. For records under `cache/`, which may change.
        """
        self._put(key, data, replace=replace, headers=headers)

    def put_file(
        self, key: str, path: str | Path, *, replace: bool = False, headers: ObjectHeaders | None = None
    ) -> None:
        """Create the object `key` from a local file; does nothing where the key exists. Raises `StorageError`.

        `replace`: what exists is replaced, whole or not at all. For files that are published, which may change.
        """
        source = Path(path)
        if not source.is_file():
            raise StorageError(key, f"{source} is not there to be stored as {key!r}", "Check that it was written.")
        self._put(key, source, replace=replace, headers=headers)

    def get_bytes(self, key: str) -> bytes:
        """The bytes of the whole object `key`. Raises `MissingObjectError` or `StorageError`."""
        path = self._path(key)
        with self._explained(key, "read"):
            data: bytes = self._fs.cat_file(path)
        return data

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The object `key`, to be read from any place. Raises `MissingObjectError` or `StorageError`."""
        path = self._path(key)
        with self._explained(key, "read"), self._fs.open(path, "rb") as file:
            yield file

    def get_to(self, key: str, path: str | Path) -> None:
        """Copy the object `key` to a local file, whole or not at all; replaces what is there. Raises `StorageError`."""
        source, target = self._path(key), Path(path)
        with self._explained(key, f"copied to {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _beside(target) as temporary:
                self._fs.get_file(source, str(temporary))

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""
        path = self._path(key)
        with self._explained(key, "looked up"):
            return bool(self._fs.isfile(path))

    def size(self, key: str) -> int:
        """Length of the object `key` in bytes. Raises `MissingObjectError` or `StorageError`."""
        path = self._path(key)
        with self._explained(key, "looked up"):
            return int(self._fs.info(path)["size"])

    def delete(self, key: str) -> None:
        """Remove the object `key`; does nothing where there is none. Raises `StorageError`."""
        path = self._path(key)
        with self._explained(key, "deleted"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def delete_under(self, prefix: str, only: Callable[[str], object] | None = None) -> None:
        """Remove every object whose key starts with `prefix` and a slash; with `only`, those whose key it accepts.

        Folders that are empty then go too. Raises `StorageError`.
        """
        path = self._path(prefix)
        if only is not None:
            for entry in self.entries(prefix):
                if only(entry.key):
                    self.remove(entry)
            if self._folder is not None:
                for folder, _, _ in os.walk(path, topdown=False):
                    # One that is not empty holds somebody's file.
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)  # noqa: PTH106 - as os.walk names it
            return
        with self._explained(prefix, "deleted"), contextlib.suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def names_under(self, prefix: str) -> list[str]:
        """The next segment of every key that starts with `prefix` and a slash, sorted. Raises `StorageError`."""
        path = self._path(prefix)
        with self._explained(prefix, "listed"):
            try:
                found = self._fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
        return sorted({str(name).rstrip("/").rsplit("/", 1)[-1] for name in found})

    def entries(self, prefix: str) -> list[StoredObject]:
        """Every object whose key starts with `prefix` and a slash, sorted by key. Raises `StorageError`.

        What a killed process left half written in a folder is among them.
        """
        return self._listed(self._path(prefix), prefix)

    def all_entries(self) -> list[StoredObject]:
        """Every object under the root, sorted by key. Raises `StorageError`."""
        return self._listed(self._root, "")

    def _listed(self, path: str, prefix: str) -> list[StoredObject]:
        with self._explained(prefix, "listed"):
            try:
                found = self._fs.find(path, detail=True)
            except FileNotFoundError:
                return []
        # Listed with or without the root's leading slash, as the driver likes.
        start = len(path.strip("/")) - len(prefix) + (0 if prefix else 1)
        return sorted(
            StoredObject(
                key=name.strip("/")[start:],
                size=int(info["size"] or 0),
                modified_at=_modified_at(info),
                version=_version_of(info),
            )
            for name, info in found.items()
        )

    def remove(self, entry: StoredObject) -> None:
        """Delete what `entries` listed; does nothing where it is gone. Raises `StorageError`."""
        with self._explained(entry.key, "deleted"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{entry.key}")

    def probe(self) -> None:
        """Write an object of `PROBE_BYTES` and delete it. Raises `StorageError` where storage cannot be written."""
        key = f"probe/{secrets.token_hex(8)}"
        # Not zeros: some file systems store those in no room.
        self.put_bytes(key, os.urandom(PROBE_BYTES))
        self.delete(key)

    @staticmethod
    def still_key(sha256: str) -> str:
        """Where the still with this SHA-256 (64 lower-case hex digits) lies."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is not a SHA-256 in lower-case hex")
        return f"stills/{sha256[:2]}/{sha256}"

    def put_still(self, data: bytes) -> str:
        """Store a still under its own SHA-256 (returned); one that was cut short on disk is written anew."""
        sha256 = hashlib.sha256(data).hexdigest()
        key = self.still_key(sha256)
        try:
            damaged = self.size(key) != len(data)
        except MissingObjectError:
            damaged = False
        self._put(key, data, replace=damaged)
        return sha256

    def get_still(self, sha256: str) -> bytes:
        """The bytes of the still with this SHA-256, checked against it; of no more than `MAX_STILL_BYTES`.

        Raises `MissingObjectError`, `CorruptObjectError` or `StorageError`.
        """
        key = self.still_key(sha256)
        if (size := self.size(key)) > MAX_STILL_BYTES:
            # Whoever can write to storage must not fill the memory of who reads.
            what = f"it has {format_bytes(size)}, and no still more than {format_bytes(MAX_STILL_BYTES)}"
            message = f"the still {key!r} in {self.url} is not what was stored: {what}"
            raise CorruptObjectError(key, message, "Delete that object and submit the manifest again.")
        path = self._path(key)
        with self._explained(key, "read"):
            # Not beyond that size either, should it grow meanwhile.
            data: bytes = self._fs.cat_file(path, start=0, end=size) if size else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            message = f"the still {key!r} in {self.url} is damaged: its {len(data)} bytes have another SHA-256"
            raise CorruptObjectError(key, message, "Delete that object and submit the manifest again.")
        return data

    def _path(self, key: str) -> str:
        segments = key.split("/")
        if len(key.encode()) > _MAX_KEY_BYTES or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise ValueError(f"{key!r} is not a storage key: segments of A-Z a-z 0-9 ._@=+,~- joined by single slashes")
        return f"{self._root}/{key}"

    def _put(self, key: str, source: bytes | Path, *, replace: bool, headers: ObjectHeaders | None = None) -> None:
        path = self._path(key)
        more = self._said(headers)
        with self._explained(key, _WRITTEN):
            if not replace and self._fs.isfile(path):
                return
            if self._folder is not None:
                _create(Path(path), source)
            elif isinstance(source, bytes):
                self._fs.pipe_file(path, source, **more)
            else:
                self._fs.put_file(str(source), path, **more)

    def _said(self, headers: ObjectHeaders | None) -> dict[str, Any]:
        """Arguments by which the driver of this storage tells an object's headers."""
        if headers is None:
            return {}
        kinds = self._fs.protocol if isinstance(self._fs.protocol, (list, tuple)) else (self._fs.protocol,)
        cache = headers.cache_control
        if "s3" in kinds:
            return {"ContentType": headers.content_type, **({"CacheControl": cache} if cache else {})}
        if "gs" in kinds or "gcs" in kinds:
            fixed = {"fixed_key_metadata": {"cache_control": cache}} if cache else {}
            return {"content_type": headers.content_type, **fixed}
        return {}

    @contextlib.contextmanager
    def _explained(self, key: str, done: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if done == _WRITTEN:
                # Its folder or bucket is gone: nothing of the key's is missing.
                raise self._unknown(key, done, error) from error
            message = f"{key!r} is not in {self.url}"
            remedy = "If it was deleted, submit the manifest again; else check CLIPMILL_STORAGE_URL."
            raise MissingObjectError(key, message, remedy) from error
        except PermissionError as error:
            message = f"{key!r} could not be {done}: access to {self.url} is denied ({error})"
            remedy = "Check the folder's owner and mode, or the bucket's policy and credentials."
            raise (UnwritableError if done == _WRITTEN else StorageError)(key, message, remedy) from error
        except OSError as error:
            if error.errno in _FULL:
                message = f"{key!r} could not be {done}: no space is left ({self.url})"
                remedy = "Make room there or raise the quota, then retry the failed rows."
                raise StorageFullError(key, message, remedy) from error
            raise self._unknown(key, done, error) from error
        except Exception as error:
            # Drivers of object stores raise their own SDK's errors (botocore's are no OSError).
            raise self._unknown(key, done, error) from error

    def _unknown(self, key: str, done: str, error: Exception) -> StorageError:
        message = f"{key!r} could not be {done} ({self.url}): {type(error).__name__}: {error}"
        kind = UnwritableError if done == _WRITTEN else StorageError
        return kind(key, message, "Check that the storage is reachable and writable, then retry.")


class StorageShelf:
    """What renderers share under `cache/`, as `pipeline.denoising.caches.Shelf`: a storage that fails is a miss."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def get(self, key: str) -> bytes | None:
        """The shared object of this key, or None where there is none or it cannot be read."""
        try:
            return self._storage.get_bytes(f"cache/{key}")
        except MissingObjectError:
            return None
        except (StorageError, ValueError) as error:
            log.warning("the shared cache could not be read: %s", error)
            return None

    def put(self, key: str, data: bytes) -> None:
        """Share an object under this key if that is possible; what is there already stays."""
        try:
            self._storage.put_bytes(f"cache/{key}", data)
        except (StorageError, ValueError) as error:
            log.warning("the shared cache could not be written: %s", error)


def _modified_at(info: Mapping[str, Any]) -> float:
    # Folders, S3, GCS, and fsspec's own name each their own.
    for name in ("mtime", "LastModified", "updated", "modified", "created"):
        found = info.get(name)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found.timestamp()
        if found is not None:
            return float(found)
    # Of unknown age: too young for anything to be swept.
    return time.time()


def _version_of(info: Mapping[str, Any]) -> str:
    found = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("generation")
    if found is None:
        found = info.get("mtime") or info.get("created")
    return str(found or "").strip('"')


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary path in the target's folder that becomes the target, durably, when the block ends well."""
    # The name is cut: with the suffix it must stay within a file name's 255 bytes.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself lives in the folder: without this a power cut may undo it.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _create(target: Path, source: bytes | Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as temporary:
        if isinstance(source, bytes):
            temporary.write_bytes(source)
        else:
            shutil.copyfile(source, temporary)
