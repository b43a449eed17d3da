"""The lock of a home: one farm, and nobody else who can keep it from starting."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli.main import app
from serve.embedded import FarmLock

NOBODY = 65534
#: Locks the file whose descriptor it is given, says so, and holds it until its input ends. Perl, as another user may
#: not be allowed to run this Python.
HOLD = 'open(my $f, "<&=", $ARGV[0]); flock($f, $ARGV[1]) or die; $| = 1; print "held\\n"; <STDIN>;'
#: Waits for a word, then tries for the lock of a home and keeps it until its input ends.
TRY = (
    "import sys; from pathlib import Path; from serve.embedded import FarmLock; lock = FarmLock(Path(sys.argv[1]));"
    "print('ready', flush=True); sys.stdin.readline(); print(lock.try_acquire(), flush=True); sys.stdin.read()"
)


@contextmanager
def held(path: Path, *, user: int | None, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """The file locked by another process, of another user where one is given, who opened it while that was allowed."""
    with path.open() as file:
        process = subprocess.Popen(
            ["/usr/bin/perl", "-e", HOLD, str(file.fileno()), str(kind)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno()],
            user=user,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.communicate()


strangers = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/locks").exists() or not Path("/usr/bin/perl").exists(),
    reason="a process of another user needs root, Linux and Perl",
)


@strangers
@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_another_users_lock_neither_blocks_a_farm_nor_looks_like_one(tmp_path: Path, kind: int) -> None:
    lock = FarmLock(tmp_path)
    (tmp_path / "farm.lock").touch(0o644)
    with held(tmp_path / "farm.lock", user=NOBODY, kind=kind):
        assert lock.holder() is None
        assert lock.try_acquire()
        lock.note(url="here")
        other = FarmLock(tmp_path)
        assert not other.try_acquire()
        assert (other.holder() or {})["url"] == "here"
        lock.release()
        assert other.try_acquire()
        other.release()


def test_a_lock_of_ones_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "farm.lock").touch()
    before = (tmp_path / "farm.lock").stat().st_ino
    with held(tmp_path / "farm.lock", user=None):
        assert not FarmLock(tmp_path).try_acquire()
        assert FarmLock(tmp_path).holder() == {}
    assert (tmp_path / "farm.lock").stat().st_ino == before


@strangers
def test_of_several_that_find_a_strangers_lock_one_gets_the_home(tmp_path: Path) -> None:
    (tmp_path / "farm.lock").touch(0o644)
    with held(tmp_path / "farm.lock", user=NOBODY):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", TRY, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            )
            for _ in range(4)
        ]
        try:
            for racer in racers:
                assert racer.stdout is not None
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
            won = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
        finally:
            for racer in racers:
                racer.communicate()
    assert sorted(won) == ["False", "False", "False", "True"]


def test_a_lock_file_that_is_replaced_between_opening_and_locking_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FarmLock(tmp_path)
    real = fcntl.flock
    swaps = iter([True])

    def swapped(file, how: int) -> None:
        if next(swaps, False):
            (tmp_path / "farm.lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", swapped)
    assert lock.try_acquire()
    assert not FarmLock(tmp_path).try_acquire()
    lock.release()


def test_up_says_what_to_do_where_the_noted_farm_is_gone(tmp_path: Path) -> None:
    (tmp_path / "farm.lock").touch()
    with held(tmp_path / "farm.lock", user=None):
        nobody = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["up", "--home", str(tmp_path)])
        assert nobody.exit_code == 3
        assert "farm.lock locked: delete that file" in nobody.output
        (tmp_path / "farm.lock").write_text(json.dumps({"pid": os.getpid()}))
        alive = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["up", "--home", str(tmp_path)])
        assert f"(process {os.getpid()}). Use that one." in alive.output
        assert "delete" not in alive.output
