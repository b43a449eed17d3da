"""`webhooks create`, `list`, `deliveries`, `test`, `enable`, `rotate`, `delete`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from cluster.webhooks.events import SUBSCRIBABLE, EventType
from serve.cli.common import (
    Exit,
    Home,
    Json,
    Url,
    connect,
    console,
    exit_on_error,
    fail,
    print_json,
    require_farm,
    settings_for,
)
from serve.cli.show import moment_text
from serve.client import View
from serve.webhook_client import WebhookClient, whole_webhook

app = typer.Typer(help="Tell URLs of what becomes of batches and videos (docs/webhooks.md).", no_args_is_help=True)

HookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of a webhook, or its beginning.")]
#: How long `test` waits for the sender, and how often it looks, in seconds.
_TEST_S = 45.0
_LOOK_S = 0.3


@app.command()
def create(
    receiver: Annotated[str, typer.Argument(metavar="URL", help="An https or http URL that the farm may ask.")],
    events: Annotated[
        list[EventType] | None,
        typer.Option("--event", help=f"Only these, given once for each: {', '.join(SUBSCRIBABLE)} (default: all)."),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register a URL that is told of what happens from here on; the first time, shows the secret."""
    with exit_on_error():
        view = connect(settings_for(home), url).webhooks.create(receiver, events or [], description)
        if as_json:
            print_json({"webhook": view})
            return
        console.print(f"{view['id']} is told of {_events_text(view)}", markup=False, soft_wrap=True)
        if "secret" in view:
            _print_secret(view["secret"])


@app.command("list")
def list_webhooks(url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """List webhooks, whether they are enabled, and the last message to each."""
    with exit_on_error():
        client = connect(settings_for(home), url).webhooks
        found = client.all()
        last = {view["id"]: next(iter(client.deliveries(view["id"], 1)), None) for view in found}
        if as_json:
            print_json({"webhooks": [view | {"last": last[view["id"]]} for view in found]})
        elif not found:
            console.print("no webhooks yet: register one with `clipmill webhooks create URL`")
        else:
            table = Table("webhook", "URL", "told of", "state", "last message")
            for view in found:
                state = "enabled" if view["enabled"] else f"disabled: {view['disabled_why']}"
                newest = last[view["id"]]
                table.add_row(
                    view["id"], view["url"], _events_text(view), state, _delivery_text(newest) if newest else ""
                )
            console.print(table)


@app.command()
def deliveries(
    webhook: Annotated[
        str | None, typer.Argument(metavar="WEBHOOK", help="Only messages to it (default: to every URL).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many messages, the newest ones.")] = 20,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List messages: attempts, the last error, when the next attempt is."""
    with exit_on_error():
        client = connect(settings_for(home), url).webhooks
        found = client.deliveries(whole_webhook(webhook, client.all()) if webhook else None, limit)
        if as_json:
            print_json({"deliveries": found})
            return
        table = Table("event", "type", "about", "URL", "state")
        for view in found:
            table.add_row(view["event"], view["type"], view["subject"], view["url"], _delivery_text(view))
        console.print(table if found else "no messages yet")


@app.command("test")
def try_webhook(webhook: HookId, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Send a test and wait for the answer; exit 1 where it did not arrive."""
    with exit_on_error():
        settings = settings_for(home)
        # Whoever sends is part of a farm.
        require_farm(settings, url)
        client = connect(settings, url).webhooks
        hook = whole_webhook(webhook, client.all())
        view = _wait_for(client, hook, client.test(hook))
        if as_json:
            print_json({"delivery": view})
        else:
            console.print(f"{view['url']}: {_delivery_text(view)}", markup=False, soft_wrap=True)
    raise typer.Exit(Exit.DONE if view["state"] == "delivered" else Exit.SOME_FAILED)


@app.command()
def enable(webhook: HookId, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Send to a webhook again that was disabled; what happened meanwhile is not told."""
    with exit_on_error():
        client = connect(settings_for(home), url).webhooks
        view = client.enable(whole_webhook(webhook, client.all()))
        if as_json:
            print_json({"webhook": view})
        else:
            console.print(f"{view['id']} is enabled")


@app.command()
def rotate(
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="For so long the secret before signs as well.")
    ] = 24,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a new secret, or the first one, and show it."""
    with exit_on_error():
        view = connect(settings_for(home), url).webhooks.rotate(round(grace_hours * 3600))
        if as_json:
            print_json(view)
            return
        _print_secret(view["secret"])
        if view["previous_until"]:
            until = moment_text(view["previous_until"])
            console.print(f"until {until} the secret before signs as well", soft_wrap=True)


@app.command()
def delete(
    webhooks: Annotated[list[str], typer.Argument(metavar="WEBHOOK…", help="Ids of webhooks, or their beginnings.")],
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Send nothing to these any more; messages on their way there are given up."""
    with exit_on_error():
        client = connect(settings_for(home), url).webhooks
        known = client.all()
        ids = [whole_webhook(one, known) for one in webhooks]
        for one in dict.fromkeys(ids):
            client.delete(one)
        if as_json:
            print_json({"deleted": list(dict.fromkeys(ids))})
        else:
            console.print(f"deleted {', '.join(dict.fromkeys(ids))}", soft_wrap=True)


def _wait_for(client: WebhookClient, hook: str, sent: View) -> View:
    end = time.monotonic() + _TEST_S
    view = sent
    while view["state"] == "pending" and time.monotonic() < end:
        time.sleep(_LOOK_S)
        view = next((one for one in client.deliveries(hook, 100) if one["id"] == sent["id"]), sent)
    if view["state"] == "pending":
        fail(Exit.NO_FARM, "nobody has sent the test: the farm's dispatcher is not up, or busy with slow receivers")
    return view


def _print_secret(secret: str) -> None:
    console.print(f"  secret: {secret}", markup=False, soft_wrap=True)
    console.print("  give it to the receiver, which checks signatures by it; it is not shown again", style="dim")


def _events_text(view: View) -> str:
    return ", ".join(view["events"]) or "everything"


def _delivery_text(view: View) -> str:
    tries = "1 attempt" if view["attempts"] == 1 else f"{view['attempts']} attempts"
    if view["state"] == "delivered":
        return f"delivered {moment_text(view['delivered_at'])}, {tries}"
    error = view["error"] or "not sent yet"
    if view["state"] == "failed":
        return f"failed, {tries}: {error}"
    again = f", again {moment_text(view['next_at'])}" if view["attempts"] else ""
    return f"waits, {tries}: {error}{again}"
