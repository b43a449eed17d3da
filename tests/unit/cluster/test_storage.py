import errno
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import (
    CorruptObjectError,
    MissingObjectError,
    Storage,
    StorageError,
    StorageFullError,
    StorageShelf,
    UnwritableError,
)
from pipeline.problems import BadInputError
from tests.quota import quota_storage, set_room


@pytest.fixture(params=["folder", "file", "memory"])
def storage(request, tmp_path):
    if request.param == "memory":
        url = f"memory://{tmp_path.name}/farm"
        yield Storage(url)
        fsspec.filesystem("memory").store.clear()
    else:
        yield Storage(tmp_path / "farm" if request.param == "folder" else f"file://{tmp_path}/farm")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_what_was_put_comes_back(storage, tmp_path):
    storage.put_bytes("clips/a/1.mp4", b"abc")
    assert storage.exists("clips/a/1.mp4")
    assert storage.size("clips/a/1.mp4") == 3
    assert storage.get_bytes("clips/a/1.mp4") == b"abc"
    storage.get_to("clips/a/1.mp4", tmp_path / "new" / "out.mp4")
    assert files(tmp_path / "new") == {"out.mp4"}
    assert (tmp_path / "new" / "out.mp4").read_bytes() == b"abc"


def test_a_file_is_put_as_it_is(storage, tmp_path):
    source = tmp_path / "clip.mp4"
    source.write_bytes(bytes(range(256)) * 300)
    storage.put_file("clips/b", source)
    assert storage.get_bytes("clips/b") == source.read_bytes()


def test_the_first_writer_wins(storage, tmp_path):
    storage.put_bytes("clips/a", b"first")
    storage.put_bytes("clips/a", b"second")
    (tmp_path / "third").write_bytes(b"third")
    storage.put_file("clips/a", tmp_path / "third")
    assert storage.get_bytes("clips/a") == b"first"


def test_what_lies_under_a_prefix_is_named_and_deleted_as_one(storage):
    for key in ("checkpoints/a/1/10", "checkpoints/a/2/20", "checkpoints/ab/1/10", "other/a"):
        storage.put_bytes(key, b"x")
    assert storage.names_under("checkpoints") == ["a", "ab"]
    assert storage.names_under("checkpoints/a/1") == ["10"]
    storage.delete_under("checkpoints/a")
    storage.delete_under("checkpoints/a")
    assert storage.names_under("checkpoints") == ["ab"]
    assert storage.exists("checkpoints/ab/1/10")
    assert storage.exists("other/a")
    assert storage.names_under("nothing/here") == []
    with pytest.raises(ValueError, match="not a storage key"):
        storage.delete_under("checkpoints/..")


def test_the_shelf_keeps_what_was_there_first(storage):
    shelf = StorageShelf(storage)
    assert shelf.get("text/abc") is None
    shelf.put("text/abc", b"first")
    shelf.put("text/abc", b"second")
    assert shelf.get("text/abc") == b"first"
    assert storage.names_under("cache") == ["text"]


def test_deleting_is_final_and_may_be_repeated(storage):
    storage.put_bytes("clips/a", b"x")
    storage.delete("clips/a")
    storage.delete("clips/a")
    assert not storage.exists("clips/a")


@pytest.mark.parametrize("read", ["get_bytes", "size", "get_to"])
def test_a_missing_object_is_named_with_a_remedy(storage, tmp_path, read):
    arguments = (tmp_path / "out",) if read == "get_to" else ()
    with pytest.raises(MissingObjectError, match="clips/none") as caught:
        getattr(storage, read)("clips/none", *arguments)
    assert caught.value.key == "clips/none"
    assert caught.value.problem.remedy
    assert not (tmp_path / "out").exists()


def test_a_folder_of_keys_is_no_object(storage):
    storage.put_bytes("clips/a/1", b"x")
    assert not storage.exists("clips/a")


def test_a_missing_source_is_told_from_a_missing_object(storage, tmp_path):
    with pytest.raises(StorageError, match="nowhere") as caught:
        storage.put_file("clips/a", tmp_path / "nowhere")
    assert not isinstance(caught.value, MissingObjectError)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a/../b",
        "..",
        "a//b",
        "a/",
        ".hidden",
        "a/.b.part",
        "a\\b",
        "a\0b",
        "a b",
        "s3://x/y",
        "ü",
        "a\n",
        "x" * 1025,
    ],
)
def test_keys_cannot_leave_the_root(tmp_path, key):
    storage = Storage(tmp_path / "farm")
    for call in (lambda: storage.put_bytes(key, b""), lambda: storage.get_bytes(key), lambda: storage.delete(key)):
        with pytest.raises(ValueError, match="not a storage key"):
            call()
    assert not (tmp_path / "farm").exists()


@given(st.text(max_size=40))
def test_every_accepted_key_lies_below_the_root(key):
    storage = Storage("/srv/farm")
    try:
        path = storage._path(key)
    except ValueError:
        return
    assert os.path.normpath(path) == path
    assert path.startswith("/srv/farm/")


