"""What may be said of a job, what may happen to it, and what becomes of it then: one table. Pure.

`step` takes one event to the next state and to instructions for whoever runs things. The store does the same to many
jobs at once by statements made of the same table (`cluster.store.verbs`), so the two cannot differ. What batches and
cards are told is below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.jobs import Batch, HoldReason, Job, JobState, Limits, Reason, Transition


class Verb(StrEnum):
    """What an operator says of a job or a batch."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"
    PRIORITIZE = "prioritize"
    HOLD = "hold"
    APPROVE = "approve"


class Happening(StrEnum):
    """What happens to a job by itself."""

    #: A card took it.
    STARTED = "started"
    #: Its clip is published, by its own attempt or by that of an equal job.
    PUBLISHED = "published"
    #: Its attempt ended without a clip, and it may be tried again.
    GAVE_BACK = "gave_back"
    #: Its attempt ended, and it may not.
    GAVE_UP = "gave_up"
    #: No card of the farm can ever hold it.
    REFUSED = "refused"
    #: The objects of its clip were lost.
    CLIP_LOST = "clip_lost"
    #: The job it waits for completed; failed or was cancelled; was put back after that.
    BEFORE_DONE = "before_done"
    BEFORE_LOST = "before_lost"
    BEFORE_REVIVED = "before_revived"


Event = Verb | Happening


class Before(StrEnum):
    """The job that a job waits for."""

    NONE = "none"
    #: Not completed yet, or not known yet: its batch is not sealed.
    COMING = "coming"
    DONE = "done"
    #: Failed or cancelled.
    LOST = "lost"


class Instruction(StrEnum):
    """What has to be done besides writing the new state."""

    #: The running attempt saves a checkpoint and stops.
    LEAVE = "leave"
    #: The running attempt need not leave.
    GO_ON = "go_on"
    #: The running attempt stops within a step.
    STOP = "stop"
    #: Attempts and releases count from zero; earlier problems are forgotten.
    FRESH = "fresh"
    #: Jobs that wait for it are released.
    RELEASE_AFTER = "release_after"
    #: Jobs that wait for it fail.
    FAIL_AFTER = "fail_after"
    #: Jobs that failed because it did wait for it again.
    REVIVE_AFTER = "revive_after"


class Guard(StrEnum):
    """A condition of a rule beside state and reason."""

    #: A clip of its content is published.
    HAS_CLIP = "has_clip"
    #: It never became a clip's specification: nothing can be rendered.
    UNRENDERABLE = "unrenderable"
    BEFORE_COMING = "before_coming"
    BEFORE_LOST = "before_lost"
    CANCELLING = "cancelling"
    PAUSING = "pausing"
    #: It is asked to leave and wait for an approval.
    HOLDING = "holding"
    BATCH_HELD = "batch_held"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the table looks at."""

    state: JobState
    #: Of a held job a `HoldReason`, of a failed one a `Reason`.
    reason: str | None = None
    cancel_requested: bool = False
    hold_requested: HoldReason | None = None
    before: Before = Before.NONE
    renderable: bool = True
    has_clip: bool = False
    batch_held: bool = False

    @property
    def legal(self) -> bool:
        """Whether a job may be so."""
        # A request that came while an attempt ended finds the job queued again: its next attempt obeys it.
        if (self.cancel_requested or self.hold_requested) and self.state not in (JobState.RUNNING, JobState.QUEUED):
            return False
        match self.state:
            case JobState.HELD:
                return self.reason in _HELD_ROW and (self.reason != HoldReason.AFTER or self.before is Before.COMING)
            case JobState.FAILED:
                return self.reason in set(Reason)
            case _:
                return self.reason is None


#: Why a single job can be held; the other reasons are a batch's.
_HELD_ROW = (HoldReason.APPROVAL, HoldReason.PAUSED, HoldReason.AFTER)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the table: in this state, for this reason, under this condition, that is what comes of it."""

    state: JobState
    reason: str | None = None
    when: Guard | None = None
    #: None: refused.
    to: JobState | None = None
    #: Of the new state, held or failed.
    because: HoldReason | Reason | None = None
    #: Of a job that goes on running: what it is asked.
    ask: HoldReason | None = None
    does: tuple[Instruction, ...] = ()
    #: Of a refusal: what is the matter, and what to do.
    refusal: str = ""
    #: Nothing changes, not even the time of the last change.
    keeps: bool = False


def _to(state: JobState, to: JobState, *does: Instruction, **more: object) -> Rule:
    return Rule(state=state, to=to, does=does, **more)  # type: ignore[arg-type]


def _same(state: JobState, **more: object) -> Rule:
    return Rule(state=state, to=state, keeps=True, **more)  # type: ignore[arg-type]


