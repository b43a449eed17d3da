"""`forecast`: when a catalog would be done on a fleet and what it would cost, without a GPU or a farm."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.fleet.fleet_file import Cards, cards_of, read_fleet
from cluster.forecast.forecast import Forecast, Order, RowForecast, forecast
from cluster.forecast.within import TimeChooser
from pipeline.families import family_named
from serve.cli.common import (
    Exit,
    Home,
    Json,
    console,
    exit_on_error,
    farm_facts,
    known_times,
    knows_job,
    print_json,
    settings_for,
)
from serve.cli.feeds.told import print_taken_for
from serve.cli.options import Catalog, FewStepFile, RowOptions, few_step_of, with_option_groups
from serve.cli.render import choose_model
from serve.cli.show import clock_text
from serve.gateway.forecasting import Sizes, as_drafts, forecast_view, wanted_of, with_cards
from serve.settings import FarmArgs, Settings

#: Rows that fit nowhere are shown up to here.
_SHOWN = 20
#: Changes of the fleet that are named.
_CHANGES = 3


@with_option_groups(leave_out={"fit", "seed", "not_before", "interactive"})
def forecast_catalog(
    catalog: Catalog,
    fleet: Annotated[
        Path | None,
        typer.Option(help="YAML: which cards, as examples/fleet.yaml (default: those of the farm that runs here)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model of rows that name none (default: the farm's; without a farm or fleet as `render`)."),
    ] = None,
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    few_step: FewStepFile = None,
    order: Annotated[Order, typer.Option(help="Clips placed first: the longest, or as the catalog has them.")] = (
        Order.LONGEST
    ),
    seed: Annotated[int, typer.Option(help="Of the draws that the interval is made of.")] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say when a catalog would be done on a fleet and what it would cost, without GPU, farm or weights.

    Exit 1 where some rows fit no card or cannot be read.
    """
    with exit_on_error():
        settings = settings_for(home)
        family, choice = _model(settings, model, with_fleet=fleet is not None)
        manifest = rows.read(catalog, family, settings.home)
        fast = few_step_of(settings, few_step)
        defaults = Defaults(model=family, **rows.defaults().model_dump(), few_step=fast)
        estimates, roster = known_times(settings)
        cards = with_cards(cards_of(read_fleet(fleet)) if fleet else roster)
        sizes, is_job = Sizes(), knows_job(settings)
        choose = TimeChooser(cards, estimates)
        incoming = list(gather(manifest, sizes.put, rows.remote()))
        found = forecast(
            wanted_of(incoming, defaults, sizes.get, is_job, choose=choose),
            cards,
            estimates,
            order=order,
            drafts=wanted_of(as_drafts(incoming), defaults, sizes.get, is_job, choose=choose),
            seed=seed,
        )
        if as_json:
            print_json(forecast_view(found, cards, model=family))
        else:
            print_taken_for(manifest)
            console.print(f"model of rows that name none: {family} ({choice})", markup=False, soft_wrap=True)
            _show(found, cards)
    raise typer.Exit(Exit.DONE if all(row.fits for row in found.rows) else Exit.SOME_FAILED)


def _model(settings: Settings, asked: str | None, *, with_fleet: bool) -> tuple[str, str]:
    """(family of rows that name none, why it is that one): what the farm would take that the rows are handed to."""
    if asked is not None and asked != "auto":
        return family_named(asked).name, "asked for"
    if asked is None and (name := farm_facts(settings).get("default_model")):
        return str(name), "the default of the farm that runs here"
    if asked is None and with_fleet:
        # The cards of another place: what this machine has says nothing of them.
        return str(FarmArgs.model_fields["default_model"].default), "a farm's default"
    return choose_model("auto")


def _show(found: Forecast, cards: tuple[Cards, ...]) -> None:
    count = len(found.rows)
    fit = [row for row in found.rows if row.fits]
    fleet = ", ".join(map(str, cards))
    console.print(f"[bold]{count} {'row' if count == 1 else 'rows'}[/] on {escape(fleet)}", soft_wrap=True, markup=True)
    if fit:
        console.print(_groups(fit))
        console.print(_uses(found))
        console.print(
            f"done in about [bold]{clock_text(found.finish_s)}[/]"
            f" (9 of 10 times in {clock_text(found.low_s)} to {clock_text(found.high_s)};"
            f" no schedule takes less than {clock_text(found.bound_s)};"
            f" {clock_text(found.startup_s)} of it start the farm)",
            soft_wrap=True,
            markup=True,
        )
        _print_halving(found)
    bad = [row for row in found.rows if not row.fits]
    for row in bad[:_SHOWN]:
        console.print(
            f"[bold red]✗[/] row {row.number} {escape(row.name)}: {escape(row.why_not)}", soft_wrap=True, markup=True
        )
    if len(bad) > _SHOWN:
        console.print(f"  and {len(bad) - _SHOWN} rows more", style="dim")
    for note in found.notes:
        console.print(f"  {note}", style="dim", soft_wrap=True)


def _print_halving(found: Forecast) -> None:
    if not found.halving:
        console.print(
            "nothing that was tried halves it: the longest clip or the start takes more than half", soft_wrap=True
        )
        return
    words = []
    kept = [change for change in found.halving if not change.changes_clips][:_CHANGES]
    for change in [*kept, *(change for change in found.halving if change.changes_clips)]:
        price = "" if change.extra_per_hour in (None, 0) else f", {change.extra_per_hour:.2f} $/h more"
        other = ", other clips" if change.changes_clips else ""
        words.append(f"{change.text} ({clock_text(change.finish_s)}{price}{other})")
    console.print("to halve it: " + " · ".join(words), soft_wrap=True)


def _groups(rows: list[RowForecast]) -> Table:
    """Rows that go the same way, in one line each."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("rows", "such as", "smallest class", "on", "seconds", "layout"):
        table.add_column(column, overflow="fold", justify="right" if column in ("rows", "seconds") else "left")
    alike: dict[tuple[object, ...], list[RowForecast]] = defaultdict(list)
    for row in rows:
        shown = tuple((kind, round(row.seconds[kind], 1), str(row.layouts[kind])) for kind in row.kinds)
        alike[(row.smallest_class, shown)].append(row)
    for same in sorted(alike.values(), key=lambda group: -max(group[0].seconds.values())):
        first = same[0]
        for number, kind in enumerate(first.kinds):
            head = (str(len(same)), first.name, first.smallest_class or "") if number == 0 else ("", "", "")
            table.add_row(*head, kind, f"{first.seconds[kind]:.1f}", str(first.layouts[kind]))
    return table


def _uses(found: Forecast) -> Table:
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("cards", "kind", "clips", "GPU hours", "held hours", "cost"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    counted = Counter(use.kind for use in found.kinds)
    for use in found.kinds:
        cost = "not known" if use.paid_cost is None else f"{use.paid_cost:.2f} $"
        figures = (str(use.clips), f"{use.busy_hours:.3g}", f"{use.paid_hours:.3g}", cost)
        table.add_row(str(use.cards), use.kind, *figures)
    if len(counted) > 1:
        total = "not known" if found.cost is None else f"{found.cost:.2f} $"
        held = sum(use.paid_hours for use in found.kinds)
        table.add_row(
            "", "all", str(sum(use.clips for use in found.kinds)), f"{found.gpu_hours:.3g}", f"{held:.3g}", total
        )
    return table
