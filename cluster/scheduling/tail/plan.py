"""The plan of a batch's tail in the words of jobs and cards: who is next on a card, and who leaves it when. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """Steps `first` to `last` (exclusive) of a job, done in one go on one card."""

    job: str
    card: str
    first: int
    last: int
    #: When it was expected to begin and to end, on the clock of whoever planned.
    begins_at: float = field(default=0.0, compare=False)
    ends_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class TailPlan:
    """Which card does which steps of which job. Steps count from a job's beginning, so a late card changes nothing."""

    #: In order: those of a job and those of a card both follow each other as listed.
    parts: Sequence[PlannedPart]
    #: When the last job was expected to end.
    ends_at: float = 0.0

    @cached_property
    def jobs(self) -> frozenset[str]:
        """Ids of the jobs that are planned."""
        return frozenset(part.job for part in self.parts)

    @cached_property
    def of_job(self) -> Mapping[str, Sequence[PlannedPart]]:
        """Parts of each job, in order."""
        found: dict[str, list[PlannedPart]] = defaultdict(list)
        for part in self.parts:
            found[part.job].append(part)
        return found

    @cached_property
    def of_card(self) -> Mapping[str, Sequence[PlannedPart]]:
        """Parts on each card, in order."""
        found: dict[str, list[PlannedPart]] = defaultdict(list)
        for part in self.parts:
            found[part.card].append(part)
        return found

    def part_of(self, job: str, step: int) -> PlannedPart | None:
        """The part of a job that its next step belongs to; its last one where all steps are done."""
        parts = self.of_job.get(job, ())
        return next((part for part in parts if step < part.last), parts[-1] if parts else None)

    def next_on(self, card: str, steps: Mapping[str, int]) -> PlannedPart | None:
        """The first part on `card` that is not done; `steps` are those done of every job that has not ended."""
        for part in self.of_card.get(card, ()):
            if (step := steps.get(part.job)) is not None and self.part_of(part.job, step) == part:
                return part
            if step is not None and step < part.first:
                return part
        return None

    def is_turn(self, part: PlannedPart, step: int) -> bool:
        """Whether a job with `step` steps done is to go on with `part`."""
        return self.part_of(part.job, step) == part

    def leaves_for(self, job: str, card: str, steps: Mapping[str, int]) -> str | None:
        """The card on which a job that runs on `card` is to go on, once it has done its steps there; else None.

        It can be the same card, where another job is to have a turn between.
        """
        part = self.part_of(job, steps[job])
        if part is None or (part.card == card and self.next_on(card, steps) == part):
            return None
        return part.card
