"""Progress, tables and texts on the terminal: while a batch renders, of batches, and of cards."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from cluster.catalog.manifest import Manifest
from cluster.estimates.published import canonical
from cluster.jobs.model import HoldReason, JobState
from pipeline.notes import Note, counted, notes_from, rows_text
from pipeline.problems import Problem
from pipeline.units import format_bytes
from serve.cli.session import Moment

_FARM_TEXT = {
    "starting": "starting the farm",
    "running": "rendering",
    "shared": "rendering, by the farm that runs already",
    "idle": "reading the catalog",
}
#: Running clips shown line by line.
_LINES = 8
#: Cards that cannot be used, shown line by line.
_FAULTS = 4
#: Times and rows that others wait for, shown line by line.
_WAITS = 10


class RowPace:
    """How fast clips are done, and how long the rest will take, as far as that can be told from what was seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def words(self, done: float, total: int, *, running: bool) -> tuple[str, str]:
        """(`3.4 clips/min`, `about 20 min left`); both empty while there is too little to go by.

        `done` counts clips under way by their steps, so that a long clip does not look like a standstill; `running`:
        whether any is under way. Counted from the first that was: what was done before says nothing about the pace.
        """
        if self._first is None:
            if running:
                self._first = (self._clock(), done)
            return "", ""
        began, before = self._first
        elapsed, rendered = self._clock() - began, done - before
        if rendered < 0.2 or elapsed < 2:
            return "", ""
        per_second = rendered / elapsed
        left = (total - done) / per_second
        return f"{per_second * 60:.1f} clips/min", f"about {clock_text(left)} left" if round(left) else "finishing"


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
        self._pace = RowPace(clock)
        self._printed_at = 0.0
        self._faults = ""

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
        """Show the state of the render at this moment."""
        if self._silent:
            return
        done = moment.batch.counts.final if moment.batch else 0
        rate, eta = self._speed(moment, done)
        self._show_faults(moment)
        if self._live is None:
            self._print(moment, done, rate, eta)
            return
        self._progress.update(
            self._task, description=_FARM_TEXT[moment.farm], total=moment.rows, completed=done, rate=rate, eta=eta
        )
        self._live.update(Group(self._progress, *map(_line, moment.running[:_LINES])))

    def _speed(self, moment: Moment, done: int) -> tuple[str, str]:
        now = done + sum(job.step / job.steps for job in moment.running if job.steps)
        return self._pace.words(now, moment.rows, running=bool(moment.running))

    def _show_faults(self, moment: Moment) -> None:
        # Once, above the progress: whoever waits for a card that cannot be used waits for nothing else.
        if (text := _faults_text(moment.faults, moment.cards)) != self._faults:
            self._faults = text
            words = text or "all cards of this farm can be used again"
            self._console.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _print(self, moment: Moment, done: int, rate: str, eta: str) -> None:
        if self._clock() - self._printed_at < 5:
            return
        self._printed_at = self._clock()
        parts = [_FARM_TEXT[moment.farm], f"{done} of {moment.rows} rows done", rate, eta]
        self._console.print(" · ".join(part for part in parts if part), highlight=False)


def _line(job: Any) -> Text:
    spec = job.spec
    steps = f"step {job.step} of {job.steps}" if job.steps else "loading"
    return Text(f"   {job.name}  {spec.family} {spec.width}×{spec.height}  {steps}", style="dim")


def running_text(job: dict[str, Any]) -> str:
    """One line of text on a running clip: its name, model, size and step."""
    steps = f"step {job['step']} of {job['steps']}" if job["steps"] else "loading"
    return f"   {job['name']}  {job['model']} {job['size']}  {steps}"


