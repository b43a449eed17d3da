"""What outlives a farm that was killed is ended, and nothing else is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid

import pytest

from serve.farm_watch import end_marked

#: A farm of two processes: the one that is killed, and one that it started, which lives on.
FARM = """
import os, subprocess, sys, time
from serve.farm_watch import FarmWatch
name, value = sys.argv[1].split("=")
watch = FarmWatch(sys.argv[1])
marked = {**os.environ, name: value}
agent = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, env=marked, start_new_session=True)
print(agent.pid, flush=True)
sys.stdin.read()
watch.close()
"""


@pytest.fixture
def mark() -> str:
    return f"CLIPMILL_TEST_MARK={uuid.uuid4().hex}"


def is_gone(pid: int, within_s: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


def farm(mark: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", FARM, mark], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, int(process.stdout.readline())


def test_what_a_killed_farm_started_is_ended(mark: str) -> None:
    bystander = subprocess.Popen(["sleep", "600"], env={**os.environ, "CLIPMILL_TEST_MARK": "another"})
    process, agent = farm(mark)
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_gone(agent, within_s=60)
        assert not is_gone(bystander.pid, within_s=0)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_farm_that_ends_in_order_has_nothing_ended(mark: str) -> None:
    process, agent = farm(mark)
    try:
        process.communicate("")
        assert process.returncode == 0
        # Its watch has ended before it.
        assert not is_gone(agent, within_s=0)
    finally:
        os.kill(agent, signal.SIGKILL)


#: A renderer with its ffmpeg, which it ends unless somebody else did.
RENDERER = """
import signal, subprocess, sys
ffmpeg = subprocess.Popen(["sleep", "600"])
def end(*_):
    try:
        ffmpeg.wait(timeout=1)
        print("too late", flush=True)
    except subprocess.TimeoutExpired:
        ffmpeg.kill()
        print("ended", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    signal.pause()
"""


def test_what_has_a_parent_is_left_to_it(mark: str) -> None:
    """An ffmpeg that ended before its renderer cost the clip an attempt."""
    name, value = mark.split("=")
    process = subprocess.Popen(
        [sys.executable, "-c", RENDERER], stdout=subprocess.PIPE, text=True, env={**os.environ, name: value}
    )
    assert process.stdout
    assert process.stdout.readline().strip() == "up"
    end_marked(mark)
    assert process.communicate()[0].split() == ["ended"]
