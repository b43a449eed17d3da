"""`why`: why a job waits, and the smallest change that would start it."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.cli.commands import RowName, row_of
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
    settings_for,
)
from serve.client import View

What = Annotated[
    str, typer.Argument(metavar="JOB|BATCH", help="Id of a job (or of a batch, with --row), or its beginning.")
]


def why(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Say why a job waits (or where it runs, or why it failed) and the smallest change that would start it."""
    with exit_on_error():
        client = connect(settings_for(home), url)
        found = client.find(what)
        is_batch = found.startswith("batch_")
        if is_batch and row is None:
            listed = f"`clipmill status {what} --rows` lists them"
            fail(Exit.USAGE, f"{what} is a batch: name one of its rows with --row; {listed}")
        if row is not None and not is_batch:
            fail(Exit.USAGE, f"--row is a row of a batch, and {what} is a job: leave --row out")
        explanation = client.why(row_of(client, found, row) if row is not None else found)
        if as_json:
            print_json({"why": explanation})
        else:
            _show(explanation)


def _show(explanation: View) -> None:
    reason = f" ({explanation['reason']})" if explanation["reason"] != explanation["state"] else ""
    console.print(f"{explanation['job']} is {explanation['state']}{reason}", markup=False, soft_wrap=True)
    console.print(f"  {explanation['text']}", markup=False, soft_wrap=True)
    starting = [change for change in explanation["changes"] if change["starts"]]
    first = [change for change in explanation["changes"] if not change["starts"]]
    for title, changes in (("what has to come first:", first), ("what would start it, the smallest first:", starting)):
        if changes:
            console.print(f"  {title}", style="dim")
        for change in changes:
            command = f": {change['command']}" if change["command"] else ""
            console.print(f"  - {change['text']}{command}", markup=False, soft_wrap=True)
