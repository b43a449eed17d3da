"""Whatever lies in OUT before: nothing that clipmill did not write is lost, and what is refused is named."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.catalog.manifest import BadRow, read_manifest
from cluster.catalog.names import file_stem
from cluster.results.export import RECORDS, BatchSummary, ResultRow, write_clip, write_sheet
from cluster.results.ownership import (
    Inputs,
    OutFolder,
    ResultsError,
    RowRefusedError,
    twins,
    with_refusals,
)
from cluster.storage import Storage
from tests.building import still_png

NFC, NFD = "caf\u00e9", "cafe\u0301"
MINE = b"the customer's own"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return filled(Storage(tmp_path / "farm"))


def filled(storage: Storage) -> Storage:
    for clip in ("1", "2"):
        storage.put_bytes(f"clips/{clip}/clip.mp4", f"video {clip}".encode())
        storage.put_bytes(f"clips/{clip}/poster.jpg", f"poster {clip}".encode())
        storage.put_bytes(f"clips/{clip}/provenance.json", json.dumps({"clip": clip}).encode())
    return storage


def row(row_id: str, clip: str = "1") -> ResultRow:
    return ResultRow(
        id=row_id,
        number=1,
        prompt="zoom in",
        state="completed",
        video_key=f"clips/{clip}/clip.mp4",
        poster_key=f"clips/{clip}/poster.jpg",
        provenance_key=f"clips/{clip}/provenance.json",
    )


def names(row_id: str) -> list[str]:
    return [f"{file_stem(row_id)}{suffix}" for suffix in (".mp4", ".jpg", ".json")]


def make_foreign(path: Path, kind: str, outside: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_bytes(MINE)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
        (path / "inside.txt").write_bytes(MINE)
    elif kind == "link":
        path.symlink_to(outside / "photo.jpg")
    elif kind == "link to a folder":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to(outside / "nowhere")
    elif kind == "hard link":
        path.hardlink_to(outside / "photo.jpg")
    else:
        os.mkfifo(path)


KINDS = ["file", "empty", "folder", "link", "link to a folder", "dangling", "hard link", "pipe"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"a photo")
    return folder


def seen(folder: Path) -> dict[str, object]:
    """Everything below `folder` by path: bytes, where a link points, or what it is."""
    found: dict[str, object] = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root) / name
            at = str(path.relative_to(folder))
            if path.is_symlink():
                found[at] = ("link", str(path.readlink()))
            elif path.is_file():
                found[at] = path.read_bytes()
            else:
                found[at] = "folder" if path.is_dir() else "special"
    return found


# --- one row ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".mp4", ".jpg", ".json"])
def test_what_is_there_is_never_touched_and_the_row_says_which(
    tmp_path: Path, storage: Storage, outside: Path, kind: str, suffix: str
) -> None:
    out = tmp_path / "out"
    make_foreign(out / f"SKU-1{suffix}", kind, outside)
    before = seen(tmp_path)
    with pytest.raises(RowRefusedError) as refused:
        write_clip(out, row("SKU-1"), storage)
    assert str(out / f"SKU-1{suffix}") in refused.value.problem.message
    assert "--out" in refused.value.problem.remedy
    after = seen(tmp_path)
    assert before.items() <= after.items()
    assert [name for name in after if name.startswith("out/SKU-1")] == [
        name for name in before if name.startswith("out/SKU-1")
    ], "some of a refused row was written"
    assert set(OutFolder(out).refusals(["SKU-1", "SKU-2"])) == {"SKU-1"}
    assert write_clip(out, row("SKU-2"), storage) == names("SKU-2")


def test_what_is_already_what_would_be_written_is_taken_over(tmp_path: Path, storage: Storage) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_clip(one, row("a"), storage)
    two.mkdir()
    for name in names("a"):
        shutil.copy(one / name, two / name)
    write_clip(two, row("a"), storage)
    # Now it is known to be ours: another clip replaces it.
    assert write_clip(two, row("a", "2"), storage) == names("a")
    assert (two / "a.mp4").read_bytes() == b"video 2"


def test_an_edited_file_is_kept_under_another_name(tmp_path: Path, storage: Storage) -> None:
    write_clip(tmp_path, row("a"), storage)
    for text in ("first", "second"):
        (tmp_path / "a.jpg").write_text(f"retouched, {text}")
        told: list[str] = []
        assert write_clip(tmp_path, row("a"), storage, told=told.append) == ["a.jpg"]
        assert (tmp_path / "a.jpg").read_bytes() == b"poster 1"
        assert len(told) == 1
        assert "a.edited" in told[0]
    assert (tmp_path / "a.edited.jpg").read_text() == "retouched, first"
    assert (tmp_path / "a.edited-2.jpg").read_text() == "retouched, second"


def test_an_edit_with_size_and_time_of_the_original_is_seen_before_it_is_replaced(
    tmp_path: Path, storage: Storage
) -> None:
    write_clip(tmp_path, row("a"), storage)
    times = (tmp_path / "a.mp4").stat().st_mtime_ns
    (tmp_path / "a.mp4").write_bytes(b"VIDEO 1")
    os.utime(tmp_path / "a.mp4", ns=(times, times))
    write_clip(tmp_path, row("a", "2"), storage)
    assert (tmp_path / "a.mp4").read_bytes() == b"video 2"
    assert (tmp_path / "a.edited.mp4").read_bytes() == b"VIDEO 1"


@pytest.mark.parametrize("spelling", ["same", "hard link", "link in out"])
def test_a_picture_of_this_run_is_no_place_for_a_result(tmp_path: Path, storage: Storage, spelling: str) -> None:
    write_clip(tmp_path, row("a"), storage)
    image = "a.jpg"
    if spelling == "hard link":
        image = "pic.jpg"
        (tmp_path / image).hardlink_to(tmp_path / "a.jpg")
    elif spelling == "link in out":
        image = "pic.jpg"
        (tmp_path / "a.jpg").rename(tmp_path / image)
        (tmp_path / "a.jpg").symlink_to(image)
    inputs = Inputs.of(tmp_path, [(7, image)])
    folder = OutFolder(tmp_path, inputs)
    problem = folder.refusals(["a"])["a"]
    assert "row 7" in problem.message
    assert "a.jpg" in problem.message
    with pytest.raises(RowRefusedError, match="row 7"):
        write_clip(tmp_path, row("a", "2"), storage, inputs=inputs)
    assert (tmp_path / "a.jpg").read_bytes() == b"poster 1"


def test_records_of_earlier_versions_are_understood(tmp_path: Path, storage: Storage) -> None:
    """As 6354041 wrote them: size, time, SHA-256 and source, nothing else."""
    write_clip(tmp_path, row("a"), storage)
    path = tmp_path / RECORDS / "a.json"
    old = {
        name: {key: facts[key] for key in ("size_bytes", "mtime_ns", "sha256", "source")}
        for name, facts in json.loads(path.read_bytes()).items()
    }
    path.write_text(json.dumps(old, indent=1))
    assert OutFolder(tmp_path).refusals(["a"]) == {}
    assert write_clip(tmp_path, row("a"), storage) == []
    assert write_clip(tmp_path, row("a", "2"), storage) == names("a")
    assert not list(tmp_path.glob("*edited*"))


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_writer_that_is_killed_leaves_nothing_of_which_nobody_knows_whose_it_is(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    class KilledError(BaseException):
        pass

    write_clip(tmp_path, row("a"), storage)
    bring = OutFolder.bring
    calls: list[str] = []

    def dying(self, temporary, name, known, new):  # type: ignore[no-untyped-def]
        if len(calls) >= files:
            raise KilledError
        calls.append(name)
        bring(self, temporary, name, known, new)

    with monkeypatch.context() as patched:
        patched.setattr(OutFolder, "bring", dying)
        for _ in range(2):
            # The second time less is left to do.
            with suppress(KilledError):
                write_clip(tmp_path, row("a", "2"), storage)
            calls.clear()
    write_clip(tmp_path, row("a", "2"), storage)
    assert (tmp_path / "a.mp4").read_bytes() == b"video 2"
    assert (tmp_path / "a.jpg").read_bytes() == b"poster 2"
    assert sorted(p.name for p in tmp_path.glob("a*")) == sorted(names("a"))


def test_a_record_that_is_none_of_ours_is_kept(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / RECORDS).mkdir(parents=True)
    (tmp_path / RECORDS / "a.json").write_bytes(MINE)
    write_clip(tmp_path, row("a"), storage)
    assert MINE in seen(tmp_path).values()
    assert write_clip(tmp_path, row("a"), storage) == []


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling"])
@pytest.mark.parametrize("name", [".clipmill", ".clipmill/written"])
def test_a_foreign_thing_in_place_of_the_records_stops_the_run_before_it_begins(
    tmp_path: Path, outside: Path, kind: str, name: str
) -> None:
    out = tmp_path / "out"
    make_foreign(out / name, kind, outside)
    before = seen(tmp_path)
    with pytest.raises(ResultsError, match="records") as refused:
        OutFolder(out).refusals(["a"])
    assert not isinstance(refused.value, RowRefusedError)
    assert str(out / name) in str(refused.value)
    assert seen(tmp_path) == before


def test_the_folder_of_the_pictures_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "out").symlink_to("pics")
    with pytest.raises(ResultsError, match="folder of the pictures"):
        OutFolder(tmp_path / "out").refuse_as_input(tmp_path / "pics")
    OutFolder(tmp_path / "new").refuse_as_input(tmp_path / "pics")


class Busy(Storage):
    """A storage beside which somebody saves a file while an object is fetched."""

    def __init__(self, url: Path, path: Path) -> None:
        super().__init__(url)
        self.path = path

    def get_to(self, key: str, path: str | Path) -> None:
        super().get_to(key, path)
        self.path.write_bytes(MINE)


@pytest.mark.parametrize("written_before", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".json"])
def test_a_file_that_comes_between_check_and_writing_is_not_lost(
    tmp_path: Path, storage: Storage, suffix: str, written_before: bool
) -> None:
    if written_before:
        write_clip(tmp_path, row("a"), storage)
    busy = Busy(tmp_path / "farm", tmp_path / f"a{suffix}")
    with suppress(RowRefusedError):
        write_clip(tmp_path, row("a", "2"), busy)
    assert MINE in seen(tmp_path).values()
    with suppress(RowRefusedError):
        write_clip(tmp_path, row("a", "2"), Storage(tmp_path / "farm"))
    assert MINE in seen(tmp_path).values()


def test_two_that_write_the_same_rows_at_once_are_in_nobodys_way(tmp_path: Path, storage: Storage) -> None:
    """Two terminals with one command, again and again, the clip another one each time."""
    refused: list[RowRefusedError] = []
    start = threading.Barrier(4)

    def run(clip: str) -> None:
        start.wait()
        try:
            write_clip(tmp_path, row("a", clip), storage)
        except RowRefusedError as error:
            refused.append(error)

    for turn in range(10):
        threads = [threading.Thread(target=run, args=("12"[turn % 2],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (tmp_path / "a.mp4").read_bytes() == f"video {'12'[turn % 2]}".encode()
    assert refused == []
    assert sorted(path.name for path in tmp_path.glob("a*")) == sorted(names("a"))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [("SKU-1", "sku-1"), (NFC, NFD), (NFC.upper(), NFD), ("STRASSE", "straße"), ("ſ", "S")]
)
def test_two_names_that_some_disk_takes_for_one_are_not_both_written(first: str, second: str) -> None:
    found = twins(["other", first, second])
    assert set(found) == {second}
    assert repr(first) in found[second].message


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("SKU-1", "sku-1", "upper and lower case"),
        (NFC, NFD, "the form of its accents"),
        ("\ufb01n", "fin", "ligatures"),
        ("STRASSE", "straße", "ß for ss"),
        ("K-1", "\u212a-1", "KELVIN SIGN for LATIN CAPITAL LETTER K"),
    ],
)
def test_the_reason_names_what_differs(first: str, second: str, how: str) -> None:
    assert how in twins([first, second])[second].message


def test_names_that_differ_are_no_twins() -> None:
    assert twins(["a", "b", "ä", "a ", "a-c1", "cafe", NFC]) == {}


def test_a_disk_that_takes_two_names_for_one_keeps_what_it_has(tmp_path: Path, storage: Storage) -> None:
    """What such a disk answers for `SKU-1` once `sku-1` was written, of an earlier catalog: everything is there."""
    write_clip(tmp_path, row("sku-1"), storage)
    for name in names("sku-1"):
        (tmp_path / name.replace("sku", "SKU")).hardlink_to(tmp_path / name)
    (tmp_path / RECORDS / "SKU-1.json").hardlink_to(tmp_path / RECORDS / "sku-1.json")
    before = seen(tmp_path)
    assert "one to this disk" in OutFolder(tmp_path).refusals(["SKU-1"])["SKU-1"].message
    for clip in ("1", "2"):
        with pytest.raises(RowRefusedError, match="sku-1"):
            write_clip(tmp_path, row("SKU-1", clip), storage)
    assert seen(tmp_path) == before


def test_a_clip_that_replaces_another_catalogs_is_told(tmp_path: Path, storage: Storage) -> None:
    told: list[str] = []
    write_clip(tmp_path, row("a"), storage, catalog="A", told=told.append)
    write_clip(tmp_path, row("a", "2"), storage, catalog="A", told=told.append)
    assert told == []
    write_clip(tmp_path, row("a"), storage, catalog="B", told=told.append)
    assert len(told) == 1
    assert "another catalog" in told[0]


def test_only_the_refused_row_of_a_manifest_fails(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(still_png())
    (tmp_path / "c.csv").write_text("id,image,prompt\nSKU-1,a.png,zoom\nsku-1,a.png,pan\nSKU-2,a.png,tilt\n")
    manifest = read_manifest(tmp_path / "c.csv")
    checked = with_refusals(manifest, twins(row.id for row in manifest.good))
    assert [row.id for row in checked.good] == ["SKU-1", "SKU-2"]
    (bad,) = checked.bad
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.line, bad.problems[0].field) == ("sku-1", 3, "id")


def test_odd_names_are_written_where_the_disk_takes_them(tmp_path: Path, storage: Storage) -> None:
    odd = ["A:B", "Q?", "CON", "a.", "<i>", "x|y", "50%*", 'say "hi"', "日本", NFD]
    assert OutFolder(tmp_path).refusals(odd) == {}
    for name in odd:
        assert write_clip(tmp_path, row(name), storage) == names(name)
    assert [path.name for path in (tmp_path / ".clipmill").iterdir()] == ["written"]


def test_a_name_that_the_disk_refuses_fails_alone(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NTFS with `windows_names` answers: EINVAL for every call that would make such a name."""
    forbid(monkeypatch, "é")
    assert set(OutFolder(tmp_path).refusals(["Qé", "SKU-1", "ü"])) == {"Qé"}
    with pytest.raises(RowRefusedError, match="Q") as refused:
        write_clip(tmp_path, row("Qé"), storage)
    assert "id" in refused.value.problem.remedy
    assert write_clip(tmp_path, row("SKU-1"), storage) == names("SKU-1")