def clock_text(seconds: float) -> str:
    """Seconds in words, such as `42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def problems_table(jobs: list[dict[str, Any]]) -> Table:
    """A table of failed rows: which row, which field, what is wrong, what to do."""
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


def refusals_table(refused: Mapping[str, Problem]) -> Table:
    """A table of rows whose clips are done and could not be written where `--out` says, by id."""
    table = Table(
        title="Rows not written", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in ("id", "what is wrong", "what to do"):
        table.add_column(column, overflow="fold")
    for name, problem in refused.items():
        table.add_row(Text(name), Text(problem.message), Text(problem.remedy))
    return table


def notes_text(jobs: list[dict[str, Any]]) -> list[str]:
    """What was assumed, adjusted or judged of rows: each kind once, with how many rows have it and which."""
    return counted((str(job.get("name", "")), _notes_of(job)) for job in jobs)


def unknown_text(manifest: Manifest) -> list[str]:
    """The columns that a catalog has for others, in one sentence; none where it has none."""
    return [manifest.unknown] if manifest.unknown else []


def _notes_of(job: dict[str, Any]) -> list[Note]:
    if "noted" in job:
        return list(notes_from(job["noted"]))
    # A farm before typed notes tells sentences only: those that are equal are one kind.
    texts = [*job.get("adjusted", ()), *job.get("notes", ())]
    return [Note(code=f"note_{crc32(text.encode()):08x}", message=text) for text in texts]


def batches_table(batches: list[dict[str, Any]]) -> Table:
    """A table of batches with when they were handed in and their counts; below a name its key and comment."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    # An id cut short cannot be pasted into the next command.
    table.add_column("batch", no_wrap=True, min_width=38)
    table.add_column("name", overflow="fold")
    table.add_column("handed in", no_wrap=True)
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
            _name_text(batch),
            moment_text(batch["created_at"]),
            status,
            f"{counts['completed']}/{counts['total']}",
            str(counts["running"]),
            str(counts["queued"] + counts["held"]),
            str(counts["failed"]),
            str(batch["attempts"]),
        )
    return table


def _name_text(batch: dict[str, Any]) -> Text:
    # A farm of another version may not say who or by which key.
    owner, key, comment = batch.get("owner"), batch.get("key"), batch.get("comment")
    text = Text(batch["name"])
    for words in (owner and owner != "local" and f"of {owner}", key and f"key {key}", comment):
        if words:
            text.append(f"\n{words}", style="dim")
    return text


def moment_text(at: float) -> str:
    """A time in UTC epoch seconds as local people write it: without the year while it is this one."""
    then = time.localtime(at)
    return time.strftime("%d %b %H:%M" if then.tm_year == time.localtime().tm_year else "%d %b %Y", then)


def rows_table(jobs: list[dict[str, Any]]) -> Table:
    """A table of a batch's rows: what each is, where it stands, and what it waits for or failed of."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("clip", overflow="fold")
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("why, or what to know", overflow="fold")
    for job in jobs:
        problems = [problem["message"] for problem in job["problems"]]
        notes = [] if problems else [*_waits_of(job), *(note.message for note in _notes_of(job))]
        if job.get("interactive") and job["state"] in (JobState.QUEUED, JobState.HELD, JobState.RUNNING):
            notes.insert(0, "interactive")
        table.add_row(
            str(job["row"].get("number", job["number"])),
            Text(job["name"]),
            job["state"],
            f"{job['step']}/{job['steps']}" if job["steps"] and job["state"] == JobState.RUNNING else "",
            f"{job['model']} {job['size']}" if job["model"] else "",
            str(job["attempts"]),
            Text("; ".join([*problems, *([job["reason"]] if job["reason"] and not problems else []), *notes])),
        )
    return table


def _waits_of(job: dict[str, Any]) -> list[str]:
    """What a row that has not begun waits for: a time, another row. An older farm may not say."""
    if job["state"] not in (JobState.QUEUED, JobState.HELD):
        return []
    first, then = (job.get("row") or {}).get("after") or job.get("after"), job.get("not_before")
    parts = [f"not before {zoned_text(then)}"] if then is not None and then > time.time() else []
    return [*parts, f"after {first}"] if first and job["reason"] == HoldReason.AFTER else parts


def zoned_text(at: float) -> str:
    """A time in UTC epoch seconds as this machine's clocks show it, with its year and offset: `2030-06-01 08:00+02:00`.

    In UTC where no calendar of this machine reaches it.
    """
    try:
        return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="minutes")
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f} s after 1970 (UTC)"


def waits_text(rows: list[dict[str, Any]]) -> list[str]:
    """When rows of a catalog start no sooner, and after which others, in lines: `2 rows (A, B): not before …`.

    Each row has `name`, `not_before` in UTC epoch seconds, and `after`, either or both None.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["not_before"] is not None:
            gone = "" if row["not_before"] > time.time() else ", which is over"
            found.setdefault(f"not before {zoned_text(row['not_before'])}{gone}", []).append(row["name"])
        if row["after"]:
            found.setdefault(f"after {row['after']}", []).append(row["name"])
    lines = [f"{rows_text(names)}: {what}" for what, names in found.items()]
    more = len(lines) - _WAITS
    return lines if more <= 0 else [*lines[:_WAITS], f"and {more} more (`--json` has all)"]


