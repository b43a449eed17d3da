import csv
import errno
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest

from cluster.results import export as results
from cluster.results.export import BatchSummary, ResultRow, ResultsError, write_clip, write_sheet, write_table
from cluster.storage import MissingObjectError, Storage
from pipeline.notes import Note
from pipeline.problems import Problem


@pytest.fixture
def storage(tmp_path):
    storage = Storage(tmp_path / "farm")
    storage.put_bytes("clips/1/clip.mp4", b"mp4 " * 100)
    storage.put_bytes("clips/1/poster.jpg", b"jpg " * 10)
    storage.put_bytes("clips/1/provenance.json", json.dumps({"model": "camera", "seed": 7}).encode())
    return storage


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def done(**changes) -> ResultRow:
    values = {
        "id": "SKU 1",
        "number": 1,
        "prompt": "zoom in",
        "state": "completed",
        "image": "pics/1.webp",
        "extra": {"brand": "Aria", "price": Decimal("9.90")},
        "video_key": "clips/1/clip.mp4",
        "poster_key": "clips/1/poster.jpg",
        "provenance_key": "clips/1/provenance.json",
    }
    return ResultRow(**(values | changes))


def write(what: str, out: Path, storage: Storage) -> None:
    if what == "clip":
        write_clip(out, done(), storage)
    else:
        write_sheet(out, "b", [done()], BatchSummary())


ALL = ["SKU 1.mp4", "SKU 1.jpg", "SKU 1.json"]


def test_a_clip_brings_its_poster_and_provenance(out, storage):
    assert write_clip(out, done(), storage, {"batch": "b1"}) == ALL
    assert (out / "SKU 1.mp4").read_bytes() == b"mp4 " * 100
    assert (out / "SKU 1.jpg").read_bytes() == b"jpg " * 10
    provenance = json.loads((out / "SKU 1.json").read_text())
    assert provenance == {
        "model": "camera",
        "seed": 7,
        "batch": "b1",
        "row": {
            "id": "SKU 1",
            "number": 1,
            "image": "pics/1.webp",
            "prompt": "zoom in",
            "extra": {"brand": "Aria", "price": "9.90"},
        },
        "adjusted": [],
    }


NOTED = (
    Note(code="frames_adjusted", message="frames 16 -> 17: it takes 4n+1"),
    Note(code="prompt_unused", message="no prompts"),
)


def test_the_provenance_says_what_became_of_this_row(out, storage):
    # The clip may be shared with a row whose wishes were adjusted otherwise.
    stored = {"adjusted": ["frames 15 -> 17: it takes 4n+1"], "lossy": []}
    storage.put_bytes("clips/1/provenance.json", json.dumps(stored).encode())
    write_clip(out, done(noted=NOTED), storage)
    provenance = json.loads((out / "SKU 1.json").read_text())
    assert provenance["adjusted"] == ["frames 16 -> 17: it takes 4n+1"]
    assert provenance["row"]["notes"] == ["no prompts"]
    assert [note["code"] for note in provenance["row"]["noted"]] == ["frames_adjusted", "prompt_unused"]
    write_clip(out, done(), storage)
    assert json.loads((out / "SKU 1.json").read_text())["adjusted"] == []


def test_the_same_clip_is_not_fetched_twice(out, storage):
    write_clip(out, done(), storage)
    for key in ("clip.mp4", "poster.jpg", "provenance.json"):
        storage.delete(f"clips/1/{key}")
    assert write_clip(out, done(), storage) == []


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("harm", ["deleted", "cut", "edited"])
def test_a_harmed_file_is_restored_alone(out, storage, name, harm):
    write_clip(out, done(), storage)
    path = out / name
    whole = path.read_bytes()
    if harm == "deleted":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, len(whole) // 2)
    else:
        path.write_bytes(b"#" * len(whole))
        os.utime(path, ns=(1, 1))
    assert write_clip(out, done(), storage) == [name]
    assert path.read_bytes() == whole
    assert write_clip(out, done(), storage) == []


def test_a_folder_copied_without_its_times_is_still_known(out, storage):
    write_clip(out, done(), storage)
    for name in ALL:
        os.utime(out / name, ns=(1, 1))
    storage.delete("clips/1/clip.mp4")
    assert write_clip(out, done(), storage) == []


def test_another_clip_of_the_row_replaces_the_old_one(out, storage):
    write_clip(out, done(), storage)
    storage.put_bytes("clips/2/clip.mp4", b"MP4 " * 100)
    assert write_clip(out, done(video_key="clips/2/clip.mp4"), storage) == ["SKU 1.mp4"]
    assert (out / "SKU 1.mp4").read_bytes() == b"MP4 " * 100