def _no(state: JobState, refusal: str, **more: object) -> Rule:
    return Rule(state=state, refusal=refusal, **more)  # type: ignore[arg-type]


_Q, _R, _H = JobState.QUEUED, JobState.RUNNING, JobState.HELD
_DONE, _FAILED, _GONE = JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED
_APPROVAL, _PAUSED, _AFTER = HoldReason.APPROVAL, HoldReason.PAUSED, HoldReason.AFTER

_ENDED = (
    _no(_DONE, "it has completed, and its clip is there"),
    _no(_FAILED, "it has failed: put it back with `clipmill retry`"),
    _no(_GONE, "it was cancelled: put it back with `clipmill retry --cancelled`"),
)
_CANCELLING = _no(_R, "it is being cancelled: put it back with `clipmill retry --cancelled`", when=Guard.CANCELLING)


def _back(state: JobState, *does: Instruction, reason: str | None = None) -> tuple[Rule, ...]:
    """Into the queue, or to wait for the job before it."""
    return (
        _to(state, _H, *does, reason=reason, because=_AFTER, when=Guard.BEFORE_COMING),
        _to(state, _Q, *does, reason=reason),
    )


def _again(state: JobState) -> tuple[Rule, ...]:
    return (
        _to(state, _DONE, Instruction.RELEASE_AFTER, when=Guard.HAS_CLIP),
        _no(state, "its row is at fault: correct it and hand it in again", when=Guard.UNRENDERABLE),
        _no(state, "the row it waits for has failed or was cancelled: retry that one", when=Guard.BEFORE_LOST),
        *_back(state, Instruction.FRESH, Instruction.REVIVE_AFTER),
    )


#: What each event does; of an event's rules the first that matches counts, and an event with none is refused.
RULES: Mapping[Event, tuple[Rule, ...]] = {
    Verb.PAUSE: (
        _to(_Q, _H, because=_PAUSED),
        _same(_H, reason=_PAUSED),
        _to(_H, _H, reason=_AFTER, because=_PAUSED),
        _no(_H, "it waits for an approval, so it does not start anyway", reason=_APPROVAL),
        _CANCELLING,
        _no(_R, "it is being held for an approval already", when=Guard.HOLDING),
        _to(_R, _R, Instruction.LEAVE, ask=_PAUSED),
        *_ENDED,
    ),
    Verb.HOLD: (
        _to(_Q, _H, because=_APPROVAL),
        _same(_H, reason=_APPROVAL),
        _to(_H, _H, because=_APPROVAL),
        _CANCELLING,
        _to(_R, _R, Instruction.LEAVE, ask=_APPROVAL),
        *_ENDED,
    ),
    Verb.RESUME: (
        *_back(_H, reason=_PAUSED),
        _no(_H, "it waits for an approval: give it with `clipmill approve`", reason=_APPROVAL),
        _no(_H, "it waits for another row, and starts by itself once that has completed", reason=_AFTER),
        _no(_Q, "not the row but its batch is held: resume the batch", when=Guard.BATCH_HELD),
        _to(_Q, _Q, Instruction.GO_ON, when=Guard.PAUSING),
        _same(_Q),
        _CANCELLING,
        _to(_R, _R, Instruction.GO_ON, when=Guard.PAUSING),
        _same(_R),
        *_ENDED,
    ),
    Verb.APPROVE: (
        *_back(_H, reason=_APPROVAL),
        _no(_H, "it is paused: let it go with `clipmill resume`", reason=_PAUSED),
        _same(_H, reason=_AFTER),
        _to(_Q, _Q, Instruction.GO_ON, when=Guard.HOLDING),
        _same(_Q),
        _CANCELLING,
        _to(_R, _R, Instruction.GO_ON, when=Guard.HOLDING),
        _same(_R),
        *_ENDED,
    ),
    Verb.CANCEL: (
        _to(_Q, _GONE, Instruction.FAIL_AFTER),
        _to(_H, _GONE, Instruction.FAIL_AFTER),
        _to(_R, _R, Instruction.STOP),
        _same(_GONE),
        _no(_DONE, "it has completed: there is nothing to cancel"),
        _no(_FAILED, "it has failed: there is nothing to cancel"),
    ),
    Verb.RETRY: (
        *_again(_FAILED),
        *_again(_GONE),
        _no(_Q, "it waits for a card: there is nothing to retry"),
        _no(_H, "it is held and has not failed: `clipmill resume` or `clipmill approve` lets it go"),
        _no(_R, "it is being rendered: there is nothing to retry"),
        _no(_DONE, "it has completed: for another clip hand it in with another seed"),
    ),
    Verb.PRIORITIZE: (_to(_Q, _Q), _to(_H, _H), _to(_R, _R), *_ENDED),
    Happening.STARTED: (_to(_Q, _R),),
    Happening.PUBLISHED: tuple(_to(state, _DONE, Instruction.RELEASE_AFTER) for state in (_Q, _H, _R)),
    Happening.GAVE_BACK: (
        _to(_R, _GONE, Instruction.FAIL_AFTER, when=Guard.CANCELLING),
        _to(_R, _H, because=_PAUSED, when=Guard.PAUSING),
        _to(_R, _H, because=_APPROVAL, when=Guard.HOLDING),
        _to(_R, _Q),
    ),
    Happening.GAVE_UP: (
        _to(_R, _GONE, Instruction.FAIL_AFTER, when=Guard.CANCELLING),
        _to(_R, _FAILED, Instruction.FAIL_AFTER),
    ),
    Happening.REFUSED: (_to(_Q, _FAILED, Instruction.FAIL_AFTER),),
    Happening.CLIP_LOST: (_to(_DONE, _Q, Instruction.FRESH),),
    Happening.BEFORE_DONE: (_to(_H, _Q, reason=_AFTER), *(_same(state) for state in JobState)),
    Happening.BEFORE_LOST: (
        _to(_H, _FAILED, Instruction.FAIL_AFTER, because=Reason.AFTER_FAILED),
        *(_same(state) for state in JobState if state is not _H),
    ),
    Happening.BEFORE_REVIVED: (
        _to(
            _FAILED, _H, Instruction.FRESH, Instruction.REVIVE_AFTER, reason=Reason.AFTER_FAILED, because=_AFTER
        ),
        *(_same(state) for state in JobState),
    ),
}  # fmt: skip


