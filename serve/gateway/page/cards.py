"""Cards as the page shows them: memory in parts, what each renders, what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.farm import Farm
from cluster.fleet.cards import Beat, CardState
from cluster.forecast.suggest import FULL_SHARE
from cluster.jobs.commands import CardOrder, CardVerb
from cluster.jobs.model import Job
from serve.gateway.views import card_view

_ORDERED = {CardVerb.LOCK: "locked", CardVerb.DRAIN: "drained", CardVerb.QUARANTINE: "quarantined"}


@dataclass(frozen=True, kw_only=True)
class MemoryBar:
    """A card's memory in parts of its whole, in bytes; they add up to `total_bytes`."""

    total_bytes: int
    #: By clips of this farm, and by other programs.
    used_bytes: int
    foreign_bytes: int
    #: Kept free for the driver, the CUDA context and the margin: no clip is planned into it.
    reserved_bytes: int
    free_bytes: int

    @classmethod
    def of(cls, beat: Beat) -> MemoryBar:
        """The memory that a heartbeat tells of."""
        total = max(beat.total_bytes, 0)
        foreign = min(max(beat.foreign_bytes, 0), total)
        used = min(max(beat.used_bytes, 0), total - foreign)
        # A clip that takes more than was planned eats into what is kept free.
        reserved = min(max(total - beat.usable_bytes - foreign, 0), total - foreign - used)
        free = total - foreign - used - reserved
        return cls(total_bytes=total, used_bytes=used, foreign_bytes=foreign, reserved_bytes=reserved, free_bytes=free)

    @property
    def full_share(self) -> float:
        """In use, by whomever, of the whole: from 0 to 1."""
        return (self.used_bytes + self.foreign_bytes) / self.total_bytes if self.total_bytes else 0.0

    @property
    def is_full(self) -> bool:
        """Whether so much is in use that it is worth a warning."""
        return self.full_share > FULL_SHARE

    @property
    def parts(self) -> list[tuple[str, float, float]]:
        """(name, where it begins, how wide it is) of each part that there is, in percent."""
        found, at = [], 0.0
        named = (("used", self.used_bytes), ("foreign", self.foreign_bytes), ("reserved", self.reserved_bytes))
        for name, size in named:
            wide = 100 * size / self.total_bytes if self.total_bytes else 0.0
            if wide:
                # What is kept free stands at the end of the bar, where memory runs out.
                found.append((name, 100 - wide if name == "reserved" else at, wide))
            at += wide
        return found


@dataclass(frozen=True, kw_only=True)
class CardClip:
    """One clip that a card has: on the card, or being published."""

    step: int
    steps: int
    #: None: it is another owner's.
    job: Job | None = None

    @property
    def percent(self) -> int:
        """Whole percent of its steps."""
        return 100 * self.step // self.steps if self.steps else 0

    @property
    def what(self) -> str:
        """What is being done with it."""
        return "being published" if self.steps and self.step >= self.steps else "being rendered"


@dataclass(frozen=True, kw_only=True)
class CardPanel:
    """One card as the page shows it."""

    beat: Beat
    memory: MemoryBar
    order: CardOrder | None = None
    clips: tuple[CardClip, ...] = ()
    warning: str = ""
    #: The largest clips that fit now, by family: `512p × 16 frames`.
    largest: Mapping[str, str] = field(default_factory=dict)

    @property
    def ordered(self) -> str:
        """What the order that holds makes of it, in a word; empty where none does."""
        return "" if self.order is None else _ORDERED[self.order.kind]

    @property
    def label(self) -> str:
        """What it does, in a word or two."""
        if self.beat.fault:
            return "cannot be used"
        if self.order is not None:
            return self.ordered
        return {CardState.BUSY: "rendering", CardState.IDLE: "idle"}.get(self.beat.state, self.beat.state.value)

    @property
    def tone(self) -> str:
        """`running`, `failed`, `held` or `queued`: the state of a row whose colour it has."""
        if self.beat.fault or self.beat.storage_fault:
            return "failed"
        if self.order is not None or self.beat.state is CardState.DRAINING:
            return "held"
        return "running" if self.beat.state is CardState.BUSY else "queued"


def card_panels(farm: Farm) -> list[CardPanel]:
    """The cards heard of lately, largest last."""
    beats, orders = farm.batch_store.cards(), farm.commands.orders()
    jobs = farm.batch_store.jobs_of_attempts(farm.owner, [attempt for beat in beats for attempt in beat.steps])
    return [_panel(beat, orders.get(beat.card), jobs) for beat in beats]


def summary_of(panels: list[CardPanel]) -> str:
    """How many cards there are and what they do: `3 cards: 2 rendering, 1 idle`."""
    if not panels:
        return "no card"
    labels: dict[str, int] = {}
    for panel in panels:
        labels[panel.label] = labels.get(panel.label, 0) + 1
    head = "1 card" if len(panels) == 1 else f"{len(panels)} cards"
    return f"{head}: " + ", ".join(f"{number} {label}" for label, number in labels.items())


def _panel(beat: Beat, order: CardOrder | None, jobs: Mapping[str, Job]) -> CardPanel:
    view = card_view(beat, order)
    clips = [
        CardClip(step=step, steps=steps, job=jobs.get(attempt)) for attempt, (step, steps) in sorted(beat.steps.items())
    ]
    return CardPanel(
        beat=beat,
        memory=MemoryBar.of(beat),
        order=order,
        clips=tuple(clips),
        warning=view["warning"],
        largest={name: f"{one['class']} × {one['frames']} frames" for name, one in view["largest"].items() if one},
    )