def forbid(monkeypatch: pytest.MonkeyPatch, character: str) -> None:
    import errno

    from pipeline import placing

    real_open, real_rename = Path.open, placing._rename

    def refuse(path: object) -> None:
        if character in Path(str(path)).name:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))

    def opened(self: Path, mode: str = "r", *args, **options):  # type: ignore[no-untyped-def]
        if "r" not in mode:
            refuse(self)
        return real_open(self, mode, *args, **options)

    def renamed(source: Path, target: Path, flags: int) -> bool:
        refuse(target)
        return real_rename(source, target, flags)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(placing, "_rename", renamed)


# --- the page -----------------------------------------------------------------------------------


def test_two_pages_written_at_once_are_in_nobodys_way(tmp_path: Path) -> None:
    threads = [threading.Thread(target=page, args=(tmp_path, f"{key}.csv", key)) for key in "AABBCC"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.glob("*.html"))) == 3


def page(out: Path, name: str, catalog: str, told: list[str] | None = None) -> Path:
    return write_sheet(out, name, [], BatchSummary(), catalog=catalog, told=(told if told is not None else []).append)


def test_two_catalogs_have_a_page_each(tmp_path: Path) -> None:
    assert page(tmp_path, "spring.csv", "A") == tmp_path / "index.html"
    first = (tmp_path / "index.html").read_bytes()
    assert page(tmp_path, "summer.csv", "B") == tmp_path / "index-summer.html"
    assert (tmp_path / "index.html").read_bytes() == first
    # Again and again: each keeps its own.
    assert page(tmp_path, "summer.csv", "B").name == "index-summer.html"
    assert page(tmp_path, "spring.csv", "A").name == "index.html"
    assert page(tmp_path, "summer.csv", "C").name == "index-summer-2.html"


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_page_stays(tmp_path: Path, outside: Path, kind: str) -> None:
    out = tmp_path / "out"
    make_foreign(out / "index.html", kind, outside)
    before = seen(tmp_path)
    assert page(out, "spring.csv", "A") == out / "index-spring.html"
    assert page(out, "spring.csv", "A") == out / "index-spring.html"
    assert before.items() <= seen(tmp_path).items()


