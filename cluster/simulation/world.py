"""Cards, the renderers on them and what carries the dispatchers' calls, all made of coroutines in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from cluster.dispatch.dispatcher import Dispatcher
from cluster.dispatch.protocol import (
    Assignment,
    CardFree,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    Fate,
    RendererDiedError,
    RendererLostError,
    StepDone,
    Verdict,
)
from cluster.fleet.cards import Beat, CardState
from cluster.jobs.model import Objects, Outcome, StoredCheckpoint, checkpoint_key
from cluster.jobs.outcomes import ENDINGS, Completed, Ended, OutOfMemory, Overflow, Peak, Stopped, TooBig
from cluster.simulation.clock import BEGIN, VirtualExecutor, VirtualLoop
from cluster.simulation.journal import JournalEntry, RunRecord, What
from cluster.simulation.scenario import CardPlan, JobPlan, Scenario
from cluster.storage import Storage
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import Footprint, footprint, leaner, leanest, plan, weights_on_card

#: A call that no renderer answers fails after this long, in seconds.
ACCEPT_S = 5.0
#: A renderer's process starts anew in this time, at most.
RESTART_S = 8.0
#: A renderer whose thread hangs ends its process so long after it was stopped, in seconds.
EXIT_S = 30.0
#: Decoding and encoding take as long as so many steps.
_DECODE_STEPS = 2.0
_ENCODE_S = 1.5


@dataclass(kw_only=True)
class DispatcherProcess:
    """A dispatcher and what its process has: threads and connections."""

    name: str
    dispatcher: Dispatcher
    executor: VirtualExecutor
    pool: SimulatedPool
    task: asyncio.Task[None] | None = None
    alive: bool = True

    @property
    def hears(self) -> bool:
        """Whether beats reach it."""
        return self.alive and self.task is not None


class World:
    """Everything outside the dispatcher."""

    def __init__(self, scenario: Scenario, loop: VirtualLoop, record: RunRecord, storage: Storage) -> None:
        self.scenario, self.loop, self.record, self.storage = scenario, loop, record, storage
        self.rng = random.Random(f"world {scenario.seed}")
        #: Every dispatcher process there ever was, the oldest first.
        self.dispatchers: list[DispatcherProcess] = []
        #: The truth about a job, by its row.
        self.plans: dict[str, JobPlan] = {}
        self.cards = {plan.name: SimulatedCard(self, plan) for plan in scenario.cards}
        #: Every renderer there ever was, by uid.
        self.renderers: dict[str, SimulatedRenderer] = {}

    def note(
        self,
        what: What,
        *,
        job: str = "",
        attempt: str = "",
        card: str = "",
        renderer: str = "",
        step: int = 0,
        size: int = 0,
        detail: str = "",
    ) -> None:
        """Write into the journal."""
        at = round(self.loop.time() - BEGIN, 6)
        self.record.entries.append(
            JournalEntry(
                at=at, what=what, job=job, attempt=attempt, card=card, renderer=renderer,
                step=step, size=size, detail=detail,
            )
        )  # fmt: skip

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Call it so many seconds after the run began."""
        self.loop.call_at(BEGIN + seconds, call)

    def reached_dispatcher(self) -> DispatcherProcess | None:
        """The dispatcher that a beat reaches; of two, either."""
        there = [process for process in self.dispatchers if process.hears]
        return self.rng.choice(there) if there else None


class SimulatedCard:
    """One GPU, with at most one renderer's process at a time."""

    def __init__(self, world: World, plan: CardPlan) -> None:
        self.world, self.plan = world, plan
        self.usable_bytes = plan.usable_bytes
        self.foreign_bytes = 0
        self.broken = False
        self.renderer: SimulatedRenderer | None = None
        self._lives = 0
        #: How often its node was started.
        self.boots = 1
        #: Set while it is not to come back.
        self.away = False

    @property
    def name(self) -> str:
        """Name of the card."""
        return self.plan.name

    def start(self) -> None:
        """A fresh renderer, unless there is one or the card is gone."""
        if self.away or self.renderer is not None:
            return
        self._lives += 1
        self.renderer = SimulatedRenderer(self, f"{self.name}-{self._lives}")
        self.world.renderers[self.renderer.uid] = self.renderer
        self.world.note(What.CARD_UP, card=self.name, renderer=self.renderer.uid, size=self.usable_bytes)

    def end(self, how: str, back_s: float | None) -> None:
        """The process dies, and comes back after `back_s`; None: never. `died` and `lost` show by its connections."""
        renderer, self.renderer = self.renderer, None
        if renderer is not None:
            if renderer.draining:
                # It was to go, and its successor is not.
                self.world.note(What.OPENED, card=self.name)
            self.world.note(What.CARD_DOWN, card=self.name, renderer=renderer.uid, detail=how)
            renderer.die(how)
        if how != "died":
            self.boots += 1
            self.world.note(What.NODE_RESTARTED, card=self.name)
        self.away = back_s is None
        if back_s is not None:
            self.world.loop.call_later(back_s, self.start)

    def take_foreign(self, taken_bytes: int) -> None:
        """Another program takes so much of the card; 0 gives it back."""
        self.foreign_bytes = taken_bytes
        self.usable_bytes = self.plan.usable_bytes - taken_bytes
        self.world.note(What.USABLE, card=self.name, size=self.usable_bytes)


