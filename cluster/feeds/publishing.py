"""Files published under one prefix of a bucket, or in a folder: only what changed is sent again.

What we published is recorded there, in `clipmill-published.json`: what each file was made of, and the version that the
storage gave it (an S3 ETag, which says the same again however the file was sent). The record is written before the
files, so that a run which is killed leaves nothing of which nobody knows whose it is; the feed that names the files
comes last. What is not recorded is somebody else's: it is never replaced and never deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.storage import MissingObjectError, ObjectHeaders, Storage, StoredObject
from pipeline.problems import BadInputError, Problem

RECORD = "clipmill-published.json"
VIDEO_TYPE = "video/mp4"
_FEED_TYPES = {
    ".xml": "application/xml",
    ".rss": "application/rss+xml",
    ".atom": "application/atom+xml",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".tab": "text/tab-separated-values",
    ".txt": "text/plain",
}


class PublishedFile(BaseModel):
    """A file as it was published."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: What decides its content and what is said of it: the same again is not sent again.
    source: str
    #: Bytes, and the storage's version; of one that was only begun: 0 and empty.
    size: int = 0
    version: str = ""
    #: Which catalog it belongs to.
    catalog: str = ""


class PublishedRecord(BaseModel):
    """Everything that we published under a prefix."""

    model_config = ConfigDict(extra="ignore")

    files: dict[str, PublishedFile] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WantedFile:
    """A file that is to be there."""

    name: str
    #: What its content is made of.
    source: str
    content_type: str = VIDEO_TYPE


class PublishStanding(Enum):
    """What is found under a name that is wanted."""

    #: Published before, of the same source: nothing is sent.
    SAME = "same"
    #: Nothing, or a file of ours that is another now.
    TO_SEND = "to send"
    #: A file that is not ours.
    TAKEN = "taken"


@dataclass
class PublishCount:
    """What a run did."""

    uploaded: int = 0
    unchanged: int = 0
    removed: int = 0
    #: Names under which something else stands, each with what is wrong.
    refused: dict[str, Problem] = field(default_factory=dict)


