"""Farms in virtual time: `python -m cluster.simulation --seed 7` plays one, `--count 10000` so many, from that seed on.

Everything of a run follows from its seed and the options, which are printed; a run that broke an invariant prints its
journal too, and is the same when it is played again. See docs/simulator.md.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.simulation.invariants import check
from cluster.simulation.journal import RunRecord
from cluster.simulation.play import play
from cluster.simulation.scenario import draw

#: Seeds that one process plays before it reports.
_CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run depends on besides its seed; None: drawn from it."""

    cards: int | None = None
    jobs: int | None = None
    minutes: float = 1.0
    troubles: float = 1.0

    def command(self, seed: int) -> str:
        """What plays a seed again."""
        parts = [f"python -m cluster.simulation --seed {seed}"]
        parts += [f"--cards {self.cards}"] if self.cards is not None else []
        parts += [f"--jobs {self.jobs}"] if self.jobs is not None else []
        parts += [f"--minutes {self.minutes:g}"] if self.minutes != Options.minutes else []
        parts += [f"--troubles {self.troubles:g}"] if self.troubles != Options.troubles else []
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class BrokenRun:
    """A seed whose run went wrong."""

    seed: int
    #: Broken invariants with what happened, or how the run itself broke.
    problems: tuple[str, ...]


def simulate(seed: int, options: Options | None = None) -> RunRecord:
    """Play the scenario of a seed."""
    o = options or Options()
    return play(draw(seed, cards=o.cards, jobs=o.jobs, minutes=o.minutes, troubles=o.troubles))


def problems_of(seed: int, options: Options | None = None) -> BrokenRun | None:
    """What went wrong with a seed; None where nothing did."""
    try:
        violations = check(simulate(seed, options))
    except Exception:
        return BrokenRun(seed=seed, problems=(traceback.format_exc(limit=-4),))
    return BrokenRun(seed=seed, problems=tuple(map(str, violations))) if violations else None


def find(seeds: Iterable[int], options: Options | None = None) -> list[BrokenRun]:
    """What went wrong with any of these seeds."""
    return [found for seed in seeds if (found := problems_of(seed, options)) is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every invariant held, else 1."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--cards", type=int, help="cards of the fleet; otherwise drawn from the seed, 3 to 8")
    parser.add_argument("--jobs", type=int, help="jobs handed in; otherwise drawn from the seed, 6 to 15")
    parser.add_argument("--minutes", type=float, default=1.0, help="virtual minutes of arrivals and faults")
    parser.add_argument("--troubles", type=float, default=1.0, help="how much goes wrong beside the usual; 0: nothing")
    parser.add_argument("--processes", type=int, default=1, help="processes that play seeds side by side")
    parser.add_argument("--journal", type=Path, help="write the journal of a single seed here, whether it held or not")
    given = parser.parse_args(arguments)
    options = Options(cards=given.cards, jobs=given.jobs, minutes=given.minutes, troubles=given.troubles)
    if given.count == 1:
        return _play_one(given.seed, options, given.journal)
    return _play_many(range(given.seed, given.seed + given.count), options, given.processes)


def _play_one(seed: int, options: Options, journal: Path | None) -> int:
    print(f"seed {seed}: {options.command(seed)}", flush=True)
    begun = time.perf_counter()
    record = simulate(seed, options)
    took = time.perf_counter() - begun
    violations = check(record)
    counted = Counter(str(row["state"]) for row in record.tables["jobs"])
    states = ", ".join(f"{number} {state}" for state, number in sorted(counted.items()))
    events = len(record.entries) + len(record.changes)
    print(
        f"{len(record.cards)} cards, {len(record.jobs)} jobs ({states}),"
        f" {len(record.tables['attempts'])} attempts in {record.entries[-1].at:.0f} virtual s;"
        f" {events} events in {took:.2f} s, {events / took:.0f}/s"
    )
    if journal is not None:
        journal.write_text("\n".join(record.lines()) + "\n")
    elif violations:
        print(*record.lines(), sep="\n")
    for violation in violations:
        print(violation)
    return 1 if violations else 0


def _play_many(seeds: range, options: Options, processes: int) -> int:
    print(f"seeds {seeds.start} to {seeds.stop - 1} in {processes} processes", flush=True)
    begun, done, wrong = time.perf_counter(), 0, 0
    chunks = [seeds[n : n + _CHUNK] for n in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for chunk, found in zip(chunks, pool.map(partial(find, options=options), chunks), strict=True):
            done += len(chunk)
            for finding in found:
                wrong += 1
                print(f"seed {finding.seed}: {options.command(finding.seed)}", *finding.problems, sep="\n  ")
            if done % (10 * _CHUNK) == 0 or done == len(seeds):
                print(f"{done} seeds, {wrong} with a broken invariant, {time.perf_counter() - begun:.0f} s", flush=True)
    return 1 if wrong else 0
