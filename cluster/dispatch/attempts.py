"""What happens to one attempt, from its claim to its completion in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from cluster.dispatch.card_orders import CardOrders
from cluster.dispatch.checkpoint_gc import CheckpointGc
from cluster.dispatch.completion import CompletionQueue
from cluster.dispatch.deaths import Deaths
from cluster.dispatch.estimates import EstimateReader
from cluster.dispatch.protocol import (
    Assignment,
    CardFree,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    RendererDiedError,
    RendererLostError,
    RendererPool,
    StepDone,
)
from cluster.dispatch.retry import INTERACTIVE, STORAGE
from cluster.dispatch.roster import Roster, RunningAttempt
from cluster.dispatch.storage_watch import StorageWatch
from cluster.estimates.kernels import kernels_about
from cluster.fleet.breakers import Breakers, Route, blame
from cluster.jobs.model import Job, Outcome, StoredCheckpoint, checkpoints_of
from cluster.jobs.outcomes import ENDINGS, MADE_ROOM, Crashed, Ended, Errored, Stopped
from cluster.store import Claim, StaleEpochError

log = logging.getLogger("clipmill.dispatcher")


class AttemptRunner:
    """Runs claimed jobs, each in a task of its own:

    1. `launch` puts the attempt on the roster;
    2. its renderer is called, and its stream of events followed to the last one; whatever breaks it off (an interrupt,
       a renderer that died or is lost) becomes an `Ended` of its own. A row that may be what its renderers died of is
       rendered alone: it waits until what is encoded there has ended, and the card is free when it has ended itself;
    3. breakers and quarantine hear what the end says of the card;
    4. `complete` writes the end and what follows from it (`retry.after_attempt`), and deletes checkpoints that nothing
       goes on from;
    5. the attempt is off the roster, and its card free.
    """

    def __init__(
        self,
        pool: RendererPool,
        roster: Roster,
        clock: Callable[[], float],
        *,
        breakers: Breakers,
        card_orders: CardOrders,
        completions: CompletionQueue,
        checkpoints: CheckpointGc,
        estimates: EstimateReader,
        storage_watch: StorageWatch,
        on_step: Callable[[RunningAttempt], None],
        on_card_free: Callable[[], None],
    ) -> None:
        """`clock` in seconds. `on_step`: an attempt did a step. `on_card_free`: a card can take the next clip."""
        self._pool, self._roster, self._clock = pool, roster, clock
        self._breakers, self._card_orders, self._completions = breakers, card_orders, completions
        self._checkpoints, self._estimates = checkpoints, estimates
        self._storage_watch = storage_watch
        self._on_step, self._on_card_free = on_step, on_card_free
        #: What becomes of attempts whose renderer cannot be reached any more.
        self.deaths = Deaths(pool, roster, clock)

    def launch(self, claim: Claim, route: Route | None) -> None:
        """Run a claimed job. `route`: what its breaker is about; None where its card is gone."""
        if route is not None:
            self._breakers.started(route, claim.attempt_id)
        attempt = RunningAttempt(
            claim=claim,
            steps=(claim.resumed_step, claim.job.spec.total_steps if claim.job.spec else 0),
            resumed_step=claim.resumed_step,
            route=route,
            moved_at=self._clock(),
            alone=self.deaths.suspects(claim.job),
        )
        self._roster.add(attempt)
        attempt.task = asyncio.create_task(self._run(attempt))

    async def complete(self, claim: Claim, ended: Ended) -> None:
        """Write how an attempt ended, and delete the checkpoints that its job does not go on from.

        Raises what the store raises about this attempt.
        """
        written = await self._completions.write(claim, ended)
        job, transition = written.job, written.transition
        if written.counts and transition.state.final:
            self.deaths.forget(job.id)
        if ended.peaks or ended.kernel_runs:
            # Once they are in the store, not before: measurements may be read meanwhile.
            self._estimates.outdate()
        if not written.counts:
            log.warning("attempt %s ended twice; the second end (%s) is void", claim.attempt_id, ended.outcome)
        elif not transition.state.final:
            # The objects of a job that has ended are swept by its prefix.
            known = {checkpoint.key for checkpoint in (job.checkpoint, ended.checkpoint) if checkpoint}
            if transition.keeps_checkpoint and (kept := ended.checkpoint or job.checkpoint):
                known.discard(kept.key)
            await self._checkpoints.discard(*known)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Tasks of the running attempts."""
        return [attempt.task for attempt in self._roster.running.values() if attempt.task is not None]

    async def _run(self, attempt: RunningAttempt) -> None:
        claim = attempt.claim
        ended = await self._until_ended(attempt)
        attempt.completing = True
        if isinstance(ended, Errored) and ended.storage and await self._storage_watch.confirms():
            ended = Stopped(
                cause=STORAGE, detail=ended.detail, measured_bytes=ended.measured_bytes, checkpoint=ended.checkpoint
            )
        if ended.sticky or isinstance(ended, Crashed):
            # What becomes of its process from here on is this clip's doing.
            for other in self._roster.of_renderer(claim.renderer):
                other.doomed = True
        if ended.sticky:
            # It is about to exit, and must get nothing more until its successor is heard.
            self._roster.drop(claim.renderer)
        if attempt.route is not None:
            self._breakers.ended(attempt.route, claim.attempt_id, claim.job.id, blame(ended))
        if isinstance(ended, Stopped) and ended.cause != STORAGE:
            ended = replace(ended, cause=attempt.preempting or "drain")
            if ended.cause == INTERACTIVE:
                # What was lost with it, if anything was, is in the renderer's own words.
                ended = replace(ended, detail=f"{MADE_ROOM} ({ended.detail or 'told to stop'})")
        own = ended.checkpoint if _is_own(claim, ended.checkpoint) else None
        ended = replace(ended, resumed_step=attempt.resumed_step, checkpoint=own or attempt.checkpoint)
        try:
            await self._card_orders.blame(claim, ended)
            await self.complete(claim, ended)
        except StaleEpochError:
            log.warning("attempt %s ended under a closed epoch; its job is with the next dispatcher", claim.attempt_id)
        except Exception:
            # Nobody renews its lease any more, so the job comes back by itself.
            log.exception("the end of attempt %s (%s) could not be written", claim.attempt_id, ended.outcome)
        finally:
            self._roster.remove(attempt)
            self._free_card(attempt)

    async def _until_ended(self, attempt: RunningAttempt) -> Ended:
        """How an attempt ends, whatever ends it. Does not raise."""
        claim = attempt.claim
        attempt.began = True
        try:
            if attempt.stop is not None:
                raise asyncio.CancelledError
            return await self._follow(attempt)
        except asyncio.CancelledError:
            return attempt.fate or ENDINGS[attempt.stop or Outcome.STOPPED](detail=attempt.stop_detail)
        except Exception as error:
            log.exception("attempt %s broke in the dispatcher", claim.attempt_id)
            return Errored(detail=f"{type(error).__name__}: {error}")

    async def _follow(self, attempt: RunningAttempt) -> Ended:
        """Call the renderer and follow its events to the last, the `Ended`, or until it is known what became of it."""
        try:
            return await self._events(attempt)
        except RendererDiedError as died:
            return self.deaths.declare(attempt, str(died))
        except RendererLostError as lost:
            return await self.deaths.fate_of(attempt, lost)

    async def _events(self, attempt: RunningAttempt) -> Ended:
        """Follow the renderer's events to the last, the `Ended`. Raises what the pool raises."""
        if attempt.alone:
            await self._until_alone(attempt)
        stream = self._pool.render(self._assignment(attempt.claim, attempt.claim.job))
        try:
            async for event in stream:
                attempt.moved_at = self._clock()
                if isinstance(event, Ended):
                    return self._roster.timed(attempt, event)
                self._take(attempt, event)
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()
        raise RendererLostError("the stream ended without a result")

    async def _until_alone(self, attempt: RunningAttempt) -> None:
        """Wait until no other attempt is at the renderer: its card is this one's, so no new one comes."""
        # Of a death meanwhile it can be no cause.
        attempt.refused = True
        there = self._roster.of_renderer
        while others := [one.task for one in there(attempt.claim.renderer) if one.task and one is not attempt]:
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            attempt.moved_at = self._clock()
        if attempt.fate is not None:
            raise RendererLostError("its renderer died before it was called", accepted=False)
        attempt.refused = False

    def _assignment(self, claim: Claim, job: Job) -> Assignment:
        assert job.spec is not None
        assert job.still is not None
        assert job.content_key is not None
        return Assignment(
            attempt_id=claim.attempt_id,
            job_id=job.id,
            renderer=claim.renderer,
            card_class=claim.card_class,
            owner=job.owner,
            still=job.still,
            spec=job.spec,
            content_key=job.content_key,
            row=job.row,
            resume=claim.resume,
            done=claim.done,
            lessons=self._estimates.memory.about(job.spec, claim.kind),
            kernels=kernels_about(self._estimates.times, job.spec, claim.kind),
        )

    def _take(self, attempt: RunningAttempt, event: Event) -> None:
        claim = attempt.claim
        match event:
            case CardFree():
                # Its frames are there: stopping it would gain nothing.
                attempt.preempting = ""
                self._roster.note_card_free(attempt)
                if not attempt.alone:
                    self._free_card(attempt)
            case StepDone():
                attempt.loaded = True
                attempt.watch.step(event.step, self._clock())
                if event.step < attempt.resumed_step:
                    # The checkpoint was refused.
                    attempt.resumed_step, attempt.steps = 0, (event.step, event.steps)
                attempt.steps = max(attempt.steps, (event.step, event.steps))
                self._on_step(attempt)
            case CheckpointSaved():
                if _is_own(claim, event.checkpoint):
                    attempt.checkpoint = event.checkpoint
            case CheckpointFailed():
                log.warning("attempt %s has no checkpoint at step %d: %s", claim.attempt_id, event.step, event.detail)

    def _free_card(self, attempt: RunningAttempt) -> None:
        self._roster.free_card(attempt, by_itself=attempt.stop is None)
        self._on_card_free()


def _is_own(claim: Claim, checkpoint: StoredCheckpoint | None) -> bool:
    # What is recorded is deleted one day: no renderer may name anything but what it put aside itself.
    return checkpoint is not None and checkpoint.key.startswith(f"{checkpoints_of(claim.job.id)}/{claim.attempt_id}/")
