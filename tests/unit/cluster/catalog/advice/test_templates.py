"""Templates fill prompts from columns, say what is empty, and leave braces alone that are meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.catalog.advice.templates import (
    PromptTemplate,
    plain_template,
    read_templates,
    template_named,
    templates_of,
)
from cluster.catalog.manifest import ManifestError, Row, read_manifest
from pipeline.problems import BadInputError

EXAMPLE = Path(__file__).parents[5] / "examples" / "templates.yaml"


def catalog(folder: Path, text: str) -> Path:
    path = folder / "c.csv"
    path.write_text(text)
    return path


def test_places_are_filled_from_columns_however_they_are_spelt() -> None:
    template = PromptTemplate(
        prompt="orbit around the {Product Title}, {light|soft light}", negative_prompt="{brand} logo"
    )
    filled = template.filled({"product_title": " red  shoe ", "brand": "Acme"})
    assert (filled.prompt, filled.negative_prompt) == ("orbit around the red shoe, soft light", "Acme logo")
    assert (filled.empty, filled.notes) == ((), [])
    assert template.columns == ("Product Title", "brand")


def test_an_empty_column_leaves_its_place_out_with_a_note() -> None:
    filled = PromptTemplate(prompt="pan left across the {color} {title}, soft light").filled(
        {"color": "", "title": None}
    )
    assert filled.prompt == "pan left, soft light"
    (note,) = filled.notes
    assert (note.code, note.field, note.reduces) == ("prompt_column_empty", "", True)
    assert "color, title" in note.message


@given(st.text(max_size=80))
@settings(deadline=None)
def test_a_plain_prompt_stays_as_it_is(prompt: str) -> None:
    template = plain_template(prompt)
    assert (template.filled({"a": "b"}).prompt if template else "") == prompt.strip()


@given(
    st.dictionaries(
        st.sampled_from(["color", "title", "size"]), st.text(max_size=20) | st.none() | st.floats(), max_size=3
    )
)
@settings(deadline=None)
def test_no_place_is_ever_left(values: dict[str, object]) -> None:
    clean = {name: value for name, value in values.items() if not (isinstance(value, str) and {"{", "}"} & set(value))}
    filled = PromptTemplate(prompt="pan over the {color|plain} {title} of {size}").filled(clean)
    assert "{" not in filled.prompt
    assert filled.prompt.startswith("pan")


def test_rows_get_the_template_where_they_have_no_prompt(tmp_path: Path) -> None:
    path = catalog(tmp_path, "id,image,prompt,Color\nA,a.png,tilt up,red\nB,a.png,,red\nC,a.png,,\n")
    template = PromptTemplate(prompt="pan left across the {color} shoe", negative_prompt="people")
    rows = read_manifest(path, template=template).rows
    assert all(isinstance(row, Row) for row in rows)
    assert [(row.prompt, row.negative_prompt) for row in rows] == [
        ("tilt up", None),
        ("pan left across the red shoe", "people"),
        ("pan left across the shoe", "people"),
    ]
    assert [[note.code for note in row.notes] for row in rows] == [[], [], ["prompt_column_empty"]]


def test_a_catalog_without_the_column_is_refused_unless_something_stands_instead(tmp_path: Path) -> None:
    path = catalog(tmp_path, "id,image\nA,a.png\n")
    with pytest.raises(ManifestError, match="color"):
        read_manifest(path, template=PromptTemplate(prompt="the {color} shoe turns"))
    (row,) = read_manifest(path, template=PromptTemplate(prompt="the {color|} shoe turns")).rows
    assert row.prompt == "the shoe turns"


def test_a_file_of_templates_is_read_and_faults_of_it_are_named(tmp_path: Path) -> None:
    assert set(read_templates(EXAMPLE)) == {"turntable", "zoom", "pan"}
    with pytest.raises(BadInputError, match="no template 'x'") as caught:
        template_named(EXAMPLE, "x")
    assert "turntable" in caught.value.problem.remedy
    with pytest.raises(BadInputError, match="cannot be read"):
        read_templates(tmp_path / "none.yaml")
    for text in (
        "- a",
        "a: {",
        "a: 1",
        "a: {prompt: ''}",
        "a: {text: b}",
        "a: 'b {c'",
        "a: 'b {} c'",
        "a: !!python/object:x {}",
    ):
        with pytest.raises(BadInputError):
            templates_of(text.encode(), "t.yaml")
    assert templates_of(b"", "t.yaml") == {}
    assert templates_of(b"a: 'no {{place}}'", "t.yaml")["a"].filled({}).prompt == "no {place}"
