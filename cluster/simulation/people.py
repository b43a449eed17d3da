"""What people do in a simulated farm: they hand batches in, cancel, give commands and take them back."""

from __future__ import annotations

import logging
import random
from functools import partial

from cluster.jobs.commands import CardVerb
from cluster.jobs.model import Draft, stored_priority
from cluster.jobs.transitions import RefusedError, Verb
from cluster.simulation.journal import JobTruth, What
from cluster.simulation.scenario import BatchPlan, JobPlan, PlannedCommand, least_bytes
from cluster.simulation.world import World
from cluster.store import BatchStore, Database
from cluster.store.commands import CommandStore
from pipeline.families import FAMILIES

log = logging.getLogger("clipmill.simulator")


class People:
    """Everyone who uses the farm. They speak to its store, and to dispatchers only to nudge them."""

    def __init__(self, world: World, database: Database, rng: random.Random) -> None:
        self._world, self._scenario, self._rng = world, world.scenario, rng
        self._batch_store, self._verbs = BatchStore(database), CommandStore(database)
        #: Owner and id of each batch of the scenario that was handed in, by its number.
        self._batches: dict[int, tuple[str, str]] = {}

    def hand_in(self) -> None:
        """Submit the scenario's batches, each at its time."""
        for batch in self._scenario.batches:
            self._world.at(batch.at, partial(self._submit, batch))

    def command(self) -> None:
        """Give the scenario's commands, each at its time, and take them back."""
        for command in self._scenario.commands:
            self._world.at(command.at, partial(self._give, command))

    def _submit(self, batch: BatchPlan) -> None:
        batch_id, _ = self._batch_store.open_batch(batch.owner, name="catalog")
        self._batches[self._scenario.batches.index(batch)] = (batch.owner, batch_id)
        for job in batch.jobs:
            self._world.plans[job.key] = job
        self._batch_store.add(batch.owner, batch_id, [_draft(n, job, batch) for n, job in enumerate(batch.jobs, 1)])
        self._batch_store.seal(batch.owner, batch_id)
        slowest = min(card.speed for card in self._scenario.cards)
        for made, plan in zip(self._batch_store.jobs(batch.owner, batch_id), batch.jobs, strict=True):
            steps = plan.spec.total_steps
            self._world.record.jobs[made.id] = JobTruth(
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
                interactive=batch.interactive,
            )
            self._world.note(What.SUBMITTED, job=made.id, step=steps, detail=plan.key)
        if batch.nudges:
            for process in self._world.dispatchers:
                if process.hears:
                    process.dispatcher.nudge()
        if batch.cancelled_at is not None:
            self._world.at(batch.cancelled_at, partial(self._cancel, batch.owner, batch_id))

    def _cancel(self, owner: str, batch_id: str) -> None:
        self._batch_store.cancel(owner, batch_id)
        for job in self._batch_store.jobs(owner, batch_id):
            self._world.note(What.CANCELLED, job=job.id, detail=job.state)

    def _give(self, command: PlannedCommand) -> None:
        # Taken back before everything is whole.
        back = min(command.at + command.seconds, self._scenario.heal_at - 0.1)
        if command.card:
            self._verbs.order(command.card, CardVerb(command.verb), reason="a simulated word")
            self._world.note(What.CLOSED, card=command.card, detail=str(command.verb))
            self._world.at(back, partial(self._open, command.card))
            return
        if (named := self._batches.get(command.batch)) is None:
            return
        owner, batch_id = named
        row = None if command.row is None else self._batch_store.jobs(owner, batch_id)[command.row].id
        if self._obeyed(owner, batch_id, row, Verb(command.verb), What.HELD) and command.verb is not Verb.PRIORITIZE:
            undo = Verb.APPROVE if command.verb is Verb.HOLD else Verb.RESUME
            self._world.at(back, partial(self._obeyed, owner, batch_id, row, undo, What.FREED))

    def _obeyed(self, owner: str, batch_id: str, row: str | None, verb: Verb, what: What) -> bool:
        """Give a command for a batch or one of its rows, and note it as `what`. Whether it could be obeyed."""
        try:
            if row is not None:
                self._verbs.job(owner, row, verb)
            else:
                self._verbs.batch(owner, batch_id, verb, priority=self._rng.randrange(-5, 10))
        except RefusedError as refused:
            log.info("%s", refused)
            return False
        if verb is not Verb.PRIORITIZE:
            for job in self._batch_store.jobs(owner, batch_id):
                if row in (None, job.id):
                    self._world.note(what, job=job.id, detail="row" if row else "batch")
        return True

    def _open(self, card: str) -> None:
        self._verbs.order(card, CardVerb.RELEASE)
        self._world.note(What.OPENED, card=card)


def _draft(number: int, job: JobPlan, batch: BatchPlan) -> Draft:
    return Draft(
        number=number,
        name=f"{job.key}/{number}",
        row={},
        still="ab" * 32,
        spec=job.spec,
        content_key=job.key,
        needs_bytes=job.needs_bytes,
        priority=stored_priority(job.priority, interactive=batch.interactive),
    )