class Publication:
    """One run that publishes the files of a catalog under a prefix."""

    def __init__(self, storage: Storage, catalog: str, cache_control: str = "") -> None:
        """Raises `StorageError`, and `BadInputError` for a record that is none."""
        self._storage, self._catalog, self._cache_control = storage, catalog, cache_control
        self._record = self._read()
        self._there = {one.key: one for one in storage.all_entries()}
        self.count = PublishCount()
        #: Names that are there at the end of this run, and those that are wanted, there or not.
        self.current: set[str] = set()
        self._wanted: set[str] = set()

    @property
    def names_before(self) -> frozenset[str]:
        """Names of files that we published, in this run or before."""
        return frozenset(self._record.files)

    def spare(self, names: Iterable[str]) -> None:
        """Leave files of these names where they are, though this run sends none: those that take their places come."""
        self._wanted.update(names)

    def plan(self, wanted: Iterable[WantedFile]) -> list[WantedFile]:
        """Give the files that have to be sent, and record them as begun. Names that are taken are refused.

        Raises `StorageError` where the record cannot be written.
        """
        to_send = []
        for one in wanted:
            self._wanted.add(one.name)
            match self._standing(one):
                case PublishStanding.SAME:
                    self.count.unchanged += 1
                    self.current.add(one.name)
                case PublishStanding.TO_SEND:
                    to_send.append(one)
        if to_send:
            for one in to_send:
                self._record.files[one.name] = PublishedFile(source="", catalog=self._catalog)
            self._write()
        return to_send

    def send(self, one: WantedFile, path: Path) -> None:
        """Send a file that was planned. Raises `StorageError`."""
        headers = ObjectHeaders(content_type=one.content_type, cache_control=self._cache_control)
        self._storage.put_file(one.name, path, replace=True, headers=headers)
        self._record.files[one.name] = PublishedFile(
            source=self._source(one), size=path.stat().st_size, catalog=self._catalog
        )
        self.count.uploaded += 1
        self.current.add(one.name)

    def settle(self) -> None:
        """Record the versions of what was sent, and forget what was not. Raises `StorageError`."""
        there = {one.key: one for one in self._storage.all_entries()}
        for name, published in list(self._record.files.items()):
            if published.version or published.catalog != self._catalog:
                continue
            found = there.get(name)
            if found is None:
                del self._record.files[name]
            elif published.source and found.size == published.size:
                self._record.files[name] = published.model_copy(update={"version": found.version})
        self._there = there
        self._write()

    def prune(self) -> list[str]:
        """Delete what we published for this catalog and is not wanted any more; gives the names. Raises `StorageError`.

        What somebody else has put in its place since stays, and so does a file for which none could be sent this time.
        """
        removed = []
        for name, published in list(self._record.files.items()):
            if published.catalog != self._catalog or name in self._wanted:
                continue
            found = self._there.get(name)
            if found is None or _is(published, found):
                self._storage.delete(name)
                removed.append(name)
            del self._record.files[name]
        if removed:
            self._write()
        self.count.removed += len(removed)
        return removed

    def _standing(self, one: WantedFile) -> PublishStanding:
        found, published = self._there.get(one.name), self._record.files.get(one.name)
        if published is not None and published.catalog != self._catalog:
            self._refuse(one, f"is published there for {published.catalog!r}")
            return PublishStanding.TAKEN
        if found is None:
            return PublishStanding.TO_SEND
        if published is None or not _is(published, found):
            what = (
                "was changed by somebody else since" if published else "is there already, and clipmill did not put it"
            )
            self._refuse(one, what)
            return PublishStanding.TAKEN
        same = published.source == self._source(one) and bool(published.version)
        return PublishStanding.SAME if same else PublishStanding.TO_SEND

    def _refuse(self, one: WantedFile, what: str) -> None:
        remedy = "Move it away, or publish to another prefix or by other --names."
        message = f"{self._storage.url}/{one.name} {what}"
        self.count.refused[one.name] = Problem(field="publish", message=message, remedy=remedy)

    def _source(self, one: WantedFile) -> str:
        # What is said of a file is a change too.
        said = f"{one.source} {one.content_type} {self._cache_control}"
        return hashlib.sha256(said.encode()).hexdigest()

    def _read(self) -> PublishedRecord:
        try:
            return PublishedRecord.model_validate_json(self._storage.get_bytes(RECORD))
        except MissingObjectError:
            return PublishedRecord()
        except ValidationError as error:
            message = f"{self._storage.url}/{RECORD} is no record of what was published"
            raise BadInputError("publish", message, "Move it away: then nothing there counts as ours.") from error

    def _write(self) -> None:
        data = self._record.model_dump_json(indent=1).encode()
        headers = ObjectHeaders(content_type="application/json", cache_control="no-store")
        self._storage.put_bytes(RECORD, data, replace=True, headers=headers)


def _is(published: PublishedFile, found: StoredObject) -> bool:
    """Whether what is found is what was published, as far as that was noted."""
    if not published.version:
        return True  # begun and not settled: whatever stands there now, we may have sent
    return (published.size, published.version) == (found.size, found.version)


def feed_type(name: str) -> str:
    """The media type of a feed by its file name."""
    return _FEED_TYPES.get(Path(name).suffix.lower(), "application/octet-stream")


def feed_file(name: str, path: Path) -> WantedFile:
    """A feed that lies at `path`, as a file to be published."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WantedFile(name=name, source=f"sha256:{digest}", content_type=feed_type(name))


def check_names(names: Collection[str]) -> None:
    """Raise `BadInputError` where a name is that of the record."""
    if RECORD in names:
        raise BadInputError("publish", f"{RECORD} is the name of our own record", "Choose other --names.")
