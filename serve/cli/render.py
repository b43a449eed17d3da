"""`clipmill render`: a catalog in, a folder of clips out, on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.few_step import FewStep
from cluster.jobs import Batch, JobState, Outcome
from cluster.manifest import ManifestError, read_manifest
from cluster.resolve import Defaults
from cluster.results import ResultsError
from pipeline.families import family_named
from pipeline.problems import BadInputError
from serve.cards import INSTALL_TORCH, find_gpus
from serve.cli.common import (
    AcceptLicense,
    Cards,
    Exit,
    Home,
    Json,
    accept_licenses,
    console,
    fail,
    local_farm,
    parse_cards,
    print_json,
    settings_for,
    telling_errors,
)
from serve.cli.options import FewStepFile, RowOptions, few_step_of, with_row_options
from serve.cli.results import ResultsWriter
from serve.cli.session import FarmLostError, FarmStartError, RenderSession, first_rows, source_of
from serve.cli.show import ProgressView, clock_text, notes_text, problems_table
from serve.local import EmbeddedFarm, FarmLock, emulated_classes, gpu_classes
from serve.settings import FarmArgs, Settings
from serve.views import batch_view, job_view

#: Cards of a machine without a GPU. Two, for two cores.
DEFAULT_EMULATED = ["c8", "c24"]
#: Seconds that clips in flight get after Ctrl-C: whoever presses it wants the terminal back.
HASTY_S = 2.0


def choose_model(asked: str) -> tuple[str, str]:
    """(family, how it was chosen). `auto` is the only name that may end at `camera` unasked, and says so."""
    if asked != "auto":
        family = family_named(asked)
        if family.needs_torch and not find_spec("torch"):
            raise BadInputError("model", f"{family.name} needs torch, which is not installed", INSTALL_TORCH)
        return family.name, "asked for"
    if not find_gpus():
        return "camera", "auto: no GPU was found, so camera moves stand in for a diffusion model"
    if not find_spec("torch"):
        return "camera", "auto: torch is not installed, so camera moves stand in for a diffusion model"
    return "i2vgen-xl", "auto: a GPU was found"


@with_row_options
def render(
    catalog: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet file, or a folder of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where clips, posters and index.html go.")] = Path("out"),
    model: Annotated[str, typer.Option(help="Model of rows that name none; `clipmill models` lists them.")] = "auto",
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    few_step: FewStepFile = None,
    cards: Cards = None,
    weights: Annotated[Path | None, typer.Option(help="Local folder of the model's weights.")] = None,
    accept_license: AcceptLicense = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Render a catalog on this machine: starts a farm if none runs, waits, writes clips and a contact sheet.

    Run it again to go on where it stopped; finished clips are never rendered twice.
    """
    with telling_errors():
        family, choice = choose_model(model)
        manifest = first_rows(read_manifest(catalog, prompt=rows.prompt, model=family), rows.limit)
        if not manifest.rows:
            raise ManifestError(catalog, "it has no rows", "Add a line per image below the header.")
        settings = settings_for(home)
        accept_licenses(settings, accept_license)
        fast = few_step_of(settings, few_step)
        defaults = Defaults(
            model=family,
            **rows.defaults().model_dump(),
            few_step=fast,
        )
        args = farm_args(settings, family, cards, weights, fast)
        farm = local_farm(settings)
        lock = FarmLock(settings.home)
        _prepare_out(out)
        facts = {"model_choice": choice, "catalog": catalog.name}
        writer = ResultsWriter(farm, out, facts)
        if not as_json:
            words = f"[bold]clipmill[/] · {_rows(len(manifest.rows))} · {family} ({choice}) · cards {_cards_text(args)}"
            console.print(words, soft_wrap=True)
            if note := family_named(family).licence_note:
                console.print(f"  {family}: {note}", style="dim", soft_wrap=True)
        with ProgressView(console, silent=as_json) as show:
            session = RenderSession(farm, lock, lambda: EmbeddedFarm(args), writer, show)
            batch = _run(
                session,
                lambda: session.run(manifest, defaults, name=catalog.name, source=source_of(catalog)),
                lambda batch: _leave(writer, batch, _cards_text(args)),
                show,
            )
        sheet = writer.sheet(batch, _cards_text(args))
        jobs = [job_view(job) for job in farm.jobs(batch.id)]
        failed = [job for job in jobs if job["state"] == JobState.FAILED]
        if as_json:
            print_json({"batch": batch_view(batch), "jobs": jobs, "out": str(out), "sheet": str(sheet)})
        else:
            made = farm.desk.attempts_of(batch.owner, batch.id)
            rendered = sum(attempt.outcome is Outcome.COMPLETED for attempt in made)
            for note in notes_text(jobs):
                console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
            _summary(batch, rendered, failed, sheet, writer)
    raise typer.Exit(Exit.SOME_FAILED if batch.status != "completed" else Exit.DONE)


