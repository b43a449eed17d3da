"""A manifest (CSV, JSONL, Parquet or a folder of images) as checked rows; a bad row never loses the others."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from cluster.catalog.advice.templates import OWN_PLACES, PromptTemplate, plain_template
from cluster.catalog.cells import (
    COLUMNS,
    MAX_CANDIDATES,
    MAX_PRIORITY,
    MAX_PROMPTS,
    READERS,
    JsonNumbers,
    depth_of,
    strings_in,
    text_of,
)
from cluster.catalog.columns import meant_by, told_unknown
from cluster.catalog.files import read_beside
from cluster.catalog.names import Ids, elsewhere, id_fault, stem_of
from cluster.catalog.tables import MAX_JSON_DEPTH, ManifestError, RawRecord, read_records, unreadable
from cluster.catalog.times import Duration
from cluster.jobs.fidelity import MAX_REROLLS
from pipeline.clips.clip import Autofixes, Fit, ResolutionClass, Sampler, Tier, Upscale
from pipeline.delivery.profiles import ProfileNames
from pipeline.families import FAMILIES
from pipeline.notes import Note, distinct
from pipeline.problems import BadInputError, Problem

__all__ = [
    "MAX_CANDIDATES",
    "MAX_PRIORITY",
    "BadRow",
    "Manifest",
    "ManifestError",
    "Row",
    "RowRead",
    "id_fault",
    "manifest_of",
    "read_image_bytes",
    "read_manifest",
]

#: Characters of a text in a column that the farm does not know: more is cut, with a note.
MAX_EXTRA_CHARACTERS = 4000
#: Values within such a column's value.
MAX_EXTRA_VALUES = 1000
#: Unknown columns that are compared with the known ones: of tens of thousands, none is a misspelt one.
MAX_GUESSED_COLUMNS = 1000


def _is_none(value: object) -> bool:
    return value is None


def _is_one(value: object) -> bool:
    return value == 1


def _is_unset(value: object) -> bool:
    return value in (None, ())


class Row(JsonNumbers):
    """One clip to make, as its manifest asks for it. What is None is decided by `cluster.catalog.resolve`."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    number: int
    """Which row of data it is, from 1; candidates of one row share it."""
    line: int | None = None
    """Physical line on which the row begins, header counted; None where a source has no lines."""
    id: str
    """Unique within the manifest and usable as a file name."""
    image: str
    """The picture as written: a path beside the manifest, or a URI."""
    prompt: str | None = None
    """What moves, and how; models that read no prompts do without."""
    negative_prompt: str | None = None
    """What the clip shall not show."""
    model: str | None = None
    """A model, as `clipmill models` lists them; None: the batch's."""
    resolution_class: ResolutionClass | None = None
    """Pixels of the clip; None: the batch's."""
    aspect: str | None = None
    """Width to height, such as `16:9`; None: the still's own."""
    tier: Tier | None = None
    """Quality and time; None: the batch's."""
    frames: int | None = None
    """Length of the clip in frames; None: the tier's."""
    # Left out where it is not asked for, as versions without it refuse it.
    seconds: float | None = Field(default=None, exclude_if=_is_unset)
    """Length of the clip in seconds, in place of `frames`."""
    fps: int | None = None
    """Frames a second of playback; None: the tier's."""
    steps: int | None = None
    """Denoising steps; None: the tier's."""
    guidance: float | None = None
    """How closely the clip follows prompt and picture: 1 (none) to 30; None: the model's."""
    seed: int | None = None
    """The same row with the same seed is the same clip; None: from its content."""
    candidates: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    """Clips asked for by the manifest's row, of which this is one."""
    candidate: int = Field(default=0, ge=0)
    """Which of the row's candidates, from 0."""
    # Both are left out of rows with one prompt, as versions without them refuse them.
    prompts: int = Field(default=1, ge=1, le=MAX_PROMPTS, exclude_if=_is_one)
    """Prompts that the manifest's row has, of which this row's is one: each has as many clips as `candidates`."""
    prompt_number: int = Field(default=0, ge=0, exclude_if=operator.not_)
    """Which of the row's prompts, from 0."""
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """Higher starts earlier; None: 0."""
    # Left out where it is not said, as versions without it refuse it.
    interactive: bool | None = Field(default=None, exclude_if=_is_unset)
    """Whether somebody waits for the clip: it may go before batches; None: the batch's."""
    after: str | None = None
    """Id of the row that must be completed first."""
    not_before: int | None = Field(default=None, ge=0, lt=2**40)
    """UTC epoch seconds before which it does not start."""
    fit: Fit | None = None
    """How a still of another aspect fills the frame; None: the batch's."""
    # Left out where it is not said, as versions without it refuse it.
    autofix: Autofixes | None = Field(default=None, exclude_if=_is_none)
    """What of the still is mended first where it is at fault: some of `crop`, `denoise`, `exposure`, `contrast` and
    `sharpen`, as a list or a text with commas, or `none`; None: the batch's."""
    sampler: Sampler | None = None
    """Solver; None: the batch's, else the model's."""
    window: int | None = None
    """Frames denoised at once, of a clip that has more; 0: all of them."""
    window_overlap: int | None = None
    """Frames that windows share; None: a quarter of one."""
    step_cache: int | None = None
    """Steps for which the deep layers are reused; 1: none."""
    motion_class: ResolutionClass | None = None
    """Smaller class in which the motion is made before it is enlarged."""
    from_draft: bool | None = None
    """Whether the clip starts from the one this row would have at tier draft."""
    strength: float | None = None
    """With `motion_class` or `from_draft`: share of the steps done on the enlarged clip."""
    upscale: Upscale | None = None
    """With `motion_class` or `from_draft`: what is enlarged."""
    # Left out where it is not said, as versions without it refuse it.
    within: Duration | None = Field(default=None, exclude_if=_is_none)
    """Seconds, or a text such as `2 min`, that the clip may take from its start on a card of the farm: class, tier and
    steps, as far as the row does not say them, are chosen so; None: the batch's."""
    deliver: ProfileNames | None = Field(default=None, exclude_if=_is_none)
    """Delivery profiles that files are made for, as a list or a text with commas, or `none`; None: the batch's."""
    min_fidelity: float | None = Field(default=None, ge=0, le=1, exclude_if=_is_none)
    """The least score (0 to 1) that the clip's fidelity is taken with: below it another seed is tried; None: the
    batch's."""
    rerolls: int | None = Field(default=None, ge=0, le=MAX_REROLLS, exclude_if=_is_none)
    """With `min_fidelity`: clips that may be made besides the first one; None: the batch's."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Columns the farm does not know, for the provenance."""
    notes: tuple[Note, ...] = Field(default=(), exclude_if=_is_unset)
    """What was assumed, cut or rounded when the row was read. Left out where nothing was."""

    @field_validator("extra")
    @classmethod
    def _shallow(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # What lies deeper cannot be written down again. Of columns alone, each of which may have a value of its own.
        if depth_of(extra) > MAX_JSON_DEPTH + 1:
            raise ValueError(f"values more than {MAX_JSON_DEPTH} deep in each other")
        return extra


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
    #: Columns that the farm does not know, in one sentence; empty where it knows all.
    unknown: str = ""
    #: What a file that is no manifest of its own was taken for, in a line; empty: it is a manifest.
    taken_for: str = ""

    @property
    def good(self) -> list[Row]:
        """The rows that can be rendered."""
        return [row for row in self.rows if isinstance(row, Row)]

    @property
    def bad(self) -> list[BadRow]:
        """The rows that cannot be rendered."""
        return [row for row in self.rows if isinstance(row, BadRow)]


def read_manifest(
    path: str | PathLike[str],
    *,
    prompt: str | None = None,
    model: str | None = None,
    template: PromptTemplate | None = None,
    prompts: Sequence[str] = (),
) -> Manifest:
    """All rows of a CSV (comma, semicolon or tab), JSONL or Parquet file, or of a folder of images.

    `prompt` serves every row that has none of its own, or `template`, filled from the row's columns: a row that leaves
    a place of it empty is a `BadRow`. A folder needs one of them, unless `model` (the one of rows that name none, where
    it is known) does not read prompts. A row asking for several candidates becomes that many rows, with ids `<id>-c1`,
    `<id>-c2` and so on; one with several prompts (a list of them, or one without a prompt of its own where `prompts`
    are given) has `<id>-p1`, `<id>-p2` of them. Rows without an id are called as their images; of several with one
    image the second is `<name>-2`.

    Raises `ManifestError` where the manifest as a whole cannot be read.
    """
    path = Path(path)
    return manifest_of(path, read_records(path), prompt=prompt, model=model, template=template, prompts=prompts)


def manifest_of(
    path: Path,
    records: Sequence[RawRecord],
    *,
    prompt: str | None = None,
    model: str | None = None,
    template: PromptTemplate | None = None,
    prompts: Sequence[str] = (),
    strangers_known: bool = False,
) -> Manifest:
    """The rows of a manifest whose records were read, as `read_manifest` reads them. Raises `ManifestError`.

    `strangers_known`: columns that are none of ours are somebody else's and meant so, as those of a feed.
    """
    is_folder = path.is_dir()
    template = template or plain_template(prompt or "")
    if is_folder and template is None and not prompts and _reads_prompts(model):
        raise ManifestError(path, "a folder of images says nothing of their prompt", "Give one for all with --prompt.")
    columns = dict.fromkeys(column for record in records for column in record.values)
    # Where some rows have prompts of their own, those that lack the column are told one by one.
    alike = bool(records) and not any("prompt" in record.values for record in records)
    if template is not None and alike and (missing := template.missing(columns)):
        message = f"the prompt for all has places for columns that the catalog has not: {', '.join(missing)}"
        raise ManifestError(path, message, "Add the columns, or say what stands instead: {column|instead}.")
    strange = [] if strangers_known else [column for column in columns if column not in COLUMNS]
    meant = {column: found for column in strange[:MAX_GUESSED_COLUMNS] if (found := meant_by(column, columns))}
    read = [_read_cells(record, meant) for record in records]
    if prompts:
        read = [_with_prompts(one, tuple(prompts)) for one in read]
    ids = Ids((one.id, one.fields.get("candidates", 1), len(_prompts_of(one.fields))) for one in read if one.id)
    rows = [row for one in read for row in _rows_of(one, template, model, ids)]
    unknown = told_unknown([column for column in strange if column not in meant], ())
    # The parent of the path as given: a manifest that is itself a link (a mounted ConfigMap) lies where it is named.
    return Manifest(root=(path if is_folder else path.parent).resolve(), rows=_with_names(rows), unknown=unknown)


def read_image_bytes(manifest: Manifest, row: Row) -> bytes:
    """The still of `row`, a regular file inside the manifest's folder (links followed, then judged).

    Pictures that lie elsewhere are read by `cluster.remote.stills.RemoteStills`, not here.
    Raises `BadInputError` on the field `image`.
    """
    return read_beside(manifest.root, row.image)


def _json(value: object, column: str, notes: list[Note], depth: int = 0) -> JsonValue:
    """`value` as JSON text can carry it: no infinities, keys of text, lists for tuples, texts cut with a note.

    Raises `BadInputError` for values too many or too deep in each other.
    """
    if depth > MAX_JSON_DEPTH or (isinstance(value, (dict, list, tuple)) and len(value) > MAX_EXTRA_VALUES):
        message = f"the value holds more than {MAX_EXTRA_VALUES:,} values, or more than {MAX_JSON_DEPTH} deep"
        raise BadInputError(column, message, "Leave the column out: clips do not need it.")
    if isinstance(value, dict):
        return {str(key): _json(item, column, notes, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, column, notes, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and len(value) > MAX_EXTRA_CHARACTERS:
        message = f"{column}: {len(value):,} characters, of which the first {MAX_EXTRA_CHARACTERS:,} are carried along"
        notes.append(Note(code="column_cut", message=message))
        return value[:MAX_EXTRA_CHARACTERS]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A record whose cells were read, each by itself."""

    record: RawRecord
    #: The id as written; empty where there is none, or it cannot be read.
    id: str
    fields: dict[str, Any]
    extra: dict[str, JsonValue]
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]


def _read_cells(record: RawRecord, meant: dict[str, str]) -> _Read:
    """`meant`: unknown columns with the known ones that they were probably meant for."""
    fields: dict[str, Any] = {}
    extra: dict[str, JsonValue] = {}
    problems, notes = list(record.problems), list(record.notes)
    for column, value in record.values.items():
        try:
            if fault := next(filter(None, map(unreadable, strings_in(value))), None):
                raise BadInputError(column, fault, "Save the manifest as UTF-8, or correct the text.")
            if column in READERS:
                fields[column] = READERS[column](column, value, notes)
            elif column == "id":
                fields["id"] = text_of("id", value, notes)
            else:
                extra[column] = _json(value, column, notes)
                if column in meant:
                    message = f"column not known: {column[:40]} ({meant[column]} meant?); what it says has no effect"
                    notes.append(Note(code="column_unknown", message=message))
        except BadInputError as error:
            problems.append(error.problem)
    if "frames" in fields and "seconds" in fields:
        remedy = "Leave one of them empty: frames are seconds × fps."
        problems.append(BadInputError("seconds", "the row says both frames and seconds", remedy).problem)
    name = fields.pop("id", "")
    return _Read(record=record, id=name, fields=fields, extra=extra, problems=tuple(problems), notes=distinct(notes))


def _reads_prompts(model: str | None) -> bool:
    family = FAMILIES.get(model or "")
    return family is None or family.uses_prompt


def _with_prompts(read: _Read, prompts: tuple[str, ...]) -> _Read:
    """The record with all of `prompts` where it has none of its own."""
    if "prompt" in read.record.values:
        return read
    return replace(read, fields=read.fields | {"prompt": prompts if len(prompts) > 1 else prompts[0]})


def _prompts_of(fields: dict[str, Any]) -> tuple[str | None, ...]:
    prompt = fields.get("prompt")
    return prompt if isinstance(prompt, tuple) else (prompt,)


def _rows_of(read: _Read, template: PromptTemplate | None, model: str | None, ids: Ids) -> list[RowRead]:
    """The rows one record asks for, or its one bad row."""
    record, fields, problems, notes = read.record, dict(read.fields), list(read.problems), list(read.notes)
    if template is not None and "prompt" not in record.values and "prompt" not in fields:
        own = dict.fromkeys(OWN_PLACES, read.id or stem_of(fields.get("image", "")))
        filled = template.filled(own | record.values)
        if filled.prompt:
            fields["prompt"] = filled.prompt
        if filled.negative_prompt and "negative_prompt" not in record.values:
            fields["negative_prompt"] = filled.negative_prompt
        problems += [filled.problem] if filled.problem else []
    # A value that was there but bad is a problem by now; where a row's whole form is broken, missing cells are no news.
    faulty = {problem.field for problem in problems}
    if "row" not in faulty:
        if "image" not in faulty | fields.keys():
            problems.append(BadInputError("image", "the row names no image", "Write its path.").problem)
        if "prompt" not in faulty | fields.keys() and _reads_prompts(fields.get("model") or model):
            remedy = "Say what moves, or give one prompt for all with --prompt."
            problems.append(BadInputError("prompt", "the prompt is empty", remedy).problem)
    image, count = fields.get("image", ""), fields.get("candidates", 1)
    prompts = _prompts_of(fields)
    names: list[str] = []
    try:
        if "id" not in faulty and read.id:
            names = ids.claim(read.id, count, record.number, len(prompts))
        elif "id" not in faulty and (image or not problems):
            names, made = ids.make(image, count, record.number, len(prompts))
            notes += [made] if made else []
    except BadInputError as error:
        problems.append(error.problem)
    if problems:
        label = read.id or (names[0] if len(names) == 1 else stem_of(image)) or f"row-{record.number}"
        return [BadRow(number=record.number, line=record.line, id=label, problems=tuple(problems))]
    fields |= {"number": record.number, "line": record.line, "extra": read.extra, "prompts": len(prompts)}
    return [
        Row(
            **fields | {"prompt": prompts[place // count]},
            id=name,
            candidate=place % count,
            prompt_number=place // count,
            notes=distinct([*notes, *_of_name(name)]),
        )
        for place, name in enumerate(names)
    ]


def _of_name(name: str) -> list[Note]:
    note = elsewhere(name)
    return [note] if note else []


def _with_names(rows: list[RowRead]) -> list[RowRead]:
    """The rows, with what they come `after` called as it is: a data frame writes the SKU 1001 as 1001.0."""
    names = {row.id for row in rows}

    def named(row: RowRead) -> RowRead:
        if isinstance(row, BadRow) or row.after is None or row.after in names or not row.after.endswith(".0"):
            return row
        whole = row.after.removesuffix(".0")
        return row.model_copy(update={"after": whole}) if whole in names else row

    return [named(row) for row in rows]
