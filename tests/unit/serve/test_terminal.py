"""Text that others wrote, on a terminal: shown as it is, never obeyed."""

from __future__ import annotations

import io
import json
import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from pipeline.problems import Problem
from serve.cli.common import Exit, console
from serve.cli.main import app
from serve.cli.show import batches_table, problems_table, refusals_table
from serve.terminal import PlainConsole, json_text, visible

#: An id that ends a tag which was never begun, retitles the terminal, and turns what follows around.
HOSTILE = "[/x][bold]SKU\x1b]0;pwned\x07\u202egnp.exe\x9b2J"
texts = st.text(max_size=30) | st.text("[/]boldx \x1b\x9b\u202e\u2066\x07\r\b\n", max_size=30)


def printed(*things: object, width: int = 200) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=width, force_terminal=True, color_system=None).print(*things, soft_wrap=True)
    return out.getvalue()


def obeyed(text: str) -> list[str]:
    """Characters that a terminal would act on, by Unicode's categories rather than a list of ours."""
    return [
        c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\xad"
    ]


@given(texts)
@example(HOSTILE)
def test_no_text_is_obeyed_or_lost(text):
    shown = visible(text)
    assert len(shown) == len(text)
    bidi = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert not bidi & set(shown)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert [c for c in text if c.isalnum()] == [c for c in shown if c.isalnum()]


def test_markup_is_text_wherever_it_comes_from():
    table = Table("id")
    table.add_row(HOSTILE)
    for thing in (HOSTILE, Text(HOSTILE), table):
        out = printed(thing)
        assert "[/x][bold]SKU" in out
        assert not obeyed(out)


@given(st.recursive(st.none() | st.integers() | texts, lambda x: st.lists(x) | st.dictionaries(texts, x), max_leaves=5))
@example({HOSTILE: HOSTILE, "half": "\ud800"})
def test_json_says_the_same_and_nothing_is_obeyed(value):
    for indent in (None, 2):
        text = json_text(value, indent=indent)
        assert json.loads(text) == value
        text.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_the_tables_of_a_batch_show_an_id_as_it_is():
    job = {
        "row": {},
        "number": 1,
        "name": HOSTILE,
        "reason": HOSTILE,
        "problems": [{"field": HOSTILE, "message": HOSTILE, "remedy": HOSTILE}],
    }
    counts = dict.fromkeys(("total", "completed", "running", "queued", "held", "failed", "cancelled"), 0)
    batch = {"id": "batch_1", "name": HOSTILE, "status": "running", "counts": counts, "attempts": 0, "created_at": 0}
    problem = Problem(field="id", message=HOSTILE, remedy=HOSTILE)
    for table in (problems_table([job]), refusals_table({HOSTILE: problem}), batches_table([batch])):
        out = printed(table)
        assert "[/x]" in out
        assert not obeyed(out)


def test_the_commands_use_it(tmp_path):
    assert isinstance(console, PlainConsole)
    name = str(tmp_path / "[/x]\x1b[31mred.csv")
    found = CliRunner().invoke(app, ["render", name, "--home", str(tmp_path / "home")])
    assert found.exit_code == Exit.USAGE
    assert "[/x]␛[31mred.csv" in found.stderr.replace("\n", "")
    assert "Traceback" not in found.output
