"""What is noted of rows before they are handed in, by kind and by row, and the changes that one click applies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from cluster.catalog.manifest import BadRow, Row, RowRead
from pipeline.notes import NewCell, Note, Severity
from pipeline.problems import BadInputError, Problem

#: New cells by column, by the id of the row.
Fixes = Mapping[str, Mapping[str, NewCell]]
#: Columns that a fix may change: what a clip is made with, and nothing that tells rows apart.
FIXABLE = frozenset(Row.model_fields) - {
    *("number", "line", "id", "image", "candidate", "candidates", "prompts", "prompt_number"),
    *("extra", "notes", "after", "priority"),
}


@dataclass(frozen=True, kw_only=True)
class RowFinding:
    """One note on one row."""

    id: str
    message: str
    #: The new cells in words, such as `guidance: 9`; empty where there is no fix.
    fix: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FindingKind:
    """All notes of one code."""

    code: str
    title: str
    is_warning: bool
    rows: tuple[RowFinding, ...]

    @property
    def fixable(self) -> int:
        """How many of the rows have a fix."""
        return sum(bool(row.fix) for row in self.rows)


def kinds_of(notes: Iterable[tuple[str, Sequence[Note]]]) -> list[FindingKind]:
    """The notes of rows, (id, notes), by kind: warnings first, then what can be fixed, then those of most rows."""
    found: dict[str, list[RowFinding]] = {}
    example: dict[str, Note] = {}
    for name, of_row in notes:
        for note in of_row:
            fix = tuple(f"{column}: {_cell(value)}" for column, value in note.fix.items() if column in FIXABLE)
            found.setdefault(note.code, []).append(RowFinding(id=name, message=note.message, fix=fix))
            example.setdefault(note.code, note)
    kinds = [
        FindingKind(
            code=code,
            title=example[code].title,
            is_warning=example[code].severity is Severity.WARNING,
            rows=tuple(rows),
        )
        for code, rows in found.items()
    ]
    return sorted(kinds, key=lambda kind: (not kind.is_warning, not kind.fixable, -len(kind.rows)))


def _cell(value: NewCell) -> str:
    return "(empty)" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def fixes_from(data: bytes | str) -> dict[str, dict[str, NewCell]]:
    """The fixes that a page sends. Raises `BadInputError` on `fixes` where they are in another form."""
    try:
        told = json.loads(data or "{}")
        return {str(name): {str(column): cell for column, cell in dict(cells).items()} for name, cells in told.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInputError("fixes", "it is no object of rows", "Load the page again.") from error


def with_fixes(rows: Iterable[RowRead], fixes: Fixes) -> list[RowRead]:
    """The rows with the new cells of those that `fixes` names; a cell that no row can have is that row's problem."""
    return [_fixed(row, fixes[row.id]) if isinstance(row, Row) and row.id in fixes else row for row in rows]


def _fixed(row: Row, cells: Mapping[str, NewCell]) -> RowRead:
    strange = sorted(cells.keys() - FIXABLE)
    try:
        if strange:
            raise BadInputError(
                strange[0][:60], "no fix changes this column", "Correct the table, and choose it again."
            )
        # Of what was noted when the row was read nothing stays true of a cell that is another now.
        kept = [note for note in row.notes if note.field not in cells]
        return Row.model_validate(row.model_dump() | {"notes": kept} | dict(cells))
    except BadInputError as error:
        problem = error.problem
    except ValidationError as error:
        first = error.errors()[0]
        column = str(first["loc"][0]) if first["loc"] else "row"
        problem = Problem(field=column, message=str(first["msg"])[:200], remedy="Undo the fixes.")
    return BadRow(number=row.number, line=row.line, id=row.id, problems=(problem,))