def farm_args(
    settings: Settings,
    family: str,
    cards: str | None,
    weights: Path | None,
    few_step: Mapping[str, FewStep] | None = None,
) -> FarmArgs:
    """The embedded farm: emulated cards where asked for or where there is no GPU, else this machine's GPUs."""
    classes = gpu_classes() if cards is None else {}
    emulate = not classes
    if emulate:
        classes = emulated_classes(DEFAULT_EMULATED if cards is None else parse_cards(cards))
    return FarmArgs(
        card_classes=classes,
        emulate=emulate,
        home=str(settings.home),
        database_url=settings.database_url,
        storage_url=settings.storage_url,
        offline=settings.offline,
        mirror=settings.mirror,
        accept_licenses=settings.accept_licenses,
        weights={family: str(weights.absolute())} if weights else {},
        few_step=dict(few_step or {}),
        gateway=False,
    )


def _prepare_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot write to {out}: {error.strerror}", "Name another folder with --out.") from error
    # Before anything is rendered, not after the first clip.
    if not os.access(out, os.W_OK | os.X_OK):
        raise ResultsError(f"{out} may not be written to", "Name another folder with --out, or change its rights.")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _cards_text(args: FarmArgs) -> str:
    text = ", ".join(f"{t.replicas} × {name}" for name, t in args.card_classes.items())
    return f"{text} (emulated)" if args.emulate else text


def _leave(writer: ResultsWriter, batch_id: str, cards: str) -> None:
    """Write what there is so far: a night's work that was stopped is still worth looking at."""
    with suppress(Exception):
        writer.update(batch_id)
        writer.sheet(writer.farm.batch(batch_id), cards)


def _run(session: RenderSession, work: Callable[[], Batch], leave: Callable[[str], None], show: ProgressView) -> Batch:
    previous = signal.signal(signal.SIGTERM, _interrupt)
    grace_s = None
    code: Exit | None = None
    again = "Go on with:\n  " + " ".join(shlex.quote(word) for word in ["clipmill", *sys.argv[1:]])
    try:
        return work()
    except KeyboardInterrupt:
        grace_s = HASTY_S
        code = Exit.INTERRUPTED
        # A second Ctrl-C while clips are given back would leave Ray's processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if session.batch_id:
            leave(session.batch_id)
        batch = f" (batch {session.batch_id})" if session.batch_id else ""
        console.print(f"\n[bold]Stopped.[/] What is finished is kept{batch}. {escape(again)}", soft_wrap=True)
        raise typer.Exit(code) from None
    except FarmStartError as error:
        fail(Exit.NO_FARM, str(error))
    except FarmLostError as error:
        code = Exit.NO_FARM
        leave(session.batch_id)
        fail(code, f"{error} {again}")
    finally:
        # Other errors are told further up, so they wait for as long as it takes.
        if not session.close(grace_s, patient=code is None) and code is not None:
            # The thread that starts Ray cannot be stopped; its daemons end with this process.
            show.stop()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _summary(batch: Batch, rendered: int, failed: list[dict[str, Any]], sheet: Path, writer: ResultsWriter) -> None:
    counts = batch.counts
    done, wall = counts[JobState.COMPLETED], ""
    if batch.attempts:
        import time

        wall = f" in {clock_text(time.time() - batch.created_at)}"
    if failed:
        console.print(problems_table(failed))
    mark = "[bold green]✓[/]" if batch.status == "completed" else "[bold yellow]![/]"
    parts = [f"{done} of {counts.total} clips done{wall}"]
    if failed:
        parts.append(f"{_rows(len(failed))} failed")
    if counts[JobState.CANCELLED]:
        parts.append(f"{counts[JobState.CANCELLED]} cancelled")
    parts.append(f"{rendered} rendered now" if batch.attempts else "nothing had to be rendered")
    if batch.attempts > rendered:
        # Crashes, full cards, lost nodes: work that was begun and brought no clip.
        parts.append("1 attempt" if batch.attempts == 1 else f"{batch.attempts} attempts")
    parts.append(f"{writer.written} files written")
    console.print(f"{mark} " + " · ".join(parts), soft_wrap=True)
    console.print(f"  [bold]{sheet}[/]", soft_wrap=True)
