"""What whoever runs a farm hears of it: the rows that fail, and the cards that cannot be used."""

from __future__ import annotations

from sqlalchemy import exc

from cluster.farm import Farm
from cluster.jobs.model import Batch, JobState
from pipeline.units import format_rows
from serve.cli.show import faults_text


class FailureNotices:
    """Tells whoever runs a farm which batches have rows that failed since the last look, and of faults of cards.

    Also where another farm renders what the store has, and this one stands by.
    """

    def __init__(self, farm: Farm, name: str = "") -> None:
        """`name`: as the farm's own dispatcher calls the farm; empty: nothing is said of other farms."""
        self._farm, self._name = farm, name
        self._other = ""
        self._card_faults = ""
        self._failures = self._count()
        self._known = {batch.id: batch.counts[JobState.FAILED] for batch in self._batches()}

    def news(self) -> list[str]:
        """A line for each batch with new failures: how many, the last of them, and where all are.

        Before them, where that has changed, which farm renders, and which cards cannot be used and why.
        """
        lines = [*self._of_office(), *self._of_cards()]
        # Batches are counted where some row has failed, not at every look.
        before, self._failures = self._failures, self._count()
        if self._failures == before:
            return lines
        # What just failed is not among counts of a moment ago.
        self._farm.batch_store.kept_counts.forget()
        for batch in self._batches():
            failed = batch.counts[JobState.FAILED]
            if failed > self._known.get(batch.id, 0):
                lines.append(self._line(batch, failed))
            self._known[batch.id] = failed
        return lines

    def _of_office(self) -> list[str]:
        if not self._name:
            return []
        try:
            office = self._farm.batch_store.office()
        except exc.SQLAlchemyError:
            return []
        before, self._other = self._other, office.holder if office and office.bars(self._name) else ""
        if self._other == before:
            return []
        if not self._other:
            return ["the other farm has ended or fallen silent: this one renders now"]
        return [f"another farm ({self._other}) renders what this store has: this one stands by until that one ends"]

    def _of_cards(self) -> list[str]:
        try:
            words = faults_text([beat.model_dump() for beat in self._farm.batch_store.cards()])
        except exc.SQLAlchemyError:
            return []
        before, self._card_faults = self._card_faults, words
        return [] if words == before else [words or "all cards of this farm can be used again"]

    def _line(self, batch: Batch, failed: int) -> str:
        rows = self._farm.batch_store.jobs(self._farm.owner, batch.id, state=JobState.FAILED)
        last = max(rows, key=lambda job: job.updated_at)
        why = last.problems[0].message if last.problems else last.reason or "no reason was noted"
        rows_failed = format_rows(failed)
        return f"  {batch.name}: {rows_failed} failed, the last {last.name}: {why} (`clipmill status {batch.id}`)"

    def _count(self) -> float | None:
        try:
            return self._farm.batch_store.failures()
        except exc.SQLAlchemyError:
            return None

    def _batches(self) -> list[Batch]:
        try:
            return self._farm.batch_store.batches(self._farm.owner)
        except exc.SQLAlchemyError:
            # The farm itself waits for its store, and says so; the next look tells.
            return []
