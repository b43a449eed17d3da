"""Logs of embedded farms, on files as Serve writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from serve import farm_logs
from serve.embedded import sweep_left_over
from serve.farm_logs import LogTail, keep_logs, kept_runs

EARLY = "WARNING 2026-11-28 22:13:12,123 clipmill_dispatcher a1 -- the store does not answer"
LATE = "ERROR 2026-11-28 22:13:14,000 clipmill_dispatcher a1 -- attempt 3 broke"
BETWEEN = "WARNING 2026-11-28 22:13:13,500 clipmill_renderer-c8 b2 -- the card is full"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "farm" / "logs"
    write(folder / "serve" / "replica_clipmill_dispatcher_a1b2.log", EARLY, LATE)
    write(
        folder / "serve" / "replica_clipmill_renderer-c8_x9.log", BETWEEN, "Traceback (most recent call last):", "  x"
    )
    write(folder / "raylet.out", "started")
    return folder


def test_lines_of_all_deployments_come_in_the_order_of_their_times(logs: Path):
    assert LogTail(logs).news() == [
        ("dispatcher", EARLY),
        ("renderer-c8", BETWEEN),
        ("renderer-c8", "Traceback (most recent call last):"),
        ("renderer-c8", "  x"),
        ("dispatcher", LATE),
    ]


def test_only_whole_lines_come_and_each_once(logs: Path):
    tail = LogTail(logs)
    tail.news()
    file = logs / "serve" / "replica_clipmill_dispatcher_a1b2.log"
    with file.open("a") as more:
        more.write("half a")
    assert tail.news() == []
    with file.open("a") as more:
        more.write(" line\n")
    assert tail.news() == [("dispatcher", "half a line")]


def test_rays_own_files_come_when_asked_for(logs: Path):
    assert ("raylet.out", "started") in LogTail(logs, everything=True).news()
    assert all(label != "raylet.out" for label, _ in LogTail(logs).news())


def test_what_is_kept_is_private_and_only_the_newest_runs(logs: Path, tmp_path: Path):
    home = tmp_path / "home"
    for number in range(farm_logs.KEPT_RUNS + 3):
        assert keep_logs(logs, home, f"20261128-2200{number:02}-7")
    (home / "logs" / "mine").mkdir()
    assert [run.name for run in kept_runs(home)] == [f"20261128-2200{n:02}-7" for n in range(12, 2, -1)]
    assert (home / "logs" / "mine").is_dir()
    assert stat.S_IMODE((home / "logs").stat().st_mode) == 0o700
    assert LogTail(kept_runs(home)[0]).news() == LogTail(logs).news()


def test_of_a_large_file_the_end_is_kept_from_a_whole_line_on(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(farm_logs, "KEPT_BYTES", len(LATE) + 10)
    run = keep_logs(logs, tmp_path / "home", "20261128-220000-7")
    assert (run / "serve" / "replica_clipmill_dispatcher_a1b2.log").read_text() == LATE + "\n"


def test_a_link_among_the_logs_is_not_followed(logs: Path, tmp_path: Path):
    secret = write(tmp_path / "secret", "s")
    (logs / "link.log").symlink_to(secret)
    run = keep_logs(logs, tmp_path / "home", "20261128-220000-7")
    assert not (run / "link.log").exists()


def test_logs_of_a_farm_that_was_killed_are_kept_by_the_next_one(tmp_path: Path):
    home, root = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    temp = root / f"clipmill-{pid}-abcdefgh"
    session = temp / "ray" / "session_1"
    write(session / "logs" / "serve" / "replica_clipmill_gateway_z.log", EARLY)
    (temp / "ray" / "session_latest").symlink_to(session)
    (temp / ".clipmill-farm").write_text(str(home))
    sweep_left_over(root)
    assert not temp.exists()
    assert [line for run in kept_runs(home) for line in LogTail(run).news()] == [("gateway", EARLY)]


def test_a_home_that_cannot_be_written_does_not_stop_a_farm_from_ending(logs: Path, tmp_path: Path):
    blocked = write(tmp_path / "home", "a file")
    assert keep_logs(logs, blocked, "20261128-220000-7") is None
