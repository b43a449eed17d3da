"""A copy of a catalog in which some cells are others; the catalog itself is never written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cluster.catalog.tables import read_records
from pipeline.notes import NewCell
from pipeline.problems import BadInputError


def copy_path(catalog: Path) -> Path:
    """Where the copy of a catalog goes: beside it, so that the paths of its pictures still hold."""
    if catalog.is_dir():
        return catalog / "catalog.fixed.csv"
    return catalog.with_name(f"{catalog.stem}.fixed{catalog.suffix}")


def write_copy(catalog: Path, fixes: Mapping[int, Mapping[str, NewCell]]) -> Path:
    """Write the catalog with new cells by row number (from 1) and column; returns where.

    Columns are called as clipmill calls them. Raises `ManifestError` where the catalog cannot be read, `BadInputError`
    where the copy cannot be written or is there.
    """
    records = read_records(catalog)
    rows = [dict(record.values) | dict(fixes.get(record.number, {})) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path = copy_path(catalog)
    data = _encoded(path.suffix.lower(), columns, rows)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise BadInputError("--fix", f"{path} is there", "Move it away: nothing is written over.") from error
    except OSError as error:
        raise BadInputError(
            "--fix", f"{path}: {error.strerror or error}", "Choose a folder that can be written."
        ) from error
    return path


def _encoded(suffix: str, columns: list[str], rows: list[dict[str, Any]]) -> bytes:
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
    if suffix == ".parquet":
        sink = io.BytesIO()
        table = pyarrow.Table.from_pylist([{name: _plain(row.get(name)) for name in columns} for row in rows])
        pyarrow.parquet.write_table(table, sink)
        return sink.getvalue()
    text = io.StringIO(newline="")
    delimiter = "\t" if suffix in (".tsv", ".tab") else ","
    writer = csv.DictWriter(text, columns, restval="", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    """A cell as one column of a table can hold it beside others: texts and numbers become text."""
    return None if value is None else str(value)
