"""What an embedded farm leaves, and what only looks like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve.embedded import _TMP_MARK, _for_memory, _how_it_ended, _prepare_environment, sweep_left_over

#: No process has such an id: the kernel's largest is 2**22.
NOBODY = 2**22 + 1


def left(root: Path, name: str, *files: str) -> Path:
    folder = root / name
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    return folder


def test_only_folders_of_farms_whose_process_is_gone_are_swept(tmp_path: Path) -> None:
    marked = left(tmp_path, f"clipmill-{NOBODY}-a1b2c3d4", _TMP_MARK, "session_1/logs/log")
    older = left(tmp_path, f"clipmill-{NOBODY}-a1b2c3d5", "session_latest", "session_1/logs/log")
    empty = left(tmp_path, f"clipmill-{NOBODY}-a1b2c3d6")
    alive = left(tmp_path, f"clipmill-{os.getpid()}-a1b2c3d4", _TMP_MARK)
    mine = [
        left(tmp_path, f"clipmill-{NOBODY}-pictures", "one.png"),
        left(tmp_path, f"clipmill-{NOBODY}-a1b2c3d7", "clip-1.mp4", "session_notes.txt"),
        left(tmp_path, f"clipmill-{NOBODY}-a-longer-name", _TMP_MARK),
        left(tmp_path, "elsewhere", _TMP_MARK, "one.png"),
    ]
    link = tmp_path / f"clipmill-{NOBODY}-a1b2c3d8"
    link.symlink_to(mine[-1])
    sweep_left_over(tmp_path)
    assert [folder.exists() for folder in (marked, older, empty)] == [False, False, False]
    assert all(path.exists() for path in [alive, link, *mine])
    assert (mine[-1] / "one.png").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was ended by SIGKILL"),
        (-15, "was ended by SIGTERM"),
        (1, "ended with exit code 1"),
        (-200, "by signal 200"),
    ],
)
def test_how_a_daemon_ended_is_told_as_it_was(code: int, words: str) -> None:
    assert words in _how_it_ended(code)
    # Memory is named only where the kernel has ended something for it.
    assert _for_memory(0) == ""
    assert "memory was full" in _for_memory(1)


@pytest.mark.parametrize("jobs", [False, True])
def test_only_jobs_inherit_where_the_store_is(jobs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://someone:secret@there/db"
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"CLIPMILL_DATABASE_URL": url})
    (tmp_path / "temp").mkdir()
    _prepare_environment(tmp_path / "temp", tmp_path / "home", jobs=jobs)
    assert ("CLIPMILL_DATABASE_URL" in os.environ) is jobs
