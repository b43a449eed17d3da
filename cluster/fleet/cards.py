"""Cards, card classes and the fleet a farm is configured for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.memory.admission import margin
from pipeline.memory.footprint import cuda_model
from pipeline.units import GIB

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
    margin of `pipeline.memory.admission` do not shrink with the card.
    """
    kept = cuda_model().context_bytes + margin(nominal_bytes)
    return min(int(nominal_bytes * USABLE_SHARE), int(0.985 * nominal_bytes) - kept)


def promised_of_card(programs_bytes: int) -> int:
    """Bytes that clips can count on on a card of which programs can have so many, when nothing else uses it."""
    return max(0, programs_bytes - cuda_model().context_bytes - margin(programs_bytes))


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


def _is_unset(value: object) -> bool:
    # What older dispatchers and stores do not know is left out where it says nothing: they refuse other keys.
    return not value


class Beat(BaseModel):
    """A renderer's heartbeat, twice a second: who it is, what fits its card, what it is doing."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

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
    #: What other programs use of the card; already taken off `usable_bytes`.
    foreign_bytes: int = 0
    state: CardState
    #: Family whose weights are loaded; placement prefers a warm card.
    family: str | None = None
    #: Running attempts (one denoising, at most one being published) and their last finished step.
    steps: dict[str, tuple[int, int]] = Field(default_factory=dict)
    #: Why the clip on the card does not go on yet, in words; empty while none waits for memory or for its weights.
    #: Written as `holding`, as renderers, dispatchers and stores of other versions know it.
    waiting_for: str = Field(default="", alias="holding")
    #: Why the card cannot be used, and what to do, in words; empty while it works. It has no usable bytes then, and
    #: takes clips of families that need none.
    fault: str = Field(default="", exclude_if=_is_unset)
    #: The fault may be over by itself, and its renderer tries again. Left out where it says nothing.
    fault_passes: bool = Field(default=False, exclude_if=_is_unset)
    #: CUDA compute capability, such as (8, 9); None on emulated cards, and where the driver does not say.
    capability: tuple[int, int] | None = Field(default=None, exclude_if=_is_unset)
    #: Which start of its host this process belongs to (the kernel's boot id), and its process id: a successor on the
    #: same card and start of the host shows that this process ended while its node lived. Left out where not known, as
    #: by renderers of other versions.
    boot: str = Field(default="", exclude_if=_is_unset)
    pid: int = Field(default=0, exclude_if=_is_unset)
    #: The attempt that has been promised the card's memory: it loads or renders. Empty: none, or not known (no `boot`).
    on_card: str = Field(default="", exclude_if=_is_unset)
    #: Why storage cannot be written, in words, by this renderer or (as the dispatcher writes it down) by the farm: the
    #: card takes no new clip. Empty while it can.
    storage_fault: str = Field(default="", exclude_if=_is_unset)

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Beat:
        """The beat in `message`, sent or stored by this version or another; keys that are not known are ignored."""
        known = {name for field, about in cls.model_fields.items() for name in (field, about.alias)}
        return cls.model_validate({key: value for key, value in message.items() if key in known})


def storage_fault(beats: Iterable[Beat]) -> str:
    """Why storage cannot be written, as the first of `beats` says that knows; empty where all can."""
    return next((beat.storage_fault for beat in beats if beat.storage_fault), "")


def card_faults(beats: Iterable[Beat]) -> dict[str, str]:
    """Why cards cannot be used, and what to do, by card; those that can are left out."""
    return {beat.card: beat.fault for beat in beats if beat.fault}


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
    #: CUDA compute capability; None on emulated cards, and where it is not known.
    capability: tuple[int, int] | None = None

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
            capability=beat.capability,
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
        """Name of the smallest class whose cards `needed_bytes` fit; None where they fit none."""
        fitting = [(usable, name) for name, usable in self.usable_bytes.items() if usable >= needed_bytes]
        return min(fitting)[1] if fitting else None
