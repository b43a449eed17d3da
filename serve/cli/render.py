"""`clipmill render`: a catalog in, a folder of clips out, on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.catalog.defaults import Defaults, FewStep
from cluster.farm import Farm
from cluster.fleet.cards import card_class_of
from cluster.fleet.fleet_file import EMULATED, cards_of, parse_fleet
from cluster.fleet.fleet_file import Cards as FleetCards
from cluster.jobs.model import Batch, JobState, Outcome
from cluster.results.ownership import Inputs, with_refusals
from pipeline.families import family_named
from pipeline.kernels.kernels import KernelChoice
from pipeline.problems import BadInputError
from pipeline.units import format_rows
from serve.cli.common import (
    AcceptLicense,
    Cards,
    Exit,
    Home,
    Json,
    KernelsOption,
    accept_licenses,
    console,
    exit_on_error,
    fail,
    local_farm,
    open_home,
    parse_cards,
    print_json,
    settings_for,
)
from serve.cli.delivery.writer import DeliveryOptions, delivery_writer
from serve.cli.feeds.output import FeedOutOptions
from serve.cli.feeds.told import print_taken_for
from serve.cli.marks.option import NoMarks, tell_of_marks, unmarked
from serve.cli.options import Catalog, FewStepFile, RowOptions, few_step_of, with_option_groups
from serve.cli.results import ResultsWriter, out_folder
from serve.cli.session import FarmLostError, FarmStartError, NoUsableCardError, RenderSession, source_of
from serve.cli.show import ProgressView, clock_text, notes_text, problems_table, refusals_table, unknown_text
from serve.embedded import EmbeddedFarm, FarmLock, emulated_classes, gpu_classes
from serve.gateway.views import batch_view, job_view
from serve.renderer.cards import INSTALL_TORCH, find_gpus, survey_gpus, why_none
from serve.results_source import LocalResults
from serve.settings import FarmArgs, Settings

#: Cards of a machine without a GPU. Two, for two cores.
DEFAULT_EMULATED = ["c8", "c24"]
#: Seconds that running clips get after Ctrl-C: whoever presses it wants the terminal back.
HASTY_S = 2.0


def choose_model(asked: str) -> tuple[str, str]:
    """(name of the family, how it was chosen) for `--model`; only `auto` may come to `camera` unasked, and says so."""
    if asked != "auto":
        family = family_named(asked)
        if family.needs_torch and not find_spec("torch"):
            raise BadInputError("model", f"{family.name} needs torch, which is not installed", INSTALL_TORCH)
        return family.name, "asked for"
    found = survey_gpus()
    if not found.gpus:
        why = f"no GPU was found ({why_none(found).message})"
        return "camera", f"auto: {why}, so camera moves stand in for a diffusion model"
    if not find_spec("torch"):
        return "camera", "auto: torch is not installed, so camera moves stand in for a diffusion model"
    return "i2vgen-xl", "auto: a GPU was found"


@with_option_groups(leave_out={"rounds"})
def render(
    catalog: Catalog,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where clips, posters and index.html go.")] = Path("out"),
    model: Annotated[str, typer.Option(help="Model of rows that name none; `clipmill models` lists them.")] = "auto",
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    deliveries: DeliveryOptions = DeliveryOptions(),  # noqa: B008 - frozen
    feed_out: FeedOutOptions = FeedOutOptions(),  # noqa: B008 - frozen
    few_step: FewStepFile = None,
    cards: Cards = None,
    weights: Annotated[Path | None, typer.Option(help="Local folder of the model's weights.")] = None,
    accept_license: AcceptLicense = None,
    kernels: KernelsOption = None,
    no_marks: NoMarks = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Render a catalog on this machine: starts a farm if none runs, waits, writes clips and a contact sheet.

    Run it again to go on where it stopped; finished clips are never rendered twice.
    """
    with exit_on_error():
        family, choice = choose_model(model)
        settings = settings_for(home)
        terms = deliveries.terms(settings, rows.deliver)
        manifest = feed_out.refuse(rows.read(catalog, family, settings.home), terms.default)
        feed = feed_out.feed(catalog, rows.feed_options())
        open_home(settings)
        accept_licenses(settings, accept_license)
        fast = few_step_of(settings, few_step)
        defaults = Defaults(model=family, **rows.defaults().model_dump(), few_step=fast)
        args = farm_args(settings, family, cards, weights, fast, kernels)
        farm = unmarked(local_farm(settings)) if no_marks else local_farm(settings)
        farm = replace(farm, planned_cards=lambda: planned_cards(args), deliveries=terms)
        remote = rows.remote(farm.storage)
        lock = FarmLock(settings.home)
        asked = farm_options(cards, few_step, weights=f"{family}={weights.absolute()}" if weights else None)
        where = _cards_of_running(lock, asked, farm) or cards_text(args)
        read = [catalog, few_step, deliveries.brand]
        inputs = Inputs.of(manifest.root, [(row.number, row.image) for row in manifest.good], read)
        folder = out_folder(out, catalog, inputs)
        manifest = with_refusals(manifest, folder.refusals([row.id for row in manifest.good]))
        facts = {"model_choice": choice, "catalog": catalog.name}
        made = delivery_writer(LocalResults(farm), settings, out, terms, inputs=inputs, name_of=feed_out.name_of())
        writer = ResultsWriter(LocalResults(farm), out, facts, inputs, made)
        if not as_json:
            words = f"[bold]clipmill[/] · {format_rows(len(manifest.rows))} · {family} ({choice}) · cards {where}"
            _print_beginning(words, args, family, cards)
            print_taken_for(manifest)
        tell_of_marks(settings, no_marks=no_marks, quiet=as_json)
        with ProgressView(console, silent=as_json) as show:
            session = RenderSession(farm, lock, lambda: EmbeddedFarm(args), writer, show, {"options": asked}, remote)
            notes = _Notes(farm, silent=as_json)
            batch = _run(
                session,
                lambda: session.run(
                    manifest,
                    defaults,
                    name=catalog.name,
                    source=source_of(catalog),
                    cards=where,
                    on_read=notes.of_rows,
                ),
                lambda batch: _leave(writer, batch, where),
                show,
            )
        with console.status("making the deliveries"):
            writer.finish_deliveries()
        writer.write_feed(batch.id, feed)
        sheet = writer.sheet(batch.id, where)
        jobs = [job_view(job) for job in farm.jobs(batch.id)]
        if as_json:
            print_json(_view(batch, jobs, out, sheet) | writer.to_json())
        else:
            for note in [*unknown_text(manifest), *notes.new(jobs), *writer.notes_text()]:
                console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
            failed = [job for job in jobs if job["state"] == JobState.FAILED]
            _summary(batch, _rendered(farm, batch), failed, sheet, writer)
    whole = batch.status == "completed" and not writer.refused and not writer.undelivered
    raise typer.Exit(Exit.DONE if whole else Exit.SOME_FAILED)


