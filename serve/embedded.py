"""The embedded farm: Ray started on this machine for as long as a command runs, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from cluster.fleet.cards import card_class_of
from pipeline.devices.discovery import Gpu
from pipeline.private import PRIVATE_FOLDER, create_private, private_folder, write_private
from pipeline.units import GIB, MIB
from serve.credentials import KEY_VARIABLE
from serve.farm_logs import keep_logs
from serve.farm_watch import FarmWatch
from serve.loopback import LOOPBACK, ray_on_loopback
from serve.settings import SCRATCH_VARIABLE, WORKER_NICENESS_VARIABLE, CardClassArgs, FarmArgs, ListenArgs

log = logging.getLogger("clipmill.local")

APP_NAME = "clipmill"
#: Port of the gateway where none is named.
DEFAULT_PORT = 8500
#: Directory names carry the owner's process id, so that a later start can tell whose are left over.
_TMP_PREFIX = "clipmill-"
_TMP_NAME = re.compile(rf"{_TMP_PREFIX}([0-9]+)-[a-z0-9_]{{8}}")
#: In each of them: that it is an embedded farm's.
_TMP_MARK = ".clipmill-farm"
_MIN_OBJECT_STORE_BYTES = 80 * MIB
#: Ray's daemons without which nothing renders, as Ray names them.
_DAEMONS = ("raylet", "gcs_server")


class FarmLock:
    """Lock of a home: held by the one process that runs its embedded farm, released however that process ends."""

    def __init__(self, home: Path) -> None:
        self._path = home / "farm.lock"
        self._file: IO[str] | None = None

    def try_acquire(self) -> bool:
        """Take the lock; False where another process has it."""
        if self._file is not None:
            return True
        private_folder(self._path.parent)
        file = self._locked()
        if file is None and _is_strangers(self._path):
            # One at a time: what another process of ours has just put in its place is not taken away again. Nobody
            # else can have this file open, as it has never been there for others to read.
            guard = self._path.with_name("farm.lock.replace")
            create_private(guard)
            with guard.open() as alone:
                fcntl.flock(alone, fcntl.LOCK_EX)
                if _is_strangers(self._path):
                    log.warning("another user holds a lock on %s, which is replaced", self._path)
                    self._path.unlink(missing_ok=True)
                file = self._locked()
        if file is None:
            return False
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "since": int(time.time())}))
        file.flush()
        self._file = file
        return True

    def _locked(self) -> IO[str] | None:
        """The file, locked for this process; None where another has it."""
        while True:
            create_private(self._path)
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            except FileNotFoundError:
                pass
            except OSError:
                file.close()
                return None
            # It was replaced in between.
            file.close()

    def note(self, **facts: Any) -> None:
        """Write facts on the running farm, such as its URL, for those who call `holder`."""
        assert self._file is not None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "since": int(time.time()), **facts}))
        self._file.flush()

    def holder(self) -> dict[str, Any] | None:
        """What the process that has the lock noted: `pid`, `since`, and more by `note`; None where nobody has it."""
        with contextlib.suppress(OSError), self._path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                if _is_strangers(self._path):
                    return None
                with contextlib.suppress(ValueError):
                    return dict(json.loads(file.read() or "{}"))
                return {}
        return None

    def release(self) -> None:
        """Give the lock back; does nothing where it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_strangers(path: Path) -> bool:
    """Whether all who hold a lock on a file are users to whom neither it nor its folder belongs, nor this process.

    Whoever could once read a file may hold a lock on it for as long as they keep it open. Where the system does not
    tell who it is (`/proc/locks`; another container's processes), it is nobody who may be passed over.
    """
    try:
        facts = path.stat()
        ours = {0, os.geteuid(), facts.st_uid, path.parent.stat().st_uid}
        which = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        # `5: FLOCK  ADVISORY  WRITE 19307 fe:00:2187267 0 EOF`; one that waits has an arrow behind its number.
        holders = [_user_of(words[4]) for words in lines if words[1] == "FLOCK" and which in words]
    except (OSError, IndexError, ValueError):
        return False
    return bool(holders) and not ours.intersection(holders)


def _user_of(pid: str) -> int:
    # Of `status`, not of the folder, which is root's where a process does not let itself be dumped.
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


def emulated_classes(cards: list[str]) -> dict[str, CardClassArgs]:
    """The card table of `--cards c8,c24,c24`: emulated cards, one CPU process each."""
    return {
        name: CardClassArgs(
            replicas=cards.count(name),
            num_gpus=0,
            num_cpus=0,
            resources={f"card-{name}": 1},
            cards=tuple(f"emulated-{name}-{i}" for i in range(cards.count(name))),
        )
        for name in dict.fromkeys(cards)
    }