def test_an_edited_page_is_kept(tmp_path: Path) -> None:
    page(tmp_path, "spring.csv", "A")
    (tmp_path / "index.html").write_bytes(MINE)
    told: list[str] = []
    assert page(tmp_path, "spring.csv", "A", told).name == "index.html"
    assert (tmp_path / "index.edited.html").read_bytes() == MINE
    assert told


def test_a_page_of_a_version_that_recorded_none_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    page(tmp_path, "spring.csv", "A")
    old = (tmp_path / "index.html").read_bytes()
    shutil.rmtree(tmp_path / ".clipmill")
    assert page(tmp_path, "spring.csv", "A") == tmp_path / "index.html"
    assert (tmp_path / "index.before.html").read_bytes() == old


def test_a_page_has_no_name_that_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(MINE)
    found = page(tmp_path, "../../a b/ü?.csv", "A")
    assert found.parent == tmp_path
    assert page(tmp_path, "..", "B").parent == tmp_path
    assert page(tmp_path, "x" * 300, "C").parent == tmp_path


# --- anything -----------------------------------------------------------------------------------

IDS = ["a", "A", NFC, NFD, "b", "CON", "a.edited"]
TARGETS = [name for row_id in IDS for name in names(row_id)]
PLACES = [*TARGETS, "index.html", "index-cat.html", *(f".clipmill/written/{file_stem(row_id)}.json" for row_id in IDS)]
EDITS = ["rewritten", "emptied", "replaced by a link", "deleted", "touched"]


