"""Clips on emulated cards whose real use differs from what is predicted: nobody sees an OOM, and they grow fewer.

    python benchmarks/oom_grid.py [--rounds 3] [--copies 2] [--seed 0] [--json FILE] [--plot FILE.svg] [--check]

The farm's own store, dispatcher, placement, escalation and workers over cards of host memory, without Ray, and the
small I2VGen-XL network. The grid is 4 classes × {8, 16, 32} frames with sides a quarter of the classes' own. On each
card kind a shape really takes the tracked bytes of its activations times a factor drawn from 0.8 to 1.5, unknown to the
farm, and workspaces of up to a tenth of what an operation returns, drawn anew for every attempt. On some attempts
another program takes a part of the card after the first step. Every round renders the whole grid with new seeds; what
was learned stays. Then all of it once more by a farm that forgets what it measured.

Aims: every clip that fits some card is done; no clip fails by an OOM; the last round has at most half the OOMs of the
first, those that another program brought about left out.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from report import Aim, Report, parser

from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.dispatch.protocol import Assignment, CardFree, Event, Fate, StepDone, Verdict
from cluster.estimates.memory import MemoryEstimates
from cluster.fleet.cards import NOMINAL_BYTES, Beat, CardState, Fleet
from cluster.jobs.model import Draft, Outcome
from cluster.jobs.outcomes import Ended
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from pipeline.clips.clip import ClipSpec, ResolutionClass, content_key
from pipeline.families import family_named
from pipeline.memory.footprint import footprint, leanest, weights_on_card
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import MemoryWait
from serve.renderer.cards import CardIdentity
from serve.renderer.checkpoints import CheckpointEvery
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker

if TYPE_CHECKING:
    from pipeline.devices.emulated import EmulatedDevice

FAMILY = "i2vgen-xl-tiny"
FRAMES = (8, 16, 32)
STEPS = 2
FACTORS = (0.8, 1.5)
WORKSPACE = 0.1
#: Share of a card's room that a foreign program takes, and on which share of the attempts.
FOREIGN, FOREIGN_OFTEN = 0.25, 0.15
#: Bytes beside the weights on each card: most hold one of the shapes as predicted and have hardly more to spare.
ROOM_BYTES = {
    name: round(mib * 2**20)
    for name, mib in zip(NOMINAL_BYTES, (1.6, 3.2, 6.2, 7.0, 12.6, 14.0, 27.5, 49.0), strict=False)
}


def shape(resolution_class: ResolutionClass, frames: int, seed: int = 0) -> ClipSpec:
    """A clip of the grid: a quarter of the side of its class, in few steps."""
    family = family_named(FAMILY)
    side = resolution_class.side // 4
    return ClipSpec(
        family=FAMILY,
        revision=family.revision,
        # Of its own: encoders whose results are cached are not put on the card at all.
        prompt=f"camera slowly panning left, {resolution_class} {frames} {seed}",
        resolution_class=resolution_class,
        width=side,
        height=side,
        frames=frames,
        fps=8,
        steps=STEPS,
        guidance=family.guidance,
        seed=seed,
        sampler=family.samplers[0],
    )


def weights_bytes() -> int:
    """What the small network's weights take, far too large a share of any of these cards."""
    return weights_on_card(family_named(FAMILY), family_named(FAMILY).layouts[0]).peak_bytes


