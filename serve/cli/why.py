"""`why`: why a job waits, and the smallest change that would start it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from serve.cli.common import (
    Exit,
    Home,
    Json,
    Url,
    connect,
    console,
    fail,
    print_json,
    settings_for,
    telling_errors,
)
from serve.cli.verbs import RowName, row_of

What = Annotated[
    str, typer.Argument(metavar="JOB|BATCH", help="Id of a job (or of a batch, with --row), or its beginning.")
]


def why(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Say why a job waits (or where it runs, or why it failed) and the smallest change that would start it."""
    with telling_errors():
        port = connect(settings_for(home), url)
        found = port.find(what)
        is_batch = found.startswith("batch_")
        if is_batch and row is None:
            fail(
                Exit.USAGE, f"{what} is a batch: name one of its rows with --row, as `clipmill status {what}` has them"
            )
        if row is not None and not is_batch:
            fail(Exit.USAGE, f"--row is a row of a batch, and {what} is a job: leave --row out")
        told = port.why(row_of(port, found, row) if row is not None else found)
        if as_json:
            print_json({"why": told})
        else:
            _show(told)


def _show(told: dict[str, Any]) -> None:
    reason = f" ({told['reason']})" if told["reason"] != told["state"] else ""
    console.print(f"{told['job']} is {told['state']}{reason}", markup=False, soft_wrap=True)
    console.print(f"  {told['text']}", markup=False, soft_wrap=True)
    starting = [change for change in told["changes"] if change["starts"]]
    first = [change for change in told["changes"] if not change["starts"]]
    for title, changes in (("what has to come first:", first), ("what would start it, the smallest first:", starting)):
        if changes:
            console.print(f"  {title}", style="dim")
        for change in changes:
            command = f": {change['command']}" if change["command"] else ""
            console.print(f"  - {change['text']}{command}", markup=False, soft_wrap=True)
