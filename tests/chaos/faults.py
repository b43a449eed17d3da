"""Faults that are done to a farm while it renders, each with what undoes it; none of them is the fault of a row."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy as sa

from cluster.jobs.commands import CardVerb
from cluster.jobs.model import Outcome
from cluster.jobs.transitions import RefusedError, Verb
from cluster.storage import Storage
from cluster.store.lookup import NoSuchCardError
from tests.building import still_png
from tests.chaos.farm import CARDS, OWNER, FarmUnderFire, UpProcess, free_port

RENDERER, DISPATCHER, GATEWAY = (
    f"ray::ServeReplica:clipmill:{name}" for name in ("renderer-c8", "dispatcher", "gateway")
)
#: How long something is waited for that a fault is to be done to, in seconds.
THERE_S = 30.0
#: Rows of a manifest in whose middle the gateway dies; all of one content.
MANIFEST_ROWS = 400
_SECOND_CARD = "emulated-c8-8"


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    #: Does it to the farm, undoes it where it has to be undone, and returns; False where there was nothing to do it to.
    do: Callable[[FarmUnderFire, random.Random], bool]
    #: How often it is drawn, against 1 for the others.
    weight: float = 1.0
    #: Only where the store is SQLite (True) or PostgreSQL (False).
    sqlite: bool | None = None
    needs_mount: bool = False
    #: Done once in the middle of a run, not drawn.
    middle: bool = False


def _kill(title: str) -> Callable[[FarmUnderFire, random.Random], bool]:
    return lambda farm, rng: _signal(farm, title, signal.SIGKILL, rng)


def _kill_daemon(title: str) -> Callable[[FarmUnderFire, random.Random], bool]:
    """Without it nothing renders: `clipmill up` ends, and says so."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        if not _signal(farm, title, signal.SIGKILL, rng):
            return False
        farm.until(farm.ended, "the end of the farm")
        return True

    return do


def _stop(title: str, least_s: float, most_s: float) -> Callable[[FarmUnderFire, random.Random], bool]:
    """SIGSTOP, and SIGCONT some seconds later."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        pids = _there(farm, title)
        if not pids:
            return False
        pid = rng.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rng.uniform(least_s, most_s))
            os.kill(pid, signal.SIGCONT)
        return True

    return do


def _signal(farm: FarmUnderFire, title: str, number: int, rng: random.Random) -> bool:
    pids = _there(farm, title)
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(pids), number)
    return True


def _there(farm: FarmUnderFire, title: str) -> list[int]:
    """Processes of this title, as soon as there are any."""
    deadline = time.monotonic() + THERE_S
    while not (pids := sorted(farm.pids(title))) and time.monotonic() < deadline and not farm.ended():
        time.sleep(0.05)
    return pids


def _kill_ffmpeg(farm: FarmUnderFire, _: random.Random) -> bool:
    """The next ffmpeg dies in the middle of its clip."""
    farm.ffmpeg_trap.touch()
    deadline = time.monotonic() + 2 * THERE_S
    while farm.ffmpeg_trap.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    caught = not farm.ffmpeg_trap.exists()
    farm.ffmpeg_trap.unlink(missing_ok=True)
    return caught


def _end_up(number: int) -> Callable[[FarmUnderFire, random.Random], bool]:
    def do(farm: FarmUnderFire, _: random.Random) -> bool:
        farm.signal_up(number)
        farm.until(farm.ended, "the end of the farm")
        return True

    return do


def _power_cut(farm: FarmUnderFire, _: random.Random) -> bool:
    assert farm.up is not None
    farm.up.kill()
    return True


def _lock_sqlite(least_s: float, most_s: float) -> Callable[[FarmUnderFire, random.Random], bool]:
    """Somebody's backup holds the database for some seconds."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        with contextlib.closing(sqlite3.connect(farm.home / "clipmill.db", timeout=60, isolation_level=None)) as c:
            c.execute("BEGIN IMMEDIATE")
            time.sleep(rng.uniform(least_s, most_s))
            c.execute("ROLLBACK")
        return True

    return do


