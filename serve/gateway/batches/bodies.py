"""What a new batch says of itself, whichever way it comes: as JSON, as a form, or beside a manifest's own bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Self, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from cluster.catalog.defaults import RowDefaults
from cluster.catalog.ingest import IncomingRow
from serve.gateway.requests import MAX_BATCH_ROWS, TermFields, filled_rows

_Body = TypeVar("_Body", bound=BaseModel)


class BatchDefaults(RowDefaults):
    """What a new batch asks of rows that say nothing themselves."""

    model: str | None = None
    """A family's name; None: the farm's default."""


class NewBatch(TermFields):
    """Rows of a new batch, as JSON. Stills are handed in before, by `PUT /v1/stills`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: str = Field(min_length=1, max_length=500)
    """For people, such as the manifest's file name."""
    source: str = Field(default="", max_length=4000)
    """Where the rows come from; a later batch of the same source takes its place in lists."""
    rows: list[IncomingRow] = Field(min_length=1, max_length=MAX_BATCH_ROWS)
    """`{"still": …, "name": …, "prompt": …}` with any other column, where a list as `prompt` asks for a clip of each
    and `candidates` for several; or an `IncomingRow` for each clip."""
    defaults: BatchDefaults = BatchDefaults()
    """What rows get that say nothing themselves."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        rows = values.get("rows") if isinstance(values, dict) else None
        return values | {"rows": filled_rows(rows)} if isinstance(rows, list) else values

    @model_validator(mode="after")
    def _unique(self) -> Self:
        positions = Counter(row.position for row in self.rows).most_common(1)
        if positions[0][1] > 1:
            raise ValueError(f"position {positions[0][0]} is given to {positions[0][1]} rows: number them 1, 2, 3, …")
        names = Counter(row.name for row in self.rows if row.row is not None and not row.problems).most_common(1)
        if names and names[0][1] > 1:
            raise ValueError(f"{names[0][0]!r} names {names[0][1]} rows: a name is the file name of a row's results")
        return self


class ManifestFormat(StrEnum):
    """Kinds of manifests."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    XML = "xml"


class ManifestOptions(TermFields):
    """What is said of a manifest besides its rows: fields of a form, or query parameters beside a raw body."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: str = Field(default="", max_length=500)
    """For people; default: the manifest's file name."""
    source: str = Field(default="", max_length=4000)
    """Where the rows come from; a later batch of the same source takes its place in lists."""
    prompt: str | None = Field(default=None, max_length=10_000)
    """The prompt of rows that have none."""
    format: ManifestFormat | None = None
    """What the manifest is; default: as its file name ends, or its media type says."""
    defaults: BatchDefaults = BatchDefaults()
    """What rows get that say nothing themselves. In a form and a query each of its fields stands for itself."""


class NewBatchOfManifest(ManifestOptions):
    """A batch of a manifest that lies elsewhere: one of `input_file_id` and `manifest_url`."""

    input_file_id: str | None = None
    """The id of a manifest that was handed in by `POST /v1/files` with the purpose `batch`."""
    manifest_url: str | None = Field(default=None, max_length=4096)
    """An https, http, s3 or gs URL that the farm may ask."""
    endpoint: Literal["/v1/videos"] | None = None
    """As OpenAI's clients send it: what the lines of the manifest ask for."""
    completion_window: str | None = Field(default=None, max_length=20)
    """As OpenAI's clients send it; the farm begins at once, and ends when it is done."""
    metadata: dict[str, JsonValue] | None = Field(default=None, max_length=16)
    """As OpenAI's clients send it; kept as the `comment` where there is none."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.input_file_id is None) == (self.manifest_url is None):
            raise ValueError("give one of input_file_id and manifest_url, or rows")
        return self


def batch_body(values: Any) -> NewBatch | NewBatchOfManifest:
    """The JSON of a new batch. Raises `RequestValidationError`."""
    elsewhere = isinstance(values, dict) and "rows" not in values and _OF_MANIFEST & values.keys()
    return validated(NewBatchOfManifest, values) if elsewhere else validated(NewBatch, values)


def options_of(fields: Mapping[str, Any], where: str) -> ManifestOptions:
    """Options that came as texts, those of `defaults` among them. `where` they came: `query` or `body`.

    Raises `RequestValidationError`.
    """
    given: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, value in fields.items():
        if value in ("", None):
            continue
        if name == "defaults" and isinstance(value, dict):
            defaults |= value
        else:
            (defaults if name in BatchDefaults.model_fields else given)[name] = value
    return validated(ManifestOptions, given | ({"defaults": defaults} if defaults else {}), where)


def validated(model: type[_Body], values: Any, where: str = "body") -> _Body:
    """`values` as `model`. Raises `RequestValidationError`, its fields named from `where` they came."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [{**one, "loc": (where, *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(faults, body=None) from error


_OF_MANIFEST = NewBatchOfManifest.model_fields.keys() - NewBatch.model_fields.keys()
