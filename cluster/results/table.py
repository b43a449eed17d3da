"""The rows of a batch as a table for spreadsheets and programs: state, notes and what the clip is."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from cluster.catalog.names import file_stem
from cluster.results.contact_sheet import ResultRow
from cluster.results.deliveries import DeliveredFile

#: What a spreadsheet takes for the begin of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
#: A row that says nothing, for the names of its columns.
_SILENT = ResultRow(id="", number=0, prompt="", state="queued")


def table_of(rows: Sequence[ResultRow]) -> bytes:
    """The rows as CSV, in UTF-8 with the mark by which spreadsheets know it; no text can be taken for a formula."""
    return b"".join(table_lines((row, {}) for row in rows))


def table_lines(rows: Iterable[tuple[ResultRow, Mapping[str, object]]], more: Sequence[str] = ()) -> Iterator[bytes]:
    """The lines of `table_of`, one by one: first the columns' names, also where there is no row.

    `more`: further columns behind a row's own. What is beside a row is what it has in them, or instead of its own.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [*_cells(_SILENT), *more]
    writer.writerow(columns)
    yield codecs.BOM_UTF8 + text.getvalue().encode()
    for row, cells in rows:
        text.seek(0)
        text.truncate()
        has = {**_cells(row), **cells}
        writer.writerow([_safe(has[column]) for column in columns])
        yield text.getvalue().encode("utf-8", "replace")


def deliveries_table_of(
    rows: Iterable[tuple[ResultRow, Mapping[str, DeliveredFile]]],
    name_of: Callable[[ResultRow, str], str] | None = None,
) -> bytes:
    """What became of each row for each profile as CSV, one line for each, as `table_of` writes rows.

    `name_of` gives a row's file for a profile its name below OUT; None: `<profile>/<id>.mp4`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        ["id", "profile", "state", "file", "broken", "problem", "remedy", "frame", "length", "bytes", "key"]
    )
    for row, delivered in rows:
        for name, one in delivered.items():
            facts, problem = one.verdict.facts, one.verdict.problem
            file = name_of(row, name) if name_of else f"{name}/{file_stem(row.id)}.mp4"
            cells: list[object] = [
                row.id,
                name,
                "delivered" if one.delivered else "refused",
                file if one.delivered else "",
                " ".join(one.verdict.broken),
                problem.message if problem else "",
                problem.remedy if problem else "",
                *(facts.get(fact, "") for fact in ("frame", "length", "bytes")),
                one.key,
            ]
            writer.writerow([_safe(cell) for cell in cells])
    return codecs.BOM_UTF8 + text.getvalue().encode("utf-8", "replace")


def _cells(row: ResultRow) -> dict[str, object]:
    problem = row.problem
    return {
        "id": row.id,
        "row": row.number,
        "state": row.state,
        "file": f"{file_stem(row.id)}.mp4" if row.state == "completed" and row.video_key else "",
        "worth_a_look": "; ".join(dict.fromkeys(note.title for note in row.noted if note.worth_a_look)),
        "notes": "; ".join(note.message for note in row.noted),
        "note_codes": " ".join(dict.fromkeys(note.code for note in row.noted)),
        "fidelity": "" if row.fidelity is None else row.fidelity.score,
        "field": problem.field if problem else "",
        "problem": problem.message if problem else "",
        "remedy": problem.remedy if problem else "",
        "image": row.image,
        "prompt": row.prompt,
        "model": row.model,
        "resolution_class": row.resolution_class,
        "width": row.width or "",
        "height": row.height or "",
        "frames": row.frames or "",
        "fps": row.fps or "",
        "seconds": round(row.seconds, 3) if row.seconds else "",
        "seed": "" if row.seed is None else row.seed,
        "lossy": "; ".join(row.lossy),
        "shared_with": row.shared_with or "",
    }


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
