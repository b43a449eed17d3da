"""The page that lists the API's routes: of this gateway alone, without scripts, for machines without a network too."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from fastapi import FastAPI

#: Where the page is.
DOCS = "/docs"
#: From a picture to a clip by hand, `$U` being the gateway's address; docs/http.md has it too, and explains it.
WALK = """\
sha=$(curl -sfT bag.png $U/v1/stills | jq -r .sha256)
batch=$(curl -sf $U/v1/batches -H 'Idempotency-Key: bags-1' -H 'Content-Type: application/json' -d '{
  "name": "bags", "defaults": {"resolution_class": "256p"},
  "rows": [{"still": "'$sha'", "name": "BAG-1", "prompt": "pan left"}]}' | jq -r .id)
curl -sf $U/v1/batches/$batch/jobs | jq '.data[] | {name, state, notes}'
curl -sfN $U/v1/batches/$batch/events
job=$(curl -sf "$U/v1/batches/$batch/jobs?state=completed" | jq -r '.data[0].id')
curl -sf $U/v1/videos/$job/content -o BAG-1.mp4
"""
_METHODS = ("get", "put", "post", "patch", "delete")


def api_page(api: FastAPI) -> str:
    """All routes of `api` as one page of HTML, from its OpenAPI document, which it links to.

    FastAPI's own page takes half a megabyte of scripts from a CDN: whoever holds that could ask the farm anything in
    the name of whoever opens the page.
    """
    document = api.openapi()
    rows = []
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                rows.append(_row(method, path, operations[method]))
    body = "\n".join(rows)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>clipmill API</title>
<h1>clipmill API</h1>
<p>The whole of it, with every field: <a href="{escape(api.openapi_url or "")}">OpenAPI</a>.</p>
<h2>From a picture to a clip</h2>
<p>In a shell, with <code>U</code> set to this address, such as <code>U=http://127.0.0.1:8500</code>. One clip of one
picture is also one request: <code>POST /v1/videos</code>. Where the farm asks for a key, every request takes
<code>-H "Authorization: Bearer $K"</code> more.</p>
<pre>{escape(WALK)}</pre>
<h2>Routes</h2>
<table border="1" cellpadding="6">
<tr><th>method</th><th>path</th><th>what it does</th><th>takes</th></tr>
{body}
</table>
<h2>Bodies</h2>
{_bodies(document)}
</html>
"""


def _row(method: str, path: str, operation: dict[str, object]) -> str:
    parameters = operation.get("parameters") or []
    assert isinstance(parameters, list)
    takes = [f"{one['name']} ({one['in']})" for one in parameters]
    body = operation.get("requestBody") or {}
    assert isinstance(body, dict)
    for kind, content in body.get("content", {}).items():
        takes.append(f"a body: {_name_of(content['schema']) or kind}")
    what = str(operation.get("description", "")).split("\n\n")[0].replace("\n", " ")
    cells = (method.upper(), path, what, ", ".join(takes))
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _text(words: str) -> str:
    """Words as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(words))


def _name_of(schema: dict[str, Any]) -> str:
    """The class that a schema refers to, alone or as what may be left out; empty for another schema."""
    found = [one["$ref"] for one in (schema, *schema.get("anyOf", ())) if "$ref" in one]
    return str(found[0]).rpartition("/")[2] if found else ""


def _bodies(document: dict[str, Any]) -> str:
    """The fields of every class of bodies, with what each says."""
    parts = []
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties", {})
        if not fields or name in ("HTTPValidationError", "ValidationError"):
            continue
        needed = set(schema.get("required", ()))
        rows = "".join(
            f"<tr><td><code>{escape(field)}</code>{' (required)' if field in needed else ''}</td>"
            f"<td>{_text(str(one.get('description', '')))}</td></tr>"
            for field, one in fields.items()
        )
        what = _text(str(schema.get("description", "")).split("\n\n")[0])
        parts.append(f'<h3>{escape(name)}</h3><p>{what}</p><table border="1" cellpadding="6">{rows}</table>')
    return "\n".join(parts)
