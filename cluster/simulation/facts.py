"""What a simulated run's record says, in the order in which invariants ask for it. Knows no scheduler."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from cluster.simulation.journal import JournalEntry, RunRecord, What


@dataclass(kw_only=True)
class AttemptSeen:
    """An attempt as the store and the cards tell of it."""

    id: str
    job: str = ""
    renderer: str = ""
    card: str = ""
    #: By the store: when it was claimed, bytes it needs, the step it goes on from.
    claimed_at: float = math.inf
    needs: int = 0
    claimed_step: int = 0
    ended_at: float = math.inf
    outcome: str = ""
    #: By the card.
    called_at: float | None = None
    #: The attempt that was on the card when it was called.
    behind: str = ""
    ran_on: str = ""
    on_card: list[tuple[float, float, int]] = field(default_factory=list)
    begin: int = 0
    resumed_from: str = ""
    #: The checkpoint it was to go on from could not be used.
    refused: bool = False
    steps: list[tuple[float, int]] = field(default_factory=list)
    saved: list[tuple[float, int, str]] = field(default_factory=list)
    #: Checkpoints that the dispatcher heard of.
    heard: list[tuple[float, int]] = field(default_factory=list)
    unsaved: int = 0
    stored_at: float | None = None
    hangs_at: float | None = None

    @property
    def last_step(self) -> int:
        """The last step that was done; the one it began at where none was."""
        return self.steps[-1][1] if self.steps else self.begin


class RunFacts:
    """The record in the order in which the invariants ask for it."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.end = record.entries[-1].at if record.entries else 0.0
        self.attempts: dict[str, AttemptSeen] = {}
        for change in record.changes:
            if change.what == "attempt":
                a = self._attempt(change.id)
                a.job, a.renderer, a.card = change.job, change.renderer, change.card
                a.claimed_at, a.needs, a.claimed_step = change.at, change.size, change.step
            elif change.what == "end":
                a = self._attempt(change.id)
                if not a.outcome:
                    a.ended_at, a.outcome = change.at, change.after
        for entry in record.entries:
            if entry.attempt:
                self._note(self._attempt(entry.attempt), entry)

    def _attempt(self, attempt_id: str) -> AttemptSeen:
        return self.attempts.setdefault(attempt_id, AttemptSeen(id=attempt_id))

    @staticmethod
    def _note(a: AttemptSeen, e: JournalEntry) -> None:
        match e.what:
            case What.CALLED:
                a.called_at, a.ran_on, a.behind = e.at, e.card, e.detail
            case What.ON_CARD:
                a.on_card.append((e.at, math.inf, e.size))
            case What.OFF_CARD if a.on_card:
                begun, _, size = a.on_card[-1]
                a.on_card[-1] = (begun, e.at, size)
            case What.RESUMED:
                a.begin, a.resumed_from, a.refused = e.step, e.detail, not e.step
            case What.STEP:
                a.steps.append((e.at, e.step))
            case What.SAVED:
                a.saved.append((e.at, e.step, e.detail))
            case What.UNSAVED:
                a.unsaved += 1
            case What.TOLD:
                a.heard.append((e.at, e.step))
            case What.STORED:
                a.stored_at = e.at
            case What.HANGS:
                a.hangs_at = e.at

    @cached_property
    def by_job(self) -> Mapping[str, list[AttemptSeen]]:
        """Claimed attempts of a job, in the order of their claims."""
        found: dict[str, list[AttemptSeen]] = defaultdict(list)
        for a in sorted(self.attempts.values(), key=lambda a: a.claimed_at):
            if a.job:
                found[a.job].append(a)
        return found

    @cached_property
    def made_room(self) -> frozenset[str]:
        """Ids of attempts that were stopped for an interactive clip, by the store's own words."""
        rows = self.record.tables.get("attempts", [])
        return frozenset(str(row["id"]) for row in rows if str(row["detail"]).startswith("made room"))

    def queued(self, jobs: Collection[str]) -> list[tuple[float, float]]:
        """(from, to) of the times in which one of these jobs at least was queued; they may overlap."""
        found = []
        for job in jobs:
            moves = [*self.states[job], (math.inf, "", "")]
            found += [(at, until) for (at, _, state), (until, *_) in pairwise(moves) if state == "queued"]
        return found

    @cached_property
    def states(self) -> Mapping[str, list[tuple[float, str, str]]]:
        """(at, before, after) of every job."""
        found: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
        for c in self.record.changes:
            if c.what == "job":
                found[c.id].append((c.at, c.before, c.after))
        return found

    @cached_property
    def healed_at(self) -> float:
        """When everything was whole for good; infinite where it never was."""
        return next((e.at for e in self.record.of(What.HEALED)), math.inf)

    @cached_property
    def out_of_order(self) -> list[tuple[float, float]]:
        """Times in which no dispatcher worked as it should: none, two, or no store."""
        found: list[tuple[float, float]] = []
        offices, since_out, since_none = 0, math.inf, 0.0
        for e in self.record.of(What.OFFICE_OPEN, What.OFFICE_DEAD, What.OFFICE_LEFT, What.STORE_OUT, What.STORE_BACK):
            if e.what is What.OFFICE_OPEN:
                offices += 1
                found.append((since_none if offices == 1 else e.at, e.at))
            elif e.what is What.OFFICE_DEAD:
                offices -= 1
                since_none = e.at
                found.append((e.at, e.at))
            elif e.what is What.OFFICE_LEFT:
                found.append((e.at, e.at))
            elif e.what is What.STORE_OUT:
                since_out = e.at
            else:
                found.append((since_out, e.at))
                since_out = math.inf
        if offices == 0:
            found.append((since_none, math.inf))
        if since_out < math.inf:
            found.append((since_out, math.inf))
        return found

    def in_order(self, since: float, until: float, before_s: float = 0.0) -> bool:
        """Whether one dispatcher and its store worked all that time, and for `before_s` before it."""
        return not any(since - before_s <= end and begin <= until for begin, end in self.out_of_order)

    def settled(self, card: str, since: float, soon_s: float) -> float:
        """When `soon_s` without anything out of order have passed since then, for a dispatcher and a card."""
        for begin, end in sorted([*self.out_of_order, *self.unreachable[card]]):
            if begin <= since + soon_s:
                since = max(since, end)
        return since + soon_s

    @cached_property
    def died(self) -> Mapping[str, float]:
        """By renderer: when its process died while its node lived."""
        return {e.renderer: e.at for e in self.record.of(What.CARD_DOWN) if e.detail == "died"}

    @cached_property
    def stopped(self) -> Mapping[str, float]:
        """By attempt: when it was first told to stop, by whomever."""
        found: dict[str, float] = {}
        for e in self.record.of(What.STOPS):
            found.setdefault(e.attempt, e.at)
        return found

    def restarted(self, card: str, since: float, until: float) -> bool:
        """Whether the node of a card went away in that time."""
        return any(e.card == card and since <= e.at <= until for e in self.record.of(What.NODE_RESTARTED))

    @cached_property
    def unreachable(self) -> Mapping[str, list[tuple[float, float]]]:
        """By card: times in which its dispatcher could not reach it, or it was not there."""
        away, back = {What.CARD_DOWN, What.CUT_OFF}, {What.CARD_UP, What.REACHED}
        spans = self._spans(away, back, lambda e: e.card, (card.name for card in self.record.cards))
        return defaultdict(list, {card: [(begin, end) for begin, end, _ in its] for card, its in spans.items()})

    @cached_property
    def held(self) -> Mapping[str, list[tuple[float, float, str]]]:
        """By job: (from, to, `row` or `batch`) of the times in which people held it."""
        return self._spans({What.HELD}, {What.FREED}, lambda e: e.job)

    @cached_property
    def closed(self) -> Mapping[str, list[tuple[float, float, str]]]:
        """By card: (from, to, by what word) of the times in which people had closed it."""
        return self._spans({What.CLOSED}, {What.OPENED}, lambda e: e.card)

    def asked(self, a: AttemptSeen) -> list[tuple[float, float, str]]:
        """Times, while an attempt ran, in which people held its job or drained its card: it had to leave."""
        drained = (span for span in self.closed[a.card] if span[2] == "drain")
        return [span for span in (*self.held[a.job], *drained) if span[0] <= a.ended_at and a.claimed_at <= span[1]]

    def _spans(
        self,
        begins: Collection[What],
        ends: Collection[What],
        of: Callable[[JournalEntry], str],
        from_start: Iterable[str] = (),
    ) -> Mapping[str, list[tuple[float, float, str]]]:
        """(from, to, detail of what began it) by name; of `from_start` one is open from the beginning."""
        found: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        since = dict.fromkeys(from_start, (0.0, ""))
        for e in self.record.of(*begins, *ends):
            if e.what in begins:
                since.setdefault(of(e), (e.at, e.detail))
            elif (begun := since.pop(of(e), None)) is not None:
                found[of(e)].append((begun[0], e.at, begun[1]))
        for name, (at, detail) in since.items():
            found[name].append((at, math.inf, detail))
        return found

    def reachable(self, card: str, since: float, until: float) -> bool:
        """Whether a card was there and could be reached all that time."""
        return not any(since <= end and begin <= until for begin, end in self.unreachable[card])

    def usable(self, card: str, at: float, within_s: float = 0.0) -> int:
        """The most bytes that were usable on a card between `within_s` before and `at`."""
        now, most = 0, 0
        for e in self.record.of(What.CARD_UP, What.USABLE):
            if e.card != card:
                continue
            if e.at > at:
                break
            if e.at > at - within_s:
                most = max(most, now)
            now = e.size
        return max(now, most)