@dataclass
class World:
    """An OUT as somebody finds it, and what in it must not be lost."""

    folder: Path
    #: Path below the folder -> what stands there and must stay there.
    foreign: dict[str, object] = field(default_factory=dict)
    #: What was edited: its bytes must be there still, under whatever name.
    edited: list[bytes] = field(default_factory=list)


def lay_out(folder: Path, earlier: list[tuple[str, str]], edits: dict[str, str], foreign: dict[str, str]) -> World:
    world = World(folder)
    out, outside = folder / "out", folder / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_bytes(b"a photo")
    storage = filled(Storage(folder / "farm"))
    for row_id, clip in earlier:
        write_clip(out, row(row_id, clip), storage)
    if earlier:
        page(out, "cat.csv", "A")
    for name, edit in edits.items():
        path = out / name
        if not path.is_file() or path.is_symlink():
            continue
        if edit == "rewritten":
            path.write_bytes(b"retouched " + name.encode())
            world.edited.append(b"retouched " + name.encode())
        elif edit == "emptied":
            path.write_bytes(b"")
        elif edit == "replaced by a link":
            path.unlink()
            path.symlink_to(outside / "photo.jpg")
            if name in TARGETS:
                world.foreign[f"out/{name}"] = ("link", str(outside / "photo.jpg"))
        elif edit == "deleted":
            path.unlink()
        else:
            os.utime(path, ns=(1, 1))
    for name, kind in foreign.items():
        path = out / name
        if not os.path.lexists(path):
            make_foreign(path, kind, outside)
            if name in PLACES[: len(TARGETS) + 2]:
                # With a record of an earlier file of that name it counts as an edit of it.
                recorded = name.rsplit(".", 1)[0] in {row_id for row_id, _ in earlier} or (earlier and "index" in name)
                if not recorded or kind not in ("file", "empty", "hard link"):
                    world.foreign |= {f"out/{name}": seen(folder)[f"out/{name}"]}
                else:
                    world.edited += [] if kind == "empty" else [path.read_bytes()]
            elif kind == "file":
                world.edited.append(MINE)
    world.foreign |= {f"outside/{name}": what for name, what in seen(outside).items()}
    return world


