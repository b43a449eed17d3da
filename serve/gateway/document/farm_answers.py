"""Answers about the farm itself, its models, cards and forecasts, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, Literal

from cluster.jobs.commands import CardVerb
from pipeline.problems import Problem
from serve.gateway.document.answers import DescribedAnswer


class TierFacts(DescribedAnswer):
    """What a tier of a model is."""

    frames: int
    """Length of a clip in frames."""
    fps: int
    """Frames a second."""
    steps: int
    """Denoising steps."""


class FarmModelFacts(DescribedAnswer):
    """What only this farm says of a model."""

    title: str
    """For people."""
    weights: str | None
    """The weights' name on their hub; null where it has none."""
    licence: str
    """Licence of the weights."""
    resolution_classes: list[str]
    """Classes it renders, such as `512p`."""
    tiers: dict[str, TierFacts]
    """Frames, rate and steps by tier."""
    reads_prompts: bool
    """Whether prompts change anything."""


class ModelAnswer(DescribedAnswer):
    """A model that makes videos, in OpenAI's form."""

    id: str
    """What requests call it."""
    object: Literal["model"]
    """Always `model`."""
    created: int
    """Always 0."""
    owned_by: str
    """Who made the weights."""
    clipmill: FarmModelFacts
    """What only this farm says."""


class OrderFacts(DescribedAnswer):
    """What holds for a card until it is released."""

    kind: CardVerb
    """What was ordered."""
    reason: str
    """For people."""
    given_by: str
    """Who ordered it."""
    since: int
    """UTC epoch seconds."""
    until: int | None
    """When it ends by itself, in UTC epoch seconds."""


class CardAnswer(DescribedAnswer):
    """A card that was heard of lately."""

    card: str
    """The card's whole id."""
    card_class: str
    """How much memory can be counted on, such as `c24`."""
    kind: str
    """The driver's name of it, or `emulated`."""
    state: str
    """What it does."""
    family: str | None
    """The model whose weights are loaded."""
    total_bytes: int
    """Memory in bytes."""
    usable_bytes: int
    """Bytes that clips may have."""
    used_bytes: int
    """Bytes that clips have."""
    foreign_bytes: int
    """Bytes that other programs have."""
    used_share: float
    """Share of its memory that is in use, from 0 to 1."""
    order: OrderFacts | None
    """What somebody ordered."""
    largest: dict[str, Any]
    """The largest clip of each model that fits now: class and frames."""
    warning: str
    """Where it is nearly full, by whom; else empty."""


class CardsAnswer(DescribedAnswer):
    """The cards of the farm."""

    object: Literal["list"]
    """Always `list`."""
    data: list[CardAnswer]
    """Cards that were heard of lately."""
    kernels: list[dict[str, Any]]
    """What was measured of eager and of compiled kernels."""


class CommandedCardAnswer(DescribedAnswer):
    """A card and the order that then holds."""

    object: Literal["card"]
    """Always `card`."""
    card: str
    """The card's whole id."""
    order: OrderFacts | None
    """The order; null where it was released."""


class ForecastAnswer(DescribedAnswer):
    """When a catalog would be done, and for how much."""

    object: Literal["forecast"]
    """Always `forecast`."""
    default_model: str
    """The model of rows that name none."""
    finish_seconds: float
    """Seconds until the last clip."""
    interval_seconds: list[float]
    """Between which times the end probably lies: earliest and latest, in seconds."""
    bound_seconds: float
    """Seconds that no order of clips could beat."""
    startup_seconds: float
    """Seconds of these that cards take to start."""
    gpu_hours: float
    """GPU time in hours."""
    cost_usd: float | None
    """Cost in US dollars; null where a card has no price."""
    rows_fit: int
    """Rows that some card can render."""
    rows: list[dict[str, Any]]
    """Each row: whether and where it fits, and for how long."""
    kinds: list[dict[str, Any]]
    """Each kind of card: clips, hours and cost."""
    halving: list[dict[str, Any]]
    """What would halve the time."""
    fleet: list[dict[str, Any]]
    """The cards that were counted."""
    notes: list[str]
    """What was assumed."""


class FindingAnswer(DescribedAnswer):
    """One finding on a row."""

    code: str
    """Machine name such as `prompt_vague`: stable, for counting and filtering."""
    severity: Literal["info", "warning"]
    """`warning` where the row is worth a second thought."""
    field: str | None
    """The column that it is about, where it is about one."""
    message: str
    """A sentence with the values, and what to do."""
    fix: dict[str, str | int | float | bool | None] | None
    """New values by column with which it would not be found, to be applied together; null where a person has to write
    it."""


class LintRowAnswer(DescribedAnswer):
    """What was found of one row."""

    id: str
    """The row's id, or `prompt-<number>`."""
    number: int
    """Its number, from 1."""
    line: int | None
    """Its line in the manifest, as it was sent."""
    prompt: str
    """The prompt as it would be rendered."""
    negative_prompt: str
    """What it says that the clip shall not show."""
    warns: bool
    """Whether it is worth a second thought."""
    findings: list[FindingAnswer]
    """What was found, in the order in which fixes are applied."""
    problems: list[Problem]
    """Why it cannot be rendered; empty where it can."""
    fixed: dict[str, str | int | float | bool | None]
    """New values by column with all fixes applied; empty where there is none."""


class LintAnswer(DescribedAnswer):
    """What was found of prompts or rows."""

    object: Literal["lint"]
    """Always `lint`."""
    default_model: str
    """The model of rows that name none."""
    prompts_judged: bool
    """Whether that model's prompts are judged: not where it reads none, or where its weights are random."""
    rows: list[LintRowAnswer]
    """Each row or prompt, in the order in which they were sent."""
    rows_warned: int
    """Rows that are worth a second thought."""
    notes: list[str]
    """Each kind of finding once, with how many rows have it."""
