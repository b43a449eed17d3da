"""`footprint`: what a model needs of a card, known without GPU and without weights, and what measured peaks taught."""

from __future__ import annotations

import secrets
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from typer.core import TyperGroup

from cluster.estimates.memory import MeasurementsFileError, from_text, to_text
from cluster.fleet.cards import NOMINAL_BYTES, Fleet, promised_bytes
from cluster.store import Database, measurements
from pipeline.clips.clip import Tier
from pipeline.families import Family, family_named, size_for
from pipeline.memory.footprint import cuda_share, flops_per_step, footprint_of, memory_model, reread
from pipeline.placing import replace_if
from pipeline.problems import BadInputError
from pipeline.units import GIB, format_bytes
from serve.cli.common import (
    Exit,
    Home,
    Json,
    console,
    exit_on_error,
    fail,
    open_home,
    open_store,
    print_json,
    settings_for,
)


class _FamilyOrCommand(TyperGroup):
    """`footprint FAMILY` means `footprint show FAMILY`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command `show` before a family's name, then parse as click does."""
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FamilyOrCommand,
    no_args_is_help=True,
    help="What a model needs of a card (`clipmill footprint FAMILY`), and what measured peaks taught.",
)


@app.command("show")
def footprint(
    family: Annotated[str, typer.Argument(help="A model, such as i2vgen-xl (see `clipmill models`).")],
    frames: Annotated[
        list[int] | None, typer.Option("--frames", help="Frames of a clip; again for more (default: a standard clip).")
    ] = None,
    as_json: Json = False,
    write: Annotated[
        bool,
        typer.Option("--write", help="Run the networks dry first, and write the model's table into this package."),
    ] = False,
) -> None:
    """Show the memory and arithmetic a model needs, by class and layout, without GPU or weights."""
    with exit_on_error():
        found = family_named(family)
        counts = frames or [found.tiers[Tier.STANDARD].frames]
        for count in counts:
            if not found.frame_rule.allows(count):
                raise BadInputError(
                    "frames", f"{found.name} cannot render {count} frames", f"It takes {found.frame_rule}."
                )
        if write:
            _write(found)
        memory = memory_model(found)
        rows = footprint_rows(found, counts) if memory else []
        if as_json:
            print_json(
                {
                    "family": found.name,
                    "dtype": memory.dtype if memory else None,
                    "weights_bytes": {stage.value: count for stage, count in memory.weights.items()} if memory else {},
                    "source": memory.source if memory else "",
                    "rows": rows,
                }
            )
        elif memory is None:
            console.print(f"{found.title} uses no card memory")
        else:
            parts = ", ".join(f"{stage.value} {format_bytes(count)}" for stage, count in memory.weights.items())
            console.print(f"{found.title}, {memory.dtype}: weights {format_bytes(memory.weights_bytes)} ({parts})")
            console.print(_table(_without_useless(rows)))
            console.print(
                "  GiB that torch takes in each stage, weights included; `workspace`: how much of the largest is for "
                "copies that cuDNN makes of convolutions' tensors, an estimate. The total is the largest with CUDA's "
                "own share, an estimate too. TFLOP of one step with guidance. Layouts that save nothing in a class are "
                "left out; `--json` has all of them. Lossy layouts, which are not exact, are taken only where no other "
                "fits.",
                style="dim",
                soft_wrap=True,
            )


