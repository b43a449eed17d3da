"""What is said of rows: prompts, traps and cards, each with a fix that cures what it is for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.catalog.advice.copies import copy_path, write_copy
from cluster.catalog.advice.row_advice import advise
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.manifest import Row, read_manifest
from cluster.forecast.card_notes import card_notes
from pipeline.clips.clip import ResolutionClass, Sampler, Tier
from pipeline.families import FAMILIES
from pipeline.memory.footprint import plan
from pipeline.notes import ADJUSTED
from pipeline.problems import BadInputError
from pipeline.units import GIB

FAST = {"i2vgen-xl": FewStep(adapter="a.safetensors", sha256="ab" * 32)}


def row(**fields: Any) -> Row:
    return Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "camera panning left", **fields})


def defaults(model: str = "i2vgen-xl", **fields: Any) -> Defaults:
    return Defaults(model=model, few_step=FAST, **fields)


def with_fix(one: Row, fix: dict[str, Any]) -> Row:
    return Row.model_validate(one.model_dump() | dict(fix))


@pytest.mark.parametrize(
    ("fields", "code", "fix"),
    [
        ({"steps": 5}, "few_steps", {"steps": 30}),
        ({"steps": 100}, "many_steps", {"steps": 80}),
        ({"guidance": 20}, "guidance_high", {"guidance": 9.0}),
        ({"steps": 20, "guidance": 12}, "few_steps_high_guidance", {"guidance": 9.0}),
        ({"guidance": 1}, "guidance_off", {"guidance": 9.0}),
        ({"fps": 60}, "clip_short", {"fps": 32}),
        ({"step_cache": 20}, "step_cache_long", {"step_cache": 10}),
        ({"sampler": "lcm", "steps": 20, "guidance": 1}, "lcm_many_steps", {"steps": 8}),
        ({"frames": 40, "window": 16, "window_overlap": 8}, "windows_costly", {"window": 0}),
        ({"motion_class": "256p", "strength": 1.0}, "strength_whole", {"strength": 0.5}),
        ({"motion_class": "256p", "strength": 0.05}, "few_refining_steps", {"strength": 0.08}),
        ({"frames": 65}, "frames_adjusted", {"frames": 64}),
        ({"prompt": "make it alive"}, "prompt_vague", {"prompt": "Camera slowly zooming in, soft light"}),
    ],
)
def test_each_trap_has_the_value_that_cures_it(fields: dict[str, Any], code: str, fix: dict[str, Any]) -> None:
    found = advise(row(**fields), defaults())
    (note,) = [note for note in found.notes if note.code == code]
    assert (note.field, note.fix) == (next(iter(fix)), fix)
    assert found.warns
    cured = advise(with_fix(row(**fields), note.fix), defaults())
    assert cured.problems == ()
    assert code not in [note.code for note in cured.notes]


PROMPTS = ["camera panning left", "beautiful scene", "zoom in and out, no people", "the {color} shoe", "red bag"]


@given(
    fields=st.fixed_dictionaries(
        {"prompt": st.sampled_from(PROMPTS)},
        optional={
            "steps": st.integers(1, 200),
            "guidance": st.floats(1, 30),
            "frames": st.integers(1, 130),
            "fps": st.integers(1, 60),
            "resolution_class": st.sampled_from(list(ResolutionClass)),
            "tier": st.sampled_from(list(Tier)),
            "sampler": st.sampled_from([Sampler.UNIPC, Sampler.EULER]),
            "window": st.integers(0, 40),
            "aspect": st.sampled_from(["1:1", "16:9", "5:1"]),
        },
    ),
    model=st.sampled_from(["i2vgen-xl", "wan2.2-5b", "svd-xt", "camera"]),
    vram=st.sampled_from([0, 6, 12, 24, 80]),
)
@settings(max_examples=60, deadline=None)
def test_a_fix_never_breaks_a_row_and_cures_its_own_finding(fields: dict[str, Any], model: str, vram: int) -> None:
    one = row(**fields)
    said = advise(one, defaults(model), of_clip=lambda spec: card_notes(spec, vram * GIB))
    if said.problems:
        return
    for note in said.notes:
        if note.fix:
            cured = advise(with_fix(one, note.fix), defaults(model), of_clip=lambda spec: card_notes(spec, vram * GIB))
            assert cured.problems == (), note
            assert note.code not in [other.code for other in cured.notes], note
    whole = advise(with_fix(one, said.fixed), defaults(model))
    assert whole.problems == ()
    assert not any(note.code.startswith("prompt_") and note.fix for note in whole.notes)


def test_cards_are_judged_by_what_the_planner_would_do() -> None:
    spec_of: list[Any] = []
    advise(row(resolution_class="1024p", frames=32), defaults(), of_clip=lambda spec: spec_of.append(spec) or ())
    (spec,) = spec_of
    assert card_notes(spec, 0) == ()
    assert card_notes(spec, 200 * GIB) == ()
    for gib in (2, 4, 7, 11, 16, 24):
        found = [note.code for note in card_notes(spec, gib * GIB)]
        layout = plan(spec, gib * GIB)
        tight = layout is not None and (layout[0].stream_weights or layout[0].decode_tile > 0)
        assert found == (["no_card_fits"] if layout is None else ["card_tight"] if tight else [])
    (note,) = card_notes(spec, 7 * GIB)
    smaller = spec.model_copy(update=dict(note.fix))
    assert card_notes(smaller, 7 * GIB) == ()


def test_a_row_that_says_seconds_is_not_given_frames_beside_them() -> None:
    one = row(resolution_class="1024p", seconds=4, fps=8)
    found = advise(one, defaults(), of_clip=lambda spec: card_notes(spec, 7 * GIB))
    assert found.fixed["seconds"] is None
    assert advise(with_fix(one, found.fixed), defaults()).problems == ()


def test_what_cannot_be_read_or_rendered_is_told_and_not_fixed(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("id,image,prompt,guidance\nA,a.png,,\nB,a.png,pan left,99\n")
    bad, odd = (advise(one, defaults()) for one in read_manifest(path).rows)
    assert [problem.field for problem in bad.problems] == ["prompt"]
    assert (odd.warns, dict(odd.fixed)) == (True, {})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_copy_has_the_new_cells_and_the_catalog_stays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    rows = [{"id": "A", "image": "a.png", "prompt": "x, y", "brand": "Ö"}, {"id": "B", "image": "b.png", "prompt": "z"}]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    before = path.read_bytes()
    written = write_copy(path, {2: {"prompt": 'pan "left"', "steps": 30, "negative_prompt": None}})
    assert written == copy_path(path)
    assert path.read_bytes() == before
    first, second = read_manifest(written).rows
    assert (first.prompt, first.steps, first.extra["brand"]) == ("x, y", None, "Ö")
    assert (second.prompt, second.steps, second.negative_prompt) == ('pan "left"', 30, None)
    with pytest.raises(BadInputError, match="is there"):
        write_copy(path, {})


def test_every_adjusted_value_has_its_fix() -> None:
    asked = row(frames=3, resolution_class="256p", aspect="9:1", window=7)
    for family in FAMILIES.values():
        for note in advise(asked, Defaults(model=family.name)).notes:
            if note.adjusted:
                assert note.fix.keys() == {note.code.removesuffix(ADJUSTED)}, note
