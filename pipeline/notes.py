"""What was assumed, dropped, cut, rounded or judged of a row and its clip without refusing it.

Every such thing is a `Note`, wherever it was seen: when the catalog was read, when the clip was specified, when the
still was decoded, or when the frames were reviewed. A fault that refuses the row is a `pipeline.problems.Problem`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Codes of notes that need no look at the clip: what was asked for is there, or never had a meaning. Beside them all
#: that end in `_adjusted`: values that the model cannot take, and what was taken instead.
QUIET = frozenset(
    {
        *("note", "unused", "prompt_unused", "negative_prompt_unused", "candidates_equal", "fps_of_draft"),
        *("size_rounded", "seconds_rounded", "column_cut", "encoding_guessed", "within_chosen"),
        *("number_read", "time_read", "id_made", "id_not_portable", "delivery_repeated", "prompt_default"),
        *("alpha_flattened", "cmyk_converted", "colours_converted", "move_shortened", "still_fixed"),
    }
)
ADJUSTED = "_adjusted"
#: Codes of notes, beside those of adjusted values, on what a row asks for and does not get: refused where it is strict.
#: Not among them: what a model has no use for, roundings to whole frames and pixels, and what is judged.
REDUCED = frozenset(
    {
        *("prompt_cut", "negative_prompt_cut", "prompt_column_empty", "column_unknown"),
        *("within_missed", "within_unknown", "delivery_refused"),
    }
)
#: Titles that are not the code's own words.
_TITLES = {
    "prompt_default": "motion chosen",
    "enlarged": "still enlarged",
    "cut": "prompt cut",
    "within_chosen": "chosen for the time",
    "within_missed": "too little time",
    "within_unknown": "time not known",
}


#: A cell of a row, as a note proposes it; None: the cell left empty.
NewCell: TypeAlias = str | int | float | bool | None


class Severity(StrEnum):
    """How much a note matters to whoever reads it."""

    #: Nothing has to be done.
    INFO = "info"
    #: The clip is worth a look, or the row a second thought.
    WARNING = "warning"


class Note(BaseModel):
    """One thing that a person should know of a row or its clip."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    code: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Machine name such as `no_motion`: stable, for counting and filtering."""
    message: str
    """A sentence with the values, and what to do where there is something to do."""
    # Both are left out where there is none, as versions without them refuse them.
    field: str = Field(default="", exclude_if=operator.not_)
    """Column of the row that it is about, where it is about one."""
    fix: Mapping[str, NewCell] = Field(default_factory=dict, exclude_if=operator.not_)
    """New values by column, with which it would not be noted: to be applied together, and only if a person wants it."""

    def __hash__(self) -> int:
        return hash((self.code, self.message))

    @property
    def severity(self) -> Severity:
        """How much it matters; follows from the code."""
        return Severity.WARNING if self.worth_a_look or self.reduces else Severity.INFO

    @property
    def title(self) -> str:
        """What it is about, in a few words, where several rows are counted."""
        return title_of(self.code)

    @property
    def worth_a_look(self) -> bool:
        """Whether a person should look at the clip because of it; so of every code that is not known to be quiet."""
        return self.code not in QUIET and not self.adjusted

    @property
    def adjusted(self) -> bool:
        """Whether the row asked for something else than it gets, because its model cannot take it."""
        return self.code.endswith(ADJUSTED)

    @property
    def reduces(self) -> bool:
        """Whether the clip lacks something that the row asks for, so that a strict row is refused."""
        return self.adjusted or self.code in REDUCED

    def __str__(self) -> str:
        return self.message


def title_of(code: str) -> str:
    """A code in the words that people read."""
    return _TITLES.get(code, code.replace("_", " "))


def distinct(notes: Iterable[Note]) -> tuple[Note, ...]:
    """The notes in their order, none twice."""
    return tuple(dict.fromkeys(notes))


def notes_from(values: object) -> tuple[Note, ...]:
    """Notes of JSON as it was stored or sent; what another version wrote besides, or in another form, is left out."""
    found = []
    for value in values if isinstance(values, Sequence) and not isinstance(values, str) else ():
        known = {name: value[name] for name in Note.model_fields if name in value} if isinstance(value, dict) else value
        try:
            found.append(Note.model_validate(known))
        except ValidationError:
            continue
    return distinct(found)


def reading_notes(facts: Mapping[str, Any], texts: Mapping[str, str] = MappingProxyType({})) -> list[Note]:
    """Notes on what a model tells of how it read a clip (`Model.notes`): texts that were cut, moves without room.

    `texts`: the texts by name, where they are known; then the notes' fixes are what is read of them.
    """
    found = []
    for name in ("prompt", "negative_prompt"):
        if tokens := facts.get(f"{name}_tokens_cut"):
            words = str(facts.get(f"{name}_cut") or "")
            lost = f": {words[:200]!r}{'…' if len(words) > 200 else ''}" if words else ""
            count = f"at least {tokens}" if facts.get(f"{name}_at_least") else str(tokens)
            what = f"the {name} is {count} tokens longer than its encoder reads"
            read = texts.get(name, "").split()[: -len(words.split()) or None] if words else []
            fix: dict[str, NewCell] = {name: " ".join(read)} if read else {}
            message = f"{what}, and its end is cut{lost}. Shorten it"
            found.append(Note(code=f"{name}_cut", message=message, field=name, fix=fix))
    if (share := facts.get("move_share")) is not None:
        text = f"the camera's move is {share:.0%} of its usual length, so that the product stays whole in the picture"
        found.append(Note(code="move_shortened", message=text))
    return found


def counted(rows: Iterable[tuple[str, Iterable[Note]]], names: int = 2) -> list[str]:
    """Each kind of note of the rows, (id, notes), once, the most frequent first: how many rows have it, and which.

    The sentence is there where all of them share it, else what it is about and the first one's: `12 rows (SKU-1, SKU-2
    and 10 more): still enlarged, such as: …`. `names`: ids shown.
    """
    ids: dict[str, list[str]] = {}
    sentences: dict[str, list[str]] = {}
    for name, notes in rows:
        kinds: dict[str, list[str]] = {}
        for note in distinct(notes):
            kinds.setdefault(note.code, []).append(note.message)
        for code, messages in kinds.items():
            ids.setdefault(code, []).append(name)
            sentences.setdefault(code, []).append("; ".join(messages))
    told = []
    for code in sorted(ids, key=lambda code: -len(ids[code])):
        first, *others = dict.fromkeys(sentences[code])
        what = f"{title_of(code)}, such as: {first}" if others else first
        told.append(f"{rows_text(ids[code], names)}: {what}")
    return told


def rows_text(ids: Sequence[str], names: int = 2) -> str:
    """How many rows, and which: `12 rows (SKU-1, SKU-2 and 10 more)`. `names`: ids shown."""
    shown, more = ", ".join(ids[:names]), len(ids) - names
    if len(ids) == 1:
        return f"1 row ({shown})"
    return f"{len(ids)} rows ({shown}{f' and {more} more' if more > 0 else ''})"


def as_json(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """The notes as JSON has them."""
    return [note.model_dump() for note in notes]
