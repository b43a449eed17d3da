"""Why a job is where it is, in words, and the smallest change that would start it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from cluster.cards import Card, Fleet
from cluster.jobs import HoldReason, Job, JobState, Reason
from cluster.owners import DEFAULT_SHARE, OwnerShare
from cluster.placement import (
    Decision,
    Refuse,
    Relax,
    Snapshot,
    Start,
    Wait,
    WaitReason,
    effective_priority,
    expected_bytes,
    place,
)
from cluster.planning.parts import TailPlan
from cluster.rates import Rates
from cluster.remedies import (
    Change,
    ChangeKind,
    Known,
    Search,
    first_needs,
    hour_text,
    left_s,
    opened,
    size_text,
    start_of,
    with_job,
)
from cluster.verbs import Before, CardVerb, Facts, Verb, rule_for
from pipeline.footprint import leanest

__all__ = ["Change", "ChangeKind", "Explanation", "Known", "Rules", "explain"]

#: Reasons of queued jobs that are no `WaitReason`.
STARTS_NOW = "starts_now"
LEANER_SOON = "leaner_soon"
ABANDONED = "abandoned"
#: Cards that are named; of more, only the number.
_NAMED = 4


class Rules(BaseModel):
    """What a farm's configuration says of placement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: None: nothing is said of the cards that it can have.
    fleet: Fleet | None = None
    #: Shares and limits of owners that have any.
    owners: dict[str, OwnerShare] = Field(default_factory=dict)
    #: Whether the dispatcher plans the tails of batches.
    plans: bool = False


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job is in its state, and what would change that."""

    job: str
    state: JobState
    #: Of a waiting job the name of a `WaitReason` in lower case, `starts_now`, `leaner_soon` or `abandoned`; of a held
    #: one a `HoldReason`, of a failed one a `Reason`; else the state.
    reason: str
    #: In words, with numbers.
    text: str
    #: What would start it, from the cheapest to the dearest: the first is the smallest change.
    changes: tuple[Change, ...] = ()


def explain(
    job: Job, snapshot: Snapshot, now: float, rates: Rates | None = None, known: Known | None = None
) -> Explanation:
    """Why `job` waits, by the placement that decides it; `now` in UTC epoch seconds.

    `snapshot` has the cards, what runs on them, and the jobs that wait, with or without `job`. Every change is tried on
    it: those that are told start the job under `place` (`Change.starts`), or at the time they name, as far as `rates`
    can tell.
    """
    rates, known = rates or Rates(), known or Known()
    match job.state:
        case JobState.QUEUED:
            return _of_queued(job, snapshot, now, rates, known)
        case JobState.HELD:
            return _of_held(job, snapshot, now, rates, known)
        case JobState.RUNNING:
            return _of_running(job, snapshot, now, rates, known)
        case JobState.COMPLETED:
            text = "It has completed: its clip is there." if job.clip_id else "It has completed."
            return Explanation(job=job.id, state=job.state, reason=job.state.value, text=text)
        case _:
            return _of_ended(job)


# -- queued -----------------------------------------------------------------------------------------------------


def _of_queued(job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known) -> Explanation:
    if known.batch is not None and known.batch.abandoned:
        source = known.batch.source
        text = f"Nobody waits for its batch any more, and it is rendered only while somebody does. {_again(source)}"
        return Explanation(job=job.id, state=job.state, reason=ABANDONED, text=text)
    decision = _decision(job, snapshot, now)
    match decision:
        case Start(card=card):
            text = f"It starts at the dispatcher's next look, on {card.card} ({card.card_class})."
            return Explanation(job=job.id, state=job.state, reason=STARTS_NOW, text=text)
        case Refuse() | Relax():
            return _of_refused(job, snapshot, decision)
        case Wait(reason=reason):
            return _of_waiting(job, snapshot, now, rates, known, reason)
        case _:
            raise AssertionError(f"placement decided nothing about job {job.id}")


def _again(source: str) -> str:
    return f"Run its command again: `clipmill render {source}`." if source else "Run its command again."


def _decision(job: Job, snapshot: Snapshot, now: float) -> Decision | None:
    decisions = place(with_job(snapshot, job), now)
    about = [one for one in decisions if isinstance(one, Start | Wait | Refuse | Relax) and one.job.id == job.id]
    return about[0] if about else None


def _of_refused(job: Job, snapshot: Snapshot, decision: Refuse | Relax) -> Explanation:
    needs, largest = size_text(job.needs_bytes), size_text(snapshot.fleet.largest_bytes)
    lean = first_needs(job.spec, snapshot.fleet.largest_bytes) if job.spec else None
    if isinstance(decision, Relax) or (lean is not None and lean < job.needs_bytes):
        text = f"No card of this farm holds its fastest layout ({needs}): the dispatcher's next look gives it a leaner"
        return Explanation(job=job.id, state=job.state, reason=LEANER_SOON, text=f"{text} one.")
    least = size_text(leanest(job.spec)[1].peak_bytes) if job.spec else needs
    text = (
        f"The dispatcher's next look refuses it: even in the leanest layout it needs {least}, and the largest card "
        f"this farm can have holds {largest}. Hand it in with fewer frames or in a smaller class."
    )
    return Explanation(job=job.id, state=job.state, reason=Reason.NO_CARD_FITS.value, text=text)


def _of_waiting(
    job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known, reason: WaitReason
) -> Explanation:
    words = _Words(job, with_job(opened(snapshot), job), now, rates, known, snapshot.plan)
    changes: tuple[Change, ...]
    if not words.cards:
        # What a farm that does not run would need is known once it does.
        changes = ()
    elif reason is WaitReason.EQUAL_CLIP_RUNNING:
        changes = tuple(words.twin_ends())
    elif reason is WaitReason.PLANNED_LATER:
        changes = tuple(words.planned())
    elif reason is WaitReason.NOT_BEFORE:
        # Nothing else starts it before its time.
        waits = Search(job, snapshot, now, rates, known).wait()
        changes = (waits,) if waits is not None else (words.its_time(),)
    else:
        changes = tuple(Search(job, snapshot, now, rates, known).changes())
    return Explanation(job=job.id, state=job.state, reason=reason.name.lower(), text=words.of(reason), changes=changes)


class _Words:
    """Reasons of one waiting job in words."""

    def __init__(
        self, job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known, tail: TailPlan | None
    ) -> None:
        self._job, self._snapshot, self._now, self._rates, self._known = job, snapshot, now, rates, known
        self._tail = tail
        #: By id.
        self.cards = {card.card: card for card in snapshot.cards}
        self._fitting = [card for card in self.cards.values() if card.usable_bytes >= self._needs(card)]

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
                return "Its batch ends earlier if it starts later, on a card that is faster or free for longer."
            case WaitReason.BEHIND_OTHERS:
                idle = [card for card in self._fitting if card.idle and card.card not in self._snapshot.locked]
                return f"{self._cards_text(idle)} it ({self._size}), but {self._before()}."
            case WaitReason.ALL_FITTING_CARDS_BUSY:
                return self._busy()

    def twin_ends(self) -> Iterator[Change]:
        """It gets the clip of an equal job that is being rendered."""
        for one in self._snapshot.running:
            if (one.job.owner, one.job.content_key) == (self._job.owner, self._job.content_key):
                seconds = left_s(one, self.cards.get(one.card), self._rates)
                at = self._now + seconds if seconds < math.inf else None
                when = f" at about {hour_text(at, self._now)}" if at is not None else ""
                text = f"wait: it completes with the clip of {one.job.id}{when}, without being rendered"
                yield Change(kind=ChangeKind.WAIT, text=text, at=at, card=one.card, starts=False)
                return

    def planned(self) -> Iterator[Change]:
        """When and where the plan has it begin."""
        part = self._tail.part_of(self._job.id, self._job.step) if self._tail else None
        if part is not None:
            at = max(self._now, part.begins_at)
            card = self.cards.get(part.card)
            on = f"{part.card} ({card.card_class})" if card else part.card
            text = f"wait until about {hour_text(at, self._now)}: it is planned on {on} then"
            card_class = card.card_class if card else ""
            yield Change(kind=ChangeKind.WAIT, text=text, at=at, card=part.card, card_class=card_class)

    def its_time(self) -> Change:
        """It is waited for, and more has to be."""
        at = float(self._job.not_before or 0)
        text = f"wait until {hour_text(at, self._now)}; whether a card is free for it then is not known"
        return Change(kind=ChangeKind.WAIT, text=text, at=at, starts=False)

    @property
    def _size(self) -> str:
        return size_text(min(map(self._needs, self._fitting), default=self._job.needs_bytes))

    def _needs(self, card: Card) -> int:
        return expected_bytes(self._job, card.kind, self._snapshot.lessons)

    def _no_card(self) -> str:
        largest = max(self.cards.values(), key=lambda card: card.usable_bytes, default=None)
        if largest is None:
            return (
                "No card was heard of lately: no farm is running (`clipmill up` starts one), or its renderers are "
                f"still starting. It needs {self._size}."
            )
        text = (
            f"It needs {self._size}, and the largest card here ({largest.card}) has {size_text(largest.usable_bytes)}."
        )
        present = {card.card_class for card in self.cards.values()}
        usable = self._snapshot.fleet.usable_bytes
        absent = sorted((size, name) for name, size in usable.items() if size >= self._job.needs_bytes)
        names = [name for _, name in absent if name not in present]
        return f"{text} The farm can have {' or '.join(names)}, but none is up now." if names else text

    def _failed(self) -> str:
        names = {card.card for card in self._fitting}
        ends = [until for route, until in self._known.closed_until.items() if route.card in names]
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

    def _rank(self, job: Job) -> tuple[int, int, str, int]:
        return -effective_priority(job, self._now), job.created_at, job.batch_id, job.number

    def _busy(self) -> str:
        idle = [c for c in self.cards.values() if c.idle and c.card not in self._snapshot.locked]
        largest = max((card.usable_bytes for card in idle), default=None)
        have = "no card is idle" if largest is None else f"the largest idle card has {size_text(largest)}"
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


# -- held -------------------------------------------------------------------------------------------------------


def _of_held(job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known) -> Explanation:
    batch = known.batch
    of_batch = batch is not None and batch.held is not None and job.reason == batch.held
    what = job.batch_id if of_batch else job.id
    text, changes = "", []
    free = replace(job, state=JobState.QUEUED, reason=None)
    starts = start_of(free, with_job(snapshot, free), now) is not None
    abandoned = batch is not None and batch.abandoned

    def change(kind: ChangeKind, words: str, command: str = "") -> Change:
        return Change(kind=kind, text=words, command=command, starts=starts and not abandoned)

    match job.reason:
        case HoldReason.APPROVAL:
            text = "It waits for somebody's approval."
            changes = [change(ChangeKind.APPROVE, "approve it", f"clipmill approve {what}")]
        case HoldReason.PAUSED:
            text = "Its batch is paused." if of_batch else "Somebody paused it."
            words = "resume its batch" if of_batch else "resume it"
            changes = [change(ChangeKind.RESUME, words, f"clipmill resume {what}")]
        case HoldReason.FAILURES:
            most = batch.limits.failures if batch else None
            limit = f" ({most})" if most is not None else ""
            text = f"As many rows of its batch have failed as may{limit}."
            command = f"clipmill resume {job.batch_id} --max-failures {(most or 0) + 10}"
            words = "raise the limit and resume the batch, or put its failed rows back by `clipmill retry`"
            changes = [change(ChangeKind.RESUME, words, command)]
        case HoldReason.BUDGET:
            text, command = _of_budget(job, known)
            changes = [change(ChangeKind.RESUME, "raise the limit and resume the batch", command)]
        case HoldReason.AFTER:
            text, changes = _of_after(job, now, known)
        case _:
            text = f"It is held ({job.reason})."
    if changes and not starts and job.reason != HoldReason.AFTER:
        then = _of_queued(free, snapshot, now, rates, known)
        text += f" After that: {then.text[0].lower()}{then.text[1:]}"
        changes += then.changes
    return Explanation(job=job.id, state=job.state, reason=str(job.reason or "held"), text=text, changes=tuple(changes))


def _of_budget(job: Job, known: Known) -> tuple[str, str]:
    """(words, command) of a batch that has used what it may."""
    limits = known.batch.limits if known.batch else None
    if limits is not None and limits.gpu_seconds is not None:
        hours = limits.gpu_seconds / 3600
        text = f"Its batch has used the {hours:.3g} GPU hours that it may."
        return text, f"clipmill resume {job.batch_id} --max-gpu-hours {2 * hours:.3g}"
    if limits is not None and limits.cost is not None:
        text = f"Its batch has used the {limits.cost:.2f} $ that it may."
        return text, f"clipmill resume {job.batch_id} --max-cost {2 * limits.cost:.2f}"
    return "Its batch has used what it may.", f"clipmill resume {job.batch_id} --max-gpu-hours HOURS"


def _of_after(job: Job, now: float, known: Known) -> tuple[str, list[Change]]:
    first = known.after
    if first is None:
        return f"It waits for {job.after}, which is not known yet: its batch is still being handed in.", []
    text = f"It starts once {first.name} ({first.id}) has completed, which is {first.state}"
    match first.state:
        case JobState.HELD if first.reason == HoldReason.APPROVAL:
            command, kind = f"clipmill approve {first.id}", ChangeKind.APPROVE
        case JobState.HELD if first.reason != HoldReason.AFTER:
            what = first.id
            command, kind = f"clipmill resume {what}", ChangeKind.RESUME
        case _:
            told = f"`clipmill why {first.id}` tells more of that one"
            return f"{text}. {told}.", [Change(kind=ChangeKind.WAIT, text=f"wait for {first.name}", starts=False)]
    words = f"{'approve' if kind is ChangeKind.APPROVE else 'resume'} {first.name} first"
    return f"{text} ({first.reason}).", [Change(kind=kind, text=words, command=command, starts=False)]


# -- running and ended ------------------------------------------------------------------------------------------


def _of_running(job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known) -> Explanation:
    cards = {card.card: card for card in opened(snapshot).cards}
    one = next((running for running in snapshot.running if running.job.id == job.id), None)
    name = one.card if one is not None else (known.attempt.card if known.attempt else "a card")
    card = cards.get(name)
    text = f"It is being rendered on {name}"
    text += f" ({card.card_class}, {card.kind})" if card is not None else ""
    if known.attempt is not None:
        text += f" since {hour_text(known.attempt.started_at, now)}"
    steps = job.steps or (job.spec.total_steps if job.spec else 0)
    text += f", step {one.step if one is not None else job.step} of {steps}" if steps else ""
    if one is not None and (seconds := left_s(one, card, rates)) < math.inf:
        text += f"; it is expected to end at about {hour_text(now + seconds, now)}"
    text += "."
    if known.beat is not None and known.beat.holding:
        text += f" It has not begun: it {known.beat.holding}."
    if job.cancel_requested:
        text += " It is being cancelled."
    elif job.hold_requested is not None:
        text += f" It saves a checkpoint and is held then ({job.hold_requested})."
    return Explanation(job=job.id, state=job.state, reason=job.state.value, text=text)


_FAILED = {
    Reason.INVALID: "Its row is at fault",
    Reason.NO_CARD_FITS: "No card of this farm can hold it",
    Reason.OUT_OF_MEMORY: "It ran out of memory in every layout on every card that was tried",
    Reason.ERROR: "Rendering it failed",
    Reason.CRASHED: "The renderers that had it died",
    Reason.LOST_TOO_OFTEN: "Its renderers were lost again and again",
    Reason.AFTER_FAILED: "The row that it waits for failed or was cancelled",
}


def _of_ended(job: Job) -> Explanation:
    if job.state is JobState.CANCELLED:
        change = Change(kind=ChangeKind.RETRY, text="put it back", command=f"clipmill retry {job.id}", starts=False)
        text, reason = "It was cancelled.", job.state.value
        return Explanation(job=job.id, state=job.state, reason=reason, text=text, changes=(change,))
    known = [text for reason, text in _FAILED.items() if reason == job.reason]
    text = (known or ["It failed"])[0] + (f", after {job.attempts} attempts" if job.attempts > 1 else "")
    for problem in job.problems:
        text += f". {problem.field}: {problem.message.rstrip('.')}. {problem.remedy.rstrip('.')}"
    before = Before.LOST if job.reason == Reason.AFTER_FAILED else Before.NONE
    facts = Facts(state=job.state, reason=job.reason, renderable=job.spec is not None, before=before)
    rule = rule_for(facts, Verb.RETRY)
    if rule is None or rule.to is None:
        refusal = f" {rule.refusal[0].upper()}{rule.refusal[1:]}." if rule else ""
        return Explanation(job=job.id, state=job.state, reason=str(job.reason), text=f"{text}.{refusal}")
    change = Change(
        kind=ChangeKind.RETRY, text="put it back into the queue", command=f"clipmill retry {job.id}", starts=False
    )
    return Explanation(job=job.id, state=job.state, reason=str(job.reason), text=f"{text}.", changes=(change,))
