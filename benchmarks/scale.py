"""What a decision costs with up to a million waiting clips and ten thousand cards.

    python benchmarks/scale.py --check                 in memory, and on PostgreSQL where one is named
    python benchmarks/scale.py --check --only memory

In memory: `place` alone, on what the dispatcher would have read, four times a second of a farm whose clips take a
minute; clips end, cards come free, what was started leaves its queue and as much comes in.
Durable: the same claims on PostgreSQL (`CLIPMILL_TEST_POSTGRES`), each start a committed row that survives a power
cut.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache

import scale_store
from report import Aim, Report, parser
from traces import specs

from cluster.estimates.memory import MemoryEstimates, observe
from cluster.fleet.card_index import CardIndex
from cluster.fleet.cards import Card, Fleet
from cluster.jobs.model import Job, JobState
from cluster.jobs.outcomes import Peak
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import ShowMore, Snapshot, Start
from pipeline.clips.clip import ClipSpec
from pipeline.families import family_named
from pipeline.families.layouts import RESIDENT
from pipeline.memory.footprint import footprint, leanest
from pipeline.units import GIB

CARDS = 10_000
WAITING = (1_000, 10_000, 100_000, 1_000_000)
#: Cards that come free between two looks: 10,000 of them, a minute a clip, four looks a second.
FREED = 42
TURNS = 40
OWNERS = 20
CLASSES = {"c12": 10 * GIB, "c16": 13 * GIB, "c24": 21 * GIB, "c48": 42 * GIB, "c80": 71 * GIB}


@dataclass(kw_only=True)
class Queues:
    """Waiting clips as a store has them: numbers in queues, made into jobs when they come to the front."""

    specs: list[tuple[ClipSpec, int]]
    jobs: dict[tuple[str, int], deque[int]] = field(default_factory=dict)

    def add(self, rng: random.Random, number: int) -> None:
        """One more clip of an owner and a kind drawn by lot."""
        queue = (f"owner{rng.randrange(OWNERS)}", rng.randrange(len(self.specs)))
        self.jobs.setdefault(queue, deque()).append(number)

    def heads(self, count: int) -> list[Job]:
        """The first `count` of every queue."""
        found = []
        for (owner, kind), queue in self.jobs.items():
            spec, needs = self.specs[kind]
            for _, number in zip(range(count), queue, strict=False):
                found.append(
                    Job(
                        id=f"{owner}/{kind}/{number}", owner=owner, batch_id=owner, number=number, name="",
                        state=JobState.QUEUED, row={}, created_at=number, spec=spec, needs_bytes=needs,
                        content_key=f"{kind}/{number}",
                    )
                )  # fmt: skip
        return found


def kinds() -> list[tuple[ClipSpec, int]]:
    """Twelve kinds of clips with what they need in their fastest and in their leanest layout."""
    found = []
    for spec in specs():
        needs = footprint(spec, family_named(spec.family).layouts[0]).peak_bytes
        found.append((spec, needs if needs <= max(CLASSES.values()) else leanest(spec)[1].peak_bytes))
    return found


@cache
def learned() -> MemoryEstimates:
    """What any farm has after its first clip: from then on needs differ by shape and by kind of card."""
    spec, _ = kinds()[0]
    peak = Peak(layout=RESIDENT, predicted_bytes=1, measured_bytes=footprint(spec).peak_bytes, usable_bytes=GIB * 21)
    return MemoryEstimates().plus(observe(spec, "c24", [peak]))


@dataclass(kw_only=True)
class Farm:
    """Cards, what runs on them, and what waits."""

    queues: Queues
    card_index: CardIndex
    fleet: Fleet = field(default_factory=lambda: Fleet(usable_bytes=CLASSES))
    running: dict[str, Job] = field(default_factory=dict)

    def look(self, shown: int | None = None) -> tuple[int, float]:
        """(clips started, seconds of `place`): as the dispatcher does it, again until no queue was too short."""
        idle, queues = len(self.card_index.idle), len(self.queues.jobs)
        shown = shown or max(4, -(-2 * idle // queues))
        snapshot = Snapshot(
            waiting=self.queues.heads(shown),
            shown=shown,
            fleet=self.fleet,
            card_index=self.card_index,
            memory=learned(),
        )
        began = time.perf_counter()
        decisions = place(snapshot, 0.0, reasons=False)
        took = time.perf_counter() - began
        starts = [d for d in decisions if isinstance(d, Start)]
        for start in starts:
            owner, kind, number = start.job.id.split("/")
            self.queues.jobs[owner, int(kind)].remove(int(number))
            self.running[start.card.card] = start.job
            # As the dispatcher's roster does with every change.
            self.card_index.put(start.card.model_copy(update={"idle": False}))
            self.card_index.began(start.job)
        if any(isinstance(d, ShowMore) for d in decisions):
            more, longer = self.look(4 * shown)
            return len(starts) + more, took + longer
        return len(starts), took


def filled(waiting: int, rng: random.Random, *, idle: bool) -> Farm:
    """A farm with so many waiting clips, and with all cards idle or busy with clips of unknown kinds."""
    queues = Queues(specs=kinds())
    for number in range(waiting):
        queues.add(rng, number)
    names = list(CLASSES)
    cards = [
        Card(
            renderer=f"r{n:05}", card=f"gpu{n:05}", card_class=names[n % len(names)], kind=names[n % len(names)],
            usable_bytes=CLASSES[names[n % len(names)]], idle=idle, family="i2vgen-xl",
        )
        for n in range(CARDS)
    ]  # fmt: skip
    return Farm(queues=queues, card_index=CardIndex(cards))


def filling(waiting: int, seed: int = 0) -> float:
    """Seconds a placement while a farm of idle cards is filled."""
    farm = filled(waiting, random.Random(seed), idle=True)
    count, took = farm.look()
    return took / count


def memory(waiting: int, seed: int = 0) -> tuple[float, int]:
    """(seconds a placement, placements) of a busy farm with so many clips waiting all the time."""
    rng = random.Random(seed)
    farm = filled(waiting, rng, idle=False)
    spent, placed = 0.0, 0
    for _ in range(TURNS):
        for card in rng.sample(list(farm.card_index.cards.values()), FREED):
            if card.idle:
                continue
            if (ended := farm.running.pop(card.card, None)) is not None:
                farm.card_index.ended(ended)
            farm.card_index.put(card.model_copy(update={"idle": True}))
        count, took = farm.look()
        for _ in range(count):
            farm.queues.add(rng, waiting + placed)
            placed += 1
        spent += took
    return spent / placed, placed


def main() -> int:
    """Run, print, and say whether the aims are met."""
    made = parser(__doc__)
    made.add_argument("--only", choices=["memory", "durable"])
    made.add_argument("--waiting", type=int, default=WAITING[-1], help="most waiting clips")
    given = made.parse_args()
    figures: dict[str, object] = {}
    aims: list[Aim] = []
    if given.only != "durable":
        each: dict[int, float] = {}
        for waiting in (n for n in WAITING if n <= given.waiting):
            each[waiting], placed = memory(waiting)
            figures[f"{waiting:,} waiting, {CARDS:,} cards: microseconds a placement"] = each[waiting] * 1e6
            figures[f"{waiting:,} waiting: placements measured"] = placed
        figures["microseconds a placement of filling the empty farm"] = filling(min(given.waiting, 100_000)) * 1e6
        slowest = max(each.values())
        # An aim bounds from above, so the rate is turned round.
        aims.append(Aim(name="seconds for 5,000 placements in memory", value=slowest * 5000, at_most=1.0, unit="s"))
        flat = max(each.values()) / min(each.values())
        aims.append(
            Aim(name=f"dearest / cheapest placement, 10^3 to {given.waiting:.0e} waiting", value=flat, at_most=2.0)
        )
    url = os.environ.get("CLIPMILL_TEST_POSTGRES")
    if given.only != "memory":
        if url is None:
            figures["durable"] = "not measured: name a PostgreSQL in CLIPMILL_TEST_POSTGRES"
        else:
            more, bounds = scale_store.summary(scale_store.durable(url, waiting=given.waiting))
            figures |= more
            aims += bounds
    return Report(name="scale", figures=figures, aims=aims).finish(given)


if __name__ == "__main__":
    sys.exit(main())
