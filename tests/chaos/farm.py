"""A farm of `clipmill up` in processes of its own, with its store and storage beside it, that faults are done to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil
import sqlalchemy as sa
import yaml

from cluster.farm import Farm
from cluster.jobs.model import Attempt, Batch, Job, Outcome
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from cluster.store.schema import cards
from pipeline.clips.clip import Sampler, content_key
from pipeline.memory.footprint import footprint
from tests.building import draft, spec, still_png

OWNER = "local"
#: Steps between two checkpoints.
EVERY = 5
CARDS = ("emulated-c8-0", "emulated-c8-1")
#: A clip of this rate kills its renderer once all its frames are with the encoder.
POISON_FPS = 23
#: How long nothing may come that has to come, in seconds: only to end a run that hangs, on however slow a machine.
PATIENCE_S = 600.0
#: What renderers take for ffmpeg. One that is trapped dies in the middle of a clip; that of a poison row takes all
#: frames, and then kills whoever gave them, which by then has another clip on its card where there is one.
_FFMPEG = """#!/bin/sh
if rm "{trap}" 2>/dev/null; then
    head -c 100000 >/dev/null
    kill -9 $$
fi
case "$*" in *" -r {fps} -i pipe:0 "*)
    cat >/dev/null
    sleep 0.7
    kill -9 $PPID
    exit 1
