"""`wait` and `results`: what a batch has come to, in the terminal and in the folder that `--out` names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cluster.jobs.model import JobState
from cluster.results.deliveries import DeliveryTerms
from serve.cli.common import (
    BatchId,
    Exit,
    Home,
    Json,
    Url,
    connect,
    console,
    exit_on_error,
    fail,
    farm_facts,
    newest,
    print_json,
    require_farm,
    settings_for,
)
from serve.cli.delivery.writer import DeliveryOptions, delivery_writer
from serve.cli.feeds.output import FeedOutOptions, FeedSourceOptions, collisions_of
from serve.cli.marks.option import NoMarks, source_with_marks
from serve.cli.options import Deliver, with_option_groups
from serve.cli.results import ResultsWriter, inputs_of, out_folder
from serve.cli.show import (
    RowPace,
    batches_table,
    faults_text,
    held_text,
    notes_text,
    problems_table,
    refusals_table,
    storage_text,
)
from serve.client import FarmClient, View
from serve.results_source import ResultsSource
from serve.settings import Settings

FINAL = ("completed", "failed", "cancelled")
#: How often a batch is looked at, and how often a line is printed at least, in seconds.
_LOOK_S, _LINE_S = 0.5, 60.0
#: How often running rows and cards are looked at while no more rows have ended, in seconds.
_CLOSE_LOOK_S = 3.0

Out = Annotated[Path, typer.Option("--out", "-o", help="Where clips, posters and index.html go.")]


class BatchWait:
    """Waits until a batch has ended, writing its results as they come where a writer is given."""

    def __init__(
        self, settings: Settings, url: str | None, client: FarmClient, writer: ResultsWriter | None, *, quiet: bool
    ) -> None:
        self._settings, self._url, self._client, self._writer = settings, url, client, writer
        self._quiet = quiet
        self._pace = RowPace()
        self._printed: tuple[int, float] = (-1, 0.0)
        self._held = self._faults = ""
        self._told_unsealed = False
        self._looked: tuple[int, float] = (-1, 0.0)

    def until_end(self, batch_id: str) -> View:
        """Returns the view of the batch that has ended. Exits 1 where nobody renders it, 3 where no farm runs."""
        while True:
            batch = self._client.batch(batch_id)
            ended = batch["status"] in FINAL
            if self._writer is not None:
                self._writer.follow(batch_id, "", ended=ended)
            if ended:
                return batch
            if batch["status"] == "stopped":
                fail(Exit.SOME_FAILED, f"nobody renders this batch: run its `clipmill render {batch['source']}` again")
            if not self._quiet:
                self._tell(batch)
            if not (self._url or self._settings.url) and not farm_facts(self._settings):
                require_farm(self._settings, self._url)
            time.sleep(_LOOK_S)

    def _tell(self, batch: View) -> None:
        counts = batch["counts"]
        ended = sum(counts[state] for state in FINAL)
        looked, at = self._looked
        if ended == looked and time.monotonic() - at < _CLOSE_LOOK_S:
            return
        self._looked = ended, time.monotonic()
        running = self._client.jobs(batch["id"], state=JobState.RUNNING.value)
        under_way = ended + sum(job["step"] / job["steps"] for job in running if job["steps"])
        speed = self._pace.words(under_way, counts["total"], running=bool(running))
        printed, at = self._printed
        now = time.monotonic()
        if ended != printed or now - at >= _LINE_S:
            self._printed = ended, now
            parts = [f"{ended} of {counts['total']} rows done, {counts['running']} running", *speed]
            console.print(" · ".join(part for part in parts if part))
        if batch["status"] == "validating" and not self._told_unsealed:
            self._told_unsealed = True
            console.print(
                "its rows are still being handed in; if whoever does that died, hand it in again with the same key. "
                "Otherwise the farm closes it after ten minutes without a row.",
                soft_wrap=True,
            )
        if self._held != (held := held_text(batch)):
            self._held = held
            if held:
                console.print(held, soft_wrap=True)
        if self._faults != (faults := faults_text(self._client.cards())):
            self._faults = faults
            if faults:
                console.print(faults, style="yellow", markup=False, soft_wrap=True)


@with_option_groups()
def wait(
    batch: BatchId = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write clips and contact sheet here, as they come.")
    ] = None,
    no_marks: NoMarks = False,
    deliver: Deliver = "",
    deliveries: DeliveryOptions = DeliveryOptions(),  # noqa: B008 - frozen
    source_feed: FeedSourceOptions = FeedSourceOptions(),  # noqa: B008 - frozen
    feed_out: FeedOutOptions = FeedOutOptions(),  # noqa: B008 - frozen
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Wait until every row of a batch has ended."""
    with exit_on_error():
        if out is None and (feed_out.feed_out or feed_out.names):
            fail(Exit.USAGE, "--feed-out and --names are of files that are written: name a folder with --out")
        settings = settings_for(home)
        terms = deliveries.terms(settings, deliver)
        client = connect(settings, url)
        found = client.batch(client.find(batch) if batch else newest(client))
        # Before a night of waiting, not after it.
        writer, feed = None, None
        if out is not None:
            source = source_with_marks(client, settings, no_marks=no_marks, quiet=as_json)
            feed = feed_out.feed(source_feed.path(str(found["source"])), source_feed.options())
            writer = writer_of(source, found["id"], out, settings, terms, feed_out)
        if found["status"] not in FINAL:
            require_farm(settings, url)
        try:
            found = BatchWait(settings, url, client, writer, quiet=as_json).until_end(found["id"])
        except KeyboardInterrupt:
            if writer is not None:
                writer.stop()
                writer.sheet(found["id"], "")
                _print_page(writer)
            raise
        if writer is not None:
            writer.write_feed(found["id"], feed)
        print_batch(client, found, as_json, writer)
    lacking = writer is not None and (writer.refused or writer.undelivered)
    raise typer.Exit(Exit.SOME_FAILED if lacking else exit_code(found, ended=True))


