"""What the terminal shows while a batch renders, and after it."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from cluster.jobs import JobState
from serve.cli.session import Moment

_FARM_TEXT = {
    "starting": "starting the farm",
    "running": "rendering",
    "shared": "another terminal runs the farm of this home",
    "idle": "reading the catalog",
}
#: Running clips shown line by line.
_LINES = 8


class ProgressView:
    """Live progress on a terminal; a plain line now and then where there is none; nothing when silent."""

    def __init__(self, console: Console, *, silent: bool = False, clock: Any = time.monotonic) -> None:
        self._console = console
        self._silent = silent
        self._clock = clock
        self._live = Live(console=console, refresh_per_second=6, transient=True) if console.is_terminal else None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[dim]{task.fields[eta]}"),
            console=console,
        )
        self._task = self._progress.add_task("reading the catalog", total=None, rate="", eta="")
        self._first: tuple[float, float] | None = None
        self._said_at = 0.0

    def __enter__(self) -> Self:
        if self._live and not self._silent:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the display off the terminal and give the cursor back; harmless when repeated."""
        if self._live and not self._silent:
            self._live.stop()

    def __call__(self, moment: Moment) -> None:
        """Show this moment."""
        if self._silent:
            return
        done = moment.batch.counts.final if moment.batch else 0
        rate, eta = self._speed(moment, done)
        if self._live is None:
            self._say(moment, done, rate, eta)
            return
        self._progress.update(
            self._task, description=_FARM_TEXT[moment.farm], total=moment.rows, completed=done, rate=rate, eta=eta
        )
        self._live.update(Group(self._progress, *map(_line, moment.running[:_LINES])))

    def _speed(self, moment: Moment, done: int) -> tuple[str, str]:
        # Clips under way count by their steps, so that a long clip does not look like a standstill.
        now = done + sum(job.step / job.steps for job in moment.running if job.steps)
        # Counted from the first clip of this run: rows that were done before say nothing about the pace.
        if self._first is None:
            if moment.running:
                self._first = (self._clock(), now)
            return "", ""
        began, before = self._first
        elapsed, rendered = self._clock() - began, now - before
        if rendered < 0.2 or elapsed < 2:
            return "", ""
        per_second = rendered / elapsed
        left = (moment.rows - now) / per_second
        return f"{per_second * 60:.1f} clips/min", f"about {clock_text(left)} left" if round(left) else "finishing"

    def _say(self, moment: Moment, done: int, rate: str, eta: str) -> None:
        if self._clock() - self._said_at < 5:
            return
        self._said_at = self._clock()
        parts = [_FARM_TEXT[moment.farm], f"{done} of {moment.rows} rows done", rate, eta]
        self._console.print(" · ".join(part for part in parts if part), highlight=False)


def _line(job: Any) -> Text:
    spec = job.spec
    steps = f"step {job.step} of {job.steps}" if job.steps else "loading"
    return Text(f"   {job.name}  {spec.family} {spec.width}×{spec.height}  {steps}", style="dim")


def running_text(job: dict[str, Any]) -> str:
    """A running clip in a line."""
    steps = f"step {job['step']} of {job['steps']}" if job["steps"] else "loading"
    return f"   {job['name']}  {job['model']} {job['size']}  {steps}"


