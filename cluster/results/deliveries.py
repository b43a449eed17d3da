"""Files that a batch's rows are delivered as: one per profile that a row asks for, made once and kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from pydantic import ValidationError

from cluster.results.contact_sheet import ResultRow
from cluster.storage import MissingObjectError, Storage, StorageError
from pipeline.delivery.brands import Brand, texts_of
from pipeline.delivery.profiles import DeliveryProfile, DeliveryProfiles, Lengthening, built_in
from pipeline.delivery.verdicts import ProfileVerdict, refused
from pipeline.problems import BadInputError, Problem

#: Where finished files and what was judged of them are kept; both are swept with what else is kept to save work.
_FILES, _VERDICTS = "cache/deliveries", "cache/delivery-verdicts"


@dataclass(frozen=True, kw_only=True)
class DeliveredFile:
    """What became of one row for one profile."""

    profile: str
    verdict: ProfileVerdict
    #: The finished file, not marked yet; None where it was not delivered.
    path: Path | None = None
    #: SHA-256 (hex) of all that decides the file: clip, profile, overlays. The same again is not made again.
    key: str = ""
    #: Whether it was encoded now, and not taken from what was kept.
    encoded: bool = False

    @property
    def delivered(self) -> bool:
        """Whether there is a file that keeps every rule."""
        return self.path is not None and self.verdict.passed


#: By the id of a row, by the name of a profile: what a feed names.
RowDeliveries: TypeAlias = Mapping[str, Mapping[str, DeliveredFile]]


class Finish(Protocol):
    """The last step on a finished file, such as marks: it touches neither pixels nor keys, and is never kept."""

    @property
    def name(self) -> str:
        """What is done, and by which key: files in OUT are finished anew where it changes."""
        ...

    def __call__(self, delivered: DeliveredFile, row: ResultRow, target: Path) -> None:
        """Write the finished file to `target`; that of `delivered` stays. Raises `OSError` and `StorageError`."""
        ...


class FetchedObjects(Protocol):
    """Where clips are copied from."""

    def get_to(self, key: str, path: str | Path) -> None:
        """Copy the object to a file. Raises `MissingObjectError`, `StorageError`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DeliveryTerms:
    """What whoever asks for deliveries says of all of them."""

    profiles: DeliveryProfiles
    brand: Brand | None = None
    #: How clips are lengthened, over what profiles say.
    lengthening: Lengthening = Lengthening.AUTO
    #: Profiles of rows that name none.
    default: tuple[str, ...] = ()

    def wanted(self, row: ResultRow) -> tuple[str, ...]:
        """The profiles that a row is delivered for: its own, else the default ones."""
        return row.deliver if row.deliver is not None else self.default


#: Built-in profiles, no overlays.
PLAIN_TERMS = DeliveryTerms(profiles=built_in())


