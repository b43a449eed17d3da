"""Files put in place, by each of the ways that file systems offer."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pipeline import placing
from pipeline.placing import place, replace_if, set_aside


@pytest.fixture(params=["renameat2", "links", "neither"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As Linux' own file systems do it, as NFS, and as a FAT stick."""
    if request.param != "renameat2":
        monkeypatch.setattr(placing, "_rename", lambda *_: False)
    if request.param == "neither":

        def no_links(*_args: object, **_options: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def new(folder: Path, content: str = "new") -> Path:
    path = folder / ".new.part"
    path.write_text(content)
    os.utime(path, ns=(5_000_000_000, 7_000_000_000))
    return path


def is_old(path: Path) -> bool:
    return path.is_file() and path.read_text() == "old"


def test_a_free_name_is_taken(tmp_path: Path) -> None:
    place(new(tmp_path), tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "a").stat().st_mtime_ns == 7_000_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_name_that_is_taken_is_left(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "file":
        target.write_text("old")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    before = target.lstat().st_ino
    with pytest.raises(FileExistsError):
        place(new(tmp_path), target)
    assert target.lstat().st_ino == before
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / ".new.part").exists()


def test_only_what_is_ours_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    replace_if(new(tmp_path), tmp_path / "a", is_old)
    assert (tmp_path / "a").read_text() == "new"
    with pytest.raises(FileExistsError):
        replace_if(new(tmp_path, "newer"), tmp_path / "a", is_old)
    assert (tmp_path / "a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.part", "a"]
    replace_if(tmp_path / ".new.part", tmp_path / "free", is_old)
    assert (tmp_path / "free").read_text() == "newer"


def test_what_came_in_between_is_not_lost(tmp_path: Path) -> None:
    """Somebody saves the file while ours is being looked at."""
    target = tmp_path / "a"
    target.write_text("old")

    def looked_at(path: Path) -> bool:
        target.unlink(missing_ok=True)
        target.write_text("somebody's")
        return path.read_text() == "ours"

    with pytest.raises(FileExistsError):
        replace_if(new(tmp_path), target, looked_at)
    contents = {path.read_text() for path in tmp_path.iterdir() if path.name in ("a", "a.kept")}
    assert contents == {"somebody's", "old"}


def test_what_is_set_aside_gets_a_free_name(tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        (tmp_path / "a.jpg").write_text(text)
        set_aside(tmp_path / "a.jpg", "edited")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.edited.jpg": "one",
        "a.edited-2.jpg": "two",
        "a.edited-3.jpg": "three",
    }


def test_of_many_at_once_one_gets_the_name(tmp_path: Path) -> None:
    start, won = threading.Barrier(8), []

    def run(number: int) -> None:
        path = tmp_path / f".{number}.part"
        path.write_text(str(number))
        start.wait()
        try:
            place(path, tmp_path / "a")
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a").read_text() == str(won[0])