class _Notes:
    """Notes of a batch's rows: what is known before anything is rendered is said then, and the rest in the end."""

    def __init__(self, farm: Farm, *, silent: bool) -> None:
        self._farm, self._silent = farm, silent
        self._said: frozenset[str] = frozenset()

    def of_rows(self, batch_id: str) -> None:
        """Say what is noted of the rows of a batch that has just been handed in."""
        if self._silent:
            return
        lines = self.new([job_view(job) for job in self._farm.jobs(batch_id)])
        self._said = frozenset(lines)
        for line in lines:
            console.print(f"  note: {line}", style="dim", markup=False, soft_wrap=True)

    def new(self, jobs: list[dict[str, Any]]) -> list[str]:
        """The notes of these jobs that have not been said."""
        return [line for line in notes_text(jobs) if line not in self._said]


def _print_beginning(words: str, args: FarmArgs, family: str, cards: str | None) -> None:
    console.print(words, soft_wrap=True, markup=True)
    if note := family_named(family).licence_note:
        console.print(f"  {family}: {note}", style="dim", soft_wrap=True)
    _print_faults(args, family, cards)


def _print_faults(args: FarmArgs, family: str, cards: str | None) -> None:
    """Say why GPUs of this machine are left out, where nobody asked for emulated cards."""
    if cards is not None:
        return
    found = survey_gpus()
    problems = [fault.problem for fault in found.faults]
    if args.emulate and not problems and family_named(family).repo:
        # Cards are emulated in its place, which hold small networks only.
        problems = [why_none(found)]
    for problem in problems:
        console.print(f"  {problem.message}. {problem.remedy}", style="yellow", markup=False, soft_wrap=True)


def farm_args(
    settings: Settings,
    family: str,
    cards: str | None,
    weights: Path | None,
    few_step: Mapping[str, FewStep] | None = None,
    kernels: KernelChoice | None = None,
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
        kernels=kernels or KernelChoice.EAGER,
        gateway=False,
    )


def planned_cards(args: FarmArgs) -> tuple[FleetCards, ...]:
    """Groups of the cards that the embedded farm of `args` will have: what is known of them before it runs."""
    counted: Counter[tuple[str, str]] = Counter()
    if args.emulate:
        counted.update({(EMULATED, name): one.replicas for name, one in args.card_classes.items()})
    else:
        for gpu in find_gpus():
            if (name := card_class_of(gpu.total_bytes)) in args.card_classes:
                counted[(gpu.name, str(name))] += 1
    groups = [{"kind": kind, "class": name, "count": count} for (kind, name), count in counted.items()]
    return cards_of(parse_fleet({"cards": groups, "startup_seconds": 0}, "this machine")) if groups else ()


