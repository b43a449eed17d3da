"""`clipmill lint`: findings by row, exit codes, copies with the rewrites, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from serve.cli.main import app

ROWS = """id,image,prompt,steps
A,a.png,"camera panning left, soft light",
B,b.png,make it dynamic,5
C,c.png,pan right,
"""


def catalog(folder: Path, text: str = ROWS) -> Path:
    path = folder / "c.csv"
    path.write_text(text)
    return path


def run(folder: Path, *words: str) -> Any:
    env = {"COLUMNS": "300", "CLIPMILL_HOME": str(folder / "home")}
    return CliRunner(env=env).invoke(app, ["lint", *words])


def test_findings_are_told_by_row_with_the_rewrite_and_no_picture_is_needed(tmp_path: Path) -> None:
    found = run(tmp_path, str(catalog(tmp_path)))
    assert found.exit_code == 1
    assert "row 2 (line 3)  B  'make it dynamic'" in found.output
    assert "warning prompt_vague: " in found.output
    assert "→ prompt: Camera slowly zooming in, soft light" in found.output
    assert "→ steps: 30" in found.output
    assert "row 1" not in found.output
    assert not (tmp_path / "home").exists()


def test_json_has_what_a_page_needs_to_apply_a_rewrite(tmp_path: Path) -> None:
    found = run(tmp_path, str(catalog(tmp_path)), "--json", "--model", "i2vgen-xl")
    told = json.loads(found.stdout)
    assert (told["object"], told["default_model"], told["rows_warned"]) == ("lint", "i2vgen-xl", 1)
    second = told["rows"][1]
    assert [(one["code"], one["severity"], one["field"], one["fix"]) for one in second["findings"]] == [
        ("prompt_vague", "warning", "prompt", {"prompt": "Camera slowly zooming in, soft light"}),
        ("few_steps", "warning", "steps", {"steps": 30}),
    ]
    assert second["fixed"] == {"steps": 30, "prompt": "Camera slowly zooming in, soft light"}


def test_fix_writes_a_copy_in_which_nothing_is_found(tmp_path: Path) -> None:
    path = catalog(tmp_path)
    found = run(tmp_path, str(path), "--fix")
    assert found.exit_code == 0, found.output
    assert path.read_text() == ROWS
    again = run(tmp_path, str(tmp_path / "c.fixed.csv"))
    assert again.exit_code == 0, again.output
    assert "3 of 3 rows" in again.output
    assert run(tmp_path, str(path), "--fix").exit_code == 2


def test_a_prompt_alone_is_judged_and_its_rewrite_is_all_that_is_printed(tmp_path: Path) -> None:
    assert run(tmp_path, "--prompt", "camera panning left").exit_code == 0
    assert run(tmp_path, "--prompt", "make it alive").exit_code == 1
    fixed = run(tmp_path, "--prompt", "Zoom in and out simultaneously", "--fix")
    assert (fixed.exit_code, fixed.stdout) == (0, "Zoom in\n")
    left = run(tmp_path, "--prompt", "镜头缓慢向左平移", "--fix")
    assert (left.exit_code, left.stdout) == (1, "镜头缓慢向左平移\n")
    for words in ((), ("--prompt", "x", "--model", "none"), ("--prompt", "x", "--template", "t")):
        assert run(tmp_path, *words).exit_code == 2


def test_a_card_that_is_named_is_counted_with(tmp_path: Path) -> None:
    path = catalog(tmp_path, "id,image,prompt,resolution_class,frames\nA,a.png,pan left,1024p,32\n")
    small = json.loads(run(tmp_path, str(path), "--json", "--vram", "8").stdout)
    assert [one["code"] for one in small["rows"][0]["findings"]] == ["card_tight"]
    assert json.loads(run(tmp_path, str(path), "--json", "--vram", "80").stdout)["rows"][0]["findings"] == []


def test_a_template_of_the_home_fills_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/templates.yaml").write_text("turn: 'the {color|plain} {title} rotating slowly'\n")
    path = catalog(tmp_path, "id,image,title,color\nA,a.png,mug,red\nB,b.png,vase,\nC,c.png,,\n")
    told = json.loads(run(tmp_path, str(path), "--json", "--template", "turn").stdout)
    assert [row["prompt"] for row in told["rows"]] == [
        "the red mug rotating slowly",
        "the plain vase rotating slowly",
        "",
    ]
    assert [[one["field"] for one in row["problems"]] for row in told["rows"]] == [[], [], ["prompt"]]
    assert run(tmp_path, str(path), "--template", "other").exit_code == 2
    other = tmp_path / "mine.yaml"
    other.write_text("turn: 'tilt up'")
    told = json.loads(run(tmp_path, str(path), "--json", "--template", "turn", "--templates", str(other)).stdout)
    assert told["rows"][0]["prompt"] == "tilt up"


def test_check_tells_the_same_of_prompts_and_refuses_strict_rows_for_empty_columns_alone(tmp_path: Path) -> None:
    from tests.building import still_png

    (tmp_path / "a.png").write_bytes(still_png())
    path = catalog(tmp_path, "id,image,prompt\nA,a.png,make it alive\nB,a.png,pan left over the {color} shoe\n")
    words = ["check", str(path), "--model", "i2vgen-xl", "--home", str(tmp_path / "home"), "--json"]
    lenient, strict = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--strict"]))
    codes = [[note["code"] for note in row["noted"]] for row in json.loads(lenient.stdout)["rows"]]
    assert ("prompt_vague" in codes[0], "prompt_column_empty" in codes[1]) == (True, True)
    assert lenient.exit_code == 0
    assert [len(row["problems"]) for row in json.loads(strict.stdout)["rows"]] == [0, 1]
