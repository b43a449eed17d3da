"""Which waiting job starts on which card: a pure function from a snapshot to decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from cluster.breaker import Route, route_of
from cluster.cards import Card, Fleet
from cluster.jobs import Job
from cluster.lessons import ELSEWHERE, Lessons, key_of
from pipeline.footprint import Footprint, leanest, plan


class WaitReason(IntEnum):
    """Why a job does not start now, from the hardest to the lightest."""

    NO_CARD_OF_THIS_SIZE = 1
    #: Clips of this kind failed again and again on every card that holds it: none is tried for a while.
    FITTING_CARDS_FAILED = 2
    EQUAL_CLIP_RUNNING = 3
    ALL_FITTING_CARDS_BUSY = 4


@dataclass(frozen=True)
class Start:
    """Start `job` on `card` now."""

    job: Job
    card: Card


@dataclass(frozen=True)
class Wait:
    """Leave `job` waiting."""

    job: Job
    reason: WaitReason


@dataclass(frozen=True)
class Refuse:
    """No card this farm can ever have holds `job`."""

    job: Job


@dataclass(frozen=True)
class Relax:
    """What was measured says that no card holds the layout `job` waits for: let it have a leaner one."""

    job: Job


Decision = Start | Wait | Refuse | Relax


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that placement may know."""

    waiting: Sequence[Job]
    cards: Sequence[Card]
    fleet: Fleet
    lessons: Lessons = field(default_factory=Lessons)
    #: Routes behind an open breaker.
    closed: frozenset[Route] = frozenset()


def expected_bytes(job: Job, kind: str, lessons: Lessons) -> int:
    """What a card of `kind` must have usable for `job`: its `needs_bytes`, as far as nothing better is known.

    A need that is a prediction is corrected by what was measured, upwards or downwards; one that was raised after an
    attempt failed is never lowered.
    """
    if not lessons.lessons or job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return job.needs_bytes
    layout, predicted = planned
    corrected = lessons.corrected(predicted, key_of(job.spec, layout, kind), layout)
    return corrected if _is_prediction(job, predicted) else max(job.needs_bytes, corrected)


def place(snapshot: Snapshot) -> list[Decision]:
    """One decision for every waiting job.

    Order: priority, then age, then the row's number. A job takes the smallest idle card that holds it, so large
    cards stay free for large clips; between equals a card that has the family loaded already.
    """
    idle = [card for card in snapshot.cards if card.idle]
    kinds = {card.kind for card in snapshot.cards}
    starting: set[tuple[str, str | None]] = set()
    decisions: list[Decision] = []
    for job in sorted(snapshot.waiting, key=lambda j: (-j.priority, j.created_at, j.batch_id, j.number)):
        if snapshot.fleet.smallest_class_for(job.needs_bytes) is None:
            decisions.append(Refuse(job))
            continue
        if (job.owner, job.content_key) in starting:
            decisions.append(Wait(job, WaitReason.EQUAL_CLIP_RUNNING))
            continue
        needs = {kind: expected_bytes(job, kind, snapshot.lessons) for kind in kinds}
        fitting = [card for card in idle if card.usable_bytes >= needs[card.kind]]
        somewhere = any(card.usable_bytes >= needs[card.kind] for card in snapshot.cards)
        if not somewhere and _nowhere_by_experience(job, snapshot):
            if _can_relax(job):
                decisions.append(Relax(job))
                continue
            # Experience may be wrong and refuses nothing: the largest card that should hold it is tried.
            held = [card for card in snapshot.cards if card.usable_bytes >= job.needs_bytes]
            most = max(card.usable_bytes for card in held)
            somewhere, fitting = True, [card for card in idle if card.usable_bytes == most]
        fitting = [card for card in fitting if not _is_closed(job, card, snapshot.closed)]
        if not fitting:
            decisions.append(Wait(job, _reason(job, snapshot, needs) if somewhere else WaitReason.NO_CARD_OF_THIS_SIZE))
            continue
        family = job.spec.family if job.spec else None
        card = min(fitting, key=lambda c: (c.usable_bytes, c.family != family, c.card))
        # By the card, not its renderer: a renderer just replaced may still be on the roster beside its successor.
        idle = [other for other in idle if other.card != card.card]
        starting.add((job.owner, job.content_key))
        decisions.append(Start(job, card))
    return decisions


def _reason(job: Job, snapshot: Snapshot, needs: Mapping[str, int]) -> WaitReason:
    holding = [card for card in snapshot.cards if card.usable_bytes >= needs[card.kind]]
    if holding and all(_is_closed(job, card, snapshot.closed) for card in holding):
        return WaitReason.FITTING_CARDS_FAILED
    return WaitReason.ALL_FITTING_CARDS_BUSY


def _is_closed(job: Job, card: Card, closed: frozenset[Route]) -> bool:
    if job.spec is None or all(route.card != card.card for route in closed):
        return False
    return route_of(job.spec, card.card, card.usable_bytes) in closed


def _nowhere_by_experience(job: Job, snapshot: Snapshot) -> bool:
    """Whether a card is there that should hold `job`, and no class that is not there could hold it by experience."""
    if not any(card.usable_bytes >= job.needs_bytes for card in snapshot.cards):
        return False
    present = {card.card_class for card in snapshot.cards}
    expected = expected_bytes(job, ELSEWHERE, snapshot.lessons)
    return not any(
        usable_bytes >= expected for name, usable_bytes in snapshot.fleet.usable_bytes.items() if name not in present
    )


def _can_relax(job: Job) -> bool:
    if job.spec is None or (planned := plan(job.spec, job.needs_bytes)) is None:
        return False
    return _is_prediction(job, planned[1]) and leanest(job.spec)[1].peak_bytes < job.needs_bytes


def _is_prediction(job: Job, predicted: Footprint) -> bool:
    return job.needs_bytes == predicted.peak_bytes
