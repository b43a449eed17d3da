"""Manifests: every kind of source gives the same rows, and a bad row never costs another one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cluster.catalog.cells
import cluster.catalog.manifest
from cluster.catalog.manifest import BadRow, Manifest, ManifestError, Row, read_image_bytes, read_manifest
from pipeline.clips.clip import Fit, ResolutionClass, Sampler, Tier, Upscale
from pipeline.families import FAMILIES

CATALOG = Path(__file__).parents[5] / "shared" / "catalog" / "catalog.csv"


def write(folder: Path, content: str | bytes, name: str = "catalog.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes, name: str = "catalog.csv", *, prompt: str | None = None) -> Manifest:
    return read_manifest(write(folder, content, name), prompt=prompt)


def faults(row: Row | BadRow) -> dict[str, str]:
    """By field, what is wrong with a row; good rows have nothing."""
    return {p.field: str(p) for p in row.problems} if isinstance(row, BadRow) else {}


def shown(row: Row) -> dict[str, object]:
    """A row's content without the place where it was found."""
    return row.model_dump(exclude={"number", "line"})


# --- what is read -----------------------------------------------------------------------------------------------


def test_typed_columns_and_unknown_ones(tmp_path: Path) -> None:
    header = (
        "ID, Image ,PROMPT,Negative Prompt,model,resolution_class,aspect,tier,frames,fps,steps,guidance,seed,priority,"
        "after,fit,Brand,price"
    )
    line = "A 1,pics/a.png, pan left ,blur,I2VGen-XL,768P,16:9,High,24,12,40,7.5,0,-5,A 0,cover,Quester,129.99"
    manifest = read(tmp_path, f"{header}\n{line}\n")
    assert manifest.root == tmp_path.resolve()
    assert manifest.rows == [
        Row(
            number=1,
            line=2,
            id="A 1",
            image="pics/a.png",
            prompt="pan left",
            negative_prompt="blur",
            model="i2vgen-xl",
            resolution_class=ResolutionClass.P768,
            aspect="16:9",
            tier=Tier.HIGH,
            frames=24,
            fps=12,
            steps=40,
            guidance=7.5,
            seed=0,
            priority=-5,
            after="A 0",
            fit=Fit.COVER,
            extra={"Brand": "Quester", "price": "129.99"},
        )
    ]


def test_empty_cells_and_short_rows_are_absent(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "id,image,prompt,frames,model,brand\na,a.png,pan,, auto \n").rows
    assert shown(row) == shown(Row(number=1, id="a", image="a.png", prompt="pan"))