@app.command("export")
def export_lessons(
    file: Annotated[Path, typer.Argument(help="Where to write them, as JSON.", dir_okay=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write what this farm's measured peaks have taught, for another farm with such cards.

    A file that is there already is replaced only if it is such a file.
    """
    with exit_on_error():
        estimates = measurements.load_memory(_store(home))
        count = len(estimates.measured)
        _write_lessons(file, to_text(estimates, version("clipmill")))
        if as_json:
            print_json({"file": str(file), "lessons": count})
        else:
            console.print(f"wrote {_lessons_text(count)} to {file}", soft_wrap=True)


@app.command("import")
def import_lessons(
    file: Annotated[Path, typer.Argument(help="What `clipmill footprint export` wrote.", dir_okay=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take over what another farm has learned; what this farm knows from more clips stays."""
    with exit_on_error():
        try:
            theirs = from_text(file.read_bytes())
        except MeasurementsFileError as error:
            fail(Exit.USAGE, f"{file} holds no lessons: {error}. Write it by `clipmill footprint export FILE`.")
        taken = measurements.merge_memory(_store(home), theirs)
        left = len(theirs.measured) - taken
        if as_json:
            print_json({"file": str(file), "taken": taken, "left": left})
        else:
            console.print(
                f"took over {_lessons_text(taken)}; left {left}, of which this farm knows as much or which are of "
                "another version of a model's footprint",
                soft_wrap=True,
            )


def _write_lessons(file: Path, text: str) -> None:
    """Write whole or not at all. Exits 2 where `file` is something else than lessons; raises `OSError`."""
    target = file.resolve()
    if target.exists() and not target.is_file():
        # A pipe or /dev/stdout: there is nothing to lose.
        target.write_text(text, encoding="utf-8")
        return
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        replace_if(temporary, target, _holds_lessons)
    except FileExistsError:
        fail(Exit.USAGE, f"{file} is there already and holds no lessons of clipmill. Name another file.")
    finally:
        temporary.unlink(missing_ok=True)


def _holds_lessons(file: Path) -> bool:
    try:
        from_text(file.read_bytes())
    except (MeasurementsFileError, OSError):
        return False
    return True


def _store(home: Path | None) -> Database:
    settings = settings_for(home)
    open_home(settings)
    return open_store(settings.database_url)


def _lessons_text(count: int) -> str:
    return f"{count} lesson{'' if count == 1 else 's'}"


def footprint_rows(family: Family, frames: list[int]) -> list[dict[str, Any]]:
    """One row for each class, frame count and layout, from the closed form."""
    rows = []
    cards = Fleet(usable_bytes={name: promised_bytes(NOMINAL_BYTES[name]) for name in NOMINAL_BYTES})
    for resolution_class in family.classes:
        width, height = size_for(resolution_class, 1.0, family.stride)
        pixels = width * height
        for count in frames:
            for layout in family.layouts:
                predicted = footprint_of(family, pixels, count, layout)
                # Emulated cards, on which small networks run, have no CUDA.
                share = cuda_share(predicted.peak_bytes) if family.repo else 0
                rows.append(
                    {
                        "family": family.name,
                        "class": resolution_class.value,
                        "frames": count,
                        "layout": str(layout),
                        "switches": layout.model_dump(mode="json"),
                        "lossy": list(layout.lossy),
                        "stage_bytes": dict(predicted.stages),
                        "workspace_bytes": dict(predicted.workspaces),
                        "total_bytes": predicted.peak_bytes + share,
                        "flops_per_step": flops_per_step(family, pixels, count),
                        "smallest_card": cards.smallest_class_for(predicted.peak_bytes),
                    }
                )
    return rows


def _without_useless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of layouts that take less in some stage than every earlier one: no tiles as large as the frame."""

    def as_large(row: dict[str, Any], other: dict[str, Any]) -> bool:
        alike = (row["class"], row["frames"]) == (other["class"], other["frames"])
        return alike and all(row["stage_bytes"][stage] >= count for stage, count in other["stage_bytes"].items())

    return [row for place, row in enumerate(rows) if not any(as_large(row, other) for other in rows[:place])]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("class")
    for column in ("frames", "encode", "denoise", "decode", "workspace", "total", "TFLOP/step"):
        table.add_column(column, justify="right")
    for column in ("smallest card", "layout"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["class"],
            str(row["frames"]),
            *(f"{row['stage_bytes'][stage] / GIB:.2f}" for stage in ("encode", "denoise", "decode")),
            f"{row['workspace_bytes'][max(row['stage_bytes'], key=row['stage_bytes'].__getitem__)] / GIB:.2f}",
            f"{row['total_bytes'] / GIB:.2f}",
            f"{row['flops_per_step'] / 1e12:.3g}",
            row["smallest_card"] or "none is large enough",
            row["layout"] + (" (lossy)" if row["lossy"] else ""),
        )
    return table


def _write(family: Family) -> None:
    try:
        from pipeline.dryrun import table
    except ImportError as error:
        fail(Exit.USAGE, f"a dry run needs {error.name}. Install clipmill[render], or leave --write out.")
    if not family.components:
        raise BadInputError("family", f"{family.name} has no networks", "It needs no table.")
    measured = table.measure(family, lambda text: console.print(text, style="dim"))
    try:
        path = table.write(family, measured)
    except FileExistsError as error:
        fail(Exit.USAGE, f"{error.filename} is no table that clipmill wrote. Move it away first.")
    reread()
    console.print(f"wrote {path}", soft_wrap=True)
