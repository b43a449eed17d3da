"""Which waiting job starts on which card: a pure function from a snapshot to decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cluster.cards import Card, Fleet
from cluster.jobs import Job


class WaitReason(IntEnum):
    """Why a job does not start now, from the hardest to the lightest."""

    NO_CARD_OF_THIS_SIZE = 1
    EQUAL_CLIP_RUNNING = 2
    ALL_FITTING_CARDS_BUSY = 3


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


Decision = Start | Wait | Refuse


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that placement may know."""

    waiting: Sequence[Job]
    cards: Sequence[Card]
    fleet: Fleet


def place(snapshot: Snapshot) -> list[Decision]:
    """One decision for every waiting job.

    Order: priority, then age, then the row's number. A job takes the smallest idle card that holds it, so large
    cards stay free for large clips; between equals a card that has the family loaded already.
    """
    idle = [card for card in snapshot.cards if card.idle]
    starting: set[tuple[str, str | None]] = set()
    decisions: list[Decision] = []
    for job in sorted(snapshot.waiting, key=lambda j: (-j.priority, j.created_at, j.batch_id, j.number)):
        if snapshot.fleet.smallest_class_for(job.needs_bytes) is None:
            decisions.append(Refuse(job))
            continue
        if (job.owner, job.content_key) in starting:
            decisions.append(Wait(job, WaitReason.EQUAL_CLIP_RUNNING))
            continue
        fitting = [card for card in idle if card.usable_bytes >= job.needs_bytes]
        if not fitting:
            somewhere = any(card.usable_bytes >= job.needs_bytes for card in snapshot.cards)
            reason = WaitReason.ALL_FITTING_CARDS_BUSY if somewhere else WaitReason.NO_CARD_OF_THIS_SIZE
            decisions.append(Wait(job, reason))
            continue
        family = job.spec.family if job.spec else None
        card = min(fitting, key=lambda c: (c.usable_bytes, c.family != family, c.card))
        # By the card, not its renderer: a renderer just replaced may still be on the roster beside its successor.
        idle = [other for other in idle if other.card != card.card]
        starting.add((job.owner, job.content_key))
        decisions.append(Start(job, card))
    return decisions
