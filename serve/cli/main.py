"""The command line `clipmill`: every command, in the order in which `--help` lists them."""

from __future__ import annotations

import logging
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from serve.cli import batches, cards, commands, doctor, follow, footprint, manifests, models, store
from serve.cli.access import keys
from serve.cli.access.login import login, logout, whoami
from serve.cli.check import check
from serve.cli.feeds import show as feeds
from serve.cli.feeds.publish import publish
from serve.cli.fidelity.verb import fidelity
from serve.cli.forecast import forecast_catalog
from serve.cli.lint import lint
from serve.cli.logs import logs
from serve.cli.marks import setup as marks
from serve.cli.marks.verify import verify
from serve.cli.render import render
from serve.cli.review import verbs as review
from serve.cli.suggest import suggest
from serve.cli.watch import watch
from serve.cli.webhooks import verbs as webhooks
from serve.cli.why import why

app = typer.Typer(
    name="clipmill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"clipmill {version('clipmill')} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Turns catalog stills into short video clips on many GPUs."""


app.command()(render)
app.command()(check)
app.command()(lint)
app.command()(batches.up)
app.command()(batches.submit)
app.command()(batches.status)
app.command()(follow.wait)
app.command()(follow.results)
app.command()(publish)
app.command()(watch)
app.command()(logs)
app.command()(why)
for command in (*commands.COMMANDS, *review.COMMANDS):
    app.command()(command)
app.add_typer(cards.app, name="cards")
app.command()(doctor.doctor)
app.command()(suggest)
app.command("forecast")(forecast_catalog)
app.add_typer(feeds.app, name="feed")
app.add_typer(footprint.app, name="footprint")
app.add_typer(manifests.app, name="manifests")
app.add_typer(models.app, name="models")
app.add_typer(store.app, name="store")
app.add_typer(keys.app, name="keys")
app.command()(login)
app.command()(logout)
app.command()(whoami)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(marks.app, name="marks")
app.command()(verify)
app.command()(fidelity)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="clipmill")
    except SystemExit as ended:
        if "ray" in sys.modules and isinstance(ended.code, int | None):
            _end(ended.code or 0)
        raise


def _end(code: int) -> NoReturn:
    """End the process at once: where a farm ran in it, Python takes most of a second to take Ray's libraries apart.

    All that has to be tidied up is, by then; what is left would only be freed.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
