"""Work on what strangers wrote, in a process of its own with little memory and little time.

A picture of two hundred kilobytes can unpack to gigabytes, and a decoder written in C cannot be stopped from within its
process. So it is another process's memory that is used up, and another process that is killed. Results come back as
JSON: nothing from there is unpickled here.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

#: Address space of a process that decodes, in bytes: what it may have of memory, its own libraries among it. Work may
#: be given more, up to the second figure.
MEMORY_BYTES, MOST_MEMORY_BYTES = 1_400 * 2**20, 4 * 2**30
#: Processes that decode at once; others wait.
PROCESSES = min(2, os.cpu_count() or 1)
#: A process that gets no CPU for its work is given up after so many times its limit of CPU seconds.
_WALL_TIMES = 10
_CHUNK_BYTES = 2**20
#: One thread, one heap: an address space is soon used up by those that are never used.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
}
_SERVE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from pipeline.bounded import serve; serve()"

#: What a bounded function is: bytes in, something that JSON can say out.
Bounded = Callable[[bytes], Any]


class ExhaustedError(RuntimeError):
    """The work took more memory or time than it may have; says in words which, and how much that is."""


class _LostError(ExhaustedError):
    """The process ended or fell silent, and perhaps not for this work: somebody killed it, or something before did."""


class RaisedError(RuntimeError):
    """The function raised an exception that it should not have; `kind` is the name of its class."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {message}")


@dataclass(frozen=True, kw_only=True)
class WorkBounds:
    """What work in another process may take."""

    #: Seconds of CPU time.
    cpu_s: float
    #: Address space in bytes, up to `MOST_MEMORY_BYTES`, the data and the process' own libraries among it.
    memory_bytes: int = MEMORY_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.memory_bytes <= MOST_MEMORY_BYTES:
            raise ValueError(f"memory_bytes must be up to {MOST_MEMORY_BYTES}, not {self.memory_bytes}")

    @property
    def time(self) -> str:
        """What took too long took this, in words."""
        return f"more than {self.cpu_s:.0f} s"

    @property
    def memory(self) -> str:
        """What took too much memory took this, in words."""
        return f"more than {self.memory_bytes / 2**20:.0f} MiB"


def run_bounded(function: str, data: bytes, *, cpu_s: float, memory_bytes: int = MEMORY_BYTES) -> Any:
    """The result of `function`, `module:name`, called with `data` in another process; it comes back through JSON.

    Waits while `PROCESSES` others are at work. Raises `ExhaustedError` where it takes more than `memory_bytes` or
    `cpu_s` seconds of CPU time, or ends its process; `RaisedError` where it raises an exception; `ValueError` where
    `memory_bytes` is more than `MOST_MEMORY_BYTES`.
    """
    return _POOL.run(function, data, WorkBounds(cpu_s=cpu_s, memory_bytes=memory_bytes))


