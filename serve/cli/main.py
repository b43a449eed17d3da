"""Entry point of `clipmill`."""

from __future__ import annotations

import typer

from serve.cli import cards, farm, footprint, machine, manifests, models, store, verbs
from serve.cli.forecast import forecast_catalog
from serve.cli.render import render
from serve.cli.suggest import suggest
from serve.cli.watch import watch
from serve.cli.why import why

app = typer.Typer(
    name="clipmill",
    help="Turns catalog stills into short video clips on many GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(render)
app.command()(farm.up)
app.command()(farm.submit)
app.command()(farm.status)
app.command()(farm.wait)
app.command()(watch)
app.command()(why)
for command in (verbs.pause, verbs.resume, verbs.cancel, verbs.retry, verbs.hold, verbs.approve, verbs.prioritize):
    app.command()(command)
app.add_typer(cards.app, name="cards")
app.command()(machine.doctor)
app.command()(suggest)
app.command("forecast")(forecast_catalog)
app.add_typer(footprint.app, name="footprint")
app.add_typer(manifests.app, name="manifests")
app.add_typer(models.app, name="models")
app.add_typer(store.app, name="store")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
