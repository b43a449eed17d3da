"""Rows of catalogs as spreadsheets, shops and people write them: the right rows, and nothing assumed in silence."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.catalog.cells import COLUMNS, number_of
from cluster.catalog.manifest import BadRow, Manifest, ManifestError, Row, read_image_bytes, read_manifest
from cluster.catalog.tables import MAX_ROWS
from pipeline.problems import BadInputError


def read(folder: Path, content: str | bytes, name: str = "catalog.csv", **given: str) -> Manifest:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_manifest(path, **given)


def codes(row: Row | BadRow) -> list[str]:
    return [note.code for note in row.notes] if isinstance(row, Row) else []


# --- records ----------------------------------------------------------------------------------------------------


def test_a_long_cell_of_many_lines_is_one_cell(tmp_path: Path) -> None:
    # Longer than the reader of the standard library takes by itself.
    html = "<ul>\n" + "<li>x, a.png, y</li>\n" * 10_000 + "</ul>"
    text = io.StringIO(newline="")
    csv.writer(text).writerows(
        [["id", "image", "Body (HTML)", "prompt"], ["A", "a.png", html, "p"], ["B", "b", "", "q"]]
    )
    first, second = read(tmp_path, text.getvalue()).good
    assert (first.id, second.id, first.prompt, second.prompt) == ("A", "B", "p", "q")
    assert first.extra == {"Body (HTML)": html[:4000]}
    assert codes(first) == ["column_cut"]
    assert f"{len(html):,} characters" in first.notes[0].message


@pytest.mark.parametrize(
    "damage",
    [
        'A,a.png,"<ul class="x">\n<li>x, a.png, y</li>\n</ul>"',
        'A,a.png,"one "two" x\nthree\n4,5,6 "seven" x\n"',
        'A,a.png,"5" lens"',
        'A,a.png,"closed" late',
    ],
)
def test_a_damaged_record_ends_where_its_quoted_cell_ends(tmp_path: Path, damage: str) -> None:
    bad, good = read(tmp_path, f'id,image,prompt\n{damage}\nB,b.png,"pan, left"\n').rows
    assert isinstance(bad, BadRow)
    last = 2 + damage.count("\n")
    said = "line 2 is" if last == 2 else f"lines 2 to {last} are"
    assert [p.message.split(" not CSV")[0] for p in bad.problems] == [said]
    assert isinstance(good, Row)
    assert (good.id, good.prompt, good.line) == ("B", "pan, left", last + 1)


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    rest = "".join(f"{i},{i}.png,pan {i}\n" for i in range(2000))
    rows = read(tmp_path, f'id,image,prompt\nA,a.png,"never closed\n{rest}').rows
    assert [isinstance(row, BadRow) for row in rows] == [True, *[False] * 2000]
    # Nor where several have the same fault, or a quote of another kind.
    some = "".join(f"{i},{i}.png,{text}\n" for i, text in enumerate(['"5" lens', "pan", '5" lens', '"7" lens'] * 500))
    rows = read(tmp_path, f'id,image,prompt\nA,a.png,"never closed\n{some}').rows
    assert [isinstance(row, BadRow) for row in rows] == [True, *[True, False, False, True] * 500]
    # However many there are, in a time that grows as their number.
    many = "".join(f'{i},{i}.png,"5" lens\n' for i in range(5000))
    assert len(read(tmp_path, f"id,image,prompt\n{many}").bad) == 5000
    # Where what follows does not read as rows, the file was cut off within the cell.
    rows = read(tmp_path, 'id,image,prompt\nA,a.png,p\nB,b.png,"<ul>\n<li>x, a.png, y</li>\n</ul>\n').rows
    assert [(row.id, isinstance(row, Row)) for row in rows] == [("A", True), ("row-2", False)]
    assert "lines 3 to 5 are not CSV" in rows[1].problems[0].message


_CELL = st.text(
    st.one_of(st.sampled_from(list(" ,;\t|\"\n\r'=")), st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zs"])),
    max_size=12,
)
_DIALECT = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    }
)


def as_read(cell: str) -> str:
    """What a cell is without white space around it; none of the cells here is a spreadsheet's `="…"`."""
    return cell.strip()