def test_quoting_newlines_and_lines_as_a_person_counts_them(tmp_path: Path) -> None:
    text = 'id,image,prompt\r\na,a.png,"slow, then\nfast"\r\n\r\nb,b.png,"a ""big"" wave"\r\n,,\r\nc,c.png, "x, y"\r\n'
    rows = read(tmp_path, text).good
    assert [(r.number, r.line, r.prompt) for r in rows] == [
        (1, 2, "slow, then\nfast"),
        (2, 5, 'a "big" wave'),
        (3, 7, "x, y"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_delimiters_and_encodings(tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = 'id,image,"prompt"\nä,é.png,"pan, then ; tilt 雪"\n'.replace(",", delimiter)
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (row,) = read(tmp_path, mark + text.encode(encoding)).good
    assert (row.id, row.image, row.prompt) == ("ä", "é.png", f"pan{delimiter} then ; tilt 雪")


def test_a_prompt_for_all_fills_gaps_only(tmp_path: Path) -> None:
    rows = read(tmp_path, "image,prompt\na.png,own\nb.png,\n", prompt=" pan left ").good
    assert [(r.id, r.prompt) for r in rows] == [("a", "own"), ("b", "pan left")]


def test_a_name_without_a_number_comes_before_those_with_one_whatever_their_kinds(tmp_path: Path) -> None:
    for name in ("MUG2.jpg", "MUG10.bmp", "MUG.png", "CUP.webp"):
        write(tmp_path, b"x", name)
    found = [row.image for row in read_manifest(tmp_path, prompt="pan left").good]
    assert found == ["CUP.webp", "MUG.png", "MUG2.jpg", "MUG10.bmp"]


def test_a_folder_is_a_manifest_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "9.webp", "b.JPG", "notes.txt", ".hidden.png"):
        write(tmp_path, b"x", name)
    (tmp_path / "sub.png").mkdir()
    manifest = read_manifest(tmp_path, prompt="pan left")
    assert [(r.id, r.image, r.prompt, r.number) for r in manifest.good] == [
        ("9", "9.webp", "pan left", 1),
        ("10", "10.png", "pan left", 2),
        ("b", "b.JPG", "pan left", 3),
    ]
    assert manifest.bad == []
    assert read_image_bytes(manifest, manifest.good[0]) == b"x"


def test_ids_from_images(tmp_path: Path) -> None:
    rows = read(
        tmp_path, "id,image,prompt\n,pics/a.b.png,p\n,win\\c.png,p\n,https://x.org/d/e.png?v=1.2,p\n,..,p\n"
    ).rows
    assert [row.id for row in rows] == ["a.b", "c", "e", ".."]
    assert isinstance(rows[3], BadRow)


def test_candidates_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = read(tmp_path, "id,image,prompt,candidates\na,a.png,p,3\nb,b.png,p,1\na-c2,a.png,p,\nc,c.png,p,17\n").rows
    assert [(r.id, r.candidate, r.number) for r in rows if isinstance(r, Row)] == [
        ("a-c1", 0, 1),
        ("a-c2", 1, 1),
        ("a-c3", 2, 1),
        ("b", 0, 2),
    ]
    assert "already the id of row 1" in faults(rows[4])["id"]
    assert "from 1 to 16" in faults(rows[5])["candidates"]


def test_numbers_as_data_frames_write_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1001.0, 1002.0]),
            "image": [b"a.png", b"b.png"],
            "prompt": pa.array(["p", "p"]).dictionary_encode(),
            "frames": [24.0, float("nan")],
            "thumbnail": [b"\xff\xd8", b"\xff\xd8"],
            "price": [9.5, float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    rows = read_manifest(tmp_path / "c.parquet").good
    assert [(r.id, r.image, r.frames, r.extra) for r in rows] == [
        ("1001", "a.png", 24, {"price": 9.5}),
        ("1002", "b.png", None, {}),
    ]


_WORD = st.text(string.ascii_letters + string.digits + "äé雪 ,;\"'\n-_", max_size=12).map(str.strip)
_ROW = st.fixed_dictionaries(
    {"image": st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}\.png", fullmatch=True), "prompt": _WORD.filter(bool)},
    optional={
        "negative_prompt": _WORD,
        "resolution_class": st.sampled_from([c.value for c in ResolutionClass]),
        "tier": st.sampled_from([t.value for t in Tier]),
        "frames": st.integers(1, 100),
        "seed": st.integers(0, 2**63 - 1),
        "guidance": st.floats(1, 20),
        "candidates": st.integers(1, 3),
        "Brand": _WORD,
    },
)


@given(contents=st.lists(_ROW, min_size=1, max_size=5), delimiter=st.sampled_from(",;\t"))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_jsonl_and_parquet_agree_and_lose_nothing(
    tmp_path: Path, contents: list[dict[str, object]], delimiter: str
) -> None:
    contents = [{"id": f"row {i}", **content} for i, content in enumerate(contents)]
    names = sorted({name for content in contents for name in content})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(contents)
    from_csv = read(tmp_path, text.getvalue())
    from_jsonl = read(tmp_path, "\n".join(json.dumps(c, ensure_ascii=False) for c in contents), "c.jsonl")
    pq.write_table(pa.Table.from_pylist(contents, schema=_schema(names)), tmp_path / "c.parquet")
    from_parquet = read_manifest(tmp_path / "c.parquet")

    assert from_csv.bad == []
    assert [shown(r) for r in from_csv.good] == [shown(r) for r in from_jsonl.good]
    assert [shown(r) for r in from_csv.good] == [shown(r) for r in from_parquet.good]
    first_candidates = [r for r in from_csv.good if r.candidate == 0]
    for row, content in zip(first_candidates, contents, strict=True):
        columns = row.model_dump(mode="json", exclude={"id", "number", "line", "extra", "candidate"}, exclude_none=True)
        wanted = {k: v for k, v in content.items() if k not in ("id", "Brand") and v != ""}
        assert columns == {"candidates": 1, **wanted}
        assert row.extra == ({"Brand": content["Brand"]} if content.get("Brand") else {})


def _schema(names: list[str]) -> pa.Schema:
    kinds = {"frames": pa.int64(), "seed": pa.int64(), "guidance": pa.float64(), "candidates": pa.int32()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


@pytest.mark.skipif(not CATALOG.exists(), reason="the shared catalog is not here")
def test_the_real_catalog() -> None:
    manifest = read_manifest(CATALOG)
    assert manifest.bad == []
    assert len(manifest.good) == 101
    assert {frozenset(row.extra) for row in manifest.good} == {frozenset({"brand", "category", "price"})}
    last = manifest.good[-1]
    assert (last.number, last.line, last.id, last.extra["price"]) == (101, 102, "SKU-101", "135.99")
    assert all(read_image_bytes(manifest, row)[8:12] == b"WEBP" for row in manifest.good)


# --- bad rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", "  ", "the prompt is empty"),
        ("image", "", "names no image"),
        ("resolution_class", "4k", "'4k' is not a resolution class"),
        ("model", "sora", "Choose one of: camera"),
        ("tier", "best", "draft, standard, high"),
        ("fit", "squeeze", "contain, cover, stretch"),
        ("aspect", "9:0", "'9:0' is not an aspect ratio"),
        ("aspect", f"{'9' * 400}:1", "is not an aspect ratio"),
        ("sampler", "magic", "Choose one of: ddim, dpmpp-2m"),
        ("window", "-1", "-1 is not from 0"),
        ("window_overlap", "x", "'x' is not a whole number"),
        ("step_cache", "0", "0 is not from 1"),
        ("motion_class", "300p", "'300p' is not a motion class"),
        ("from_draft", "perhaps", "'perhaps' is neither yes nor no"),
        ("strength", "half", "'half' is not a number"),
        ("upscale", "wide", "Choose one of: latents, frames."),
        ("frames", "abc", "'abc' is not a whole number"),
        ("frames", "-8", "-8 is not from 1"),
        ("frames", "0", "0 is not from 1"),
        ("frames", "8.5", "'8.5' is not a whole number"),
        ("frames", "1_6", "'1_6' is not a whole number"),
        ("frames", "9" * 5000, "is not a whole number"),
        ("fps", "61", "61 is not from 1 to 60"),
        ("steps", "-1", "-1 is not from 1"),
        ("guidance", "30.5", "'30.5' is not from 1 to 30"),
        ("guidance", "0,5", "'0,5' is not from 1 to 30"),
        ("strength", "0", "0 is not above 0, at most 1"),
        ("seconds", "0", "0 is not above 0, at most 600"),
        ("frames", "1.000", "'1.000' can be 1 or 1000"),
        ("steps", "1,000", "'1,000' can be 1 or 1000"),
        ("frames", "1e9", "'1e9' is not from 1 to 100000"),
        ("fps", "#N/A", "'#N/A' is not a whole number"),
        ("prompt", "#REF!", "#REF! is a spreadsheet's error"),
        ("image", "=A2&B2", "is a formula, not its value"),
        ("prompt", '=CONCAT("zoom";A2)', "is a formula, not its value"),
        ("prompt", "x" * 20_001, "more than 20,000"),
        ("id", "a\u202egnp", "turns the direction of writing"),
        ("guidance", "nan", "'nan' is not a number"),
        ("guidance", "inf", "'inf' is not a number"),
        ("seed", "-1", "-1 is not from 0"),
        ("seed", str(2**63), "is not from 0"),
        ("priority", "1001", "1001 is not from -1000 to 1000"),
        ("id", "a/b", "holds a path separator"),
        ("id", "a\\b", "holds a path separator"),
        ("id", "..", "begins with a dot"),
        ("id", "a\x07b", "holds a control character"),
        ("id", "x" * 129, "longer than 128 characters"),
        ("id", "雪" * 100, "longer than 128 characters"),
        ("id", "first", "'first' is already the id of row 1"),
        ("prompt", "a\0b", "NUL"),
        ("brand", "a\0b", "NUL"),
    ],
)
def test_a_bad_value_is_named_and_costs_one_row(tmp_path: Path, column: str, value: str, message: str) -> None:
    good = {"id": "first", "image": "a.png", "prompt": "pan"}
    names = list(dict.fromkeys([*good, column]))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows([good, {**good, "id": "second", column: value}, {**good, "id": "third"}])
    first, bad, third = read(tmp_path, text.getvalue()).rows
    assert (first.id, third.id) == ("first", "third")
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert list(faults(bad)) == [column]
    assert message in faults(bad)[column]
    assert (bad.number, bad.line) == (2, 3)


