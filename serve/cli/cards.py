"""`cards`: what cards there are, and what may be said of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.verbs import CardVerb
from serve.cards import find_gpus
from serve.cli.common import Home, Json, Url, connect, console, print_json, settings_for, telling_errors
from serve.cli.show import bytes_text, cards_table, order_text

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
    with telling_errors():
        settings = settings_for(home)
        found = connect(settings, url).cards()
        gpus = [asdict(gpu) | {"card_class": gpu.card_class} for gpu in find_gpus()]
        if as_json:
            print_json({"cards": found, "gpus": gpus})
        elif found:
            console.print(cards_table(found))
        elif gpus:
            for gpu in gpus:
                console.print(f"{gpu['name']} · {bytes_text(gpu['total_bytes'])} · {gpu['card_class']} · {gpu['uuid']}")
        else:
            console.print(
                "no farm runs here and no GPU was found: `clipmill up --cards c8,c24` runs one on emulated cards"
            )


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
    _say(card, CardVerb.LOCK, reason, hours, url, home, as_json)


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
    _say(card, CardVerb.DRAIN, reason, hours, url, home, as_json)


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
    _say(card, CardVerb.QUARANTINE, reason, hours, url, home, as_json)


@app.command()
def release(card: CardId, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Give a card clips again."""
    _say(card, CardVerb.RELEASE, "", None, url, home, as_json)


app.command("unlock")(release)


def _say(card: str, verb: CardVerb, reason: str, hours: float | None, url: Url, home: Home, as_json: bool) -> None:
    with telling_errors():
        given = {"reason": reason} | ({"for_s": max(1, round(hours * 3600))} if hours is not None else {})
        said = connect(settings_for(home), url).say_of_card(card, verb, **given)
        if as_json:
            print_json(said)
        else:
            console.print(f"{said['card']} is {order_text(said['order']) or 'free'}", soft_wrap=True)
