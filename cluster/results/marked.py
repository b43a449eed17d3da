"""The files of clips as they leave the farm: marked, while what is in storage stays as it was published.

What a mark adds is a few kilobytes, which are stored beside the clip's objects (`cluster.jobs.model.MARKS_KEYS`), so
that all who hand a file out hand out the same bytes; the rest is read from the clip's own object. Words that are not
signed follow from the provenance alone and are made when they are asked for.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from cluster.storage import CorruptObjectError, MissingObjectError, Storage, StorageError
from pipeline.marks.carriers import carrier_of
from pipeline.marks.coded import coded_pictures
from pipeline.marks.facts import ClipFacts, facts_of
from pipeline.marks.mark import is_composite, mark
from pipeline.marks.marker import Marker
from pipeline.marks.problems import NotMarkableError, SigningError
from pipeline.marks.source_type import depends_on_still, source_type_of
from pipeline.marks.splice import Splice, SplicedFile, spliced
from pipeline.marks.xmp import packet, with_packet

log = logging.getLogger("clipmill.marks")

_MEDIA = re.compile(r"(clips/[^/]+/[^/]+)/(video\.mp4|poster\.jpg|spritesheet\.jpg)")
_VIDEO = "video.mp4"
_DELIVERY_MARKS = "cache/delivery-marks"
#: Marks that are kept in memory: browsers ask for a clip in many parts.
_KEPT = 256
_AT_ONCE = 1 << 20
#: Files that are marked at a time; another thread that wants one of them waits for it.
_LOCKS = 32


@dataclass(frozen=True, kw_only=True)
class FileOrigin:
    """What a file that leaves was made of: the clip's provenance, and for a delivery its profile and what was done."""

    #: Storage key of the clip's provenance; empty where it has none.
    provenance: str
    profile: str = ""
    #: By C2PA's names.
    actions: tuple[str, ...] = ()
    #: Name of a clip's own file; empty for deliveries.
    beside: str = ""
    #: Whether it is the clip as it was published.
    is_master: bool = False

    @property
    def file_name(self) -> str:
        """A file name that tells what kind of file it is."""
        return self.beside or f"{self.profile}.mp4"

    def place_of(self, key: str, fingerprint: str) -> str:
        """Where what a signature adds is stored: beside a clip's own files, else among what a sweep may remove."""
        if self.beside:
            return f"{key.rpartition('/')[0]}/marks-{fingerprint}-{self.beside}"
        return f"{_DELIVERY_MARKS}/{hashlib.sha256(f'{key} {fingerprint}'.encode()).hexdigest()}"


class ClipOrigins(Protocol):
    """Where it is told what clips were made of."""

    def get_bytes(self, key: str) -> bytes:
        """A clip's provenance. Raises `MissingObjectError`, `StorageError`."""
        ...

    def get_still(self, sha256: str) -> bytes:
        """The still that was handed in under its SHA-256. Raises `MissingObjectError`, `StorageError`."""
        ...