def test_columns_of_diffusion(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        "image,prompt,Sampler,window,Window Overlap,step_cache,motion_class,from_draft,strength,upscale,aspect\n"
        "a.png,p,DDIM,16,4,3,256p,no,0.4,Frames,4:1\n"
        "b.png,p,,0,,1,,Yes,,,\n",
    ).good
    fields = ("sampler", "window", "window_overlap", "step_cache", "motion_class", "from_draft", "strength", "upscale")
    assert [[getattr(row, name) for name in fields] for row in rows] == [
        [Sampler.DDIM, 16, 4, 3, ResolutionClass.P256, False, 0.4, Upscale.FRAMES],
        [None, 0, None, 1, None, True, None, None],
    ]
    assert not any(row.extra for row in rows)
    # How wide a clip can be is for the family's side to say: there it is adjusted, or refused where asked.
    assert rows[0].aspect == "4:1"


def test_booleans_of_a_typed_file(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.png", "b.png", "c.png"], "prompt": ["p"] * 3, "from_draft": [True, False, None]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert [row.from_draft for row in read_manifest(tmp_path / "c.parquet").good] == [True, False, None]


def test_a_model_that_reads_no_prompts_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mute = dataclasses.replace(FAMILIES["i2vgen-xl"], name="mute", uses_prompt=False)
    families = {**FAMILIES, "mute": mute}
    monkeypatch.setattr(cluster.catalog.manifest, "FAMILIES", families)
    monkeypatch.setattr(cluster.catalog.cells, "family_named", families.__getitem__)
    path = write(tmp_path, "image,prompt,model\na.png,,\nb.png,,camera\nc.png,,mute\n", "c.csv")
    by_mute = read_manifest(path, model="mute").rows
    assert [isinstance(row, Row) for row in by_mute] == [True, False, True]
    assert [isinstance(row, Row) for row in read_manifest(path, model="camera").rows] == [False, False, True]
    assert [isinstance(row, Row) for row in read_manifest(path).rows] == [False, False, True]
    folder = tmp_path / "stills"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    assert [row.prompt for row in read_manifest(folder, model="mute").good] == [None]
    with pytest.raises(ManifestError, match="--prompt"):
        read_manifest(folder, model="camera")


def test_all_problems_of_a_row_are_told(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "id,image,prompt,frames,tier,model\na/b,,,x,y,z\n").rows
    assert set(faults(row)) == {"id", "image", "prompt", "frames", "tier", "model"}


def test_a_bad_first_row_still_holds_its_id(tmp_path: Path) -> None:
    first, second = read(tmp_path, "id,image,prompt\na,a.png,\na,a.png,p\n").rows
    assert set(faults(first)) == {"prompt"}
    assert "row 1" in faults(second)["id"]


def test_bytes_that_are_not_utf8_cost_their_row_only(tmp_path: Path) -> None:
    data = "id,image,prompt\na,a.png,café\nb,b.png,tea\n".encode("cp1252") + "c,c.png,thé\n".encode()
    bad, tea, the = read(tmp_path, data).rows
    assert list(faults(bad)) == ["prompt"]
    assert "0xE9" in faults(bad)["prompt"]
    assert "UTF-8" in faults(bad)["prompt"]
    faults(bad)["prompt"].encode()  # can itself be stored and printed
    assert [row.prompt for row in (tea, the) if isinstance(row, Row)] == ["tea", "thé"]


def test_broken_quotes_cost_their_row_only(tmp_path: Path) -> None:
    text = (
        'id,image,prompt\na,a.png,"never closed\nb,b.png,"fine, really"\nc,c.png,"5" lens"\n'
        'd,d.png,p,,\ne,e.png,x,y\nf,f.png,"\n'
    )
    rows = read(tmp_path, text).rows
    assert [row.id for row in rows if isinstance(row, Row)] == ["b", "d"]
    assert [(row.line, list(faults(row))) for row in rows if isinstance(row, BadRow)] == [
        (2, ["row"]),
        (4, ["row"]),
        (6, ["row"]),
        (7, ["row"]),
    ]
    assert "4 cells, the header 3" in faults(rows[4])["row"]


def test_bad_lines_of_jsonl(tmp_path: Path) -> None:
    good = '{"id": "%s", "image": "a.png", "prompt": "p"}'
    lines = [
        good % "a",
        "{oops",
        "[1]",
        "",
        '{"id": "n", "image": "a.png", "prompt": "p", "guidance": NaN}',
        '{"id": "s", "image": "a.png", "prompt": "\\ud800"}',
        '{"id": "t", "image": "a.png", "prompt": "p", "frames": true, "guidance": [1]}',
        '{"id": "u", "ID": "v", "image": "a.png", "prompt": "p"}',
        '{"id": "w", "image": "a.png", "prompt": "p", "x": {"y": ["\\u0000"]}}',
        "[" * 100_000,
        good % "z",
    ]
    rows = read(tmp_path, "\n".join(lines), "c.ndjson").rows
    assert [row.id for row in rows if isinstance(row, Row)] == ["a", "z"]
    assert [list(faults(row)) for row in rows[1:-1]] == [
        ["row"],
        ["row"],
        ["row"],
        ["prompt"],
        ["frames", "guidance"],
        ["id"],
        ["x"],
        ["row"],
    ]
    assert [row.line for row in rows] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_json_extras_keep_their_types(tmp_path: Path) -> None:
    line = (
        '{"image": "a.png", "prompt": "p", "price": 9.5, "tags": ["a", null], "sale": false, "big": [1e999], "no": ""}'
    )
    (row,) = read(tmp_path, line, "c.jsonl").good
    assert row.extra == {"price": 9.5, "tags": ["a", None], "sale": False, "big": [None]}
    assert json.loads(row.model_dump_json())["extra"] == row.extra


def test_parquet_text_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    offsets = pa.array([0, 3, 4], pa.int32()).buffers()[1]
    prompts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"caf\xe9"[1:] + b"p"))
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "prompt": prompts}), tmp_path / "c.parquet")
    bad, good = read_manifest(tmp_path / "c.parquet").rows
    assert list(faults(bad)) == ["prompt"]
    assert isinstance(good, Row)
    assert good.prompt == "p"


