"""One picture in a bucket, by s3 or gs, read with the credentials that this process has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import fsspec

from cluster.remote.policy import FetchPolicy
from cluster.remote.remembered import RememberedStills
from cluster.remote.urls import FetchRefusedError, scheme_of, shown
from pipeline.clips.refusals import check_begins
from pipeline.problems import BadInputError
from pipeline.units import format_bytes

_OBJECT = re.compile(r"(?:s3|gs)://[a-z0-9][a-z0-9._-]{1,221}/[^\x00-\x1f\x7f]+")
_HEAD_BYTES = 4096
_DRIVERS = {"s3": "pip install 'clipmill[s3]'", "gs": "pip install gcsfs"}


class BucketReader:
    """Reads pictures from buckets that a policy names; safe to use from several threads."""

    def __init__(
        self,
        policy: FetchPolicy,
        most_bytes: int,
        remembered: RememberedStills | None = None,
        *,
        begins: Callable[[bytes], object] = check_begins,
    ) -> None:
        """`begins` is given an object's first bytes, and raises `BadInputError` where they are not what is read."""
        self._policy, self._most_bytes, self._remembered, self._begins = policy, most_bytes, remembered, begins

    def read(self, url: str) -> bytes:
        """The bytes of an object `s3://bucket/key` or `gs://bucket/key`, which begin as a picture does.

        Raises `BadInputError` on the field `image`.
        """
        try:
            # A double colon is fsspec's own: it chains one file system to another.
            if not _OBJECT.fullmatch(url) or "::" in url:
                raise FetchRefusedError("it names no object", "Write it as s3://bucket/folder/picture.png.")
            if "/../" in url or url.endswith("/.."):
                raise FetchRefusedError("it names no object", "Leave the two dots out.")
            self._policy.check_bucket(url)
            return self._read(url)
        except FetchRefusedError as error:
            raise BadInputError("image", f"{shown(url)}: {error.message}", error.remedy) from error
        except BadInputError as error:
            raise BadInputError("image", f"{shown(url)}: {error.problem.message}", error.problem.remedy) from error

    def _read(self, url: str) -> bytes:
        try:
            system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            scheme = scheme_of(url) or ""
            raise FetchRefusedError(f"no driver for {scheme}:// is installed", f"{_DRIVERS[scheme]}.") from error
        try:
            return self._object(url, system, path)
        except (FetchRefusedError, BadInputError):
            raise
        except FileNotFoundError as error:
            raise FetchRefusedError("there is no such object", "Correct bucket and key.") from error
        except PermissionError as error:
            raise FetchRefusedError("access is denied", "Check the credentials and the bucket's policy.") from error
        except Exception as error:
            # Drivers raise their own SDK's errors, which may quote what was asked in whole.
            message = f"it cannot be read ({type(error).__name__})"
            raise FetchRefusedError(message, "Check the credentials and the network, then try again.") from error

    def _object(self, url: str, system: Any, path: str) -> bytes:
        info = system.info(path)
        if info.get("type") == "directory":
            raise FetchRefusedError("it is a folder", "Name a picture in it.")
        too_large = FetchRefusedError(f"it is larger than {format_bytes(self._most_bytes)}", "Save it smaller.")
        if int(info.get("size") or 0) > self._most_bytes:
            raise too_large
        key = hashlib.sha256(url.encode()).hexdigest()
        etag = str(info.get("ETag") or info.get("etag") or "")
        known = self._remembered.get(key) if self._remembered and etag else None
        if self._remembered and known is not None and known.etag == etag:
            kept = self._remembered.still(known)
            if kept is not None:
                return kept
        with system.open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            self._begins(head)
            data: bytes = head + file.read(self._most_bytes + 1 - len(head))
        if len(data) > self._most_bytes:
            raise too_large
        if self._remembered:
            self._remembered.put(key, data, etag=etag)
        return data