class SimulatedRenderer:
    """One life of a card's process."""

    def __init__(self, card: SimulatedCard, uid: str) -> None:
        self.card, self.world, self.uid, self.boots = card, card.world, uid, card.boots
        self.alive, self.draining = True, False
        #: Nothing passes to and from the renderer; `deaf`: it does not mind.
        self.cut = self.deaf = False
        self.hangs = False
        self.family: str | None = None
        self.executions: dict[str, Execution] = {}
        #: One clip on the card at a time, as `serve.renderer.worker.CARD_LOCK`.
        self.lock = asyncio.Lock()
        self.holder: Execution | None = None
        #: What Ray says became of it.
        self.fate: Fate | None = None
        self._heard_at = self.world.loop.time()
        self._last: Beat | None = None
        self._beat_in(self.world.rng.random() * 0.5)

    def _beat_in(self, seconds: float) -> None:
        self.world.loop.call_later(seconds, self.beat)

    def beat(self) -> None:
        """Send a heartbeat and obey the verdicts of the answer."""
        if not self.alive:
            return
        self._beat_in(self.world.scenario.beat_s)
        reached = None if self.cut else self.world.reached_dispatcher()
        if reached is not None:
            self._heard_at = self.world.loop.time()
            for attempt_id, verdict in reached.dispatcher.beat(self._now()).items():
                if execution := self.executions.get(attempt_id):
                    execution.obey(verdict)
        elif (
            self.executions and not self.deaf and self.world.loop.time() - self._heard_at > self.world.scenario.alone_s
        ):
            self.world.note(What.ALONE, card=self.card.name, renderer=self.uid)
            for execution in self.executions.values():
                execution.stop("no dispatcher is heard")

    def _now(self) -> Beat:
        steps = {attempt_id: execution.steps for attempt_id, execution in self.executions.items()}
        state = CardState.BUSY if self.holder else CardState.IDLE
        state = CardState.DRAINING if self.draining else state
        usable = self.card.usable_bytes
        last = self._last
        on_card = self.holder.assignment.attempt_id if self.holder and self.holder.admitted else ""
        now = (steps, state, usable, self.family, on_card)
        if last and (last.steps, last.state, last.usable_bytes, last.family, last.on_card) == now:
            return last
        plan_ = self.card.plan
        self._last = Beat(
            renderer=self.uid,
            card=plan_.name,
            card_class=plan_.card_class,
            kind=plan_.kind,
            total_bytes=plan_.usable_bytes,
            usable_bytes=usable,
            used_bytes=0,
            foreign_bytes=self.card.foreign_bytes,
            state=state,
            family=self.family,
            steps=steps,
            boot=f"{plan_.node}-{self.boots}",
            on_card=on_card,
        )
        return self._last

    def accept(self, assignment: Assignment) -> Execution:
        """Begin an attempt."""
        execution = self.executions[assignment.attempt_id] = Execution(self, assignment)
        return execution

    def cut_off(self, *, deaf: bool) -> None:
        """Let nothing pass between the renderer and its dispatcher any more; `deaf`: the renderer does not mind."""
        self.cut, self.deaf = True, deaf
        self.world.note(What.CUT_OFF, card=self.card.name, renderer=self.uid, detail="deaf" if deaf else "")

    def reconnect(self) -> None:
        """Let the renderer be reached again; what its streams held back arrives, late."""
        if self.cut and self.alive:
            self.cut = self.deaf = False
            self.world.note(What.REACHED, card=self.card.name, renderer=self.uid)
            for execution in list(self.executions.values()):
                execution.flush()

    def die(self, how: str) -> None:
        """The process ends; its streams break off if anything tells them."""
        self.alive = False
        # Of one in eight nobody ever says what became of it; of a silent node nobody knows.
        if how != "silent" and self.world.rng.random() < 7 / 8:
            known_s = self.world.rng.uniform(0.01, 1.0) if how == "died" else self.world.rng.uniform(1, 30)
            fate = Fate(died=how == "died", detail=f"the process {how}")
            self.world.loop.call_later(known_s, setattr, self, "fate", fate)
        for execution in list(self.executions.values()):
            execution.kill(how)


