"""One simulated run: the scenario played on the real store by the real dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator
from typing import Any

import fsspec

from cluster.dispatch.dispatcher import Dispatcher
from cluster.fleet.breakers import REST_S
from cluster.jobs.ids import ids_from
from cluster.jobs.model import MAX_ATTEMPTS, MAX_RELEASES
from cluster.scheduling.preemption import MOST_PREEMPTIONS
from cluster.simulation import history
from cluster.simulation.clock import BEGIN, VirtualLoop, run_virtually
from cluster.simulation.dispatchers import Dispatchers, MakeDispatcher, MakeDispatchStore, ProcessGoneError
from cluster.simulation.faults import Faults
from cluster.simulation.journal import Bounds, CardTruth, RunRecord, What
from cluster.simulation.people import People
from cluster.simulation.scenario import Scenario
from cluster.simulation.world import RESTART_S, World
from cluster.storage import Storage
from cluster.store import Database, DispatchStore

#: Looks at whether all has ended, and how long the farm is watched after that, in seconds.
_LOOK_S = 5.0
_AFTER_S = 20.0


def play(
    scenario: Scenario,
    *,
    make_dispatch_store: MakeDispatchStore = DispatchStore,
    make_dispatcher: MakeDispatcher = Dispatcher,
) -> RunRecord:
    """Play a scenario; the record is the same for the same scenario."""

    async def run(loop: VirtualLoop) -> RunRecord:
        with history.open_store(loop.time, BEGIN) as database:
            return await _Run(scenario, loop, database, make_dispatch_store, make_dispatcher).play()

    with _quiet():
        return run_virtually(run)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        loop: VirtualLoop,
        database: Database,
        make_dispatch_store: MakeDispatchStore,
        make_dispatcher: MakeDispatcher,
    ) -> None:
        self._scenario, self._loop, self._database = scenario, loop, database
        self._record = RunRecord(
            seed=scenario.seed,
            bounds=_bounds(scenario),
            cards=[
                CardTruth(name=c.name, card_class=c.card_class, usable_bytes=c.usable_bytes) for c in scenario.cards
            ],
        )
        self._storage = Storage(f"memory://simulation-{id(self)}")
        self._world = World(scenario, loop, self._record, self._storage)
        self._dispatchers = Dispatchers(
            self._world, database, make_dispatch_store=make_dispatch_store, make_dispatcher=make_dispatcher
        )
        rng = random.Random(f"run {scenario.seed}")
        self._people = People(self._world, database, rng)
        self._faults = Faults(self._world, self._dispatchers, rng)
        #: Errors that no task was there to take: a mistake of the simulator or of what it plays.
        self._untaken: list[BaseException] = []
        loop.set_exception_handler(self._on_untaken)

    def _on_untaken(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        # A killed dispatcher has nobody left to take what its calls raise.
        if not isinstance(error, ProcessGoneError):
            self._untaken.append(error)

    async def play(self) -> RunRecord:
        with ids_from(self._loop.time, random.Random(f"ids {self._scenario.seed}")):
            # Tasks take the source of ids along.
            return await asyncio.ensure_future(self._play())

    async def _play(self) -> RunRecord:
        try:
            for card in self._world.cards.values():
                card.start()
            self._dispatchers.start()
            self._people.hand_in()
            self._faults.begin()
            self._people.command()
            self._world.at(self._scenario.heal_at, self._faults.heal)
            await self._until_all_ended()
            await asyncio.sleep(_AFTER_S)
            self._world.note(What.END)
            self._record.changes = history.history_of(self._database)
            self._record.tables = history.tables_of(self._database)
            self._record.objects = sorted(self._objects())
            if self._untaken:
                raise self._untaken[0]
            return self._record
        finally:
            for process in self._world.dispatchers:
                self._dispatchers.kill(process, note=False)
            for card in self._world.cards.values():
                card.end("silent", None)
            await asyncio.gather(*(p.task for p in self._world.dispatchers if p.task), return_exceptions=True)
            with contextlib.suppress(FileNotFoundError):
                fsspec.filesystem("memory").rm(self._storage.url.removeprefix("memory:/"), recursive=True)

    async def _until_all_ended(self) -> None:
        last = max((batch.at for batch in self._scenario.batches), default=0.0)
        while self._loop.time() < BEGIN + self._scenario.heal_at + horizon_s(self._record, self._scenario):
            await asyncio.sleep(_LOOK_S)
            now = self._loop.time() - BEGIN
            if now > last and now > self._scenario.heal_at and not history.unfinished(self._database):
                return

    def _objects(self) -> Iterator[str]:
        for job_id in self._storage.names_under("checkpoints"):
            for attempt_id in self._storage.names_under(f"checkpoints/{job_id}"):
                for step in self._storage.names_under(f"checkpoints/{job_id}/{attempt_id}"):
                    yield f"checkpoints/{job_id}/{attempt_id}/{step}"


def horizon_s(record: RunRecord, scenario: Scenario) -> float:
    """Seconds after everything is whole in which all must have ended: the work one after the other, and patience."""
    work = sum(job.longest_s * (MAX_ATTEMPTS if job.poison else 2) for job in record.jobs.values())
    hanging = sum(MAX_ATTEMPTS * (2 * scenario.timing.stall_s + 60) for j in record.jobs.values() if j.poison == "hang")
    # A breaker rests for a quarter of an hour, and the last of its jobs may meet it thrice.
    return work + hanging + 3 * REST_S + 3 * scenario.timing.stall_s + 600.0


def _bounds(scenario: Scenario) -> Bounds:
    timing = scenario.timing
    return Bounds(
        checkpoint_steps=scenario.checkpoint_steps,
        checkpoint_write_s=scenario.checkpoint_write_s,
        beat_s=scenario.beat_s,
        renew_s=timing.renew_s,
        lease_s=float(timing.lease_s),
        silent_s=timing.silent_s,
        alone_s=scenario.alone_s,
        stall_s=timing.stall_s,
        preempt_s=timing.preempt_s,
        rest_s=REST_S,
        patience_s=2 * timing.poll_s + 2 * scenario.beat_s + 1.0,
        # A silent card's lease, a renderer's start, a beat.
        settle_s=timing.lease_s + 2 * timing.renew_s + RESTART_S + 2 * scenario.beat_s,
        least_factor=0.85,
        spare=2.0,
        max_attempts=MAX_ATTEMPTS,
        max_releases=MAX_RELEASES,
        planned=scenario.plans,
        interactive_card_s=scenario.interactive.share * scenario.interactive.window_s * len(scenario.cards),
        interactive_window_s=scenario.interactive.window_s,
        most_preemptions=MOST_PREEMPTIONS,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # A run has thousands of warnings that are meant.
    logger = logging.getLogger("clipmill")
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
