"""How long batches take on mixed cards: clipmill's placement against what farms use, over the best there can be.

    python benchmarks/makespan.py --check

Frozen traces of 20, 50, 200 and 1,000 clips on 26 cards of five kinds, all there at once or (but for the largest)
arriving by a Poisson process; then with runtimes 20 % off either way and one card in twenty lost. Every figure is a
makespan divided by the value of the preemptive linear program, which no schedule can beat: of the true times, knowing
arrivals and losses beforehand. A move holds both cards and the clip for 0.5, 5 or 30 s.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import policies
import traces
from arrival_bound import least_end_s
from report import Aim, Report, parser
from traces import CARDS, SIZES, Outcome, Shape, Trace

from cluster.scheduling.tail.bound import shortest

MOVES_S = (0.5, 5.0, 30.0)
#: Ratios that clipmill must keep at 0.5 s a move, everything there at once.
AIMS = {20: 1.03, 50: 1.03, 200: 1.01, 1000: 1.005}
DISTURBED = 1.10
#: Longer queues of arrivals are at one place much like at another.
MOST_ONLINE = 200
NOISE = 0.2
DEATHS = 0.05
POLICIES = ("clipmill", "longest first", "gavel", "fifo", "first fit")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of one policy."""

    trace: int
    policy: str
    move_s: float
    disturbed: bool = False
    variants: int = 4


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it."""

    case: Case
    count: int
    online: bool
    bound_s: float
    makespan_s: float
    moves_per_job: float
    small_p95_s: float
    wall_s: float

    @property
    def ratio(self) -> float:
        """Makespan over bound."""
        return self.makespan_s / self.bound_s


def bound(shapes: Sequence[Shape], trace: Trace, factors: Sequence[float], deaths: Mapping[int, float]) -> float:
    """Seconds below which no schedule ends the trace, arrivals and losses being known.

    Where no card is lost on the way it is the best there is, all arrivals being known. Else the largest of what all
    jobs need, and of what the last jobs need after each arrival; capacities shrink where cards are lost.
    """
    kinds = [kind for kind, (_, _, _, number) in enumerate(CARDS) for _ in range(number)]
    starts = sorted(set(trace.arrivals))
    if len(starts) > 1 and all(when <= starts[0] for when in deaths.values()):
        there = [
            sum(kind == one and card not in deaths for card, one in enumerate(kinds)) for kind in range(len(CARDS))
        ]
        whole = [
            [factor * shapes[shape].seconds(kind) for kind in range(len(CARDS))]
            for shape, factor in zip(trace.shapes, factors, strict=True)
        ]
        return least_end_s(whole, trace.arrivals, there)
    best = 0.0
    # Only what arrives from `start` on, and nothing before it, is to be done after `start`.
    some = starts if len(starts) <= 40 else [starts[round(i * (len(starts) - 1) / 40)] for i in range(41)]
    for start in some:
        jobs = [i for i, arrives in enumerate(trace.arrivals) if arrives >= start]
        groups = Counter((trace.shapes[i], factors[i]) for i in jobs)
        seconds = [[f * shapes[s].seconds(kind) for kind in range(len(CARDS))] for s, f in groups]
        lost = [deaths[card] - start for card in deaths if deaths[card] > start]
        gone = {card for card in deaths if deaths[card] <= start}
        alive = [sum(kinds[i] == kind and i not in gone for i in range(len(kinds))) for kind in range(len(CARDS))]
        value, _ = shortest(seconds, alive, list(groups.values()))
        # A card that is lost before the end worked until then only.
        for _ in range(20):
            busy = [0.0] * len(CARDS)
            for card, when in deaths.items():
                if card not in gone and when - start < value:
                    busy[kinds[card]] += value - (when - start)
            again, _ = shortest(seconds, alive, list(groups.values()), busy)
            if not lost or again <= value * 1.0001:
                break
            value = again if again < value * 1.5 else value * 1.5
        best = max(best, start + value)
    return best


def disturbance(trace: Trace, at: int, about_s: float) -> tuple[list[float], dict[int, float]]:
    """(factors on every job's times, cards and when they are lost)."""
    rng = random.Random(at)
    cards = sum(number for _, _, _, number in CARDS)
    lost = rng.sample(range(cards), max(1, round(DEATHS * cards)))
    return [rng.uniform(1 - NOISE, 1 + NOISE) for _ in trace.shapes], {
        card: rng.uniform(0.1, 0.9) * about_s for card in lost
    }


def play(case: Case) -> Result:
    """One run."""
    shapes, found = traces.frozen()
    trace = found[case.trace]
    factors = [1.0] * len(trace.shapes)
    deaths: dict[int, float] = {}
    best = bound(shapes, trace, factors, deaths)
    if case.disturbed:
        factors, deaths = disturbance(trace, case.trace, best)
        best = bound(shapes, trace, factors, deaths)
    policy: Callable[[traces.World], Any]
    boundaries: Callable[[traces.World], Mapping[int, int]] = policies.nothing
    match case.policy:
        case "clipmill":
            own = policies.Clipmill(shapes, case.move_s, variants=case.variants)
            policy, boundaries = own, own.boundaries
        case "gavel":
            gavel = policies.Gavel(case.move_s)
            policy, boundaries = gavel, gavel.boundaries
        case "fifo":
            policy = policies.fifo
        case "first fit":
            policy = policies.first_fit
        case _:
            policy = policies.longest_first
    began = time.perf_counter()
    outcome: Outcome = traces.run(shapes, trace, policy, boundaries, move_s=case.move_s, factors=factors, deaths=deaths)
    whole = [min(map(shapes[s].seconds, range(len(CARDS)))) for s in trace.shapes]
    small = sorted(f for f, w in zip(outcome.flow_s, whole, strict=True) if w <= statistics.median(whole))
    return Result(
        case=case,
        count=len(trace.shapes),
        online="poisson" in trace.name,
        bound_s=best,
        makespan_s=outcome.makespan_s,
        moves_per_job=outcome.moves / len(trace.shapes),
        small_p95_s=small[math.ceil(0.95 * len(small)) - 1],
        wall_s=time.perf_counter() - began,
    )


def _is_online(trace: Trace) -> bool:
    return "poisson" in trace.name


def cases(sizes: Sequence[int], variants: int) -> list[Case]:
    """All runs."""
    _, found = traces.frozen()
    some = [i for i, trace in enumerate(found) if len(trace.shapes) in sizes]
    return [
        Case(trace=i, policy=policy, move_s=move_s, disturbed=disturbed, variants=variants)
        for i in some
        for disturbed in (False, True)
        for move_s in MOVES_S
        for policy in POLICIES
        # Those that never move do the same whatever a move costs; arrivals and disturbances are played at one cost.
        if (move_s == MOVES_S[0] or not (disturbed or _is_online(found[i])))
        and not (_is_online(found[i]) and (disturbed or len(found[i].shapes) > MOST_ONLINE))
        and (policy in ("clipmill", "gavel", "longest first") or move_s == MOVES_S[0])
    ]


def table(results: Sequence[Result]) -> str:
    """All figures, one line a size, kind, cost and policy."""
    lines = [f"{'clips':>5} {'arrivals':8} {'move':>5} {'':9} {'policy':14} mean ratio (worst)  moves/job  small p95"]
    groups: dict[tuple[object, ...], list[Result]] = {}
    for r in results:
        key = (r.count, r.online, r.case.disturbed, r.case.move_s, POLICIES.index(r.case.policy))
        groups.setdefault(key, []).append(r)
    for (count, online, disturbed, move_s, policy), group in sorted(groups.items(), key=lambda item: str(item[0])):
        ratios = [r.ratio for r in group]
        lines.append(
            f"{count:>5} {'poisson' if online else 'at once':8} {move_s:>4}s {'disturbed' if disturbed else '':9} "
            f"{POLICIES[int(str(policy))]:14} {statistics.mean(ratios):.4f} ({max(ratios):.4f})    "
            f"{statistics.mean(r.moves_per_job for r in group):7.2f}  "
            f"{statistics.mean(r.small_p95_s for r in group):8.1f} s"
        )
    return "\n".join(lines)


def aims(results: Sequence[Result]) -> list[Aim]:
    """What the figures must keep."""

    def some(**wanted: object) -> list[Result]:
        return [
            r
            for r in results
            if all(getattr(r, k, None) == v or getattr(r.case, k, None) == v for k, v in wanted.items())
        ]

    found = []
    for count, most in AIMS.items():
        if own := some(count=count, online=False, disturbed=False, move_s=0.5, policy="clipmill"):
            name = f"{count} clips at once, 0.5 s a move, mean makespan / bound"
            found.append(Aim(name=name, value=statistics.mean(r.ratio for r in own), at_most=most))
    by_run = {(r.case.trace, r.case.disturbed, r.case.move_s, r.case.policy): r for r in results}
    for move_s in MOVES_S:
        worst = max(
            (
                r.makespan_s / by_run[trace, False, move_s, "longest first"].makespan_s
                for (trace, disturbed, cost, policy), r in by_run.items()
                if policy == "clipmill" and cost == move_s and not disturbed
            ),
            default=0.0,
        )
        found.append(Aim(name=f"{move_s} s a move, worst makespan / longest first", value=worst, at_most=1.0))
    if own := some(disturbed=True, policy="clipmill", online=False):
        name = "times off by 20 %, 5 % of the cards lost, mean makespan / bound"
        found.append(Aim(name=name, value=statistics.mean(r.ratio for r in own), at_most=DISTURBED))
    return found


def row(r: Result) -> dict[str, object]:
    """A result as the JSON file has it."""
    return {
        "trace": traces.frozen()[1][r.case.trace].name,
        "policy": r.case.policy,
        "move_s": r.case.move_s,
        "disturbed": r.case.disturbed,
        "ratio": round(r.ratio, 5),
        "moves_per_job": round(r.moves_per_job, 3),
        "small_p95_s": round(r.small_p95_s, 2),
    }


def main() -> int:
    """Run, print, and say whether the aims are met."""
    made = parser(__doc__)
    made.add_argument("--sizes", default=",".join(map(str, SIZES)), help="clips of the traces to play")
    made.add_argument("--variants", type=int, default=4, help="vertices of the linear program tried for a plan")
    made.add_argument("--processes", type=int, default=2)
    given = made.parse_args()
    todo = cases([int(size) for size in given.sizes.split(",")], given.variants)
    results = []
    with ProcessPoolExecutor(given.processes) as pool:
        for result in pool.map(play, todo, chunksize=1):
            results.append(result)
            told = f"{len(results)}/{len(todo)} {json.dumps(row(result))} {result.wall_s:.0f} s"
            print(told, file=sys.stderr, flush=True)
    print(table(results))
    own = [r for r in results if r.case.policy == "clipmill"]
    report = Report(
        name="makespan",
        figures={
            "runs": len(results),
            "seconds of planning and placing, all runs of clipmill": sum(r.wall_s for r in own),
            "ratios": [row(r) for r in results] if given.json else f"{len(results)}, all with --json",
        },
        aims=aims(results),
    )
    return report.finish(given)


if __name__ == "__main__":
    sys.exit(main())
