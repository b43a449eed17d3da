"""`logs`: what gateway, dispatcher and renderers of this machine's farm wrote, while it runs and afterwards."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer
from rich.text import Text

from serve.cli.common import Exit, Home, console, exit_on_error, fail, farm_facts, settings_for
from serve.embedded import logs_of_process
from serve.farm_logs import LogTail, kept_runs, logs_folder

#: Seconds between two looks at the files.
_EVERY_S = 0.5


def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="So many lines, the last ones.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until the farm ends.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Ray's own files too.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Only list the folders there are, the newest first.")] = False,
    home: Home = None,
) -> None:
    """Show the log of the farm that runs on this machine, or of the last one that did."""
    with exit_on_error():
        settings = settings_for(home)
        running = logs_of_process(farm_facts(settings).get("pid"))
        kept = kept_runs(settings.home)
        there = [*([running] if running else []), *kept]
        if runs:
            typer.echo("\n".join(map(str, there)))
            return
        if not there:
            kept_in = logs_folder(settings.home)
            fail(Exit.USAGE, f"no farm has run on {settings.home} yet: there are no logs in {kept_in}")
        folder = there[0]
        state = "of the farm that runs" if running else "of the last farm, which has ended"
        console.print(f"{folder} ({state})", style="dim", markup=False, soft_wrap=True)
        tail = LogTail(folder, everything)
        last = deque(tail.news(), lines)
        for label, line in last:
            _print(label, line)
        if not last:
            console.print("nothing was written: warnings and errors are, and there was none", style="dim")
        while follow and running and running.exists():
            time.sleep(_EVERY_S)
            for label, line in tail.news():
                _print(label, line)


def _print(label: str, line: str) -> None:
    # To standard output: a log is what was asked for, and goes into pipes.
    typer.echo(f"{label} | {Text.from_ansi(line).plain}")
