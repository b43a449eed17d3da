"""`lint`: what prompts and parameters will not give, with a rewrite, before anything is rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cluster.catalog.advice.copies import write_copy
from cluster.catalog.advice.row_advice import RowAdvice, advise
from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import BadRow, Row, RowRead
from cluster.feeds.reading import read_feed
from cluster.fleet.cards import Fleet
from cluster.forecast.suggest import usable_of
from pipeline.families import family_named
from pipeline.lint.readers import reader_of
from pipeline.models.tokens import PromptLengths
from pipeline.notes import rows_text
from pipeline.problems import BadInputError
from serve.cli.common import Exit, Home, Json, console, exit_on_error, farm_facts, print_json, settings_for
from serve.cli.options import FewStepFile, RowOptions, few_step_of, with_option_groups
from serve.gateway.advice.findings import lint_view, notes_of_cards
from serve.settings import FarmArgs, Settings

#: Rows shown one by one; `--json` has them all.
_SHOWN = 50


@with_option_groups(leave_out=("rounds", "strict", "not_before", "interactive", "allow_private_hosts", "seed"))
def lint(
    catalog: Annotated[
        Path | None, typer.Argument(help="CSV, JSONL or Parquet file, or a folder of images (default: --prompt alone).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of rows that name none (default: the farm's, else i2vgen-xl).")
    ] = None,
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    vram: Annotated[
        float | None, typer.Option(min=1, help="Memory of the largest card in GB (default: that of the farm here).")
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Write NAME.fixed beside the catalog, or print the prompt, with every rewrite."),
    ] = False,
    few_step: FewStepFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Judge prompts and parameters: findings by row with a rewrite. Pictures are not opened, nothing is handed in.

    Exit 0 where nothing is found, 1 where a row is worth a second thought or cannot be rendered, 2 for a wrong command.
    With --fix, 1 only where something is left that no rewrite cures.
    """
    with exit_on_error():
        settings = settings_for(home)
        family = _model(settings, model)
        if fix and catalog is not None and read_feed(catalog, rows.feed_options()) is not None:
            remedy = "Give one prompt for all with --prompt, or --template: both are judged as well."
            raise BadInputError("--fix", f"{catalog} is a feed, which has no prompts to be rewritten", remedy)
        fast = few_step_of(settings, few_step)
        defaults = Defaults(model=family, **rows.defaults().model_dump(), few_step=fast)
        read = _rows(catalog, rows, family, settings)
        largest = usable_of(vram) if vram is not None else _largest(settings)
        lengths = PromptLengths(settings.home)
        of_clip = notes_of_cards(largest) if catalog is not None else None
        found = [advise(row, defaults, cut_texts=lengths.cut, of_clip=of_clip) for row in read]
        left = found
        if fix:
            # Judged anew: a rewrite may bring to light what the first fault hid.
            left = [
                advise(_with_fix(row, one), defaults, cut_texts=lengths.cut, of_clip=of_clip)
                for row, one in zip(read, found, strict=True)
            ]
        written = _fix(catalog, found) if fix and catalog is not None else None
        if as_json:
            print_json(lint_view(found, family) | ({"written": str(written) if written else None} if fix else {}))
        elif fix and catalog is None:
            print(left[0].prompt)
        else:
            _show(found, family, written)
    raise typer.Exit(Exit.SOME_FAILED if any(one.warns for one in left) else Exit.DONE)


def _model(settings: Settings, asked: str | None) -> str:
    """The family that rows are judged for: as asked, else the farm's that runs here, else a farm's default."""
    if asked is not None:
        return family_named(asked).name
    known = farm_facts(settings).get("default_model")
    return str(known or FarmArgs.model_fields["default_model"].default)


def _rows(catalog: Path | None, rows: RowOptions, family: str, settings: Settings) -> list[RowRead]:
    """The rows to judge, each once whatever candidates it asks for."""
    if catalog is not None:
        read = rows.read(catalog, family, settings.home).rows
        return [row for row in read if isinstance(row, BadRow) or row.candidate == 0]
    if rows.template is not None:
        raise BadInputError(
            "catalog", "a template is filled from a catalog", "Name the catalog, or give --prompt alone."
        )
    if not (rows.prompt or "").strip():
        raise BadInputError("catalog", "there is nothing to judge", "Name a catalog, or give --prompt 'TEXT'.")
    return [Row(number=1, id="prompt", image="", prompt=rows.prompt)]


def _largest(settings: Settings) -> int:
    """Usable bytes of the largest card of the farm that runs here; 0 where none does."""
    fleet = (farm_facts(settings).get("rules") or {}).get("fleet") or {"usable_bytes": {}}
    return Fleet.model_validate(fleet).largest_bytes


def _with_fix(row: RowRead, advice: RowAdvice) -> RowRead:
    if isinstance(row, BadRow) or not advice.fixed:
        return row
    return Row.model_validate(row.model_dump() | {"notes": ()} | dict(advice.fixed))


def _fix(catalog: Path, found: list[RowAdvice]) -> Path | None:
    fixes = {one.number: one.fixed for one in found if one.fixed}
    return write_copy(catalog, fixes) if fixes else None


def _show(found: list[RowAdvice], family: str, written: Path | None) -> None:
    if reader_of(family_named(family)) is None:
        words = f"  note: prompts are not judged for {family}, which reads none or whose weights are random"
        console.print(words, style="dim", markup=False, soft_wrap=True)
    told = [one for one in found if one.notes or one.problems]
    for one in told[:_SHOWN]:
        for line, style in _lines(one):
            console.print(Text(line, style=style), soft_wrap=True)
    if len(told) > _SHOWN:
        console.print(f"  and {len(told) - _SHOWN} more rows: --json has them all", style="dim")
    warned = [one.id for one in found if one.warns]
    good = len(found) - len(warned)
    mark = "[bold yellow]![/]" if warned else "[bold green]✓[/]"
    console.print(f"{mark} {good} of {len(found)} rows have nothing to think over with {family}", markup=True)
    if warned:
        console.print(f"  think over: {rows_text(warned)}", markup=False, soft_wrap=True)
    if written is not None:
        console.print(f"  written: {written}", markup=False, soft_wrap=True)
    elif any(one.fixed for one in found):
        console.print("  --fix applies the rewrites", style="dim")


def _lines(one: RowAdvice) -> Iterator[tuple[str, str]]:
    where = f"row {one.number}" + (f" (line {one.line})" if one.line else "")
    yield f"{where}  {one.id}" + (f"  {one.prompt!r}" if one.prompt else ""), "bold"
    for problem in one.problems:
        yield f"  {problem}", "red"
    for note in one.notes:
        yield f"  {note.severity} {note.code}: {note.message}", "yellow" if note.worth_a_look else "dim"
    for name, value in one.fixed.items():
        yield f"  → {name}: {_cell(value)}", "green"


def _cell(value: Any) -> str:
    return "(empty)" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)
