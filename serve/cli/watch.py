"""`watch`: a batch and the cards, live."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from serve.cli.common import Home, Json, Url, connect, console, print_line, settings_for, telling_errors
from serve.cli.farm import BatchId, newest
from serve.cli.show import batches_table, cards_table, held_text, running_text
from serve.ports import FarmPort, View

#: Seconds between two looks.
EVERY_S = 1.0
_FINAL = ("completed", "failed", "cancelled")


def watch(batch: BatchId = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Show a batch, its running clips and the cards, until it has ended; Ctrl-C ends the watching only.

    With --json a line for every change.
    """
    with telling_errors():
        port = connect(settings_for(home), url)
        batch_id = port.find(batch) if batch else newest(port)
        if as_json:
            follow(port, batch_id, print_line)
        elif not console.is_terminal:
            follow(port, batch_id, lambda seen: console.print(line_of(seen), soft_wrap=True))
        else:
            with Live(console=console, auto_refresh=False, transient=False) as live:
                follow(port, batch_id, lambda seen: live.update(picture_of(seen), refresh=True))


def follow(port: FarmPort, batch_id: str, show: Any, every_s: float = EVERY_S) -> None:
    """Call `show` with what is to be seen whenever that has changed, the last time when the batch has ended."""
    before: View | None = None
    while True:
        batch = port.batch(batch_id)
        seen: View = {"batch": batch, "running": port.jobs(batch_id, state="running"), "cards": port.cards()}
        # What changes by itself twice a second is no news.
        said = {"batch": batch, "running": [(job["id"], job["step"]) for job in seen["running"]]}
        said |= {"cards": [(card["card"], card["state"], card["order"]) for card in seen["cards"]]}
        if said != before:
            show(seen)
            before = said
        if batch["status"] in _FINAL:
            return
        time.sleep(every_s)


def picture_of(seen: View) -> RenderableType:
    """All of it for a terminal."""
    parts: list[RenderableType] = [batches_table([seen["batch"]])]
    if held := held_text(seen["batch"]):
        parts.append(Text(held))
    parts += [Text(running_text(job), style="dim") for job in seen["running"]]
    if seen["cards"]:
        parts.append(cards_table(seen["cards"]))
    return Group(*parts)


def line_of(seen: View) -> str:
    """The same in a line, for a log."""
    counts = seen["batch"]["counts"]
    parts = [f"{seen['batch']['status']}", f"{counts['completed']} of {counts['total']} done"]
    parts += [
        f"{counts[state]} {state}" for state in ("running", "queued", "held", "failed", "cancelled") if counts[state]
    ]
    return " · ".join(parts)
