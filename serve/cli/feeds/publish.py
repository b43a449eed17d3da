"""`publish`: the delivered files of a batch and its feed in a bucket or a folder; only what changed is sent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.catalog.uploads import safe_name
from cluster.feeds.links import LinkIndex, LinkRules, PublicPlace
from cluster.feeds.names import DEFAULT_NAMES, NameTemplate
from cluster.feeds.publishing import Publication, WantedFile, check_names, feed_file
from cluster.feeds.writing import FeedWritten, write_feed
from cluster.results.contact_sheet import ResultRow
from cluster.results.deliveries import DeliveredFile, DeliveryMaker, Finish, refused_all
from cluster.storage import Storage, StorageError
from pipeline.clips.encode import EncodeError
from pipeline.delivery.verdicts import refused
from pipeline.problems import BadInputError, Problem
from serve.cli.common import Exit, Home, Json, Url, connect, console, exit_on_error, print_json, settings_for
from serve.cli.delivery.writer import DeliveryOptions, delivery_maker
from serve.cli.feeds.output import (
    FeedOut,
    FeedOutOptions,
    FeedSourceOptions,
    chosen_profiles,
    collisions_of,
    is_google,
    links_of,
    values_of,
    written_view,
    written_words,
)
from serve.cli.marks.option import NoMarks, source_with_marks
from serve.cli.options import Deliver, with_option_groups

#: States of rows whose clips are still to come.
_COMING = ("queued", "running", "held")
#: Problems that a terminal shows.
_SHOWN = 10


@with_option_groups(leave_out={"feed_out"})
def publish(
    batch: Annotated[str, typer.Argument(help="Batch id, or its beginning.")],
    target: Annotated[str, typer.Argument(help="s3://bucket/prefix, gs://bucket/prefix, file:///folder or a folder.")],
    deliver: Deliver = "",
    deliveries: DeliveryOptions = DeliveryOptions(),  # noqa: B008 - frozen
    source_feed: FeedSourceOptions = FeedSourceOptions(),  # noqa: B008 - frozen
    feed_out: FeedOutOptions = FeedOutOptions(),  # noqa: B008 - frozen
    cache_control: Annotated[
        str, typer.Option("--cache-control", metavar="TEXT", help="Cache-Control of what is sent, in a bucket.")
    ] = "",
    feed_name: Annotated[
        str, typer.Option(metavar="NAME", help="How the feed is called there (default: as it is).")
    ] = "",
    no_feed: Annotated[bool, typer.Option("--no-feed", help="Send the files alone.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what was published for this feed before and is no longer wanted.")
    ] = False,
    no_marks: NoMarks = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Publish the delivered files of a batch, and then its feed with links to them.

    The same again sends nothing. Nothing is rendered for it; what clipmill did not publish there is never replaced.
    """
    with exit_on_error():
        settings = settings_for(home)
        terms = deliveries.terms(settings, deliver)
        client = connect(settings, url)
        found = client.batch(client.find(batch))
        feed = None if no_feed else _feed(feed_out, source_feed, str(found["source"]))
        source = source_with_marks(client, settings, no_marks=no_marks, quiet=as_json)
        rows = [one.row for one in source.rows(found["id"])]
        if not any(terms.wanted(row) for row in rows):
            message = "no row asks for a file that could be published"
            raise BadInputError("--deliver", message, "Say for which profiles, such as --deliver google,shop.")
        maker, finish = delivery_maker(source, settings, terms)
        catalog = safe_name(feed_name or (feed.source.name if feed else str(found["name"])))
        publication = Publication(Storage(target), catalog, cache_control)
        with console.status("publishing"):
            run = _Run(rows, maker, finish, publication, feed_out.template() or NameTemplate.parse(DEFAULT_NAMES))
            run.send()
            written = run.send_feed(feed, catalog) if feed is not None else None
            if prune:
                publication.prune()
        if as_json:
            print_json(_view(run, written, catalog))
        else:
            _print(run, written, f"{target.rstrip('/')}/{catalog}", feed_out.public_url)
    raise typer.Exit(Exit.SOME_FAILED if run.problems else Exit.DONE)


def _feed(options: FeedOutOptions, source: FeedSourceOptions, batch_source: str) -> FeedOut | None:
    """The feed that is sent; None where the batch was made of none. Raises `BadInputError`."""
    options.profiles()
    PublicPlace.of(options.public_url)
    path, reading = source.path(batch_source), source.options()
    if path is None:
        return None
    try:
        is_google(path, reading)
    except BadInputError:
        if source.feed is not None or source.mapping is not None:
            raise
        return None  # a manifest
    if not options.public_url:
        message = "a feed names its clips by URLs, and nobody said where the public finds them"
        raise BadInputError("--public-url", message, "Give it, such as https://cdn.example/clips, or --no-feed.")
    return FeedOut(source=path, reading=reading, options=options)


