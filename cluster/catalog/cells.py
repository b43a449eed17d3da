"""From a cell as spreadsheets, data frames and people write it to the value of its column.

What can be read in one way only is read, with a note where a person wrote it otherwise; what can be read in two ways
is refused with both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, model_validator

from cluster.catalog.times import read_duration, read_time
from cluster.jobs.fidelity import MAX_REROLLS
from pipeline.clips.clip import MAX_GUIDANCE, Autofix, Fit, ResolutionClass, Sampler, Tier, Upscale, autofixes_of
from pipeline.delivery.profiles import profile_names_of
from pipeline.families import family_named, parse_aspect
from pipeline.notes import Note
from pipeline.problems import BadInputError

MAX_CANDIDATES = 16
#: Prompts for one picture.
MAX_PROMPTS = 32
MAX_PRIORITY = 1000
MAX_FPS = 60
MAX_STEPS = 1000
#: Frames, and frames of a window, that may be asked for; what a family can take is for `cluster.catalog.adjust`.
MAX_FRAMES = 100_000
MAX_SECONDS = 600.0
#: Characters of a cell that is read. Longer prompts are refused with their own limit (`cluster.catalog.resolve`).
MAX_CELL_CHARACTERS = 20_000

#: Given (column, value, where notes go), the value as the column has it. Raises `BadInputError`.
Reader: TypeAlias = Callable[[str, object, list[Note]], object]

_PLAIN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_SCIENTIFIC = re.compile(r"[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)[eE][+-]?[0-9]{1,3}")
#: Digits in groups of three, as people and spreadsheets write thousands, with or without a fraction.
_GROUPED = re.compile(r"([+-]?)([0-9]{1,3}(?:([.,' ])[0-9]{3})(?:\3[0-9]{3})*)(?:[.,]([0-9]+))?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")
#: White space that is no plain space, such as the narrow one before a French thousand.
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff\t]")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2019": "'"})
#: What a spreadsheet writes where a formula has failed.
_CELL_ERROR = re.compile(r"#(?:N/A|REF!|VALUE!|NAME\?|DIV/0!|NUM!|NULL!|SPILL!|CALC!|FIELD!|BLOCKED!|GETTING_DATA)")
#: A spreadsheet's way to keep a number's leading zeros: ="00123".
_FORCED_TEXT = re.compile(r'="((?:[^"]|"")*)"')
_FORMULA = re.compile(r"=\s*[-+(]*\s*(?:[A-Za-z_.]+\(|\$?[A-Za-z]{1,3}\$?[0-9])")


def cell_text(value: str) -> str:
    """A cell's text without the white space around it, and without a spreadsheet's `="…"` around a number."""
    text = value.strip().strip("\ufeff\u200b").strip()
    forced = _FORCED_TEXT.fullmatch(text)
    return forced[1].replace('""', '"').strip() if forced else text


def shown(value: object) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def text_of(field: str, value: object, notes: list[Note]) -> str:
    """Text. Raises `BadInputError` for a formula, a spreadsheet's error, and what is no text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadInputError(field, f"{shown(value)} is not text", "Write it as text.")
    # Data frames turn a column of numbers with gaps into floats: 1001.0 is the SKU 1001.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if len(text) > MAX_CELL_CHARACTERS:
        message = f"the text has {len(text):,} characters, more than {MAX_CELL_CHARACTERS:,}"
        raise BadInputError(field, message, "Shorten it.")
    if _CELL_ERROR.fullmatch(text):
        raise BadInputError(field, f"{text} is a spreadsheet's error, no value", "Correct the formula, or empty it.")
    if _FORMULA.match(text):
        message = f"{shown(text)} is a formula, not its value"
        raise BadInputError(field, message, "Export values: in a spreadsheet, save as 'CSV UTF-8'.")
    return text


def texts_of(field: str, value: object, notes: list[Note]) -> str | tuple[str, ...]:
    """A text, or several, each once. Raises `BadInputError` for what is none, and for too many."""
    if not isinstance(value, (list, tuple)):
        return text_of(field, value, notes)
    texts = tuple(dict.fromkeys(text_of(field, one, notes).strip() for one in value))
    if not texts or not all(texts):
        raise BadInputError(field, "one of the texts is empty", "Leave it out of the list.")
    if len(texts) > MAX_PROMPTS:
        raise BadInputError(field, f"{len(texts)} texts, more than {MAX_PROMPTS}", "Split them over several rows.")
    return texts[0] if len(texts) == 1 else texts


