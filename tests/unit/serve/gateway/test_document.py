"""The description of the API: whole, true to its own schemas, and docs/api.md written from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore
from serve.gateway.api import create_api
from serve.gateway.document.__main__ import PAGE, page_text
from serve.gateway.document.openapi import operations_of
from serve.gateway.document.operations import OPERATIONS


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture
def document(sqlite_database: Any, tmp_path: Path) -> dict[str, Any]:
    farm = Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))
    return create_api(farm, default_model="camera", nudge=nobody).openapi()


def test_the_page_is_what_the_api_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "python -m serve.gateway.document --write"


def test_every_route_is_described_and_nothing_else(document) -> None:
    there = {(method, path) for method, path, _ in operations_of(document)}
    assert there == set(OPERATIONS), "serve/gateway/document/operations.py"


def test_every_route_has_an_example_of_what_it_takes_and_answers(document) -> None:
    silent = []
    for method, path, operation in operations_of(document):
        bodies = operation.get("requestBody", {}).get("content", {})
        answers = next(iter(operation["responses"].values()))["content"]
        for kind, content in {**bodies, **answers}.items():
            schema = content["schema"]
            binary = schema.get("format") == "binary" or kind in ("application/vnd.apache.parquet",)
            if not binary and schema and not ({"example", "examples"} & content.keys()):
                silent.append(f"{method} {path}: {kind}")
        silent += [
            f"{method} {path}: {one['name']}"
            for one in operation.get("parameters", ())
            if one["in"] == "path" and "example" not in one
        ]
    assert silent == []


def test_examples_are_what_their_schemas_say(document) -> None:
    checked = 0
    for _method, _path, operation in operations_of(document):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [answer.get("content", {}) for answer in operation["responses"].values()]
        for content in contents:
            told = content.get("application/json", {})
            examples = [one["value"] for one in told.get("examples", {}).values()]
            examples += [told["example"]] if "example" in told else []
            for example in examples:
                jsonschema.validate(example, told["schema"] | {"components": document["components"]})
                checked += 1
    assert checked > 90


def test_every_field_of_every_object_says_what_it_is(document) -> None:
    silent = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, one in schema.get("properties", {}).items()
        if not one.get("description")
    ]
    assert silent == []
