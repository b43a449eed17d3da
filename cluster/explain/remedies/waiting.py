"""Waiting: when a job starts by itself, or is done without. Pure."""

from __future__ import annotations

import math

from cluster.explain.look_ahead import left_s, through_s
from cluster.explain.model import Remedy, RemedyKind
from cluster.explain.trial import Trial
from cluster.explain.words import hour_text
from cluster.scheduling.tail.plan import TailPlan


def until_it_starts(trial: Trial) -> Remedy | None:
    """Wait until the job starts by itself; None where that cannot be told."""
    if trial.known.hidden:
        return _behind_many(trial)
    found = trial.ahead(trial.snapshot)
    if found is None:
        return None
    at, card = found
    why = f", when {card.card} ({card.card_class}) is expected to be free for it"
    if trial.job.not_before is not None and at <= trial.job.not_before:
        why = f", and it starts on {card.card} ({card.card_class})"
    text = f"wait until about {hour_text(at, trial.now)}{why}"
    return Remedy(kind=RemedyKind.WAIT, text=text, at=at, card=card.card, card_class=card.card_class)


def _behind_many(trial: Trial) -> Remedy | None:
    """An estimate from how many jobs go before this one, as if all took as long as it does."""
    snapshot, job, ahead = trial.snapshot, trial.job, trial.known.ahead
    fitting = [card for card in snapshot.cards if card.card not in snapshot.locked and trial.fits(card)]
    if not ahead or not fitting or _is_above(trial, ahead):
        return None
    rate = sum(1 / seconds for card in fitting if 0 < (seconds := through_s(job, card, trial.estimates)) < math.inf)
    if not rate:
        return None
    at = trial.now + ahead / rate
    text = f"wait until about {hour_text(at, trial.now)}, if the {ahead} jobs before it take as long as it does"
    return Remedy(kind=RemedyKind.WAIT, text=text, at=at)


def _is_above(trial: Trial, ahead: int) -> bool:
    return trial.known.ahead_most is not None and ahead >= trial.known.ahead_most


def for_equal_clip(trial: Trial) -> Remedy | None:
    """Wait for the clip of an equal job that is being rendered: the job gets it; None where none is."""
    job, snapshot = trial.job, trial.snapshot
    for one in snapshot.running:
        if (one.job.owner, one.job.content_key) == (job.owner, job.content_key):
            seconds = left_s(one, trial.cards.get(one.card), trial.estimates)
            at = trial.now + seconds if seconds < math.inf else None
            when = f" at about {hour_text(at, trial.now)}" if at is not None else ""
            text = f"wait: it completes with the clip of {one.job.id}{when}, without being rendered"
            return Remedy(kind=RemedyKind.WAIT, text=text, at=at, card=one.card, starts=False)
    return None


def for_plan(trial: Trial, plan: TailPlan | None) -> Remedy | None:
    """Wait until the time and for the card that `plan` has for the job; None where it has none."""
    part = plan.part_of(trial.job.id, trial.job.step) if plan else None
    if part is None:
        return None
    at = max(trial.now, part.begins_at)
    card = trial.cards.get(part.card)
    on = f"{part.card} ({card.card_class})" if card else part.card
    text = f"wait until about {hour_text(at, trial.now)}: it is planned on {on} then"
    return Remedy(kind=RemedyKind.WAIT, text=text, at=at, card=part.card, card_class=card.card_class if card else "")


def for_its_time(trial: Trial) -> Remedy:
    """Wait for the job's own time, when it may still not start at once."""
    at = float(trial.job.not_before or 0)
    text = f"wait until {hour_text(at, trial.now)}; whether a card is free for it then is not known"
    return Remedy(kind=RemedyKind.WAIT, text=text, at=at, starts=False)
