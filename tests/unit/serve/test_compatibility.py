"""What configuration files, clients and scripts of commit 6354041 rely on: names to import, the HTTP API, views."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore
from serve.client import LocalClient
from serve.gateway.api import create_api
from tests.building import Clock
from tests.homes import HOMES, copy_storage, fill_store

COMMIT = "6354041"
OPENAPI = Path(__file__).parent / "gateway" / f"openapi-{COMMIT}.json"
#: What a program that calls the API by its paths does not see: texts for people, and names of classes and functions.
NAMES = {"title", "description", "summary", "operationId"}


def test_names_in_configuration_files_import():
    root = Path(__file__).parents[3]
    files = [root / "ray_config.yaml", *(root / "manifests").rglob("ray_config.yaml")]
    named = {name for file in files for name in re.findall(r"(?:import_path|policy_function): (\S+)", file.read_text())}
    assert named == {"serve.app:build", "serve.autoscaling:policy"}
    for name in named:
        module, _, function = name.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def shape(value: Any, schemas: dict[str, Any]) -> Any:
    """A part of an OpenAPI document with every reference in place of which it stands, and without names."""
    if isinstance(value, dict):
        if "$ref" in value:
            return shape(schemas[value["$ref"].rpartition("/")[2]], schemas)
        return {
            name: {field: shape(schema, schemas) for field, schema in one.items()}
            # A field may be called `title`; the keys of `properties` are no keywords.
            if name == "properties"
            else shape(one, schemas)
            for name, one in value.items()
            if name not in NAMES
        }
    if isinstance(value, list):
        return [shape(one, schemas) for one in value]
    return value


def shape_of(document: dict[str, Any]) -> dict[str, Any]:
    return {
        path: {method: shape(operation, document["components"]["schemas"]) for method, operation in methods.items()}
        for path, methods in document["paths"].items()
    }


#: Fields of a row that came later. Nobody has to send one, and nobody is sent one that says nothing.
ADDED = {
    *("seconds", "notes", "interactive", "autofix", "prompts", "prompt_number", "within", "deliver"),
    *("min_fidelity", "rerolls"),
}
#: … of what rows get that say nothing themselves, and of batches.
ADDED_DEFAULTS = {"interactive", "autofix", "rounds", "within", "deliver", "min_fidelity", "rerolls"}
ADDED_TO_BATCHES = {"webhook_url"}
#: … of commands to jobs, and commands themselves.
ADDED_TO_COMMANDS, ADDED_VERBS = {"seed", "prompt", "negative_prompt", "guidance"}, {"reject", "reroll"}
#: Query parameters that came later, all of them optional.
ADDED_PARAMETERS = {"everything", "review"}


#: Routes whose body is described since: they always took one.
ADDED_BODIES = {("/v1/stills", "put")}


def without_added(value: Any) -> Any:
    """A part of an OpenAPI document without what came later: `ADDED` and its like."""
    if isinstance(value, dict):
        known = value.get("properties", {}).keys()
        if added := next(
            (added for added in (ADDED, ADDED_DEFAULTS, ADDED_TO_BATCHES, ADDED_TO_COMMANDS) if known > added), None
        ):
            assert not added & set(value.get("required", ()))
            value = value | {"properties": {n: v for n, v in value["properties"].items() if n not in added}}
        return {name: without_added(one) for name, one in value.items()}
    if isinstance(value, list):
        value = [one for one in value if not (isinstance(one, dict) and one.get("name") in ADDED_PARAMETERS)]
        value = [one for one in value if not (isinstance(one, str) and one in ADDED_VERBS)]
    return [without_added(one) for one in value] if isinstance(value, list) else value


def not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without null, which nobody can write in a query or a header, and older documents name."""
    kept = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    rest = {name: one for name, one in schema.items() if name != "anyOf"}
    return rest | (kept[0] if len(kept) == 1 else {"anyOf": kept} if kept else {})


def taken(operation: dict[str, Any]) -> dict[str, Any]:
    """What a route takes: what programs rely on. Answers and examples are described since."""
    parameters = [
        {name: not_null(value) if name == "schema" else value for name, value in one.items() if name != "example"}
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {})
    content = {kind: one["schema"] for kind, one in body.get("content", {}).items()}
    return {"parameters": parameters, "required": body.get("required"), "body": content}


async def nobody() -> None:
    """Nobody is nudged."""


def test_paths_methods_parameters_and_bodies_are_those_of_before(sqlite_database, tmp_path):
    api = create_api(
        Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage")), default_model="i2vgen-xl", nudge=nobody
    )
    before, today = shape_of(json.loads(OPENAPI.read_text(encoding="utf-8"))), shape_of(api.openapi())
    for path, methods in before.items():
        # What was added is no concern of a client that does not know it.
        assert set(methods) <= set(today.get(path, ())), path
        for method, operation in methods.items():
            now, then = without_added(taken(today[path][method])), taken(operation)
            if (path, method) in ADDED_BODIES:
                assert (now.pop("required"), bool(now.pop("body"))) == (True, True)
                assert (then.pop("required"), then.pop("body")) == (None, {})
            for kind, schema in then.pop("body", {}).items():
                there = now["body"].pop(kind)
                assert schema in there.get("anyOf", [there]) or schema == there, f"{method} {path}"
            # Other media types came later.
            now.pop("body", None)
            assert now == then, f"{method} {path}"
            answered = {status for status in operation["responses"] if status.startswith("2")}
            assert answered <= set(today[path][method]["responses"]), f"{method} {path}"


def test_an_added_field_or_a_lost_bound_would_be_seen():
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    before = shape_of(document)
    document["components"]["schemas"]["OfJob"]["title"] = "JobCommand"
    assert shape_of(document) == before
    del document["components"]["schemas"]["OfJob"]["properties"]["priority"]["anyOf"][0]["maximum"]
    assert shape_of(document) != before


@pytest.fixture
def client(tmp_path):
    """The client of a home that the commit wrote, at that home's time."""
    database = fill_store(COMMIT, f"sqlite:///{tmp_path / 'clipmill.db'}")
    # As `clipmill up` does.
    database.migrate()
    Clock(1_795_890_970).set_on(database)
    yield LocalClient(Farm(BatchStore(database), Storage(copy_storage(COMMIT, tmp_path / "storage"))), "camera")
    database.close()


def test_views_of_a_home_are_those_of_before(client):
    before = json.loads((HOMES / COMMIT / "answers.json").read_text(encoding="utf-8"))
    today = json.loads(json.dumps(client.batches()))
    # What is told besides, a client that does not know it passes over.
    assert [{name: batch[name] for name in before["batches"][0]} for batch in today] == before["batches"]
    for batch_id, jobs in before["jobs"].items():
        known = [{name: job[name] for name in jobs[0]} for job in json.loads(json.dumps(client.jobs(batch_id)))]
        assert known == jobs
    assert json.loads(json.dumps(client.cards())) == before["cards"]
    for job_id, explanation in before["why"].items():
        found = client.why(job_id)
        assert set(found) == set(explanation)
        assert (found["state"], found["reason"]) == (explanation["state"], explanation["reason"])
        assert all({"kind", "text", "command", "at", "starts"} <= set(change) for change in found["changes"])
