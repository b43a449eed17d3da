"""Findings on the prompts of rows as they are handed in, each kind once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from pipeline.families import FAMILIES
from pipeline.lint.lint import lint_prompt
from pipeline.notes import Note, counted


class PromptAdvice:
    """Findings on the prompts of rows that are looked at one by one."""

    def __init__(self, model: str) -> None:
        """`model`: the one of rows that name none."""
        self._model = model
        self._found: list[tuple[str, tuple[Note, ...]]] = []

    def add(self, row: Row) -> None:
        """Judge a row's prompt."""
        family = FAMILIES.get(row.model or self._model)
        if family is None:
            return
        if notes := lint_prompt(family, (row.prompt or "").strip(), (row.negative_prompt or "").strip()):
            self._found.append((row.id, notes))

    def passing(self, rows: Iterable[IncomingRow]) -> Iterator[IncomingRow]:
        """The rows as they come, each judged when it is asked for."""
        for row in rows:
            if row.row is not None and not row.problems:
                self.add(row.row)
            yield row

    def notes(self) -> list[str]:
        """Each kind of finding once, with how many rows have it and which."""
        return counted(self._found)
