"""What placement would do with a job if something were different. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from cluster.estimates.times import TimeEstimates
from cluster.explain.look_ahead import look_ahead
from cluster.explain.model import Known
from cluster.fleet.cards import Card
from cluster.jobs.model import Job
from cluster.scheduling.eligible import expected_bytes
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Snapshot, Start
from pipeline.clips.clip import ClipSpec
from pipeline.families import family_named
from pipeline.memory.footprint import footprint


def start_of(job: Job, snapshot: Snapshot, now: float) -> Card | None:
    """The card that placement starts `job` on; None where it does not."""
    for decision in place(snapshot, now):
        if isinstance(decision, Start) and decision.job.id == job.id:
            return decision.card
    return None


def with_job(snapshot: Snapshot, job: Job) -> Snapshot:
    """`snapshot` with `job` waiting as it is now, once."""
    others = [other for other in snapshot.waiting if other.id != job.id]
    return replace(snapshot, waiting=[*others, job])


class Trial:
    """A job that waits, and its farm. Whatever is tried is tried on a changed snapshot, by placement itself."""

    def __init__(self, job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known) -> None:
        """`now` in UTC epoch seconds. A plan in `snapshot` is left out: it is for the farm as it is."""
        self.job, self.now, self.estimates, self.known = job, now, estimates, known
        self.snapshot = with_job(replace(snapshot, plan=None), job)
        #: All cards, by id.
        self.cards = {card.card: card for card in self.snapshot.cards}
        #: Cards in use that are idle.
        self.idle = [card for card in self.snapshot.cards if card.idle and card.card not in self.snapshot.locked]

    def start(self, snapshot: Snapshot, job: Job | None = None) -> Card | None:
        """The card on which the job, or `job` in its place, starts in `snapshot`; None where it does not."""
        return start_of(job or self.job, snapshot if job is None else with_job(snapshot, job), self.now)

    def ahead(self, snapshot: Snapshot, job: Job | None = None, by: float = math.inf) -> tuple[float, Card] | None:
        """(when, on which card) the job, or `job` in its place, starts by itself before `by`; None: not to be told."""
        job = job or self.job
        return look_ahead(job, with_job(snapshot, job), self.now, self.estimates, self.known, by=by)

    def fits(self, card: Card) -> bool:
        """Whether the job fits `card` as it is, busy or not."""
        return card.usable_bytes >= expected_bytes(self.job, card.kind, self.snapshot.memory, card.capability)


def first_needs(spec: ClipSpec, largest_bytes: int) -> int | None:
    """Bytes of the first layout that fits a card of `largest_bytes`, as the dispatcher lays clips out; None: none."""
    peaks = (footprint(spec, layout).peak_bytes for layout in family_named(spec.family).layouts)
    return next((peak for peak in peaks if peak <= largest_bytes), None)
