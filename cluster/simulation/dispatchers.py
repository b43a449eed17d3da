"""The dispatchers of a simulated farm as processes: started, killed, replaced, and cut off from their store."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import sqlalchemy as sa

from cluster.dispatch.dispatcher import Dispatcher
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Fleet
from cluster.scheduling.tail.planner import Planner
from cluster.simulation.clock import VirtualExecutor
from cluster.simulation.journal import What
from cluster.simulation.world import DispatcherProcess, SimulatedPool, World
from cluster.store import Database, DispatchStore

log = logging.getLogger("clipmill.simulator")

#: What a run makes of the dispatcher's parts; tests put broken ones in.
MakeDispatchStore = Callable[[Database], DispatchStore]
MakeDispatcher = Callable[..., Dispatcher]

#: After so long Serve notices that a dispatcher is out of office and puts another in its place, in seconds.
REPLACED_S = 10.0


class ProcessGoneError(Exception):
    """The dispatcher's process is dead: it can call nothing."""


class Dispatchers:
    """Starts and ends dispatcher processes as Serve does; `World.dispatchers` lists them all."""

    def __init__(
        self,
        world: World,
        database: Database,
        *,
        make_dispatch_store: MakeDispatchStore,
        make_dispatcher: MakeDispatcher,
    ) -> None:
        self._world, self._scenario, self._loop, self._database = world, world.scenario, world.loop, database
        self._make_dispatch_store, self._make_dispatcher = make_dispatch_store, make_dispatcher
        self._fleet = Fleet(usable_bytes={card.card_class: card.usable_bytes for card in world.scenario.cards})
        self._store_is_out = False
        self._made = 0

    @property
    def alive(self) -> list[DispatcherProcess]:
        """Processes that live, the oldest first."""
        return [process for process in self._world.dispatchers if process.alive]

    def start(self) -> None:
        """Start one more."""
        self._made += 1
        name = f"dispatcher-{self._made}"
        executor = VirtualExecutor(self._loop, random.Random(f"{name} {self._scenario.seed}"), self._scenario.store_s)
        if self._store_is_out:
            executor.fault = _no_answer
        pool = SimulatedPool(self._world)
        dispatcher = self._make_dispatcher(
            self._make_dispatch_store(self._database),
            pool,
            self._fleet,
            holder=name,
            clock=self._loop.time,
            wall=self._loop.time,
            timing=self._scenario.timing,
            storage=self._world.storage,
            executor=executor,
            planner=Planner(TimeEstimates(), variants=1) if self._scenario.plans else None,
            interactive=self._scenario.interactive,
        )
        process = DispatcherProcess(name=name, dispatcher=dispatcher, executor=executor, pool=pool)
        process.task = self._loop.create_task(self._run(process))
        self._world.dispatchers.append(process)
        self._world.note(What.OFFICE_OPEN, detail=name)

    def start_if_none(self) -> None:
        """Start one where none lives."""
        if not self.alive:
            self.start()

    def kill(self, process: DispatcherProcess, *, note: bool = True) -> None:
        """A process dies. Not `note`: the journal has nothing of it."""
        if not process.alive:
            return
        process.alive = False
        if note:
            self._world.note(What.OFFICE_DEAD, detail=process.name)
        process.executor.fault = ProcessGoneError
        process.pool.die()
        if process.task is not None:
            process.task.cancel()

    def retire(self, process: DispatcherProcess) -> None:
        """Kill a process that a rolling update has replaced; it stays where it is the last."""
        if process.alive and len(self.alive) > 1:
            self.kill(process)

    def set_store(self, *, out: bool) -> None:
        """From now on the store answers no dispatcher, or does again."""
        if out == self._store_is_out:
            return
        self._store_is_out = out
        self._world.note(What.STORE_OUT if out else What.STORE_BACK)
        for process in self.alive:
            process.executor.fault = _no_answer if out else None

    def heal(self) -> None:
        """Exactly one lives, the newest."""
        alive = self.alive
        for process in alive[:-1]:
            self.kill(process)
        if not alive:
            self.start()

    async def _run(self, process: DispatcherProcess) -> None:
        try:
            await process.dispatcher.run()
        except Exception as error:
            # Serve would replace it.
            self._world.note(What.OFFICE_DEAD, detail=f"{process.name}: {type(error).__name__}: {error}")
            log.exception("the dispatcher broke")
            if process.alive:
                process.alive = False
                process.pool.die()
                self._loop.call_later(3.0, self.start)
            return
        if process.alive:
            self._world.note(What.OFFICE_LEFT, detail=process.name)
            if process is self._world.dispatchers[-1]:
                # An older one came back into office. That one is on its way out; this one Serve finds unhealthy.
                self._loop.call_later(REPLACED_S, self._replace, process)

    def _replace(self, process: DispatcherProcess) -> None:
        if process.alive and process is self._world.dispatchers[-1]:
            self.kill(process, note=False)
            self.start()


def _no_answer() -> Exception:
    return sa.exc.OperationalError("SELECT 1", {}, Exception("the server closed the connection"))
