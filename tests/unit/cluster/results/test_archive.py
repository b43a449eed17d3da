"""The zip of a batch's results: every file once, names safe everywhere, nothing held back, breaks seen."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

import pytest

from cluster.results.archive import MISSING, archive
from cluster.results.contact_sheet import ResultRow
from cluster.results.export import write_clip
from cluster.results.rows import JobResult
from cluster.storage import MissingObjectError, Storage, StorageError

NAMES = ["BAG-1", "bag-1", "Tasche ä", "a:b", "con", "=1+1", "Tasche a\u0308"]


@pytest.fixture
def storage(tmp_path) -> Storage:
    found = Storage(tmp_path / "storage")
    for number in range(len(NAMES)):
        found.put_bytes(f"clips/{number}/v", bytes([number]) * (3_000_000 if number == 0 else 10))
        found.put_bytes(f"clips/{number}/p", b"poster")
        found.put_bytes(f"clips/{number}/j", json.dumps({"model": "camera", "number": number}).encode())
    return found


def results() -> list[JobResult]:
    found = [
        JobResult(
            job_id=f"video_{number}",
            number=number + 1,
            updated_at=1_700_000_000,
            row=ResultRow(
                id=name,
                number=number + 1,
                prompt="pan",
                state="completed",
                video_key=f"clips/{number}/v",
                poster_key=f"clips/{number}/p",
                provenance_key=f"clips/{number}/j",
            ),
        )
        for number, name in enumerate(NAMES)
    ]
    failed = ResultRow(id="bad", number=99, prompt="", state="failed")
    return [*found, JobResult(job_id="video_x", number=99, updated_at=0, row=failed)]


def zipped(storage: Storage) -> zipfile.ZipFile:
    made = zipfile.ZipFile(io.BytesIO(b"".join(archive(results, storage, {"batch": {"id": "b"}}))))
    assert made.testzip() is None
    return made


def test_each_file_is_there_once_as_an_export_has_it(storage, tmp_path) -> None:
    made = zipped(storage)
    names = made.namelist()
    assert len({name.casefold() for name in names}) == len(names) == 3 * len(NAMES) + 1
    assert {info.compress_type for info in made.infolist()} == {zipfile.ZIP_STORED}
    assert made.read("BAG-1.mp4") == bytes(3_000_000)
    for number, stem in ((0, "BAG-1"), (3, "a%3Ab"), (4, "%63on"), (5, "=1+1")):
        out = tmp_path / stem
        write_clip(out, results()[number].row, storage, {"batch": {"id": "b"}})
        assert {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")} == {
            f"{stem}{suffix}": made.read(f"{stem}{suffix}") for suffix in (".mp4", ".jpg", ".json")
        }
    # What some disks take for another row's name has its place behind it.
    assert "bag-1-2.mp4" in names
    assert made.read("bag-1-2.mp4") == bytes([1]) * 10


def test_the_table_has_every_row(storage) -> None:
    rows = list(csv.DictReader(io.StringIO(zipped(storage).read("results.csv").decode("utf-8-sig"))))
    assert [row["state"] for row in rows] == ["completed"] * len(NAMES) + ["failed"]
    assert rows[5]["id"] == "'=1+1", "no formula"


def test_the_table_names_the_files_that_are_in_the_zip(storage) -> None:
    storage.delete("clips/4/v")
    asked = []

    def later() -> list[JobResult]:
        """One more row has completed when the rows are read again for the table."""
        asked.append(1)
        row = replace(results()[0].row, id="late", number=50)
        late = JobResult(job_id="video_l", number=50, updated_at=1, row=row)
        return results() if len(asked) == 1 else [*results(), late]

    made = zipfile.ZipFile(io.BytesIO(b"".join(archive(later, storage, {}))))
    rows = list(csv.DictReader(io.StringIO(made.read("results.csv").decode("utf-8-sig"))))
    named = {row["id"]: row["file"].removeprefix("'") for row in rows}
    assert sorted(filter(None, named.values())) == sorted(n for n in made.namelist() if n.endswith(".mp4"))
    assert {one for one, file in named.items() if not file} == {"con", "bad", "late"}
    assert made.read(named["bag-1"]) == bytes([1]) * 10


def test_another_program_reads_it(storage, tmp_path) -> None:
    if not shutil.which("unzip"):
        pytest.skip("there is no unzip")
    (tmp_path / "r.zip").write_bytes(b"".join(archive(results, storage, {})))
    subprocess.run(["unzip", "-q", "-t", tmp_path / "r.zip"], check=True)


def test_what_is_gone_is_named_and_the_rest_comes(storage) -> None:
    storage.delete("clips/0/v")
    storage.put_bytes("clips/3/j", b"[", replace=True)
    made = zipped(storage)
    assert made.read(MISSING).decode().splitlines() == [
        "BAG-1.mp4: its object is gone",
        "a%3Ab.json: its object is damaged",
    ]
    assert "BAG-1.jpg" in made.namelist()


def test_nothing_is_held_back_and_no_part_is_large(storage) -> None:
    parts = archive(results, storage, {})
    assert len(next(parts)) > 2**20 - 1, "the first clip is sent as it is read"
    assert max(map(len, parts)) < 2**20 + 4096


class Half(io.RawIOBase):
    """The beginning of a file, then a fault."""

    def __init__(self, file: BinaryIO, fault: Exception) -> None:
        self._file, self._fault, self._begun = file, fault, False

    def read(self, size: int = -1) -> bytes:
        if self._begun:
            raise self._fault
        self._begun = True
        return self._file.read(1000)


class Breaking(Storage):
    """A storage whose clips break off half way."""

    fault: Exception

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with super().open(key) as file:
            yield Half(file, self.fault)  # type: ignore[misc]


# The last is what the driver of S3 raises, in the middle of a file, of an object that was deleted.
@pytest.mark.parametrize(
    "fault",
    [
        StorageError("clips/0/v", "it broke off", "Try again."),
        MissingObjectError("clips/0/v", "it broke off", "Try again."),
        FileNotFoundError("The specified key does not exist."),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_zip_that_breaks_off_has_no_end(storage, fault) -> None:
    broken = Breaking(storage.url)
    broken.fault = fault
    came: list[bytes] = []
    with pytest.raises(StorageError):
        came.extend(archive(results, broken, {}))
    assert b"".join(came)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(b"".join(came)))
