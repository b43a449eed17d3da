"""What is left of an embedded farm whose process was killed, ended by a process that outlives it.

Ray's daemons end with the process that started them; what those have started themselves, the node's agents, may live
on for minutes. This file is run by itself, with Python's own library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

#: A farm that ended in order says so, and nothing of it is ended.
_IN_ORDER = b"."
#: Seconds for what is left to end by itself, and between two looks.
_GRACE_S, _LOOK_S = 5.0, 0.2


class FarmWatch:
    """A process that waits for the end of this one; then it ends every process with `mark` in its environment.

    `mark`: `NAME=value`, in the environment of all that this farm starts and of nothing else.
    """

    def __init__(self, mark: str) -> None:
        # A session of its own: what ends this process may be meant for its whole group.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """End the watch of a farm that ended in order: nothing of it is ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            pipe.write(_IN_ORDER)
        self._process.wait()


def watch(pipe: IO[bytes], mark: str) -> None:
    """Wait until `pipe` closes; unless something came first, end all processes of this user with `mark`."""
    if pipe.read(1):
        return
    end_marked(mark)


def end_marked(mark: str) -> None:
    """End all processes whose environment holds `mark` from their start, first by SIGTERM, after a while by SIGKILL.

    Whoever has a parent among them is left to it while that lives: a renderer whose ffmpeg ends before it would call
    that the clip's fault.
    """
    began, asked = time.monotonic(), set[int]()
    while found := marked(mark):
        late = time.monotonic() - began > _GRACE_S
        for pid in found:
            if late or not (pid in asked or _parent(pid) in found):
                asked.add(pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        if time.monotonic() - began > 4 * _GRACE_S:
            return
        time.sleep(_LOOK_S)


def marked(mark: str) -> list[int]:
    """Ids of the processes, but for this one, whose environment holds `mark`; those of other users are not seen."""
    wanted, found = os.fsencode(mark), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            # A zombie has no environment any more.
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def _parent(pid: int) -> int | None:
    """Id of the parent of `pid`; None where either is gone."""
    try:
        # The name before it, in brackets, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


if __name__ == "__main__":
    watch(sys.stdin.buffer, sys.argv[1])
