"""Frozen workloads of `makespan.py`, and a farm in virtual time that does what a policy decides.

    python benchmarks/traces.py --write    make benchmarks/traces.json anew

The farm charges what a move costs to the clip and to both cards, stops clips between two steps only, and shows a policy
no more than a dispatcher sees. It knows nothing of `cluster.scheduling.placement`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Card, Fleet
from cluster.jobs.model import Job, JobState, stored_priority
from cluster.scheduling.snapshot import Running
from pipeline.clips.clip import ClipSpec, ResolutionClass, Tier
from pipeline.families import family_named
from pipeline.memory.footprint import leanest
from pipeline.units import GIB

FILE = Path(__file__).parent / "traces.json"
#: 26 cards of five kinds: (kind, class, usable bytes, how many).
CARDS = (
    ("NVIDIA A100-SXM4-80GB", "c80", 71 * GIB, 2),
    ("NVIDIA L40S", "c48", 42 * GIB, 4),
    ("NVIDIA GeForce RTX 4090", "c24", 21 * GIB, 6),
    ("NVIDIA L4", "c24", 21 * GIB, 8),
    ("Tesla T4", "c16", 13 * GIB, 6),
)
SIZES = (20, 50, 200, 1000)
SEEDS = 3
#: Shares of draft, standard and high, and of the four classes. Small batches are finals of chosen products, whose few
#: long clips compete for few fast cards: with short clips among them the longest alone decides, and any scheduler is
#: good. Large ones are whole catalogs.
_FINALS = ((0.0, 0.4, 0.6), (0.0, 0.1, 0.3, 0.6))
_CATALOG = ((0.1, 0.55, 0.35), (0.05, 0.35, 0.4, 0.2))
MIX = {20: _FINALS, 50: _FINALS, 200: _CATALOG, 1000: _CATALOG}
#: Arrivals of the online traces keep the farm this busy.
LOAD = 0.85
#: Owners of interactive jobs.
PEOPLE = 10


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Jobs with what they take: seconds of a step and of decoding by card kind, null where they do not fit."""

    name: str
    arrivals: tuple[float, ...]
    shapes: tuple[int, ...]
    #: The jobs from this one on are interactive; None: none is.
    interactive_from: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One kind of clip of the traces."""

    spec: ClipSpec
    needs_bytes: int
    step_s: tuple[float, ...]
    end_s: tuple[float, ...]

    def seconds(self, kind: int, from_step: int = 0) -> float:
        """Seconds of what is left on a card of the kind."""
        return (self.spec.total_steps - from_step) * self.step_s[kind] + self.end_s[kind]


def load() -> tuple[list[Shape], list[Trace]]:
    """The frozen traces."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    shapes = [
        Shape(
            spec=ClipSpec.model_validate(one["spec"]),
            needs_bytes=one["needs_bytes"],
            step_s=tuple(math.inf if s is None else s for s in one["step_s"]),
            end_s=tuple(math.inf if s is None else s for s in one["end_s"]),
        )
        for one in data["shapes"]
    ]
    traces = [
        Trace(name=one["name"], arrivals=tuple(one["arrivals"]), shapes=tuple(one["shapes"])) for one in data["traces"]
    ]
    return shapes, traces


def specs() -> Iterator[ClipSpec]:
    """Square clips of three tiers and all classes."""
    family = family_named("i2vgen-xl")
    for tier in Tier.DRAFT, Tier.STANDARD, Tier.HIGH:
        for size in ResolutionClass:
            chosen = family.tiers[tier]
            yield ClipSpec(
                family=family.name, revision=family.revision, prompt="camera panning left", resolution_class=size,
                width=size.side, height=size.side, frames=chosen.frames, fps=8, steps=chosen.steps, guidance=9, seed=0,
            )  # fmt: skip


