"""Files of one user: modes by another umask, and what happens where somebody swaps them."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.private import SwappedFileError, create_private, private_folder, scratch_folder, write_private


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """What most users have."""
    old = os.umask(0o022)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_new_folder_is_private_and_nothing_is_told(tmp_path):
    assert private_folder(tmp_path / "a" / "home") is None
    assert mode(tmp_path / "a" / "home") == 0o700
    assert private_folder(tmp_path / "a" / "home") is None


@pytest.mark.parametrize("before", [0o755, 0o750, 0o777, 0o711, 0o2775])
def test_rights_of_others_are_taken_once_and_their_owners_stay(tmp_path, before):
    home, outside = tmp_path / "home", tmp_path / "public"
    home.mkdir()
    outside.write_text("for all")
    outside.chmod(0o644)
    for name, given in (("clipmill.db", 0o644), ("farm.lock", 0o666), ("run.sh", 0o755)):
        (home / name).write_text("x")
        (home / name).chmod(given)
    (home / "link").symlink_to(outside)
    home.chmod(before)
    assert private_folder(home) == before
    assert mode(home) & 0o077 == 0
    assert {p.name: mode(p) for p in home.iterdir() if not p.is_symlink()} == {
        "clipmill.db": 0o600,
        "farm.lock": 0o600,
        "run.sh": 0o700,
    }
    assert mode(outside) == 0o644, "a right was taken through a link"
    assert private_folder(home) is None


def test_files_are_private_from_the_first_moment(tmp_path):
    create_private(tmp_path / "empty")
    write_private(tmp_path / "token", "secret")
    assert (mode(tmp_path / "empty"), mode(tmp_path / "token")) == (0o600, 0o600)
    # Not the old file with its old mode, which somebody may hold open.
    (tmp_path / "token").chmod(0o644)
    with (tmp_path / "token").open() as held:
        write_private(tmp_path / "token", "another")
        assert held.read() == "secret"
    assert ((tmp_path / "token").read_text(), mode(tmp_path / "token")) == ("another", 0o600)
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_private(tmp_path / "link", "secret")
    assert (tmp_path / "target").read_text() == "mine"
    (tmp_path / "dangling").symlink_to(tmp_path / "not-there-yet")
    create_private(tmp_path / "dangling")
    assert mode(tmp_path / "not-there-yet") == 0o600


# -- temporary files ---------------------------------------------------------------------------------------------


def swap_for_link(path: Path, secret: Path) -> None:
    path.unlink()
    path.symlink_to(secret)


def swap_for_hard_link(path: Path, secret: Path) -> None:
    path.unlink()
    path.hardlink_to(secret)


def swap_for_pipe(path: Path, _secret: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path, _secret: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("swap", [swap_for_link, swap_for_hard_link, swap_for_pipe, swap_for_folder])
def test_a_file_that_was_swapped_is_not_read(tmp_path, swap):
    secret = tmp_path / "secret"
    secret.write_text("0600 of this user")
    with scratch_folder("clip-", tmp_path) as scratch:
        (scratch.path / "video.mp4").write_text("frames")
        swap(scratch.path / "video.mp4", secret)
        with pytest.raises(SwappedFileError, match=r"video\.mp4"), scratch.opened("video.mp4"):
            pass


def test_a_swapped_folder_changes_nothing(tmp_path):
    """The attack that worked: the whole folder renamed away, and one with links in its place."""
    (tmp_path / "secret").write_text("0600 of this user")
    with scratch_folder("clip-", tmp_path) as scratch:
        (scratch.path / "video.mp4").write_text("frames")
        scratch.path.rename(tmp_path / "away")
        scratch.path.mkdir()
        (scratch.path / "video.mp4").symlink_to(tmp_path / "secret")
        with scratch.opened("video.mp4") as (path, facts):
            assert (path.read_text(), facts.st_size) == ("frames", 6)


def test_an_open_file_stays_the_one_that_was_opened(tmp_path):
    with scratch_folder("clip-", tmp_path) as scratch:
        (scratch.path / "video.mp4").write_text("frames")
        with scratch.opened("video.mp4") as (path, _facts):
            (scratch.path / "video.mp4").unlink()
            (scratch.path / "video.mp4").write_text("others")
            assert path.read_text() == "frames"


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    for given, used in ((0o777, False), (0o775, False), (0o1777, True), (0o700, True)):
        shared.chmod(given)
        with scratch_folder("clip-", shared) as scratch:
            assert (scratch.path.parent == shared) is used, oct(given)
            assert mode(scratch.path) == 0o700
        assert not scratch.path.exists()
    with scratch_folder("clip-", tmp_path / "nowhere") as scratch:
        assert scratch.path.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_s_folder_is_refused_and_left_as_it_is():
    # Not in pytest's folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        home = Path(place) / "home"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        (home / "clipmill.db").write_bytes(b"theirs")
        os.chown(home, 12345, -1)
        child = os.fork()
        if not child:
            os.setresuid(54321, 54321, 54321)
            try:
                private_folder(home)
            except PermissionError as error:
                os._exit(0 if "another user" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (mode(home), [path.name for path in home.iterdir()]) == (0o777, ["clipmill.db"])
