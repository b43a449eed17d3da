"""`feed show`: what a feed is taken for, before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.catalog.manifest import BadRow, Manifest
from cluster.catalog.tables import ManifestError
from cluster.feeds.model import FeedImages
from cluster.feeds.reading import FeedRead, manifest_of_feed, read_feed
from pipeline.units import format_rows
from serve.cli.common import Exit, Json, console, exit_on_error, print_json
from serve.cli.options import MappingFile, WhichImages, feed_options_of

app = typer.Typer(help="Product feeds of shops (docs/feeds.md).", no_args_is_help=True)

#: Columns whose values are shown of the first rows, where they have them.
_SHOWN = ("id", "title", "brand", "price", "image")
#: Characters of a cell, and problems, that a terminal shows.
_CELL, _PROBLEMS = 48, 12


@app.callback()
def _group() -> None:
    # A callback keeps `show` a subcommand while it is the only one.
    pass


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A feed: Google Merchant, Shopify, WooCommerce, or by --mapping.")],
    mapping: MappingFile = None,
    feed_images: WhichImages = FeedImages.MAIN,
    first: Annotated[int, typer.Option(min=0, help="Rows that are shown.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what a feed is taken for: kind, encoding, which columns became what, first rows, problems.

    Nothing is fetched, rendered or handed in. Exit 1 where some rows cannot be read.
    """
    with exit_on_error():
        found = read_feed(file, feed_options_of(mapping, feed_images))
        if found is None:
            remedy = "Name a feed, or say by --mapping which of its columns are id and image."
            raise ManifestError(file, "it is no feed that is known", remedy)
        # Without a picture opened: what is wrong by itself.
        manifest = manifest_of_feed(file, found)
        if as_json:
            print_json(_view(found, manifest, first))
        else:
            _print(file, found, manifest, first)
    raise typer.Exit(Exit.SOME_FAILED if manifest.bad else Exit.DONE)


def _view(found: FeedRead, manifest: Manifest, first: int) -> dict[str, Any]:
    return {
        "feed": found.facts.model_dump(mode="json"),
        "rows": len(manifest.rows),
        "first": [dict(one.values) for one in found.records[:first]],
        "problems": [row.model_dump(mode="json") for row in manifest.bad],
    }


def _print(file: Path, found: FeedRead, manifest: Manifest, first: int) -> None:
    facts = found.facts
    console.print(f"[bold]{escape(file.name)}[/]: {escape(facts.words)}", soft_wrap=True, markup=True)
    for note in facts.notes:
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    columns = Table("ours", "theirs", box=None, pad_edge=False, header_style="dim")
    for theirs, ours in facts.columns:
        columns.add_row(Text(ours, style="bold"), Text(theirs))
    console.print(columns)
    if facts.carried:
        names = ", ".join(facts.carried[:40]) + (f" and {len(facts.carried) - 40} more" if facts.carried[40:] else "")
        console.print(f"for {{column}} in templates and overlays: {names}", style="dim", markup=False, soft_wrap=True)
    console.print(f"links to clips go to: {facts.video_column}", style="dim", markup=False, soft_wrap=True)
    if first:
        console.print(_first_rows(found, first))
    bad = [row for row in manifest.rows if isinstance(row, BadRow)]
    for row in bad[:_PROBLEMS]:
        where = f"line {row.line}" if row.line else f"row {row.number}"
        for problem in row.problems:
            console.print(f"  {where}, {row.id}: {problem}", style="yellow", markup=False, soft_wrap=True)
    if len(bad) > _PROBLEMS:
        console.print(f"  and {len(bad) - _PROBLEMS} more (`--json` has all)", style="yellow", markup=False)
    good = len(manifest.rows) - len(bad)
    mark = "[bold yellow]![/]" if bad else "[bold green]✓[/]"
    console.print(f"{mark} {good} of {format_rows(len(manifest.rows))} can be read", markup=True)


def _first_rows(found: FeedRead, first: int) -> Table:
    shown = [name for name in _SHOWN if any(name in one.values for one in found.records[:first])]
    table = Table(*shown, box=None, pad_edge=False, header_style="dim")
    for one in found.records[:first]:
        cells = [str(one.values.get(name, "")) for name in shown]
        table.add_row(*(Text(cell if len(cell) <= _CELL else f"{cell[: _CELL - 1]}…") for cell in cells))
    return table
