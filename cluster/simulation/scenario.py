"""A farm's whole life drawn from one seed: its cards, what is handed in, and everything that goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache

from cluster.dispatch.dispatcher import Timing
from cluster.jobs.commands import CardVerb
from cluster.jobs.transitions import Verb
from cluster.scheduling.interactive import InteractiveTerms
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES
from pipeline.memory.footprint import footprint, leanest_of
from pipeline.units import GIB

#: Card class, NVML name, bytes that clips can count on, speed beside the slowest.
KINDS = (
    ("c8", "RTX 3070", 7 * GIB, 1.0),
    ("c12", "RTX 3060", 10 * GIB + GIB // 2, 1.2),
    ("c24", "L4", 21 * GIB, 1.5),
    ("c24", "RTX 4090", 21 * GIB, 4.0),
    ("c48", "L40S", 44 * GIB, 4.0),
    ("c80", "H100", 75 * GIB, 8.0),
)


#: The window is as short as a run, so that the share binds.
INTERACTIVE_TERMS = InteractiveTerms(share=0.2, per_owner=2, window_s=60.0)


class Trouble(StrEnum):
    """What can go wrong."""

    #: A renderer's process dies; its node lives.
    CRASH = "crash"
    #: A node is gone with its cards: the connections say so, or nothing does.
    NODE_LOST = "node_lost"
    NODE_SILENT = "node_silent"
    #: A card is taken away after a notice.
    SPOT = "spot"
    #: Nothing passes between a card and its dispatcher; the renderer stops its clips after a while, or (deaf) never.
    PARTITION = "partition"
    PARTITION_DEAF = "partition_deaf"
    #: A step that never ends.
    HANG = "hang"
    #: Another program takes memory of the card.
    FOREIGN = "foreign"
    #: Everything that runs on the card breaks, and its process with it.
    BROKEN = "broken"
    DISPATCHER_KILLED = "dispatcher_killed"
    #: A second dispatcher while the first still runs.
    ROLLING_UPDATE = "rolling_update"
    STORE_OUT = "store_out"


@dataclass(frozen=True, kw_only=True)
class CardPlan:
    """One card of the fleet."""

    name: str
    node: str
    card_class: str
    kind: str
    usable_bytes: int
    speed: float


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One row, and the truth about it."""

    key: str
    spec: ClipSpec
    needs_bytes: int
    priority: int
    #: Seconds of a step on the slowest kind of card.
    step_s: float
    #: `crash`, `error`, `sticky`, `invalid`, `hang` or `encode` (dies while it is encoded): it never becomes a clip.
    poison: str = ""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Rows handed in together."""

    at: float
    owner: str
    jobs: tuple[JobPlan, ...]
    #: Whether the dispatcher is told of it.
    nudges: bool = True
    cancelled_at: float | None = None
    #: Somebody waits for its rows.
    interactive: bool = False


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One trouble at a time, for so long."""

    at: float
    what: Trouble
    target: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PlannedCommand:
    """A command for a card, a batch or one of its rows, taken back after so many seconds."""

    at: float
    verb: Verb | CardVerb
    seconds: float
    card: str = ""
    #: Numbers of the batch, and of its row; None: of all of them.
    batch: int = 0
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that a run depends on."""

    seed: int
    cards: tuple[CardPlan, ...]
    batches: tuple[BatchPlan, ...]
    faults: tuple[Fault, ...]
    #: No faults from then on.
    heal_at: float
    timing: Timing
    beat_s: float = 2.0
    checkpoint_steps: int = 5
    checkpoint_write_s: float = 0.6
    #: Longest time that a call of the store takes.
    store_s: float = 0.02
    alone_s: float = 10.0
    #: Spread of step times: sigma of their logarithm.
    noise: float = 0.15
    #: What clips truly take besides the weights, over what is predicted, by (class, frames, kind).
    peaks: dict[tuple[str, int, str], float] = field(default_factory=dict)
    #: Probabilities that a checkpoint cannot be written, or not be read.
    bad_write: float = 0.02
    bad_read: float = 0.02
    #: The tails of batches are planned, and clips moved between cards.
    plans: bool = False
    commands: tuple[PlannedCommand, ...] = ()
    #: What interactive clips may take.
    interactive: InteractiveTerms = INTERACTIVE_TERMS


#: Steps of clips that are planned take so much longer.
_LONGER = 3.0

#: Long patience between looks, so that a simulated minute costs few store calls; the proportions are the real ones.
SMALL = Timing(
    poll_s=5.0,
    look_s=20.0,
    renew_s=5.0,
    roster_s=15.0,
    sweep_s=10.0,
    lease_s=20,
    silent_s=10.0,
    stall_s=150.0,
    preempt_s=20.0,
)
#: Longer patience yet, for thousands of cards.
LARGE = Timing(
    poll_s=1.0,
    look_s=20.0,
    renew_s=20.0,
    roster_s=60.0,
    sweep_s=60.0,
    lease_s=120,
    silent_s=60.0,
    stall_s=3600.0,
    preempt_s=120.0,
)


def draw(
    seed: int,
    *,
    cards: int | None = None,
    jobs: int | None = None,
    minutes: float = 1.0,
    troubles: float = 1.0,
    plans: bool | None = None,
    people: bool | None = None,
    interactive: bool | None = None,
) -> Scenario:
    """The scenario of a seed; `minutes` of arrivals and faults, after which everything is whole again.

    `troubles` scales how many faults there are; 0: none. With `plans` clips are longer, so that planning them pays;
    None: every fourth seed has them. With `people` batches and rows are paused, held and reprioritised, and cards
    locked, drained and quarantined; None: in two of four seeds. With `interactive` some batches are; None: in every
    third seed.
    """
    rng = random.Random(f"scenario {seed}")
    seconds = 60.0 * minutes
    fleet = _cards(rng, cards or rng.randint(3, 8))
    many = jobs or rng.randint(6, 15)
    plans = seed % 4 == 3 if plans is None else plans
    faults = _faults(rng, fleet, seconds, troubles)
    batches = _batches(rng, many, seconds, troubles, _LONGER if plans else 1.0)
    people = seed % 2 == 1 if people is None else people
    if seed % 3 == 2 if interactive is None else interactive:
        batches = _with_interactive(random.Random(f"interactive {seed}"), batches)
    return Scenario(
        seed=seed,
        cards=fleet,
        batches=batches,
        commands=_commands(random.Random(f"people {seed}"), fleet, batches, seconds) if people else (),
        faults=faults,
        heal_at=seconds + 1.0,
        timing=SMALL if len(fleet) < 100 else LARGE,
        beat_s=2.0 if len(fleet) < 100 else 20.0,
        peaks=_peaks(rng) if troubles else {},
        bad_write=0.03 if troubles else 0.0,
        bad_read=0.03 if troubles else 0.0,
        plans=plans,
    )


def _cards(rng: random.Random, number: int) -> tuple[CardPlan, ...]:
    made = []
    for n in range(number):
        card_class, kind, usable_bytes, speed = rng.choice(KINDS)
        made.append(
            CardPlan(
                name=f"gpu{n}",
                # Cards share nodes by two, so that a lost node takes several.
                node=f"node{n // 2}",
                card_class=card_class,
                kind=kind,
                usable_bytes=usable_bytes,
                speed=speed,
            )
        )
    return tuple(made)


@cache
def _spec(family: str, resolution_class: ResolutionClass, frames: int, steps: int) -> ClipSpec:
    return ClipSpec(
        family=family,
        revision=FAMILIES[family].revision,
        prompt="pan left",
        resolution_class=resolution_class,
        width=resolution_class.side,
        height=resolution_class.side,
        frames=frames,
        fps=8,
        steps=steps,
        guidance=9 if family != "camera" else 1,
        seed=0,
    )


def _job(rng: random.Random, key: str, troubles: float, longer: float) -> JobPlan:
    resolution_class = rng.choices(list(ResolutionClass), weights=[4, 4, 2, 1])[0]
    frames = rng.choice([8, 16])
    family = "camera" if rng.random() < 0.1 else "i2vgen-xl"
    steps = 1 if family == "camera" else rng.choice([6, 10, 16, 24])
    spec = _spec(family, resolution_class, frames, steps)
    poisons = ["crash", "error", "sticky", "invalid", "hang", "encode"]
    return JobPlan(
        key=key,
        spec=spec,
        needs_bytes=footprint(spec).peak_bytes,
        priority=rng.choice([0, 0, 0, 5]),
        step_s=longer * rng.uniform(0.5, 2.0) * (resolution_class.side / 256) * frames / 8,
        poison=rng.choices(poisons, weights=[3, 3, 2, 2, 1, 2])[0] if rng.random() < 0.08 * min(troubles, 1) else "",
    )


def _batches(rng: random.Random, jobs: int, seconds: float, troubles: float, longer: float) -> tuple[BatchPlan, ...]:
    batches: list[BatchPlan] = []
    at, left, made = 0.0, jobs, 0
    known: list[JobPlan] = []
    while left:
        number = min(left, rng.randint(1, 6) if jobs < 100 else rng.randint(50, 200))
        rows = []
        for _ in range(number):
            # The same content again: one clip for both, whichever comes first.
            again = known and rng.random() < 0.15
            row = rng.choice(known) if again else _job(rng, f"key{made}", troubles, longer)
            made += 1
            known.append(row)
            rows.append(row)
        cancelled = at + rng.uniform(1, seconds / 2) if rng.random() < 0.12 * min(troubles, 1) else None
        batches.append(
            BatchPlan(
                at=at,
                owner=rng.choice(["ann", "ann", "bob"]),
                jobs=tuple(rows),
                nudges=rng.random() < 0.7,
                cancelled_at=cancelled,
            )
        )
        left -= number
        # Poisson arrivals: on average the last comes at half time.
        at = min(at + rng.expovariate(jobs / (number * seconds / 2)), seconds)
    return tuple(batches)


def _with_interactive(rng: random.Random, batches: tuple[BatchPlan, ...]) -> tuple[BatchPlan, ...]:
    """The batches, some interactive; the first is there when they come, and is not."""
    return tuple(
        replace(batch, interactive=rng.random() < 0.6) if number else batch for number, batch in enumerate(batches)
    )


def _commands(
    rng: random.Random, fleet: tuple[CardPlan, ...], batches: tuple[BatchPlan, ...], seconds: float
) -> tuple[PlannedCommand, ...]:
    found = []
    for number, batch in enumerate(batches):
        verb = rng.choice([None, Verb.PAUSE, Verb.HOLD, Verb.PRIORITIZE])
        row = rng.choice([None, rng.randrange(len(batch.jobs))]) if verb is Verb.PAUSE else None
        row = rng.randrange(len(batch.jobs)) if verb is Verb.HOLD else row
        at, for_s = min(batch.at + rng.uniform(0.5, 30), seconds), rng.uniform(5, 60)
        if verb is not None:
            found.append(PlannedCommand(at=at, verb=verb, seconds=for_s, batch=number, row=row))
    for card in fleet:
        if rng.random() < 0.25:
            kind = rng.choice([CardVerb.LOCK, CardVerb.DRAIN, CardVerb.QUARANTINE])
            at, for_s = rng.uniform(1, seconds), rng.uniform(10, 60)
            found.append(PlannedCommand(at=at, verb=kind, seconds=for_s, card=card.name))
    return tuple(found)


_WEIGHTS = {
    Trouble.CRASH: 5,
    Trouble.NODE_LOST: 3,
    Trouble.NODE_SILENT: 3,
    Trouble.SPOT: 3,
    Trouble.PARTITION: 3,
    Trouble.PARTITION_DEAF: 3,
    Trouble.HANG: 1,
    Trouble.FOREIGN: 2,
    Trouble.BROKEN: 1,
    Trouble.DISPATCHER_KILLED: 3,
    Trouble.ROLLING_UPDATE: 3,
    Trouble.STORE_OUT: 2,
}


def _faults(rng: random.Random, fleet: tuple[CardPlan, ...], seconds: float, troubles: float) -> tuple[Fault, ...]:
    number = round(troubles * rng.randint(0, 7) * max(1.0, len(fleet) / 20)) if troubles else 0
    found = []
    for _ in range(number):
        what = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
        card = rng.choice(fleet)
        target = card.node if what in (Trouble.NODE_LOST, Trouble.NODE_SILENT) else card.name
        found.append(Fault(at=rng.uniform(1, seconds), what=what, target=target, seconds=rng.uniform(2, 45)))
    return tuple(sorted(found, key=lambda fault: fault.at))


def _peaks(rng: random.Random) -> dict[tuple[str, int, str], float]:
    factors = {}
    for resolution_class in ResolutionClass:
        for frames in (8, 16):
            for kind in sorted({kind for _, kind, _, _ in KINDS}):
                wrong = rng.random() < 0.2
                factor = rng.uniform(1.2, 2.0) if wrong else rng.uniform(0.85, 1.0)
                factors[str(resolution_class), frames, kind] = factor
    return factors


def least_bytes(spec: ClipSpec) -> int:
    """Predicted peak of `spec` in its leanest layout."""
    return leanest_of(FAMILIES[spec.family], spec.width * spec.height, spec.frames)[1].peak_bytes
