"""One prompt for all rows, with a row's own columns in it: `{name} turning around`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from cluster.catalog.manifest import BadRow, Manifest, Row
from pipeline.problems import Problem

_COLUMN = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,100})\}")


def fill_prompts(manifest: Manifest, prompt: str) -> Manifest:
    """The manifest, in rows whose prompt is `prompt` each `{column}` replaced by that column of the row.

    `{{` and `}}` are braces. A row that lacks a column, or has nothing in it, becomes a `BadRow` that says which: a
    prompt with a hole in it would be rendered as it stands.
    """
    if not any(found[1] for found in _COLUMN.finditer(prompt)):
        return manifest
    rows = [_filled(row, prompt) if isinstance(row, Row) and row.prompt == prompt else row for row in manifest.rows]
    return replace(manifest, rows=rows)


def _filled(row: Row, prompt: str) -> Row | BadRow:
    known = columns_of(row)
    missing = dict.fromkeys(
        name for found in _COLUMN.finditer(prompt) if (name := found[1]) and not known.get(name.strip().casefold())
    )
    if missing:
        names = ", ".join(f"{{{name}}}" for name in missing)
        there = ", ".join(f"{{{name}}}" for name in list(known)[:8])
        problem = Problem(
            field="prompt",
            message=f"the prompt for all names {names}, which this row does not have",
            remedy=f"Fill the column in, give the row a prompt of its own, or use one of {there}.",
        )
        return BadRow(number=row.number, line=row.line, id=row.id, problems=(problem,))
    text = _COLUMN.sub(lambda found: known[found[1].strip().casefold()] if found[1] else found[0][0], prompt)
    return row.model_copy(update={"prompt": text})


def columns_of(row: Row) -> Mapping[str, str]:
    """What a prompt can name of a row, by names in small letters: its columns, `id`, and `name` where none is so."""
    found = {"id": row.id, "name": row.id}
    for name, value in row.extra.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
            found[name.strip().casefold()] = " ".join(str(value).split())
    return found
