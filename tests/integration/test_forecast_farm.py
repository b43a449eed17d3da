"""A forecast against the real dispatcher, placement and store in virtual time: 12 clips to calibrate, 24 others."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import Row
from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.dispatch.protocol import Assignment, CardFree, Event, StepDone
from cluster.estimates.published import ClipPart
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat, CardState, Fleet
from cluster.fleet.fleet_file import Cards
from cluster.forecast.forecast import Forecast, Wanted, forecast
from cluster.forecast.suggest import MAX_ENLARGEMENT
from cluster.forecast.within import TimeChooser, TimedChoice
from cluster.jobs.outcomes import Completed, Peak
from cluster.simulation.clock import Inline, VirtualLoop, run_virtually
from cluster.store import BatchStore, Database, DispatchStore, measurements
from cluster.store.schema import attempts, batches, jobs
from pipeline.clips.clip import ClipSpec, ResolutionClass, Sampler
from pipeline.memory.footprint import footprint, plan
from tests.building import draft, objects, spec

GIB = 2**30
AIM = 0.15
#: Kind, memory that clips may use, and how many times slower it really is than is expected of it.
CARDS = (("NVIDIA L4", 21, 1.7), ("NVIDIA L4", 21, 1.7), ("NVIDIA A100-SXM4-40GB", 36, 1.2), ("Tesla T4", 14, 2.3))
LOAD_S, GAP_S, ENCODE_S, PUBLISH_S = 9.0, 0.4, 1.0, 2.0
#: How often renderers are heard and the farm is looked at, in seconds.
BEAT_S = 2.0


@dataclass
class Truth:
    """How long things really take: what the forecast may learn from outcomes only."""

    rng: random.Random
    noise: float

    def step_s(self, of: ClipSpec, kind: str, slower: float) -> float:
        """Of one step of one clip; families and sizes reach other parts of what is published."""
        by_family = 1.35 if of.family == "svd-xt" else 0.9
        by_size = (of.width * of.height / 512**2) ** 0.1
        return TimeEstimates().cost(of, kind).phases[-1][1] * slower * by_family * by_size * self.noisy()

    def noisy(self) -> float:
        return self.rng.lognormvariate(0.0, self.noise)


class Pool:
    """Renderers that take the truth's time, one clip on the card and one being encoded each."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.cards = {f"gpu{n}": card for n, card in enumerate(CARDS)}
        self.loaded: dict[str, str] = {}
        self.busy: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in self.cards}
        self.publishing = {name: asyncio.Semaphore(1) for name in self.cards}

    def beats(self) -> list[Beat]:
        return [
            Beat(
                renderer=f"renderer-{name}", card=name, card_class="c24", kind=kind, total_bytes=memory * GIB,
                usable_bytes=memory * GIB, used_bytes=0, state=CardState.BUSY if self.busy[name] else CardState.IDLE,
                family=self.loaded.get(name), steps=dict(self.busy[name]),
            )
            for name, (kind, memory, _) in self.cards.items()
        ]  # fmt: skip

    def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        return self._render(assignment, assignment.renderer.removeprefix("renderer-"))

    async def _render(self, assignment: Assignment, name: str) -> AsyncIterator[Event]:
        kind, memory, slower = self.cards[name]
        of, attempt, truth = assignment.spec, assignment.attempt_id, self.truth
        planned = plan(of, memory * GIB)
        assert planned is not None
        layout, predicted = planned
        steps = of.total_steps
        try:
            self.busy[name][attempt] = (0, steps)
            await asyncio.sleep((GAP_S if self.loaded.get(name) == of.family else LOAD_S) * truth.noisy())
            self.loaded[name] = of.family
            yield StepDone(step=0, steps=steps)
            step_s = truth.step_s(of, kind, slower)
            await asyncio.sleep(ENCODE_S * truth.noisy())
            for step in range(1, steps + 1):
                await asyncio.sleep(step_s)
                self.busy[name][attempt] = (step, steps)
                yield StepDone(step=step, steps=steps)
            await asyncio.sleep(1.3 * step_s)
            async with self.publishing[name]:
                yield CardFree()
                await asyncio.sleep(PUBLISH_S * truth.noisy())
            peak = Peak(layout=layout, predicted_bytes=predicted.peak_bytes, measured_bytes=predicted.peak_bytes)
            yield Completed(objects=objects(attempt), peaks=(peak,))
        finally:
            self.busy[name].pop(attempt, None)


def catalog(rng: random.Random, count: int) -> list[ClipSpec]:
    found = []
    for _ in range(count):
        side, family = rng.choice([256, 512]), rng.choice(["i2vgen-xl", "i2vgen-xl", "svd-xt"])
        found.append(
            spec(
                family, resolution_class=ResolutionClass(f"{side}p"), width=side, height=side, guidance=3.0,
                frames=16 if family == "i2vgen-xl" else 25, steps=rng.choice([10, 15]), sampler=Sampler.EULER,
            )
        )  # fmt: skip
    return found


async def rendered(database: Database, loop: VirtualLoop, pool: Pool, name: str, specs: list[ClipSpec]) -> float:
    """Virtual seconds from handing in `specs` to the end of the last."""
    batch_store = BatchStore(database)
    batch_id, _ = batch_store.open_batch("local", name=name)
    rows = [
        draft(n, spec=of, needs_bytes=footprint(of).peak_bytes, key=f"{name} {n}")
        for n, of in enumerate(specs, start=1)
    ]
    batch_store.add("local", batch_id, rows)
    batch_store.seal("local", batch_id)
    began = loop.time()
    fleet = Fleet(usable_bytes={"c16": 14 * GIB, "c24": 21 * GIB, "c40": 36 * GIB})
    dispatcher = Dispatcher(
        DispatchStore(database),
        pool,
        fleet,
        holder=name,
        clock=loop.time,
        timing=Timing(poll_s=BEAT_S),
        executor=Inline(),
    )
    running = loop.create_task(dispatcher.run())
    while not batch_store.batch("local", batch_id).done:
        for beat in pool.beats():
            dispatcher.beat(beat)
        await asyncio.sleep(BEAT_S)
    took = loop.time() - began
    await dispatcher.stop(0)
    await running
    assert batch_store.batch("local", batch_id).status == "completed"
    return took