def clock_text(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def problems_table(jobs: list[dict[str, Any]]) -> Table:
    """Failed rows: which, field, why, what to do."""
    table = Table(
        title="Rows that failed", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in ("row", "id", "field", "what is wrong", "what to do"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        where = str(job["row"].get("number", job["number"]))
        if line := job["row"].get("line"):
            where += f" (line {line})"
        for problem in job["problems"] or [{"field": "", "message": job["reason"] or "", "remedy": ""}]:
            table.add_row(where, Text(job["name"]), problem["field"], Text(problem["message"]), Text(problem["remedy"]))
            where = ""
    return table


def notes_text(jobs: list[dict[str, Any]]) -> list[str]:
    """What was adjusted and what has no effect, each once with the number of its rows."""
    counts = Counter(note for job in jobs for note in [*job.get("adjusted", ()), *job.get("notes", ())])
    return [f"{note} ({count} {'row' if count == 1 else 'rows'})" for note, count in counts.most_common()]


def batches_table(batches: list[dict[str, Any]]) -> Table:
    """Batches with their counts."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    # An id cut short cannot be pasted into the next command.
    table.add_column("batch", no_wrap=True, min_width=38)
    table.add_column("name", overflow="fold")
    table.add_column("status", no_wrap=True)
    for column in ("done", "running", "waiting", "failed", "attempts"):
        table.add_column(column, justify="right", no_wrap=True)
    for batch in batches:
        counts = batch["counts"]
        status = batch["status"]
        if status == "running" and batch.get("attended") is False and not counts[JobState.RUNNING]:
            status = "waiting"
        table.add_row(
            batch["id"],
            Text(batch["name"]),
            status,
            f"{counts['completed']}/{counts['total']}",
            str(counts["running"]),
            str(counts["queued"] + counts["held"]),
            str(counts["failed"]),
            str(batch["attempts"]),
        )
    return table


_WAITS_FOR = {
    "approval": "for an approval: `clipmill approve {id}`",
    "paused": "because they are paused: `clipmill resume {id}`",
    "after": "for other rows",
    "failures": "because so many rows have failed: `clipmill resume {id} --max-failures N`",
    "budget": "because the budget is used up: `clipmill resume {id} --max-gpu-hours H` or `--max-cost C`",
}


def held_text(batch: dict[str, Any]) -> str:
    """How many rows are held and why, with the command that lets them go; empty where none is."""
    rows = batch.get("held", {}).get("rows", {})
    parts = [
        f"{'1 row waits' if number == 1 else f'{number} rows wait'} {_WAITS_FOR[reason].format(id=batch['id'])}"
        for reason, number in rows.items()
    ]
    return "; ".join(parts)


def cards_table(cards: list[dict[str, Any]]) -> Table:
    """Cards with what they hold."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("card", "class", "kind", "state", "used", "others", "usable", "model", "largest that fits"):
        table.add_column(column, justify="right" if column in ("used", "others", "usable") else "left")
    for card in cards:
        table.add_row(
            card["card"],
            card["card_class"],
            card["kind"],
            card["state"],
            bytes_text(card["used_bytes"]),
            bytes_text(card.get("foreign_bytes", 0)),
            bytes_text(card["usable_bytes"]),
            card["family"] or "",
            _largest_text(card),
        )
    said = [
        f"{card['card']}: {words}"
        for card in cards
        for words in (
            order_text(card.get("order")),
            card.get("warning"),
            card.get("holding") and f"a clip has not begun: it {card['holding']}",
        )
        if words
    ]
    if said:
        table.caption, table.caption_justify = Text("\n".join(said), style="yellow"), "left"
    return table


def order_text(order: dict[str, Any] | None) -> str:
    """What was said of a card; empty where nothing was."""
    if not order:
        return ""
    names = {"lock": "locked", "drain": "drained", "quarantine": "quarantined"}
    until = f" until {time.strftime('%H:%M', time.localtime(order['until']))}" if order["until"] else ""
    reason = f": {order['reason']}" if order["reason"] else ""
    return f"{names[order['kind']]} by {order['given_by']}{until}{reason}"


def _largest_text(card: dict[str, Any]) -> str:
    # A farm of another version may not say.
    found = card.get("largest") or {}
    names = [card["family"]] if card["family"] in found else list(found)
    return "\n".join(
        f"{name} {fit['class']} × {fit['frames']}" if (fit := found[name]) else f"{name}: none" for name in names
    )


def bytes_text(count: int) -> str:
    """`23.1 GiB`, `143 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