@dataclass
class _Run:
    """Sends the files of rows; what is wrong with one of them holds up none of the others."""

    rows: Sequence[ResultRow]
    maker: DeliveryMaker
    finish: Finish | None
    publication: Publication
    template: NameTemplate
    #: What is wrong, by row and profile, or by name.
    problems: dict[str, Problem] = field(default_factory=dict)
    #: The profiles of each row, by its id, of which the file is there now.
    there: dict[str, list[str]] = field(default_factory=dict)

    def send(self) -> None:
        """Send what is not there as it should be. Raises `StorageError` where the target cannot be used."""
        done = [row for row in self.rows if row.state == "completed" and row.video_key is not None]
        # Whoever prunes while clips are still made, or wait for somebody, takes nothing from the public for that.
        coming = [row for row in self.rows if row.state in _COMING]
        self.publication.spare(self.name_of(row, name) for row in coming for name in self.maker.keys_of(row))
        self.problems |= collisions_of(done, self.maker.terms, self.name_of)
        wanted = self._wanted([row for row in done if row.id not in self.problems])
        check_names({one.name for files in wanted.values() for one in files.values()})
        to_send = {
            one.name for one in self.publication.plan(one for files in wanted.values() for one in files.values())
        }
        self.problems |= self.publication.count.refused
        for row in done:
            files = wanted.get(row.id, {})
            self.there[row.id] = [
                profile for profile, one in files.items() if one.name not in to_send and one.name not in self.problems
            ]
            if new := {profile: one for profile, one in files.items() if one.name in to_send}:
                self._send_row(row, new)
        if to_send:
            self.publication.settle()

    def send_feed(self, feed: FeedOut, name: str) -> FeedWritten:
        """Send the feed, behind all files that it names. Raises `ManifestError`, `BadInputError`, `StorageError`."""
        profiles = feed.options.profiles() or chosen_profiles(
            (profile for files in self.there.values() for profile in files),
            is_google=is_google(feed.source, feed.reading),
        )
        place = PublicPlace.of(feed.options.public_url, self.publication.names_before)
        index = LinkIndex(links_of(self.rows, self.there, place, self.name_of, profiles))
        rules = LinkRules(existing=feed.options.existing_links, is_ours=place.is_ours)
        with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
            path = Path(folder) / "feed"
            written = write_feed(feed.source, path, index, rules, feed.reading, feed.options.feed_column)
            for one in self.publication.plan([feed_file(name, path)]):
                self.publication.send(one, path)
                self.publication.settle()
        self.problems |= self.publication.count.refused
        return written

    def name_of(self, row: ResultRow, profile: str) -> str:
        """The name of a row's file for a profile, below the target."""
        return self.template.name(values_of(row), profile)

    def _wanted(self, rows: Sequence[ResultRow]) -> dict[str, dict[str, WantedFile]]:
        marks = self.finish.name if self.finish else ""
        return {
            row.id: {
                profile: WantedFile(name=self.name_of(row, profile), source=f"{key} {marks}")
                for profile, key in self.maker.keys_of(row).items()
            }
            for row in rows
        }

    def _send_row(self, row: ResultRow, files: Mapping[str, WantedFile]) -> None:
        with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
            try:
                made = self.maker.deliver(row, Path(folder))
            except (StorageError, BadInputError) as error:
                made = refused_all(tuple(files), error.problem)
            except EncodeError as error:
                problem = Problem(field="deliver", message=str(error), remedy="Run the command again.")
                made = refused_all(tuple(files), problem)
            for profile, one in files.items():
                self._send_file(row, made[profile], one)

    def _send_file(self, row: ResultRow, made: DeliveredFile, one: WantedFile) -> None:
        if made.delivered and made.path is not None:
            path = made.path
            try:
                if self.finish:
                    path = path.with_name(f"finished-{made.profile}{path.suffix}")
                    self.finish(made, row, path)
            except StorageError as error:
                made = DeliveredFile(profile=made.profile, verdict=refused(made.profile, error.problem))
            else:
                self.publication.send(one, path)
                self.there[row.id].append(made.profile)
                return
        if made.verdict.problem is not None:
            self.problems[f"{row.id} {made.profile}"] = made.verdict.problem


def _view(run: _Run, written: FeedWritten | None, name: str) -> dict[str, Any]:
    count = run.publication.count
    shown: dict[str, Any] = {
        "uploaded": count.uploaded,
        "unchanged": count.unchanged,
        "removed": count.removed,
        "encoded": run.maker.encoded,
        "problems": {name: problem.model_dump() for name, problem in run.problems.items()},
    }
    return shown | ({"feed": written_view(Path(name), written, changed=True)} if written is not None else {})


def _print(run: _Run, written: FeedWritten | None, feed: str, public_url: str) -> None:
    count = run.publication.count
    for name, problem in list(run.problems.items())[:_SHOWN]:
        words = f"  not published: {name}: {problem.message}. {problem.remedy}"
        console.print(words, style="yellow", markup=False, soft_wrap=True)
    if len(run.problems) > _SHOWN:
        console.print(f"  and {len(run.problems) - _SHOWN} more (`--json` has all)", style="yellow", markup=False)
    mark = "[bold yellow]![/]" if run.problems else "[bold green]✓[/]"
    parts = [f"{count.uploaded} files sent", f"{count.unchanged} there already", f"{run.maker.encoded} encoded now"]
    parts += [f"{count.removed} removed"] if count.removed else []
    console.print(f"{mark} " + " · ".join(parts), soft_wrap=True, markup=True)
    if written is not None:
        console.print(f"  feed: {written_words(Path(feed), written, public_url)}", markup=False, soft_wrap=True)
