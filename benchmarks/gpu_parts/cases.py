"""A run of the card's benchmarks: cases, what of them fits a time, and results that survive a kill."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Parts in the order they run in.
PARTS = ("ceilings", "grid", "steps", "clips", "decode", "resume")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure."""

    part: str
    name: str
    #: Seconds it takes on an H200; estimated until a committed result says otherwise.
    cost_s: float
    #: Measures; its result is JSON-able.
    work: Callable[[], dict[str, Any]] = field(compare=False)
    #: What is left out last has the lowest: 0 is what an aim is read from, 1 what one wants to know, 2 the rest.
    rank: int = 1
    #: Its figures for people, a line each.
    show: Callable[[dict[str, Any]], list[str]] = field(default=lambda figures: lines_of(figures), compare=False)

    def __str__(self) -> str:
        return f"{self.part}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Cases that run, in order, and those that do not fit."""

    runs: tuple[Case, ...]
    left_out: tuple[Case, ...]


def plan_cases(cases: Sequence[Case], budget_s: float | None) -> Planned:
    """The cases that fit `budget_s`: chosen by rank, of one rank in the order of `PARTS`; they run in that order.

    A case that does not fit is passed over, and cheaper ones after it are still taken. None: all of them.
    """
    ordered = sorted(cases, key=lambda case: PARTS.index(case.part))
    if budget_s is None:
        return Planned(runs=tuple(ordered), left_out=())
    left, chosen = budget_s, set()
    for case in sorted(ordered, key=lambda case: case.rank):
        if case.cost_s <= left:
            left -= case.cost_s
            chosen.add(case)
    return Planned(
        runs=tuple(case for case in ordered if case in chosen),
        left_out=tuple(case for case in ordered if case not in chosen),
    )


class Results:
    """Figures of a run, written after every case: a killed run keeps what was measured."""

    def __init__(self, about: dict[str, Any], file: Path | None = None, folder: Path | None = None) -> None:
        """`file`: takes all of it; `folder`: takes one file a part, and all of it as `gpu.json`."""
        self._files = [path for path in (file, folder / "gpu.json" if folder else None) if path]
        self._folder = folder
        self.content: dict[str, Any] = {
            "benchmark": "gpu",
            "about": about,
            "finished": False,
            "parts": {},
            "failed": {},
            "left_out": {},
            "aims": [],
        }
        for path in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)

    def measured(self, case: Case, figures: dict[str, Any]) -> None:
        """Keep what a case found."""
        self.content["parts"].setdefault(case.part, {})[case.name] = figures
        self.write(case.part)

    def failed(self, case: Case, error: BaseException) -> None:
        """Keep that a case raised, and where."""
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
        text = " ".join(str(error).split())[:400]
        self.content["failed"][str(case)] = f"{type(error).__name__}: {text}{where}"
        self.write()

    def left_out(self, cases: Iterable[Case], why: str) -> None:
        """Keep that cases did not run."""
        self.content["left_out"] |= {str(case): why for case in cases}
        self.write()

    def write(self, part: str = "") -> None:
        """Write the files, whole or not at all; `part`: the one that was added to."""
        for path in self._files:
            _replace(path, self.content)
        if part and self._folder:
            content = {"benchmark": "gpu", "about": self.content["about"], "parts": {part: self.content["parts"][part]}}
            _replace(self._folder / f"{part}.json", content)


def _replace(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 - says what it does to a file that is there


class DeadCardError(RuntimeError):
    """The card computes nothing any more in this process."""


def run_cases(
    planned: Planned,
    results: Results,
    *,
    deadline: float | None = None,
    after_failure: Callable[[BaseException], None] = lambda _error: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run cases one after the other, printing and keeping each; one that raises is noted, and the next runs.

    `deadline`, by `clock`: cases whose cost goes beyond it are left out. `after_failure` cleans the card; where it
    raises `DeadCardError`, the rest is left out.
    """
    began = clock()
    results.left_out(planned.left_out, "does not fit the budget")
    for place, case in enumerate(planned.runs):
        if deadline is not None and clock() + case.cost_s > deadline:
            results.left_out([case], "no time was left")
            print(f"[{clock() - began:6.1f} s] {case}: left out, no time was left", flush=True)
            continue
        started = clock()
        print(f"[{started - began:6.1f} s] {case} …", flush=True)
        try:
            figures = case.work()
        except Exception as error:
            results.failed(case, error)
            print(f"  FAILED {results.content['failed'][str(case)]}", flush=True)
            try:
                after_failure(error)
            except DeadCardError as dead:
                results.left_out(planned.runs[place + 1 :], str(dead))
                print(f"  {dead}", flush=True)
                return
            continue
        seconds = clock() - started
        results.measured(case, {**figures, "took_s": round(seconds, 2)})
        for line in case.show(figures):
            print(f"  {line}", flush=True)


def lines_of(figures: dict[str, Any], prefix: str = "") -> list[str]:
    """Figures for people, a line each; nested ones by their path."""
    found: list[str] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += lines_of(value, f"{prefix}{name} · ")
        elif isinstance(value, list):
            found.append(f"{prefix}{name}: {', '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in value)}")
        else:
            found.append(f"{prefix}{name}: {f'{value:.5g}' if isinstance(value, float) else value}")
    return found