_WAITS_FOR = {
    "approval": "for an approval: `clipmill approve {id}`",
    "paused": "because they are paused: `clipmill resume {id}`",
    "after": "for other rows",
    "review": "for a review: `clipmill review {id}`",
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
    """A table of cards: memory, state, model, the largest clip that fits; below it, orders and warnings."""
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("card", "class", "kind", "state", "used", "others", "usable", "model", "largest that fits"):
        table.add_column(column, justify="right" if column in ("used", "others", "usable") else "left")
    for card in cards:
        table.add_row(
            card["card"],
            card["card_class"],
            card["kind"],
            card_state_text(card),
            format_bytes(card["used_bytes"]),
            format_bytes(card.get("foreign_bytes", 0)),
            format_bytes(card["usable_bytes"]),
            card["family"] or "",
            _largest_text(card),
        )
    notes = [
        f"{card['card']}: {words}"
        for card in cards
        for words in (
            order_text(card.get("order")),
            card.get("warning"),
            card.get("fault") and f"takes only clips that need no GPU. {card['fault']}",
            card.get("holding") and f"a clip has not begun: it {card['holding']}",
        )
        if words
    ]
    notes += [words for words in [storage_text(cards)] if words]
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes), style="yellow"), "left"
    return table


def kernels_lines(kernels: list[dict[str, Any]], kinds: Collection[str]) -> list[str]:
    """One line for each of the card `kinds` that kernels were measured on: which clips are compiled, and what it gains.

    `kernels`: views of `cluster.estimates.kernels.KernelsInUse`, whose kinds are the names that measured times have.
    """
    by_kind: dict[str, list[str]] = {canonical(kind): [] for kind in sorted(kinds)}
    for each in kernels:
        if each["kind"] in by_kind:
            by_kind[each["kind"]].append(_kernels_text(each))
    return [f"{kind}: kernels: {'; '.join(texts)}" for kind, texts in by_kind.items() if texts]


def _kernels_text(each: Mapping[str, Any]) -> str:
    clip = f"{each['family']} {each['resolution_class']}×{each['frames']}"
    layout = f", {each['layout']}" if each["layout"] else ""
    is_compiled, failures = each["used"] == "compiled", each["failures"]
    if each["speedup"] is not None:
        measured = f"{'' if is_compiled else 'compiled '}{each['speedup']:.2f}x eager, "
    else:
        measured = f"compiling failed {failures}x, " if failures else "" if is_compiled else "compiled not measured, "
    clips = each["compiled_clips"] if is_compiled or each["speedup"] is not None else each["eager_clips"]
    return f"{each['used']} for {clip}{layout} ({measured}{clips} {'clip' if clips == 1 else 'clips'})"


def storage_text(cards: list[dict[str, Any]]) -> str:
    """What is wrong with storage, as the farm's cards tell; empty where nothing is."""
    fault = next((str(card["storage_fault"]) for card in cards if card.get("storage_fault")), "")
    return fault and f"storage cannot be written, nothing starts until it can: {fault}"


def faults_text(cards: list[dict[str, Any]]) -> str:
    """Which of the farm's cards cannot be used, why, and what to do; empty where all can."""
    return _faults_text({str(card["card"]): str(card["fault"]) for card in cards if card.get("fault")}, len(cards))


def _faults_text(faults: Mapping[str, str], cards: int) -> str:
    if not faults:
        return ""
    head = f"{len(faults)} of {cards} cards cannot be used"
    if len(faults) == cards:
        head = "no card of this farm can be used, so only models that need no GPU (camera) are rendered"
    lines = [f"{card}: {fault}" for card, fault in sorted(faults.items())[:_FAULTS]]
    if len(faults) > _FAULTS:
        lines.append(f"and {len(faults) - _FAULTS} more: `clipmill cards` has them all")
    return "\n  ".join([f"{head}:", *lines])


_ORDERED = {"lock": "locked", "drain": "drained", "quarantine": "quarantined"}


def card_state_text(card: dict[str, Any]) -> str:
    """What a card does, and that it takes no new clip where it takes none: `idle, drained`."""
    order = card.get("order")
    parts = [card["state"], *([_ORDERED[order["kind"]]] if order else []), *(["no GPU"] if card.get("fault") else [])]
    return ", ".join(parts)


def order_text(order: dict[str, Any] | None) -> str:
    """The order that holds for a card, in words; empty where none does."""
    if not order:
        return ""
    until = f" until {time.strftime('%H:%M', time.localtime(order['until']))}" if order["until"] else ""
    reason = f": {order['reason']}" if order["reason"] else ""
    return f"{_ORDERED[order['kind']]} by {order['given_by']}{until}{reason}"


def _largest_text(card: dict[str, Any]) -> str:
    # A farm of another version may not say.
    found = card.get("largest") or {}
    names = [card["family"]] if card["family"] in found else list(found)
    return "\n".join(
        f"{name} {fit['class']} × {fit['frames']}" if (fit := found[name]) else f"{name}: none" for name in names
    )