def written(rows: list[list[str]], dialect: dict[str, object]) -> str:
    text = io.StringIO(newline="")
    if dialect.get("lineterminator") in ("\n", "\r"):
        # Python 3.11 leaves a line end of the other kind unquoted, which nobody can read back.
        dialect = dialect | {"quoting": csv.QUOTE_ALL}
    csv.writer(text, **dialect).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue()


@given(cells=st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=6), dialect=_DIALECT, mark=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path: Path, cells: list[tuple[str, str]], dialect: dict[str, object], mark: bool
) -> None:
    cells = [(a.replace("=", "~"), b.replace("=", "~")) for a, b in cells]
    rows = [["left", "image", "ri\nght"], *([a, "i.png", b] for a, b in cells)]
    text = written(rows, dialect)
    found = read(tmp_path, text.encode("utf-8-sig" if mark else "utf-8"), prompt="p").rows
    assert len(found) == len(cells)
    for row, (left, right) in zip(found, cells, strict=True):
        assert isinstance(row, Row)
        assert row.extra == {k: v for k, v in (("left", as_read(left)), ("ri\nght", as_read(right))) if v}


#: Text of a damaged cell: quotes that are not doubled, over lines; none that could open a cell or close one.
_DAMAGE = st.lists(st.sampled_from(['x"y', "plain, text", "<li>a, b, c</li>", 'say "so" then', "one; two"]), max_size=5)


@given(
    before=st.lists(_CELL, max_size=3), after=st.lists(_CELL, min_size=1, max_size=4), damage=_DAMAGE, dialect=_DIALECT
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_record_never_shifts_the_following_ones(
    tmp_path: Path, before: list[str], after: list[str], damage: list[str], dialect: dict[str, object]
) -> None:
    end = str(dialect["lineterminator"])
    delimiter = str(dialect["delimiter"])

    def rows(cells: list[str], first: int) -> list[list[str]]:
        return [[f"n{i}", "i.png", cell.replace("=", "~")] for i, cell in enumerate(cells, first)]

    head = written([["id", "image", "say"], *rows(before, 0)], dialect)
    # The first line of the cell has the quote that makes it damaged; the last is of one cell, as markup is.
    broken = f'broken{delimiter}i.png{delimiter}"a "b" c{end}' + end.join([*damage, '</ul>"']) + end
    tail = written(rows(after, len(before)), dialect)
    whole = [row.model_dump(exclude={"number", "line"}) for row in read(tmp_path, head + tail, prompt="p").good]
    found = read(tmp_path, head + broken + tail, prompt="p")
    assert [row.model_dump(exclude={"number", "line"}) for row in found.good] == whole
    assert len(found.bad) == 1


# --- delimiters, encodings, headers -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;\r", "\ufeffsep=;"])
def test_the_line_that_names_the_delimiter_is_no_row(tmp_path: Path, first: str) -> None:
    (row,) = read(tmp_path, f"{first}\nid;image;prompt\na;a,b.png;pan, then tilt\n").good
    assert (row.id, row.image, row.prompt, row.line) == ("a", "a,b.png", "pan, then tilt", 3)


@pytest.mark.parametrize("name", ["c.txt", "c.tab", "c.csv"])
def test_a_table_by_another_suffix(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path, "sku\timage\tprompt\n1\ta.png\tpan, left; then right | zoom\n", name).good
    assert row.prompt == "pan, left; then right | zoom"


def test_text_of_before_unicode_is_read_and_said(tmp_path: Path) -> None:
    text = "id,image,prompt,Größe\nä,a.png,langsam näher – „heran“,groß\nb,b.png,pan,small\n"
    first, second = read(tmp_path, text.encode("cp1252")).good
    assert (first.id, first.prompt, first.extra) == ("ä", "langsam näher – „heran“", {"Größe": "groß"})
    assert codes(first) == ["encoding_guessed"]
    assert "Windows-1252" in first.notes[0].message
    assert "'Größe'" in first.notes[0].message
    assert codes(second) == []


def test_words_of_another_alphabet_are_not_taken_for_western_ones(tmp_path: Path) -> None:
    row, good = read(tmp_path, "id,image,prompt\na,a.png,зум камеры\nb,b.png,pan\n".encode("cp1251")).rows
    assert [problem.field for problem in row.problems] == ["prompt"]  # type: ignore[union-attr]
    assert isinstance(good, Row)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(tmp_path: Path, encoding: str) -> None:
    (row,) = read(tmp_path, "id,image,prompt\ré,a.png,pan\r".encode(encoding)).good
    assert (row.id, codes(row)) == ("é", ["encoding_guessed"])


def spellings(name: str) -> list[str]:
    words = name.split("_")
    camel = words[0] + "".join(word.title() for word in words[1:])
    return [
        name.upper(),
        " ".join(words).title(),
        "-".join(words),
        camel,
        "\u00a0" + "\u00a0".join(words),
        "\ufeff" + name,
    ]


@pytest.mark.parametrize("column", sorted(COLUMNS - {"image"}))
@pytest.mark.parametrize("way", range(6))
def test_every_column_in_every_spelling(tmp_path: Path, column: str, way: int) -> None:
    manifest = read(tmp_path, f"Image,{spellings(column)[way]}\na.png,1\n", model="svd-xt")
    assert manifest.unknown == ""
    assert [row.extra for row in manifest.good] in ([], [{}])


def test_an_embargo_under_any_spelling_holds(tmp_path: Path) -> None:
    for header in ("Not_Before", "Not Before", "not-before", "notBefore"):
        (row,) = read(tmp_path, f"image,prompt,{header}\na.png,p,2030-01-01T00:00Z\n").good
        assert row.not_before == 1893456000


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("resolution", "resolution_class"),
        ("neg_prompt", "negative_prompt"),
        ("Duration", "seconds"),
        ("aspect ratio", "aspect"),
        ("guidence", "guidance"),
        ("cfg_scale", "guidance"),
        ("num_frames", "frames"),
        ("priorty", "priority"),
    ],
)
def test_a_misspelt_column_is_named_on_the_rows_it_was_meant_for(tmp_path: Path, column: str, meant: str) -> None:
    manifest = read(tmp_path, f"id,image,prompt,{column}\na,a.png,p,256p\nb,b.png,p,\n")
    first, second = manifest.good
    assert codes(first) == ["column_unknown"]
    assert f"{column} ({meant} meant?)" in first.notes[0].message
    assert first.notes[0].worth_a_look
    assert codes(second) == []
    assert manifest.unknown == ""


