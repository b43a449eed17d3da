"""The OpenAPI document: what FastAPI reads of the routes, with answers, refusals, examples and bodies read by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cluster.catalog.cells import MAX_PROMPTS
from serve.gateway.access.scopes import ROUTE_SCOPES
from serve.gateway.batches.bodies import ManifestOptions
from serve.gateway.document import examples
from serve.gateway.document.answers import ErrorAnswer
from serve.gateway.document.operations import BODY_CLASSES, GROUPS, OPERATIONS, DescribedOperation

_REF = "#/components/schemas/{model}"
#: Names of what no class describes: rows of a batch written flat, and a batch of such.
FLAT_ROW, FLAT_BATCH = "FlatRow", "NewBatchOfFlatRows"
_METHODS = ("get", "put", "post", "patch", "delete")
#: What a refusal with a status means.
MEANINGS = {
    400: "An input is at fault: which, and what to do.",
    404: "There is no such thing, or its file is not there.",
    409: "It cannot be done as things are.",
    415: "The body is of a media type that is not read here.",
    416: "The range lies beyond the file.",
    422: "The body or a parameter has another form: which field, and what to do.",
    500: "The video could not be rendered.",
    503: "The store cannot be reached.",
    504: "The video is not done yet; the answer names it.",
}
#: What may be answered to any request.
ANY_REQUEST = (
    "Any request may be refused: 400 for a path or a header that no store could hold, 401 without a key that is valid "
    "where the farm asks for one, 403 for a key without the scope and for a page of another origin, 404 for a path "
    "that there is not, 405 for a method, 408 for a body that comes too slowly, 413 for one that is too large, 421 for "
    "another host's name, 429 and 503 for too much at once, 429 for an owner who is over their quota, 503 where store "
    "or storage cannot be reached."
)

_BEARER = "A key: `Authorization: Bearer clipmill_…`. What each route asks for is its `x-clipmill-scope`."
#: Scopes by method and path as the document has them.
_SCOPES = {(method, path.replace(":path}", "}")): scope for (method, path), scope in ROUTE_SCOPES.items()}


def describe(api: FastAPI) -> None:
    """Let `api.openapi` answer with the whole document, which is made when it is first asked for."""
    plain = api.openapi

    def described() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _with_all(plain())
        return api.openapi_schema

    api.openapi = described  # type: ignore[method-assign]


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of every route of a document, in its order."""
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield method, path, methods[method]


def _with_all(document: dict[str, Any]) -> dict[str, Any]:
    document["info"]["description"] = (
        "A render farm that turns catalog stills into short clips. Times are UTC epoch seconds, memory is in bytes.\n\n"
        + ANY_REQUEST
    )
    document["tags"] = [{"name": name, "description": about} for name, about in GROUPS.items()]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= _schemas()
    # Both: on loopback a farm without keys asks for none.
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": _BEARER}}
    document["security"] = [{}, {"key": []}]
    silent = False
    for method, path, operation in operations_of(document):
        found = OPERATIONS.get((method, path))
        silent |= found is None
        if found is not None:
            _describe(operation, found)
        if (scope := _SCOPES.get((method.upper(), path))) is not None:
            operation["x-clipmill-scope"] = scope.value
    if not silent:
        # FastAPI's own form of a 422, which no route here has.
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
    _describe_batches(document["paths"]["/v1/batches"]["post"])
    return document


def _classes() -> list[type[BaseModel]]:
    found = [one.answer for one in OPERATIONS.values() if one.answer is not None]
    return list(dict.fromkeys([*found, ErrorAnswer]))


def _schemas() -> dict[str, Any]:
    asked = [(one, "validation") for one in (*_classes(), *BODY_CLASSES)]
    _, document = models_json_schema(asked, ref_template=_REF)  # type: ignore[arg-type]
    found: dict[str, Any] = _without_null_defaults(document["$defs"])
    return found | _flat_rows(found)


def _flat_rows(schemas: dict[str, Any]) -> dict[str, Any]:
    """A batch whose rows are written flat, as `filled_rows` reads them: an `IncomingRow` and its row in one object."""
    outer, inner = schemas["IncomingRow"]["properties"], schemas["Row"]["properties"]
    columns = {name: schema for name, schema in inner.items() if name not in ("image", "number", "line", "notes")}
    several = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS}
    prompt = columns["prompt"]
    columns["prompt"] = prompt | {
        "anyOf": [*prompt["anyOf"], several],
        "description": f"{prompt['description']} A list asks for a clip of each.",
    }
    own = {name: outer[name] for name in ("still", "name", "position", "number", "line")}
    # One who writes it flat has a still, as a row without one is a row with problems.
    still = {"still": {"type": "string", "description": outer["still"]["description"]}}
    row = {
        "type": "object",
        "title": FLAT_ROW,
        "description": "A row of a new batch, written flat; what is left out is as `defaults` says.",
        "properties": columns | own | still,
        "required": ["still"],
        "additionalProperties": False,
    }
    batch = copy.deepcopy(schemas["NewBatch"])
    batch["title"] = FLAT_BATCH
    batch["properties"]["rows"]["items"] = {"$ref": _REF.format(model=FLAT_ROW)}
    return {FLAT_ROW: row, FLAT_BATCH: batch}