def fleet_of_cards() -> list[Cards]:
    return [
        Cards(kind=kind, card_class="c24", usable_bytes=memory * GIB, count=1, price_per_hour=1.0, startup_s=0.0)
        for kind, memory, _ in CARDS
    ]


def world(seed: int, noise: float) -> tuple[Forecast, Forecast, float]:
    """(forecast before anything is measured, forecast after 12 clips, what 24 others took)."""
    rng = random.Random(seed)
    first, others = catalog(rng, 12), catalog(rng, 24)
    wanted = [Wanted(name=str(n), number=n, spec=of) for n, of in enumerate(others, start=1)]

    async def go(loop: VirtualLoop) -> tuple[TimeEstimates, float]:
        database = Database("sqlite://", clock=loop.time)
        database.migrate()
        try:
            pool = Pool(Truth(rng, noise))
            await rendered(database, loop, pool, "first", first)
            known = measurements.load_times(database)
            # A new farm: nothing is loaded.
            return known, await rendered(database, loop, Pool(Truth(rng, noise)), "others", others)
        finally:
            database.close()

    known, took = run_virtually(go)
    before = forecast(wanted, fleet_of_cards(), TimeEstimates(), changes=False)
    return before, forecast(wanted, fleet_of_cards(), known, seed=seed, changes=False), took


@pytest.mark.parametrize(("noise", "aim", "covered"), [(0.02, AIM, 0.5), (0.15, 2 * AIM, 0.0)])
def test_twenty_four_rows_after_twelve_others(noise, aim, covered):
    """Where clips differ much among themselves, whichever of them ends up last on the slow T4 decides the end."""
    errors, blind, inside = [], [], 0
    seeds = range(4)
    for seed in seeds:
        before, found, took = world(seed, noise)
        errors.append(abs(found.finish_s / took - 1))
        blind.append(abs(before.finish_s / took - 1))
        inside += found.low_s <= took <= found.high_s
        # The farm may not beat what no schedule of true times beats; ours are estimates of them.
        assert took > 0.8 * found.bound_s
    assert statistics.median(errors) <= aim, errors
    assert max(errors) <= 2 * aim, errors
    # Measuring is worth it.
    assert statistics.median(errors) < statistics.median(blind), (errors, blind)
    # Which card the last clip goes to is not drawn: with such differences between clips the interval is too narrow.
    assert inside >= covered * len(seeds), inside


@pytest.mark.parametrize("seed", range(2))
def test_what_is_chosen_for_a_time_fits_and_keeps_to_it(seed: int) -> None:
    """After clips of both models on every card: what `suggest` and `within` choose, and what became of it."""
    rng = random.Random(seed)
    choices: list[TimedChoice] = []

    async def go(loop: VirtualLoop) -> list[tuple[str, float]]:
        database = Database("sqlite://", clock=loop.time)
        database.migrate()
        try:
            await rendered(database, loop, Pool(Truth(rng, 0.02)), "first", catalog(rng, 48))
            chooser = TimeChooser(fleet_of_cards(), measurements.load_times(database))
            row = Row(number=1, id="A", image="a.png", prompt="pan left")
            for within_s in (60.0, 150.0, 400.0, 1200.0):
                for family in ("i2vgen-xl", "svd-xt"):
                    found = chooser.choice(row, (640, 640), Defaults(model=family, within=within_s))
                    assert found is not None
                    choices.append(found)
            specs = [choice.clip.spec.model_copy(update={"seed": n}) for n, choice in enumerate(choices)]
            await rendered(database, loop, Pool(Truth(rng, 0.02)), "chosen", specs)
            batch = sa.select(batches.c.id).where(batches.c.name == "chosen").scalar_subquery()
            seconds = attempts.c.ended_at - attempts.c.started_at
            made = sa.select(attempts.c.card, seconds).join(jobs, jobs.c.id == attempts.c.job_id)
            with database.read() as c:
                return [
                    (card, took)
                    for card, took in c.execute(made.where(jobs.c.batch_id == batch).order_by(jobs.c.number))
                ]
        finally:
            database.close()

    took = run_virtually(go)
    assert len(took) == len(choices)
    measured = 0
    for choice, (card, seconds) in zip(choices, took, strict=True):
        # A class that the picture has something to show in.
        assert choice.clip.spec.resolution_class.side <= 640 * MAX_ENLARGEMENT
        kind = CARDS[int(card.removeprefix("gpu"))][0]
        # On one of the cards that it was said to come to; loading a model counts once a card, seconds are whole ones.
        expected = next(one for one in choice.clip.on if one.kind == kind)
        # A model that this kind of card never rendered is judged by others.
        if expected.cost.corrections[ClipPart.STEP].source in ("shape", "family"):
            measured += 1
            off_s = min(abs(expected.seconds + load_s - seconds) for load_s in (0, LOAD_S))
            assert off_s <= 0.2 * seconds + 1, choice.note.message
        assert not choice.in_time or seconds <= 1.2 * choice.within_s + LOAD_S
    assert measured >= len(choices) / 2
