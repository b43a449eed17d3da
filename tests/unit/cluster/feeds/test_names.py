"""Names by template: whatever stands in a catalog, they are fit for file systems, buckets and URLs."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.feeds.names import EMPTY, MAX_NAME, MAX_PART, NameTemplate, collisions, safe_part
from cluster.storage import Storage
from pipeline.problems import BadInputError

TEMPLATE = NameTemplate.parse("{brand|other}/{id}-{profile}.mp4")


@pytest.mark.parametrize(
    ("brand", "row_id", "name"),
    [
        ("Daybird", "SKU-1", "Daybird/SKU-1-google.mp4"),
        ("Café Größe", "SKU 1", "Cafe-Grosse/SKU-1-google.mp4"),
        ("A/B", "x", "A-B/x-google.mp4"),
        ("..", "x", f"{EMPTY}/x-google.mp4"),
        ("", "x", "other/x-google.mp4"),
        (None, "x", "other/x-google.mp4"),
        ("CON", "x", "_CON/x-google.mp4"),
        (".hidden", "x.", "hidden/x.-google.mp4"),
        ("a?b#c%d&e", "x", "a-b-c-d-e/x-google.mp4"),
        ("Quester ", "100%", "Quester/100-google.mp4"),
    ],
)
def test_a_name_is_what_the_template_says_as_far_as_disks_take_it(brand: str | None, row_id: str, name: str) -> None:
    assert TEMPLATE.name({"Brand": brand, "id": row_id}, "google") == name


@given(
    st.text(max_size=300),
    st.text(max_size=300),
    st.sampled_from(["{a}/{id}", "{id}{a}.mp4", "x/{a}/{a}/{id}-{profile}"]),
)
def test_every_text_makes_a_name_that_all_systems_take(a: str, row_id: str, template: str) -> None:
    name = NameTemplate.parse(template).name({"a": a, "id": row_id}, "shop")
    assert quote(name, safe="/-._~") == name
    assert len(name) <= MAX_NAME + 4
    for part in name.split("/"):
        assert re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", part), part
        assert not part.endswith((".", " "))
        assert len(part) <= MAX_PART * 3 + 20
        assert not PureWindowsPath(part).is_reserved()
    assert not PurePosixPath(name).is_absolute()
    assert ".." not in PurePosixPath(name).parts
    Storage("memory://names")._path(name)


@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=2, unique=True))
def test_parts_in_other_alphabets_stay_different(texts: list[str]) -> None:
    one, other = (safe_part("Я" + text) for text in texts)
    if texts[0].strip() != texts[1].strip():
        assert one != other


def test_long_parts_are_cut_and_stay_different() -> None:
    one, other = safe_part("x" * 500 + "1"), safe_part("x" * 500 + "2")
    assert one != other
    assert len(one) == len(other) == MAX_PART


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("clips/all.mp4", "all files had one name"),
        ("{id", "brace"),
        ("{}/{id}", "without a column's name"),
        ("/srv/{id}", "leads out"),
        ("../{id}", "leads out"),
        ("a\\{id}", "leads out"),
    ],
)
def test_a_template_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        NameTemplate.parse(text)


def test_two_rows_of_one_name_are_refused_with_both() -> None:
    refused = collisions(
        [
            ("A", "google", "Acme/mug.mp4"),
            ("B", "google", "acme/MUG.mp4"),
            ("C", "google", "acme/cup.mp4"),
            ("C", "reels", "acme/cup.mp4"),
            ("D", "google", "Acme/mug.mp4/d.mp4"),
            ("E", "google", "acme/jar.mp4"),
        ]
    )
    assert set(refused) == {"A", "B", "C"}
    assert "'A' and 'B'" in refused["B"].message
    assert "'C' has the name 'acme/cup.mp4' for google and for reels" in refused["C"].message
    assert "'D' and 'A'" in refused["A"].message


def test_places_without_a_column_are_known_before_anything_is_made() -> None:
    template = NameTemplate.parse("{Vendor}/{shape|round}/{id}-{profile}")
    assert template.missing(["vendor"]) == []
    assert template.missing(["brand"]) == ["Vendor"]