def _write() -> None:
    estimates, shapes = TimeEstimates(), []
    for spec in specs():
        needs = leanest(spec)[1].peak_bytes
        fits = [usable >= needs for _, _, usable, _ in CARDS]
        costs = [estimates.cost_within(spec, kind, usable) for kind, _, usable, _ in CARDS]
        shapes.append(
            {
                "spec": spec.model_dump(mode="json"),
                "needs_bytes": needs,
                "step_s": [round(c.phases[-1][1], 6) if ok else None for c, ok in zip(costs, fits, strict=True)],
                "end_s": [round(c.encode_s + c.decode_s, 6) if ok else None for c, ok in zip(costs, fits, strict=True)],
            }
        )
    traces = []
    for count in SIZES:
        for seed in range(SEEDS):
            rng = random.Random(f"{count}/{seed}")
            weights = [often * share for often in MIX[count][0] for share in MIX[count][1]]
            chosen_shapes = rng.choices(range(len(shapes)), weights, k=count)
            for online in (False, True):
                arrivals = [0.0] * count
                if online:
                    # Seconds of one card of each kind that a job takes, shared out over all of them.
                    speed = sum(
                        number / (sum(_whole(shapes[s], kind) for s in chosen_shapes) / count)
                        for kind, (_, _, _, number) in enumerate(CARDS)
                    )
                    now = 0.0
                    for index in range(count):
                        now += rng.expovariate(LOAD * speed)
                        arrivals[index] = round(now, 3)
                name = f"{count}-{'poisson' if online else 'offline'}-{seed}"
                traces.append({"name": name, "arrivals": arrivals, "shapes": chosen_shapes})
    FILE.write_text(json.dumps({"cards": CARDS, "shapes": shapes, "traces": traces}) + "\n", encoding="utf-8")


def _whole(shape: Mapping[str, Any], kind: int) -> float:
    return float(shape["step_s"][kind] * shape["spec"]["steps"] + shape["end_s"][kind])


# -- a farm in virtual time -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Work:
    """A job as it really is."""

    index: int
    shape: Shape
    arrives: float
    #: True seconds of a step by card kind.
    step_s: tuple[float, ...]
    end_s: tuple[float, ...]
    step: int = 0
    moves: int = 0
    #: Index of its card; None while it waits.
    on: int | None = None
    #: When its present step began, or will.
    step_began: float = 0.0
    attempt_steps: int = 0
    ready_at: float = 0.0
    ended: float | None = None
    run: int = 0
    #: When its first step began.
    began: float | None = None
    interactive: bool = False
    #: It was told to stop at its next step boundary.
    leaving: bool = False
    #: Step seconds of the clip that last left the card it began on, and what loading its family took.
    waited_step_s: float = 0.0
    load_s: float = 0.0

    @property
    def id(self) -> str:
        """As a store would call it."""
        return f"job{self.index:04}"


@dataclass(kw_only=True)
class Rig:
    """A card as it really is."""

    index: int
    kind: int
    job: int | None = None
    last_job: int | None = None
    #: Busy with saving the clip that left.
    busy_until: float = 0.0
    dies_at: float = math.inf
    family: str = "i2vgen-xl"
    #: Step seconds of the clip that left it last.
    left_step_s: float = 0.0

    @property
    def name(self) -> str:
        """As a renderer would call it."""
        return f"card{self.index:02}"


@dataclass(frozen=True)
class Begin:
    """Start this job on that card."""

    job: int
    card: int


@dataclass(frozen=True)
class Leave:
    """Stop this job at its next step boundary."""

    job: int


