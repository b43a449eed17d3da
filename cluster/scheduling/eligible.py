"""Which cards can have a job: by its memory, by what was measured of clips like it, and by breakers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from cluster.estimates.memory import ELSEWHERE, MemoryEstimates, key_of
from cluster.fleet.breakers import route_of
from cluster.fleet.cards import Card, Fleet
from cluster.jobs.model import Job
from cluster.scheduling.snapshot import Snapshot
from pipeline.clips.clip import ClipSpec
from pipeline.families import family_named
from pipeline.memory.footprint import Footprint, footprint, leanest, plan

#: All of a clip that may say something of the memory it takes.
_shape = attrgetter(*(name for name in ClipSpec.model_fields if name not in ("prompt", "negative_prompt", "seed")))


#: More bytes than any card has.
NOWHERE = 2**62


def lacks(job: Job, capability: tuple[int, int] | None) -> bool:
    """Whether a card of this compute capability cannot compute `job`, whatever memory it has; None: not known."""
    least = family_named(job.spec.family).least_capability if job.spec is not None else None
    return least is not None and capability is not None and tuple(capability) < least


def expected_bytes(job: Job, kind: str, memory: MemoryEstimates, capability: tuple[int, int] | None = None) -> int:
    """What a card of `kind` must have usable for `job`: its `needs_bytes`, as far as nothing better is known.

    `NOWHERE` where cards of its `capability` cannot compute it. A need that is a prediction is corrected by what was
    measured, upwards or downwards; one that was raised after an attempt failed is never lowered.
    """
    if lacks(job, capability):
        return NOWHERE
    if not memory.measured or job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return job.needs_bytes
    layout, predicted = planned
    corrected = memory.corrected(predicted, key_of(job.spec, layout, kind), layout)
    return corrected if _is_prediction(job, predicted) else max(job.needs_bytes, corrected)


def can_relax(job: Job) -> bool:
    """Whether `job` may be given a leaner layout than the one that its `needs_bytes` are predicted for."""
    if job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return False
    return _is_prediction(job, planned[1]) and leanest(job.spec)[1].peak_bytes < job.needs_bytes


def leaner_bytes(spec: ClipSpec, needs_bytes: int, fleet: Fleet) -> int | None:
    """Bytes of the fastest layout that takes less than `needs_bytes` and that a class of the fleet holds; or None."""
    peaks = (footprint(spec, layout).peak_bytes for layout in family_named(spec.family).layouts)
    return next((peak for peak in peaks if peak < needs_bytes and fleet.smallest_class_for(peak)), None)


def _is_prediction(job: Job, predicted: Footprint) -> bool:
    return job.needs_bytes == predicted.peak_bytes


class EligibleCards:
    """What the jobs of one snapshot need of its cards. Answers are kept: alike jobs are asked about many times."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._memory, self._blocked, self._fleet = snapshot.memory, snapshot.blocked, snapshot.fleet
        self._all = snapshot.card_index.all
        self._kinds = tuple(sorted(self._all.largest))
        #: Needs of each job that was looked at; exceptions among them: experience may be wrong and refuses nothing.
        self._needs_of_job: dict[str, Mapping[str, int]] = {}
        #: Whether needs fit any card, by the identity of the needs.
        self._fits: dict[int, bool] = {}

    def needs_of(self, job: Job) -> Mapping[str, int]:
        """Bytes that a card must have usable for `job`, by card kind; the same object for all jobs that are alike."""
        if (known := self._needs_of_job.get(job.id)) is None:
            known = self._needs_of_job[job.id] = self._needs_like(job)
        return known

    def fits_somewhere(self, job: Job) -> bool:
        """Whether `job` fits a card that is there, in use or not."""
        needs = self.needs_of(job)
        # Needs are shared by all jobs that have the same, and live as long as this.
        if (known := self._fits.get(id(needs))) is None:
            known = self._fits[id(needs)] = self._all.fits(needs)
        return known

    def is_ruled_out_by_experience(self, job: Job) -> bool:
        """Whether `job`, which fits no card here, should fit one by prediction, and no absent class can be waited for.

        A class that is configured but has no card here is waited for where `job` fits it by experience.
        """
        able = [card for card in self._all.of_classes if not lacks(job, card.capability)]
        if all(card.usable_bytes < job.needs_bytes for card in able):
            return False
        present = {card.card_class for card in able}
        expected = expected_bytes(job, ELSEWHERE, self._memory)
        return not any(usable >= expected for name, usable in self._fleet.usable_bytes.items() if name not in present)

    def is_promised_in_vain(self, job: Job) -> bool:
        """Whether `job`, which fits no card here, waits for a class whose cards are here and smaller than promised.

        Some cards have less than others of their class: those with ECC in their memory, or with a display on them.
        """
        named = self._fleet.smallest_class_for(job.needs_bytes)
        return any(
            card.card_class == named and card.usable_bytes > 0 and not lacks(job, card.capability)
            for card in self._all.of_classes
        )

    def try_largest(self, job: Job) -> None:
        """From now on `job` fits the largest card that is there, whatever was measured, and no smaller one."""
        able = [card for card in self._all.of_classes if not lacks(job, card.capability)]
        most = max(card.usable_bytes for card in able if card.usable_bytes >= job.needs_bytes)
        kinds = {card.kind for card in able}
        self._needs_of_job[job.id] = {kind: most if kind in kinds else NOWHERE for kind in self._all.largest}

    def is_blocked(self, job: Job, card: Card) -> bool:
        """Whether an open breaker keeps clips like `job` from `card`."""
        blocked = self._blocked
        if not blocked or job.spec is None or all(route.card != card.card for route in blocked):
            return False
        return route_of(job.spec, card.card, card.usable_bytes) in blocked

    def is_able(self, job: Job, card: Card) -> bool:
        """Whether `job` fits `card` and no breaker keeps it away; the card may be busy."""
        return card.usable_bytes >= self.needs_of(job)[card.kind] and not self.is_blocked(job, card)

    def _needs_like(self, job: Job) -> Mapping[str, int]:
        memory, spec = self._memory, job.spec
        # Without measurements and breakers there is nothing to tell kinds or shapes apart by.
        shape = _shape(spec) if spec is not None and (memory.measured or self._blocked) else None
        lacking = tuple(kind for kind, found in self._all.capability.items() if lacks(job, found))
        key = (job.needs_bytes, shape, self._kinds, lacking)
        if (known := memory.answers.get(key)) is None:
            found = self._all.capability
            known = memory.answers[key] = {
                kind: expected_bytes(job, kind, memory, found.get(kind)) for kind in self._kinds
            }
        return known
