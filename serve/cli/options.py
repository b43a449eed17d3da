"""Options that several commands have: how clips are made, when a batch is held, and what they become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from cluster.catalog.advice.templates import template_named
from cluster.catalog.defaults import STRENGTH, FewStep, RowDefaults
from cluster.catalog.manifest import Manifest, ManifestError
from cluster.catalog.review.prompts import read_prompts
from cluster.catalog.review.rounds import rounds_of
from cluster.catalog.times import parse_time, read_duration
from cluster.feeds.mapping import read_mapping
from cluster.feeds.model import FeedImages, FeedOptions
from cluster.feeds.reading import read_catalog
from cluster.jobs.fidelity import DEFAULT_REROLLS, MAX_REROLLS
from cluster.remote.policy import FetchPolicy
from cluster.remote.stills import RemoteStills
from cluster.results.ownership import twins, with_refusals
from cluster.storage import Storage
from pipeline.clips.clip import Autofix, Fit, ResolutionClass, Tier, Upscale, autofixes_of
from pipeline.clips.clip import Sampler as Samplers
from pipeline.delivery.profiles import profile_names_of
from pipeline.problems import BadInputError
from serve.cli.common import farm_facts
from serve.few_step import read_few_step
from serve.gateway.requests import TermFields
from serve.settings import Settings

#: The file of a home in which a team keeps its prompts.
TEMPLATES_FILE = "templates.yaml"

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
_TERMS = "When it is held (docs/operating.md)"
MaxFailures = Annotated[
    int | None,
    typer.Option(min=1, help="Stop once so many rows have failed; what runs is finished.", rich_help_panel=_TERMS),
]
MaxGpuHours = Annotated[
    float | None, typer.Option(min=0, help="Stop once so many GPU hours are used.", rich_help_panel=_TERMS)
]
MaxCost = Annotated[
    float | None,
    typer.Option(min=0, help="Stop once it has cost so much, by the table of rates (USD).", rich_help_panel=_TERMS),
]
NotBefore = Annotated[
    str | None,
    typer.Option(
        "--not-before",
        metavar="TIME",
        help="Rows that say nothing of it start no sooner: 22:00, or 2026-11-21T22:00 (local time).",
    ),
]
Interactive = Annotated[
    bool,
    typer.Option(
        "--interactive", help="Somebody waits: go before batches, as far as the farm's share goes (docs/operating.md)."
    ),
]
AllowPrivateHosts = Annotated[
    str | None,
    typer.Option(
        "--allow-private-hosts",
        metavar="HOST[:PORT],…",
        help="Hosts of your own network, names or 10.1.0.0/16, that may be asked for pictures (docs/stills.md).",
    ),
]
MendStills = Annotated[
    str,
    typer.Option(
        "--autofix",
        metavar="WHAT,…",
        help=f"Mend stills where they are at fault, of rows that do not say: {', '.join(Autofix)}, or all.",
    ),
]
Within = Annotated[
    str | None,
    typer.Option(
        "--within",
        metavar="TIME",
        help="What a clip of rows that do not say may take on a card (60, 2 min): decides class, tier and steps.",
    ),
]
Deliver = Annotated[
    str,
    typer.Option(
        "--deliver",
        metavar="PROFILE,…",
        help="Files for marketplaces, of rows that do not say: google, amazon-sb, amazon-olv, tiktok, reels, shop, "
        "your own (docs/deliveries.md).",
    ),
]
MinFidelity = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Clips that are less true to their still (0 to 1) are made again from another seed (docs/fidelity.md).",
    ),
]
Rerolls = Annotated[
    int, typer.Option(min=0, max=MAX_REROLLS, help="With --min-fidelity: clips that may be made besides the first one.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse rows that their model cannot take, instead of adjusting them.")
]
Rounds = Annotated[
    str,
    typer.Option(
        "--rounds",
        metavar="ROUND,…",
        help="Drafts first, each approved before the next: draft,final or quick,tune,final (docs/review.md).",
    ),
]
MappingFile = Annotated[
    Path | None,
    typer.Option("--mapping", metavar="FILE", help="YAML: which column of a table means what (docs/feeds.md)."),
]
WhichImages = Annotated[
    FeedImages,
    typer.Option("--feed-images", help="Of a feed's product: a clip of its main picture, or one of each."),
]
FewStepFile = Annotated[
    Path | None,
    typer.Option("--few-step", help="TOML or JSON: which adapter makes tier fast of which model.", metavar="FILE"),
]


Catalog = Annotated[
    Path, typer.Argument(help="CSV, JSONL or Parquet file, a product feed (docs/feeds.md), or a folder of images.")
]


class OptionGroup:
    """A frozen dataclass whose fields are options of every command that has a parameter of the class."""


@dataclass(frozen=True, kw_only=True)
class RowOptions(OptionGroup):
    """Options for rows of a catalog that say nothing themselves, and which rows are read."""

    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None
    prompt: Annotated[str | None, typer.Option(help="Prompt of rows that have none.")] = None
    template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Prompt of rows that have none: this template, filled from their columns."),
    ] = None
    templates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where templates are (default: templates.yaml in the home).")
    ] = None
    mapping: MappingFile = None
    feed_images: WhichImages = FeedImages.MAIN
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Every prompt of this file, a line each, for every row that has none: crossed."
        ),
    ] = None
    resolution_class: Annotated[
        ResolutionClass, typer.Option("--class", help="Resolution class of rows that name none.")
    ] = ResolutionClass.P512
    tier: Annotated[Tier, typer.Option(help="Tier of rows that name none.")] = Tier.STANDARD
    rounds: Rounds = ""
    fit: Annotated[Fit, typer.Option(help="How stills of another aspect are fitted.")] = Fit.CONTAIN
    autofix: MendStills = ""
    deliver: Deliver = ""
    min_fidelity: MinFidelity = None
    rerolls: Rerolls = DEFAULT_REROLLS
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of rows that name none.")] = None
    sampler: Sampler = None
    window: Window = 0
    window_overlap: WindowOverlap = None
    step_cache: StepCache = 1
    motion_class: MotionClass = None
    from_draft: FromDraft = False
    strength: Strength = STRENGTH
    upscale: Enlarge = Upscale.LATENTS
    within: Within = None
    strict: Strict = False
    not_before: NotBefore = None
    interactive: Interactive = False
    allow_private_hosts: AllowPrivateHosts = None

    def remote(self, storage: Storage | None = None) -> RemoteStills:
        """What reads the pictures of rows that name URLs; `storage` is where unchanged ones are found again.

        Raises `BadInputError` for hosts that cannot be read.
        """
        policy = allowing(FetchPolicy(buckets=None), self.allow_private_hosts)
        return RemoteStills(policy, storage=storage)

    def defaults(self) -> RowDefaults:
        """The options as the farm takes them. Raises `BadInputError` for a time or a name that is none."""
        values = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in RowDefaults.model_fields
        }
        if self.not_before is not None:
            values["not_before"] = parse_time("--not-before", self.not_before)
        if self.within is not None:
            values["within"] = read_duration("--within", self.within)
        try:
            values["autofix"] = autofixes_of(self.autofix)
        except ValueError as error:
            raise BadInputError("--autofix", str(error), f"Name some of {', '.join(Autofix)}.") from None
        try:
            values["rounds"] = rounds_of(self.rounds)
        except ValueError as error:
            raise BadInputError("--rounds", str(error), "Write draft,final, or quick,tune,final.") from None
        try:
            values["deliver"] = profile_names_of(self.deliver)
        except ValueError as error:
            remedy = "Name delivery profiles such as google, reels (docs/deliveries.md)."
            raise BadInputError("--deliver", str(error), remedy) from None
        return RowDefaults(**values)

    def feed_options(self) -> FeedOptions:
        """How a feed is read. Raises `BadInputError` for a mapping that is none."""
        return feed_options_of(self.mapping, self.feed_images)

    def read(self, catalog: Path, model: str | None, home: Path) -> Manifest:
        """The rows of `catalog` that are wanted; `model` is the one of rows that name none, where it is known.

        `home`: where templates lie if no file is named. Raises `ManifestError` where the catalog cannot be read, or has
        no rows, and `BadInputError` where the template cannot.
        """
        template = None
        if self.template is not None:
            if self.prompt is not None:
                raise BadInputError("--template", "a prompt was given as well", "Leave out --prompt or --template.")
            template = template_named(self.templates or home / TEMPLATES_FILE, self.template)
        prompts: list[str] = []
        if self.prompts is not None:
            if self.prompt is not None or template is not None:
                raise BadInputError("--prompts", "a prompt was given as well", "Leave out --prompt and --template.")
            prompts = read_prompts(self.prompts)
        manifest = read_catalog(
            catalog, self.feed_options(), prompt=self.prompt, model=model, template=template, prompts=prompts
        )
        if self.limit is not None:
            manifest = replace(manifest, rows=manifest.rows[: self.limit])
        if not manifest.rows:
            raise ManifestError(catalog, "it has no rows", "Add a line per image below the header.")
        # Before anything is rendered: two rows never share a file, wherever their clips are copied.
        return with_refusals(manifest, twins(row.id for row in manifest.good))


@dataclass(frozen=True, kw_only=True)
class TermOptions(OptionGroup):
    """Options that say when a batch is held."""

    hold: Annotated[
        bool,
        typer.Option(
            "--hold", "--needs-approval", help="Nothing starts until `clipmill approve`.", rich_help_panel=_TERMS
        ),
    ] = False
    proof: Annotated[
        int, typer.Option(min=0, help="With --hold: the first rows start at once, as a proof.", rich_help_panel=_TERMS)
    ] = 0
    paused: Annotated[
        bool, typer.Option("--paused", help="Nothing starts until `clipmill resume`.", rich_help_panel=_TERMS)
    ] = False
    max_failures: MaxFailures = None
    max_gpu_hours: MaxGpuHours = None
    max_cost: MaxCost = None
    comment: Annotated[str, typer.Option(help="For people.", rich_help_panel=_TERMS)] = ""
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Tell this URL of the first failure and of the end (see docs/webhooks.md).",
            rich_help_panel=_TERMS,
        ),
    ] = None

    def terms(self) -> dict[str, Any]:
        """The fields of `TermFields` that are not as they would be anyway. Raises `pydantic.ValidationError`."""
        fields_given = TermFields(
            paused=self.paused,
            needs_approval=self.hold or self.proof > 0,
            proof=self.proof,
            max_failures=self.max_failures,
            max_gpu_hours=self.max_gpu_hours,
            max_cost=self.max_cost,
            comment=self.comment,
            webhook_url=self.webhook,
        )
        return fields_given.model_dump(exclude_defaults=True)


def with_option_groups(*, leave_out: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of its parameters that are `OptionGroup`s, each in place of the parameter.

    `leave_out` names fields that are no option of this command; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        groups: dict[str, dict[str, inspect.Parameter]] = {}
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if inspect.isclass(hints.get(name)) and issubclass(hints[name], OptionGroup):
                groups[name] = _options_of(hints[name], leave_out)
                parameters += groups[name].values()
            else:
                own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name))
                parameters.append(own)

        @wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: hints[name](**{field: given.pop(field) for field in options}) for name, options in groups.items()
            }
            command(**made, **given)

        # What typer reads; without the second it would follow `__wrapped__` to the command itself.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate


def _options_of(group: Any, leave_out: Collection[str]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
        if field.name not in leave_out
    }


def feed_options_of(mapping: Path | None, images: FeedImages) -> FeedOptions:
    """How a feed is read, as options say. Raises `BadInputError` for a mapping that is none."""
    return FeedOptions(mapping=None if mapping is None else read_mapping(mapping), images=images)


def allowing(policy: FetchPolicy, private_hosts: str | None) -> FetchPolicy:
    """`policy` with the hosts that `--allow-private-hosts` names. Raises `BadInputError` for one that is none."""
    hosts = tuple(filter(None, map(str.strip, (private_hosts or "").split(","))))
    try:
        return FetchPolicy.model_validate(policy.model_dump() | {"private_hosts": (*policy.private_hosts, *hosts)})
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        remedy = "Write HOST, HOST:PORT or a network, several with commas between them."
        raise BadInputError("--allow-private-hosts", what, remedy) from error


def few_step_of(settings: Settings, file: Path | None) -> dict[str, FewStep]:
    """What tier `fast` means: as `file` says, else as the farm that runs on this home says."""
    if file is not None:
        return read_few_step(file)
    return {name: FewStep.model_validate(few) for name, few in farm_facts(settings).get("few_step", {}).items()}
