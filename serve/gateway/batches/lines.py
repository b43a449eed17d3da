"""Manifests in the form of OpenAI's batches: a line is a request for a video, its `custom_id` the row's id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.catalog.advice.templates import OWN_PLACES, PromptTemplate
from cluster.catalog.manifest import BadRow, Manifest, Row, RowRead
from cluster.catalog.names import MAX_ID_CHARACTERS, Ids, elsewhere
from cluster.catalog.tables import RawRecord, unreadable
from pipeline.notes import distinct
from pipeline.problems import BadInputError, Problem
from serve.gateway.door import check_storable
from serve.gateway.openai.body import FILE_ID, reference_of
from serve.gateway.openai.fields import param_of, read_fields

#: What a line asks for.
VIDEOS = "/v1/videos"
_LINE = frozenset({"custom_id", "method", "url", "body"})
_AS_ONE = 'Write it as {"custom_id": …, "method": "POST", "url": "/v1/videos", "body": {…}}.'


@dataclass(frozen=True, kw_only=True)
class RequestLines:
    """Lines of requests as a manifest, and which of them are strict."""

    manifest: Manifest
    #: Ids of rows that refuse what their model cannot take.
    strict: frozenset[str]


def are_requests(records: Sequence[RawRecord]) -> bool:
    """Whether the records of a manifest are requests: one names its `custom_id` and has a `body`."""
    return any({"custom_id", "body"} <= record.values.keys() for record in records)


def read_lines(
    records: Sequence[RawRecord],
    put_still: Callable[[bytes], str],
    default_model: str,
    *,
    template: PromptTemplate | None = None,
) -> RequestLines:
    """The requests as rows, each with its own problems. Pictures within a line are handed in by `put_still`.

    `template` is for lines without a prompt, filled from what they ask for.
    """
    ids = Ids((name, 1) for record in records if (name := record.values.get("custom_id")) and isinstance(name, str))
    rows: list[RowRead] = []
    strict: set[str] = set()
    for record in records:
        name = _name_of(record)
        try:
            row, is_strict = _row(record, ids, put_still, default_model, template)
            rows.append(row)
            strict |= {row.id} if is_strict else set()
        except _LineProblems as error:
            rows.append(BadRow(number=record.number, line=record.line, id=name, problems=error.problems))
        except BadInputError as error:
            problem = Problem(
                field=param_of(error.problem.field), message=error.problem.message, remedy=error.problem.remedy
            )
            rows.append(BadRow(number=record.number, line=record.line, id=name, problems=(problem,)))
    return RequestLines(manifest=Manifest(root=Path("/"), rows=rows), strict=frozenset(strict))


def _name_of(record: RawRecord) -> str:
    """What a line is called that is no row: its id, as far as a store can hold it."""
    said = str(record.values.get("custom_id") or "")[:MAX_ID_CHARACTERS]
    return said if said and unreadable(said) is None else f"row-{record.number}"


class _LineProblems(Exception):  # noqa: N818 - named for what it carries
    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__(problems)


def _row(
    record: RawRecord,
    ids: Ids,
    put_still: Callable[[bytes], str],
    default_model: str,
    template: PromptTemplate | None,
) -> tuple[Row, bool]:
    if record.problems:
        raise _LineProblems(record.problems)
    values = record.values
    check_storable(dict(values), "row")
    if unknown := sorted(values.keys() - _LINE):
        raise BadInputError(unknown[0][:60], "a request's line has no such field", _AS_ONE)
    if str(values.get("method", "POST")).upper() != "POST":
        raise BadInputError("method", f"{str(values['method'])[:20]!r} makes no video", "Write POST.")
    if values.get("url", VIDEOS) != VIDEOS:
        raise BadInputError("url", f"{str(values['url'])[:60]!r} is nothing that a batch asks", f"Write {VIDEOS}.")
    custom_id, body = values.get("custom_id"), values.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadInputError("custom_id", "the line has none", "Give every line an id of its own, as text.")
    if not isinstance(body, Mapping):
        raise BadInputError("body", "the line has none", _AS_ONE)
    fields: dict[str, Any] = dict(body)
    (name,) = ids.claim(custom_id, 1, record.number)
    reference = reference_of(fields)
    if template is not None and not fields.get("prompt"):
        filled = template.filled(dict.fromkeys(OWN_PLACES, name) | fields)
        if filled.problem:
            raise _LineProblems((filled.problem,))
        fields["prompt"] = filled.prompt
    asked = read_fields(fields, default_model)
    if asked.webhook_url is not None:
        raise BadInputError("webhook_url", "a line has none of its own", "Give the batch one, beside its lines.")
    if reference.data is not None:
        image = FILE_ID + put_still(reference.data)
    else:
        image = reference.url if reference.url is not None else f"{FILE_ID}{reference.sha256}"
    other = elsewhere(name)
    notes = distinct([*record.notes, *asked.notes, *([other] if other else ())])
    found = asked.row.model_copy(
        update={"number": record.number, "line": record.line, "id": name, "image": image, "notes": notes}
    )
    return found, asked.strict


def fingerprint_of(*parts: bytes | str) -> str:
    """SHA-256 of what was handed in, by which the same is known again; each part counts with its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