class RefusedError(ValueError):
    """A verb that cannot be obeyed; says why, and what to do."""

    def __init__(self, verb: str, what: str, why: str) -> None:
        self.verb, self.what, self.why = verb, what, why
        super().__init__(f"cannot {verb} {what}: {why}" if what else why)

    @classmethod
    def told(cls, message: str) -> RefusedError:
        """One that a farm elsewhere told of."""
        return cls("", "", message)


def holds(guard: Guard, facts: Facts) -> bool:
    """Whether the condition is met."""
    match guard:
        case Guard.HAS_CLIP:
            return facts.has_clip
        case Guard.UNRENDERABLE:
            return not facts.renderable
        case Guard.BEFORE_COMING:
            return facts.before is Before.COMING
        case Guard.BEFORE_LOST:
            return facts.before is Before.LOST
        case Guard.CANCELLING:
            return facts.cancel_requested
        case Guard.PAUSING:
            return facts.hold_requested is _PAUSED
        case Guard.HOLDING:
            return facts.hold_requested is _APPROVAL
        case Guard.BATCH_HELD:
            return facts.batch_held


def rule_for(facts: Facts, event: Event) -> Rule | None:
    """The line of the table that counts, if there is one."""
    for rule in RULES[event]:
        if rule.state is not facts.state or (rule.reason is not None and rule.reason != facts.reason):
            continue
        if rule.when is None or holds(rule.when, facts):
            return rule
    return None


def step(facts: Facts, event: Event, what: str = "the job") -> tuple[Facts, tuple[Instruction, ...]]:
    """What becomes of a job, and what is to be done. Raises `RefusedError`; `what` names the job in its message.

    The reason of a job that failed by itself is not the table's: whoever knows it puts it in.
    """
    rule = rule_for(facts, event)
    if rule is None or rule.to is None:
        raise RefusedError(event, what, rule.refusal if rule else f"it is {facts.state}")
    if rule.keeps:
        return facts, rule.does
    # Requests are obeyed by leaving; a job that stays where it is keeps them.
    stays = rule.to is facts.state
    after = replace(
        facts,
        state=rule.to,
        reason=rule.because or (facts.reason if stays else None),
        cancel_requested=stays and facts.cancel_requested,
        hold_requested=facts.hold_requested if stays else None,
    )
    if rule.ask is not None:
        after = replace(after, hold_requested=rule.ask)
    if Instruction.GO_ON in rule.does:
        after = replace(after, hold_requested=None)
    if Instruction.STOP in rule.does:
        after = replace(after, cancel_requested=True)
    return after, rule.does


def obey(job: Job, wanted: Transition) -> Transition:
    """What becomes of a job whose attempt has ended, given what it would become if nobody had asked for anything.

    A clip that is there is published although it was to be stopped. One that was to be tried again is held or
    cancelled instead where that was asked meanwhile, and one that failed under a cancel was cancelled.
    """
    if wanted.state is _DONE:
        return wanted
    event = Happening.GAVE_UP if wanted.state is _FAILED else Happening.GAVE_BACK
    facts = Facts(state=_R, cancel_requested=job.cancel_requested, hold_requested=job.hold_requested)
    after, _ = step(facts, event, job.id)
    match after.state:
        case JobState.CANCELLED:
            return Transition(state=_GONE)
        case JobState.HELD:
            return replace(wanted, state=_H, reason=HoldReason(str(after.reason)))
        case _:
            return wanted