def test_a_still_is_named_by_its_content(storage):
    data = b"\x89PNG still"
    sha256 = storage.put_still(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert storage.exists(f"stills/{sha256[:2]}/{sha256}")
    assert storage.get_still(sha256) == data


@pytest.mark.parametrize("name", ["", "ABC", "../" * 21 + "a", "A" * 64])
def test_only_a_sha256_names_a_still(name):
    with pytest.raises(ValueError, match="SHA-256"):
        Storage.still_key(name)


def test_an_object_larger_than_any_still_is_not_read(tmp_path):
    storage = Storage(tmp_path)
    sha256 = storage.put_still(b"whole")
    # A hole: it takes no room on the disk, and all its bytes in memory.
    with (tmp_path / Storage.still_key(sha256)).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptObjectError, match=r"is not what was stored: it has 1024\.0 GiB"):
        storage.get_still(sha256)


def test_an_empty_object_is_a_damaged_still(tmp_path):
    storage = Storage(tmp_path)
    sha256 = storage.put_still(b"whole")
    (tmp_path / Storage.still_key(sha256)).write_bytes(b"")
    with pytest.raises(CorruptObjectError, match="is damaged: its 0 bytes"):
        storage.get_still(sha256)


def test_a_damaged_still_is_refused_and_a_cut_one_healed(tmp_path):
    storage = Storage(tmp_path)
    sha256 = storage.put_still(b"whole")
    path = tmp_path / Storage.still_key(sha256)
    path.write_bytes(b"whoXe")
    with pytest.raises(CorruptObjectError, match=sha256) as caught:
        storage.get_still(sha256)
    assert "submit" in caught.value.problem.remedy
    path.write_bytes(b"who")
    storage.put_still(b"whole")
    assert storage.get_still(sha256) == b"whole"


@pytest.mark.parametrize("call", ["put_bytes", "put_file", "get_to"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, call):
    storage = Storage(tmp_path / "farm")
    storage.put_bytes("here", b"x")
    source = tmp_path / "source"
    source.write_bytes(b"data")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match="no space is left"):
        {
            "put_bytes": lambda: storage.put_bytes("new", b"x"),
            "put_file": lambda: storage.put_file("new", source),
            "get_to": lambda: storage.get_to("here", tmp_path / "out"),
        }[call]()
    assert files(tmp_path) == before


def test_an_interrupted_copy_keeps_the_older_file(tmp_path, monkeypatch):
    storage = Storage(tmp_path / "farm")
    storage.put_bytes("new", b"new")
    target = tmp_path / "out"
    target.write_bytes(b"old")

    def cut(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        storage.get_to("new", target)
    assert target.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"farm", "out"}


def test_readers_never_see_half_an_object(tmp_path):
    """Writers race on one key; a reader sees nothing, or one writer's whole object, and always the same one."""
    storage = Storage(tmp_path)
    contents = [bytes([n]) * 200_000 for n in range(4)]
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if storage.exists("clip"):
                seen.add(storage.get_bytes("clip"))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=storage.put_bytes, args=("clip", c)) for c in contents]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert files(tmp_path) == {"clip"}


def test_an_unknown_url_says_what_to_give():
    with pytest.raises(BadInputError) as caught:
        Storage("gopher://x/y")
    assert caught.value.problem.field == "storage_url"
    assert "s3://" in caught.value.problem.remedy


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "farm").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        Storage(tmp_path / "farm").put_bytes("a/b", b"x")
    assert "a/b" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), PermissionError("denied"), RuntimeError("503"),
     FileNotFoundError("no such bucket")],
)  # fmt: skip
def test_whatever_keeps_a_write_from_happening_is_told_from_all_else(error):
    storage = quota_storage()
    storage.probe()
    set_room(0, error)
    try:
        for write in (storage.probe, lambda: storage.put_bytes("a/b", b"x")):
            with pytest.raises(UnwritableError):
                write()
        with pytest.raises(MissingObjectError):
            storage.get_bytes("a/b")
    finally:
        set_room(2**40)
    assert storage.entries("probe") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "clipmill-test", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting takes root: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_real_disk_that_fills_up_is_told_loses_nothing_and_is_used_again(small_disk):
    storage = Storage(small_disk)
    storage.put_bytes("clips/j1/a1/video.mp4", bytes(3 * 2**20))
    storage.probe()
    filler = small_disk / "somebody's"
    filler.write_bytes(bytes(4 * 2**20))
    before = sorted(small_disk.rglob("*"))
    clip = small_disk.parent / "clip.mp4"
    clip.write_bytes(bytes(2 * 2**20))
    writes = [
        storage.probe,
        lambda: storage.put_bytes("clips/j1/a2/video.mp4", bytes(2 * 2**20)),
        lambda: storage.put_file("clips/j1/a2/video.mp4", clip),
        lambda: storage.put_still(bytes(2 * 2**20)),
    ]
    for write in writes:
        with pytest.raises(StorageFullError, match="no space is left"):
            write()
        left = [path for path in sorted(small_disk.rglob("*")) if path not in before and not path.is_dir()]
        assert left == [], "half of an object"
    assert storage.get_bytes("clips/j1/a1/video.mp4") == bytes(3 * 2**20)
    filler.unlink()
    storage.probe()
    storage.put_file("clips/j1/a2/video.mp4", clip)
    assert storage.get_bytes("clips/j1/a2/video.mp4") == clip.read_bytes()
