"""A feed with links to what was delivered: where files are called how, and which of them a product's links are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.catalog.manifest import Manifest
from cluster.catalog.names import file_stem, stem_of
from cluster.feeds.links import ClipLinks, ExistingLinks, LinkIndex, LinkRules, PublicPlace
from cluster.feeds.model import FeedImages, FeedOptions
from cluster.feeds.names import NameTemplate, collisions
from cluster.feeds.reading import XML_SUFFIXES, open_feed
from cluster.feeds.writing import FeedWritten, write_feed
from cluster.results.contact_sheet import ResultRow
from cluster.results.deliveries import DeliveryTerms, RowDeliveries
from cluster.results.feeds import place_feed
from cluster.results.ownership import Inputs, with_refusals
from pipeline.delivery.profiles import profile_names_of
from pipeline.problems import BadInputError, Problem
from serve.cli.options import MappingFile, OptionGroup, WhichImages, feed_options_of

_PANEL = "The feed with links (docs/feeds.md)"
#: Begins the names of profiles whose files Google's feeds and shops' own pages are for.
_FOR_GOOGLE, _FOR_SHOPS = "google", "shop"

#: Gives the name of a row's file for a profile, below OUT or the place of publication.
NameOf = Callable[[ResultRow, str], str]


@dataclass(frozen=True, kw_only=True)
class FeedSourceOptions(OptionGroup):
    """Options on the feed that a batch was made of, for commands that are not given it."""

    feed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The feed that the batch was made of (default: as it was called then).",
            rich_help_panel=_PANEL,
        ),
    ] = None
    mapping: MappingFile = None
    feed_images: WhichImages = FeedImages.MAIN

    def path(self, source: str) -> Path | None:
        """Where the feed is: as said, else where the batch came from, if that is on this machine."""
        if self.feed is not None:
            return self.feed
        return Path(source) if source and Path(source).is_file() else None

    def options(self) -> FeedOptions:
        """How it is read. Raises `BadInputError` for a mapping that is none."""
        return feed_options_of(self.mapping, self.feed_images)


@dataclass(frozen=True, kw_only=True)
class FeedOutOptions(OptionGroup):
    """Options on the feed that is written again."""

    feed_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the feed again here, with links to what was delivered.", rich_help_panel=_PANEL
        ),
    ] = None
    names: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="How delivered files are called: '{brand}/{id}-{profile}.mp4' (default: '{profile}/{id}.mp4').",
            rich_help_panel=_PANEL,
        ),
    ] = None
    public_url: Annotated[
        str,
        typer.Option(metavar="URL", help="Where the public finds them: links begin with it.", rich_help_panel=_PANEL),
    ] = ""
    feed_profiles: Annotated[
        str,
        typer.Option(
            metavar="PROFILE,…",
            help="Of which profiles links are (default: google… in Google's feeds, else shop, else all).",
            rich_help_panel=_PANEL,
        ),
    ] = ""
    feed_column: Annotated[
        str,
        typer.Option(metavar="NAME", help="Column of a table that links go to.", rich_help_panel=_PANEL),
    ] = ""
    existing_links: Annotated[
        ExistingLinks,
        typer.Option(
            help="What becomes of links that a product has: ours replaced and others kept (auto), or as said.",
            rich_help_panel=_PANEL,
        ),
    ] = ExistingLinks.AUTO

    def template(self) -> NameTemplate | None:
        """How files are called; None: as ever. Raises `BadInputError`."""
        return None if self.names is None else NameTemplate.parse(self.names)

    def name_of(self) -> NameOf | None:
        """Gives a file's name; None: as ever. Raises `BadInputError`."""
        template = self.template()
        return None if template is None else lambda row, profile: template.name(values_of(row), profile)

    def profiles(self) -> tuple[str, ...]:
        """The profiles that links are of, where they are said. Raises `BadInputError`."""
        try:
            return profile_names_of(self.feed_profiles)
        except ValueError as error:
            raise BadInputError("--feed-profiles", str(error), "Name some of those that are delivered.") from None

    def feed(self, source: Path | None, reading: FeedOptions) -> FeedOut | None:
        """What is done with the feed at `source` at the end; None: nothing is asked for.

        Raises `BadInputError` for an option that is none, and where there is no feed, before anything is made.
        """
        self.template()
        self.profiles()
        PublicPlace.of(self.public_url)
        if self.feed_out is None:
            return None
        if source is None:
            message = "the batch was made of no file that is on this machine"
            raise BadInputError("--feed-out", message, "Name the feed by --feed.")
        if self.feed_out.suffix.lower() != source.suffix.lower():
            message = f"{self.feed_out} is not called as {source.name}, of whose kind it will be"
            raise BadInputError("--feed-out", message, f"End its name with {source.suffix}.")
        is_google(source, reading)
        return FeedOut(source=source, reading=reading, options=self)

    def refuse(self, manifest: Manifest, default: tuple[str, ...]) -> Manifest:
        """The manifest with those rows refused whose files would be called as another row's. Raises `BadInputError`.

        `default`: profiles of rows that name none.
        """
        template = self.template()
        if template is None:
            return manifest
        columns = {column for row in manifest.good for column in row.extra}
        if manifest.good and (missing := template.missing([*columns, "image"])):
            message = f"no row has a column {missing[0]!r}"
            raise BadInputError(
                "--names", message, f"Name another, or say what stands instead: {{{missing[0]}|other}}."
            )
        own = [(row.id, "its clip", f"{file_stem(row.id)}.mp4") for row in manifest.good]
        made = (
            (row.id, profile, template.name({**row.extra, "id": row.id, "image": stem_of(row.image)}, profile))
            for row in manifest.good
            for profile in (row.deliver if row.deliver is not None else default)
        )
        return with_refusals(manifest, collisions([*own, *made]))


