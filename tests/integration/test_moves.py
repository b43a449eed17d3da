"""Clips that move between cards in the tail of a batch: the real dispatcher, placement and store in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import sqlalchemy as sa

from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.dispatch.protocol import Assignment, CardFree, Event, Fate, StepDone, Verdict
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat, CardState, Fleet
from cluster.jobs.model import JobState, StoredCheckpoint, checkpoint_key
from cluster.jobs.outcomes import Completed, Stopped
from cluster.scheduling.tail.planner import Planner
from cluster.simulation.clock import Inline, VirtualLoop, run_virtually
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.schema import attempts
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.memory.footprint import footprint
from tests.building import draft, objects, spec

GIB = 2**30
BEAT_S = 0.5
#: Two fast cards and four slow ones: three long clips end soonest by taking turns on the fast ones.
CARDS = {
    "fast0": ("NVIDIA A100-SXM4-80GB", "c80", 71 * GIB),
    "fast1": ("NVIDIA A100-SXM4-80GB", "c80", 71 * GIB),
    **{f"slow{n}": ("NVIDIA L4", "c24", 21 * GIB) for n in range(4)},
}
FLEET = Fleet(usable_bytes={"c24": 21 * GIB, "c80": 71 * GIB})


class Pool:
    """Cards that take as long as expected, and do as the verdicts say."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[int, int]] = {}
        self.at: dict[str, str] = {}
        self.verdicts: dict[str, Verdict] = {}
        #: (job, card, steps) of every piece that was rendered.
        self.pieces: list[tuple[str, str, int, int]] = []
        self.estimates = TimeEstimates()

    def beats(self) -> list[Beat]:
        return [
            Beat(
                renderer=name, card=name, card_class=card_class, kind=kind, total_bytes=usable, usable_bytes=usable,
                used_bytes=0, state=CardState.BUSY if name in self.at.values() else CardState.IDLE, family="i2vgen-xl",
                steps={a: self.steps[a] for a, card in self.at.items() if card == name},
            )
            for name, (kind, card_class, usable) in CARDS.items()
        ]  # fmt: skip

    async def fate(self, renderer: str) -> Fate | None:
        return None

    async def render(self, assignment: Assignment) -> AsyncIterator[Event]:
        kind, _, usable = CARDS[assignment.renderer]
        of, attempt, total = assignment.spec, assignment.attempt_id, assignment.spec.total_steps
        first = assignment.resume.step if assignment.resume else 0
        decode_s = self.estimates.clip_seconds(of, kind, usable_bytes=usable, from_step=total)
        step_s = (self.estimates.clip_seconds(of, kind, usable_bytes=usable, from_step=1) - decode_s) / (total - 1)
        self.at[attempt], self.steps[attempt] = assignment.renderer, (first, total)
        done = first
        try:
            yield StepDone(step=first, steps=total)
            while done < total:
                if self.verdicts.get(attempt) is Verdict.CHECKPOINT:
                    saved = StoredCheckpoint(checkpoint_key(assignment.job_id, attempt, done), done)
                    yield Stopped(checkpoint=saved, resumed_step=first)
                    return
                await asyncio.sleep(step_s)
                done += 1
                self.steps[attempt] = (done, total)
                yield StepDone(step=done, steps=total)
            await asyncio.sleep(decode_s)
            yield CardFree()
            yield Completed(objects=objects(attempt), resumed_step=first)
        finally:
            self.pieces.append((assignment.job_id, assignment.renderer, first, done))
            self.at.pop(attempt, None)


def clip() -> ClipSpec:
    return spec(
        "i2vgen-xl", resolution_class=ResolutionClass.P1024, width=1024, height=1024, frames=16, steps=80, guidance=9.0
    )


def rendered(*, planned: bool) -> tuple[float, Pool, list[sa.Row]]:
    """(virtual seconds that three long clips take, what the cards did, the attempts in the store)."""

    async def go(loop: VirtualLoop) -> tuple[float, Pool, list[sa.Row]]:
        database, pool = Database("sqlite://", clock=loop.time), Pool()
        database.migrate()
        try:
            batch_store = BatchStore(database)
            batch_id, _ = batch_store.open_batch("local", name="finals")
            of = clip()
            batch_store.add(
                "local", batch_id, [draft(n, spec=of, needs_bytes=footprint(of).peak_bytes) for n in (1, 2, 3)]
            )
            batch_store.seal("local", batch_id)
            began = loop.time()
            dispatcher = Dispatcher(
                DispatchStore(database), pool, FLEET, holder="test", clock=loop.time, wall=loop.time,
                timing=Timing(poll_s=BEAT_S), executor=Inline(),
                planner=Planner(TimeEstimates(), variants=2) if planned else None,
            )  # fmt: skip
            for beat in pool.beats():
                dispatcher.beat(beat)
            running = loop.create_task(dispatcher.run())
            while not batch_store.batch("local", batch_id).done:
                for beat in pool.beats():
                    pool.verdicts |= dispatcher.beat(beat)
                await asyncio.sleep(BEAT_S)
            took = loop.time() - began
            await dispatcher.stop(0)
            await running
            assert batch_store.batch("local", batch_id).counts[JobState.COMPLETED] == 3
            with database.read() as c:
                return took, pool, list(c.execute(sa.select(attempts).order_by(attempts.c.started_at)))
        finally:
            database.close()

    return run_virtually(go)


def test_clips_take_turns_on_the_fast_cards():
    still_s, still, _ = rendered(planned=False)
    moved_s, moved, rows = rendered(planned=True)
    assert all(first == 0 for _, _, first, _ in still.pieces), "nothing moves unless it is planned"
    assert moved_s < 0.75 * still_s, (moved_s, still_s)
    # Every step was done once, whichever card did it.
    for job in {job for job, _, _, _ in moved.pieces}:
        pieces = sorted((first, last) for other, _, first, last in moved.pieces if other == job)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == 80
        assert all(one[1] == two[0] for one, two in pairwise(pieces)), pieces
    # A move costs no attempt, and is told as what it is.
    assert len(rows) == len(moved.pieces) > 3
    assert {row.outcome for row in rows} == {"completed", "stopped"}
    assert sum(row.outcome == "completed" for row in rows) == 3
