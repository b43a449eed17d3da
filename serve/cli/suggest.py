"""`suggest`: what a card can render, before anything is loaded or bought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.catalog.advice.row_advice import UNKNOWN_STILL
from cluster.catalog.defaults import Defaults
from cluster.catalog.files import read_beside
from cluster.catalog.manifest import Row
from cluster.catalog.times import read_duration
from cluster.estimates.published import rate_table, tflops_of
from cluster.fleet.cards import card_class_of
from cluster.fleet.fleet_file import Cards
from cluster.forecast.suggest import EFFICIENCY, Option, largest_worth, usable_of
from cluster.forecast.suggest import suggest as options_for
from cluster.forecast.within import TimeChooser, TimedChoice
from pipeline.clips.clip import ResolutionClass
from pipeline.clips.still_check import check_still
from pipeline.families import FAMILIES, Family, family_named
from pipeline.memory.footprint import cuda_share
from pipeline.memory.slowdown import BUS_GB_S, FasterLayout
from pipeline.problems import BadInputError
from pipeline.units import GIB, format_bytes
from serve.cli.common import (
    Home,
    Json,
    console,
    exit_on_error,
    farm_facts,
    known_times,
    print_json,
    settings_for,
)
from serve.cli.show import clock_text
from serve.renderer.cards import find_gpus


def suggest(
    vram: Annotated[
        float | None, typer.Option(min=1, help="Memory of the card in GB (default: of this machine's first GPU).")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="A still: its shape and size say which classes are worth it.", metavar="FILE")
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only what is expected to take at most so long (60, 2 min), and one choice."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model (see `clipmill models`).", metavar="NAME")] = None,
    card: Annotated[
        str | None, typer.Option(help="The card's name, such as 'RTX 4090': tells the expected time.", metavar="NAME")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say which classes, frames and layouts fit a card, without GPU or weights.

    Without --vram and --card it is for the farm that runs on this home, where one does, by what was measured there.
    """
    with exit_on_error():
        settings = settings_for(home)
        within_s = None if within is None else read_duration("within", within)
        estimates, roster = known_times(settings)
        on_farm = vram is None and card is None and bool(roster)
        if vram is None:
            vram, card = _memory_here(roster if on_farm else (), card)
        tflops = tflops_of(card) if card else None
        if card and tflops is None:
            raise BadInputError(
                "card", f"the speed of {card!r} is not known", f"Known are {', '.join(rate_table().cards)}."
            )
        if within_s is not None and tflops is None and not on_farm:
            raise BadInputError("within", "the time depends on the card", "Name it too: --card 'RTX 4090'.")
        if on_farm and model is None:
            model = farm_facts(settings).get("default_model")
        families = [family_named(model)] if model else [f for f in FAMILIES.values() if f.repo]
        aspect, largest, still = 1.0, ResolutionClass.P1024, None
        if image is not None:
            still = check_still(read_beside(image.parent.resolve(), image.name))
            aspect, largest = still[0] / still[1], largest_worth(*still)
        usable = max(group.usable_bytes for group in roster) if on_farm else usable_of(vram)
        # Of a farm's cards what was measured counts, not what is published.
        published_s = None if on_farm else within_s
        found = options_for(families, usable, aspect=aspect, largest=largest, tflops=tflops, within_s=published_s)
        fleet = roster if on_farm else _one_card(card, vram, usable)
        chosen = _choices(families, still or UNKNOWN_STILL, within_s, TimeChooser(fleet, estimates))
        notes = _notes(found, still, largest, card, tflops)
        if as_json:
            print_json(
                {
                    "vram_gib": vram,
                    "usable_bytes": usable,
                    "card": card,
                    "tflops": tflops,
                    "efficiency": EFFICIENCY if tflops else None,
                    "image": {"size": f"{still[0]}x{still[1]}", "largest_class": largest.value} if still else None,
                    "options": [_view(option) for option in found],
                    "within_seconds": within_s,
                    "choices": [_choice_view(name, choice) for name, choice in chosen],
                    "notes": notes,
                }
            )
            return
        whose = "The largest card of this farm" if on_farm else f"A card of {vram:.3g} GB"
        console.print(f"{whose}: clips may use {format_bytes(usable)} of it")
        if found:
            console.print(_table(found))
        else:
            what = "fits" if within_s is None else f"fits and is done within {clock_text(within_s)}"
            console.print(f"None of {', '.join(f.name for f in families)} {what}; `--model camera` needs no card.")
        for name, choice in chosen:
            console.print(Text(f"{name} {choice.note}", style="green" if choice.in_time else "yellow"), soft_wrap=True)
        for note in notes:
            console.print(f"  {note}", style="dim", soft_wrap=True)


def _memory_here(roster: Sequence[Cards], card: str | None) -> tuple[float, str | None]:
    """(GB of the farm's largest card, else of this machine's first GPU; that GPU's name where none was given)."""
    if roster:
        return max(group.usable_bytes for group in roster) / GIB, None
    gpu = next(iter(find_gpus()), None)
    if gpu is None:
        raise BadInputError("vram", "this machine has no NVIDIA GPU", "Name the memory: --vram 12.")
    return gpu.total_bytes / GIB, card or gpu.name


def _one_card(card: str | None, vram: float, usable: int) -> tuple[Cards, ...]:
    """The card that was named, as a fleet of one; () where none was."""
    if card is None:
        return ()
    card_class = card_class_of(int(vram * GIB)) or ""
    return (Cards(kind=card, card_class=card_class, usable_bytes=usable, count=1, price_per_hour=None, startup_s=0.0),)