@dataclass(kw_only=True)
class World:
    """What a policy may look at."""

    now: float
    shapes: Sequence[Shape]
    rigs: Sequence[Rig]
    work: Sequence[Work]
    move_s: float
    #: Waiting jobs that have arrived, by arrival.
    waiting: list[int] = field(default_factory=list)

    def idle(self) -> list[Rig]:
        """Cards that can take a job now."""
        return [r for r in self.rigs if r.job is None and r.busy_until <= self.now < r.dies_at]

    def known_step_s(self, work: Work) -> float | None:
        """Measured seconds of a step where it runs."""
        return work.step_s[self.rigs[work.on].kind] if work.on is not None and work.attempt_steps else None

    def job(self, work: Work) -> Job:
        """As the store would give it."""
        owner, batch = (f"person{work.index % PEOPLE}", work.id) if work.interactive else ("local", "batch")
        return Job(
            id=work.id, owner=owner, batch_id=batch, number=work.index, name=work.id,
            priority=stored_priority(0, interactive=work.interactive),
            state=JobState.QUEUED if work.on is None else JobState.RUNNING, row={}, created_at=int(work.arrives),
            spec=work.shape.spec, content_key=work.id, needs_bytes=work.shape.needs_bytes, step=work.step,
        )  # fmt: skip

    def cards(self) -> list[Card]:
        """As the dispatcher would list them."""
        return [
            Card(
                renderer=r.name, card=r.name, card_class=CARDS[r.kind][1], kind=CARDS[r.kind][0],
                usable_bytes=CARDS[r.kind][2], idle=r.job is None and r.busy_until <= self.now, family=r.family,
            )
            for r in self.rigs
            if self.now < r.dies_at
        ]  # fmt: skip

    def running(self) -> list[Running]:
        """As the dispatcher would see them."""
        return [
            Running(
                job=self.job(w), card=self.rigs[w.on].name, step=w.step, step_s=self.known_step_s(w),
                since_step_s=self.now - w.step_began, movable=True, leaving=w.leaving,
            )
            for w in self.work
            if w.on is not None
        ]  # fmt: skip


