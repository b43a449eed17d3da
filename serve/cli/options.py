"""Options of `render` and `submit` that say how clips are made, and how they become `Defaults`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from cluster.few_step import FewStep
from cluster.resolve import STRENGTH, RowDefaults
from cluster.times import parse_time
from pipeline.clip import Fit, ResolutionClass, Tier, Upscale
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
#: Panel of options that say when a batch is held.
TERMS = "When it is held (docs/operating.md)"
MaxFailures = Annotated[
    int | None,
    typer.Option(min=1, help="Stop once so many rows have failed; what runs is finished.", rich_help_panel=TERMS),
]
MaxGpuHours = Annotated[
    float | None, typer.Option(min=0, help="Stop once so many GPU hours are used.", rich_help_panel=TERMS)
]
MaxCost = Annotated[
    float | None,
    typer.Option(min=0, help="Stop once it has cost so much, by the table of rates (USD).", rich_help_panel=TERMS),
]
NotBefore = Annotated[
    str | None,
    typer.Option(
        "--not-before",
        metavar="TIME",
        help="Rows that say nothing of it start no sooner: 22:00, or 2026-11-21T22:00 (local time).",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse rows that their model cannot take, instead of adjusting them.")
]
FewStepFile = Annotated[
    Path | None,
    typer.Option("--few-step", help="TOML or JSON: which adapter makes tier fast of which model.", metavar="FILE"),
]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What `render` and `submit` may say for rows that are silent; one option of both for each field."""

    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None
    prompt: Annotated[str | None, typer.Option(help="Prompt of rows that have none.")] = None
    resolution_class: Annotated[
        ResolutionClass, typer.Option("--class", help="Resolution class of rows that name none.")
    ] = ResolutionClass.P512
    tier: Annotated[Tier, typer.Option(help="Tier of rows that name none.")] = Tier.STANDARD
    fit: Annotated[Fit, typer.Option(help="How stills of another aspect are fitted.")] = Fit.CONTAIN
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of rows that name none.")] = None
    sampler: Sampler = None
    window: Window = 0
    window_overlap: WindowOverlap = None
    step_cache: StepCache = 1
    motion_class: MotionClass = None
    from_draft: FromDraft = False
    strength: Strength = STRENGTH
    upscale: Enlarge = Upscale.LATENTS
    strict: Strict = False
    not_before: NotBefore = None

    def defaults(self) -> RowDefaults:
        """The same as the farm takes it. Raises `BadInputError` for a time that is none."""
        said = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in RowDefaults.model_fields
        }
        if self.not_before is not None:
            said["not_before"] = parse_time("--not-before", self.not_before)
        return RowDefaults(**said)


def with_row_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `RowOptions` in place of its parameter `rows`."""
    hints, ours = get_type_hints(command, include_extras=True), get_type_hints(RowOptions, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=ours[field.name]
        )
        for field in fields(RowOptions)
    ]
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name))
        parameters += options if name == "rows" else [own]

    @wraps(command)
    def run(**given: Any) -> None:
        said = {field.name: given.pop(field.name) for field in fields(RowOptions)}
        command(rows=RowOptions(**said), **given)

    # What typer reads; without the second it would follow `__wrapped__` to the command itself.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


def few_step_of(settings: Settings, file: Path | None) -> dict[str, FewStep]:
    """What tier `fast` means: as `file` says, else as the farm that runs on this home says."""
    if file is not None:
        return read_few_step(file)
    return {name: FewStep.model_validate(few) for name, few in farm_facts(settings).get("few_step", {}).items()}
