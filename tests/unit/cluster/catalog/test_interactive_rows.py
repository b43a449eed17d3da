"""Rows whose clips somebody waits for: how they are asked for, and that nothing else of them is different."""

from __future__ import annotations

import pytest

from cluster.catalog.defaults import Defaults, RowDefaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import BadRow, Row, read_manifest
from cluster.jobs.model import INTERACTIVE_PRIORITY

STILL = "ab" * 32


def drafted(defaults: Defaults | None = None, **fields):
    row = Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", **fields})
    incoming = IncomingRow(position=1, name="a", row=row, still=STILL, number=1)
    return draft(incoming, defaults or Defaults(model="i2vgen-xl"), lambda _: (640, 640))


@pytest.mark.parametrize(("cell", "read"), [("yes", True), ("TRUE", True), ("0", False), ("", None)])
def test_the_column(tmp_path, cell, read):
    (tmp_path / "c.csv").write_text(f"id,image,prompt,Interactive\na,a.png,pan,{cell}\n")
    (row,) = read_manifest(tmp_path / "c.csv").rows
    assert row.interactive is read


def test_a_column_that_says_neither_yes_nor_no_is_a_problem(tmp_path):
    (tmp_path / "c.csv").write_text("id,image,prompt,interactive\na,a.png,pan,soon\n")
    (row,) = read_manifest(tmp_path / "c.csv").rows
    assert isinstance(row, BadRow)
    assert [problem.field for problem in row.problems] == ["interactive"]


def test_it_is_the_same_clip_whoever_waits_for_it():
    waits, other = drafted(interactive=True, priority=3), drafted(priority=3)
    assert (waits.content_key, waits.spec, waits.row, waits.needs_bytes) == (
        other.content_key, other.spec, other.row, other.needs_bytes,
    )  # fmt: skip
    assert (waits.priority, other.priority) == (INTERACTIVE_PRIORITY + 3, 3)


def test_a_row_s_own_word_goes_before_its_batch_s():
    batch = Defaults(model="i2vgen-xl", interactive=True)
    assert drafted(batch).priority == INTERACTIVE_PRIORITY
    assert drafted(batch, interactive=False).priority == 0


def test_versions_that_do_not_know_it_are_not_told_of_it_for_nothing():
    assert "interactive" not in RowDefaults().model_dump(mode="json")
    assert "interactive" not in Row(number=1, id="a", image="a.png").model_dump(mode="json")
    assert RowDefaults(interactive=True).model_dump()["interactive"]