@with_option_groups()
def results(
    batch: BatchId = None,
    out: Out = Path("out"),
    no_marks: NoMarks = False,
    deliver: Deliver = "",
    deliveries: DeliveryOptions = DeliveryOptions(),  # noqa: B008 - frozen
    source_feed: FeedSourceOptions = FeedSourceOptions(),  # noqa: B008 - frozen
    feed_out: FeedOutOptions = FeedOutOptions(),  # noqa: B008 - frozen
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write what a batch has so far: clips that are done, proofs among them, and the contact sheet of all its rows.

    Again later: it adds what has been done meanwhile. Nothing is rendered for it.
    """
    with exit_on_error():
        settings = settings_for(home)
        terms = deliveries.terms(settings, deliver)
        client = connect(settings, url)
        found = client.batch(client.find(batch) if batch else newest(client))
        source = source_with_marks(client, settings, no_marks=no_marks, quiet=as_json)
        feed = feed_out.feed(source_feed.path(str(found["source"])), source_feed.options())
        writer = writer_of(source, found["id"], out, settings, terms, feed_out)
        writer.update(found["id"])
        with console.status("making the deliveries"):
            writer.finish_deliveries()
        writer.write_feed(found["id"], feed)
        writer.sheet(found["id"], "")
        print_batch(client, found, as_json, writer)
        counts = found["counts"]
        if not as_json and found["status"] not in FINAL:
            console.print(f"{counts['completed']} of {counts['total']} clips are done so far")
    raise typer.Exit(Exit.SOME_FAILED if writer.refused or writer.undelivered else Exit.DONE)


def writer_of(
    source: ResultsSource,
    batch_id: str,
    out: Path,
    settings: Settings,
    terms: DeliveryTerms,
    feed_out: FeedOutOptions = FeedOutOptions(),  # noqa: B008 - frozen
) -> ResultsWriter:
    """What writes the results of a batch into `out`, and its deliveries. Raises `ResultsError`."""
    batch = source.batch(batch_id)
    rows = [one.row for one in source.rows(batch_id)]
    inputs = inputs_of(batch, rows)
    out_folder(out, Path(batch.source) if batch.source else None, inputs)
    name_of = feed_out.name_of()
    made = delivery_writer(source, settings, out, terms, inputs=inputs, name_of=name_of)
    writer = ResultsWriter(source, out, {}, inputs, made)
    writer.refuse_twins(batch_id)
    if name_of is not None:
        writer.refused |= collisions_of(rows, terms, name_of)
    return writer


def print_batch(client: FarmClient, batch: View, as_json: bool, writer: ResultsWriter | None = None) -> None:
    """A batch with its notes, the rows that failed, and where its page is."""
    jobs = client.jobs(batch["id"])
    if as_json:
        faults = {card["card"]: card["fault"] for card in client.cards() if card.get("fault")}
        print_json({"batch": batch, "jobs": jobs, "card_faults": faults} | (writer.to_json() if writer else {}))
        return
    console.print(batches_table([batch]))
    if held := held_text(batch):
        console.print(f"  {held}", soft_wrap=True)
    if batch["status"] not in FINAL:
        print_card_faults(client.cards())
    for note in notes_text(jobs):
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    for note in writer.notes_text() if writer else ():
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    if failed := [job for job in jobs if job["state"] == JobState.FAILED]:
        console.print(problems_table(failed))
    if writer and writer.refused:
        console.print(refusals_table(writer.refused))
    for line in writer.undelivered_text() if writer else ():
        console.print(f"  not delivered: {line}", style="yellow", markup=False, soft_wrap=True)
    for line in writer.feed_text() if writer else ():
        console.print(line, markup=False, soft_wrap=True)
    if writer:
        _print_page(writer)


def print_card_faults(cards: list[View]) -> None:
    """Say what keeps the farm's cards from rendering."""
    for words in filter(None, (storage_text(cards), faults_text(cards))):
        console.print(words, style="yellow", markup=False, soft_wrap=True)


def _print_page(writer: ResultsWriter) -> None:
    if writer.page is not None:
        console.print(f"  [bold]{escape(str(writer.page))}[/]", soft_wrap=True, markup=True)


def exit_code(batch: View, *, ended: bool) -> Exit:
    """1 where a batch that has ended has rows that are not completed."""
    if not ended:
        return Exit.DONE
    return Exit.DONE if batch["status"] == "completed" else Exit.SOME_FAILED
