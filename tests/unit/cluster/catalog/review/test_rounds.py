"""Names of rounds, what a row's clip is in each, and several prompts a picture."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.catalog.defaults import Defaults, RowDefaults
from cluster.catalog.manifest import BadRow, Row, read_manifest
from cluster.catalog.resolve import RowProblems, resolve
from cluster.catalog.review.planning import plan
from cluster.catalog.review.prompts import read_prompts
from cluster.catalog.review.rounds import Round, rounds_of
from pipeline.clips.clip import Tier
from pipeline.problems import BadInputError

SHA = "ab" * 32


def row(**columns: Any) -> Row:
    return Row(**{"number": 1, "id": "A", "image": "a.png", "prompt": "pan left across the mug"} | columns)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("draft,final", (Round.DRAFT, Round.FINAL)),
        (["quick", "TUNE", "final"], (Round.QUICK, Round.TUNE, Round.FINAL)),
        ("quick; final", (Round.QUICK, Round.FINAL)),
        ("final", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_rounds_are_read(said, meant):
    assert rounds_of(said) == meant
    assert RowDefaults(rounds=said).rounds == meant


@pytest.mark.parametrize("said", ["draft", "final,draft", "draft,draft,final", "proof,final", 3, ["draft", 1]])
def test_what_is_no_plan_is_refused_with_what_to_write(said):
    with pytest.raises(ValueError, match=r"final|round|commas"):
        rounds_of(said)


def test_without_rounds_a_row_is_what_it_was():
    given = Defaults(model="i2vgen-xl-tiny")
    [only] = plan(row(), (640, 480), given, SHA)
    assert only.spec == resolve(row(), (640, 480), given, SHA).spec
    assert "rounds" not in given.model_dump(), "versions without it refuse it"


def test_what_a_row_says_of_its_clip_is_said_of_the_last_round():
    given = Defaults(model="i2vgen-xl-tiny", rounds="draft,final", tier=Tier.HIGH, resolution_class="768p")
    draft, final = plan(row(steps=90, frames=24, guidance=7), (640, 480), given, SHA)
    assert (final.spec.steps, final.spec.frames, final.spec.resolution_class) == (90, 24, "768p")
    alone = resolve(row(tier="draft", resolution_class="512p", guidance=7), (640, 480), given, SHA).spec
    assert draft.spec == alone


def test_a_final_from_latents_names_the_draft_itself():
    given = Defaults(model="i2vgen-xl-tiny", rounds="quick,tune,final", from_draft=True, resolution_class="768p")
    _, tune, final = plan(row(), (640, 480), given, SHA)
    assert final.spec.base_spec == tune.spec
    assert final.spec.seconds == pytest.approx(tune.spec.seconds, rel=0.1), "people approved its pace"
    with pytest.raises(RowProblems, match="no share of the steps"):
        plan(row(strength=0), (640, 480), given, SHA)


def test_what_is_wrong_with_the_final_is_told_before_the_draft_is_rendered():
    given = Defaults(model="i2vgen-xl-tiny", rounds="draft,final", strict=True)
    with pytest.raises(RowProblems, match="frames"):
        plan(row(frames=1000), (640, 480), given, SHA)
    loose = given.model_copy(update={"strict": False})
    assert "frames_adjusted" in {note.code for note in plan(row(frames=1000), (640, 480), loose, SHA)[0].noted}


def test_prompts_of_a_file_are_crossed_with_rows_that_have_none(tmp_path):
    (tmp_path / "prompts.txt").write_text("# two moves\npan left\n\ntilt up slowly\npan left\n", encoding="utf-8")
    prompts = read_prompts(tmp_path / "prompts.txt")
    assert prompts == ["pan left", "tilt up slowly"]
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,image,prompt,candidates\nA,a.png,,2\nB,b.png,steam rises,\n", encoding="utf-8")
    rows = read_manifest(catalog, prompts=prompts).good
    assert [(one.id, one.prompt, one.candidate) for one in rows] == [
        ("A-p1-c1", "pan left", 0),
        ("A-p1-c2", "pan left", 1),
        ("A-p2-c1", "tilt up slowly", 0),
        ("A-p2-c2", "tilt up slowly", 1),
        ("B", "steam rises", 0),
    ]


def test_a_list_of_prompts_is_that_many_clips_of_one_row(tmp_path):
    catalog = tmp_path / "catalog.jsonl"
    lines = [{"id": "A", "image": "a.png", "prompt": ["pan left", "tilt up"]}, {"image": "b.png", "prompt": ["pan"]}]
    catalog.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    rows = read_manifest(catalog).good
    assert [(one.id, one.prompt, one.prompts) for one in rows] == [
        ("A-p1", "pan left", 2),
        ("A-p2", "tilt up", 2),
        ("b", "pan", 1),
    ]
    assert "prompts" not in rows[2].model_dump(), "versions without it refuse it"


@pytest.mark.parametrize("prompt", [[], [""], ["a"] * 2 + [""], [f"pan {n}" for n in range(33)], [{"a": 1}]])
def test_a_list_that_is_none_of_prompts_is_a_bad_row(tmp_path, prompt):
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text(json.dumps({"id": "A", "image": "a.png", "prompt": prompt}), encoding="utf-8")
    [bad] = read_manifest(catalog).rows
    assert isinstance(bad, BadRow)
    assert {problem.field for problem in bad.problems} == {"prompt"}


@pytest.mark.parametrize(
    "data", [b"", b"# none\n", b"\xff\xfe\x00", b"x" * 2001, b"\n".join(b"p%d" % n for n in range(33))]
)
def test_a_file_that_has_no_prompts_is_refused_by_name(tmp_path, data):
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=r"prompts\.txt|prompt has"):
        read_prompts(path)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")
