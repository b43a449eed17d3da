"""What the benchmarks of a card need of a machine, and how to bring what it lacks. The standard library alone."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from report import commit


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution that has to be there."""

    name: str
    #: Versions that will do: at least the first, and below the second where there is one.
    least: tuple[int, ...]
    below: tuple[int, ...] = ()
    #: Whether it can be carried as a wheel of its own: torch comes with gigabytes of CUDA's libraries.
    carried: bool = True

    @property
    def wanted(self) -> str:
        """What pip is asked for, such as `diffusers>=0.42,<0.43`."""
        least = f"{self.name}>={'.'.join(map(str, self.least))}"
        return f"{least},<{'.'.join(map(str, self.below))}" if self.below else least

    def fits(self, found: str) -> bool:
        """Whether the version `found` will do. A local part, such as `+cu130`, is not looked at."""
        numbers = tuple(int(number) for number in re.findall(r"\d+", found.partition("+")[0])[:3])
        return numbers >= self.least and (not self.below or numbers[: len(self.below)] < self.below)


#: As in `pyproject.toml`, without what starts a farm.
PACKAGES = (
    Package(name="torch", least=(2, 10), carried=False),
    Package(name="diffusers", least=(0, 42), below=(0, 43)),
    Package(name="transformers", least=(5, 0), below=(6,)),
    Package(name="safetensors", least=(0, 4, 5)),
    Package(name="huggingface-hub", least=(1, 0)),
    Package(name="numpy", least=(1, 26)),
    Package(name="pillow", least=(11,)),
    Package(name="pydantic", least=(2, 11)),
    Package(name="nvidia-ml-py", least=(12, 560)),
)


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """A package that is not there, or in a version that will not do."""

    package: Package
    #: Version that is there; empty where none is.
    found: str = ""

    def __str__(self) -> str:
        return f"{self.package.wanted} ({f'{self.found} is there' if self.found else 'not installed'})"


def lacking(version_of: Callable[[str], str] = version) -> list[Lacking]:
    """The packages that this Python lacks; `version_of` raises `PackageNotFoundError` for what is not installed."""
    found = []
    for package in PACKAGES:
        try:
            there = version_of(package.name)
        except PackageNotFoundError:
            found.append(Lacking(package=package))
            continue
        if not package.fits(there):
            found.append(Lacking(package=package, found=there))
    return found


def how_to_bring(missing: list[Lacking]) -> str:
    """What to type, for people: with a package index in reach and without."""
    names = " ".join(f"'{each.package.wanted}'" for each in missing)
    carried = " ".join(f"'{each.package.wanted}'" for each in missing if each.package.carried)
    lines = [
        "This Python lacks: " + ", ".join(map(str, missing)),
        "Where it reaches a package index:",
        f"  {sys.executable} -m pip install {names}",
    ]
    if carried:
        lines += [
            "Where it does not, bring wheels from a machine that does:",
            f"  python3 -m pip download --no-deps --only-binary=:all: --python-version {platform.python_version()} "
            f"--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels {carried}",
            "and use them here, without touching what is installed:",
            f"  {sys.executable} -m pip install --no-index --no-deps --target site wheels/*.whl",
            "  export PYTHONPATH=site",
        ]
    if any(not each.package.carried for each in missing):
        lines.append("torch is too large to carry: use an image or environment that has it, built for CUDA.")
    return "\n".join(lines)


def about(arguments: list[str]) -> dict[str, Any]:
    """Machine, versions, commit, command and date: what a figure means nothing without. Needs torch."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "commit": commit(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    allocator = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    if allocator:
        found["allocator"] = allocator
    for name in ("diffusers", "transformers", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_bytes": int(properties.total_memory),
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": _driver(),
        }
    else:
        found["gpu"] = "none: host memory"
    return found


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return f"untold ({error})"
    return found.decode() if isinstance(found, bytes) else str(found)
