"""One simulated run: the scenario played on the real store by the real dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import sqlalchemy as sa

from cluster.breaker import REST_S
from cluster.cards import Fleet
from cluster.dispatcher import Dispatcher
from cluster.ids import ids_from
from cluster.jobs import MAX_ATTEMPTS, MAX_RELEASES, Draft
from cluster.planning.planner import Planner
from cluster.rates import Rates
from cluster.simulation import history
from cluster.simulation.clock import BEGIN, VirtualExecutor, VirtualLoop, run_virtually
from cluster.simulation.journal import Bounds, CardTruth, JobTruth, Record, What
from cluster.simulation.scenario import BatchPlan, Fault, JobPlan, Saying, Scenario, Trouble, least_bytes
from cluster.simulation.world import RESTART_S, Office, SimulatedPool, World
from cluster.storage import Storage
from cluster.store import Database, Desk, Ledger
from cluster.store.verbs import Verbs
from cluster.verbs import CardVerb, RefusedError, Verb
from pipeline.families import FAMILIES

#: After so long Serve notices that a dispatcher is out of office and puts another in its place, in seconds.
REPLACED_S = 10.0

log = logging.getLogger("clipmill.simulator")

#: What a run makes of the dispatcher's parts; tests put broken ones in.
MakeLedger = Callable[[Database], Ledger]
MakeDispatcher = Callable[..., Dispatcher]

#: Looks at whether all has ended, and how long the farm is watched after that, in seconds.
_LOOK_S = 5.0
_AFTER_S = 20.0


class ProcessGoneError(Exception):
    """The dispatcher's process is dead: it can call nothing."""


