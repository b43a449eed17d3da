"""How soon interactive clips begin on a full farm, and what that costs its batch; and clips that come one by one.

    python benchmarks/interactive.py --check

First the 26 cards of `traces.py` with a batch of 1,000 clips running, and 100 interactive clips arriving by a Poisson
process, half of them of a family that no card has loaded. A clip has to begin within two steps of the clip that made
room for it, what saving that takes, and loading; the batch may end later by the work of the interactive clips, and
little more.

Then the Poisson traces, the frozen ones and fresh seeds: how long small clips take from arrival to end, beside the best
of the other schedulers in the same run, and when the last clip ends, beside a bound that no schedule beats. Then other
loads of the farm, and other mixes of cards. With `--first-seed 100` fresh seeds are those that nobody has tuned by.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import makespan
import policies
import traces
from report import Aim, Report, parser
from traces import CARDS, LOAD, MIX, Shape, Trace, Work

from cluster.estimates.times import TimeEstimates
from pipeline.clips.clip import ClipSpec, ResolutionClass, Tier
from pipeline.families import family_named
from pipeline.memory.footprint import leanest

#: Clips of the batch, interactive ones, and the part of the batch's time over which these arrive.
BATCH, INTERACTIVE, OVER = 1000, 100, 0.85
#: The second family of interactive clips, which no card has loaded at first.
OTHER = "svd-xt"
MOVE_S = 0.5
#: Interactive clips are drafts and standard ones of these classes.
MIDDLE, STANDARD_STEPS = (ResolutionClass.P512, ResolutionClass.P768), 50
#: Aims.
WITHIN, LATER, PREEMPTIONS = 1.0, 1.03, 1.0
SMALL, LAST, MOVES = 1.2, 1.05, 1.5
ONLINE_SIZES = (20, 50, 200)
#: Arrivals as a share of what the cards can do, and how many cards of each kind of `CARDS` there are; clips of each.
LOADS = (0.5, 0.8, 1.1)
MIXES = ((0, 4, 0, 0, 6), (1, 0, 2, 8, 6), (0, 0, 6, 8, 0))
ELSEWHERE = 50
RIVALS = ("longest first", "gavel", "fifo", "first fit")


def load_seconds(family: str, kind: int) -> float:
    """Seconds to load a family on a card of the kind."""
    return TimeEstimates().load_seconds(family, CARDS[kind][0])


def other_shapes() -> list[Shape]:
    """Clips of the other family, small ones as people ask for them."""
    family, estimates, found = family_named(OTHER), TimeEstimates(), []
    for tier in Tier.DRAFT, Tier.STANDARD:
        size, chosen = ResolutionClass.P512, family.tiers[tier]
        spec = ClipSpec(
            family=family.name, revision=family.revision, prompt="-", resolution_class=size, width=size.side,
            height=size.side, frames=chosen.frames, fps=8, steps=chosen.steps, guidance=3, seed=0,
        )  # fmt: skip
        needs = leanest(spec)[1].peak_bytes
        fits = [usable >= needs for _, _, usable, _ in CARDS]
        costs = [estimates.cost_within(spec, kind, usable) for kind, _, usable, _ in CARDS]
        found.append(
            Shape(
                spec=spec,
                needs_bytes=needs,
                step_s=tuple(c.phases[-1][1] if ok else math.inf for c, ok in zip(costs, fits, strict=True)),
                end_s=tuple(c.encode_s + c.decode_s if ok else math.inf for c, ok in zip(costs, fits, strict=True)),
            )
        )
    return found


def with_interactive(shapes: list[Shape], batch: Trace, seed: int, over_s: float) -> tuple[list[Shape], Trace]:
    """The batch with interactive clips arriving within `over_s`, and all shapes."""
    rng = random.Random(f"interactive {seed}")
    other = other_shapes()
    own = [
        n
        for n, shape in enumerate(shapes)
        if shape.spec.resolution_class in MIDDLE and shape.spec.steps <= STANDARD_STEPS
    ]
    chosen, arrivals, now = [], [], 0.0
    for number in range(INTERACTIVE):
        now += rng.expovariate(INTERACTIVE / over_s)
        arrivals.append(round(now, 3))
        chosen.append(len(shapes) + rng.randrange(len(other)) if number % 2 else rng.choice(own))
    made = Trace(
        name=f"{batch.name}-interactive-{seed}",
        arrivals=(*batch.arrivals, *arrivals),
        shapes=(*batch.shapes, *chosen),
        interactive_from=len(batch.shapes),
    )
    return [*shapes, *other], made


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """What came of a batch with interactive clips."""

    seed: int
    #: Seconds from arrival to first step, and the same over what is allowed to each, 95 of 100.
    wait_p95_s: float
    wait_ratio_p95: float
    flow_p95_s: float
    alone_s: float
    with_s: float
    own_work_s: float
    preemptions: int
    most_of_one: int
    used_share: float

    @property
    def later(self) -> float:
        """The batch's end over what it was without interactive clips and their own work."""
        return self.with_s / (self.alone_s + self.own_work_s)