def _lock_postgres(least_s: float, most_s: float) -> Callable[[FarmUnderFire, random.Random], bool]:
    """Somebody's migration holds the table of jobs for some seconds."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        with farm.database.engine.connect() as c, c.begin() as transaction:
            c.exec_driver_sql("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            time.sleep(rng.uniform(least_s, most_s))
            transaction.rollback()
        return True

    return do


def _cut_postgres(farm: FarmUnderFire, _: random.Random) -> bool:
    """Every connection to the database is ended, as by a restart of the server."""
    url = sa.make_url(str(farm.database_url)).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as c:
        c.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    # Those of this process too.
    farm.database.engine.dispose()
    return True


def _remount(farm: FarmUnderFire, options: str) -> None:
    subprocess.run(
        ["mount", "-o", f"remount,{options}", str(farm.storage_folder)], check=True, stderr=subprocess.DEVNULL
    )


def _read_only(farm: FarmUnderFire, rng: random.Random) -> bool:
    _nothing_is_saved(farm)
    with contextlib.suppress(subprocess.CalledProcessError):
        # Refused while a file is open for writing: then it is only tried.
        _remount(farm, "ro")
    time.sleep(rng.uniform(2, 12))
    _nothing_is_saved(farm)
    _remount(farm, "rw")
    return True


def _fill(where: Callable[[FarmUnderFire], Path], least_s: float, most_s: float) -> Callable[..., bool]:
    """No room on a disk for a while; nobody may pay for it with an attempt."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        burned, filler = _burned(farm), where(farm) / "filler"
        _nothing_is_saved(farm)
        until = time.monotonic() + rng.uniform(least_s, most_s)
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while time.monotonic() < until:
                    # What somebody else deletes meanwhile is taken too.
                    _take_all(file.fileno())
                    time.sleep(0.05)
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            _nothing_is_saved(farm)
            filler.unlink(missing_ok=True)
        for attempt in sorted(_burned(farm) - burned):
            farm.broken.append(f"a full disk burned attempt {attempt}")
        return True

    return do


def _take_all(file: int) -> None:
    for size in (16 << 20, 1 << 20, 1 << 16, 1 << 12):
        with contextlib.suppress(OSError):
            while os.write(file, bytes(size)) == size:
                pass


def _burned(farm: FarmUnderFire) -> set[str]:
    # On a busy machine a clip whose ffmpeg an earlier fault killed ends only now.
    return {
        one.id
        for one in farm.innocent_attempts()
        if one.outcome is Outcome.ERROR and "ffmpeg ended with -9" not in one.detail
    }


def _nothing_is_saved(farm: FarmUnderFire) -> None:
    """What runs now has no whole checkpoint for a while: it may do more steps again."""
    farm.damaged |= {one.job_id for one in farm.running(*farm.batches)}


def _damage(farm: FarmUnderFire, rng: random.Random, how: Callable[[bytes], bytes | None]) -> bool:
    """One checkpoint, whichever is there, is changed; None deletes it."""
    deadline, found = time.monotonic() + THERE_S, list[Path]()
    while not found and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found = sorted(path for path in (farm.storage_folder / "checkpoints").rglob("*") if path.is_file())
        time.sleep(0.05)
    if not found:
        return False
    path = rng.choice(found)
    # checkpoints/<job>/<attempt>/<step>
    farm.damaged.add(path.parts[-3])
    with contextlib.suppress(OSError):
        changed = how(path.read_bytes())
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
    return True


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def _order(*verbs: CardVerb) -> Callable[[FarmUnderFire, random.Random], bool]:
    """An operator takes a card out of the farm and gives it back."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        card = rng.choice(CARDS)
        for verb in (*verbs, CardVerb.RELEASE):
            try:
                farm.operator.command_card(card, verb, reason="a fault", whole=True)
            except NoSuchCardError:
                # Of an earlier fault nobody has heard of it for a while.
                return False
            time.sleep(rng.uniform(0.5, 2))
        return True

    return do


def _verbs(*verbs: Verb) -> Callable[[FarmUnderFire, random.Random], bool]:
    """An operator's commands to a batch that runs, one after the other."""

    def do(farm: FarmUnderFire, rng: random.Random) -> bool:
        batches = [batch.id for batch in farm.batch_store.batches(OWNER, 50) if not batch.done]
        if not batches:
            return False
        batch_id = rng.choice(sorted(batches))
        for verb in verbs:
            # It may have ended in between.
            with contextlib.suppress(RefusedError):
                farm.operator.command_batch(batch_id, verb)
            time.sleep(rng.uniform(0.5, 2))
        return True

    return do


def _delete_still(farm: FarmUnderFire, rng: random.Random) -> bool:
    """A still goes from storage before its rows are rendered: they fail and say so, and nobody else does."""
    kept, farm.still = farm.still, farm.storage.put_still(still_png(seed=rng.randrange(1, 1 << 30)))
    try:
        (farm.storage_folder / Storage.still_key(farm.still)).unlink()
        farm.doomed.append(
            farm.submit("no still", 2, first_seed=2_000_000 + 10 * len(farm.doomed), steps=1, family="camera")
        )
    finally:
        farm.still = kept
    return True


