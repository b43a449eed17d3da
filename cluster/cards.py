"""Cards, card classes and the fleet a farm is configured for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from pipeline.admission import margin
from pipeline.footprint import cuda_model

GIB = 2**30

#: Nominal memory of each card class in bytes; a class is named for what the vendor prints on the box.
NOMINAL_BYTES: Mapping[str, int] = {f"c{n}": n * GIB for n in (6, 8, 12, 16, 24, 32, 48, 80, 141)}

#: Part of the nominal memory that is usable on every card of a class: drivers and contexts take the rest.
#: The worst known case is 5.5 GiB usable on a 6 GiB card.
USABLE_SHARE = 0.9


def usable_threshold(card_class: str) -> int:
    """Bytes every card of the class can be counted on to have usable."""
    return int(NOMINAL_BYTES[card_class] * USABLE_SHARE)


def promised_bytes(nominal_bytes: int) -> int:
    """Bytes that clips can count on on a real card sold with so many, when nothing else uses it.

    What is usable is less than the class's threshold on small cards: drivers keep about 1.5 %, and the context and the
    margin of `pipeline.admission` do not shrink with the card.
    """
    kept = cuda_model().context_bytes + margin(nominal_bytes)
    return min(int(nominal_bytes * USABLE_SHARE), int(0.985 * nominal_bytes) - kept)


def card_class_of(total_bytes: int) -> str | None:
    """The largest class a card with `total_bytes` of memory belongs to; None below the smallest class."""
    fitting = [name for name in NOMINAL_BYTES if usable_threshold(name) <= total_bytes]
    return fitting[-1] if fitting else None


def every_class(scale: float = 1.0, share: float = USABLE_SHARE) -> Fleet:
    """All card classes there are. On emulated cards `scale` is emulated bytes per nominal one."""
    return Fleet(usable_bytes={name: int(nominal * scale * share) for name, nominal in NOMINAL_BYTES.items()})


class CardState(StrEnum):
    """What a card is doing, as its renderer says."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"


class Beat(BaseModel):
    """A renderer's heartbeat, twice a second: who it is, what its card can hold, what it is doing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Id of the renderer process; calls are routed by it.
    renderer: str
    #: Id of the card (GPU uuid, or the name of an emulated card).
    card: str
    card_class: str
    #: NVML name of the card, or `emulated`.
    kind: str
    total_bytes: int
    usable_bytes: int
    used_bytes: int
    #: What other programs hold of the card; already taken off `usable_bytes`.
    foreign_bytes: int = 0
    state: CardState
    #: Family whose weights are loaded; placement prefers a warm card.
    family: str | None = None
    #: Attempts in flight (one denoising, at most one being published) and their last finished step.
    steps: dict[str, tuple[int, int]] = Field(default_factory=dict)
    #: Why the clip on the card does not start yet, in words; empty while none waits for memory.
    holding: str = ""


class Card(BaseModel):
    """One card as placement sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    renderer: str
    card: str
    card_class: str
    kind: str
    usable_bytes: int
    idle: bool
    family: str | None = None

    @classmethod
    def of(cls, beat: Beat, *, idle: bool) -> Card:
        """The card that `beat` tells of."""
        return cls(
            renderer=beat.renderer,
            card=beat.card,
            card_class=beat.card_class,
            kind=beat.kind,
            usable_bytes=beat.usable_bytes,
            idle=idle,
            family=beat.family,
        )


class Fleet(BaseModel):
    """The card classes a farm is configured for, present now or not (a node group may be scaled to zero)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Usable bytes per card of each class.
    usable_bytes: dict[str, int]

    @property
    def largest_bytes(self) -> int:
        """Usable bytes of the largest card there can be; 0 in an empty fleet."""
        return max(self.usable_bytes.values(), default=0)

    def smallest_class_for(self, needed_bytes: int) -> str | None:
        """Name of the smallest class whose cards hold `needed_bytes`, or None."""
        fitting = [(usable, name) for name, usable in self.usable_bytes.items() if usable >= needed_bytes]
        return min(fitting)[1] if fitting else None