def p95(values: Sequence[float]) -> float:
    """The value that 95 of 100 do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def allowed_s(work: Work) -> float:
    """Seconds from arrival to first step that a clip may take: two steps of the one before it, saving it, loading."""
    return 2 * work.waited_step_s + MOVE_S + work.load_s


def saturated(seed: int, variants: int, batch_of: int = BATCH) -> Saturated:
    """A batch without and with interactive clips."""
    shapes, found = traces.frozen()
    batch = next(t for t in found if t.name == f"{batch_of}-offline-{seed % traces.SEEDS}")
    own = policies.Clipmill(shapes, MOVE_S, variants=variants)
    alone = traces.run(shapes, batch, own, own.boundaries, move_s=MOVE_S)
    every, trace = with_interactive(shapes, batch, seed, OVER * alone.makespan_s)
    mixed = policies.Clipmill(every, MOVE_S, variants=variants, load_s=load_seconds)
    outcome = traces.run(every, trace, mixed, mixed.boundaries, move_s=MOVE_S, load_s=load_seconds)
    people = [w for w in outcome.work if w.interactive]
    waits = [(w.began or 0.0) - w.arrives for w in people]
    ends = [w.ended or 0.0 for w in outcome.work if not w.interactive]
    at_once = replace(trace, arrivals=(0.0,) * len(trace.shapes))
    least = makespan.bound(every, at_once, [1.0] * len(trace.shapes), {})
    least -= makespan.bound(shapes, batch, [1.0] * len(batch.shapes), {})
    return Saturated(
        seed=seed,
        wait_p95_s=p95(waits),
        wait_ratio_p95=p95([wait / allowed_s(w) for wait, w in zip(waits, people, strict=True)]),
        flow_p95_s=p95([(w.ended or 0.0) - w.arrives for w in people]),
        alone_s=alone.makespan_s,
        with_s=max(ends),
        own_work_s=least,
        preemptions=mixed.preempted.total(),
        most_of_one=max(mixed.preempted.values(), default=0),
        used_share=mixed.budget.used_s(outcome.makespan_s) / (outcome.makespan_s * sum(n for *_, n in CARDS)),
    )


# -- clips that come one by one ---------------------------------------------------------------------------------


def without(mix: Sequence[int] | None) -> dict[int, float]:
    """The cards of the farm that `mix` lacks, as lost from the beginning; None: it lacks none."""
    kinds = [kind for kind, (*_, number) in enumerate(CARDS) for _ in range(number)]
    left = list(mix) if mix is not None else [number for *_, number in CARDS]
    lost = {}
    for card, kind in enumerate(kinds):
        left[kind] -= 1
        if left[kind] < 0:
            lost[card] = 0.0
    return lost


def fresh(count: int, seed: int, load: float = LOAD, mix: Sequence[int] | None = None) -> Trace:
    """A Poisson trace as `traces.py` makes them, of another seed, load or mix of cards."""
    shapes, _ = traces.frozen()
    rng = random.Random(f"fresh {count}/{seed}")
    weights = [often * share for often in MIX[count][0] for share in MIX[count][1]]
    chosen = rng.choices(range(len(shapes)), weights, k=count)
    cards = mix if mix is not None else [number for *_, number in CARDS]
    speed = sum(
        number / (sum(shapes[s].seconds(kind) for s in chosen) / count) for kind, number in enumerate(cards) if number
    )
    now, arrivals = 0.0, []
    for _ in range(count):
        now += rng.expovariate(load * speed)
        arrivals.append(round(now, 3))
    other = f"-load {load}" if load != LOAD else ""
    other += f"-cards {'+'.join(map(str, mix))}" if mix is not None else ""
    return Trace(name=f"{count}-poisson-fresh-{seed}{other}", arrivals=tuple(arrivals), shapes=tuple(chosen))


@dataclass(frozen=True, kw_only=True)
class OneByOne:
    """What came of one Poisson trace with all schedulers."""

    name: str
    ratio: float
    moves_per_job: float
    most_moves: int
    small_p95_s: float
    #: Of the best of the others, and whose that is.
    rival_p95_s: float
    rival: str


def one_by_one(trace: Trace, mix: Sequence[int] | None = None, *, variants: int) -> OneByOne:
    """One trace, played by every scheduler on the cards of `mix`."""
    shapes, _ = traces.frozen()
    lost = without(mix)
    whole = [min(map(shapes[s].seconds, range(len(CARDS)))) for s in trace.shapes]
    median = statistics.median(whole)

    def small(outcome: traces.Outcome) -> float:
        return p95([flow for flow, w in zip(outcome.flow_s, whole, strict=True) if w <= median])

    own = policies.Clipmill(shapes, MOVE_S, variants=variants)
    mine = traces.run(shapes, trace, own, own.boundaries, move_s=MOVE_S, deaths=lost)
    gavel = policies.Gavel(MOVE_S)
    others: dict[str, tuple[traces.Policy, traces.Boundaries]] = {
        "longest first": (policies.longest_first, policies.nothing),
        "gavel": (gavel, gavel.boundaries),
        "fifo": (policies.fifo, policies.nothing),
        "first fit": (policies.first_fit, policies.nothing),
    }
    theirs = {name: small(traces.run(shapes, trace, *one, move_s=MOVE_S, deaths=lost)) for name, one in others.items()}
    rival = min(theirs, key=theirs.__getitem__)
    return OneByOne(
        name=trace.name,
        ratio=mine.makespan_s / makespan.bound(shapes, trace, [1.0] * len(trace.shapes), lost),
        moves_per_job=mine.moves / len(trace.shapes),
        most_moves=max(w.moves for w in mine.work),
        small_p95_s=small(mine),
        rival_p95_s=theirs[rival],
        rival=rival,
    )


def main() -> int:
    """Run, print, and say whether the aims are met."""
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3, help="saturated farms, and fresh seeds of every size")
    made.add_argument("--first-seed", type=int, default=0, help="of the fresh seeds")
    made.add_argument("--elsewhere", type=int, default=1, help="seeds of every other load and mix of cards")
    made.add_argument("--sizes", default=",".join(map(str, ONLINE_SIZES)), help="clips of the Poisson traces; 0: none")
    made.add_argument("--batch", type=int, default=BATCH, help="clips of the batch; 0: none is played")
    made.add_argument("--variants", type=int, default=2, help="vertices of the linear program tried for a plan")
    made.add_argument("--processes", type=int, default=2)
    given = made.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    online = [t for t in traces.frozen()[1] if "poisson" in t.name and len(t.shapes) in sizes]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    online += [fresh(size, seed) for size in sizes if size for seed in seeds]
    others = range(given.first_seed, given.first_seed + given.elsewhere)
    loads = [fresh(ELSEWHERE, seed, load) for load in LOADS for seed in others]
    mixes = [(fresh(ELSEWHERE, seed, mix=mix), mix) for mix in MIXES for seed in others]
    with ProcessPoolExecutor(given.processes) as pool:
        farms = range(given.seeds if given.batch else 0)
        full = list(pool.map(partial(saturated, variants=given.variants, batch_of=given.batch), farms))
        for one in full:
            print(f"batch of {given.batch}, {json.dumps(vars(one))}, later {one.later:.4f}", file=sys.stderr)
        single = list(pool.map(partial(one_by_one, variants=given.variants), online))
        other = list(pool.map(partial(one_by_one, variants=given.variants), loads))
        other += pool.map(partial(one_by_one, variants=given.variants), *zip(*mixes, strict=True)) if mixes else ()
        for each in [*single, *other]:
            print(json.dumps(vars(each)), file=sys.stderr)
    report = Report(
        name="interactive",
        figures={
            "saturated": [vars(one) | {"later": one.later} for one in full],
            "one by one": list(map(vars, single)),
            "other loads and cards": list(map(vars, other)),
        },
        aims=[
            *_aims_saturated(full, given.batch),
            *(aim for size in sizes for aim in _aims_one_by_one(f"{size} one by one", _of_size(single, size))),
            *_aims_one_by_one(f"{ELSEWHERE} at other loads", other[: len(loads)]),
            *_aims_one_by_one(f"{ELSEWHERE} on other cards", other[len(loads) :]),
        ],
    )
    return report.finish(given)


def _aims_saturated(full: Sequence[Saturated], batch: int) -> list[Aim]:
    if not full:
        return []
    return [
        Aim(
            name="p95 from arrival to first step, over 2 steps of the clip that left, saving and loading, worst",
            value=max(one.wait_ratio_p95 for one in full),
            at_most=WITHIN,
        ),
        Aim(
            name="the batch's end, over its end without interactive clips and their own work, worst",
            value=max(one.later for one in full),
            at_most=LATER,
        ),
        Aim(
            name="preemptions a clip of the batch, worst",
            value=max(one.preemptions / batch for one in full),
            at_most=PREEMPTIONS,
        ),
    ]


def _of_size(single: Sequence[OneByOne], size: int) -> list[OneByOne]:
    return [one for one in single if one.name.startswith(f"{size}-")]


def _aims_one_by_one(what: str, some: Sequence[OneByOne]) -> list[Aim]:
    if not some:
        return []
    small = statistics.mean(one.small_p95_s for one in some) / statistics.mean(one.rival_p95_s for one in some)
    last, moves = statistics.mean(one.ratio for one in some), statistics.mean(one.moves_per_job for one in some)
    return [
        Aim(name=f"{what}, p95 of small clips / best rival's, mean", value=small, at_most=SMALL),
        Aim(name=f"{what}, makespan / bound, mean", value=last, at_most=LAST),
        Aim(name=f"{what}, moves a clip, mean", value=moves, at_most=MOVES),
    ]


if __name__ == "__main__":
    sys.exit(main())