FLEET = Fleet(usable_bytes={card_class: usable for _, card_class, usable, _ in CARDS})
Policy = Callable[[World], Iterable[Begin | Leave]]
#: Steps at which a policy wants to look again, by job.
Boundaries = Callable[[World], Mapping[int, int]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trace."""

    makespan_s: float
    moves: int
    #: Seconds from arrival to end, by job.
    flow_s: tuple[float, ...]
    redone_steps: int = 0
    #: All jobs as they ended.
    work: tuple[Work, ...] = ()


def rigs() -> list[Rig]:
    """The 26 cards."""
    kinds = [kind for kind, (_, _, _, number) in enumerate(CARDS) for _ in range(number)]
    return [Rig(index=index, kind=kind) for index, kind in enumerate(kinds)]


def run(
    shapes: Sequence[Shape],
    trace: Trace,
    policy: Policy,
    boundaries: Boundaries,
    *,
    move_s: float,
    factors: Sequence[float] | None = None,
    deaths: Mapping[int, float] | None = None,
    checkpoint_every: int = 10,
    load_s: Callable[[str, int], float] = lambda family, kind: 0.0,
) -> Outcome:
    """Play a trace. `factors` on the true times of each job, `deaths` by card: when it is gone for good.

    `load_s`: seconds that a family takes to load on a card of the kind, where it is not loaded.
    """
    made = factors or [1.0] * len(trace.shapes)
    work = [
        Work(
            index=index, shape=shapes[shape], arrives=arrives,
            step_s=tuple(s * factor for s in shapes[shape].step_s),
            end_s=tuple(s * factor for s in shapes[shape].end_s),
            interactive=trace.interactive_from is not None and index >= trace.interactive_from,
        )
        for index, (shape, arrives, factor) in enumerate(zip(trace.shapes, trace.arrivals, made, strict=True))
    ]  # fmt: skip
    world = World(now=0.0, shapes=shapes, rigs=rigs(), work=work, move_s=move_s)
    redone = 0
    for index, when in (deaths or {}).items():
        world.rigs[index].dies_at = when
    events: list[tuple[float, int, str, int, int]] = []
    count = 0

    def at(when: float, what: str, who: int, run_number: int = 0) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, what, who, run_number))

    for w in work:
        at(w.arrives, "arrive", w.index)
    for rig in world.rigs:
        if rig.dies_at < math.inf:
            at(rig.dies_at, "death", rig.index)

    def advance(w: Work) -> None:
        """Count the steps done by now."""
        if w.on is None or world.now < w.step_began:
            return
        each = w.step_s[world.rigs[w.on].kind]
        done = min(int((world.now - w.step_began) / each + 1e-6), w.shape.spec.total_steps - w.step)
        w.step += done
        w.attempt_steps += done
        w.step_began += done * each

    def release(w: Work, *, leaves: bool) -> None:
        assert w.on is not None
        rig = world.rigs[w.on]
        rig.job = None
        rig.left_step_s = w.step_s[rig.kind]
        w.on, w.run, w.leaving = None, w.run + 1, False
        if leaves:
            rig.busy_until = world.now + move_s
            at(rig.busy_until, "free", rig.index)

    preempting: dict[int, int] = {}
    left = len(work)
    while left:
        when = events[0][0]
        world.now = max(world.now, when)
        while events and events[0][0] <= when + 1e-9:
            _, _, what, who, number = heapq.heappop(events)
            if what == "arrive":
                world.waiting.append(who)
            elif what == "death":
                rig = world.rigs[who]
                if rig.job is not None:
                    w = work[rig.job]
                    advance(w)
                    kept = max(w.step - w.step % checkpoint_every, w.step - w.attempt_steps)
                    redone += w.step - kept
                    w.step = kept
                    release(w, leaves=False)
                    world.waiting.append(w.index)
            elif what == "end" and work[who].run == number:
                w = work[who]
                advance(w)
                release(w, leaves=False)
                w.ended, w.step = world.now, w.shape.spec.total_steps
                left -= 1
                preempting.pop(who, None)
            elif what == "leave" and work[who].run == number:
                advance(work[who])
                release(work[who], leaves=True)
                work[who].moves += 1
                world.waiting.append(who)
                preempting.pop(who, None)
        for w in work:
            advance(w)
        changed = True
        while changed:
            changed = False
            for decision in list(policy(world)):
                if isinstance(decision, Begin):
                    w, rig = work[decision.job], world.rigs[decision.card]
                    assert w.on is None, w.id
                    assert rig.job is None, rig.name
                    assert rig.busy_until <= world.now < rig.dies_at, rig.name
                    arrive = move_s if w.step and rig.last_job != w.index else 0.0
                    family = w.shape.spec.family
                    w.load_s = load_s(family, rig.kind) if rig.family != family else 0.0
                    rig.family = family
                    arrive += w.load_s
                    world.waiting.remove(w.index)
                    w.on, rig.job, rig.last_job, w.attempt_steps = rig.index, w.index, w.index, 0
                    w.step_began = world.now + arrive
                    if w.began is None:
                        w.began, w.waited_step_s = w.step_began, rig.left_step_s
                    steps = w.shape.spec.total_steps - w.step
                    at(w.step_began + steps * w.step_s[rig.kind] + w.end_s[rig.kind], "end", w.index, w.run)
                    continue
                w = work[decision.job]
                if w.index not in preempting and w.step < w.shape.spec.total_steps:
                    assert w.on is not None
                    preempting[w.index], w.leaving = w.run, True
                    each = w.step_s[world.rigs[w.on].kind]
                    boundary = w.step_began if world.now <= w.step_began + 1e-6 else w.step_began + each
                    if boundary <= world.now + 1e-6:
                        release(w, leaves=True)
                        w.moves += 1
                        world.waiting.append(w.index)
                        preempting.pop(w.index)
                        changed = True
                    else:
                        at(boundary, "leave", w.index, w.run)
        for index, step in boundaries(world).items():
            w = work[index]
            if w.on is not None and w.step < step:
                at(w.step_began + (step - w.step) * w.step_s[world.rigs[w.on].kind], "look", index, w.run)
    ends = [w.ended or 0.0 for w in work]
    return Outcome(
        makespan_s=max(ends),
        moves=sum(w.moves for w in work),
        flow_s=tuple(end - w.arrives for end, w in zip(ends, work, strict=True)),
        redone_steps=redone,
        work=tuple(work),
    )


@cache
def frozen() -> tuple[list[Shape], list[Trace]]:
    """`load`, once."""
    return load()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the traces anew; figures before and after differ")
    if parser.parse_args().write:
        _write()
    kinds, found = load()
    print(f"{len(found)} traces of {len(kinds)} kinds of clips in {FILE.name}")