def number_of(
    field: str,
    value: object,
    notes: list[Note],
    *,
    minimum: float,
    maximum: float,
    whole: bool = False,
    above: bool = False,
) -> float:
    """A number from `minimum` (with `above`: from above it) to `maximum`. Raises `BadInputError` that names both.

    Of two readings, such as 1 and 1000 for `1.000`, the one within the range is taken; where both are, it is refused.
    """
    kind = "a whole number" if whole else "a number"
    low = f"above {minimum:g}, at most {maximum:,g}" if above else f"from {minimum:.15g} to {maximum:.15g}"
    if whole:
        low = f"from {int(minimum)} to {int(maximum)}"
    remedy = f"Give {kind} {low}, with a point and no thousands separator, or leave it empty."
    readings = [n for n in _readings(value) if not whole or n == int(n)]
    if not readings:
        raise BadInputError(field, f"{shown(value)} is not {kind}", remedy)
    fitting = [n for n in readings if minimum <= n <= maximum and not (above and n == minimum)]
    if not fitting:
        raise BadInputError(field, f"{shown(_unquoted(value))} is not {low}", remedy)
    if len(fitting) > 1:
        both = " or ".join(f"{n:g}" for n in sorted(fitting))
        raise BadInputError(field, f"{shown(value)} can be {both}", f"Write it as {both}.")
    number = fitting[0]
    if isinstance(value, str) and not _PLAIN.fullmatch(value.strip()):
        notes.append(Note(code="number_read", message=f"{field} {value.strip()!r} was read as {number:.15g}"))
    return number


def _unquoted(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value) else value