def play(
    scenario: Scenario, *, make_ledger: MakeLedger = Ledger, make_dispatcher: MakeDispatcher = Dispatcher
) -> Record:
    """Play a scenario; the record is the same for the same scenario."""

    async def run(loop: VirtualLoop) -> Record:
        with history.open_store(loop.time, BEGIN) as database:
            return await _Run(scenario, loop, database, make_ledger, make_dispatcher).play()

    with _quiet():
        return run_virtually(run)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        loop: VirtualLoop,
        database: Database,
        make_ledger: MakeLedger,
        make_dispatcher: MakeDispatcher,
    ) -> None:
        self.scenario, self.loop = scenario, loop
        self._make_ledger, self._make_dispatcher = make_ledger, make_dispatcher
        self.rng = random.Random(f"run {scenario.seed}")
        self.record = Record(
            seed=scenario.seed,
            bounds=_bounds(scenario),
            cards=[
                CardTruth(name=c.name, card_class=c.card_class, usable_bytes=c.usable_bytes) for c in scenario.cards
            ],
        )
        self.database = database
        self.desk, self.verbs = Desk(self.database), Verbs(self.database)
        #: Owner and id of each batch of the scenario that was handed in, by its number.
        self._batches: dict[int, tuple[str, str]] = {}
        self.storage = Storage(f"memory://simulation-{id(self)}")
        self.world = World(scenario, loop, self.record, self.storage)
        self.fleet = Fleet(usable_bytes={card.card_class: card.usable_bytes for card in scenario.cards})
        self._tasks: set[asyncio.Task[None]] = set()
        self._store_out = False
        self._made = 0
        #: What no task was there to take: a mistake of the simulator or of what it plays.
        self._unheard: list[BaseException] = []
        loop.set_exception_handler(self._on_unheard)

    def _on_unheard(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        # A killed dispatcher has nobody left to take what its calls raise.
        if not isinstance(error, ProcessGoneError):
            self._unheard.append(error)

    async def play(self) -> Record:
        with ids_from(self.loop.time, random.Random(f"ids {self.scenario.seed}")):
            # Tasks take the source of ids along.
            return await asyncio.ensure_future(self._play())

    async def _play(self) -> Record:
        try:
            for card in self.world.cards.values():
                card.start()
            self._open_office()
            for batch in self.scenario.batches:
                self._at(batch.at, lambda batch=batch: self._submit(batch))  # type: ignore[misc]
            for fault in self.scenario.faults:
                self._at(fault.at, lambda fault=fault: self._trouble(fault))  # type: ignore[misc]
            for saying in self.scenario.sayings:
                self._at(saying.at, lambda saying=saying: self._say(saying))  # type: ignore[misc]
            self._at(self.scenario.heal_at, self._heal)
            await self._until_all_ended()
            await asyncio.sleep(_AFTER_S)
            self.world.tell(What.END)
            self.record.changes = history.history_of(self.database)
            self.record.tables = history.tables_of(self.database)
            self.record.objects = sorted(self._objects())
            if self._unheard:
                raise self._unheard[0]
            return self.record
        finally:
            for office in self.world.offices:
                self._kill(office, tell=False)
            for card in self.world.cards.values():
                card.end("silent", None)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(o.task for o in self.world.offices if o.task), return_exceptions=True)
            with contextlib.suppress(FileNotFoundError):
                fsspec.filesystem("memory").rm(self.storage.url.removeprefix("memory:/"), recursive=True)

    async def _until_all_ended(self) -> None:
        deadline = BEGIN + self.scenario.heal_at + horizon_s(self.record, self.scenario)
        last = max((batch.at for batch in self.scenario.batches), default=0.0)
        while self.loop.time() < deadline:
            await asyncio.sleep(_LOOK_S)
            now = self.loop.time() - BEGIN
            if now > last and now > self.scenario.heal_at and not history.unfinished(self.database):
                return
            deadline = BEGIN + self.scenario.heal_at + horizon_s(self.record, self.scenario)

    def _at(self, seconds: float, call: Callable[[], None]) -> None:
        self.loop.call_at(BEGIN + seconds, call)

    # -- people -------------------------------------------------------------------------------------------------

    def _submit(self, batch: BatchPlan) -> None:
        batch_id, _ = self.desk.open_batch(batch.owner, name="catalog")
        self._batches[self.scenario.batches.index(batch)] = (batch.owner, batch_id)
        drafts = [self._draft(number, job) for number, job in enumerate(batch.jobs, start=1)]
        for job in batch.jobs:
            self.world.plans[job.key] = job
        self.desk.add(batch.owner, batch_id, drafts)
        self.desk.seal(batch.owner, batch_id)
        slowest = min(card.speed for card in self.scenario.cards)
        for made, plan in zip(self.desk.jobs(batch.owner, batch_id), batch.jobs, strict=True):
            steps = plan.spec.total_steps
            self.record.jobs[made.id] = JobTruth(
                id=made.id,
                owner=batch.owner,
                content_key=plan.key,
                name=made.name,
                steps=steps,
                resumable=FAMILIES[plan.spec.family].resumable,
                longest_s=(steps + 4) * plan.step_s / slowest * 1.5 + 10,
                longest_step_s=2 * plan.step_s / slowest,
                least_bytes=least_bytes(plan.spec),
                poison=plan.poison,
            )
            self.world.tell(What.SUBMITTED, job=made.id, step=steps, detail=plan.key)
        if batch.nudges:
            for office in self.world.offices:
                if office.hears:
                    office.dispatcher.nudge()
        if batch.cancelled_at is not None:
            self._at(batch.cancelled_at, lambda: self._cancel(batch.owner, batch_id))

    def _draft(self, number: int, job: JobPlan) -> Draft:
        return Draft(
            number=number,
            name=f"{job.key}/{number}",
            row={},
            still="ab" * 32,
            spec=job.spec,
            content_key=job.key,
            needs_bytes=job.needs_bytes,
            priority=job.priority,
        )

    def _cancel(self, owner: str, batch_id: str) -> None:
        self.desk.cancel(owner, batch_id)
        for job in self.desk.jobs(owner, batch_id):
            self.world.tell(What.CANCELLED, job=job.id, detail=job.state)

    def _say(self, saying: Saying) -> None:
        # Taken back before everything is whole.
        back = min(saying.at + saying.seconds, self.scenario.heal_at - 0.1)
        if saying.card:
            self.verbs.order(saying.card, CardVerb(saying.verb), reason="a simulated word")
            self.world.tell(What.CLOSED, card=saying.card, detail=str(saying.verb))
            self._at(back, lambda: self._open(saying.card))
            return
        if (named := self._batches.get(saying.batch)) is None:
            return
        owner, batch_id = named
        row = None if saying.row is None else self.desk.jobs(owner, batch_id)[saying.row].id
        if self._speak(owner, batch_id, row, Verb(saying.verb), What.HELD) and saying.verb is not Verb.PRIORITIZE:
            undo = Verb.APPROVE if saying.verb is Verb.HOLD else Verb.RESUME

            def take_back() -> None:
                self._speak(owner, batch_id, row, undo, What.FREED)

            self._at(back, take_back)

    def _speak(self, owner: str, batch_id: str, row: str | None, verb: Verb, what: What) -> bool:
        """Whether it could be obeyed."""
        try:
            if row is not None:
                self.verbs.job(owner, row, verb)
            else:
                self.verbs.batch(owner, batch_id, verb, priority=self.rng.randrange(-5, 10))
        except RefusedError as refused:
            log.info("%s", refused)
            return False
        if verb is not Verb.PRIORITIZE:
            for job in self.desk.jobs(owner, batch_id):
                if row in (None, job.id):
                    self.world.tell(what, job=job.id, detail="row" if row else "batch")
        return True

    def _open(self, card: str) -> None:
        self.verbs.order(card, CardVerb.RELEASE)
        self.world.tell(What.OPENED, card=card)

    # -- dispatchers --------------------------------------------------------------------------------------------

    def _open_office(self) -> None:
        self._made += 1
        name = f"dispatcher-{self._made}"
        executor = VirtualExecutor(self.loop, random.Random(f"{name} {self.scenario.seed}"), self.scenario.store_s)
        if self._store_out:
            executor.fault = _store_is_out
        pool = SimulatedPool(self.world)
        dispatcher = self._make_dispatcher(
            self._make_ledger(self.database),
            pool,
            self.fleet,
            holder=name,
            clock=self.loop.time,
            wall=self.loop.time,
            timing=self.scenario.timing,
            storage=self.storage,
            executor=executor,
            planner=Planner(Rates(), variants=1) if self.scenario.plans else None,
        )
        office = Office(name=name, dispatcher=dispatcher, executor=executor, pool=pool)
        office.task = self.loop.create_task(self._serve(office))
        self.world.offices.append(office)
        self.world.tell(What.OFFICE_OPEN, detail=name)

    async def _serve(self, office: Office) -> None:
        try:
            await office.dispatcher.run()
        except Exception as error:
            # Serve would replace it.
            self.world.tell(What.OFFICE_DEAD, detail=f"{office.name}: {type(error).__name__}: {error}")
            log.exception("the dispatcher broke")
            if office.alive:
                office.alive = False
                office.pool.die()
                self.loop.call_later(3.0, self._open_office)
            return
        if office.alive:
            self.world.tell(What.OFFICE_LEFT, detail=office.name)
            if office is self.world.offices[-1]:
                # An older one came back into office. That one is on its way out; this one Serve finds unhealthy.
                self.loop.call_later(REPLACED_S, self._replace_office, office)

    def _replace_office(self, office: Office) -> None:
        if office.alive and office is self.world.offices[-1]:
            self._kill(office, tell=False)
            self._open_office()

    def _kill(self, office: Office, *, tell: bool = True) -> None:
        if not office.alive:
            return
        office.alive = False
        if tell:
            self.world.tell(What.OFFICE_DEAD, detail=office.name)
        office.executor.fault = ProcessGoneError
        office.pool.die()
        if office.task is not None:
            office.task.cancel()

    # -- troubles -----------------------------------------------------------------------------------------------

    def _trouble(self, fault: Fault) -> None:
        cards = self.world.cards
        card = cards.get(fault.target)
        renderer = card.renderer if card else None
        match fault.what:
            case Trouble.CRASH if card and renderer:
                card.end("died", self.rng.uniform(2, RESTART_S))
            case Trouble.NODE_LOST | Trouble.NODE_SILENT:
                how = "lost" if fault.what is Trouble.NODE_LOST else "silent"
                for one in cards.values():
                    if one.plan.node == fault.target and not one.away:
                        one.end(how, fault.seconds + self.rng.uniform(2, RESTART_S))
            case Trouble.SPOT if card and renderer:
                renderer.draining = True
                self.world.tell(What.CLOSED, card=card.name, detail="spot")
                self.loop.call_later(fault.seconds, self._take_spot, fault)
            case Trouble.PARTITION | Trouble.PARTITION_DEAF if renderer and not renderer.cut:
                renderer.cut_off(deaf=fault.what is Trouble.PARTITION_DEAF)
                self.loop.call_later(fault.seconds, renderer.reconnect)
            case Trouble.HANG if card and renderer:
                renderer.hangs = True
                # Somebody looks after it in the end.
                self.loop.call_later(2 * self.scenario.timing.stall_s, self._replace, fault.target, renderer.uid)
            case Trouble.FOREIGN if card:
                card.take_foreign(int(card.plan.usable_bytes * self.rng.uniform(0.2, 0.7)))
                self.loop.call_later(fault.seconds, card.take_foreign, 0)
            case Trouble.BROKEN if card:
                card.broken = True
                self.loop.call_later(fault.seconds, setattr, card, "broken", False)
            case Trouble.DISPATCHER_KILLED:
                for office in self.world.offices:
                    self._kill(office)
                self.loop.call_later(self.rng.uniform(2, 12), self._reopen)
            case Trouble.ROLLING_UPDATE:
                before = [office for office in self.world.offices if office.alive]
                self._open_office()
                for office in before:
                    self.loop.call_later(self.rng.uniform(0.1, 12), self._retire, office)
            case Trouble.STORE_OUT:
                self._set_store(out=True)
                self.loop.call_later(fault.seconds, lambda: self._set_store(out=False))
            case _:
                pass

    def _take_spot(self, fault: Fault) -> None:
        card = self.world.cards[fault.target]
        if card.renderer is not None and card.renderer.draining:
            card.end("lost", 20.0)

    def _replace(self, name: str, uid: str) -> None:
        card = self.world.cards[name]
        if card.renderer is not None and card.renderer.uid == uid:
            card.end("died", RESTART_S)

    def _reopen(self) -> None:
        if not any(office.alive for office in self.world.offices):
            self._open_office()

    def _retire(self, office: Office) -> None:
        # As a rolling update does it: the old one is told to leave, then its process ends.
        if office.alive and sum(other.alive for other in self.world.offices) > 1:
            self._kill(office)

    def _set_store(self, *, out: bool) -> None:
        if out == self._store_out:
            return
        self._store_out = out
        self.world.tell(What.STORE_OUT if out else What.STORE_BACK)
        for office in self.world.offices:
            if office.alive:
                office.executor.fault = _store_is_out if out else None

    def _heal(self) -> None:
        """Everything is whole from here on, but for what ends by itself: hanging threads and foreign memory."""
        self._set_store(out=False)
        for card in self.world.cards.values():
            if card.renderer is None:
                card.away = False
                card.start()
            else:
                if card.renderer.draining:
                    self.world.tell(What.OPENED, card=card.name)
                card.renderer.draining = False
                card.renderer.reconnect()
            if card.foreign_bytes:
                card.take_foreign(0)
            card.broken = False
            if card.renderer is not None and card.renderer.hangs:
                card.end("died", RESTART_S)
        alive = [office for office in self.world.offices if office.alive]
        for office in alive[:-1]:
            self._kill(office)
        if not alive:
            self._open_office()
        self.world.tell(What.HEALED)

    def _objects(self) -> Iterator[str]:
        for job_id in self.storage.names_under("checkpoints"):
            for attempt_id in self.storage.names_under(f"checkpoints/{job_id}"):
                for step in self.storage.names_under(f"checkpoints/{job_id}/{attempt_id}"):
                    yield f"checkpoints/{job_id}/{attempt_id}/{step}"


def horizon_s(record: Record, scenario: Scenario) -> float:
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
    )


def _store_is_out() -> Exception:
    return sa.exc.OperationalError("SELECT 1", {}, Exception("the server closed the connection"))


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