def _delete_card_locks(farm: FarmUnderFire, _: random.Random) -> bool:
    found = [path for path in (farm.home / "cards").rglob("*") if path.is_file()]
    for path in found:
        path.unlink()
    return bool(found)


def _second_up(farm: FarmUnderFire, _: random.Random) -> bool:
    """A second `clipmill up` on the same home is refused."""
    second = UpProcess(farm.home, farm.config(CARDS, free_port()), farm.folder / "second.log", farm.database_url, {})
    try:
        farm.until(lambda: second.ended() or farm.ended(), "the end of a second farm")
        if farm.ended():
            # Of an earlier fault: the home was free, and the second may have come up.
            return True
    finally:
        second.close()
    if second.process.returncode != 3 or not second.says("a farm runs on"):
        farm.broken.append(f"a second farm of one home ended with {second.process.returncode}: see {second.log}")
    return True


def _second_farm(*, takes_over: bool) -> Callable[[FarmUnderFire, random.Random], bool]:
    """A farm of another home on the same store stands by; `takes_over`: the first dies, and it renders meanwhile."""

    def do(farm: FarmUnderFire, _: random.Random) -> bool:
        home, url = farm.folder / "second", farm.database.engine.url.render_as_string(hide_password=False)
        home.mkdir(mode=0o700, exist_ok=True)
        log = farm.folder / f"second-{time.monotonic_ns()}.log"
        env = farm.env | {"CLIPMILL_STORAGE_URL": str(farm.storage_folder)}
        second = UpProcess(home, farm.config((_SECOND_CARD,), free_port()), log, url, env)
        try:
            farm.until(lambda: second.says("stands by") or second.ended() or farm.ended(), "a farm that stands by")
            if farm.ended():
                # Of an earlier fault: it has nobody to stand by for.
                return True
            if second.ended():
                farm.broken.append(f"a second farm on the store did not come up: see {log}")
                return True
            epoch = _epoch(farm)
            time.sleep(3)
            if _epoch(farm) != epoch or _SECOND_CARD in farm.heard_since(time.time() - 3):
                farm.broken.append("two farms on one store take office from each other")
            if takes_over:
                # Whatever else there was may have been done meanwhile.
                seed = 500_000 + 10 * len(farm.batches)
                farm.batches.append(farm.submit("for the other", 3, first_seed=seed, steps=1, family="camera"))
                began = time.time()
                _power_cut(farm, random.Random())
                farm.until(lambda: _SECOND_CARD in farm.heard_since(began), "the takeover of a farm that stood by")
                farm.until(lambda: _rendered_by(farm, _SECOND_CARD, began), "a clip of the farm that took over")
        finally:
            second.close()
        return True

    return do


def _epoch(farm: FarmUnderFire) -> int:
    with farm.database.read() as c:
        return int(c.exec_driver_sql("SELECT epoch FROM dispatcher").scalar_one())


def _rendered_by(farm: FarmUnderFire, card: str, began: float) -> bool:
    return any(
        one.card == card and one.started_at >= int(began) and (one.step > one.resumed_step or one.outcome)
        for batch_id in [b.id for b in farm.batch_store.batches(OWNER, 50)]
        for one in farm.attempts(batch_id)
    )


def _kill_gateway_while_handing_in(farm: FarmUnderFire, rng: random.Random) -> bool:
    """The gateway dies in the middle of a manifest; the same command with the same key hands in what is missing."""
    number = len(farm.manifests)
    folder = farm.folder / f"manifest-{number}"
    folder.mkdir()
    (folder / "mug.png").write_bytes(still_png(seed=(1 << 31) + number))
    rows = "".join(f"row{n},mug.png,pan left\n" for n in range(MANIFEST_ROWS))
    (folder / "catalog.csv").write_text(f"id,image,prompt\n{rows}")
    before = {batch.id for batch in farm.batch_store.batches(OWNER, 100)}
    command = [
        sys.executable, "-m", "serve.cli.main", "submit", str(folder / "catalog.csv"), "--model", "camera",
        "--key", f"manifest-{number}", "--url", f"http://127.0.0.1:{farm.port}",
    ]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLIPMILL_"))}
    log = (folder / "submit.log").open("ab")
    first = subprocess.Popen(command, env=clean, stdout=log, stderr=log)

    def opened() -> list[str]:
        return [b.id for b in farm.batch_store.batches(OWNER, 100) if b.id not in before]

    farm.until(lambda: opened() or first.poll() is not None, "a batch that is handed in", 0.01)
    _signal(farm, GATEWAY, signal.SIGKILL, rng)
    first.wait()
    farm.until(lambda: subprocess.run(command, env=clean, stdout=log, stderr=log).returncode == 0, "the rest", 1)
    log.close()
    farm.manifests += opened()
    return True


