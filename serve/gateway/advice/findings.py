"""Findings on prompts and rows: the body of `POST /v1/lint`, and what it and `--json` of `clipmill lint` answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from cluster.catalog.advice.row_advice import UNKNOWN_STILL, RowAdvice, advise
from cluster.catalog.cells import JsonNumbers
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import CutTexts
from cluster.catalog.manifest import Row
from cluster.forecast.card_notes import card_notes
from pipeline.clips.clip import ClipSpec
from pipeline.families import family_named
from pipeline.lint.readers import reader_of
from pipeline.notes import Note, counted
from serve.gateway.forecasting import ForecastDefaults

#: Rows or prompts of one request: more are judged by another one.
MAX_LINTED = 1000
#: Characters of one prompt in a request.
MAX_CHARACTERS = 2000
#: Characters of all prompts in a request together.
MAX_ALL_CHARACTERS = 200_000


class LintedRow(JsonNumbers):
    """A row to judge; its still need not be handed in."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    row: Row
    """A row as in `POST /v1/batches`."""
    still_size: tuple[int, int] | None = None
    """(width, height) of its upright still in pixels, from 1 to 100,000; null: not known, and not judged."""

    @model_validator(mode="after")
    def _of_a_picture(self) -> Self:
        if self.still_size is not None and not all(1 <= side <= 100_000 for side in self.still_size):
            raise ValueError("still_size: sides of 1 to 100,000 pixels")
        return self


class LintBody(JsonNumbers):
    """Body of `POST /v1/lint`: prompts alone, or whole rows."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    prompts: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] = Field(default_factory=list, max_length=MAX_LINTED)
    """Prompts to judge, in place of `rows`."""
    rows: list[LintedRow] = Field(default_factory=list, max_length=MAX_LINTED)
    """Rows to judge, with their parameters."""
    defaults: ForecastDefaults = ForecastDefaults()
    """What rows get that say nothing themselves; `model` is the one that prompts are judged for."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.prompts) == bool(self.rows):
            raise ValueError("give prompts or rows, one of both")
        texts = [*self.prompts, *(row.row.prompt or "" for row in self.rows)]
        if sum(map(len, texts)) > MAX_ALL_CHARACTERS:
            raise ValueError(f"the prompts have more than {MAX_ALL_CHARACTERS:,} characters in all")
        return self


def lint_answer(
    body: LintBody, defaults: Defaults, largest_bytes: int, cut_texts: CutTexts | None = None
) -> dict[str, Any]:
    """What `POST /v1/lint` answers; `largest_bytes`: usable on the farm's largest card, 0 where it has none."""
    rows = [(one.row, one.still_size) for one in body.rows]
    rows += [
        (Row(number=number, id=f"prompt-{number}", image="", prompt=text), None)
        for number, text in enumerate(body.prompts, start=1)
    ]
    of_clip = notes_of_cards(largest_bytes) if body.rows else None
    found = [
        advise(row, defaults, still_size=size or UNKNOWN_STILL, cut_texts=cut_texts, of_clip=of_clip)
        for row, size in rows
    ]
    return lint_view(found, defaults.model)


def notes_of_cards(largest_bytes: int) -> Callable[[ClipSpec], Sequence[Note]]:
    """Notes on whether a card of so many usable bytes holds a clip."""
    return lambda spec: card_notes(spec, largest_bytes)


def lint_view(found: Sequence[RowAdvice], model: str) -> dict[str, Any]:
    """Findings as the API and `--json` show them; `model` is the one of rows that name none."""
    return {
        "object": "lint",
        "default_model": model,
        "prompts_judged": reader_of(family_named(model)) is not None,
        "rows": [
            {
                "id": one.id,
                "number": one.number,
                "line": one.line,
                "prompt": one.prompt,
                "negative_prompt": one.negative_prompt,
                "warns": one.warns,
                "findings": [finding_view(note) for note in one.notes],
                "problems": [problem.model_dump() for problem in one.problems],
                "fixed": dict(one.fixed),
            }
            for one in found
        ],
        "rows_warned": sum(one.warns for one in found),
        "notes": counted((one.id, one.notes) for one in found),
    }


def finding_view(note: Note) -> dict[str, Any]:
    """A note with all that a page needs to show it and to apply it."""
    return {
        "code": note.code,
        "severity": note.severity.value,
        "field": note.field or None,
        "message": note.message,
        "fix": dict(note.fix) or None,
    }