class _Pool:
    """Processes that wait for work; each does one thing at a time."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._places = threading.BoundedSemaphore(PROCESSES)
        self._pid = os.getpid()

    def run(self, function: str, data: bytes, bounds: WorkBounds) -> Any:
        if self._pid != os.getpid():
            # After a fork the pipes of these processes belong to the parent.
            self.__init__()  # type: ignore[misc]
        with self._places:
            try:
                answer = self._ask(self._take(), function, data, bounds)
            except _LostError:
                # Whoever has a picture refused for what befell another process cannot mend it.
                answer = self._ask(_Process(), function, data, bounds)
        if "exhausted" in answer:
            raise ExhaustedError(answer["exhausted"])
        if "raised" in answer:
            raise RaisedError(*answer["raised"])
        return answer["result"]

    def _take(self) -> _Process:
        while True:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                return _Process()
            if process.lives():
                return process
            process.kill()

    def _ask(self, process: _Process, function: str, data: bytes, bounds: WorkBounds) -> dict[str, Any]:
        try:
            answer = process.ask(function, data, bounds)
        except BaseException:
            process.kill()
            raise
        # One that ran out of memory has its heap in pieces.
        if answer.get("exhausted"):
            process.kill()
        else:
            self._idle.put(process)
        return answer


class _Process:
    """One process and the pipes to it. It ends when they close, however this process ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, json.dumps([path or str(Path.cwd()) for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._has_answered = False

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, function: str, data: bytes, bounds: WorkBounds) -> dict[str, Any]:
        """The answer of the process. Raises `ExhaustedError` where it ends or is not done in time.

        `_LostError` is one that may say nothing of this work.
        """
        deadline = time.monotonic() + bounds.cpu_s * _WALL_TIMES
        try:
            _send(self._to, json.dumps({"function": function, **asdict(bounds)}).encode())
            _send(self._to, data)
            answer: dict[str, Any] = json.loads(self._receive(deadline, bounds))
        except (BrokenPipeError, EOFError):
            raise self._why_it_ended(bounds) from None
        self._has_answered = True
        return answer

    def _receive(self, deadline: float, bounds: WorkBounds) -> bytes:
        # Not `select`, which takes no descriptor above 1023: a gateway has many connections.
        answers = select.poll()
        answers.register(self._from, select.POLLIN)

        def read(size: int) -> bytes:
            if not answers.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise (_LostError if self._has_answered else ExhaustedError)(bounds.time)
            return self._from.read(size) or b""

        return _message(read)

    def _why_it_ended(self, bounds: WorkBounds) -> ExhaustedError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        # What the kernel sends at the limit of CPU time.
        if code == -signal.SIGXCPU:
            return ExhaustedError(bounds.time)
        # No limit of this work ends it so: the machine may be short of memory, or somebody ends what runs on it.
        if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
            return _LostError(bounds.memory)
        # Whatever else ended it was short of memory.
        return ExhaustedError(bounds.memory)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()


def _environment() -> dict[str, str]:
    # Without what this farm has of secrets: whoever takes over a decoder finds none.
    kept = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | _ENVIRONMENT


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "big"))
    view = memoryview(data)
    while view:
        view = view[pipe.write(view[:_CHUNK_BYTES]) :]


def _message(read: Callable[[int], bytes]) -> bytes:
    """What `_send` sent. Raises `EOFError` where the other end closed."""

    def exactly(size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            some = read(min(_CHUNK_BYTES, size - len(data)))
            if not some:
                raise EOFError
            data += some
        return data

    return bytes(exactly(int.from_bytes(exactly(8), "big")))


# ---------------------------------------------------------------------------------------------- the other process


def serve() -> None:
    """Do what comes on standard input, one thing after the other, until it closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MOST_MEMORY_BYTES))
    given, taken = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    # What a library prints must not be taken for an answer.
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    while True:
        try:
            order = json.loads(_message(given.read))
            bounds = WorkBounds(cpu_s=order["cpu_s"], memory_bytes=order["memory_bytes"])
            _limit(bounds)
            data = _message(given.read)
        except EOFError:
            return
        module, _, name = order["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        _send(taken, _answer(function, data, bounds))


def _limit(bounds: WorkBounds) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, MOST_MEMORY_BYTES))
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    # Whole seconds only; SIGXCPU ends the process.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + bounds.cpu_s) + 1, hard))


def _answer(function: Bounded, data: bytes, bounds: WorkBounds) -> bytes:
    memory = {"exhausted": bounds.memory}
    try:
        # Infinities and halves of characters cross as Python's own reader takes them.
        return json.dumps({"result": function(data)}, default=str).encode()
    except MemoryError:
        return json.dumps(memory).encode()
    except Exception as error:
        if type(error).__name__ in ("ArrowMemoryError", "DecompressionBombError"):
            return json.dumps(memory).encode()
        return json.dumps({"raised": [type(error).__name__, str(error)]}).encode()


_POOL = _Pool()