def farm_options(cards: str | None, few_step: Path | None, weights: str | None = None) -> dict[str, str]:
    """The options that only the farm obeys which a command starts, as its home's lock notes them; those given."""
    given = {
        "--cards": cards and ",".join(sorted(parse_cards(cards))),
        "--few-step": few_step and str(few_step.resolve()),
        "--weights": weights,
    }
    return {name: value for name, value in given.items() if value}


def _cards_of_running(lock: FarmLock, asked: Mapping[str, str], farm: Farm) -> str:
    """The cards of the farm that another process runs on this home, in words; empty where none does.

    Exits 2 where that farm was started with other options than are `asked` for.
    """
    holder = lock.holder()
    if holder is None:
        return ""
    has = holder.get("options", {})
    if ignored := [name for name, value in asked.items() if has.get(name) != value]:
        which = f"process {holder['pid']}" if holder.get("pid") else "another process"
        fail(
            Exit.USAGE,
            f"a farm runs on this home already ({which}), and was started otherwise: it would not obey "
            f"{' and '.join(ignored)}. Leave that out, end that farm, or give this one another --home.",
        )
    classes = Counter(beat.card_class for beat in farm.batch_store.cards())
    text = ", ".join(f"{number} × {name}" for name, number in sorted(classes.items()))
    return f"{text or 'not heard yet'}, of the farm that runs"


def cards_text(args: FarmArgs) -> str:
    """The cards of a farm in words, such as `2 × c24` or `1 × c8 (emulated)`."""
    text = ", ".join(f"{t.replicas} × {name}" for name, t in args.card_classes.items())
    return f"{text} (emulated)" if args.emulate else text


def _leave(writer: ResultsWriter, batch_id: str, cards: str) -> None:
    """Write what there is so far: a night's work that was stopped is still worth looking at."""
    writer.stop()
    with suppress(Exception):
        writer.update(batch_id)
        if writer.deliveries is not None:
            writer.deliveries.close()
        writer.sheet(batch_id, cards)


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
        console.print(
            f"\n[bold]Stopped.[/] What is finished is kept{batch}. {escape(again)}", soft_wrap=True, markup=True
        )
        raise typer.Exit(code) from None
    except FarmStartError as error:
        fail(Exit.NO_FARM, str(error))
    except (FarmLostError, NoUsableCardError) as error:
        code = Exit.NO_FARM
        leave(session.batch_id)
        fail(code, f"{error} {again}")
    finally:
        # Other errors are reported further up, so they wait for as long as it takes.
        if not session.close(grace_s, patient=code is None) and code is not None:
            # The thread that starts Ray cannot be stopped; its daemons end with this process.
            show.stop()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _view(batch: Batch, jobs: list[dict[str, Any]], out: Path, sheet: Path) -> dict[str, Any]:
    return {"batch": batch_view(batch), "jobs": jobs, "out": str(out), "sheet": str(sheet)}


def _rendered(farm: Farm, batch: Batch) -> int:
    attempts = farm.batch_store.attempts_of(batch.owner, batch.id)
    return sum(attempt.outcome is Outcome.COMPLETED for attempt in attempts)


def _summary(batch: Batch, rendered: int, failed: list[dict[str, Any]], sheet: Path, writer: ResultsWriter) -> None:
    counts = batch.counts
    done, wall = counts[JobState.COMPLETED], ""
    if batch.attempts:
        import time

        wall = f" in {clock_text(time.time() - batch.created_at)}"
    if failed:
        console.print(problems_table(failed))
    if writer.refused:
        console.print(refusals_table(writer.refused))
    whole = batch.status == "completed" and not writer.refused and not writer.undelivered
    mark = "[bold green]✓[/]" if whole else "[bold yellow]![/]"
    parts = [f"{done} of {counts.total} clips done{wall}"]
    if failed:
        parts.append(f"{format_rows(len(failed))} failed")
    if writer.refused:
        parts.append(f"{format_rows(len(writer.refused))} not written")
    if counts[JobState.HELD]:
        parts.append(f"{counts[JobState.HELD]} to look at (`clipmill review`)")
    if counts[JobState.CANCELLED]:
        parts.append(f"{counts[JobState.CANCELLED]} cancelled")
    parts.append(f"{rendered} rendered now" if batch.attempts else "nothing had to be rendered")
    if batch.attempts > rendered:
        # Crashes, full cards, lost nodes: work that was begun and brought no clip.
        parts.append("1 attempt" if batch.attempts == 1 else f"{batch.attempts} attempts")
    parts.append(f"{writer.written} files written")
    if writer.deliveries is not None and (made := writer.deliveries.made):
        count = sum(one.delivered for files in made.values() for one in files.values())
        parts.append(f"{count} delivered ({writer.deliveries.encoded} encoded now)")
    for line in writer.undelivered_text():
        console.print(f"  not delivered: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{mark} " + " · ".join(parts), soft_wrap=True, markup=True)
    for line in writer.feed_text():
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"  {sheet}", style="bold", soft_wrap=True)