esac
exec "{real}" "$@"
"""


class UpProcess:
    """One `clipmill up` on a home, as a process group of its own. What it prints goes to `log`."""

    def __init__(
        self, home: Path, config: dict[str, Any], log: Path, database_url: str | None, env: dict[str, str]
    ) -> None:
        """`database_url`: the store; None: SQLite in the home. `env`: variables besides those of this process."""
        path = log.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLIPMILL_"))} | env
        clean |= {"CLIPMILL_DATABASE_URL": database_url} if database_url else {}
        command = [sys.executable, "-m", "serve.cli.main", "up", "--config", str(path), "--home", str(home)]
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=clean, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=_hear_signals,
            )  # fmt: skip

    def says(self, words: str) -> bool:
        """Whether its terminal shows these words."""
        return words in self.log.read_text(encoding="utf-8", errors="replace")

    def pids(self, title: str) -> list[int]:
        """Processes of this farm whose title or command begins so, such as `ray::ServeReplica:clipmill:renderer-c8`."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(title) or process.name().startswith(title):
                        found.append(process.pid)
        return found

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL to everything at once, as when a machine loses power."""
        for pid in [*self.pids(""), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it: its own way first."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_S)
        self.end_group()

    def end_group(self) -> None:
        """End what is left of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class FarmUnderFire:
    """`clipmill up` on a home with two emulated cards. Whatever ends it, `revive` starts it again."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        """`database_url`: the store; None: SQLite in the home."""
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.storage_folder = self.home / "storage"
        self.storage_folder.mkdir(mode=0o700, exist_ok=True)
        self.port = free_port()
        self.database = Database(database_url) if database_url else Database.in_folder(self.home)
        self.database.migrate()
        self.database_url = database_url
        self.batch_store = BatchStore(self.database)
        self.storage = Storage(self.storage_folder)
        self.still = self.storage.put_still(still_png())
        #: While this file is there, the next ffmpeg dies.
        self.ffmpeg_trap = folder / "kill-an-ffmpeg"
        # Ray's workers are nice, and get next to nothing of a machine that has other things to do.
        self.env = {"IMAGEIO_FFMPEG_EXE": str(self._make_ffmpeg()), "RAY_worker_niceness": "0"}
        self.up: UpProcess | None = None
        self.starts = 0
        #: Innocent batches, and those whose rows must fail.
        self.batches: list[str] = []
        self.doomed: list[str] = []
        #: Batches of many rows of one content.
        self.manifests: list[str] = []
        #: Jobs whose checkpoints were damaged on purpose, or could not be written for a while.
        self.damaged: set[str] = set()
        #: What faults found that does not hold, a line each.
        self.broken: list[str] = []
        #: Whoever gives commands to it.
        self.operator = Farm(self.batch_store, self.storage, OWNER)

    def _make_ffmpeg(self) -> Path:
        path = self.folder / "ffmpeg"
        script = _FFMPEG.format(trap=self.ffmpeg_trap, fps=POISON_FPS, real=imageio_ffmpeg.get_ffmpeg_exe())
        path.write_text(script, encoding="utf-8")
        path.chmod(0o700)
        return path

    def config(self, names: tuple[str, ...], port: int) -> dict[str, Any]:
        """A Serve config of emulated cards of these names."""
        table = {
            "replicas": len(names), "num_gpus": 0, "num_cpus": 0, "resources": {"card-c8": 1}, "cards": list(names),
        }  # fmt: skip
        args = {"card_classes": {"c8": table}, "emulate": True, "checkpoint_steps": EVERY, "default_model": "camera"}
        application = {"name": "clipmill", "import_path": "serve.app:build", "args": args}
        return {"http_options": {"port": port}, "applications": [application]}

    # -- its processes -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; returns once both cards are heard."""
        # What a farm that was killed leaves of processes is ended soon, and one of them may listen until then.
        self.until(lambda: is_free(self.port), "the end of whoever listens at the port of the farm")
        self.up = UpProcess(
            self.home, self.config(CARDS, self.port), self.folder / "up.log", self.database_url, self.env
        )
        self.starts += 1
        began = time.time()
        up = self.up
        self.until(lambda: self.heard_since(began) >= set(CARDS) or up.ended(), "both cards")
        if up.ended():
            raise AssertionError(f"the farm did not come up: see {up.log}")

    def heard_since(self, began: float) -> set[str]:
        """Cards of which the dispatcher has written since then, in seconds since the epoch."""
        query = sa.select(cards.c.beat).where(cards.c.seen_at > int(began))
        with self.database.read() as c:
            return {beat["card"] for beat in c.scalars(query)}

    def revive(self) -> bool:
        """Start it again where it has ended; whether it had."""
        assert self.up is not None
        if not self.up.ended():
            return False
        self.up.end_group()
        self.start()
        return True

    def ended(self) -> bool:
        """Whether `clipmill up` has ended."""
        return self.up is None or self.up.ended()

    def pids(self, title: str) -> list[int]:
        """Processes of this farm whose title or command begins so, such as `ray::ServeReplica:clipmill:renderer-c8`."""
        return self.up.pids(title) if self.up else []

    def signal_up(self, number: int) -> None:
        """Send a signal to the process of `clipmill up` alone."""
        assert self.up is not None
        self.up.process.send_signal(number)

    def close(self) -> None:
        """End it: its own way first."""
        if self.up is not None:
            self.up.close()
        self.database.close()

    # -- its work ----------------------------------------------------------------------------------------------

    def submit(
        self, name: str, rows: int, *, first_seed: int, steps: int, family: str = "i2vgen-xl-tiny", **changes: Any
    ) -> str:
        """Hand in a batch of `rows` small clips with seeds of their own; returns its id. `changes` of their spec."""
        batch_id, _ = self.batch_store.open_batch(OWNER, name=name)
        drafts = []
        for number in range(1, rows + 1):
            values: dict[str, Any] = {"width": 256, "height": 256, "frames": 8, "steps": steps, "guidance": 9.0}
            values |= {"sampler": Sampler.UNIPC, "seed": first_seed + number, **changes}
            clip = spec(family, **values)
            key = content_key(self.still, clip)
            drafts.append(draft(number, key, still=self.still, spec=clip, needs_bytes=footprint(clip).peak_bytes))
        self.batch_store.add(OWNER, batch_id, drafts)
        self.batch_store.seal(OWNER, batch_id)
        return batch_id

    def batch(self, batch_id: str) -> Batch:
        """A batch as it stands."""
        return self.batch_store.batch(OWNER, batch_id)

    def jobs(self, batch_id: str) -> list[Job]:
        """A batch's rows."""
        return self.batch_store.jobs(OWNER, batch_id)

    def attempts(self, batch_id: str) -> list[Attempt]:
        """All attempts at a batch's rows, oldest first."""
        return self.batch_store.attempts_of(OWNER, batch_id)

    def innocent_attempts(self) -> list[Attempt]:
        """All attempts at rows that are not to fail."""
        return [one for batch_id in self.batches for one in self.attempts(batch_id)]

    def running(self, *batch_ids: str) -> list[Attempt]:
        """Attempts that have not ended."""
        return [one for batch_id in batch_ids for one in self.attempts(batch_id) if one.outcome is None]

    def deaths_in_a_row(self) -> int:
        """Rows whose renderers died on one card without a success between them: three, and a breaker opens there."""
        dead: dict[str, set[str]] = defaultdict(set)
        for one in sorted(self.innocent_attempts(), key=lambda attempt: attempt.ended_at or 0):
            if one.outcome is Outcome.CRASHED:
                dead[one.card].add(one.job_id)
            elif one.outcome is Outcome.COMPLETED:
                dead[one.card].clear()
        return max(map(len, dead.values()), default=0)

    def pid_of(self, renderer: str) -> int | None:
        """The process of a renderer, as its heartbeat says."""
        return next((beat.pid for beat in self.batch_store.cards() if beat.renderer == renderer and beat.pid), None)

    def until(self, met: Callable[[], object], what: str, pause_s: float = 0.1) -> None:
        """Wait for something that only store or processes tell of; raises `AssertionError` where it never comes."""
        deadline = time.monotonic() + PATIENCE_S
        while not met():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} never came: see {self.folder / 'up.log'}")
            time.sleep(pause_s)


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen at this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