class Execution:
    """One attempt at a renderer: its GPU thread and the stream that tells of it."""

    def __init__(self, renderer: SimulatedRenderer, assignment: Assignment) -> None:
        self.renderer, self.world, self.assignment = renderer, renderer.world, assignment
        self.plan = self.world.plans[assignment.content_key]
        self.steps = (0, assignment.spec.total_steps)
        self.out: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._held: list[Event | Exception] = []
        #: Why it is to stop at its next step; empty while it may go on.
        self._stop_reason = ""
        self._hanging = False
        #: The clip has been promised the card's memory.
        self.admitted = False
        #: The attempt is to save a checkpoint after its next step, and stop.
        self._preempted = False
        self._saved: StoredCheckpoint | None = None
        self._peaks: list[Peak] = []
        self._overflows: list[Overflow] = []
        self._rng = random.Random(f"{self.world.scenario.seed} {assignment.attempt_id}")
        self._writes: set[asyncio.Task[None]] = set()
        self.task = self.world.loop.create_task(self._run())

    # -- what reaches it ----------------------------------------------------------------------------------------

    def obey(self, verdict: Verdict) -> None:
        """Take the answer to a beat."""
        if verdict in (Verdict.STOP, Verdict.CANCEL):
            self.stop(str(verdict))
        elif verdict is Verdict.CHECKPOINT and not self._preempted:
            self._preempted = True

    def stop(self, why: str) -> None:
        """Stop at the next step."""
        if not self._stop_reason:
            self._stop_reason = why
            self.note(What.STOPS, detail=why)
            if self._hanging:
                self.world.loop.call_later(EXIT_S, self._exit)

    def _exit(self) -> None:
        if self.renderer.alive and not self.task.done():
            self.renderer.card.end("died", self._rng.uniform(2, RESTART_S))

    def kill(self, how: str) -> None:
        """The process is gone."""
        self.task.cancel()
        for write in self._writes:
            write.cancel()
        if how == "died" and self._rng.random() < 0.1:
            self._put(RendererDiedError(f"renderer {self.renderer.uid} died"))
        elif how in ("died", "lost"):
            # As Ray does: that a process has died it mostly says of one that is asked for, if it does.
            self._put(RendererLostError(f"renderer {self.renderer.uid} cannot be reached"))

    def flush(self) -> None:
        """Send what was held back while the card was cut off."""
        held, self._held = self._held, []
        for event in held:
            self.out.put_nowait(event)

    def note(self, what: What, *, step: int = 0, size: int = 0, detail: str = "") -> None:
        """Write into the journal about this attempt."""
        self.world.note(
            what,
            job=self.assignment.job_id,
            attempt=self.assignment.attempt_id,
            card=self.renderer.card.name,
            renderer=self.renderer.uid,
            step=step,
            size=size,
            detail=detail,
        )

    def _put(self, event: Event | Exception) -> None:
        if self.renderer.cut:
            self._held.append(event)
        else:
            self.out.put_nowait(event)

    # -- its thread ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        renderer = self.renderer
        try:
            ended = await self._work()
            if self._writes:
                await asyncio.gather(*self._writes)
        except asyncio.CancelledError:
            self._off_card()
            renderer.executions.pop(self.assignment.attempt_id, None)
            raise
        self._off_card()
        renderer.executions.pop(self.assignment.attempt_id, None)
        ended = _with(ended, self._saved, tuple(self._peaks), tuple(self._overflows))
        self.note(What.LEFT, step=self.steps[0], detail=str(ended.outcome))
        self._put(ended)
        if ended.sticky and renderer.alive:
            renderer.card.end("died", self._rng.uniform(2, RESTART_S))

    def _off_card(self) -> None:
        if self.renderer.holder is self:
            self.renderer.holder = None
            self.renderer.lock.release()
            self.note(What.OFF_CARD)

    async def _work(self) -> Ended:
        a, renderer = self.assignment, self.renderer
        self.note(What.CALLED, detail=renderer.holder.assignment.attempt_id if renderer.holder else "")
        if renderer.lock.locked():
            self.note(What.WAITS)
        await renderer.lock.acquire()
        renderer.holder = self
        if self._stop_reason:
            return Stopped()
        usable, family = renderer.card.usable_bytes, family_named(a.spec.family)
        planned = plan(a.spec, usable, a.lessons.corrector(a.spec.family))
        if planned is None:
            return TooBig(
                usable_bytes=usable,
                foreign_bytes=renderer.card.foreign_bytes,
                predicted_bytes=leanest(a.spec)[1].peak_bytes,
            )
        layout, predicted = planned
        while (taken := self._taken(layout, predicted)) > usable:
            self._overflow(layout, predicted, usable)
            following = leaner(layout, Stage.DENOISE, family)
            while following is not None and footprint(a.spec, following).peak_bytes > usable:
                following = leaner(following, Stage.DENOISE, family)
            await asyncio.sleep(1.0)
            if following is None or self._stop_reason:
                if self._stop_reason:
                    return Stopped(detail="told to stop", measured_bytes=usable)
                return OutOfMemory(
                    stage="denoise",
                    measured_bytes=usable,
                    predicted_bytes=predicted.peak_bytes,
                    usable_bytes=usable,
                    foreign_bytes=renderer.card.foreign_bytes,
                    detail="out of memory in denoise",
                )
            layout, predicted = following, footprint(a.spec, following)
        self.admitted = True
        self.note(What.ON_CARD, size=taken, detail=str(renderer.card.plan.card_class))
        renderer.family = a.spec.family
        ended = await self._denoise()
        if ended is not None:
            return ended
        self._peaks.append(
            Peak(
                layout=layout,
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=taken,
                usable_bytes=usable,
                partial=self.assignment.resume is not None,
            )
        )
        await asyncio.sleep(_DECODE_STEPS * self.plan.step_s / renderer.card.plan.speed)
        self._off_card()
        self._put(CardFree())
        if self.plan.poison == "encode":
            await asyncio.sleep(self._rng.uniform(0.1, _ENCODE_S))
            self.world.loop.call_soon(renderer.card.end, "died", self._rng.uniform(2, RESTART_S))
            await asyncio.Event().wait()
        await asyncio.sleep(_ENCODE_S)
        if self._stop_reason:
            return Stopped()
        self.note(What.STORED, step=self.steps[0])
        return Completed(objects=_objects(a), measured_bytes=taken)

    def _taken(self, layout: Layout, predicted: Footprint) -> int:
        spec = self.assignment.spec
        key = (str(spec.resolution_class), spec.frames, self.renderer.card.plan.kind)
        factor = self.world.scenario.peaks.get(key, 1.0)
        # Of weights it is known what they take; the truth may differ in all else.
        weights = weights_on_card(family_named(spec.family), layout).stages
        stages = predicted.stages.items()
        return max(weights[name] + int(factor * (count - weights[name])) for name, count in stages)

    def _overflow(self, layout: Layout, predicted: Footprint, usable: int) -> None:
        card = self.renderer.card.name
        self._peaks.append(
            Peak(
                layout=layout,
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=usable,
                usable_bytes=usable,
                out_of_memory=True,
            )
        )
        self._overflows.append(
            Overflow(
                stage="denoise",
                layout=str(layout),
                step=0,
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=usable,
                usable_bytes=usable,
                card=card,
            )
        )
        self.note(What.OVERFLOW, size=usable, detail=str(layout))

    async def _denoise(self) -> Ended | None:
        """Step by step; None when all are done."""
        a, scenario, card = self.assignment, self.world.scenario, self.renderer.card
        steps = a.spec.total_steps
        begin = 0
        if a.resume is not None:
            readable = self.world.storage.exists(a.resume.key)
            refused = not readable or self._rng.random() < scenario.bad_read
            begin = 0 if refused else a.resume.step
            self.note(What.RESUMED, step=begin, detail=a.resume.key if readable else f"missing {a.resume.key}")
        self.steps = (begin, steps)
        self._put(StepDone(step=begin, steps=steps))
        breaks = self.plan.poison not in ("", "encode") or card.broken
        fatal = self._rng.randint(begin + 1, steps) if breaks else 0
        for step in range(begin + 1, steps + 1):
            if self.renderer.hangs or (self.plan.poison == "hang" and step == fatal):
                self.note(What.HANGS, step=step)
                self._hanging = True
                if self._stop_reason:
                    self.world.loop.call_later(EXIT_S, self._exit)
                # Neither a flag nor a closed stream reaches a thread that hangs: only the process's end does.
                await asyncio.Event().wait()
            await asyncio.sleep(self.plan.step_s / card.plan.speed * self._rng.lognormvariate(0, scenario.noise))
            self.steps = (step, steps)
            self.note(What.STEP, step=step)
            self._put(StepDone(step=step, steps=steps))
            if step == fatal:
                if (ended := self._break(card)) is not None:
                    return ended
                await asyncio.Event().wait()
            if self._stop_reason:
                return Stopped()
            saves = self._preempted or step % scenario.checkpoint_steps == 0
            if saves and a.spec.family != "camera" and step < steps:
                write = asyncio.ensure_future(self._save(step))
                self._writes.add(write)
                write.add_done_callback(self._writes.discard)
            if self._preempted and step < steps:
                return Stopped()
        return None

    def _break(self, card: SimulatedCard) -> Ended | None:
        poison = self.plan.poison if self.plan.poison not in ("", "encode") else "sticky"
        if poison == "crash":
            self.world.loop.call_soon(card.end, "died", self._rng.uniform(2, RESTART_S))
            return None
        outcome = Outcome.INVALID if poison == "invalid" else Outcome.ERROR
        return ENDINGS[outcome](detail=poison, sticky=poison == "sticky")

    async def _save(self, step: int) -> None:
        a = self.assignment
        await asyncio.sleep(self.world.scenario.checkpoint_write_s)
        if self._rng.random() < self.world.scenario.bad_write:
            self.note(What.UNSAVED, step=step)
            self._put(CheckpointFailed(step=step, detail="no space is left"))
            return
        checkpoint = StoredCheckpoint(checkpoint_key(a.job_id, a.attempt_id, step), step)
        self.world.storage.put_bytes(checkpoint.key, b"latents")
        self.note(What.SAVED, step=step, detail=checkpoint.key)
        if self._saved is None or self._saved.step < step:
            self._saved = checkpoint
        self._put(CheckpointSaved(checkpoint))