class MarkedObjects:
    """The objects of clips by their storage keys, videos and pictures with their marks. Safe for several threads."""

    def __init__(self, storage: Storage, marker: Callable[[], Marker], *, origins: ClipOrigins | None = None) -> None:
        """`marker` is asked for every file: who marks may change meanwhile. `origins`: if not the storage itself."""
        self._storage, self._marker = storage, marker
        self._origins: ClipOrigins = origins or storage
        self.url = storage.url
        self._kept: OrderedDict[tuple[str, str], Splice | None] = OrderedDict()
        self._deliveries: OrderedDict[str, FileOrigin] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_LOCKS)]

    def tell(self, key: str, origin: FileOrigin) -> None:
        """Say what the finished delivery at `key` was made of: from here on it leaves with marks as well."""
        with self._lock:
            self._deliveries[key] = origin
            self._deliveries.move_to_end(key)
            while len(self._deliveries) > _KEPT:
                self._deliveries.popitem(last=False)

    @property
    def marks(self) -> str:
        """Sixteen hex digits that change whenever files would be marked otherwise."""
        return self._marker().fingerprint

    def size(self, key: str) -> int:
        """Length in bytes of the file as it leaves. Raises `MissingObjectError`, `StorageError`."""
        size = self._storage.size(key)
        splice = self._splice(key)
        return size if splice is None else splice.size

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The file as it leaves, to be read from any place. Raises `MissingObjectError`, `StorageError`."""
        splice = self._splice(key)
        with self._storage.open(key) as source:
            if splice is None:
                yield source
            else:
                with io.BufferedReader(SplicedFile(splice, source), _AT_ONCE) as spliced_file:
                    yield cast("BinaryIO", spliced_file)

    def get_bytes(self, key: str) -> bytes:
        """The whole file as it leaves. Raises `MissingObjectError`, `StorageError`."""
        if self._splice(key) is None:
            return self._storage.get_bytes(key)
        with self.open(key) as file:
            return file.read()

    def get_to(self, key: str, path: str | Path) -> None:
        """Copy the file as it leaves to `path`. Raises `MissingObjectError`, `StorageError` and `OSError`."""
        splice = self._splice(key)
        if splice is None:
            self._storage.get_to(key, path)
            return
        with self._storage.open(key) as source, Path(path).open("wb") as target:
            splice.write(source, target)

    def _splice(self, key: str) -> Splice | None:
        """What a mark adds to an object; None where it carries none."""
        origin = self._origin(key)
        if origin is None:
            return None
        marker = self._marker()
        known = key, marker.fingerprint
        with self._turns[hash(known) % _LOCKS]:
            with self._lock:
                if known in self._kept:
                    self._kept.move_to_end(known)
                    return self._kept[known]
            try:
                found = self._signed(key, origin, marker) if marker.identity else self._plain(key, origin)
            except NotMarkableError as error:
                # What is no such file was damaged before: whoever reads it will see.
                log.warning("%s is handed out without a mark: %s", key, error)
                found = None
            except SigningError as error:
                raise StorageError(
                    key, f"{key!r} was not marked: {error.problem.message}", error.problem.remedy
                ) from error
            with self._lock:
                self._kept[known] = found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return found

    def _origin(self, key: str) -> FileOrigin | None:
        """What an object was made of; None for one that carries no mark."""
        if match := _MEDIA.fullmatch(key):
            folder, name = match[1], match[2]
            return FileOrigin(provenance=f"{folder}/provenance.json", beside=name, is_master=name == _VIDEO)
        with self._lock:
            return self._deliveries.get(key)

    def _plain(self, key: str, origin: FileOrigin) -> Splice:
        facts = self._facts(origin.provenance)
        still = self._still(facts) if depends_on_still(facts.family) else b""
        composite = is_composite(origin.actions)
        words = packet(facts, source_type_of(facts.family, composite=composite, still=still))
        with self._storage.open(key) as file:
            # Whatever is raised in here counts as the storage's fault.
            try:
                return with_packet(file, carrier_of(file, origin.file_name), words, key)
            except NotMarkableError as error:
                fault = error
        raise fault

    def _signed(self, key: str, origin: FileOrigin, marker: Marker) -> Splice:
        place = origin.place_of(key, marker.fingerprint)
        size = self._storage.size(key)
        try:
            found = Splice.from_bytes(self._storage.get_bytes(place))
            if found.source_size <= size:
                return found
        except MissingObjectError:
            pass
        except ValueError as error:
            log.warning("%s is made anew: %s", place, error)
        made = self._sign(key, origin, marker)
        self._storage.put_bytes(place, made.to_bytes())
        # Another process may have been first, and hands that one out.
        try:
            return Splice.from_bytes(self._storage.get_bytes(place))
        except ValueError:
            self._storage.put_bytes(place, made.to_bytes(), replace=True)
            return made

    def _sign(self, key: str, origin: FileOrigin, marker: Marker) -> Splice:
        facts, name = self._facts(origin.provenance), origin.file_name
        with tempfile.TemporaryDirectory(prefix="clipmill-marks-") as folder:
            plain, marked = Path(folder) / name, Path(folder) / f"marked-{name}"
            self._storage.get_to(key, plain)
            if origin.is_master and facts.stream_sha256:
                self._require_published(key, plain, facts)
            done, still = origin.actions, self._still(facts)
            mark(plain, facts, marker, still=still, profile=origin.profile, actions=done, target=marked)
            return spliced(plain, marked)

    def _require_published(self, key: str, master: Path, facts: ClipFacts) -> None:
        """Nobody signs that this is a clip's file where it is not what was published."""
        if coded_pictures(master).sha256 != facts.stream_sha256:
            message = f"{key!r} in {self.url} is damaged: its pictures are not those that were published"
            raise CorruptObjectError(key, message, "Delete that object and retry the row: it is rendered again.")

    def _facts(self, provenance: str) -> ClipFacts:
        try:
            return facts_of(self._origins.get_bytes(provenance)) if provenance else ClipFacts()
        except MissingObjectError:
            # Nothing is known of it, and so it counts as made by a model.
            return ClipFacts()

    def _still(self, facts: ClipFacts) -> bytes:
        """The still that a clip was made from; b"" where it is not there any more."""
        try:
            return self._origins.get_still(facts.still_sha256) if facts.still_sha256 else b""
        except (MissingObjectError, CorruptObjectError, ValueError):
            return b""
