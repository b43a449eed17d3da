"""Names of files by a template, such as `{brand}/{id}-{profile}.mp4`: fit for every file system, bucket and URL."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.catalog.advice.places import PLACE, fault_of_places, needed_columns, not_among
from cluster.catalog.columns import letters_of
from cluster.catalog.names import folded, is_reserved
from pipeline.problems import BadInputError, Problem

DEFAULT_NAMES = "{profile}/{id}.mp4"
SUFFIX = ".mp4"
#: Characters of one part of a name, and of all of it: buckets take 1,024 bytes, file systems 255 a part.
MAX_PART, MAX_NAME = 120, 480
#: What stands for a place that is empty and has nothing instead.
EMPTY = "_"
_FIELD = "--names"
_FORM = "Write {column} or {column|instead}, with slashes between folders: {brand|other}/{id}-{profile}.mp4."
#: Letters that Unicode does not take apart into a plain one and marks.
_PLAIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "đ": "d", "Đ": "D", "ł": "l", "Ł": "L"}
    | {"þ": "th", "Þ": "Th", "ð": "d", "ı": "i"}
)
_DIGEST_CHARACTERS = 8


@dataclass(frozen=True)
class NameTemplate:
    """How files are called."""

    text: str

    @classmethod
    def parse(cls, text: str) -> NameTemplate:
        """The template as typed. Raises `BadInputError` on `--names` where it is none."""
        if fault := fault_of_places(text):
            raise BadInputError(_FIELD, f"{text[:80]!r} has {fault}", _FORM)
        if all(place["column"] is None for place in PLACE.finditer(text)):
            raise BadInputError(_FIELD, f"{text[:80]!r} has no place for a column: all files had one name", _FORM)
        if text.startswith("/") or "\\" in text or ".." in PLACE.sub("", text).split("/"):
            raise BadInputError(_FIELD, f"{text[:80]!r} leads out of the folder", _FORM)
        return cls(text)

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Places for which there is no column, and which say nothing instead."""
        return not_among(needed_columns(self.text), (*columns, "id", "profile"))

    def name(self, values: Mapping[str, object], profile: str) -> str:
        """The name of a row's file for a profile, of plain ASCII. `values`: its columns, `id` among them."""
        known = {letters_of(column): value for column, value in values.items()} | {"profile": profile}

        def fill(place: re.Match[str]) -> str:
            if place["column"] is None:
                return place.group()[0]
            value = known.get(letters_of(place["column"]))
            text = "" if value is None or isinstance(value, (dict, list, tuple)) else str(value)
            # A slash in a brand is no folder.
            return re.sub(r"[/\\]", "-", text.strip() or (place["instead"] or "").strip()) or EMPTY

        whole = PLACE.sub(fill, self.text).removesuffix(SUFFIX)
        parts = [safe_part(part) for part in whole.split("/") if part.strip()]
        return _within(parts) + SUFFIX


def safe_part(text: str) -> str:
    """A part of a name as every file system and URL takes it: letters, digits and `._-` of ASCII, none of them hidden.

    Accents are left out; where anything else had to be, the part ends with digits of what it was, so that parts which
    differ stay different.
    """
    plain = unicodedata.normalize("NFKD", text.strip().translate(_PLAIN))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    lossy = any(not character.isascii() for character in plain)
    kept = re.sub(r"[^A-Za-z0-9._~-]+", "-", plain.encode("ascii", "replace").decode())
    kept = re.sub(r"-{2,}", "-", kept).strip("-. ") or ("" if lossy else EMPTY)
    if kept.startswith("~"):
        kept = f"_{kept[1:]}"
    if len(kept) > MAX_PART or lossy:
        kept = f"{kept[: MAX_PART - _DIGEST_CHARACTERS - 1].rstrip('-.')}-{_digest(text)}".lstrip("-")
    return f"_{kept}" if is_reserved(kept) else kept


def _within(parts: list[str]) -> str:
    name = "/".join(parts) or EMPTY
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - _DIGEST_CHARACTERS - 1].rstrip('-./')}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]


def collisions(names: Iterable[tuple[str, str, str]]) -> dict[str, Problem]:
    """Rows whose files would have the name of another row's on some disk: all but the first, each with what is wrong.

    `names`: (row's id, profile, name).
    """
    first: dict[str, tuple[str, str]] = {}
    folders: dict[str, tuple[str, str]] = {}
    refused: dict[str, Problem] = {}
    for row_id, profile, name in names:
        key = folded(name)
        other = first.setdefault(key, (row_id, profile))
        if other != (row_id, profile) and row_id not in refused:
            refused[row_id] = _same_name(row_id, profile, other, name)
        for depth in range(1, name.count("/") + 1):
            folders.setdefault("/".join(key.split("/")[:depth]), (row_id, profile))
    for key, (row_id, profile) in first.items():
        # A file `a.mp4` and a folder of that name.
        if (inside := folders.get(key)) is not None and row_id not in refused:
            refused[row_id] = _same_name(row_id, profile, inside, key)
    return refused


def _same_name(row_id: str, profile: str, other: tuple[str, str], name: str) -> Problem:
    if row_id == other[0]:
        message = f"row {row_id!r} has the name {name!r} for {other[1]} and for {profile}"
        return Problem(field=_FIELD, message=message, remedy="Put {profile} into --names.")
    message = f"rows {other[0]!r} and {row_id!r} both have the name {name!r}, as some disks see names"
    return Problem(field=_FIELD, message=message, remedy="Put {id} into --names, or give the rows other ids.")