def _readings(value: object) -> list[float]:
    """All numbers that `value` can mean: none, one, or two where its only separator stands before three digits."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return []
    if not isinstance(value, str):
        return [value] if isinstance(value, int) or math.isfinite(value) else []
    text = _SPACES.sub(" ", value.translate(_MINUS)).strip().strip("\"'").strip()
    if len(text) > 40:
        return []
    found: list[float] = []
    if _PLAIN.fullmatch(text):
        whole, _, fraction = text.partition(".")
        # Whole ones exactly: a float has no room for all digits of a seed.
        found.append(int(whole) if whole.lstrip("+-") and not fraction.strip("0") else float(text))
    elif _SCIENTIFIC.fullmatch(text) or _DECIMAL_COMMA.fullmatch(text):
        found.append(float(text.replace(",", ".")))
    if grouped := _GROUPED.fullmatch(text):
        sign, digits, separator, fraction = grouped.groups()
        # A fraction has the other separator: 1.234,5 and not 1.234.5.
        if not fraction or text[len(sign) + len(digits)] != separator:
            number = int(re.sub(r"[^0-9]", "", digits))
            exact = float(f"{number}.{fraction}") if fraction else number
            # No thousand begins with a nought: 0.125 is a fraction.
            found += [] if digits.startswith("0") else [-exact if sign == "-" else exact]
    return [n for n in dict.fromkeys(found) if math.isfinite(n)]


def _whole(field: str, value: object, notes: list[Note], *, minimum: int, maximum: int) -> int:
    return int(number_of(field, value, notes, minimum=minimum, maximum=maximum, whole=True))


def _choice(choices: type[StrEnum], field: str, value: object, notes: list[Note]) -> StrEnum:
    try:
        return choices(text_of(field, value, notes).lower())
    except ValueError as error:
        if isinstance(error, BadInputError):
            raise
        remedy = f"Choose one of: {', '.join(choices)}."
        article = "an" if field[0] in "aeiou" else "a"
        raise BadInputError(field, f"{shown(value)} is not {article} {field.replace('_', ' ')}", remedy) from None


def _model(field: str, value: object, notes: list[Note]) -> str | None:
    name = text_of(field, value, notes).lower()
    return None if name == "auto" else family_named(name[:100]).name


def _aspect(field: str, value: object, notes: list[Note]) -> str:
    text = text_of(field, value, notes)
    parse_aspect(text)
    return text


def _time(field: str, value: object, notes: list[Note]) -> int:
    text = value.isoformat() if isinstance(value, datetime) else text_of(field, value, notes)
    seconds, note = read_time(field, text)
    notes.extend([note] if note else [])
    return seconds


def _duration(field: str, value: object, notes: list[Note]) -> float:
    return read_duration(field, text_of(field, value, notes))


def _autofix(field: str, value: object, notes: list[Note]) -> tuple[Autofix, ...]:
    try:
        return autofixes_of(value if isinstance(value, (list, tuple)) else text_of(field, value, notes))
    except ValueError as error:
        if isinstance(error, BadInputError):
            raise
        remedy = f"Name some of {', '.join(Autofix)} with commas between them, or none."
        raise BadInputError(field, f"{shown(value)} names something else than can be mended", remedy) from None


def _deliver(field: str, value: object, notes: list[Note]) -> tuple[str, ...]:
    try:
        return profile_names_of(value if isinstance(value, (list, tuple)) else text_of(field, value, notes))
    except ValueError as error:
        if isinstance(error, BadInputError):
            raise
        remedy = "Name delivery profiles such as google, reels with commas between them, or none."
        raise BadInputError(field, f"{shown(value)}: {error}", remedy) from None


def _yes_no(field: str, value: object, notes: list[Note]) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[text_of(field, value, notes).lower()]
    except KeyError:
        raise BadInputError(field, f"{shown(value)} is neither yes nor no", "Write true or false.") from None


#: How each column is read, by its name; `id` is for `cluster.catalog.names`.
READERS: dict[str, Reader] = {
    "image": text_of,
    "prompt": texts_of,
    "negative_prompt": text_of,
    "model": _model,
    "resolution_class": partial(_choice, ResolutionClass),
    "aspect": _aspect,
    "tier": partial(_choice, Tier),
    "frames": partial(_whole, minimum=1, maximum=MAX_FRAMES),
    "seconds": partial(number_of, minimum=0, maximum=MAX_SECONDS, above=True),
    "fps": partial(_whole, minimum=1, maximum=MAX_FPS),
    "steps": partial(_whole, minimum=1, maximum=MAX_STEPS),
    "guidance": partial(number_of, minimum=1, maximum=MAX_GUIDANCE),
    "seed": partial(_whole, minimum=0, maximum=2**63 - 1),
    "candidates": partial(_whole, minimum=1, maximum=MAX_CANDIDATES),
    "priority": partial(_whole, minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY),
    "interactive": _yes_no,
    "after": text_of,
    "not_before": _time,
    "fit": partial(_choice, Fit),
    "autofix": _autofix,
    "sampler": partial(_choice, Sampler),
    "window": partial(_whole, minimum=0, maximum=MAX_FRAMES),
    "window_overlap": partial(_whole, minimum=0, maximum=MAX_FRAMES),
    "step_cache": partial(_whole, minimum=1, maximum=MAX_STEPS),
    "motion_class": partial(_choice, ResolutionClass),
    "from_draft": _yes_no,
    "strength": partial(number_of, minimum=0, maximum=1, above=True),
    "upscale": partial(_choice, Upscale),
    "within": _duration,
    "deliver": _deliver,
    "min_fidelity": partial(number_of, minimum=0, maximum=1),
    "rerolls": partial(_whole, minimum=0, maximum=MAX_REROLLS),
}
#: The columns this farm knows; every other one is carried along.
COLUMNS = frozenset(READERS) | {"id"}


def strings_in(value: object) -> list[str]:
    """All texts within a value of JSON, keys included."""
    found: list[str] = []
    left: list[object] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, Sequence):
            left += one
    return found


def depth_of(value: object) -> int:
    """How many lists and objects of JSON lie in each other, at most; of a plain value 0."""
    most, left = 0, [(value, 0)]
    while left:
        one, depth = left.pop()
        if isinstance(one, (dict, list, tuple)):
            most = max(most, depth + 1)
            left += [(inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one)]
    return most


class JsonNumbers(BaseModel):
    """A model whose numbers are never read of true and false."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        wrong = {name: str(values[name]) for name in _numbers(cls) if isinstance(values.get(name), bool)}
        # As texts, of which pydantic itself then says that they are no numbers, and names the field.
        return values | wrong if wrong else values


@cache
def _numbers(model: type[BaseModel]) -> tuple[str, ...]:
    """Fields that are numbers, or may be, and no truth values."""
    kinds = {name: {field.annotation, *get_args(field.annotation)} for name, field in model.model_fields.items()}
    return tuple(name for name, found in kinds.items() if found & {int, float} and bool not in found)
