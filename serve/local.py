"""The embedded farm: Ray started on this machine for as long as a command runs, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from cluster.cards import card_class_of
from serve.settings import CardClassArgs, FarmArgs

log = logging.getLogger("clipmill.local")

APP_NAME = "clipmill"
#: Directory names carry the owner's process id, so that a later start can tell whose are left over.
_TMP_PREFIX = "clipmill-"
_MIN_OBJECT_STORE_BYTES = 80 * 2**20
#: Ray's daemons without which nothing renders, as Ray names them.
_DAEMONS = ("raylet", "gcs_server")


class FarmLock:
    """Held by the one process that runs the embedded farm of a home; released by its death, however it comes."""

    def __init__(self, home: Path) -> None:
        self._path = home / "farm.lock"
        self._file: IO[str] | None = None

    def try_acquire(self) -> bool:
        """Take the lock unless another process has it."""
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "since": int(time.time())}))
        file.flush()
        self._file = file
        return True

    def note(self, **facts: Any) -> None:
        """Say more about the running farm to those who read `holder`, such as its URL."""
        assert self._file is not None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "since": int(time.time()), **facts}))
        self._file.flush()

    def holder(self) -> dict[str, Any] | None:
        """What the process that has the lock says of itself; None where nobody has it."""
        with contextlib.suppress(OSError), self._path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                with contextlib.suppress(ValueError):
                    return dict(json.loads(file.read() or "{}"))
                return {}
        return None

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


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
    """The card table of this machine's GPUs; empty where there are none.

    Cards of several classes in one host are told apart by uuid, not by Ray, which does not know their sizes.
    """
    from serve.cards import find_gpus

    by_class: dict[str, list[str]] = {}
    for gpu in find_gpus():
        if name := card_class_of(gpu.total_bytes):
            by_class.setdefault(name, []).append(gpu.uuid)
    return {
        name: CardClassArgs(
            replicas=len(uuids), num_gpus=0, num_cpus=0, resources={f"card-{name}": 1}, cards=tuple(uuids)
        )
        for name, uuids in by_class.items()
    }


class EmbeddedFarm:
    """Ray and the Serve application on this machine. `start` once, `close` once."""

    def __init__(
        self,
        args: FarmArgs,
        *,
        port: int | None = None,
        dashboard_port: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        self._args = args
        self._metrics_port = metrics_port
        self._port = port
        self._dashboard_port = dashboard_port
        self._temp: Path | None = None
        #: Ray's own record of the daemons it started.
        self._node: Any = None

    def start(self) -> None:
        """Start Ray and deploy; returns when every renderer answers. Raises what Ray raises."""
        sweep_left_over()
        # A short path: Ray's sockets live in it, and a socket's path may have 107 characters.
        self._temp = Path(tempfile.mkdtemp(prefix=f"{_TMP_PREFIX}{os.getpid()}-", dir="/tmp"))
        _prepare_environment(self._temp, self._args.home)
        import ray
        from ray import serve as ray_serve
        from ray.serve.config import HTTPOptions
        from ray.serve.schema import LoggingConfig

        from serve.app import build

        _let_agent_choose_its_port()
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
            _temp_dir=str(self._temp),
            # None: a free one. Renderers' metrics, and those of the machine, are served there.
            _metrics_export_port=self._metrics_port,
        )
        self._node = ray._private.worker._global_node
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        location = "HeadOnly" if self._args.gateway else "NoServer"
        ray_serve.start(
            http_options=HTTPOptions(location=location, host="127.0.0.1", port=self._port or 8500),
            logging_config=quiet,
        )
        ray_serve.run(
            build(self._args.model_dump(mode="json")),
            name=APP_NAME,
            route_prefix="/" if self._args.gateway else None,
            logging_config=quiet,
        )

    def lost(self) -> str | None:
        """The name of a Ray daemon that ended by itself, such as `raylet`; None while all this farm needs is there.

        Nothing renders without them, and Ray neither restarts them nor tells: left alone, a command waits for ever
        (raylet), or is ended by Ray after a minute (gcs_server). Quick; may be called from any thread.
        """
        if self._node is None:
            return None
        return next((kind for kind, _ in self._node.dead_processes() if kind in _DAEMONS), None)

    def logs(self) -> Path | None:
        """Folder of Ray's logs while the farm runs."""
        return self._temp / "session_latest" / "logs" if self._temp else None

    def close(self, grace_s: float | None = None) -> None:
        """Let clips in flight finish within `grace_s` (default: the drain time), then end all this farm started."""
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
            if self._temp:
                shutil.rmtree(self._temp, ignore_errors=True)


def _prepare_environment(temp: Path, home: str) -> None:
    os.environ.update(
        {
            # Jobs of `ray job submit` run `clipmill` on this farm's home, from this farm's installation.
            "CLIPMILL_HOME": home,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            # By reference, a dead dispatcher goes unnoticed by its renderers; by gRPC its calls are cancelled at once.
            "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(temp),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DEDUP_LOGS": "0",
        }
    )


def _let_agent_choose_its_port() -> None:
    """Without this every Ray on a machine wants port 52365 for its agent, and all but the first take no jobs.

    `ray start` has an option for it, `ray.init` has none.
    """
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)


def sweep_left_over() -> None:
    """Remove the temporary folders of embedded farms whose process is gone (killed before it could tidy up)."""
    for folder in Path("/tmp").glob(f"{_TMP_PREFIX}*-*"):  # noqa: S108
        pid = folder.name.removeprefix(_TMP_PREFIX).split("-")[0]
        if folder.is_dir() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