class KeptDeliveries:
    """Finished files by their keys in a storage, where a sweep finds and removes them as other cached things."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def verdict(self, key: str) -> ProfileVerdict | None:
        """What was judged of the file with this key; None where it was not made, or its record is damaged."""
        try:
            return ProfileVerdict.model_validate_json(self._storage.get_bytes(f"{_VERDICTS}/{key}"))
        except (MissingObjectError, ValidationError):
            return None

    def fetch(self, key: str, path: Path) -> bool:
        """Copy the file to `path`; False where it is not kept any more."""
        try:
            self._storage.get_to(deliveries_key(key), path)
        except MissingObjectError:
            return False
        return True

    def keep(self, key: str, verdict: ProfileVerdict, path: Path | None) -> None:
        """Keep what was made, the file before what is said of it. Raises `StorageError`."""
        if path is not None:
            self._storage.put_file(deliveries_key(key), path)
        self._storage.put_bytes(f"{_VERDICTS}/{key}", verdict.model_dump_json().encode(), replace=True)


def refused_all(names: Sequence[str], problem: Problem) -> dict[str, DeliveredFile]:
    """What became of a row of which no file could be made, for the same reason."""
    return {name: DeliveredFile(profile=name, verdict=refused(name, problem)) for name in names}


class DeliveryMaker:
    """Makes the files of rows, each once. Not safe to use from several threads; several of them are."""

    def __init__(self, objects: FetchedObjects, kept: KeptDeliveries, terms: DeliveryTerms = PLAIN_TERMS) -> None:
        """`objects`: where clips are; `kept`: where finished files are looked for, and put."""
        self._objects, self._kept, self.terms = objects, kept, terms
        #: Files that were encoded.
        self.encoded = 0

    def deliver(self, row: ResultRow, folder: Path) -> dict[str, DeliveredFile]:
        """What becomes of a completed row for each profile that it asks for; files lie in `folder`, by profile.

        What cannot be met, and what breaks a rule, is a verdict with the problem. Raises `MissingObjectError` and
        `StorageError` where the clip cannot be read, and `EncodeError` where no file can be written at all.
        """
        found: dict[str, DeliveredFile] = {}
        missing: list[tuple[DeliveryProfile, str]] = []
        for name in self.terms.wanted(row):
            try:
                profile = self.terms.profiles.named(name)
            except BadInputError as error:
                found[name] = DeliveredFile(profile=name, verdict=refused(name, error.problem))
                continue
            key = delivery_key(row, profile, self.terms)
            known = self.known(profile, key, folder)
            found[name] = known or DeliveredFile(profile=name, verdict=refused(name, _NOT_MADE), key=key)
            if known is None:
                missing.append((profile, key))
        if missing:
            found |= self._made(row, missing, folder)
        return found

    def keys_of(self, row: ResultRow) -> dict[str, str]:
        """The keys of a row's files by profile, of those that are profiles; nothing is made or fetched."""
        wanted = [name for name in self.terms.wanted(row) if name in self.terms.profiles.names]
        return {name: delivery_key(row, self.terms.profiles.named(name), self.terms) for name in wanted}

    def for_profile(self, row: ResultRow, profile: DeliveryProfile, folder: Path) -> DeliveredFile:
        """What becomes of a completed row for one profile, whether it asks for it or not; as `deliver` does."""
        key = delivery_key(row, profile, self.terms)
        return self.known(profile, key, folder) or self._made(row, [(profile, key)], folder)[profile.name]

    def known(self, profile: DeliveryProfile, key: str, folder: Path) -> DeliveredFile | None:
        """The file as it is kept, copied to `folder`; None where it has to be made."""
        verdict = self._kept.verdict(key)
        if verdict is None:
            return None
        if not verdict.passed:
            return DeliveredFile(profile=profile.name, verdict=verdict, key=key)
        path = folder / f"{profile.name}.mp4"
        if not self._kept.fetch(key, path):
            return None
        return DeliveredFile(profile=profile.name, verdict=verdict, path=path, key=key)

    def _made(
        self, row: ResultRow, missing: Sequence[tuple[DeliveryProfile, str]], folder: Path
    ) -> dict[str, DeliveredFile]:
        # Here, as it brings libraries that decode: who lists results needs none of them.
        try:
            from pipeline.delivery.making import make_file, read_master
        except ModuleNotFoundError as error:
            if error.name != "av":
                raise
            remedy = "pip install 'clipmill[deliver]' brings it."
            raise BadInputError("deliver", "deliveries need PyAV, which is not installed", remedy) from error

        assert row.video_key is not None
        with tempfile.TemporaryDirectory(dir=folder) as work:
            clip = Path(work) / "clip.mp4"
            self._objects.get_to(row.video_key, clip)
            master = read_master(clip)
            made = {}
            for profile, key in missing:
                texts = _texts(row, profile, self.terms)
                path = folder / f"{profile.name}.mp4"
                verdict = make_file(master, profile, path, self.terms.brand, texts, self.terms.lengthening)
                self.encoded += 1 if verdict.checks else 0
                delivered = path if verdict.passed else None
                self._kept.keep(key, verdict, delivered)
                made[profile.name] = DeliveredFile(
                    profile=profile.name, verdict=verdict, path=delivered, key=key, encoded=bool(verdict.checks)
                )
        return made


_NOT_MADE = Problem(field="deliver", message="the file was not made yet", remedy="Ask for it again.")


def deliveries_key(key: str) -> str:
    """Where in a storage the finished file of that key is kept."""
    return f"{_FILES}/{key}"


def delivery_key(row: ResultRow, profile: DeliveryProfile, terms: DeliveryTerms) -> str:
    """SHA-256 (hex) of all that decides the file of a row for a profile: clip, profile, overlays, lengthening.

    A price that changes changes the overlays alone; marks are no part of it.
    """
    overlay = None
    if (texts := _texts(row, profile, terms)) is not None and terms.brand is not None:
        overlay = [terms.brand.digest, *texts]
    content = [row.content_key or row.video_key, profile.digest, overlay, terms.lengthening.value]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def deliver_rows(rows: Sequence[ResultRow], maker: DeliveryMaker, folder: Path) -> dict[str, dict[str, DeliveredFile]]:
    """What became of each completed row for each profile, by the row's id: for feeds. Files lie below `folder`.

    Rows whose clip cannot be read have a verdict that says so. Raises `EncodeError` where nothing can be written.
    """
    found: dict[str, dict[str, DeliveredFile]] = {}
    for number, row in enumerate(rows):
        if row.state != "completed" or row.video_key is None:
            continue
        own = folder / f"{number:06d}"
        own.mkdir(parents=True, exist_ok=True)
        try:
            found[row.id] = maker.deliver(row, own)
        except (StorageError, BadInputError) as error:
            found[row.id] = refused_all(maker.terms.wanted(row), error.problem)
    return found


def actions_of(row: ResultRow, profile: DeliveryProfile, terms: DeliveryTerms) -> tuple[str, ...]:
    """What is done to a clip's frames for a profile, by C2PA's names; with overlays it is a composite."""
    plain = ("c2pa.resized", "c2pa.transcoded")
    return plain if _texts(row, profile, terms) is None else (*plain, "c2pa.edited")


def _texts(row: ResultRow, profile: DeliveryProfile, terms: DeliveryTerms) -> tuple[str, ...] | None:
    """What the brand's overlays say of a row; None where there are none."""
    if terms.brand is None or not terms.brand.overlays or not profile.overlays:
        return None
    return texts_of(terms.brand, {**row.extra, "id": row.id, "prompt": row.prompt, "image": row.image})
