"""`review`, `reject`, `reroll`: drafts and candidates, and what becomes of them. `approve` is in `commands`."""

from __future__ import annotations

import webbrowser
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.jobs.transitions import Verb
from serve.cli.commands import RowName, What, command
from serve.cli.common import (
    BatchId,
    Exit,
    Home,
    Json,
    Url,
    connect,
    console,
    exit_on_error,
    fail,
    farm_facts,
    newest,
    print_json,
    settings_for,
)
from serve.client import View
from serve.settings import Settings

#: Characters of a prompt in a table.
_SHOWN = 60
Prompt = Annotated[str | None, typer.Option(help="What moves in the other clip.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the other clip shall not show.")]
Guidance = Annotated[float | None, typer.Option(min=1, max=30, help="How closely the other clip follows the prompt.")]


def review(
    batch: BatchId = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page on which they are decided with keys.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List drafts and candidates that wait for somebody who looks at them, the next one first."""
    with exit_on_error():
        settings = settings_for(home)
        client = connect(settings, url)
        batch_id = client.find(batch) if batch else newest(client)
        if not batch_id.startswith("batch_"):
            fail(Exit.USAGE, f"{batch} is a job: name its batch, or decide on it with approve, reject or reroll")
        waiting = client.in_review(batch_id)
        page = _page_of(settings, url, batch_id)
        if as_json:
            print_json({"batch": batch_id, "page": page, "waiting": waiting})
            return
        if not waiting:
            console.print("nothing waits for a review")
            return
        console.print(_table(waiting))
        first = waiting[0]
        console.print(
            f"  next: `clipmill approve {first['id']}`, `clipmill reject …`, `clipmill reroll …`"
            + (f" · with keys, side by side: {page}" if page else ""),
            style="dim",
            soft_wrap=True,
        )
        if show:
            if page is None:
                fail(Exit.NO_FARM, "no gateway answers for this home: start one with `clipmill up`, or give --url")
            # Within a terminal it is the browser that the terminal has.
            if not webbrowser.open(page):
                fail(Exit.USAGE, f"no browser could be started: open {page} yourself")


def reject(
    what: What,
    row: RowName = None,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance: Guidance = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let go of a draft or a candidate; with another prompt or guidance another is made in its place."""
    changes = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance": guidance}
    _decide(Verb.REJECT, what, row, changes, url, home, as_json)


def reroll(
    what: What,
    row: RowName = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The other clip's seed (default: another).")] = None,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance: Guidance = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a draft or a clip again: from another seed, or with what is said."""
    changes = {"seed": seed, "prompt": prompt, "negative_prompt": negative_prompt, "guidance": guidance}
    _decide(Verb.REROLL, what, row, changes, url, home, as_json)


def _decide(
    verb: Verb, what: str, row: str | None, changes: dict[str, Any], url: str | None, home: Home, as_json: bool
) -> None:
    given = {name: value for name, value in changes.items() if value is not None}
    command(verb, what, row, url, home, as_json, of_job=given)


def _page_of(settings: Settings, url: str | None, batch_id: str) -> str | None:
    """Address of the page on which a batch is reviewed; None where no gateway is known."""
    base = url or settings.url or farm_facts(settings).get("url")
    if not base:
        return None
    base = base if "://" in base else f"http://{base}"
    return f"{base.rstrip('/')}/batches/{batch_id}/review"


def _table(waiting: list[View]) -> Table:
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("row", "round", "seed", "guidance", "job", "prompt", "notes"):
        table.add_column(column, justify="right" if column in ("seed", "guidance") else "left")
    for job in waiting:
        prompt = str(job["row"].get("prompt") or "")
        table.add_row(
            Text(job["name"]),
            job["review"]["round"] or "candidate",
            str(job["seed"]),
            f"{job['guidance']:g}" if job["guidance"] is not None else "",
            job["id"],
            Text(prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 1]}…"),
            Text("; ".join(job["notes"])[:_SHOWN]),
        )
    return table


#: In the order in which `clipmill --help` lists them.
COMMANDS = (review, reject, reroll)