# -- batches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """What a verb does to a batch; None: that stays as it is."""

    #: The new flag; None: none.
    held: HoldReason | None
    #: Whether the verb goes to its rows too, each by the table.
    rows: bool
    needs_approval: bool


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a batch has used of its limits."""

    #: Rows that failed while being rendered.
    failures: int = 0
    gpu_seconds: float = 0.0
    cost: float = 0.0


def reached(used: Used, limits: Limits) -> HoldReason | None:
    """Which limit stops a batch; the failures first, because they are what somebody should look at."""
    if limits.failures is not None and used.failures >= limits.failures:
        return HoldReason.FAILURES
    for have, most in ((used.gpu_seconds, limits.gpu_seconds), (used.cost, limits.cost)):
        if most is not None and have >= most:
            return HoldReason.BUDGET
    return None


def for_batch(batch: Batch, verb: Verb, used: Used | None = None, *, cancelled: bool = False) -> BatchOrder:
    """What `verb` does to a batch. Raises `RefusedError`.

    `used` is asked for by RESUME of a batch that has reached a limit (`batch.limits` are the new ones); `cancelled` by
    RETRY, where cancelled rows are meant too.
    """
    stays = BatchOrder(held=batch.held, rows=True, needs_approval=batch.needs_approval)
    what = f"batch {batch.id}"
    if verb not in (Verb.RETRY, Verb.CANCEL) and batch.done:
        raise RefusedError(verb, what, "every row of it has ended")
    match verb:
        case Verb.PAUSE:
            if batch.held in (HoldReason.FAILURES, HoldReason.BUDGET):
                raise RefusedError(verb, what, f"it has stopped by itself ({batch.held}): nothing of it starts")
            return replace(stays, held=HoldReason.PAUSED, rows=False)
        case Verb.RESUME:
            stop = reached(used or Used(), batch.limits)
            if stop is not None:
                raise RefusedError(verb, what, _still_reached(stop, used or Used(), batch.limits))
            return replace(stays, held=None)
        case Verb.APPROVE:
            if not batch.needs_approval and not batch.held_by.get(_APPROVAL):
                raise RefusedError(verb, what, "nothing of it waits for an approval")
            return replace(stays, needs_approval=False)
        case Verb.HOLD:
            return replace(stays, needs_approval=True)
        case Verb.RETRY:
            if not batch.counts[_FAILED] and not (cancelled and batch.counts[_GONE]):
                hint = ": with --cancelled its cancelled rows are put back" if batch.counts[_GONE] else ""
                raise RefusedError(verb, what, f"no row of it has failed{hint}")
            return stays
        case _:
            return stays


def _still_reached(stop: HoldReason, used: Used, limits: Limits) -> str:
    if stop is HoldReason.FAILURES:
        return (
            f"{used.failures} of its rows have failed and {limits.failures} may: raise the limit with "
            "--max-failures, or put the rows back with `clipmill retry`"
        )
    hours = f"{used.gpu_seconds / 3600:.2f} GPU hours"
    return f"it has used {hours} (cost {used.cost:.2f}): raise the limit with --max-gpu-hours or --max-cost"


# -- cards ----------------------------------------------------------------------------------------------------------


class CardVerb(StrEnum):
    """What is said of a card."""

    #: No new clip; the one on it is finished.
    LOCK = "lock"
    #: The same, and the one on it is saved and goes on elsewhere.
    DRAIN = "drain"
    #: As a lock, because something is wrong with the card.
    QUARANTINE = "quarantine"
    #: It is free again.
    RELEASE = "release"


@dataclass(frozen=True, kw_only=True)
class CardOrder:
    """What holds for a card until it is released."""

    card: str
    #: Not `RELEASE`.
    kind: CardVerb
    reason: str
    given_by: str
    since: int
    #: UTC epoch seconds at which it ends by itself; None: never.
    until: int | None = None

    def stands(self, now: int) -> bool:
        """Whether it still holds."""
        return self.until is None or now < self.until

    @property
    def clears(self) -> bool:
        """Whether the clip on the card has to leave."""
        return self.kind is CardVerb.DRAIN


def give_order(card: str, now: CardOrder | None, new: CardOrder | None) -> CardOrder | None:
    """What holds for a card after a new order, or a release (None). Raises `RefusedError`.

    What a person said stands: the farm's own quarantine neither replaces nor shortens it.
    """
    if new is None and now is None:
        raise RefusedError(CardVerb.RELEASE, f"card {card}", "it is free already")
    if new is not None and now is not None and new.given_by == FARM and now.given_by != FARM:
        return now
    return new


#: Who gives the orders that the farm gives itself.
FARM = "farm"
