"""`clipmill fidelity`: how true a clip is to its still and its prompt, part by part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.storage import MAX_STILL_BYTES
from pipeline.clips.clip import ClipSpec, Fit
from pipeline.clips.inspection.autofix import fix_still
from pipeline.clips.stills import open_still
from pipeline.families import FAMILIES
from pipeline.fidelity.bounds import BOUNDS
from pipeline.fidelity.files import frames_of_file
from pipeline.fidelity.measured import Fidelity, compare
from pipeline.fidelity.score import FidelityPart
from pipeline.fidelity.text import words_lost
from pipeline.problems import BadInputError
from serve.cli.common import Exit, Json, console, exit_on_error, print_json


def fidelity(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, such as an MP4 of OUT.")],
    still: Annotated[Path, typer.Argument(metavar="STILL", help="The picture that it was made of.")],
    prompt: Annotated[
        str | None, typer.Option(help="What was asked for (default: by the <id>.json beside the clip).")
    ] = None,
    fit: Annotated[Fit | None, typer.Option(help="How the still was brought to the clip's shape.")] = None,
    read_text: Annotated[
        bool, typer.Option("--read-text", help="Read the words on the product too: seconds (clipmill[text]).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a clip against its still: label, colours, outline, flicker, cuts, the camera's move.

    Exit 1 where something was found. Needs the extra `fidelity`; nothing is asked of a farm.
    """
    with exit_on_error():
        spec, room = _made_by(clip)
        frames = frames_of_file(clip)
        picture = open_still(_still_bytes(still))
        if spec is not None:
            picture = fix_still(picture, spec.autofix).image
        shown = fit or (spec.fit if spec else Fit.CONTAIN)
        asked = prompt if prompt is not None else (spec.prompt if spec else "")
        family = FAMILIES.get(spec.family) if spec else None
        flat = family is not None and family.engine == "camera"
        found = compare(frames, picture, fit=shown, prompt=asked, flat=flat, room=room)
        if read_text and (lost := words_lost(frames, picture, shown)) is not None:
            found = replace(found, parts={**found.parts, FidelityPart.TEXT: lost})
        if as_json:
            print_json({"clip": str(clip), "still": str(still), "prompt": asked, **found.to_json()} | _notes(found))
        else:
            _print(found)
    raise typer.Exit(Exit.SOME_FAILED if found.notes else Exit.DONE)


def _made_by(clip: Path) -> tuple[ClipSpec | None, float]:
    """(the specification in the provenance beside a clip, the share of its move that it had room for)."""
    try:
        told = json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))
        read = told.get("model") if isinstance(told.get("model"), dict) else {}
        return ClipSpec.model_validate(told["spec"]), float(read.get("move_share", 1.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        # Of another program, or of a later version: the options say what is not known then.
        return None, 1.0


def _still_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise BadInputError("still", f"{path} is no file", "Name the picture that the clip was made of.")
    if path.stat().st_size > MAX_STILL_BYTES:
        raise BadInputError("still", f"{path} is larger than stills may be", "Name the picture itself.")
    return path.read_bytes()


def _notes(found: Fidelity) -> dict[str, Any]:
    return {"notes": [note.model_dump() for note in found.notes]}


def _print(found: Fidelity) -> None:
    score = found.score
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for column in ("part", "score", "measured", "told from", "worst frame"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, one in found.parts.items():
        told = part in found.told
        style = "bold yellow" if told else ""
        table.add_row(
            Text(part.value.replace("_", " "), style=style),
            Text(f"{score.parts[part.value]:.2f}", style=style),
            f"{one.value:.3g}",
            f"{BOUNDS[part].told:g}",
            "" if one.frame is None else str(one.frame),
        )
    console.print(table)
    unknown = [
        part.value.replace("_", " ")
        for part in FidelityPart
        if part not in found.parts and part is not FidelityPart.TEXT
    ]
    if unknown:
        console.print(f"  cannot be told here: {', '.join(unknown)}", style="dim", markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"  {note.title}: {note.message}", markup=False, soft_wrap=True)
    mark = "[bold yellow]![/]" if found.notes else "[bold green]✓[/]"
    console.print(f"{mark} fidelity {score.words}", soft_wrap=True)
