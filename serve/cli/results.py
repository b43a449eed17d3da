"""Results of a batch, written into the folder that `--out` names: clips, posters, contact sheet."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.feeds.writing import FeedWritten
from cluster.results.contact_sheet import BatchSummary, ResultRow
from cluster.results.export import PAGE, RowRefusedError, write_clip, write_deliveries_table, write_sheet, write_table
from cluster.results.ownership import NO_INPUTS, Inputs, OutFolder, catalog_key, twins
from cluster.results.rows import JobResult
from cluster.storage import CorruptObjectError, MissingObjectError
from pipeline.problems import Problem
from serve.cli.delivery.writer import DeliveryWriter
from serve.cli.feeds.output import FeedOut, written_view, written_words
from serve.results_source import BatchFacts, ResultsSource

#: Notes on files that a terminal shows.
MAX_NOTES = 10
#: The page is written again after so many seconds at the soonest, and after so many times what writing it took.
PAGE_S, PAGE_SHARE = 10.0, 20


class ResultsWriter:
    """Writes a batch's results into a folder, each clip once as it completes.

    A row whose files cannot be written is refused alone, and the others are written.
    """

    def __init__(
        self,
        source: ResultsSource,
        out: Path,
        facts: Mapping[str, Any],
        inputs: Inputs = NO_INPUTS,
        deliveries: DeliveryWriter | None = None,
    ) -> None:
        """`inputs`: files that the run reads, none of which is written to. `deliveries` makes files."""
        self.deliveries = deliveries
        self._source = source
        self.out = out
        self._facts = facts
        self._inputs = inputs
        #: Clips that were written, each with its row's last change: after a review a row has another.
        self._seen: set[tuple[str, int, str | None]] = set()
        self._since = 0
        #: Files written by this command.
        self.written = 0
        #: Completed rows whose files could not be written, by id.
        self.refused: dict[str, Problem] = {}
        #: What a person should hear of: files that are now under another name.
        self.notes: list[str] = []
        #: The feed, once it is written: what was done with it, and whether it is another file now.
        self.feed: tuple[FeedOut, FeedWritten, bool] | None = None
        #: The contact sheet, once it is written.
        self.page: Path | None = None
        self._page_is_old = False
        #: By `time.monotonic`; a page of thousands of rows takes its time, and is written the more seldom.
        self._next_page_at = 0.0

    def update(self, batch_id: str) -> int:
        """Write the clips that completed since the last call; returns how many rows they are.

        Raises `ResultsError` where nothing can be written any more.
        """
        completed = self._source.rows(batch_id, self._since)
        new = [one for one in completed if _clip_of(one) not in self._seen]
        if not new:
            return 0
        # Inclusive next time: the store's clock counts whole seconds.
        self._since = max(one.updated_at for one in new)
        catalog = _key_of(self._source.batch(batch_id))
        for one in new:
            # Whose clip it is shows on the page; beside a clip it would change as other rows do.
            self._write(replace(one.row, shared_with=None), catalog)
            self._seen.add(_clip_of(one))
            if self.deliveries is not None and one.row.id not in self.refused:
                self.deliveries.take(one.row, catalog)
        return len(new)

    def follow(self, batch_id: str, cards: str, *, ended: bool = False) -> None:
        """Write clips as they complete, and the page with them: now and then, for it lists every row, and when `ended`.

        `cards` in words. Raises `ResultsError` where nothing can be written any more.
        """
        self._page_is_old = self.update(batch_id) > 0 or self._page_is_old
        if self.deliveries is not None:
            self._page_is_old = self.deliveries.collect(wait=ended) or self._page_is_old
        began = time.monotonic()
        if not ended and not (self._page_is_old and began >= self._next_page_at):
            return
        self.sheet(batch_id, cards)
        self._page_is_old = False
        now = time.monotonic()
        self._next_page_at = now + max(PAGE_S, PAGE_SHARE * (now - began))

    def finish_deliveries(self) -> None:
        """Wait until every file of a completed row is there. Raises `ResultsError`."""
        if self.deliveries is None:
            return
        try:
            self.deliveries.collect(wait=True)
        except KeyboardInterrupt:
            self.stop()
            raise

    def stop(self) -> None:
        """Begin no further delivery: without it Python makes all that wait before it ends."""
        if self.deliveries is not None:
            self.deliveries.close()

    @property
    def undelivered(self) -> list[str]:
        """What was not delivered and why, one line each."""
        return self.deliveries.refusals if self.deliveries is not None else []

    def undelivered_text(self) -> list[str]:
        """What was not delivered, for a terminal: the first ones, and how many more there are."""
        more = len(self.undelivered) - MAX_NOTES
        return (
            self.undelivered if more <= 0 else [*self.undelivered[:MAX_NOTES], f"{more} more (deliveries.csv has all)"]
        )

    def refuse_twins(self, batch_id: str) -> None:
        """Refuse rows whose ids name one file on some disks; those of the API went through no manifest's reader."""
        self.refused |= twins(one.row.id for one in self._source.rows(batch_id))

    def write_feed(self, batch_id: str, feed: FeedOut | None) -> None:
        """Write the feed of a batch with links to what was delivered, where one is asked for.

        Raises `ManifestError`, `BadInputError`, `ResultsError`.
        """
        if feed is None or self.deliveries is None:
            return
        rows = [one.row for one in self._source.rows(batch_id)]
        # What was delivered of a row that was made again, or let go of, since shows a clip that nobody wants any more.
        done = {row.id for row in rows if row.state == "completed"}
        made = {row_id: files for row_id, files in self.deliveries.made.items() if row_id in done}
        self.feed = feed, *feed.write(rows, made, self._inputs, self.notes.append)

    def feed_text(self) -> list[str]:
        """What was done with the feed, for a terminal."""
        if self.feed is None:
            return []
        feed, written, _ = self.feed
        return [f"  feed: {written_words(feed.target, written, feed.options.public_url)}"]

    def notes_text(self) -> list[str]:
        """The notes for a terminal: the first ones, and how many more there are."""
        more = len(self.notes) - MAX_NOTES
        return self.notes if more <= 0 else [*self.notes[:MAX_NOTES], f"and {more} more (`--json` has all)"]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: what could not be written and what lies elsewhere now; empty where all is well."""
        refused = {name: problem.model_dump() for name, problem in self.refused.items()}
        delivered = self.deliveries.to_json() if self.deliveries is not None else {}
        feed: Mapping[str, Any] = {}
        if self.feed is not None:
            feed = written_view(self.feed[0].target, self.feed[1], changed=self.feed[2])
        told = (("not_written", refused), ("notes", self.notes), ("deliveries", delivered), ("feed", feed))
        return {name: value for name, value in told if value}

    def _write(self, row: ResultRow, catalog: str) -> None:
        if row.id in self.refused:
            return
        try:
            names = write_clip(
                self.out,
                row,
                self._source.objects,
                # Recorded where clips say nothing of themselves.
                self._facts if self._source.marks else {**self._facts, "marks": "off"},
                inputs=self._inputs,
                catalog=catalog,
                marks=self._source.marks,
                told=self.notes.append,
            )
        except MissingObjectError as error:
            self.refused[row.id] = _expired(row) or error.problem
        except (RowRefusedError, CorruptObjectError) as error:
            self.refused[row.id] = error.problem
        else:
            self.written += len(names)

    def sheet(self, batch_id: str, cards: str) -> Path:
        """Write the contact sheet of the batch as it stands, and its rows as `results.csv`; give the sheet's path."""
        batch = self._source.batch(batch_id)
        rows = [self._as_written(one.row) for one in self._source.rows(batch_id)]
        summary = BatchSummary(
            batch_id=batch.id, finished_at=int(time.time()), wall_s=time.time() - batch.created_at, cards=cards
        )
        path = write_sheet(self.out, batch.name, rows, summary, catalog=_key_of(batch), told=self.notes.append)
        self.page = path
        write_table(self.out, batch.name, rows, catalog=_key_of(batch), told=self.notes.append)
        if self.deliveries is not None and (made := self.deliveries.made):
            lines = [(row, made[row.id]) for row in rows if row.id in made]
            name_of, key = self.deliveries.name_of, _key_of(batch)
            write_deliveries_table(self.out, batch.name, lines, name_of=name_of, catalog=key, told=self.notes.append)
        if path.name != PAGE:
            note = f"{PAGE} there is not this catalog's: its page is {path.name}"
            self.notes += [] if note in self.notes else [note]
        return path

    def _as_written(self, row: ResultRow) -> ResultRow:
        problem = self.refused.get(row.id)
        if self.deliveries is not None:
            row = replace(row, delivered=self.deliveries.words_of(row.id))
        # Its clip is not beside the page.
        return replace(row, state="failed", problem=problem, video_key=None) if problem else row


