"""What every benchmark shares: machine and versions beside the figures, `--json FILE`, `--check`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure with the bound its issue sets."""

    name: str
    value: float
    at_most: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound."""
        return self.value <= self.at_most

    def __str__(self) -> str:
        mark = "meets" if self.met else "MISSES"
        return f"{self.name}: {self.value:.3g} {self.unit} {mark} the aim of at most {self.at_most:g} {self.unit}"


@dataclass(kw_only=True)
class Report:
    """Figures of one run."""

    name: str
    figures: dict[str, Any]
    aims: list[Aim] = field(default_factory=list)

    def finish(self, options: argparse.Namespace) -> int:
        """Print, write `--json`, and give the exit code: 1 where `--check` was asked for and an aim is missed."""
        print(f"{self.name} on {machine()}")
        for name, value in self.figures.items():
            print(f"  {name}: {value:.3g}" if isinstance(value, float) else f"  {name}: {value}")
        for aim in self.aims:
            print(f"  {aim}")
        if options.json:
            content = {
                "benchmark": self.name,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
                "machine": machine(),
                "figures": self.figures,
                "aims": [asdict(aim) | {"met": aim.met} for aim in self.aims],
            }
            options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
        return int(options.check and not all(aim.met for aim in self.aims))


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    made.add_argument("--check", action="store_true", help="exit 1 where a figure misses its aim")
    return made


def commit() -> str:
    """The commit of the checkout, with `+` where files differ from it; `unknown` without git or its folder."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """Cores, processor, and versions of what decides the figures."""
    names = ("clipmill", "ray", "torch", "pillow", "numpy", "scipy")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {', '.join(found)}"