def make_card(card_class: str) -> EmulatedDevice:
    """The grid's card of this class: room for the weights and for as much as `ROOM_BYTES` says."""
    from pipeline.devices.emulated import EmulatedDevice

    class GridCard(EmulatedDevice):
        def usable_bytes(self) -> int:
            """As on any card 5 % is kept back, here of the room beside the weights."""
            return max(0, self.total_bytes - (self.total_bytes - weights_bytes()) // 20 - self.foreign_bytes)

    return GridCard(weights_bytes() + ROOM_BYTES[card_class])


@dataclass
class Truth:
    """What the farm does not know."""

    seed: int

    def factor(self, spec: ClipSpec, kind: str) -> float:
        """What activations of this shape take on this kind, as a multiple of the tracked bytes."""
        drawn = random.Random(f"{self.seed} {spec.resolution_class} {spec.frames} {kind}")
        return drawn.uniform(*FACTORS)

    def fits(self, spec: ClipSpec, card_class: str) -> bool:
        """Whether the leanest layout of `spec` fits a card of this class whatever its workspaces."""
        layout, predicted = leanest(spec)
        weights = weights_on_card(family_named(spec.family), layout).stages
        most = self.factor(spec, kind_of(card_class)) + WORKSPACE
        real = max(weights[name] + most * (count - weights[name]) for name, count in predicted.stages.items())
        return real <= weights_bytes() + ROOM_BYTES[card_class]


def kind_of(card_class: str) -> str:
    """One kind a class, so that each has measurements of its own."""
    return f"emulated {card_class}"


@dataclass
class Card:
    """One emulated card with its worker."""

    worker: Worker
    device: Any
    clips: dict[str, ActiveClip] = field(default_factory=dict)
    rendering: bool = False

    def beat(self) -> Beat:
        """What its renderer would say."""
        identity = self.worker.identity
        return Beat(
            renderer=identity.card,
            card=identity.card,
            card_class=identity.card_class,
            kind=identity.kind,
            total_bytes=self.device.total_bytes,
            usable_bytes=self.device.usable_bytes(),
            used_bytes=0,
            state=CardState.BUSY if self.rendering else CardState.IDLE,
            family=self.worker.family,
            steps={attempt_id: clip.steps for attempt_id, clip in self.clips.items()},
        )


@dataclass
class Pool:
    """A `RendererPool` of workers in this process; they take turns, as the process has one card lock."""

    cards: dict[str, Card]
    truth: Truth
    drawn: random.Random
    foreign_often: float = FOREIGN_OFTEN
    #: Layouts that ran out of memory on a card of their own, and on one that another program took a part of.
    ooms: int = 0
    squeezed: int = 0
    #: How often another program came.
    foreign: int = 0

    async def fate(self, renderer: str) -> Fate | None:
        """Nothing becomes of them."""
        return None

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        """See `cluster.dispatch.dispatcher.RendererPool`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        card = self.cards[assignment.renderer]
        came = False
        comes = self.drawn.random() < self.foreign_often
        workspace = self.drawn.uniform(0, WORKSPACE)

        def emit(event: Event) -> None:
            # In the thread that renders, holding the card.
            nonlocal came
            if isinstance(event, StepDone) and event.step == 0:
                self._set_up(card, assignment.spec, workspace)
            if isinstance(event, StepDone) and event.step == 1 and comes and not card.device.foreign_bytes:
                card.device.foreign_bytes = round(FOREIGN * ROOM_BYTES[assignment.card_class])
                self.foreign, came = self.foreign + 1, True
            if isinstance(event, CardFree):
                card.device.foreign_bytes = 0
            loop.call_soon_threadsafe(events.put_nowait, event)

        clip = card.clips[assignment.attempt_id] = ActiveClip(assignment, emit)
        card.rendering = True
        work = asyncio.create_task(asyncio.to_thread(card.worker.run, clip))
        work.add_done_callback(lambda task: events.put_nowait(task.result()))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Ended):
                    failed = sum(peak.out_of_memory for peak in event.peaks)
                    if came:
                        self.squeezed += failed
                    else:
                        self.ooms += failed
                if isinstance(event, Ended | CardFree):
                    card.rendering = False
                if isinstance(event, Ended):
                    card.device.foreign_bytes = 0
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            clip.stop()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(work)
            card.clips.pop(assignment.attempt_id, None)

    def _set_up(self, card: Card, spec: ClipSpec, workspace: float) -> None:
        from pipeline.devices.emulated import HiddenMemory

        card.device.hidden = HiddenMemory(
            factor=self.truth.factor(spec, card.worker.identity.kind), workspace=workspace
        )


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one pass over the grid showed."""

    clips: int
    done: int
    #: Not done although some card really holds it.
    missed: tuple[str, ...]
    #: Ended by an OOM, as a user would see it.
    failed_by_oom: int
    #: Layouts that ran out of memory: by themselves, and by another program's doing.
    ooms: int
    squeezed: int
    #: Attempts that began.
    attempts: int
    foreign: int
    seconds: float


class Forgetful(DispatchStore):
    """A dispatcher's store that measures and never learns."""

    def memory_estimates(self) -> MemoryEstimates:
        """None."""
        return MemoryEstimates()


async def play(
    home: Path,
    classes: Sequence[str],
    shapes: Sequence[tuple[ResolutionClass, int]],
    *,
    rounds: int,
    copies: int,
    seed: int,
    learns: bool = True,
    foreign_often: float = FOREIGN_OFTEN,
) -> list[Round]:
    """Render `shapes` so many times on one card of each class, round after round with one store in `home`."""
    truth = Truth(seed)
    storage = Storage(home / "storage")
    weights = WeightsPlace(home=home, folders={}, offline=True)
    cards = {}
    for card_class in classes:
        device = make_card(card_class)
        worker = Worker(
            CardIdentity(card=f"card-{card_class}", card_class=card_class, kind=kind_of(card_class)),
            device,
            storage,
            weights,
            every=CheckpointEvery(steps=1),
            memory_wait=MemoryWait(patience_s=0.2, poll_s=0.05),
        )
        cards[f"card-{card_class}"] = Card(worker, device)
    database = Database(f"sqlite:///{home / 'store.db'}")
    database.migrate()
    still = storage.put_still(_still())
    fleet = Fleet(usable_bytes={name: cards[f"card-{name}"].device.usable_bytes() for name in classes})
    pool = Pool(cards, truth, random.Random(seed), foreign_often)
    timing = Timing(poll_s=0.05, renew_s=0.2, lease_s=600, silent_s=600)
    dispatcher = Dispatcher(
        DispatchStore(database) if learns else Forgetful(database),
        pool,
        fleet,
        holder="grid",
        clock=time.monotonic,
        timing=timing,
        storage=storage,
    )
    running = asyncio.create_task(dispatcher.run())
    beating = asyncio.create_task(_beat(dispatcher, cards))
    batch_store = BatchStore(database)
    found = []
    try:
        for turn in range(rounds):
            began, before = time.monotonic(), (pool.ooms, pool.squeezed, pool.foreign)
            specs = [shape(*one, seed=turn * copies + copy) for copy in range(copies) for one in shapes]
            batch_id, _ = batch_store.open_batch("local", name=f"round {turn + 1}")
            batch_store.add("local", batch_id, list(_drafts(specs, still)))
            batch_store.seal("local", batch_id)
            dispatcher.nudge()
            while not batch_store.batch("local", batch_id).done:
                if running.done():
                    running.result()
                    raise RuntimeError("the dispatcher left office")
                await asyncio.sleep(0.05)
            jobs = batch_store.jobs("local", batch_id)
            attempts = batch_store.attempts_of("local", batch_id)
            fitting = {job.id for job in jobs if job.spec and any(truth.fits(job.spec, name) for name in classes)}
            failed = [job for job in jobs if job.clip_id is None]
            found.append(
                Round(
                    clips=len(jobs),
                    done=len(jobs) - len(failed),
                    missed=tuple(
                        f"{job.name}: {job.problems[0].message if job.problems else job.reason}"
                        for job in failed
                        if job.id in fitting
                    ),
                    failed_by_oom=sum(job.reason == "out_of_memory" for job in failed),
                    ooms=pool.ooms - before[0],
                    squeezed=pool.squeezed - before[1],
                    attempts=sum(a.outcome is not Outcome.TOO_BIG for a in attempts),
                    foreign=pool.foreign - before[2],
                    seconds=round(time.monotonic() - began, 1),
                )
            )
    finally:
        await dispatcher.stop(0)
        await running
        beating.cancel()
        for card in cards.values():
            card.worker.close()
        database.close()
    return found


async def _beat(dispatcher: Dispatcher, cards: dict[str, Card]) -> None:
    while True:
        for card in cards.values():
            for attempt_id, verdict in dispatcher.beat(card.beat()).items():
                if verdict is not Verdict.GO_ON and (clip := card.clips.get(attempt_id)):
                    clip.preempt() if verdict is Verdict.CHECKPOINT else clip.stop()
        await asyncio.sleep(0.05)


def _drafts(specs: Iterable[ClipSpec], still: str) -> Iterable[Draft]:
    for number, spec in enumerate(specs, start=1):
        yield Draft(
            number=number,
            name=f"{spec.resolution_class} × {spec.frames}",
            row={},
            still=still,
            spec=spec,
            content_key=content_key(still, spec),
            needs_bytes=footprint(spec).peak_bytes,
        )


def _still() -> bytes:
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(out, "PNG")
    return out.getvalue()


#: Colours of the plot.
_LEARNS, _FORGETS = "#3b6ea8", "#b9b9b9"


def plot(learning: Sequence[Round], forgetting: Sequence[Round]) -> str:
    """Layouts that ran out of memory, round by round, as an SVG bar chart; both farms' bars side by side."""
    width, height, left, bottom = 480, 290, 40, 230
    most = max(1, *(one.ooms for one in (*learning, *forgetting)))
    gap = (width - left - 20) / len(learning)
    bars = []
    for i, pair in enumerate(zip(learning, forgetting, strict=True)):
        for k, (one, colour) in enumerate(zip(pair, (_LEARNS, _FORGETS), strict=True)):
            tall = 150 * one.ooms / most
            x = left + gap * (i + 0.16 + 0.35 * k)
            bars.append(
                f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" width="{gap * 0.33:.1f}" height="{tall:.1f}" '
                f'fill="{colour}"/><text x="{x + gap * 0.165:.1f}" y="{bottom - tall - 5:.1f}" '
                f'text-anchor="middle">{one.ooms}</text>'
            )
        bars.append(
            f'<text x="{left + gap * (i + 0.5):.1f}" y="{bottom + 18}" text-anchor="middle">round {i + 1}</text>'
        )
    legend = "".join(
        f'<rect x="{x}" y="36" width="11" height="11" fill="{colour}"/><text x="{x + 17}" y="46">{text}</text>'
        for x, colour, text in ((left, _LEARNS, "a farm that learns"), (left + 150, _FORGETS, "one that forgets"))
    )
    every = (*learning, *forgetting)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{left}" y="24" font-size="14">Layouts that ran out of memory, {learning[0].clips} clips a round'
        f'</text>{legend}<line x1="{left}" y1="{bottom}" x2="{width - 20}" y2="{bottom}" stroke="#333"/>{"".join(bars)}'
        f'<text x="{left}" y="{bottom + 44}" fill="#555">{sum(one.done for one in every)} of '
        f"{sum(one.clips for one in every)} clips done; {sum(one.failed_by_oom for one in every)} failed by an OOM"
        "</text></svg>\n"
    )


