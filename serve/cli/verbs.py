"""`pause`, `resume`, `cancel`, `retry`, `hold`, `approve`, `prioritize`: what may be said of a batch or a job."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.manifest import MAX_PRIORITY
from cluster.store.lookup import NoSuchJobError
from cluster.verbs import Verb
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
from serve.cli.options import MaxCost, MaxFailures, MaxGpuHours
from serve.cli.show import batches_table, held_text
from serve.ports import FarmPort

What = Annotated[str, typer.Argument(metavar="BATCH|JOB", help="Id of a batch or a job, or its beginning.")]
RowName = Annotated[str | None, typer.Option("--row", metavar="SKU", help="Only the row of the batch with this id.")]


def pause(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Start nothing more of a batch or job; clips in flight are saved and go on after `resume`.

    A clip of a model that cannot be saved half way is finished.
    """
    _say(Verb.PAUSE, what, row, url, home, as_json)


def resume(
    what: What,
    row: RowName = None,
    max_failures: MaxFailures = None,
    max_gpu_hours: MaxGpuHours = None,
    max_cost: MaxCost = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Go on with what was paused, or with a batch that reached a limit, once that is higher."""
    limits = {"max_failures": max_failures, "max_gpu_hours": max_gpu_hours, "max_cost": max_cost}
    _say(Verb.RESUME, what, row, url, home, as_json, {k: v for k, v in limits.items() if v is not None})


def cancel(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Cancel what has not ended; a running clip stops within a step."""
    _say(Verb.CANCEL, what, row, url, home, as_json)


def retry(
    what: What,
    row: RowName = None,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Cancelled rows of the batch too.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Put failed rows back into the queue, with their attempts counted from zero."""
    _say(Verb.RETRY, what, row, url, home, as_json, {"cancelled": True} if cancelled else {})


def hold(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Let nothing more of it start until `approve`."""
    _say(Verb.HOLD, what, row, url, home, as_json)


def approve(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Let go what waits for an approval."""
    _say(Verb.APPROVE, what, row, url, home, as_json)


def prioritize(
    what: What,
    priority: Annotated[
        int,
        typer.Argument(min=-MAX_PRIORITY, max=MAX_PRIORITY, help="Higher starts first; 0 where nobody says anything."),
    ],
    row: RowName = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set the priority of what has not ended (a negative one after `--`: `prioritize BATCH -- -5`)."""
    _say(Verb.PRIORITIZE, what, row, url, home, as_json, of_both={"priority": priority})


def _say(
    verb: Verb,
    what: str,
    row: str | None,
    url: str | None,
    home: Home,
    as_json: bool,
    of_batch: dict[str, Any] | None = None,
    of_both: dict[str, Any] | None = None,
) -> None:
    with telling_errors():
        port = connect(settings_for(home), url)
        found = port.find(what)
        is_batch = found.startswith("batch_")
        if row is not None and not is_batch:
            fail(Exit.USAGE, f"--row is a row of a batch, and {what} is a job: leave --row out")
        if is_batch and row is None:
            batch = port.say(found, verb, **(of_batch or {}), **(of_both or {}))
            if as_json:
                print_json({"batch": batch})
                return
            console.print(batches_table([batch]))
            if held := held_text(batch):
                console.print(f"  {held}", soft_wrap=True)
            return
        if of_batch and verb is Verb.RESUME:
            fail(Exit.USAGE, "limits are a batch's: leave --row out, and name the batch")
        job = port.say_of_job(row_of(port, found, row) if row is not None else found, verb, **(of_both or {}))
        if as_json:
            print_json({"job": job})
        else:
            why = f" ({job['reason']})" if job["reason"] else ""
            soon = f", and will be held ({job['hold_requested']})" if job["hold_requested"] else ""
            console.print(escape(f"{job['name']} {job['id']} is {job['state']}{why}{soon}"), soft_wrap=True)


def row_of(port: FarmPort, batch_id: str, name: str) -> str:
    """Id of a row of a batch by its name. Raises `NoSuchJobError`."""
    found = port.jobs(batch_id, name=name)
    if not found:
        raise NoSuchJobError(f"batch {batch_id} has no row {name!r}; `clipmill status {batch_id} --json` lists them")
    # A row that cannot be rendered may bear the name of one that can.
    return str(min(found, key=lambda job: job["model"] is None)["id"])
