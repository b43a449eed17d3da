"""`doctor`: what is missing on this machine, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.markup import escape

from cluster.fleet.cards import card_class_of
from pipeline.devices.discovery import VISIBLE, Gpu
from pipeline.devices.nvml import Nvml
from pipeline.devices.readiness import cuda_problem, hidden, unanswered
from pipeline.families import FAMILIES
from pipeline.problems import Problem
from pipeline.units import GIB, format_bytes
from pipeline.weights.weights import weights_present
from serve.cli.common import (
    Exit,
    Home,
    Json,
    console,
    farm_facts,
    open_home,
    print_json,
    settings_for,
)
from serve.renderer.cards import survey_gpus
from serve.settings import Settings

#: Free disk below which a catalog may not finish.
LOW_DISK_BYTES = 5 * GIB
#: How long the trial of a card may take, in seconds: torch is imported, and a context made.
TRIAL_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that `doctor` looked at: its state, what was found, and a remedy."""

    name: str
    #: `ok`, `warning` (something is slower or missing) or `broken` (nothing can be rendered).
    state: str
    found: str
    remedy: str = ""


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Say what is missing on this machine, and the command that mends it."""
    settings = settings_for(home)
    looks: list[Callable[[Settings], Check]] = [_python, _gpu, _torch, _ffmpeg, _disk, _shared_memory, _home, _weights]
    checks = [look(settings) for look in [*looks, _farm]]
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "broken": "[red]✗[/]"}
        for check in checks:
            console.print(
                f"{marks[check.state]} [bold]{check.name}[/]  {escape(check.found)}", soft_wrap=True, markup=True
            )
            if check.remedy:
                console.print(f"    {check.remedy}", style="dim", soft_wrap=True)
    raise typer.Exit(Exit.SOME_FAILED if any(check.state == "broken" for check in checks) else Exit.DONE)


def _python(_: Settings) -> Check:
    return Check(name="python", state="ok", found=f"{platform.python_version()} on {platform.platform(terse=True)}")


def _gpu(_: Settings) -> Check:
    found = survey_gpus()
    problems = [fault.problem for fault in found.faults]
    if found.problem is not None:
        problems.append(found.problem)
    elif not found.gpus and found.hidden:
        problems.append(hidden(len(found.hidden), os.environ.get(VISIBLE, "")))
    works = []
    for gpu in found.gpus:
        problem = trial(gpu)
        works += [gpu] if problem is None else []
        problems += [problem] if problem is not None else []
    texts = [f"{gpu.name} {format_bytes(gpu.total_bytes)} ({card_class_of(gpu.total_bytes)})" for gpu in works]
    if not works:
        texts.append("clips are rendered by the camera model, or on emulated cards")
    return Check(
        name="GPU",
        state="ok" if works and not problems else "warning",
        found="; ".join([*(problem.message for problem in problems), ", ".join(texts)]),
        # The same advice for several cards is said once.
        remedy=" ".join(dict.fromkeys(problem.remedy for problem in problems)),
    )


def trial(gpu: Gpu) -> Problem | None:
    """What keeps torch from computing on a card; None where nothing does, or torch is not there.

    In a process of its own, which may hang or die: a bad card or driver can do either to whoever opens it.
    """
    if not importlib.util.find_spec("torch"):
        return None
    name, (driver, driver_cuda) = f"{gpu.name} {gpu.uuid}", Nvml().versions()
    command = [sys.executable, "-m", "pipeline.devices.probe", gpu.uuid, name, driver, str(driver_cuda)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return unanswered(name, TRIAL_S)
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode or not said:
        error = RuntimeError((done.stderr.strip().splitlines() or [f"the trial ended with {done.returncode}"])[-1])
        return cuda_problem(name, error, driver)[0]
    return None if said == "{}" else Problem.model_validate_json(said)


def _torch(_: Settings) -> Check:
    if importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers"):
        return Check(
            name="torch",
            state="ok",
            found=f"{importlib.metadata.version('torch')}, diffusers {importlib.metadata.version('diffusers')}",
        )
    return Check(
        name="torch",
        state="warning",
        found="not installed: only the camera model can render here",
        remedy="pip install 'clipmill[render]' -c constraints.txt",
    )


def _ffmpeg(_: Settings) -> Check:
    import imageio_ffmpeg

    try:
        exe = imageio_ffmpeg.get_ffmpeg_exe()
        return Check(name="ffmpeg", state="ok", found=f"{imageio_ffmpeg.get_ffmpeg_version()} ({Path(exe).name})")
    except (RuntimeError, OSError) as error:
        return Check(
            name="ffmpeg",
            state="broken",
            found=str(error),
            remedy="pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264",
        )


def _disk(settings: Settings) -> Check:
    place = next(path for path in [settings.home, *settings.home.parents] if path.exists())
    free = shutil.disk_usage(place).free
    if free < LOW_DISK_BYTES:
        return Check(
            name="disk",
            state="broken" if free < 2**28 else "warning",
            found=f"{format_bytes(free)} free on {place}",
            remedy="Free some space, or set CLIPMILL_HOME to a folder on a larger disk.",
        )
    return Check(name="disk", state="ok", found=f"{format_bytes(free)} free on {place}")


def _shared_memory(_: Settings) -> Check:
    shm = Path("/dev/shm")  # noqa: S108
    free = shutil.disk_usage(shm).free if shm.exists() else 0
    if free < 2**28:
        return Check(
            name="shared memory",
            state="warning",
            found=f"{format_bytes(free)} free on {shm}: Ray falls back to the disk",
            remedy="In a container, start it with `--shm-size 1g`.",
        )
    return Check(name="shared memory", state="ok", found=f"{format_bytes(free)} free")


def _home(settings: Settings) -> Check:
    try:
        open_home(settings)
        writable = os.access(settings.home, os.W_OK)
    except OSError:
        writable = False
    if writable:
        return Check(name="home", state="ok", found=str(settings.home))
    return Check(
        name="home",
        state="broken",
        found=f"{settings.home} cannot be written",
        remedy="Set CLIPMILL_HOME to a folder of yours.",
    )


def _weights(settings: Settings) -> Check:
    missing = [f.name for f in FAMILIES.values() if f.repo and not weights_present(f, settings.home)]
    if not missing:
        return Check(name="weights", state="ok", found="all families have theirs")
    return Check(
        name="weights",
        state="warning",
        found=f"not here yet: {', '.join(missing)}",
        remedy="Fetch them with `clipmill models pull NAME`, or leave it to the first clip that needs them; "
        "or name a folder with `render --weights DIR`.",
    )


def _farm(settings: Settings) -> Check:
    facts = farm_facts(settings)
    if facts:
        return Check(name="farm", state="ok", found=f"running, process {facts.get('pid')} {facts.get('url', '')}")
    return Check(name="farm", state="ok", found="none runs on this home; `clipmill render` starts its own")
