"""A manifest (CSV, JSONL, Parquet or a folder of images) as checked rows; a bad row never loses the others."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cluster.beside import read_beside
from cluster.tables import ManifestError, Record, read_records, unreadable
from cluster.times import parse_time
from pipeline.clip import Fit, ResolutionClass, Sampler, Tier, Upscale
from pipeline.families import FAMILIES, family_named, parse_aspect
from pipeline.problems import BadInputError, Problem

__all__ = [
    "MAX_CANDIDATES",
    "BadRow",
    "Manifest",
    "ManifestError",
    "Row",
    "RowRead",
    "id_fault",
    "read_image_bytes",
    "read_manifest",
]

MAX_CANDIDATES = 16
MAX_PRIORITY = 1000
MAX_ID_CHARACTERS = 128
#: File systems allow 255 bytes a name; what is written beside a clip needs the rest.
MAX_ID_BYTES = 200

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}(?:\.0*)?")


class Row(BaseModel):
    """One clip to make, as its manifest asks for it. What is None is decided by `cluster.resolve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Which row of data it is, from 1; candidates of one row share it.
    number: int
    #: Physical line on which the row begins, header counted; None where a source has no lines.
    line: int | None = None
    #: Unique within the manifest and usable as a file name.
    id: str
    #: As written: a path beside the manifest, or a URI.
    image: str
    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None
    resolution_class: ResolutionClass | None = None
    aspect: str | None = None
    tier: Tier | None = None
    frames: int | None = None
    fps: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    #: Clips asked for by the manifest's row, of which this is one.
    candidates: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    #: Which of them, from 0.
    candidate: int = Field(default=0, ge=0)
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    #: Id of the row that must be completed first.
    after: str | None = None
    #: UTC epoch seconds before which it does not start.
    not_before: int | None = Field(default=None, ge=0, lt=2**40)
    fit: Fit | None = None
    sampler: Sampler | None = None
    #: Frames denoised at once, of a clip that has more; 0: all of them.
    window: int | None = None
    window_overlap: int | None = None
    #: Steps for which the deep layers are reused; 1: none.
    step_cache: int | None = None
    #: Smaller class in which the motion is made before it is enlarged.
    motion_class: ResolutionClass | None = None
    #: Whether the clip starts from the one this row would have at tier draft.
    from_draft: bool | None = None
    #: With `motion_class` or `from_draft`: share of the steps done on the enlarged clip.
    strength: float | None = None
    upscale: Upscale | None = None
    #: Columns the farm does not know, for the provenance.
    extra: dict[str, JsonValue] = Field(default_factory=dict)


class BadRow(BaseModel):
    """A row that cannot be rendered, and everything that is wrong with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    line: int | None = None
    #: A label for people: as written, else from the image's name, else `row-<number>`. Not unique.
    id: str
    problems: tuple[Problem, ...] = Field(min_length=1)


RowRead: TypeAlias = Row | BadRow


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a manifest holds, in its order."""

    #: Folder against which images are resolved, and which they may not leave.
    root: Path
    rows: list[RowRead]

    @property
    def good(self) -> list[Row]:
        """The rows that can be rendered."""
        return [row for row in self.rows if isinstance(row, Row)]

    @property
    def bad(self) -> list[BadRow]:
        """The rows that cannot."""
        return [row for row in self.rows if isinstance(row, BadRow)]


def read_manifest(path: str | PathLike[str], *, prompt: str | None = None, model: str | None = None) -> Manifest:
    """All rows of a CSV (comma, semicolon or tab), JSONL or Parquet file, or of a folder of images.

    `prompt` serves every row that has none of its own; a folder needs it, unless `model` (the one of rows that name
    none, where it is known) does not read prompts. A row asking for several candidates becomes that many rows, with
    ids `<id>-c1`, `<id>-c2` and so on.

    Raises `ManifestError` where the manifest as a whole cannot be read.
    """
    path = Path(path)
    records = read_records(path)
    is_folder = path.is_dir()
    prompt = prompt.strip() if prompt else None
    if is_folder and not prompt and _reads_prompts(model):
        raise ManifestError(path, "a folder of images says nothing of their prompt", "Give one for all with --prompt.")
    rows: list[RowRead] = []
    numbers: dict[str, int] = {}
    for record in records:
        rows.extend(_read_row(record, prompt, model, numbers))
    # The parent of the path as given: a manifest that is itself a link (a mounted ConfigMap) lies where it is named.
    return Manifest(root=(path if is_folder else path.parent).resolve(), rows=rows)


def read_image_bytes(manifest: Manifest, row: Row) -> bytes:
    """The still of `row`, a regular file inside the manifest's folder (links followed, then judged).

    Raises `BadInputError` on the field `image`.
    """
    return read_beside(manifest.root, row.image)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _text(field: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadInputError(field, f"{_show(value)} is not text", "Write it as text.")
    # Data frames turn a column of numbers with gaps into floats: 1001.0 is the SKU 1001.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(field: str, value: object, *, minimum: int, maximum: int) -> int:
    number: int | None = None
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        number = int(value.partition(".")[0])
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    remedy = f"Give a whole number from {minimum} to {maximum}, or leave it empty."
    if number is None:
        raise BadInputError(field, f"{_show(value)} is not a whole number", remedy)
    if not minimum <= number <= maximum:
        raise BadInputError(field, f"{_show(number)} is not from {minimum} to {maximum}", remedy)
    return number


def _number(field: str, value: object) -> float:
    remedy = "Give a number such as 7.5, with a point, or leave it empty."
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadInputError(field, f"{_show(value)} is not a number", remedy)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInputError(field, f"{_show(value)} is not a number", remedy)
    return number


def _choice(choices: type[StrEnum], field: str, value: object) -> StrEnum:
    try:
        return choices(_text(field, value).lower())
    except ValueError:
        remedy = f"Choose one of: {', '.join(choices)}."
        article = "an" if field[0] in "aeiou" else "a"
        raise BadInputError(field, f"{_show(value)} is not {article} {field.replace('_', ' ')}", remedy) from None


def _model(field: str, value: object) -> str | None:
    name = _text(field, value).lower()
    return None if name == "auto" else family_named(name).name


def _aspect(field: str, value: object) -> str:
    text = _text(field, value)
    parse_aspect(text)
    return text


def _time(field: str, value: object) -> int:
    return parse_time(field, value.isoformat() if isinstance(value, datetime) else _text(field, value))


def _yes_no(field: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[_text(field, value).lower()]
    except KeyError:
        raise BadInputError(field, f"{_show(value)} is neither yes nor no", "Write true or false.") from None


_READERS: dict[str, Callable[[str, object], object]] = {
    "image": _text,
    "prompt": _text,
    "negative_prompt": _text,
    "model": _model,
    "resolution_class": partial(_choice, ResolutionClass),
    "aspect": _aspect,
    "tier": partial(_choice, Tier),
    "frames": partial(_whole, minimum=1, maximum=100_000),
    "fps": partial(_whole, minimum=1, maximum=60),
    "steps": partial(_whole, minimum=1, maximum=1000),
    "guidance": _number,
    "seed": partial(_whole, minimum=0, maximum=2**63 - 1),
    "candidates": partial(_whole, minimum=1, maximum=MAX_CANDIDATES),
    "priority": partial(_whole, minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY),
    "after": _text,
    "not_before": _time,
    "fit": partial(_choice, Fit),
    "sampler": partial(_choice, Sampler),
    "window": partial(_whole, minimum=0, maximum=100_000),
    "window_overlap": partial(_whole, minimum=0, maximum=100_000),
    "step_cache": partial(_whole, minimum=1, maximum=1000),
    "motion_class": partial(_choice, ResolutionClass),
    "from_draft": _yes_no,
    "strength": _number,
    "upscale": partial(_choice, Upscale),
}


def _json(value: object) -> JsonValue:
    """`value` as JSON text can carry it: no infinities, keys of text, lists for tuples."""
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    return [text for item in value for text in _strings(item)] if isinstance(value, (list, tuple)) else []


def id_fault(name: str) -> str | None:
    """Why `name` cannot be a row's id and a file name; None where it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        return "holds a control character"
    if len(name) > MAX_ID_CHARACTERS or len(name.encode("utf-8", "replace")) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_CHARACTERS} characters (or {MAX_ID_BYTES} bytes)"
    return None


def _stem(image: str) -> str:
    """The image's file name without folders and suffix, of a URI without its query."""
    path = re.split(r"[?#]", image)[0] if "://" in image else image
    name = re.split(r"[/\\]", path)[-1]
    return name if name.startswith(".") else Path(name).stem


def _fields(record: Record, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, JsonValue]]:
    """(values of the known columns, values of the others); what cannot be taken is added to `problems`."""
    fields: dict[str, Any] = {}
    extra: dict[str, JsonValue] = {}
    for column, value in record.values.items():
        try:
            if fault := next(filter(None, map(unreadable, _strings(value))), None):
                raise BadInputError(column, fault, "Save the manifest as UTF-8, or correct the text.")
            if column in _READERS:
                fields[column] = _READERS[column](column, value)
            elif column == "id":
                fields["id"] = _text("id", value)
            else:
                extra[column] = _json(value)
        except BadInputError as error:
            problems.append(error.problem)
    return fields, extra


def _claim(name: str, count: int, number: int, numbers: dict[str, int]) -> list[str]:
    """The ids of a row's `count` clips, entered into `numbers`; raises `BadInputError` where one cannot serve."""
    if fault := id_fault(name):
        raise BadInputError("id", f"{_show(name)} {fault}", "Give an id that can be a file name, such as SKU-001.")
    names = [name] if count == 1 else [f"{name}-c{i}" for i in range(1, count + 1)]
    taken = next((name for name in names if name in numbers), None)
    for name in names:
        numbers.setdefault(name, number)
    if taken is not None:
        message = f"{taken!r} is already the id of row {numbers[taken]}"
        raise BadInputError("id", message, "Give every row an id of its own.")
    return names


def _reads_prompts(model: str | None) -> bool:
    family = FAMILIES.get(model or "")
    return family is None or family.uses_prompt


def _read_row(record: Record, prompt: str | None, model: str | None, numbers: dict[str, int]) -> list[RowRead]:
    """The rows one record asks for, or its one bad row. `numbers` holds the ids met so far and grows."""
    problems = list(record.problems)
    fields, extra = _fields(record, problems)
    if prompt and "prompt" not in record.values:
        fields["prompt"] = prompt
    # A value that was there but bad has been told of; where a row's whole form is broken, missing cells are no news.
    told = {problem.field for problem in problems}
    if "row" not in told:
        if "image" not in told | fields.keys():
            problems.append(BadInputError("image", "the row names no image", "Write its path.").problem)
        if "prompt" not in told | fields.keys() and _reads_prompts(fields.get("model") or model):
            remedy = "Say what moves, or give one prompt for all with --prompt."
            problems.append(BadInputError("prompt", "the prompt is empty", remedy).problem)
    name = fields.pop("id", "") or _stem(fields.get("image", ""))
    try:
        if name and "id" not in told:
            names = _claim(name, fields.get("candidates", 1), record.number, numbers)
        elif not problems:
            raise BadInputError("id", "the row has no id and its image no name", "Give every row an id.")
    except BadInputError as error:
        problems.append(error.problem)
    if problems:
        label = name or f"row-{record.number}"
        return [BadRow(number=record.number, line=record.line, id=label, problems=tuple(problems))]
    return [
        Row(number=record.number, line=record.line, id=name, candidate=index, extra=extra, **fields)
        for index, name in enumerate(names)
    ]