def inputs_of(batch: BatchFacts, rows: Iterable[ResultRow]) -> Inputs:
    """The files that a batch was read from, as far as they lie on this machine."""
    if not batch.source:
        return NO_INPUTS
    source = Path(batch.source)
    root = source if source.is_dir() else source.parent
    return Inputs.of(root, [(row.number, row.image) for row in rows if row.image], [source])


def out_folder(out: Path, source: Path | None, inputs: Inputs) -> OutFolder:
    """The folder that `--out` names, fit to be written to. `source`: the catalog, a file or a folder of pictures.

    Raises `ResultsError`.
    """
    folder = OutFolder(out, inputs)
    if source is not None and source.is_dir():
        folder.refuse_as_input(source)
    folder.make()
    return folder


def _expired(row: ResultRow) -> Problem | None:
    """What became of a clip whose files the farm itself has removed."""
    if row.expired_at is None:
        return None
    then = time.strftime("%d %b %Y %H:%M", time.localtime(row.expired_at))
    message = f"its files were removed from storage on {then}, being older than what is kept"
    remedy = "Hand its row in again: it is rendered anew."
    return Problem(field="storage", message=message, remedy=remedy)


def _key_of(batch: BatchFacts) -> str:
    return catalog_key(batch.source or batch.name)


def _clip_of(one: JobResult) -> tuple[str, int, str | None]:
    return one.job_id, one.updated_at, one.row.video_key
