"""docs/api.md, from the OpenAPI document: every route with its fields, answers, refusals and a request by hand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from serve.gateway.document.openapi import ANY_REQUEST, operations_of, option_fields
from serve.gateway.document.operations import GROUPS

_HEAD = f"""\
# API reference

Every route of the gateway. This file is written from the OpenAPI document (`/openapi.json`) by
`python -m serve.gateway.document --write`; a walk by hand is in [http.md](http.md), videos alone in
[videos.md](videos.md). Times are UTC epoch seconds, lengths of clips are seconds, memory is bytes. `$U` is the
gateway's address, such as `http://127.0.0.1:8500`.

{ANY_REQUEST}

Where the farm asks for a key, `$K` is one, and every request takes `-H "Authorization: Bearer $K"` more than is shown
([keys.md](keys.md)).

A refusal is `{{"error": {{"message": …, "type": …, "param": …, "code": …, "remedy": …}}}}`: `param` is the field at
fault, `code` is for programs, and `remedy` says what to do.
"""


def api_markdown(document: Mapping[str, Any]) -> str:
    """The whole page of an OpenAPI document."""
    schemas = document["components"]["schemas"]
    parts = [_HEAD]
    operations = list(operations_of(dict(document)))
    for group, about in GROUPS.items():
        parts.append(f"## {group.capitalize()}\n\n{about}\n")
        parts += [_operation(m, path, one, schemas) for m, path, one in operations if group in one.get("tags", ())]
    parts.append("## Objects\n\nFields of bodies and answers. A field without a star may be left out of a body.\n")
    parts.append("### Options of a manifest\n\nFields of a form, or query parameters beside a raw body.\n")
    parts.append(_table(option_fields(), (), schemas))
    for name in sorted(schemas):
        fields = schemas[name].get("properties")
        if fields:
            what = _first(schemas[name].get("description", ""))
            parts.append(f"### {name}\n\n{what}\n")
            parts.append(_table(fields, schemas[name].get("required", ()), schemas))
    return "\n".join(parts).rstrip("\n") + "\n"


def _operation(method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    parts = [f"### {method.upper()} {path}\n\n{operation['summary']}. {_flat(operation.get('description', ''))}\n"]
    if scope := operation.get("x-clipmill-scope"):
        parts.append(f"Scope: `{scope}`.\n")
    if parameters := operation.get("parameters"):
        fields = {one["name"]: {**one["schema"], "where": one["in"]} for one in parameters}
        required = [one["name"] for one in parameters if one.get("required")]
        parts.append("| parameter | in | what it is |\n|---|---|---|")
        parts += [
            f"| `{name}`{_star(name, required)} | {one['where']} | {_cell(one, schemas)} |"
            for name, one in fields.items()
        ]
        parts.append("")
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        kinds = [f"`{kind}`{_of(content['schema'], schemas)}" for kind, content in body.items()]
        parts.append(f"Body: {', '.join(kinds)}.\n")
        form = body.get("multipart/form-data", {}).get("schema", {}).get("properties")
        if form and "application/json" not in body:
            parts.append(_table(form, body["multipart/form-data"]["schema"].get("required", ()), schemas))
        elif form and "manifest" not in form:
            parts.append(_table(body["application/json"]["schema"]["properties"], (), schemas))
    parts.append(f"```sh\n{_curl(method, path, operation)}\n```\n")
    parts.append("| answer | what it is |\n|---|---|")
    for status, answer in operation["responses"].items():
        if status != "default":
            parts.append(f"| {status} | {_answer(answer, schemas)} |")
    return "\n".join(parts) + "\n" + _example(operation)


def _example(operation: Mapping[str, Any]) -> str:
    for status, answer in operation["responses"].items():
        found = answer.get("content", {}).get("application/json", {}).get("example")
        # Of a list the object that it lists is shown, where that is answered.
        if status.startswith("2") and found is not None and found.get("object") != "list":
            return f"\n```json\n{json.dumps(found, ensure_ascii=False)}\n```\n"
    return ""


def _answer(answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    kinds = [
        f"`{kind}`{_of(content.get('schema', {}), schemas)}" for kind, content in answer.get("content", {}).items()
    ]
    return f"{answer['description']} {', '.join(kinds)}".strip()


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """Requests by hand, one for each way to send the body."""
    query = []
    for parameter in operation.get("parameters", ()):
        example = parameter.get("example")
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", str(example))
        elif parameter["in"] == "query" and example is not None:
            query.append(f"{parameter['name']}={example}")
    url = f"$U{path}" + (f"?{'&'.join(query)}" if query else "")
    success = next(iter(operation["responses"].values())).get("content", {})
    first = next(iter(success), "")
    binary = "format=zip" in url or not ("json" in first or first.startswith("text/"))
    ends = ["--output", "answer"] if binary else []
    begins = ["curl", *([] if method == "get" else ["-X", method.upper()])]
    bodies = operation.get("requestBody", {}).get("content", {})
    sent = [words for kind, content in bodies.items() if (words := _body_words(kind, content))] or [[]]
    lines = []
    for words in sent:
        whole = ["curl"] if "-T" in words else begins
        lines.append(" ".join(_quoted(word) for word in (*whole, *words, url, *ends)))
    return "\n".join(lines)


def _body_words(kind: str, content: Mapping[str, Any]) -> list[str]:
    several = list(content.get("examples", {}).values())
    example = several[0]["value"] if several else content.get("example")
    if kind == "multipart/form-data":
        return [word for name, value in (example or {}).items() for word in ("-F", f"{name}={value}")]
    if kind == "application/octet-stream":
        return ["-T", "bag.png"]
    if kind == "text/csv":
        return ["-H", f"Content-Type: {kind}", "--data-binary", "@catalog.csv"]
    if kind == "application/json":
        return ["-H", f"Content-Type: {kind}", "-d", json.dumps(example, ensure_ascii=False)]
    return []


def _quoted(word: str) -> str:
    return f'"{word}"' if word.startswith("$U") else shlex.quote(word)


def _of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    names = [one["$ref"].rpartition("/")[2] for one in (schema, *schema.get("anyOf", ())) if "$ref" in one]
    return f" ({' or '.join(_linked(name, schemas) for name in names)})" if names else ""


def _linked(name: str, schemas: Mapping[str, Any]) -> str:
    if not schemas.get(name, {}).get("properties"):
        return f"`{name}`"
    return f"[{name}](#{name.lower()})"


def _table(fields: Mapping[str, Any], required: Collection[str], schemas: Mapping[str, Any]) -> str:
    rows = ["| field | what it is |", "|---|---|"]
    for name, schema in fields.items():
        rows.append(f"| `{name}`{_star(name, required)} | {_cell(schema, schemas)} |")
    return "\n".join(rows) + "\n"


def _star(name: str, required: Collection[str]) -> str:
    return "\\*" if name in required else ""


def _cell(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    words = " ".join(
        part for part in (_type(schema, schemas), _bounds(schema), _flat(schema.get("description", ""))) if part
    )
    return words.replace("|", "\\|").replace("\n", " ") or "anything"


def _type(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        values = schemas.get(name, {}).get("enum")
        return f"one of {', '.join(f'`{one}`' for one in values)}." if values else f"{_linked(name, schemas)}."
    if "enum" in schema:
        return f"one of {', '.join(f'`{one}`' for one in schema['enum'])}."
    if "const" in schema:
        return ""
    if "anyOf" in schema:
        found = [one for one in schema["anyOf"] if one.get("type") != "null"]
        null = " or null" if len(found) < len(schema["anyOf"]) else ""
        inner = " or ".join(f"{_type(one, schemas).rstrip('.')}{_suffix(one)}" for one in found)
        return f"{inner}{null}." if inner else ""
    kind = schema.get("type", "")
    if kind == "array":
        inner = _type(schema.get("items", {}), schemas).rstrip(".")
        return f"list of {inner}." if inner else "list."
    if schema.get("format") == "binary":
        return "file."
    if isinstance(kind, list):
        kind = " or ".join(kind)
    return f"{kind}." if kind else ""


def _suffix(schema: Mapping[str, Any]) -> str:
    found = _bounds(schema).rstrip(".")
    return f" ({found})" if found else ""


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< "}
    signs |= {"maxLength": "characters ≤ ", "maxItems": "items ≤ "}
    found = [f"{sign}{schema[name]}" for name, sign in signs.items() if name in schema]
    if "default" in schema and schema["default"] not in (None, "", {}):
        value = schema["default"]
        found.append(f"default {json.dumps(value) if not isinstance(value, str) else value}")
    return f"{', '.join(found)}." if found else ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _first(text: str) -> str:
    return _flat(text.split("\n\n")[0])
