"""Why a waiting job waits, in one or two sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.explain.trial import Trial
from cluster.explain.words import hour_text
from cluster.fleet.cards import Card
from cluster.fleet.quotas import DEFAULT_SHARE
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import Job
from cluster.scheduling.eligible import expected_bytes, lacks
from cluster.scheduling.priority import effective_priority
from cluster.scheduling.snapshot import WaitReason
from pipeline.families import family_named
from pipeline.units import format_bytes

#: Cards that are named; of more, only the number.
_NAMED = 4


class WaitWords:
    """Reasons of one waiting job in words, with the numbers of its farm."""

    def __init__(self, trial: Trial) -> None:
        self._job, self._snapshot, self._now, self._known = trial.job, trial.snapshot, trial.now, trial.known
        self._cards = trial.cards
        self._fitting = [card for card in self._cards.values() if card.usable_bytes >= self._needs(card)]

    def of(self, reason: WaitReason) -> str:
        """The reason in one or two sentences."""
        match reason:
            case WaitReason.NO_CARD_OF_THIS_SIZE:
                return self._no_card()
            case WaitReason.FITTING_CARDS_FAILED:
                return self._failed()
            case WaitReason.FITTING_CARDS_LOCKED:
                cards = "; ".join(self._locked(card) for card in self._named(self._fitting))
                return f"Every card that holds it ({self._size}) is out of use: {cards}{self._more(self._fitting)}."
            case WaitReason.NOT_BEFORE:
                return f"It is not to start before {hour_text(self._job.not_before or 0, self._now)}."
            case WaitReason.OWNER_AT_LIMIT:
                share = self._snapshot.owners.get(self._job.owner, DEFAULT_SHARE)
                have = sum(one.job.owner == self._job.owner for one in self._snapshot.running)
                on = f"{have} {'clip' if have == 1 else 'clips'} on cards"
                return f"Its owner {self._job.owner} has {on} and may have {share.max_running}."
            case WaitReason.EQUAL_CLIP_RUNNING:
                return self._equal()
            case WaitReason.PLANNED_LATER:
                return "It or its batch ends earlier if it starts later, on a card that is faster or free for longer."
            case WaitReason.BEHIND_OTHERS:
                idle = [card for card in self._fitting if card.idle and card.card not in self._snapshot.locked]
                return f"{self._cards_text(idle)} it ({self._size}), but {self._before()}."
            case WaitReason.ALL_FITTING_CARDS_BUSY:
                return self._busy()

    def unusable(self) -> str:
        """Why the job, which fits no card here, waits for cards that cannot be used; empty where it waits for others.

        It does where its need is promised of the class of one of them, or where no card here can be used at all.
        """
        faults = self._known.card_faults
        promised = self._snapshot.fleet.usable_bytes
        broken = [card for card in self._cards.values() if card.card in faults]
        if len(broken) < len(self._cards):
            broken = [card for card in broken if promised.get(card.card_class, 0) >= self._job.needs_bytes]
        if not broken:
            return ""
        every = "no card here can be used" if len(broken) == len(self._cards) else "what could hold it cannot be used"
        which = "; ".join(f"{card.card} ({card.card_class}): {faults[card.card]}" for card in self._named(broken))
        return f"It needs {self._size} of a card, and {every}: {which}{self._more(broken)}"

    @property
    def _size(self) -> str:
        return format_bytes(min(map(self._needs, self._fitting), default=self._job.needs_bytes))

    def _needs(self, card: Card) -> int:
        return expected_bytes(self._job, card.kind, self._snapshot.memory, card.capability)

    def _no_card(self) -> str:
        largest = max(self._cards.values(), key=lambda card: card.usable_bytes, default=None)
        if largest is None:
            return (
                "No card was heard of lately: no farm is running (`clipmill up` starts one), or its renderers are "
                f"still starting. It needs {self._size}."
            )
        able = [card for card in self._cards.values() if not lacks(self._job, card.capability)]
        if not able:
            return self._lacking()
        largest = max(able, key=lambda card: card.usable_bytes)
        largest_text = format_bytes(largest.usable_bytes)
        text = f"It needs {self._size}, and the largest card here ({largest.card}) has {largest_text}."
        present = {card.card_class for card in able}
        usable = self._snapshot.fleet.usable_bytes
        absent = sorted((size, name) for name, size in usable.items() if size >= self._job.needs_bytes)
        names = [name for _, name in absent if name not in present]
        return f"{text} The farm can have {' or '.join(names)}, but none is up now." if names else text

    def _lacking(self) -> str:
        assert self._job.spec is not None
        family = family_named(self._job.spec.family)
        least = ".".join(map(str, family.least_capability or ()))
        kinds = sorted({(card.kind, card.capability or ()) for card in self._cards.values()})
        here = ", ".join(f"{kind} ({'.'.join(map(str, capability))})" for kind, capability in kinds)
        return (
            f"{family.name} computes in {family.half}, for which a card needs compute capability {least} or newer; "
            f"those here have less: {here}. Add such a card, or hand the row in with another model."
        )

    def _failed(self) -> str:
        names = {card.card for card in self._fitting}
        ends = [until for route, until in self._known.blocked_until.items() if route.card in names]
        when = f" until about {hour_text(min(ends), self._now)}" if ends else " for a while"
        cards = ", ".join(card.card for card in self._named(self._fitting)) + self._more(self._fitting)
        return f"Clips of this kind failed again and again on every card that holds it ({cards}): none is tried{when}."

    def _locked(self, card: Card) -> str:
        order = self._known.orders.get(card.card)
        if order is None:
            return card.card
        done = {CardVerb.LOCK: "locked", CardVerb.DRAIN: "drained", CardVerb.QUARANTINE: "quarantined"}
        until = f" until {hour_text(order.until, self._now)}" if order.until is not None else ""
        reason = f" ({order.reason})" if order.reason else ""
        return f"{card.card} {done.get(order.kind, str(order.kind))} by {order.given_by or 'somebody'}{until}{reason}"

    def _equal(self) -> str:
        for one in self._snapshot.running:
            if (one.job.owner, one.job.content_key) == (self._job.owner, self._job.content_key):
                steps = f", step {one.step} of {one.job.steps}" if one.job.steps else ""
                return f"An equal clip is being rendered: {one.job.name} ({one.job.id}) on {one.card}{steps}."
        return "An equal clip starts at the dispatcher's next look: it completes with that one's clip."

    def _before(self) -> str:
        mine, others = self._rank(self._job), [one for one in self._snapshot.waiting if one.id != self._job.id]
        seen = [one for one in others if self._rank(one) < mine]
        ahead = self._known.ahead if self._known.ahead is not None else len(seen)
        priority = effective_priority(self._job, self._now)
        higher = sum(effective_priority(one, self._now) > priority for one in seen)
        if not ahead:
            return "the cards go to other owners, or to clips that need a larger card"
        most = self._known.ahead_most
        number = f"more than {most - 1}" if most is not None and ahead >= most else str(ahead)
        of = f", {higher} of a higher priority" if higher and ahead == len(seen) else ""
        return f"{number} {'job goes' if ahead == 1 else 'jobs go'} before it{of}"

    def _rank(self, job: Job) -> tuple[bool, int, int, str, int]:
        first = job.id in self._snapshot.admitted
        return not first, -effective_priority(job, self._now), job.created_at, job.batch_id, job.number

    def _busy(self) -> str:
        idle = [c for c in self._cards.values() if c.idle and c.card not in self._snapshot.locked]
        largest = max((card.usable_bytes for card in idle), default=None)
        have = "no card is idle" if largest is None else f"the largest idle card has {format_bytes(largest)}"
        usable = [card for card in self._fitting if card.card not in self._snapshot.locked]
        many = f"all {len(usable)} cards that hold it are busy" if len(usable) > 1 else f"{usable[0].card} is busy"
        text = f"It needs {self._size}: {many}, and {have}"
        out = [card for card in self._fitting if card.card in self._snapshot.locked]
        if out:
            text += f" ({'; '.join(self._locked(card) for card in self._named(out))}{self._more(out)})"
        before = self._before() if self._known.ahead or len(self._snapshot.waiting) > 1 else ""
        return f"{text}. {before[0].upper()}{before[1:]}." if before and before[0].isdigit() else f"{text}."

    def _cards_text(self, cards: Sequence[Card]) -> str:
        if len(cards) == 1:
            return f"{cards[0].card} is idle and holds"
        return f"{len(cards)} idle cards hold"

    @staticmethod
    def _named(cards: Sequence[Card]) -> Sequence[Card]:
        return sorted(cards, key=lambda card: card.card)[:_NAMED]

    @staticmethod
    def _more(cards: Sequence[Card]) -> str:
        return f" and {len(cards) - _NAMED} more" if len(cards) > _NAMED else ""