class SimulatedPool:
    """The calls of one dispatcher: a `RendererPool`."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Set when its dispatcher's process dies: closing its streams reaches nobody.
        self.dead = False
        self.open: dict[str, Execution] = {}

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """Render on a simulated renderer, as `RendererPool.render` says."""
        renderer = self.world.renderers.get(assignment.renderer)
        if renderer is None or not renderer.alive or renderer.cut:
            await asyncio.sleep(ACCEPT_S)
            raise RendererLostError(f"renderer {assignment.renderer} does not answer", accepted=False)
        execution = self.open[assignment.attempt_id] = renderer.accept(assignment)
        try:
            while True:
                event = await execution.out.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, CheckpointSaved):
                    execution.note(What.TOLD, step=event.checkpoint.step, detail=event.checkpoint.key)
                yield event
        finally:
            del self.open[assignment.attempt_id]
            if not self.dead:
                self._close(execution)

    async def fate(self, renderer: str) -> Fate | None:
        """What became of a renderer, as `RendererPool.fate` says."""
        known = self.world.renderers.get(renderer)
        return known.fate if known else None

    def _close(self, execution: Execution) -> None:
        if execution.task.done() or not execution.renderer.alive:
            return
        if execution.renderer.cut:
            # The cancellation is lost; the next beat that gets through brings the verdict.
            return
        execution.stop("its stream is closed")

    def die(self) -> None:
        """The dispatcher's process is gone; some renderers notice, others learn by their next beat."""
        self.dead = True
        for execution in list(self.open.values()):
            if self.world.rng.random() < 0.7:
                self.world.loop.call_later(0.02, self._close, execution)


def _objects(a: Assignment) -> Objects:
    under = f"clips/{a.job_id}/{a.attempt_id}"
    return Objects(
        video=f"{under}/video.mp4",
        poster=f"{under}/poster.jpg",
        spritesheet=f"{under}/spritesheet.jpg",
        provenance=f"{under}/provenance.json",
        video_bytes=1,
        frames_sha256="0" * 64,
    )


def _with(
    ended: Ended, saved: StoredCheckpoint | None, peaks: tuple[Peak, ...], overflows: tuple[Overflow, ...]
) -> Ended:
    return replace(ended, checkpoint=ended.checkpoint or saved, peaks=peaks, overflows=overflows)
