"""`cards`: which cards there are, and the commands that lock, drain, quarantine or release one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.fleet.cards import card_class_of
from cluster.jobs.commands import CardVerb
from pipeline.units import format_bytes
from serve.cli.common import Home, Json, Url, connect, console, exit_on_error, print_json, settings_for
from serve.cli.show import cards_table, kernels_lines, order_text
from serve.renderer.cards import survey_gpus

app = typer.Typer(help="Show the cards of the running farm; lock, drain or release them.", invoke_without_command=True)

CardId = Annotated[str, typer.Argument(help="Card id as `clipmill cards` shows it, or its beginning.")]
Reason = Annotated[str, typer.Option(help="For people.")]
For = Annotated[
    float | None, typer.Option("--for", min=0.01, metavar="HOURS", help="Release it by itself after so long.")
]


@app.callback()
def cards(context: typer.Context, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Show the cards of the running farm, else the GPUs of this machine."""
    if context.invoked_subcommand is not None:
        return
    with exit_on_error():
        settings = settings_for(home)
        client = connect(settings, url)
        found, kernels = client.cards(), client.kernels()
        local = survey_gpus()
        gpus = [asdict(gpu) | {"card_class": card_class_of(gpu.total_bytes)} for gpu in local.gpus]
        faults = [{"card": fault.card, "problem": fault.problem.model_dump()} for fault in local.faults]
        if as_json:
            print_json({"cards": found, "kernels": kernels, "gpus": gpus, "faults": faults})
        elif found:
            console.print(cards_table(found))
            for line in kernels_lines(kernels, {card["kind"] for card in found}):
                console.print(line, soft_wrap=True)
        elif gpus:
            for gpu in gpus:
                console.print(
                    f"{gpu['name']} · {format_bytes(gpu['total_bytes'])} · {gpu['card_class']} · {gpu['uuid']}"
                )
        elif not faults:
            console.print(
                "no farm runs here and no GPU was found: `clipmill up --cards c8,c24` runs one on emulated cards"
            )
        if not found and not as_json:
            for each in local.faults:
                console.print(f"{each.problem.message}. {each.problem.remedy}", style="yellow", soft_wrap=True)


@app.command()
def lock(
    card: CardId,
    reason: Reason = "",
    hours: For = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give a card no new clip; the one on it is finished."""
    _command(card, CardVerb.LOCK, reason, hours, url, home, as_json)


@app.command()
def drain(
    card: CardId,
    reason: Reason = "",
    hours: For = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give a card no new clip; the one on it is saved and goes on elsewhere."""
    _command(card, CardVerb.DRAIN, reason, hours, url, home, as_json)


@app.command()
def quarantine(
    card: CardId,
    reason: Reason = "",
    hours: For = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set a card aside because something is wrong with it; the clip on it is finished."""
    _command(card, CardVerb.QUARANTINE, reason, hours, url, home, as_json)


@app.command()
def release(card: CardId, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Give a card clips again."""
    _command(card, CardVerb.RELEASE, "", None, url, home, as_json)


app.command("unlock")(release)


def _command(card: str, verb: CardVerb, reason: str, hours: float | None, url: Url, home: Home, as_json: bool) -> None:
    with exit_on_error():
        given = {"reason": reason} | ({"for_s": max(1, round(hours * 3600))} if hours is not None else {})
        answer = connect(settings_for(home), url).command_card(card, verb, **given)
        if as_json:
            print_json(answer)
        else:
            console.print(f"{answer['card']} is {order_text(answer['order']) or 'free'}", soft_wrap=True)