def _storage_of(farm: FarmUnderFire) -> Path:
    return farm.storage_folder


def _home_of(farm: FarmUnderFire) -> Path:
    return farm.home


#: The names are those of the table that a run prints. Storms of out-of-memory are not among them: what an emulated card
#: takes follows from the row, so that none can be made from outside; `tests/integration/test_oom_grid.py` has them.
FAULTS: tuple[Fault, ...] = (
    Fault("renderer killed", _kill(RENDERER), weight=4),
    Fault("renderer stopped for a while", _stop(RENDERER, 2, 12), weight=2),
    Fault("renderer stopped for long", _stop(RENDERER, 25, 45), weight=0.5),
    Fault("renderer told to end (SIGTERM)", lambda farm, rng: _signal(farm, RENDERER, signal.SIGTERM, rng)),
    Fault("dispatcher killed", _kill(DISPATCHER), weight=3),
    Fault("dispatcher stopped for a while", _stop(DISPATCHER, 2, 12), weight=2),
    Fault("dispatcher stopped for long", _stop(DISPATCHER, 25, 45), weight=0.5),
    Fault("gateway killed", _kill(GATEWAY)),
    Fault("gateway killed while rows are handed in", _kill_gateway_while_handing_in, weight=0.5),
    Fault("Serve's controller killed", _kill("ray::ServeController")),
    Fault("Ray's agent killed", _kill("ray::DashboardAgent"), weight=0.5),
    Fault("raylet killed", _kill_daemon("raylet"), weight=0.5),
    Fault("GCS killed", _kill_daemon("gcs_server"), weight=0.5),
    Fault("raylet stopped for a while", _stop("raylet", 2, 10), weight=0.5),
    Fault("GCS stopped for a while", _stop("gcs_server", 2, 10), weight=0.5),
    Fault("ffmpeg killed", _kill_ffmpeg),
    Fault("`clipmill up` ended by Ctrl-C", _end_up(signal.SIGINT), weight=0.5),
    Fault("`clipmill up` ended by SIGTERM", _end_up(signal.SIGTERM), weight=0.5),
    Fault("`clipmill up` killed", _end_up(signal.SIGKILL), weight=0.5),
    Fault("power cut", _power_cut, weight=0.5),
    Fault("second `clipmill up` on the home", _second_up, weight=0.5),
    Fault("second farm on the store", _second_farm(takes_over=False), weight=0.2),
    Fault("second farm takes over", _second_farm(takes_over=True), weight=0.2),
    Fault("database locked by somebody", _lock_sqlite(1, 8), sqlite=True, weight=2),
    Fault("database locked for 40 s", _lock_sqlite(40, 40), sqlite=True, weight=0.2),
    Fault("table locked by somebody", _lock_postgres(1, 8), sqlite=False, weight=2),
    Fault("table locked for 40 s", _lock_postgres(40, 40), sqlite=False, weight=0.2),
    Fault("connections to the database cut", _cut_postgres, sqlite=False, weight=2),
    Fault("home full for a while", _fill(_home_of, 3, 12), needs_mount=True),
    Fault("storage read-only for a while", _read_only, needs_mount=True, weight=2),
    Fault("storage full for a while", _fill(_storage_of, 3, 12), needs_mount=True, weight=2),
    Fault("storage full for 60 s", _fill(_storage_of, 60, 60), needs_mount=True, middle=True),
    Fault("still deleted", _delete_still, weight=0.5),
    Fault("locks of cards deleted", _delete_card_locks, weight=0.5),
    Fault("checkpoint deleted", lambda farm, rng: _damage(farm, rng, lambda _: None)),
    Fault("checkpoint cut short", lambda farm, rng: _damage(farm, rng, lambda d: d[: len(d) // 2])),
    Fault("checkpoint emptied", lambda farm, rng: _damage(farm, rng, lambda _: b"")),
    Fault("bit of a checkpoint flipped", lambda farm, rng: _damage(farm, rng, _flip)),
    Fault("card locked and unlocked", _order(CardVerb.LOCK)),
    Fault("card drained and unlocked", _order(CardVerb.DRAIN)),
    Fault("batch paused and resumed", _verbs(Verb.PAUSE, Verb.RESUME)),
    Fault("batch held and approved", _verbs(Verb.HOLD, Verb.APPROVE)),
)  # fmt: skip