batches = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(["1", "2"])), max_size=5, unique_by=lambda r: r[0])


@settings(deadline=None, max_examples=80)
@given(
    earlier=batches,
    edits=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(EDITS), max_size=4),
    foreign=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(KINDS), max_size=5),
    batch=batches,
    catalog=st.sampled_from(["A", "B"]),
)
def test_whatever_lay_in_out_is_there_still(earlier, edits, foreign, batch, catalog) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as name:
        world = lay_out(Path(name), earlier, edits, foreign)
        out, storage = world.folder / "out", Storage(world.folder / "farm")
        known_problems = OutFolder(out).refusals([row_id for row_id, _ in batch])
        written = []
        for row_id, clip in batch:
            if row_id in known_problems:
                problem = known_problems[row_id]
            else:
                try:
                    write_clip(out, row(row_id, clip), storage)
                    written.append((row_id, clip))
                    continue
                except RowRefusedError as error:
                    problem = error.problem
            assert problem.field == "id" or any(str(out / name) in problem.message for name in names(row_id)), problem
        sheet = page(out, "cat.csv", catalog)
        after = seen(world.folder)
        for path, what in world.foreign.items():
            assert after.get(path) == what, f"{path} was lost"
        for content in world.edited:
            assert content in after.values(), f"{content!r} was lost"
        for row_id, clip in written:
            stem = file_stem(row_id)
            assert after[f"out/{stem}.mp4"] == f"video {clip}".encode()
            assert after[f"out/{stem}.jpg"] == f"poster {clip}".encode()
            assert json.loads(after[f"out/{stem}.json"])["row"]["id"] == row_id  # type: ignore[arg-type]
        assert sheet.read_bytes().startswith(b"<!doctype html>") or b"<html" in sheet.read_bytes()[:200]
        assert not [path for path in after if path.endswith((".part", ".old", ".names"))]
