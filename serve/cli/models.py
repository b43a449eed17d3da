"""`models`: the model families, and their weights on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from cluster.fleet.cards import NOMINAL_BYTES, Fleet, promised_bytes
from pipeline.clips.clip import Tier
from pipeline.families import FAMILIES, Family, family_named
from pipeline.families.licences import licence_problem
from pipeline.memory.footprint import leanest_of, memory_model
from pipeline.units import format_bytes
from pipeline.weights.hub import pull as pull_weights
from pipeline.weights.weights import (
    Here,
    OnBytes,
    WeightsError,
    cached_folder,
    check_components,
    check_files,
    verify,
    weights_presence,
)
from serve.cli.common import (
    AcceptLicense,
    Exit,
    Home,
    Json,
    accept_licenses,
    console,
    exit_on_error,
    fail,
    print_json,
    settings_for,
)
from serve.settings import Settings

#: Seconds between two lines of progress where there is no terminal.
LINE_S = 5.0

app = typer.Typer(invoke_without_command=True, help="List the model families; fetch and check their weights.")

Names = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, as `clipmill models` lists them.")]


@app.callback()
def models(ctx: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """List the model families: licence, sizes, smallest card, whether weights are here; `pull` fetches them."""
    ctx.obj = home
    if ctx.invoked_subcommand:
        return
    settings = settings_for(home)
    views = [_view(family, settings) for family in FAMILIES.values()]
    if as_json:
        print_json({"models": views})
        return
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("model", "what it is", "licence", "sides by", "frames", "weights", "smallest card", "here"):
        table.add_column(column)
    for view in views:
        table.add_row(
            view["name"],
            view["title"],
            view["licence"],
            str(view["stride"]),
            view["frames"],
            format_bytes(view["weights_bytes"]) if view["weights_bytes"] else "none",
            view["smallest_card"] or "none is large enough",
            _here_text(view),
        )
    console.print(table)
    console.print("  The smallest card is for a standard clip of the family's native class.", style="dim")
    for view in views:
        if view["samplers"]:
            console.print(f"  {view['name']}: samplers {', '.join(view['samplers'])}", style="dim")
        if view["licence_gate"]:
            done, url = view["licence_accepted"], view["licence_url"]
            words = "was accepted" if done else f"has to be accepted with --accept-license {view['name']}"
            style = "dim" if done else "yellow"
            console.print(f"  {view['name']}: its licence {words}: {url}", style=style, soft_wrap=True)
        if view["licence_note"]:
            console.print(f"  {view['name']}: {view['licence_note']}", style="dim", soft_wrap=True)
        if view["problem"]:
            console.print(f"  {view['name']}: {view['problem']}", style="yellow", soft_wrap=True)


@app.command()
def pull(
    ctx: typer.Context,
    names: Names,
    accept_license: AcceptLicense = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fetch the weights of models and check them. Run it again to go on where it was interrupted."""
    with exit_on_error():
        families = [family_named(name) for name in dict.fromkeys(names)]
        settings = settings_for(home or ctx.obj)
        accept_licenses(settings, accept_license)
        for family in families:
            if problem := licence_problem(family, settings.accepted()):
                fail(Exit.USAGE, str(problem))
        if settings.offline and (far := [f.name for f in families if f.repo and not _is_whole(f, settings)]):
            fail(
                Exit.USAGE,
                f"CLIPMILL_OFFLINE is set, so {', '.join(far)} cannot be fetched. Unset it, or use --weights.",
            )
        failed = False
        for family in families:
            failed |= not _pull_one(family, settings, quiet=as_json)
        if as_json:
            print_json({"models": [_view(family, settings) for family in families]})
    raise typer.Exit(Exit.SOME_FAILED if failed else Exit.DONE)


