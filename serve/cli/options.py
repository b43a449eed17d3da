"""Options of `render` and `submit` that say how clips are made, and how they become `Defaults`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.few_step import FewStep
from pipeline.clip import ResolutionClass, Upscale
from pipeline.clip import Sampler as Samplers
from serve.cli.common import farm_facts
from serve.few_step import read_few_step
from serve.settings import Settings

_SPEED = "How clips are made (docs/parameters.md)"

Sampler = Annotated[
    Samplers | None, typer.Option(help="Sampler of rows that name none (default: the model's).", rich_help_panel=_SPEED)
]
Window = Annotated[
    int,
    typer.Option(min=0, help="Frames denoised at once: longer clips in overlapping windows.", rich_help_panel=_SPEED),
]
WindowOverlap = Annotated[
    int | None,
    typer.Option(min=0, help="Frames that windows share (default: a quarter of one).", rich_help_panel=_SPEED),
]
StepCache = Annotated[
    int, typer.Option(min=1, max=1000, help="Reuse deep layers for so many steps.", rich_help_panel=_SPEED)
]
MotionClass = Annotated[
    ResolutionClass | None,
    typer.Option(help="Make the motion in this smaller class, then enlarge and refine.", rich_help_panel=_SPEED),
]
FromDraft = Annotated[
    bool,
    typer.Option("--from-draft", help="Start from the clip that the row has at tier draft.", rich_help_panel=_SPEED),
]
Strength = Annotated[
    float, typer.Option(max=1, help="Share of the steps done on the enlarged clip.", rich_help_panel=_SPEED)
]
Enlarge = Annotated[Upscale, typer.Option("--upscale", help="What is enlarged.", rich_help_panel=_SPEED)]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse rows that their model cannot take, instead of adjusting them.")
]
FewStepFile = Annotated[
    Path | None,
    typer.Option("--few-step", help="TOML or JSON: which adapter makes tier fast of which model.", metavar="FILE"),
]


def few_step_of(settings: Settings, file: Path | None) -> dict[str, FewStep]:
    """What tier `fast` means: as `file` says, else as the farm that runs on this home says."""
    if file is not None:
        return read_few_step(file)
    return {name: FewStep.model_validate(few) for name, few in farm_facts(settings).get("few_step", {}).items()}