def test_columns_of_a_shop_are_listed_once_and_not_suspected(tmp_path: Path) -> None:
    columns = [
        "brand",
        "category",
        "price",
        "title",
        "tags",
        "name",
        "vendor",
        "Image Alt Text",
        "model number",
        "tags",
    ]
    manifest = read(tmp_path, f"id,image,prompt,{','.join(columns)}\na,a.png,p,{','.join('bcptgnvxmu')}\n")
    assert codes(manifest.rows[0]) == []
    assert manifest.unknown.startswith("columns not known, carried along: brand, category, price, ")
    # Shops have a column several times.
    assert manifest.good[0].extra["tags"] == "g"
    assert manifest.good[0].extra["tags (2)"] == "u"


# --- cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "text", "value", "said"),
    [
        ("guidance", "7.5", 7.5, False),
        ("guidance", "7,5", 7.5, True),
        ("guidance", "7.500", 7.5, False),
        ("guidance", "1.2e1", 12.0, True),
        ("guidance", "\u00a07,5\u00a0", 7.5, True),
        ("strength", "0,25", 0.25, True),
        ("strength", "0.125", 0.125, False),
        ("seconds", "2,5", 2.5, True),
        ("frames", "24.0", 24, False),
        ("frames", '"24"', 24, True),
        ("frames", "1e2", 100, True),
        ("frames", "2.5e1", 25, True),
        ("seed", "1.234.567", 1234567, True),
        ("seed", "1\u202f234\u202f567", 1234567, True),
        ("seed", "9223372036854775807", 2**63 - 1, False),
        ("priority", "\u22125", -5, True),
        ("priority", "+5", 5, False),
    ],
)
def test_numbers_as_spreadsheets_write_them(tmp_path: Path, column: str, text: str, value: float, said: bool) -> None:
    content = written([["image", "prompt", column], ["a.png", "p", text]], {"delimiter": ","})
    (row,) = read(tmp_path, content).good
    assert getattr(row, column) == value
    assert codes(row) == (["number_read"] if said else [])


