"""`pause`, `resume`, `cancel`, `retry`, `hold`, `approve`, `prioritize`, `delete`: the commands on a batch or a job."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cluster.catalog.manifest import MAX_PRIORITY
from cluster.jobs.ids import is_batch_id
from cluster.jobs.model import JobState, Reason
from cluster.jobs.transitions import RefusedError, Verb
from cluster.store.lookup import NoSuchBatchError, NoSuchJobError
from pipeline.notes import rows_text
from pipeline.units import format_bytes
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
from serve.cli.options import MaxCost, MaxFailures, MaxGpuHours
from serve.cli.show import batches_table, held_text
from serve.client import FarmClient, View

What = Annotated[str, typer.Argument(metavar="BATCH|JOB", help="Id of a batch or a job, or its beginning.")]
RowName = Annotated[str | None, typer.Option("--row", metavar="SKU", help="Only the row of the batch with this id.")]


def pause(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Start nothing more of a batch or job; clips in flight are saved and go on after `resume`.

    A clip of a model that cannot be saved half way is finished.
    """
    command(Verb.PAUSE, what, row, url, home, as_json)


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
    command(Verb.RESUME, what, row, url, home, as_json, {k: v for k, v in limits.items() if v is not None})


def cancel(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Cancel what has not ended; a running clip stops within a step."""
    command(Verb.CANCEL, what, row, url, home, as_json)


def retry(
    what: What,
    row: RowName = None,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Cancelled rows of the batch too.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Put failed rows back into the queue, with their attempts counted from zero.

    Exit 1 where some stay failed, their row or picture being at fault.
    """
    command(Verb.RETRY, what, row, url, home, as_json, {"cancelled": True} if cancelled else {})


def hold(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Let nothing more of it start until `approve`."""
    command(Verb.HOLD, what, row, url, home, as_json)


def approve(what: What, row: RowName = None, url: Url = None, home: Home = None, as_json: Json = False) -> None:
    """Let go what waits for an approval; a draft goes on to its next round, of several candidates it is the one."""
    command(Verb.APPROVE, what, row, url, home, as_json)


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
    command(Verb.PRIORITIZE, what, row, url, home, as_json, of_both={"priority": priority})


def delete(
    batches: Annotated[list[str], typer.Argument(metavar="BATCH…", help="Ids of batches, or their beginnings.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete batches that have ended, and their clips that no other batch shows. Results in your folders stay."""
    with exit_on_error():
        client = connect(settings_for(home), url)
        plans, gone = _plans(client, batches)
        if not as_json:
            for batch_id in gone:
                console.print(f"there is no batch {batch_id}: nothing is left to delete", soft_wrap=True)
            _print_plans(plans)
        if dry_run or not plans:
            done: list[View] = plans
        else:
            if not yes:
                _ask(len(plans), as_json=as_json)
            done = [client.delete_batch(plan["id"]) for plan in plans]
        if as_json:
            print_json({"batches": done, "gone": gone})
        elif done is not plans:
            freed = format_bytes(sum(one["freed_bytes"] for one in done))
            console.print(f"deleted {_number(len(done), 'batch', 'batches')}, {freed} freed")


def _plans(client: FarmClient, texts: list[str]) -> tuple[list[View], list[str]]:
    """(what would go with each batch, whole ids that no batch has). Exits 2 where one of them cannot go: none goes."""
    plans: dict[str, View] = {}
    gone: list[str] = []
    for text in texts:
        try:
            # A whole id is not looked up: what was deleted before is no mistake.
            batch_id = text if is_batch_id(text) else client.find(text)
            if not batch_id.startswith("batch_"):
                fail(Exit.USAGE, f"{text} is a job; only whole batches can be deleted")
            plans[batch_id] = client.delete_batch(batch_id, dry_run=True)
        except NoSuchBatchError:
            if not is_batch_id(text):
                raise
            gone.append(text)
        except RefusedError as error:
            fail(Exit.USAGE, f"{error}. Nothing was deleted.")
    return list(plans.values()), gone


def _print_plans(plans: list[View]) -> None:
    for plan in plans:
        clips = _number(plan["clips"], "clip", "clips")
        goes = f"{plan['id']}: {_number(plan['rows'], 'row', 'rows')}, {clips} ({format_bytes(plan['freed_bytes'])})"
        shared = plan["shared_clips"]
        stays = f"; {_number(shared, 'clip', 'clips')} that other batches show stay" if shared else ""
        console.print(f"{goes}{stays}", soft_wrap=True)
    if plans:
        console.print(
            "  results in folders, and stills of other batches, stay; other stills go with a later sweep",
            style="dim",
            soft_wrap=True,
        )


def _ask(number: int, *, as_json: bool) -> None:
    what = "this batch" if number == 1 else f"these {number} batches"
    if as_json or not sys.stdin.isatty():
        fail(Exit.USAGE, f"nothing was deleted: give --yes to delete {what}, --dry-run to see what would go")
    if not typer.confirm(f"Delete {what}?"):
        console.print("nothing was deleted")
        raise typer.Exit(Exit.DONE)


def _number(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def command(
    verb: Verb,
    what: str,
    row: str | None,
    url: str | None,
    home: Home,
    as_json: bool,
    of_batch: dict[str, Any] | None = None,
    of_both: dict[str, Any] | None = None,
    of_job: dict[str, Any] | None = None,
) -> None:
    """Carry out `verb` on what `what` begins, or on its row of the name `row`, and print what it is then.

    What goes with the verb: `of_batch` on a batch, `of_job` on a job, `of_both` on either.
    """
    with exit_on_error():
        client = connect(settings_for(home), url)
        found = client.find(what)
        is_batch = found.startswith("batch_")
        if row is not None and not is_batch:
            fail(Exit.USAGE, f"--row is a row of a batch, and {what} is a job: leave --row out")
        if is_batch and row is None:
            if of_job:
                fail(Exit.USAGE, "what is to be different is said of one row: add --row, or name its job")
            batch = client.command_batch(found, verb, **(of_batch or {}), **(of_both or {}))
            # Those that obey are back in the queue by now.
            left = _not_retried(client, found) if verb is Verb.RETRY else []
            if as_json:
                print_json({"batch": batch} | ({"not_retried": [job["id"] for job in left]} if left else {}))
            else:
                console.print(batches_table([batch]))
                if held := held_text(batch):
                    console.print(f"  {held}", soft_wrap=True)
                for words in not_retried_text(left):
                    console.print(words, style="yellow", markup=False, soft_wrap=True)
            if left:
                raise typer.Exit(Exit.SOME_FAILED)
            return
        if of_batch and verb is Verb.RESUME:
            fail(Exit.USAGE, "limits are a batch's: leave --row out, and name the batch")
        job = client.command_job(
            row_of(client, found, row) if row is not None else found, verb, **(of_both or {}), **(of_job or {})
        )
        if as_json:
            print_json({"job": job})
        else:
            why = f" ({job['reason']})" if job["reason"] else ""
            soon = f", and will be held ({job['hold_requested']})" if job["hold_requested"] else ""
            console.print(f"{job['name']} {job['id']} is {job['state']}{why}{soon}", soft_wrap=True)


def _not_retried(client: FarmClient, batch_id: str) -> list[View]:
    # Others that have failed were put back, and have failed again since.
    stay = (Reason.INVALID, Reason.AFTER_FAILED)
    return [job for job in client.jobs(batch_id, state=JobState.FAILED) if job["reason"] in stay]


def not_retried_text(left: list[View]) -> list[str]:
    """Why rows that have failed were not put back, `left` being those, and what to do: a line for each kind."""
    at_fault = [job["name"] for job in left if job["reason"] == Reason.INVALID]
    others = [job["name"] for job in left if job["reason"] == Reason.AFTER_FAILED]
    lines = []
    if at_fault:
        lines.append(
            f"{rows_text(at_fault)} not put back: the row or its picture is at fault, and the farm has it as it was "
            "handed in. Correct it and hand the catalog in again: clips that are done are not rendered again"
        )
    if others:
        lines.append(f"{rows_text(others)} not put back: the row it waits for has failed. Put that right first")
    return lines


def row_of(client: FarmClient, batch_id: str, name: str) -> str:
    """Id of a row of a batch by its name. Raises `NoSuchJobError`."""
    found = client.jobs(batch_id, name=name)
    if not found:
        raise NoSuchJobError(f"batch {batch_id} has no row {name!r}; `clipmill status {batch_id} --rows` lists them")
    # A row that cannot be rendered may bear the name of one that can.
    return str(min(found, key=lambda job: job["model"] is None)["id"])


#: In the order in which `clipmill --help` lists them.
COMMANDS = (pause, resume, cancel, retry, hold, approve, prioritize, delete)
