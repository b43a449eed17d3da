"""`clipmill store check` and `store sweep`: is the store whole, and what is in storage that nobody needs?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.maintenance.audit import Broken, check, finding_lines
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper, Swept
from cluster.storage import Storage
from cluster.store import Database
from pipeline.units import format_bytes
from serve.cli.common import Exit, Home, Json, console, exit_on_error, fail, open_store, print_json, settings_for

app = typer.Typer(help="Look after the store and its objects.", no_args_is_help=True)

_KEEP = "What goes"


@app.command("check")
def check_store(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be.")] = False,
    objects: Annotated[bool, typer.Option(help="Look for every object too: one request each.")] = True,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Test the store's invariants; exits 1 where one does not hold. A farm may run meanwhile."""
    with exit_on_error():
        settings = settings_for(home)
        database = _open(settings.database_url)
        storage = Storage(settings.storage_url) if objects else None
        broken = check(database, storage, repair=repair)
        # What was repaired may have laid bare something else, and what was not is still there.
        left = check(database, storage) if repair and broken else broken
        database.close()
    if as_json:
        shown = [
            {
                "number": one.number,
                "says": one.says,
                "remedy": one.remedy,
                "count": len(one.findings),
                "findings": finding_lines(one.findings),
                "repaired": one.repaired,
            }
            for one in broken
        ]
        print_json({"ok": not left, "broken": shown, "left": [one.number for one in left]})
    else:
        _print(broken, left, repair=repair)
    raise typer.Exit(Exit.SOME_FAILED if left else Exit.DONE)


@app.command("sweep")
def sweep_store(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep_outputs_days: Annotated[float | None, typer.Option(min=0, help="Clips.", rich_help_panel=_KEEP)] = None,
    keep_let_go_days: Annotated[
        float | None, typer.Option(min=0, help="Rejected drafts, and candidates not picked.", rich_help_panel=_KEEP)
    ] = None,
    keep_failed_days: Annotated[
        float | None, typer.Option(min=0, help="Stills of failed and cancelled rows.", rich_help_panel=_KEEP)
    ] = None,
    keep_checkpoints_days: Annotated[
        float | None, typer.Option(min=0, help="Checkpoints of rows that wait.", rich_help_panel=_KEEP)
    ] = None,
    keep_cache_days: Annotated[
        float | None, typer.Option(min=0, help="Shared encodings and drafts.", rich_help_panel=_KEEP)
    ] = None,
    grace_hours: Annotated[
        float, typer.Option(min=0.1, help="Objects that nothing names are left alone for so long.")
    ] = 24,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete what is older than given, and objects that nothing names. A farm may run meanwhile."""
    keep = Keep(
        outputs_days=keep_outputs_days,
        let_go_days=keep_let_go_days,
        failed_days=keep_failed_days,
        checkpoints_days=keep_checkpoints_days,
        cache_days=keep_cache_days,
        grace_s=grace_hours * 3600,
    )
    with exit_on_error():
        settings = settings_for(home)
        database = _open(settings.database_url)
        swept = Sweeper(database, Storage(settings.storage_url), keep, dry_run=dry_run).run()
        database.close()
    if as_json:
        print_json({"dry_run": dry_run, **asdict(swept)})
    else:
        _print_swept(swept, grace_hours, dry_run=dry_run)
    raise typer.Exit(Exit.SOME_FAILED if swept.failed else Exit.DONE)


def _open(url: str) -> Database:
    database = Database.shared(url)
    if database.is_missing():
        fail(Exit.USAGE, f"there is no store at {url}. Give --home, or CLIPMILL_DATABASE_URL.")
    database.close()
    return open_store(url)


def _print(broken: list[Broken], left: list[Broken], *, repair: bool) -> None:
    for one in broken:
        mark = "[yellow]repaired[/]" if one.repaired else "[bold red]✗[/]"
        console.print(f"{mark} {one.number}. not so: {escape(one.says)}", soft_wrap=True, markup=True)
        for line in finding_lines(one.findings):
            console.print(f"    {line}", soft_wrap=True)
        console.print(f"    [dim]{escape(one.remedy)}[/]", soft_wrap=True, markup=True)
    if not left:
        console.print("[green]✓[/] the store is whole", markup=True)
    elif repair:
        console.print(f"[bold red]left broken:[/] {', '.join(str(one.number) for one in left)}", markup=True)
    elif any(one.repairable for one in left):
        console.print("`clipmill store check --repair` puts right what can be.")


def _print_swept(swept: Swept, grace_hours: float, *, dry_run: bool) -> None:
    facts: dict[str, Any] = asdict(swept)
    console.print("would delete" if dry_run else "deleted")
    for name in ("clips", "checkpoints", "stills", "cached", "unreferenced"):
        console.print(f"  {name}: {facts[name]}")
    verb = "would free" if dry_run else "freed"
    what = "of stills, cached and unreferenced objects; sizes of clips and checkpoints are not looked up"
    console.print(f"  {verb}: {format_bytes(swept.freed_bytes)} {what}", soft_wrap=True)
    if swept.spared_clips:
        clips = "1 clip" if swept.spared_clips == 1 else f"{swept.spared_clips} clips"
        console.print(
            f"left alone: {clips} younger than the grace of {grace_hours:g} h, within which nothing goes whatever "
            "--keep-outputs-days says; --grace-hours shortens it",
            soft_wrap=True,
        )
    if swept.foreign:
        console.print(f"left alone: {swept.foreign} objects that this store knows nothing of")
    for error in swept.errors[:10]:
        console.print(f"[bold red]error[/] {escape(error)}", soft_wrap=True, markup=True)