def values_of(row: ResultRow) -> dict[str, object]:
    """The columns of a row that names are made of."""
    return {**row.extra, "id": row.id, "image": stem_of(row.image)}


def usual_name(row: ResultRow, profile: str) -> str:
    """The name of a delivered file below OUT where nobody says otherwise."""
    return f"{profile}/{file_stem(row.id)}.mp4"


def collisions_of(rows: Iterable[ResultRow], terms: DeliveryTerms, name_of: NameOf) -> dict[str, Problem]:
    """Rows whose files would be called as another row's, each with what is wrong."""
    listed = list(rows)
    own = [(row.id, "its clip", f"{file_stem(row.id)}.mp4") for row in listed]
    made = ((row.id, profile, name_of(row, profile)) for row in listed for profile in terms.wanted(row))
    return collisions([*own, *made])


def chosen_profiles(delivered: Iterable[str], *, is_google: bool) -> tuple[str, ...]:
    """The profiles that a feed's links are of where nobody says it, of those that files were `delivered` for."""
    there = tuple(dict.fromkeys(delivered))
    beginnings = (_FOR_GOOGLE,) if is_google else (_FOR_SHOPS, _FOR_GOOGLE)
    for beginning in beginnings:
        if found := tuple(name for name in there if name.startswith(beginning)):
            return found
    return there


def delivered_profiles(made: RowDeliveries) -> dict[str, list[str]]:
    """The profiles for which each row has a file that keeps every rule, by the row's id."""
    return {row_id: [name for name, one in files.items() if one.delivered] for row_id, files in made.items()}


def links_of(
    rows: Iterable[ResultRow],
    delivered: Mapping[str, Collection[str]],
    place: PublicPlace,
    name_of: NameOf,
    profiles: tuple[str, ...],
) -> list[ClipLinks]:
    """The links of each row, in the order of `profiles`, as far as it was `delivered` for them.

    Raises `BadInputError` for a link that is too long.
    """
    found = []
    for row in rows:
        there = delivered.get(row.id, ())
        names = [name_of(row, profile) for profile in profiles if profile in there]
        if names:
            found.append(ClipLinks(row_id=row.id, number=row.number, urls=tuple(map(place.link, names))))
    return found


@dataclass(frozen=True, kw_only=True)
class FeedOut:
    """What a command does with the feed of its batch, once files are delivered."""

    source: Path
    reading: FeedOptions
    options: FeedOutOptions

    @property
    def target(self) -> Path:
        """Where it is written; asked for only where it is."""
        assert self.options.feed_out is not None
        return self.options.feed_out

    def write(
        self,
        rows: list[ResultRow],
        delivered: RowDeliveries,
        inputs: Inputs,
        told: Callable[[str], None] = lambda _text: None,
    ) -> tuple[FeedWritten, bool]:
        """Write the feed to `--feed-out`: what was done, and whether the file is another one now.

        Raises `ManifestError`, `BadInputError`, `ResultsError`.
        """
        name_of = self.options.name_of() or usual_name
        profiles = self.options.profiles() or self._chosen(delivered)
        names = (name_of(row, profile) for row in rows for profile in delivered.get(row.id, ()))
        place = PublicPlace.of(self.options.public_url, names)
        index = LinkIndex(links_of(rows, delivered_profiles(delivered), place, name_of, profiles))
        rules = LinkRules(existing=self.options.existing_links, is_ours=place.is_ours)
        made: list[FeedWritten] = []

        def write(path: Path) -> None:
            made.append(write_feed(self.source, path, index, rules, self.reading, self.options.feed_column))

        changed = place_feed(self.target, write, inputs, told)
        return made[-1], changed

    def _chosen(self, delivered: RowDeliveries) -> tuple[str, ...]:
        names = (name for there in delivered_profiles(delivered).values() for name in there)
        return chosen_profiles(names, is_google=is_google(self.source, self.reading))


def is_google(source: Path, options: FeedOptions) -> bool:
    """Whether a feed is Google's, as its header says. Raises `BadInputError` where it is no feed."""
    if source.suffix.lower() in XML_SUFFIXES:
        return True
    try:
        with open_feed(source, options) as feed:
            if feed is not None:
                return feed.facts.kind.is_google
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError("--feed-out", f"{source} cannot be read: {reason}", "Name the feed by --feed.") from error
    raise BadInputError("--feed-out", f"{source} is no feed that is known", "Say by --mapping what its columns are.")


def written_words(target: Path, written: FeedWritten, public_url: str) -> str:
    """What was done with a feed, for people."""
    words = f"{target}: {written.linked} of {written.products} products with {written.links} links"
    if written.full:
        words += f" ({written.full} had no room for more)"
    if not public_url and written.links:
        words += "; links are names below the folder: --public-url says where the public finds them"
    return words


def written_view(target: Path, written: FeedWritten, *, changed: bool) -> Mapping[str, Any]:
    """What was done with a feed, for `--json`."""
    return {
        "file": str(target),
        "products": written.products,
        "linked": written.linked,
        "links": written.links,
        "no_room": written.full,
        "changed": changed,
    }
