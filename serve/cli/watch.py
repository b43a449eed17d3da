"""`watch`: a batch and the cards, live."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from serve.cli.common import BatchId, Home, Json, Url, connect, console, exit_on_error, newest, print_line, settings_for
from serve.cli.follow import FINAL
from serve.cli.show import batches_table, cards_table, faults_text, held_text, running_text
from serve.client import FarmClient, View

#: Seconds between two looks.
EVERY_S = 1.0


def watch(batch: BatchId = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Show a batch, its running clips and the cards, until it has ended; Ctrl-C ends the watching only.

    With --json a line for every change.
    """
    with exit_on_error():
        client = connect(settings_for(home), url)
        batch_id = client.find(batch) if batch else newest(client)
        if as_json:
            follow(client, batch_id, print_line)
        elif not console.is_terminal:
            follow(client, batch_id, lambda seen: console.print(line_of(seen), soft_wrap=True))
        else:
            with Live(console=console, auto_refresh=False, transient=False) as live:
                follow(client, batch_id, lambda seen: live.update(picture_of(seen), refresh=True))


def follow(client: FarmClient, batch_id: str, show: Any, every_s: float = EVERY_S) -> None:
    """Call `show` with what is to be seen whenever that has changed, the last time when the batch has ended."""
    before: View | None = None
    while True:
        batch = client.batch(batch_id)
        seen: View = {"batch": batch, "running": client.jobs(batch_id, state="running"), "cards": client.cards()}
        # What changes by itself twice a second is no news.
        news = {"batch": batch, "running": [(job["id"], job["step"]) for job in seen["running"]]}
        news |= {"cards": [(card["card"], card["state"], card["order"], card.get("fault")) for card in seen["cards"]]}
        if news != before:
            show(seen)
            before = news
        if batch["status"] in FINAL:
            return
        time.sleep(every_s)


def picture_of(seen: View) -> RenderableType:
    """The batch, its running clips and the cards, for a terminal."""
    parts: list[RenderableType] = [batches_table([seen["batch"]])]
    if held := held_text(seen["batch"]):
        parts.append(Text(held))
    parts += [Text(running_text(job), style="dim") for job in seen["running"]]
    if seen["cards"]:
        parts.append(cards_table(seen["cards"]))
    return Group(*parts)


def line_of(seen: View) -> str:
    """A look at the batch in one line, for a log."""
    counts = seen["batch"]["counts"]
    parts = [f"{seen['batch']['status']}", f"{counts['completed']} of {counts['total']} done"]
    parts += [
        f"{counts[state]} {state}" for state in ("running", "queued", "held", "failed", "cancelled") if counts[state]
    ]
    faults = faults_text(seen["cards"])
    return " · ".join(parts) + (f"\n{faults}" if faults else "")