def _choices(
    families: Sequence[Family], still: tuple[int, int], within_s: float | None, chooser: TimeChooser
) -> list[tuple[str, TimedChoice]]:
    """What a row of each model becomes that says no more than how long its clip may take."""
    row = Row(number=1, id="suggest", image="", prompt="pan left")
    found = [
        (family.name, chooser.choice(row, still, Defaults(model=family.name, within=within_s))) for family in families
    ]
    return [(name, choice) for name, choice in found if choice is not None]


def _choice_view(name: str, choice: TimedChoice) -> dict[str, Any]:
    spec, where = choice.clip.spec, choice.clip.slowest
    return {
        "model": name,
        "class": spec.resolution_class.value,
        "size": f"{spec.width}x{spec.height}",
        "frames": spec.frames,
        "steps": spec.steps,
        "columns": choice.clip.cells,
        "in_time": choice.in_time,
        "seconds": None if where is None else round(where.seconds, 1),
        "card": None if where is None else where.kind,
        "layout": None if where is None else str(where.layout),
        "reason": choice.note.message,
    }


def _view(option: Option) -> dict[str, Any]:
    return {
        "model": option.family.name,
        "class": option.resolution_class.value,
        "size": f"{option.width}x{option.height}",
        "tier": option.tier.value,
        "frames": option.frames,
        "max_frames": option.max_frames,
        "steps": option.steps,
        "layout": str(option.layout),
        "switches": option.layout.model_dump(mode="json"),
        "lossy": list(option.layout.lossy),
        "stage_bytes": dict(option.predicted.stages),
        "total_bytes": _total(option),
        "faster": [
            {
                "layout": str(f.layout),
                "stage": f.stage.value,
                "needs_bytes": f.needs_bytes,
                "missing_bytes": f.missing_bytes,
                "saves_seconds": _saved(option, f),
            }
            for f in option.faster
        ],
        "max_guidance": option.guidance,
        "tflop_per_step": round(option.flops_per_step / 1e12, 3),
        "seconds": None if option.seconds is None else round(option.seconds, 1),
        "slowdown": None if option.slowdown is None else round(option.slowdown, 3),
        "recommended": option.recommended,
    }


def _total(option: Option) -> int:
    peak = option.predicted.peak_bytes
    # Small networks run on emulated cards, which have no CUDA.
    return peak + (cuda_share(peak) if option.family.repo else 0)


def _saved(option: Option, faster: FasterLayout) -> float | None:
    if option.seconds is None or faster.saves is None:
        return None
    return round(option.seconds * faster.saves, 1)


def _why(option: Option) -> str:
    """What the fastest layout lacks, and the last that was passed over, where that is another."""
    if not option.faster:
        return "(nothing is faster)"
    lacks = []
    for faster in dict.fromkeys((option.faster[0], option.faster[-1])):
        saved = _saved(option, faster)
        saves = f" (saves {clock_text(saved)})" if saved and saved >= 1 else ""
        lacks.append(f"{faster.layout.brief}: {faster.stage} lacks {format_bytes(faster.missing_bytes)}{saves}")
    return "; ".join(lacks)


def _table(options: list[Option]) -> Table:
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("", "model", "class", "size", "tier"):
        table.add_column(column, no_wrap=True)
    for column in ("frames", "at most", "needs", "guidance up to", "about"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("layout", overflow="fold")
    table.add_column("not faster because")
    for option in options:
        table.add_row(
            "*" if option.recommended else "",
            option.family.name,
            option.resolution_class.value,
            f"{option.width}×{option.height}",
            option.tier.value,
            str(option.frames),
            str(option.max_frames),
            format_bytes(_total(option)),
            f"{option.guidance:g}",
            "" if option.seconds is None else clock_text(option.seconds),
            str(option.layout) + (" (lossy)" if option.layout.lossy else ""),
            _why(option),
        )
    return table


def _notes(
    found: list[Option], still: tuple[int, int] | None, largest: ResolutionClass, card: str | None, tflops: float | None
) -> list[str]:
    notes = (
        []
        if not found
        else [
            "* is the class to start with: the model's own, or the nearest below it that fits.",
            "needs: tensors at their peak with CUDA's own share, an estimate. The layout is the fastest that fits; "
            "lossy ones, which are not exact, come last. Named besides are the fastest of all and the next one, and "
            "what they lack; `--json` has all of them.",
            "guidance: its value costs nothing in memory or time; above the model's own, pictures get harsh. "
            "Guidance 1 is none at all, and halves the arithmetic of a step.",
        ]
    )
    if any(option.layout.stream_weights for option in found):
        notes.append("weights=streamed: they are copied to the card for every evaluation.")
    if any(option.layout.decode_half for option in found):
        notes.append("decoder=half: lossy. Frames are decoded in half precision, which rounds their colours slightly.")
    if any(option.layout.decode_tile for option in found):
        notes.append(
            "tiles: lossy. Frames are decoded in parts and blended, which is not exactly the whole frame's picture."
        )
    if found and tflops is not None:
        notes.append(
            f"about: an estimate, good to a factor of two: the steps' arithmetic at {EFFICIENCY:.0%} of the "
            f"{tflops:g} TFLOPS published for {card}, decoding included, and copies of weights at {BUS_GB_S:g} GB/s; "
            "loading, encoding and the writing of the video apart."
        )
    if still is not None:
        notes.append(f"A still of {still[0]}×{still[1]} pixels has nothing to show in classes above {largest.value}.")
    return notes