def gpu_classes() -> dict[str, CardClassArgs]:
    """The card table of the GPUs that this process may use (`CUDA_VISIBLE_DEVICES`); empty where there are none.

    Cards of several classes in one host are told apart by uuid, not by Ray, which does not know their sizes.
    """
    from serve.renderer.cards import find_gpus

    by_class: dict[str, list[Gpu]] = {}
    for gpu in find_gpus():
        if name := card_class_of(gpu.total_bytes):
            by_class.setdefault(name, []).append(gpu)
    return {
        name: CardClassArgs(
            replicas=len(gpus),
            num_gpus=0,
            num_cpus=0,
            resources={f"card-{name}": 1},
            cards=tuple(gpu.uuid for gpu in gpus),
            # Of one class some have less than others, and a clip may come to any of them.
            memory_gib=min(gpu.programs_bytes for gpu in gpus) / GIB,
        )
        for name, gpus in by_class.items()
    }


class EmbeddedFarm:
    """Ray and the Serve application on this machine. `start` once, `close` once.

    The gateway listens on `host`; all the rest on loopback, whatever that is.
    """

    def __init__(
        self,
        args: FarmArgs,
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        dashboard_port: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        listen = ListenArgs(host=host, port=port or DEFAULT_PORT) if args.gateway else None
        self._args = args.model_copy(update={"listen": listen})
        self._metrics_port = metrics_port
        self._dashboard_port = dashboard_port
        self._temp: Path | None = None
        #: Ray's own record of the daemons it started.
        self._node: Any = None
        self._watch: FarmWatch | None = None
        self._memory_kills = 0

    @property
    def renderers(self) -> int:
        """How many renderers it has, one a card."""
        return sum(table.replicas for table in self._args.card_classes.values())

    def start(self) -> None:
        """Start Ray and deploy; returns when every renderer answers. Raises what Ray raises."""
        sweep_left_over()
        # A short path: Ray's sockets live in it, and a socket's path may have 107 characters.
        self._temp = Path(tempfile.mkdtemp(prefix=f"{_TMP_PREFIX}{os.getpid()}-", dir="/tmp"))
        # Whose logs those are, should this process be killed.
        (self._temp / _TMP_MARK).write_text(str(self._args.settings().home), encoding="utf-8")
        _prepare_environment(self._temp, self._args.settings().home, jobs=self._dashboard_port is not None)
        self._memory_kills = _memory_kills()
        # All that Ray starts has this in its environment, and this process has not from its start.
        self._watch = FarmWatch(f"RAY_TMPDIR={_ray_folder(self._temp)}")
        import ray
        from ray import serve as ray_serve
        from ray.serve.config import HTTPOptions
        from ray.serve.schema import LoggingConfig

        from serve.app import build

        ray_on_loopback(agent=self._dashboard_port is not None or self._metrics_port is not None)
        # The terminal belongs to the person: Ray's own words go to its log files.
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        resources: dict[str, float] = {}
        for table in self._args.card_classes.values():
            for name, amount in table.resources.items():
                resources[name] = resources.get(name, 0) + amount * table.replicas
        ray.init(
            address="local",
            num_cpus=max(4, os.cpu_count() or 1),
            resources=resources,
            include_dashboard=self._dashboard_port is not None,
            dashboard_port=self._dashboard_port,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_MIN_OBJECT_STORE_BYTES,
            _temp_dir=str(_ray_folder(self._temp)),
            # None: a free one. Renderers' metrics, and those of the machine, are served there.
            _metrics_export_port=self._metrics_port,
        )
        self._node = ray._private.worker._global_node
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        # The gateway listens itself.
        ray_serve.start(http_options=HTTPOptions(location="NoServer"), logging_config=quiet)
        ray_serve.run(build(self._args.model_dump(mode="json")), name=APP_NAME, route_prefix=None, logging_config=quiet)

    def name(self) -> str:
        """What its dispatcher calls this farm in the store: once it is started."""
        import ray

        return str(ray.get_runtime_context().get_session_name())

    def lost(self) -> str | None:
        """Which Ray daemon ended by itself and how, such as `raylet was ended by SIGKILL`; None while all are there.

        Nothing renders without them, and Ray neither restarts them nor tells: left alone, a command waits for ever
        (raylet), or is ended by Ray after a minute (gcs_server). Quick; may be called from any thread.
        """
        if self._node is None:
            return None
        ended = next(((kind, process) for kind, process in self._node.dead_processes() if kind in _DAEMONS), None)
        if ended is None:
            return None
        kind, process = ended
        return f"{kind} {_how_it_ended(process.poll())}{_for_memory(_memory_kills() - self._memory_kills)}"

    def logs(self) -> Path | None:
        """Folder of Ray's logs; None before the farm is started."""
        return _ray_logs(self._temp) if self._temp else None

    def close(self, grace_s: float | None = None) -> None:
        """Let running clips finish within `grace_s` (default: the drain time), then end all this farm started."""
        grace_s = self._args.drain_s if grace_s is None else grace_s
        import ray
        from ray import serve as ray_serve

        try:
            # No `serve.shutdown`: the whole Ray goes, and taking Serve apart first costs seconds.
            if ray.is_initialized():
                # A farm that lost a daemon answers nothing: asking it would only wait.
                if not self.lost():
                    with contextlib.suppress(Exception):
                        handle = ray_serve.get_deployment_handle("dispatcher", app_name=APP_NAME)
                        handle.drain.remote(grace_s).result(timeout_s=grace_s + 5)
                ray.shutdown()
        finally:
            if self._watch:
                self._watch.close()
            if self._temp:
                _keep_logs(self._temp, self._args.settings().home)
                shutil.rmtree(self._temp, ignore_errors=True)


def _how_it_ended(code: int | None) -> str:
    """`code` as `subprocess` has it: the signal where it is negative."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _memory_kills() -> int:
    """How many processes the kernel has ended on this machine because its memory was full; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0


def _for_memory(kills: int) -> str:
    return " (memory was full meanwhile, and the kernel ended a process: `dmesg` says which)" if kills > 0 else ""


def token_file(home: Path) -> Path:
    """Where the embedded farm of this home keeps Ray's token: whoever can read it runs code as this user."""
    return home / "ray-token"


def logs_of_process(pid: int | None) -> Path | None:
    """Folder of Ray's logs of the embedded farm that a process runs; None where it runs none."""
    found = sorted(Path("/tmp").glob(f"{_TMP_PREFIX}{pid}-*")) if pid else []  # noqa: S108
    return next((_ray_logs(temp) for temp in found if _is_farms(temp) and _ray_logs(temp).exists()), None)


def _ray_logs(temp: Path) -> Path:
    return _ray_folder(temp) / "session_latest" / "logs"


def _keep_logs(temp: Path, home: Path) -> None:
    """Put the logs of the farm whose temporary folder this is into its home; nothing where there are none."""
    with contextlib.suppress(OSError):
        name, began = _TMP_NAME.fullmatch(temp.name), time.localtime((temp / _TMP_MARK).stat().st_mtime)
        if name and _ray_logs(temp).exists():
            keep_logs(_ray_logs(temp), home, f"{time.strftime('%Y%m%d-%H%M%S', began)}-{name[1]}")


def _ray_folder(temp: Path) -> Path:
    # Ray lets everybody write to its folder, so it lies within one that nobody else may enter.
    return temp / "ray"


def _prepare_environment(temp: Path, home: Path, *, jobs: bool) -> None:
    private_folder(home)
    if not jobs:
        # The farm's arguments say where the store is; renderers, which inherit the rest, have no use for its password.
        # With `jobs`, clipmill runs there as well, and has.
        os.environ.pop("CLIPMILL_DATABASE_URL", None)
    # Of another farm, which this person asks: no part of this one does.
    os.environ.pop(KEY_VARIABLE, None)
    # A new one for every farm: an old one that somebody saw opens nothing.
    write_private(token_file(home), secrets.token_hex(32))
    scratch = temp / "clips"
    scratch.mkdir(mode=PRIVATE_FOLDER)
    # Goes before the file where it is there, and whoever set it has it in shell histories and units.
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(
        {
            # Jobs of `ray job submit` run `clipmill` on this farm's home, from this farm's installation.
            "CLIPMILL_HOME": str(home),
            SCRATCH_VARIABLE: str(scratch),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            # Whatever the environment says: without a token Ray runs code for whoever reaches a port.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file(home)),
            # By reference, a dead dispatcher goes unnoticed by its renderers; by gRPC its calls are cancelled at once.
            "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
            # Ray's default is 15 for all alike; here renderers alone give way (`serve.niceness`).
            WORKER_NICENESS_VARIABLE: "0",
            # Ten times a second, as Ray has it, is a twentieth of a core for a farm of one machine.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(_ray_folder(temp)),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DEDUP_LOGS": "0",
        }
    )


def sweep_left_over(root: Path = Path("/tmp")) -> None:  # noqa: S108
    """Remove the temporary folders of embedded farms whose process is gone (killed before it could tidy up).

    A folder that only has such a name, `clipmill-2026-pictures`, is somebody's, and stays.
    """
    for folder in root.glob(f"{_TMP_PREFIX}*-*"):
        name = _TMP_NAME.fullmatch(folder.name)
        if name and not Path(f"/proc/{name[1]}").exists() and _is_farms(folder):
            with contextlib.suppress(OSError):
                # It was killed, and its logs say the most of all.
                if (home := Path((folder / _TMP_MARK).read_text(encoding="utf-8"))).is_absolute() and home.is_dir():
                    _keep_logs(folder, home)
            shutil.rmtree(folder, ignore_errors=True)


def _is_farms(folder: Path) -> bool:
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return False
    # Versions without the mark left what Ray makes, or nothing at all yet.
    return not names or _TMP_MARK in names or "session_latest" in names