@app.command(name="verify")
def check(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models (default: all here).")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Read the fetched weights and compare them with the hub's checksums."""
    with exit_on_error():
        families = [family_named(name) for name in names] if names else list(FAMILIES.values())
        settings = settings_for(home or ctx.obj)
        found: dict[str, str] = {}
        for family in families:
            here = weights_presence(family, settings.home).here
            if here is Here.NOT_NEEDED or (here is Here.ABSENT and not names):
                continue
            found[family.name] = _check_one(family, settings, quiet=as_json)
        if as_json:
            print_json({"problems": found})
        elif not found:
            console.print("no fetched weights are here: `clipmill models pull MODEL` fetches some")
    raise typer.Exit(Exit.SOME_FAILED if any(found.values()) else Exit.DONE)


def _pull_one(family: Family, settings: Settings, *, quiet: bool) -> bool:
    def say(text: str) -> None:
        if not quiet:
            console.print(text, soft_wrap=True)

    if family.licence_note:
        say(f"{family.name}: {family.licence_note}")
    if family.repo is None:
        say(f"{family.name}: nothing to fetch")
        return True
    try:
        with bytes_progress(console, f"fetching {family.name}", silent=quiet) as on_bytes:
            folder = pull_weights(family, settings.home, endpoint=settings.mirror or None, on_bytes=on_bytes, tell=say)
    except WeightsError as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, markup=True)
        return False
    except KeyboardInterrupt:
        presence = weights_presence(family, settings.home)
        kept = f"{format_bytes(presence.bytes_here)} of {format_bytes(presence.bytes_total)} are kept. "
        again = f"Go on with: clipmill models pull {family.name}"
        console.print(f"\n[bold]Stopped.[/] {kept if presence.bytes_total else ''}{again}", soft_wrap=True, markup=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    size = format_bytes(weights_presence(family, settings.home).bytes_total)
    say(f"✓ {family.name}: {size}, checksums agree, in {folder}")
    return True


def _check_one(family: Family, settings: Settings, *, quiet: bool) -> str:
    """What is wrong; empty where nothing is."""
    folder = cached_folder(family, settings.home)
    try:
        check_components(family, folder)
        check_files(family, folder)
        with bytes_progress(console, f"verifying {family.name}", silent=quiet) as on_bytes:
            manifest = verify(family, folder, settings.home, anew=True, on_bytes=on_bytes)
    except WeightsError as error:
        if not quiet:
            console.print(f"[bold red]✗[/] {family.name}: {escape(str(error))}", soft_wrap=True, markup=True)
        return str(error)
    if not quiet and manifest is None:
        words = f"whole, but without checksums to compare with; `clipmill models pull {family.name}` fetches them"
        console.print(f"[bold yellow]![/] {family.name}: {words}", soft_wrap=True, markup=True)
    elif not quiet:
        console.print(f"[bold green]✓[/] {family.name}: checksums agree", soft_wrap=True, markup=True)
    return ""


@contextmanager
def bytes_progress(
    console: Console, words: str, *, silent: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[OnBytes]:
    """Shows bytes done, in all, and a second: a bar on a terminal, a line every few seconds elsewhere."""
    if silent:
        yield lambda _done, _total: None
        return
    if not console.is_terminal:
        yield _Lines(console, words, clock)
        return
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=32),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(words, total=None)
        first = True

        def show(done: int, total: int) -> None:
            nonlocal first
            if first:
                # What an earlier run fetched says nothing about this line's speed.
                bar.reset(task, total=total, completed=done)
                first = False
            bar.update(task, total=total, completed=done)

        yield show


class _Lines:
    """Progress without a terminal."""

    def __init__(self, console: Console, words: str, clock: Callable[[], float]) -> None:
        self._console, self._words, self._clock = console, words, clock
        self._first: tuple[float, int] | None = None
        self._printed: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first = (now, done)
        is_new = self._printed is None or now - self._printed[0] >= LINE_S or done >= total
        if not is_new or (self._printed and self._printed[1] == done and done >= total):
            return
        self._printed = (now, done)
        seconds, gained = now - self._first[0], done - self._first[1]
        rate = f", {format_bytes(int(gained / seconds))}/s" if gained and seconds > 0 else ""
        self._console.print(f"{self._words}: {format_bytes(done)} of {format_bytes(total)}{rate}", soft_wrap=True)


def _is_whole(family: Family, settings: Settings) -> bool:
    return weights_presence(family, settings.home).here in (Here.PRESENT, Here.VERIFIED)


def _view(family: Family, settings: Settings) -> dict[str, Any]:
    memory = memory_model(family)
    presence = weights_presence(family, settings.home)
    return {
        "name": family.name,
        "title": family.title,
        "licence": family.licence,
        "licence_note": family.licence_note,
        "licence_url": family.licence_url,
        "licence_gate": family.licence_gate,
        "licence_accepted": licence_problem(family, settings.accepted()) is None,
        "stride": family.stride,
        "frames": str(family.frame_rule),
        "classes": [c.value for c in family.classes],
        "samplers": [sampler.value for sampler in family.samplers],
        "weights_bytes": memory.weights_bytes if memory else 0,
        "smallest_card": _smallest_card(family),
        "repo": family.repo,
        "revision": family.revision,
        "weights_here": presence.here in (Here.NOT_NEEDED, Here.PRESENT, Here.VERIFIED),
        "weights": presence.here.value,
        "bytes_here": presence.bytes_here,
        "bytes_total": presence.bytes_total,
        "problem": presence.problem,
    }


def _here_text(view: dict[str, Any]) -> Text:
    if view["weights"] == Here.PARTIAL:
        return Text(f"{format_bytes(view['bytes_here'])} of {format_bytes(view['bytes_total'])}")
    return Text("damaged", style="red") if view["weights"] == Here.DAMAGED else Text(str(view["weights"]))


def _smallest_card(family: Family) -> str | None:
    if memory_model(family) is None:
        return "no card needed"
    width, height = family.native_sizes[0] if family.native_sizes else (family.native_class.side,) * 2
    if width * height > family.native_class.pixels:  # its class is a smaller one than it was trained at
        width = height = family.native_class.side
    needed = leanest_of(family, width * height, family.tiers[Tier.STANDARD].frames)[1].peak_bytes
    return Fleet(usable_bytes={name: promised_bytes(NOMINAL_BYTES[name]) for name in NOMINAL_BYTES}).smallest_class_for(
        needed
    )