@given(data=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]), header=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_escape_the_two_answers(tmp_path: Path, data: bytes, suffix: str, header: bool) -> None:
    """Whatever is in the file: rows that can be stored as UTF-8, or a `ManifestError`."""
    try:
        manifest = read(tmp_path, b"id,image,prompt\n" + data if header else data, f"c{suffix}")
    except ManifestError as error:
        str(error).encode()
        return
    for row in manifest.rows:
        assert b"\\u0000" not in row.model_dump_json().encode()


# --- unreadable manifests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.csv", b"", "it is empty"),
        ("c.csv", b" \n\n", "it is empty"),
        ("c.csv", b"\xef\xbb\xbf\n", "it is empty"),
        ("c.csv", b"id,image,prompt\n", "it has no rows"),
        ("c.csv", b"id,img,prompt\na,b,c\n", "no column 'image'"),
        ("c.csv", b"SKU-1,a.png,pan left\nSKU-2,b.png,pan\n", "no column 'image'"),
        ("c.csv", b"id,images,prompt\na,b,c\n", "Is 'images' meant?"),
        ("c.csv", b"id,image,Image\na,b,c\n", "two columns called 'image'"),
        ("c.csv", "id,image,größe,名\na,b,c\n".encode()[:-12] + b"\xdf\na,b,c\n", "header is not text"),
        ("c.csv", b"id,image,Not Before,NOT-BEFORE\na,b,c,d\n", "two columns called 'not_before'"),
        ("c.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "header is not text"),
        ("c.csv", b'id,"image,prompt\na,b,c\n', "header is not CSV"),
        ("c.csv", "id,picture\na,b\n".encode("utf-16"), "no column 'image'"),
        ("c.csv", b"\xff\xfei\0d\0,", "damaged"),
        ("c.jsonl", b'[{"image": "a"}]', "no line is a JSON object"),
        ("c.jsonl", b"\x89PNG\r\n\x1a\n\0\0", "no line is a JSON object"),
        ("c.parquet", b"PAR1 and nothing PAR1", "it is not Parquet"),
        ("c.parquet", b"id,image,prompt\na,b,c\n", "it is not Parquet"),
        ("c.xlsx", b"PK", "Save its table as 'CSV UTF-8'"),
        ("catalog", b"id,image,prompt\n", "without suffix"),
    ],
)
def test_an_unreadable_manifest(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, data, name)
    assert message in str(caught.value)
    assert caught.value.path == tmp_path / name
    assert caught.value.remedy.endswith((".", "?"))


def test_a_parquet_column_whose_name_is_not_text(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png"], "prompt": ["p"]}), file, store_schema=False)
    with pytest.raises(ManifestError, match="not Parquet"):
        read(tmp_path, file.getvalue().replace(b"prompt", b"pr\xb1mpt"), "c.parquet")


def test_manifests_that_are_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (("none.csv", "no such file"), ("none", "no such file"), ("pipe.csv", "not a regular file")):
        with pytest.raises(ManifestError, match=message):
            read_manifest(tmp_path / name)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(f"{tmp_path}/a\0b.csv")


def test_folders_that_say_too_little(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no image in this folder"):
        read_manifest(tmp_path, prompt="pan")
    write(tmp_path, b"x", "a.png")
    with pytest.raises(ManifestError, match="--prompt"):
        read_manifest(tmp_path, prompt="  ")