def _without_null_defaults(value: Any) -> Any:
    """A schema as FastAPI writes it: that a field may be left out says `required` already."""
    if isinstance(value, dict):
        return {
            name: _without_null_defaults(one) for name, one in value.items() if not (name == "default" and one is None)
        }
    return [_without_null_defaults(one) for one in value] if isinstance(value, list) else value


def _reference(model: type[BaseModel]) -> dict[str, str]:
    mapped, _ = models_json_schema([(model, "validation")], ref_template=_REF)
    return {"$ref": str(mapped[(model, "validation")]["$ref"])}


def _describe(operation: dict[str, Any], found: DescribedOperation) -> None:
    operation["summary"], operation["tags"] = found.summary, [found.group]
    error = {"application/json": {"schema": _reference(ErrorAnswer), "example": examples.ERROR}}
    kept = {status: {"description": MEANINGS[status], "content": error} for status in found.refusals}
    responses: dict[str, Any] = {str(found.status): _success(found)}
    responses |= {str(status): answer for status, answer in kept.items()}
    for status in found.also:
        responses[str(status)] = _also(status, found, error)
    responses["default"] = {"description": "A refusal that any request may meet.", "content": error}
    operation["responses"] = responses
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _sent_as_text(parameter["schema"])
        if parameter["name"] in found.parameters:
            parameter["example"] = found.parameters[parameter["name"]]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if (example := found.bodies.get(kind)) is not None:
            content["example"] = example


def _success(found: DescribedOperation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if found.answer is not None:
        content["application/json"] = {"schema": _reference(found.answer), "example": found.example}
    for kind, example in found.files.items():
        binary = example is None and kind != "application/json"
        schema: dict[str, Any] = {"type": "string"} | ({"format": "binary"} if binary else {})
        # JSON of any form; and what reads a stream of events takes each of them for an object.
        content[kind] = {"schema": {} if kind in ("application/json", "text/event-stream") else schema}
        if example is not None:
            content[kind]["example"] = example
    return {"description": {200: "Done.", 201: "Made."}.get(found.status, "Taken."), "content": content}


def _also(status: int, found: DescribedOperation, error: dict[str, Any]) -> dict[str, Any]:
    if status == 206:
        return {"description": "A part of the file.", "content": _success(found)["content"]}
    if status == 304:
        return {"description": "The file is the one that is known already."}
    if found.answer is not None:
        return {"description": MEANINGS[status], "content": _success(found)["content"]}
    return {"description": MEANINGS[status], "content": error}


def _describe_batches(operation: dict[str, Any]) -> None:
    """The bodies of `POST /v1/batches`, all of which it reads by hand."""
    found = OPERATIONS["post", "/v1/batches"]
    either = {"anyOf": [{"$ref": _REF.format(model=FLAT_BATCH)}, *map(_reference, BODY_CLASSES)]}
    named = {"rows": examples.NEW_BATCH, "file": examples.NEW_BATCH_OF_FILE, "URL": examples.NEW_BATCH_OF_URL}
    content: dict[str, Any] = {
        "application/json": {"schema": either, "examples": {name: {"value": one} for name, one in named.items()}}
    }
    for kind, example in found.bodies.items():
        if kind == "multipart/form-data":
            content[kind] = {"schema": _form_schema(), "example": example}
        elif kind != "application/json":
            binary = {"format": "binary"} if example is None else {}
            content[kind] = {"schema": {"type": "string", **binary}} | ({"example": example} if example else {})
    operation["requestBody"] = {
        "required": True,
        "description": "Rows as JSON, or a manifest; options of one that is the whole body are query parameters, by "
        "the names that the form has.",
        "content": content,
    }


def option_fields() -> dict[str, dict[str, Any]]:
    """Schemas of the options of a manifest by name, as a form or a query has them."""
    _, document = models_json_schema([(ManifestOptions, "validation")], ref_template=_REF)
    schemas = document["$defs"]
    fields = dict(schemas["ManifestOptions"]["properties"])
    fields.pop("defaults")
    fields |= schemas["BatchDefaults"]["properties"]
    return {name: _sent_as_text(schema) for name, schema in fields.items()}


def _sent_as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of what comes in a query, a header or a form: left out, where JSON would have null."""
    if not any(one.get("type") == "null" for one in schema.get("anyOf", ())):
        return schema
    kept = [one for one in schema["anyOf"] if one.get("type") != "null"]
    left_out = {"anyOf"} | ({"default"} if schema.get("default") is None else set())
    rest = {name: value for name, value in schema.items() if name not in left_out}
    return rest | (kept[0] if len(kept) == 1 else {"anyOf": kept})


def _form_schema() -> dict[str, Any]:
    files = {
        "manifest": {"type": "string", "format": "binary", "description": "The manifest: CSV, TSV, JSONL or Parquet."},
        "images": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "Its pictures, as files with the names by which it has them.",
        },
    }
    return {
        "type": "object",
        "properties": files | option_fields(),
        "required": ["manifest"],
        "additionalProperties": False,
    }
