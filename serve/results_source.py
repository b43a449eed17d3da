"""Where the results of a batch come from: the store and storage of this machine, or a farm's API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.farm import Farm
from cluster.results.export import ClipObjects
from cluster.results.rows import JobResult, result_from, results_of
from cluster.storage import MissingObjectError
from serve.client import FarmClient, FarmUnreachableError, LocalClient, RemoteClient

#: Rows that are asked for at once.
_PAGE_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What results say of their batch as a whole."""

    id: str
    name: str
    source: str
    #: UTC epoch seconds.
    created_at: int


class ResultsSource(Protocol):
    """The rows of batches and the objects of their clips."""

    @property
    def objects(self) -> ClipObjects:
        """Where the objects of clips are."""
        ...

    @property
    def marks(self) -> str:
        """How objects are marked, as far as `rows` has told; another text, other files."""
        ...

    def batch(self, batch_id: str) -> BatchFacts:
        """The batch. Raises `NoSuchBatchError`."""
        ...

    def rows(self, batch_id: str, completed_since: int | None = None) -> list[JobResult]:
        """All rows of a batch in its order, or those that completed at or after a time, in UTC epoch seconds."""
        ...


class LocalResults:
    """Results of a farm whose store and storage this machine reaches."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self.objects: ClipObjects = farm.outgoing
        #: The farm's storage, where finished deliveries are kept too.
        self.storage = farm.storage
        #: The farm's storage as its files leave; None: they leave as they are in it.
        self.marked = farm.marked

    @property
    def marks(self) -> str:
        """How objects are marked."""
        return self._farm.marks

    def batch(self, batch_id: str) -> BatchFacts:
        """The batch. Raises `NoSuchBatchError`."""
        found = self._farm.batch(batch_id)
        return BatchFacts(id=found.id, name=found.name, source=found.source, created_at=found.created_at)

    def rows(self, batch_id: str, completed_since: int | None = None) -> list[JobResult]:
        """All rows of a batch in its order, or those that completed at or after a time, in UTC epoch seconds."""
        return results_of(self._farm.batch_store, self._farm.owner, batch_id, completed_since=completed_since)


class RemoteResults:
    """Results of a farm that is reached by its URL alone."""

    def __init__(self, client: RemoteClient) -> None:
        self._client = client
        self._objects = RemoteObjects(client)
        #: How the farm marks objects, as its last answer told.
        self.marks = ""

    @property
    def objects(self) -> RemoteObjects:
        """The objects of clips that `rows` has told of."""
        return self._objects

    def batch(self, batch_id: str) -> BatchFacts:
        """The batch. Raises `NoSuchBatchError`."""
        found = self._client.batch(batch_id)
        return BatchFacts(**{name: found[name] for name in ("id", "name", "source", "created_at")})

    def rows(self, batch_id: str, completed_since: int | None = None) -> list[JobResult]:
        """All rows of a batch in its order, or those that completed at or after a time, in UTC epoch seconds."""
        found: list[JobResult] = []
        for value in self._client.results(batch_id, completed_since=completed_since, page=_PAGE_ROWS):
            try:
                one = result_from(value)
            except (KeyError, TypeError, ValueError) as error:
                raise FarmUnreachableError(f"{self._client.url} tells of results as no farm does: {error}") from error
            found.append(one)
            self._objects.learn(one)
            self.marks = str(value.get("marks") or "")
        return found


class RemoteObjects:
    """The objects of clips by the content of their videos, and the stills that these were made from."""

    def __init__(self, client: RemoteClient) -> None:
        self._client = client
        self.url = client.url
        self._places: dict[str, tuple[str, str]] = {}

    def learn(self, result: JobResult) -> None:
        """Remember by which video the objects of a row can be had."""
        row = result.row
        for key, variant in (
            (row.video_key, "video"),
            (row.poster_key, "thumbnail"),
            (row.provenance_key, "provenance"),
        ):
            if key is not None:
                self._places[key] = result.job_id, variant

    def get_bytes(self, key: str) -> bytes:
        """The whole object. Raises `MissingObjectError` and `FarmUnreachableError`."""
        with self._content(key) as parts:
            return b"".join(parts)

    def get_to(self, key: str, path: str | Path) -> None:
        """Copy the object to a file. Raises `MissingObjectError` and `FarmUnreachableError`."""
        with self._content(key) as parts, Path(path).open("wb") as file:
            for part in parts:
                file.write(part)

    def get_still(self, sha256: str) -> bytes:
        """The still that was handed in under its SHA-256. Raises `MissingObjectError` and `FarmUnreachableError`."""
        found = self._client.still(sha256)
        if found is None or hashlib.sha256(found).hexdigest() != sha256:
            message = f"the still {sha256} is not in the storage of {self.url}"
            raise MissingObjectError(sha256, message, "Hand it in again.")
        return found

    @contextmanager
    def _content(self, key: str) -> Iterator[Iterator[bytes]]:
        video_id, variant = self._places[key]
        with self._client.content(video_id, variant) as parts:
            if parts is None:
                message = f"{key!r} is not in the storage of {self.url}"
                raise MissingObjectError(key, message, "Submit its row again: it is rendered anew.")
            yield parts


def results_source(client: FarmClient) -> ResultsSource:
    """The results of the farm that a client speaks to."""
    if isinstance(client, LocalClient):
        return LocalResults(client.farm)
    if isinstance(client, RemoteClient):
        return RemoteResults(client)
    raise TypeError(f"{type(client).__name__} has no results")
