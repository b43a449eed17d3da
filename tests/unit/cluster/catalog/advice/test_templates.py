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
    typed_template,
)
from cluster.catalog.columns import letters_of
from cluster.catalog.manifest import BadRow, ManifestError, Row, read_manifest
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
    assert (filled.empty, filled.problem) == ((), None)
    assert template.columns == ("Product Title", "brand")


@pytest.mark.parametrize("values", [{}, {"color": "", "title": None}, {"colour": "red", "title": "  "}])
def test_an_empty_place_is_a_problem_that_names_it_and_what_is_there(values: dict[str, object]) -> None:
    filled = PromptTemplate(prompt="pan left across the {color} {title}, soft light").filled({"id": "A", **values})
    problem = filled.problem
    assert problem is not None
    assert (problem.field, filled.empty) == ("prompt", ("color", "title"))
    assert "{color}, {title}" in problem.message
    assert "{color|instead}" in problem.remedy
    assert "{id}" in problem.remedy


_WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@given(st.dictionaries(_WORDS.filter(lambda word: letters_of(word) == word), _WORDS, min_size=1, max_size=4), st.data())
@settings(deadline=None)
def test_places_are_filled_with_what_their_columns_say_and_doubled_braces_are_meant(
    values: dict[str, str], data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=4))
    prompt = "a {{brace}} of " + " and ".join(f"{{{name}}}" for name in names)
    template = typed_template(prompt)
    assert template is not None
    filled = template.filled(values)
    expected = "a {brace} of " + " and ".join(values[name] for name in names)
    assert (filled.problem, filled.prompt) == (None, expected)


@pytest.mark.parametrize("prompt", ["a bag }{{ of }} things", "no {} place", "  tilt up "])
def test_what_is_typed_without_places_stays_as_it_is(prompt: str) -> None:
    template = typed_template(prompt)
    assert template is not None
    assert template.filled({"id": "A"}).prompt == prompt.strip()
    assert typed_template(" ") is None


@pytest.mark.parametrize("prompt", ["{name} and {", "{name} } {", "{name} { }"])
def test_a_place_that_is_typed_wrong_is_refused_on_the_prompt(prompt: str) -> None:
    with pytest.raises(BadInputError) as caught:
        typed_template(prompt)
    assert caught.value.problem.field == "prompt"
    assert "{column|instead}" in caught.value.problem.remedy


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
    good, bad = rows[:2], rows[2]
    assert [(row.prompt, row.negative_prompt) for row in good if isinstance(row, Row)] == [
        ("tilt up", None),
        ("pan left across the red shoe", "people"),
    ]
    assert isinstance(bad, BadRow)
    assert [(problem.field, "{color}" in problem.message) for problem in bad.problems] == [("prompt", True)]


def test_a_row_is_named_by_its_id_and_else_by_its_picture(tmp_path: Path) -> None:
    path = catalog(tmp_path, "id,image,candidates,name\nA,a.png,2,\n,pics/b.png,,\nC,c.png,,Tote\n")
    rows = read_manifest(path, template=PromptTemplate(prompt="{name} of {id}")).rows
    assert [row.prompt for row in rows if isinstance(row, Row)] == ["A of A", "A of A", "b of b", "Tote of C"]


def test_of_rows_with_prompts_of_their_own_none_is_lost_to_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = catalog(tmp_path, "id,image,prompt\nA,a.png,tilt up\nB,b.png,\n")
    rows = read_manifest(path, template=PromptTemplate(prompt="the {color} shoe turns")).rows
    assert [type(row) for row in rows] == [Row, BadRow]


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
