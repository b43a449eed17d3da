"""What a strict row is refused for: one rule, for catalogs, the API and renderers."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.notes import ADJUSTED, Note
from pipeline.problems import Problem

_FIELDS = {
    "prompt_cut": "prompt",
    "prompt_column_empty": "prompt",
    "negative_prompt_cut": "negative_prompt",
    "column_unknown": "column",
}


def refusals(notes: Iterable[Note]) -> tuple[Problem, ...]:
    """The problems of a strict row of which these are noted; () where it gets all that it asks for."""
    return tuple(
        Problem(
            field=note.field or _FIELDS.get(note.code, note.code.removesuffix(ADJUSTED)),
            message=note.message,
            remedy="Correct it, or hand it in without strict: it is then rendered so.",
        )
        for note in notes
        if note.reduces
    )