@given(number=st.one_of(st.integers(-1000, 1000), st.floats(-1000, 1000, allow_nan=False)), comma=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_number_is_read_as_it_is_or_refused(number: float, comma: bool) -> None:
    text = repr(number).replace(".", ",") if comma else repr(number)
    try:
        found = number_of("x", text, [], minimum=-1000, maximum=1000)
    except BadInputError as error:
        refused = str(error)
    else:
        refused = ""
    assert "can be" in refused if refused else found == number


def test_a_number_kept_as_text_by_a_spreadsheet(tmp_path: Path) -> None:
    (row,) = read(tmp_path, 'id,image,prompt\n"=""00123""",a.png,p\n').good
    assert row.id == "00123"


def test_a_row_that_waits_for_a_number_of_a_data_frame(tmp_path: Path) -> None:
    rows = read(tmp_path, "id,image,prompt,after\n1001,a.png,p,\n1002,b.png,p,1001.0\n1003,c.png,p,1.0\n").good
    assert [row.after for row in rows] == [None, "1001", "1.0"]


def test_frames_and_seconds_are_one_thing(tmp_path: Path) -> None:
    one, both = read(tmp_path, "image,prompt,Seconds,frames\na.png,p,2.5,\nb.png,p,2,16\n").rows
    assert isinstance(one, Row)
    assert one.seconds == 2.5
    assert "both frames and seconds" in both.problems[0].message  # type: ignore[union-attr]


def test_what_says_nothing_is_left_out_for_versions_without_it(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "image,prompt\na.png,p\n").good
    assert {"notes", "seconds"}.isdisjoint(row.model_dump(mode="json"))
    (row,) = read(tmp_path, "image,prompt,seconds\na.png,p,2\n").good
    assert row.model_dump(mode="json")["seconds"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a", "prompt": "p", "x": ' + "[" * 30 + "]" * 30 + "}", "deep in each other"),
        ('{"image": "a", "prompt": "p", "x": "' + "y" * 1_000_001 + '"}', "characters, more than 1,000,000"),
        ('{"image": "a", "prompt": "p", "prompt": "q"}', "'prompt' twice"),
        ('{"image": "a", "prompt": "p", "x": {"y": 1, "y": 2}}', "'y' twice"),
        ('{"image": "a", "prompt": "p", "x": ' + json.dumps([0] * 1001) + "}", "more than 1,000 values"),
    ],
)
def test_json_has_limits_that_are_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"image": "b", "prompt": "p [[[[ {{{{ \\" ["}'
    bad, row = read(tmp_path, f"{line}\n{good}", "c.jsonl").rows
    assert isinstance(bad, BadRow)
    assert message in bad.problems[0].message
    assert isinstance(row, Row)


@pytest.mark.parametrize(("depth", "good"), [(20, True), (21, False), (200, False)])
def test_a_row_of_the_api_has_the_same_limit(depth: int, good: bool) -> None:
    body = '{"number": 1, "id": "a", "image": "a", "extra": {"x": ' + "[" * depth + "]" * depth + "}}"
    if good:
        assert json.loads(Row.model_validate_json(body).model_dump_json())["id"] == "a"
    else:
        with pytest.raises(ValueError, match=r"deep in each other|recursion"):
            Row.model_validate_json(body)


def test_a_manifest_of_too_many_rows_names_the_limit(tmp_path: Path) -> None:
    """Read in another process, so the limit is the real one."""
    count = MAX_ROWS + 1
    pq.write_table(pa.table({"image": ["a.png"] * count, "prompt": ["p"] * count}), tmp_path / "c.parquet")
    makers: list[Callable[[], Manifest]] = [
        lambda: read_manifest(tmp_path / "c.parquet"),
        lambda: read(tmp_path, "image,prompt\n" + "a.png,p\n" * count),
    ]
    for make in makers:
        with pytest.raises(ManifestError, match=r"100,001 rows(?: or more)?, and 100,000 are the limit"):
            make()


#: (what is no table, what is said of it). Read to their ends, the last two would take several times the CPU time that
#: manifests of their size have.
NO_TABLES = {
    "NULs": (bytes(3_000_000), "its first row has more than 2,000,000 characters"),
    "one line of columns": (b"image," * 500_000, "its first row has more than 2,000,000 characters"),
    "NULs below a delimiter": (b"sep=;\n" + bytes(3_000_000), "its first row has more than 2,000,000 characters"),
    "very many lines of no JSON": (b"{}\n" * 1_000_000, "1,000,000 rows, and 100,000 are the limit"),
    "a quote that is never closed": (b'"' + b"a\n" * 8_000_000, "its header is not CSV"),
    "very many short lines": (b"image,prompt\n" + b"a\n" * 8_000_000, "100,001 rows or more"),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_is_not_read_to_its_end(name: str, tmp_path: Path) -> None:
    data, message = NO_TABLES[name]
    path = tmp_path / ("c.jsonl" if data.startswith(b"{") else "c.csv")
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


# --- names ------------------------------------------------------------------------------------------------------


def test_several_prompts_of_one_picture_need_no_ids(tmp_path: Path) -> None:
    text = "image,prompt\nmug.png,zoom in\nmug.png,pan left\nb/mug.jpg,tilt up\nMUG.png,roll\n"
    rows = read(tmp_path, text).good
    assert [row.id for row in rows] == ["mug", "mug-2", "mug-3", "MUG-4"]
    assert [codes(row) for row in rows] == [[], ["id_made"], ["id_made"], ["id_made"]]
    assert [row.id for row in read(tmp_path, text).good] == [row.id for row in rows]


def test_written_ids_go_before_made_ones(tmp_path: Path) -> None:
    text = "id,image,prompt,candidates\n,a.png,p,\n,a.png,q,2\na,a.png,r,\na-2,a.png,s,\na-3-c2,x.png,t,\n"
    rows = read(tmp_path, text).rows
    assert [row.id for row in rows] == ["a-3", "a-4-c1", "a-4-c2", "a", "a-2", "a-3-c2"]
    assert all(isinstance(row, Row) for row in rows)


def test_made_ids_stay_within_the_limit(tmp_path: Path) -> None:
    stem = "é" * 99
    rows = read(tmp_path, f"image,prompt\n{stem}.png,p\n{stem}.png,q\n").good
    assert len({row.id for row in rows}) == 2
    assert all(len(row.id.encode()) <= 200 for row in rows)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["", "a", "A", "a-2", "b"]), st.sampled_from(["a", "A", "b"])), min_size=1, max_size=8
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_made_ids_never_meet_another_on_any_disk(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    text = "id,image,prompt\n" + "".join(f"{name},{image}.png,p\n" for name, image in rows)
    found = read(tmp_path, text).rows
    made = [row.id for row, (name, _) in zip(found, rows, strict=True) if not name]
    others = [row.id.casefold() for row, (name, _) in zip(found, rows, strict=True) if name]
    assert len({name.casefold() for name in made}) == len(made)
    assert {name.casefold() for name in made}.isdisjoint(others)


@pytest.mark.parametrize("name", ["A:B", "Q?", "CON", "nul.txt", "LPT1", "ends.", "a*", "<i>"])
def test_ids_that_some_disks_do_not_take_are_said(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path, f"id,image,prompt\n{name},a.png,p\n").good
    assert codes(row) == ["id_not_portable"]


@pytest.mark.parametrize("name", ["#1", "50%OFF", "-rf", "console", "a.b", "雪", "con-1"])
def test_other_ids_are_not_suspected(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path, f"id,image,prompt\n{name},a.png,p\n").good
    assert codes(row) == []


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_picture_is_found_whatever_form_its_accents_have(tmp_path: Path, forms: tuple[str, str]) -> None:
    in_csv, on_disk = (unicodedata.normalize(form, "été/café.png") for form in forms)
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).write_bytes(b"picture")
    manifest = read(tmp_path, f"image,prompt\n{in_csv},p\n")
    assert read_image_bytes(manifest, manifest.good[0]) == b"picture"


def test_a_picture_whose_name_is_half_composed_is_found(tmp_path: Path) -> None:
    half = "cafe\u0301-\u00e9.png"
    (tmp_path / half).write_bytes(b"picture")
    manifest = read(tmp_path, "image,prompt\ncaf\u00e9-e\u0301.png,p\n")
    assert read_image_bytes(manifest, manifest.good[0]) == b"picture"
