"""`strict`: one rule for whatever a clip would lack of what its row asks for."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.jobs.model import Draft
from cluster.jobs.strict import refusals
from pipeline.clips.clip import ClipSpec
from pipeline.notes import Note, notes_from

STILL = "ab" * 32


def handed_in(cut: dict[str, Any] | None = None, *, strict: bool, notes: tuple[Note, ...] = (), **row: Any) -> Draft:
    values = {"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", "model": "i2vgen-xl-tiny", "notes": notes}
    incoming = IncomingRow(position=1, name="a", row=Row(**values | row), still=STILL, number=1)

    def cut_texts(_spec: ClipSpec) -> dict[str, Any]:
        return cut or {}

    defaults = Defaults(model="i2vgen-xl-tiny", strict=strict)
    return draft(incoming, defaults, lambda _sha256: (512, 512), (), cut_texts)


CUT = {"prompt_tokens_cut": 12, "prompt_cut": "and a red door"}


def test_a_prompt_that_will_be_cut_is_noted_and_refused_where_strict() -> None:
    lenient, strict = handed_in(CUT, strict=False), handed_in(CUT, strict=True)
    (note,) = notes_from(lenient.row["noted"])
    assert (lenient.problems, note.code) == ((), "prompt_cut")
    (problem,) = strict.problems
    assert (problem.field, problem.message) == ("prompt", note.message)
    assert "'and a red door'" in problem.message
    assert strict.spec is None


@pytest.mark.parametrize(
    ("note", "field"),
    [
        (Note(code="negative_prompt_cut", message="cut"), "negative_prompt"),
        (Note(code="column_unknown", message="column not known: resolution"), "column"),
        (Note(code="size_adjusted", message="size 1x1 -> 2x2"), "size"),
        # Whoever makes one tomorrow need not think of this.
        (Note(code="something_adjusted", message="1 -> 2"), "something"),
    ],
)
def test_whatever_is_adjusted_dropped_or_cut_is_refused_alike(note: Note, field: str) -> None:
    assert handed_in(strict=False, notes=(note,)).problems == ()
    (problem,) = handed_in(strict=True, notes=(note,)).problems
    assert (problem.field, problem.message) == (field, note.message)


@pytest.mark.parametrize(
    "code", ["unused", "prompt_unused", "seconds_rounded", "size_rounded", "few_steps", "enlarged", "still_blurred"]
)
def test_what_is_rounded_judged_or_of_no_use_is_not(code: str) -> None:
    assert handed_in(strict=True, notes=(Note(code=code, message="m"),)).problems == ()
    assert refusals([Note(code=code, message="m")]) == ()


def test_seconds_of_no_whole_frames_are_rounded_and_those_of_no_clip_refused() -> None:
    # 2.51 s at 8 a second are 20 frames; there are no 30 s.
    assert handed_in(strict=True, seconds=2.51).problems == ()
    (problem,) = handed_in(strict=True, seconds=30.0).problems
    assert problem.field == "seconds"


def test_renderers_hear_that_a_row_is_strict() -> None:
    assert handed_in(strict=True).row["strict"] is True
    assert "strict" not in handed_in(strict=False).row
