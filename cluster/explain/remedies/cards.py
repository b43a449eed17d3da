"""Cards that would start a job: one that is locked, or more of a class. Pure."""

from __future__ import annotations

from cluster.estimates.memory import ELSEWHERE
from cluster.explain.model import Remedy, RemedyKind
from cluster.explain.trial import Trial
from cluster.explain.words import hour_text
from cluster.fleet.cards import Card
from cluster.scheduling.eligible import expected_bytes

#: Locked cards that are tried to be released.
_MOST_RELEASED = 10
#: Cards of one class that are tried to be added.
_MOST_ADDED = 64


def release(trial: Trial, until: float) -> Remedy | None:
    """Release the one card that lets the job start: at once, else earliest before `until`."""
    snapshot = trial.snapshot
    names = sorted({card.card for card in snapshot.cards if card.card in snapshot.locked})
    later: list[tuple[float, Card]] = []
    for name in names[:_MOST_RELEASED]:
        freed = snapshot.but(locked=snapshot.locked - {name})
        if (card := trial.start(freed)) is not None:
            return _released(trial, name, card, None)
        # One that was locked while it works starts nothing before that has ended.
        if (found := trial.ahead(freed, by=until)) is not None and found[1].card == name:
            later.append(found)
    if not later:
        return None
    at, card = min(later, key=lambda one: (one[0], one[1].card))
    return _released(trial, card.card, card, at)


def _released(trial: Trial, name: str, card: Card, at: float | None) -> Remedy:
    when = "" if at is None else f", which is then free at about {hour_text(at, trial.now)}"
    return Remedy(
        kind=RemedyKind.RELEASE,
        text=f"release card {name}{when}",
        command=f"clipmill cards release {name}",
        card=name,
        card_class=card.card_class,
        at=at,
    )


def add(trial: Trial) -> Remedy | None:
    """Add the fewest cards of the smallest class that let the job start."""
    classes = sorted(trial.snapshot.fleet.usable_bytes.items(), key=lambda one: one[1])
    most = min(_MOST_ADDED, len(trial.snapshot.waiting))
    if trial.known.per_queue is not None:
        # With more idle cards than jobs that are seen of a queue, one would seem to be left for this job.
        most = min(most, trial.known.per_queue - len(trial.idle) - 1)
    for name, usable in classes:
        if usable < expected_bytes(trial.job, ELSEWHERE, trial.snapshot.memory):
            continue
        low, high = 0, 1
        while high < most and not _starts_with(trial, name, usable, high):
            low, high = high, min(2 * high, most)
        if high > most or not _starts_with(trial, name, usable, high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _starts_with(trial, name, usable, middle) else (middle, high)
        text = f"one more {name} card" if high == 1 else f"{high} more {name} cards"
        if not any(card.card_class == name for card in trial.snapshot.cards):
            text = f"one {name} card" if high == 1 else f"{high} {name} cards"
        return Remedy(kind=RemedyKind.ADD, text=text, card_class=name, number=high)
    return None


def _starts_with(trial: Trial, name: str, usable: int, number: int) -> bool:
    kinds = sorted({card.kind for card in trial.snapshot.cards if card.card_class == name})
    more = [
        Card(
            renderer=f"+{i}",
            card=f"+{i}",
            card_class=name,
            kind=kinds[0] if kinds else ELSEWHERE,
            usable_bytes=usable,
            idle=True,
        )
        for i in range(number)
    ]
    return trial.start(trial.snapshot.but(cards=[*trial.snapshot.cards, *more])) is not None