def options() -> argparse.ArgumentParser:
    """Command line."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--copies", type=int, default=2, help="clips of each shape a round")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--plot", type=Path, metavar="FILE", help="write the OOMs of each round here, as SVG")
    return made


def main() -> int:
    """Play the rounds and judge them."""
    chosen = options().parse_args()
    classes = [name for name in NOMINAL_BYTES if NOMINAL_BYTES[name] <= NOMINAL_BYTES["c80"]]
    shapes = [(size, frames) for size in ResolutionClass for frames in FRAMES]
    rounds, forgetting = (
        _fresh(classes, shapes, rounds=chosen.rounds, copies=chosen.copies, seed=chosen.seed, learns=learns)
        for learns in (True, False)
    )
    if chosen.plot:
        chosen.plot.write_text(plot(rounds, forgetting), encoding="utf-8")
    figures: dict[str, Any] = {
        f"{name}, round {i}": (
            f"{one.done} of {one.clips} clips done in {one.attempts} attempts, {one.ooms} OOMs and {one.squeezed} by "
            f"another program, which came {one.foreign} times; {one.seconds} s"
        )
        for name, played in (("learning", rounds), ("forgetting", forgetting))
        for i, one in enumerate(played, start=1)
    }
    every = [*rounds, *forgetting]
    if missed := [name for one in every for name in one.missed]:
        figures["not done"] = "; ".join(missed)
    aims = [
        Aim(name="clips not done that fit some card", value=float(len(missed)), at_most=0.0),
        Aim(name="clips that failed by an OOM", value=float(sum(one.failed_by_oom for one in every)), at_most=0.0),
    ]
    if len(rounds) > 1:
        share = rounds[-1].ooms / max(1, rounds[0].ooms)
        aims.append(Aim(name="OOMs of the last round for each of the first", value=share, at_most=0.5))
    return Report(name="oom_grid", figures=figures, aims=aims).finish(chosen)


def _fresh(classes: Sequence[str], shapes: Sequence[tuple[ResolutionClass, int]], **how: Any) -> list[Round]:
    with tempfile.TemporaryDirectory() as home:
        return asyncio.run(play(Path(home), classes, shapes, **how))


if __name__ == "__main__":
    sys.exit(main())