def test_a_changed_column_rewrites_the_provenance_only(out, storage):
    write_clip(out, done(), storage)
    assert write_clip(out, done(extra={"brand": "Other"}), storage) == ["SKU 1.json"]
    assert json.loads((out / "SKU 1.json").read_text())["row"]["extra"] == {"brand": "Other"}


def test_a_torn_record_costs_a_fetch_and_nothing_else(out, storage):
    write_clip(out, done(), storage)
    record = out / results.RECORDS / "SKU 1.json"
    record.write_bytes(record.read_bytes()[:20])
    assert write_clip(out, done(), storage) == ALL
    assert write_clip(out, done(), storage) == []


@pytest.mark.parametrize("state", ["failed", "cancelled", "queued", "running", "held"])
def test_a_row_without_a_clip_writes_nothing(out, storage, state):
    assert write_clip(out, done(state=state), storage) == []
    assert not out.exists()


def test_only_what_exists_is_written(out, storage):
    assert write_clip(out, done(poster_key=None, provenance_key=None), storage) == ["SKU 1.mp4"]


@pytest.mark.parametrize("bad", ["", "..", "a/b", "/etc/x", "a\0b"])
def test_an_id_cannot_leave_the_folder(out, storage, bad):
    with pytest.raises(ValueError, match="file name"):
        write_clip(out, done(id=bad), storage)


def test_a_missing_object_is_the_storages_fault(out, storage):
    with pytest.raises(MissingObjectError, match="clips/9"):
        write_clip(out, done(video_key="clips/9"), storage)
    assert not list(out.rglob("*.mp4"))


def test_provenance_that_is_no_object_is_refused(out, storage):
    storage.put_bytes("clips/3", b"[1, 2")
    with pytest.raises(ResultsError, match="clips/3"):
        write_clip(out, done(provenance_key="clips/3"), storage)


@pytest.mark.parametrize("call", ["clip", "sheet"])
def test_a_full_disk_says_what_where_and_what_to_do(out, storage, monkeypatch, call):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResultsError, match="no space is left") as caught:
        write(call, out, storage)
    assert str(out) in caught.value.problem.message
    assert "Make room" in caught.value.problem.remedy
    assert not [p for p in out.rglob("*") if p.is_file()]


@pytest.mark.parametrize("call", ["clip", "sheet"])
def test_an_out_that_is_a_file_is_refused(out, storage, call):
    out.write_bytes(b"mine")
    with pytest.raises(ResultsError, match="--out"):
        write(call, out, storage)
    assert out.read_bytes() == b"mine"


def test_a_folder_in_a_clips_place_is_outs_fault(out, storage):
    (out / "SKU 1.mp4").mkdir(parents=True)
    with pytest.raises(ResultsError, match=r"SKU 1\.mp4"):
        write_clip(out, done(), storage)


def test_too_long_an_id_is_told(out, storage):
    with pytest.raises(ResultsError, match="Shorten"):
        write_clip(out, done(id="x" * 254), storage)


def test_the_sheet_is_replaced_whole(out):
    first = write_sheet(out, "first", [], BatchSummary())
    problem = Problem(field="image", message="broken", remedy="Export it again.")
    second = write_sheet(out, "second", [done(state="failed", problem=problem)], BatchSummary())
    assert first == second == out / "index.html"
    assert "Export it again." in second.read_text()
    assert [p.name for p in out.iterdir() if p.name != ".clipmill"] == ["index.html"]


def test_the_table_has_every_row_with_its_notes_and_no_formulas(out):
    rows = [
        done(noted=NOTED, prompt="=HYPERLINK(1)"),
        done(id="-2", state="failed", problem=Problem(field="image", message="cut, off", remedy="Export it.")),
    ]
    path = write_table(out, "spring.csv", rows, catalog="A")
    assert path == out / "results.csv"
    first, second = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    assert (first["id"], first["file"], first["prompt"]) == ("SKU 1", "SKU 1.mp4", "'=HYPERLINK(1)")
    assert first["notes"] == "frames 16 -> 17: it takes 4n+1; no prompts"
    assert (first["note_codes"], first["worth_a_look"]) == ("frames_adjusted prompt_unused", "")
    assert (second["id"], second["state"], second["file"], second["problem"]) == ("'-2", "failed", "", "cut, off")


def test_a_table_never_takes_the_place_of_somebody_elses(out):
    out.mkdir()
    (out / "results.csv").write_text("mine")
    assert write_table(out, "spring.csv", [done()], catalog="A").name == "results-spring.csv"
    assert write_table(out, "spring.csv", [done(seed=8)], catalog="A").name == "results-spring.csv"
    assert write_table(out, "spring.csv", [done()], catalog="B").name == "results-spring-2.csv"
    assert (out / "results.csv").read_text() == "mine"
