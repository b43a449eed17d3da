"""Ids of rows: usable as file names, unique as disks see names, and the same whenever the catalog is read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pipeline.notes import Note
from pipeline.problems import BadInputError

MAX_ID_CHARACTERS = 128
#: File systems allow 255 bytes a name; what is written beside a clip needs the rest.
MAX_ID_BYTES = 200
#: Names of devices, which Windows and disks that have to do with it take for no file's, whatever their suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


def id_fault(name: str) -> str | None:
    """Why `name` cannot be a row's id and a file name; None where it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "holds a control character"
    if any(character in _DIRECTIONS for character in name):
        return "holds a character that turns the direction of writing"
    if len(name) > MAX_ID_CHARACTERS or len(file_stem(name).encode("utf-8", "replace")) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_CHARACTERS} characters (or {MAX_ID_BYTES} bytes)"
    return None


#: Embeddings, overrides and isolates (Unicode's bidirectional algorithm): a name that shows one suffix has another.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def file_stem(name: str) -> str:
    """What the files of a row with this id are called, less their suffix: a name that every file system takes.

    It is the id itself, unless Windows or a disk that has to do with it takes that for no name: then what is wrong is
    written as in URLs (`A%3AB`). Different ids have different ones, for `urllib.parse.unquote` gives the id back.
    """
    stem = _TO_ESCAPE.sub(_escaped, name)
    if name.endswith((".", " ")):
        stem = stem[:-1] + f"%{ord(name[-1]):02X}"
    elif _RESERVED.match(name):
        stem = f"%{ord(name[0]):02X}{stem[1:]}"
    return stem


#: What Windows takes for no part of a name, and what would be read as an escape.
_TO_ESCAPE = re.compile(r'[<>:"|?*]|%(?=[0-9A-Fa-f]{2})')


def _escaped(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def is_reserved(name: str) -> bool:
    """Whether Windows takes a name for that of a device, whatever its suffix."""
    return _RESERVED.match(name) is not None


def elsewhere(name: str) -> Note | None:
    """A note that the files of a row with this id are called otherwise, and why; None where they bear the id."""
    stem = file_stem(name)
    if stem == name:
        return None
    if name.endswith((".", " ")):
        why = "ends with a dot" if name.endswith(".") else "ends with a space"
    elif _RESERVED.match(name):
        why = "is the name of a device on Windows"
    else:
        found = _TO_ESCAPE.search(name)
        why = f"holds {found[0] if found else ''!r}"
    message = f"the id {name!r} {why}, which some disks do not take: its files are called {stem!r}"
    return Note(code="id_not_portable", message=message)


def folded(name: str) -> str:
    """Equal for names that some file system takes for one: by case or by Unicode form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def stem_of(image: str) -> str:
    """The image's file name without folders and suffix, of a URI without its query."""
    path = re.split(r"[?#]", image)[0] if "://" in image else image
    name = re.split(r"[/\\]", path)[-1]
    return name if name.startswith(".") else Path(name).stem


class Ids:
    """The ids of a catalog's rows. Those that are written go first, whatever their place; others are made of images.

    What is made depends on nothing but the catalog, so the same catalog has the same ids again.
    """

    def __init__(self, written: Iterable[tuple[str, int] | tuple[str, int, int]]) -> None:
        """`written`: every id that a row has, with how many clips the row asks for, and for how many prompts."""
        self._reserved = {folded(name) for one in written for name in clip_names(*one)}
        #: Numbers of the rows that have them, by id and by what disks make of it.
        self._rows: dict[str, int] = {}
        self._made: dict[str, int] = {}

    def claim(self, name: str, count: int, number: int, prompts: int = 1) -> list[str]:
        """Ids of the `count` clips for each prompt of row `number`, which is called `name`.

        Raises `BadInputError` on `id`.
        """
        if fault := id_fault(name):
            raise _unusable(name, fault)
        names = clip_names(name, count, prompts)
        if too_long := next((one for one in names if id_fault(one)), None):
            raise _unusable(too_long, id_fault(too_long) or "")
        taken = next((one for one in names if one in self._rows), None)
        for one in names:
            self._rows.setdefault(one, number)
        if taken is not None:
            message = f"{taken!r} is already the id of row {self._rows[taken]}"
            raise BadInputError("id", message, "Give every row an id of its own.")
        return names

    def make(self, image: str, count: int, number: int, prompts: int = 1) -> tuple[list[str], Note | None]:
        """Ids for a row without one: its image's name, with a number where that is taken, which a note then says.

        Raises `BadInputError` on `id` where the image's name cannot serve.
        """
        stem = stem_of(image)
        if not stem:
            raise BadInputError("id", "the row has no id and its image no name", "Give every row an id.")
        if fault := id_fault(stem):
            raise _unusable(stem, fault)
        place = self._made.get(stem, 0)
        while True:
            place += 1
            own = stem if place == 1 else f"{_cut(stem, len(str(place)) + 5)}-{place}"
            if all(folded(name) not in self._reserved for name in clip_names(own, count, prompts)):
                break
        self._made[stem] = place
        names = self.claim(own, count, number, prompts)
        self._reserved |= {folded(name) for name in names}
        if own == stem:
            return names, None
        message = f"{stem!r} names another row already: this one is called {own!r}. Write ids to choose them"
        return names, Note(code="id_made", message=message)


def clip_names(name: str, count: int, prompts: int = 1) -> list[str]:
    """What the clips of a row are called, `count` for each of its `prompts`, those of the first prompt first."""
    of_prompts = [name] if prompts == 1 else [f"{name}-p{i}" for i in range(1, prompts + 1)]
    return of_prompts if count == 1 else [f"{one}-c{i}" for one in of_prompts for i in range(1, count + 1)]


def _cut(stem: str, room: int) -> str:
    while len(stem) > MAX_ID_CHARACTERS - room or len(stem.encode()) > MAX_ID_BYTES - room:
        stem = stem[:-1]
    return stem


def _unusable(name: str, fault: str) -> BadInputError:
    name = name if len(name) <= 60 else f"{name[:57]}…"
    return BadInputError("id", f"{name!r} {fault}", "Give an id that can be a file name, such as SKU-001.")
