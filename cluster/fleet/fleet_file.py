"""A fleet as people write it: card kinds, how many, what they cost. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.estimates.published import rate_of
from cluster.fleet.cards import NOMINAL_BYTES, Beat, card_class_of, promised_bytes
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.problems import BadInputError
from pipeline.units import GIB

#: Kind of the cards that `--cards` makes of host memory.
EMULATED = "emulated"
#: Part of an emulated card's bytes that clips may use.
EMULATED_SHARE = 0.95
#: Seconds from the command to the first clip's start where nobody says otherwise: Ray and the renderers.
STARTUP_S = 15.0
#: A fleet of more cards is a typing error.
MOST_CARDS = 100_000

_CLASSES = tuple(NOMINAL_BYTES)


class CardGroup(BaseModel):
    """Equal cards, as a person writes them."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid", populate_by_name=True)

    kind: str = Field(min_length=1, max_length=128)
    """NVML name, whole or in short, such as `L4`; `emulated` for cards of host memory."""
    card_class: Literal[_CLASSES] | None = Field(default=None, alias="class")  # type: ignore[valid-type]
    """Default: that of the kind's memory."""
    count: int = Field(default=1, ge=1, le=MOST_CARDS)
    """How many there are."""
    price_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars for one; None: an estimate."""
    startup_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Seconds until one of them takes its first clip; None: as the fleet's."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.kind == EMULATED and self.card_class is None:
            raise ValueError("an emulated card needs a class, such as `class: c24`")
        return self


class FleetFile(BaseModel):
    """The content of `fleet.yaml`."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    cards: tuple[CardGroup, ...] = Field(min_length=1)
    """The cards, by kind."""
    startup_seconds: float = Field(default=STARTUP_S, ge=0, allow_inf_nan=False)
    """Seconds until a card takes its first clip."""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if (count := sum(group.count for group in self.cards)) > MOST_CARDS:
            raise ValueError(f"{count} cards are more than {MOST_CARDS}")
        return self


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Cards of one kind and class: a group of a fleet file with all that the file may leave out."""

    kind: str
    card_class: str
    usable_bytes: int
    count: int
    #: US dollars for one; None where not known.
    price_per_hour: float | None
    startup_s: float

    def __str__(self) -> str:
        return f"{self.count} × {self.kind} ({self.card_class})"


def read_fleet(path: Path) -> FleetFile:
    """The fleet in a YAML (or JSON) file. Raises `BadInputError` naming the place in it, and `OSError`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        fault = getattr(error, "problem", None) or "it cannot be parsed"
        raise BadInputError("fleet", f"{path} is no YAML{where}: {fault}", _REMEDY) from None
    except UnicodeDecodeError:
        raise BadInputError("fleet", f"{path} is no UTF-8 text", _REMEDY) from None
    return parse_fleet(content, str(path))


def parse_fleet(content: Any, source: str) -> FleetFile:
    """What `content`, a fleet file read as YAML, says of a fleet. Raises `BadInputError`."""
    if not isinstance(content, Mapping):
        raise BadInputError("fleet", f"{source} holds no table but {_what(content)}", _REMEDY)
    try:
        return FleetFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        shown = first.get("input")
        instead = (
            f", not {shown!r}" if isinstance(shown, (str, int, float)) and first["type"] != "extra_forbidden" else ""
        )
        message = first["msg"].removeprefix("Value error, ")
        raise BadInputError("fleet", f"{source}: {where}: {message}{instead}", _REMEDY) from None


_REMEDY = (
    "Write it as in examples/fleet.yaml: `cards:` with `kind`, `count` and, where wanted, `class` and `price_per_hour`."
)


def cards_of(fleet: FleetFile) -> tuple[Cards, ...]:
    """The groups of a fleet with what the file leaves out. Raises `BadInputError` for memory that no class has."""
    return tuple(_cards(group, fleet.startup_seconds) for group in fleet.cards)


def cards_of_roster(beats: Iterable[Beat]) -> tuple[Cards, ...]:
    """The groups of cards of a running farm, which need no start."""
    counted = Counter((beat.kind, beat.card_class, beat.usable_bytes) for beat in beats)
    return tuple(
        Cards(
            kind=kind,
            card_class=card_class,
            usable_bytes=usable_bytes,
            count=count,
            price_per_hour=rate_of(kind)[0].price_per_hour,
            startup_s=0.0,
        )
        for (kind, card_class, usable_bytes), count in sorted(counted.items())
    )


def _cards(group: CardGroup, startup_s: float) -> Cards:
    rate = rate_of(group.kind)[0]
    memory = int(rate.memory_gb * GIB)
    card_class = group.card_class or card_class_of(memory)
    if card_class is None:
        message = f"{group.kind} has {rate.memory_gb:g} GB, less than any card class"
        raise BadInputError("fleet", message, "Leave it out: no clip fits it.")
    nominal = NOMINAL_BYTES[card_class]
    price = group.price_per_hour
    return Cards(
        kind=group.kind,
        card_class=card_class,
        usable_bytes=usable_bytes(group.kind, nominal),
        count=group.count,
        price_per_hour=rate.price_per_hour if price is None else price,
        startup_s=startup_s if group.startup_seconds is None else group.startup_seconds,
    )


def usable_bytes(kind: str, nominal_bytes: int) -> int:
    """Bytes that clips can count on on a card of `kind` sold with so many."""
    if kind == EMULATED:
        return int(emulated_bytes(nominal_bytes) * EMULATED_SHARE)
    return promised_bytes(nominal_bytes)


def _what(content: object) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"
