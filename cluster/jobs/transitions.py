"""Commands to a job, what may happen to it, and what becomes of it then: one table. Pure.

`step` takes one event to the next state and to instructions for whoever runs things. The store does that to many jobs
at once by statements made of this table (`cluster.store.transitions`), so the two cannot differ. Commands to batches
and cards are in `cluster.jobs.commands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from cluster.jobs.model import HoldReason, JobState, Pick, Reason
from cluster.jobs.outcomes import Transition


class Verb(StrEnum):
    """A command of an operator to a job or a batch."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"
    PRIORITIZE = "prioritize"
    HOLD = "hold"
    APPROVE = "approve"
    #: The draft, or the candidate, is not wanted.
    REJECT = "reject"
    #: Another of the same round, from another seed or with what is said besides.
    REROLL = "reroll"


class Happening(StrEnum):
    """What happens to a job by itself."""

    #: A card took it.
    STARTED = "started"
    #: The job's clip is published, by its own attempt or by that of an equal job.
    PUBLISHED = "published"
    #: The attempt ended without a clip, and the job may be tried again.
    REQUEUED = "requeued"
    #: The attempt ended without a clip, and the job may not be tried again.
    FAILED = "failed"
    #: The job fits no card that the farm can ever have.
    REFUSED = "refused"
    #: The objects of its clip were lost.
    CLIP_LOST = "clip_lost"
    #: Another candidate of its row was picked.
    PASSED_OVER = "passed_over"
    #: A clip was less true to its still than its row asks for: another is made, or one of before is taken.
    MADE_AGAIN = "made_again"
    #: And none of its clips is good enough: somebody looks at the best one.
    FELL_SHORT = "fell_short"
    #: The job it waits for completed; failed or was cancelled; was put back after that.
    BEFORE_DONE = "before_done"
    BEFORE_LOST = "before_lost"
    BEFORE_REVIVED = "before_revived"
    #: What the job waits for is not there, or waits for it in turn: its batch was sealed, so none will come.
    BEFORE_UNKNOWN = "before_unknown"


Event = Verb | Happening


class Before(StrEnum):
    """What has become of the job that a job waits for."""

    NONE = "none"
    #: Not completed yet, or not known yet: its batch is not sealed.
    COMING = "coming"
    DONE = "done"
    #: Failed or cancelled.
    LOST = "lost"


class Instruction(StrEnum):
    """What has to be done besides writing the new state."""

    #: The running attempt saves a checkpoint and stops.
    PREEMPT = "preempt"
    #: The running attempt is not preempted after all.
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
    #: The other clips of its row are passed over.
    LET_OTHERS_GO = "let_others_go"


class Guard(StrEnum):
    """A condition of a rule beside state and reason."""

    #: A clip of its content is published, and is its last.
    HAS_CLIP = "has_clip"
    #: A clip of its content is published, and is a draft.
    HAS_DRAFT = "has_draft"
    #: What it renders is a draft; that, and it was cancelled.
    DRAFT = "draft"
    CANCELLED_DRAFT = "cancelled_draft"
    #: One of several clips of a row, of which none is picked; this one is; another is.
    UNDECIDED = "undecided"
    PICKED = "picked"
    OTHER_PICKED = "other_picked"
    #: One of several clips of a row that somebody rejected.
    LET_GO = "let_go"
    #: The row never became a clip's specification: nothing can be rendered.
    UNRENDERABLE = "unrenderable"
    BEFORE_COMING = "before_coming"
    BEFORE_LOST = "before_lost"
    CANCELLING = "cancelling"
    PAUSING = "pausing"
    #: The job is to be preempted, and to wait for an approval then.
    HOLDING = "holding"
    BATCH_HELD = "batch_held"


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """All that the table looks at."""

    state: JobState
    #: A `HoldReason` for a held job, a `Reason` for a failed one.
    reason: str | None = None
    cancel_requested: bool = False
    hold_requested: HoldReason | None = None
    before: Before = Before.NONE
    renderable: bool = True
    has_clip: bool = False
    batch_held: bool = False
    #: What it renders is a draft: a review comes after it.
    draft: bool = False
    #: Whether its row has other clips, whether this one was chosen, and whether another one was.
    has_others: bool = False
    pick: Pick = Pick.OPEN
    other_picked: bool = False

    @property
    def legal(self) -> bool:
        """Whether a job may be so."""
        # Earlier versions queued a job again although a request had come while its attempt ended: the next one obeys.
        if (self.cancel_requested or self.hold_requested) and self.state not in (JobState.RUNNING, JobState.QUEUED):
            return False
        # What has no content has no clip of its content, and is no draft of anything.
        if (self.has_clip or self.draft) and not self.renderable:
            return False
        if self.other_picked and (not self.has_others or self.pick is Pick.PICKED):
            return False
        match self.state:
            case JobState.HELD if self.reason == HoldReason.REVIEW:
                # Approved, it is about to render its last round: no draft any more.
                return True
            case JobState.COMPLETED if self.draft:
                return False
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
    #: Reason of the new state, held or failed.
    because: HoldReason | Reason | None = None
    #: What a job that goes on running is asked.
    ask: HoldReason | None = None
    #: What was asked of the job and not obeyed yet is asked of it in its new state too; else that is forgotten.
    keeps_requests: bool = False
    does: tuple[Instruction, ...] = ()
    #: What a refusal says: what is the matter, and what to do.
    refusal: str = ""
    #: Nothing changes, not even the time of the last change.
    keeps: bool = False
    #: Whether it is chosen after that; None: as before.
    pick: Pick | None = None
    #: One that was rejected is undecided after that; one that was chosen stays so.
    takes_back: bool = False
    #: The content may be another than before: its clip is looked up anew.
    renews: bool = False

    @property
    def finds_clip(self) -> bool:
        """Whether the job has a clip after this that it had not before."""
        had = self.state is JobState.COMPLETED or (self.state is JobState.HELD and self.reason == HoldReason.REVIEW)
        return self._leaves_clip and (self.renews or not had)

    @property
    def loses_clip(self) -> bool:
        """Whether the job may have had a clip, and has none after this."""
        had = self.state is JobState.COMPLETED or (
            self.state is JobState.HELD and self.reason in (None, HoldReason.REVIEW)
        )
        stays = self.to is self.state and self.because is None
        return had and not self._leaves_clip and not stays

    @property
    def _leaves_clip(self) -> bool:
        # What completed jobs have, and those whose draft is looked at.
        return self.to is JobState.COMPLETED or (self.to is JobState.HELD and self.because is HoldReason.REVIEW)


def _to(state: JobState, to: JobState, *does: Instruction, **more: object) -> Rule:
    return Rule(state=state, to=to, does=does, **more)  # type: ignore[arg-type]


def _same(state: JobState, **more: object) -> Rule:
    return Rule(state=state, to=state, keeps=True, **more)  # type: ignore[arg-type]


def _no(state: JobState, refusal: str, **more: object) -> Rule:
    return Rule(state=state, refusal=refusal, **more)  # type: ignore[arg-type]


_Q, _R, _H = JobState.QUEUED, JobState.RUNNING, JobState.HELD
_DONE, _FAILED, _GONE = JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED
_APPROVAL, _PAUSED, _AFTER = HoldReason.APPROVAL, HoldReason.PAUSED, HoldReason.AFTER
_REVIEW = HoldReason.REVIEW

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
    fresh = (Instruction.FRESH, Instruction.REVIVE_AFTER)
    # One that was let go may be chosen again; one that failed stays chosen.
    picks: dict[str, Any] = {"pick": Pick.OPEN} if state is _GONE else {"takes_back": True}
    return (
        _to(state, _H, *fresh, because=_REVIEW, when=Guard.HAS_DRAFT, **picks),
        _to(state, _DONE, Instruction.RELEASE_AFTER, when=Guard.HAS_CLIP, **picks),
        _no(state, "its row is at fault: correct it and hand it in again", when=Guard.UNRENDERABLE),
        _no(state, "the row it waits for has failed or was cancelled: retry that one", when=Guard.BEFORE_LOST),
        *(replace(rule, **picks) for rule in _back(state, *fresh)),
    )


def _reviewed(*does: Instruction, **more: object) -> tuple[Rule, ...]:
    """From a review to the next clip of the job, which may be there already."""
    fresh = (Instruction.FRESH, *does)
    return (
        _to(_H, _H, *fresh, reason=_REVIEW, because=_REVIEW, when=Guard.HAS_DRAFT, renews=True, **more),
        _to(_H, _DONE, Instruction.RELEASE_AFTER, *does, reason=_REVIEW, when=Guard.HAS_CLIP, renews=True, **more),
        *(replace(rule, **more) for rule in _back(_H, *fresh, reason=_REVIEW)),  # type: ignore[arg-type]
    )


_OTHER = "another candidate of its row was picked: reject that one first"
_NO_REVIEW = (
    _no(_Q, "there is nothing to look at yet: it waits for a card"),
    _no(_R, "there is nothing to look at yet: it is being rendered"),
    _no(_H, "there is nothing to look at: it is held and has not been rendered"),
    _no(_FAILED, "it has failed, so there is nothing to look at: put it back with `clipmill retry`"),
    _no(_GONE, "it was cancelled or rejected: put it back with `clipmill retry --cancelled`"),
)

#: What each event does; of an event's rules the first that matches counts, and an event with none is refused.
RULES: Mapping[Event, tuple[Rule, ...]] = {
    Verb.PAUSE: (
        _to(_Q, _H, because=_PAUSED),
        _same(_H, reason=_PAUSED),
        _to(_H, _H, reason=_AFTER, because=_PAUSED),
        _no(_H, "it waits for an approval, so it does not start anyway", reason=_APPROVAL),
        _no(_H, "its draft waits for a review, so nothing of it starts anyway", reason=_REVIEW),
        _CANCELLING,
        _no(_R, "it is being held for an approval already", when=Guard.HOLDING),
        _to(_R, _R, Instruction.PREEMPT, ask=_PAUSED),
        *_ENDED,
    ),
    Verb.HOLD: (
        _to(_Q, _H, because=_APPROVAL),
        _same(_H, reason=_APPROVAL),
        _no(_H, "its draft waits for a review, so nothing of it starts before", reason=_REVIEW),
        _to(_H, _H, because=_APPROVAL),
        _CANCELLING,
        _to(_R, _R, Instruction.PREEMPT, ask=_APPROVAL),
        *_ENDED,
    ),
    Verb.RESUME: (
        *_back(_H, reason=_PAUSED),
        _no(_H, "it waits for an approval: give it with `clipmill approve`", reason=_APPROVAL),
        _no(_H, "it waits for another row, and starts by itself once that has completed", reason=_AFTER),
        _no(_H, "its draft waits for a review: `clipmill approve`, `reject` or `reroll` it", reason=_REVIEW),
        _no(_Q, "not the row but its batch is held: resume the batch", when=Guard.BATCH_HELD),
        _to(_Q, _Q, Instruction.GO_ON, when=Guard.PAUSING),
        _same(_Q),
        _CANCELLING,
        _to(_R, _R, Instruction.GO_ON, when=Guard.PAUSING),
        _same(_R),
        *_ENDED,
    ),
    Verb.APPROVE: (
        _no(_H, _OTHER, reason=_REVIEW, when=Guard.OTHER_PICKED),
        *_reviewed(Instruction.LET_OTHERS_GO, pick=Pick.PICKED),
        _same(_DONE, when=Guard.PICKED),
        _no(_DONE, _OTHER, when=Guard.OTHER_PICKED),
        _to(_DONE, _DONE, Instruction.LET_OTHERS_GO, pick=Pick.PICKED, when=Guard.UNDECIDED),
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
        _no(_DONE, _OTHER, when=Guard.OTHER_PICKED),
        # A finished clip that was rejected is looked at once more.
        _to(_DONE, _DONE, pick=Pick.OPEN, when=Guard.LET_GO),
        _no(_DONE, "it has completed: for another clip hand it in with another seed"),
    ),
    Verb.REJECT: (
        _to(_H, _GONE, Instruction.FAIL_AFTER, reason=_REVIEW, pick=Pick.LET_GO),
        _to(_DONE, _DONE, pick=Pick.LET_GO, when=Guard.PICKED),
        _to(_DONE, _DONE, pick=Pick.LET_GO, when=Guard.UNDECIDED),
        _same(_DONE, when=Guard.OTHER_PICKED),
        _to(_FAILED, _FAILED, pick=Pick.LET_GO, when=Guard.PICKED),
        _no(_DONE, "it has completed and is its row's only clip: `clipmill reroll` makes another"),
        *_NO_REVIEW,
    ),
    Verb.REROLL: (
        *_reviewed(pick=Pick.OPEN),
        _no(_DONE, _OTHER, when=Guard.OTHER_PICKED),
        _no(_DONE, "its row is at fault: correct it and hand it in again", when=Guard.UNRENDERABLE),
        _to(_DONE, _DONE, pick=Pick.OPEN, when=Guard.HAS_CLIP, renews=True),
        _to(_DONE, _Q, Instruction.FRESH, pick=Pick.OPEN),
        *_NO_REVIEW,
    ),
    Verb.PRIORITIZE: (_to(_Q, _Q), _to(_H, _H), _to(_R, _R), *_ENDED),
    Happening.STARTED: (
        _no(_Q, "its batch is held: nothing of it starts", when=Guard.BATCH_HELD),
        _to(_Q, _R, keeps_requests=True),
    ),
    Happening.PUBLISHED: (
        _same(_H, reason=_REVIEW),
        _to(_R, _GONE, Instruction.FAIL_AFTER, when=Guard.CANCELLED_DRAFT),
        *(_to(state, _H, because=_REVIEW, when=Guard.DRAFT) for state in (_Q, _H, _R)),
        *(_to(state, _DONE, Instruction.RELEASE_AFTER) for state in (_Q, _H, _R)),
    ),
    Happening.PASSED_OVER: (
        _to(_Q, _GONE, Instruction.FAIL_AFTER, pick=Pick.LET_GO),
        _to(_H, _GONE, Instruction.FAIL_AFTER, pick=Pick.LET_GO),
        _to(_R, _R, Instruction.STOP, pick=Pick.LET_GO),
        *(_to(state, state, pick=Pick.LET_GO) for state in (_DONE, _FAILED, _GONE)),
    ),
    Happening.MADE_AGAIN: (
        _to(_DONE, _DONE, when=Guard.HAS_CLIP, renews=True),
        # An equal row's clip completed it before the row that it waits for has.
        *_back(_DONE, Instruction.FRESH),
    ),
    Happening.FELL_SHORT: (_to(_DONE, _H, because=_REVIEW),),
    Happening.REQUEUED: (
        _to(_R, _GONE, Instruction.FAIL_AFTER, when=Guard.CANCELLING),
        _to(_R, _H, because=_PAUSED, when=Guard.PAUSING),
        _to(_R, _H, because=_APPROVAL, when=Guard.HOLDING),
        _to(_R, _Q),
    ),
    Happening.FAILED: (
        _to(_R, _GONE, Instruction.FAIL_AFTER, when=Guard.CANCELLING),
        _to(_R, _FAILED, Instruction.FAIL_AFTER),
    ),
    Happening.REFUSED: (_to(_Q, _FAILED, Instruction.FAIL_AFTER),),
    Happening.CLIP_LOST: (_to(_DONE, _Q, Instruction.FRESH), _to(_H, _Q, Instruction.FRESH, reason=_REVIEW)),
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
    Happening.BEFORE_UNKNOWN: (
        _to(_H, _FAILED, Instruction.FAIL_AFTER, because=Reason.INVALID),
        *(_same(state) for state in JobState if state is not _H),
    ),
}  # fmt: skip


class RefusedError(ValueError):
    """A verb that cannot be obeyed; says why, and what to do."""

    def __init__(self, verb: str, what: str, why: str) -> None:
        self.verb, self.what, self.why = verb, what, why
        super().__init__(f"cannot {verb} {what}: {why}" if what else why)

    @classmethod
    def told(cls, message: str) -> RefusedError:
        """A refusal by a farm elsewhere, in its words."""
        return cls("", "", message)


def is_met(guard: Guard, facts: JobFacts) -> bool:
    """Whether a job of these facts meets the condition."""
    match guard:
        case Guard.HAS_CLIP:
            return facts.has_clip and not facts.draft
        case Guard.HAS_DRAFT:
            return facts.has_clip and facts.draft
        case Guard.DRAFT:
            return facts.draft
        case Guard.CANCELLED_DRAFT:
            return facts.draft and facts.cancel_requested
        case Guard.UNDECIDED:
            return facts.has_others and facts.pick is not Pick.PICKED and not facts.other_picked
        case Guard.PICKED:
            return facts.has_others and facts.pick is Pick.PICKED
        case Guard.OTHER_PICKED:
            return facts.other_picked
        case Guard.LET_GO:
            return facts.has_others and facts.pick is Pick.LET_GO
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


def rule_for(facts: JobFacts, event: Event) -> Rule | None:
    """The line of the table that counts, if there is one."""
    for rule in RULES[event]:
        if rule.state is not facts.state or (rule.reason is not None and rule.reason != facts.reason):
            continue
        if rule.when is None or is_met(rule.when, facts):
            return rule
    return None


def step(facts: JobFacts, event: Event, what: str = "the job") -> tuple[JobFacts, tuple[Instruction, ...]]:
    """What becomes of a job, and what is to be done. Raises `RefusedError`; `what` names the job in its message.

    The reason of a job that failed by itself is not the table's: whoever knows it puts it in.
    """
    rule = rule_for(facts, event)
    if rule is None or rule.to is None:
        raise RefusedError(event, what, rule.refusal if rule else f"it is {facts.state}")
    if rule.keeps:
        return facts, rule.does
    pick = facts.pick if rule.pick is None else rule.pick
    if rule.takes_back and pick is Pick.LET_GO:
        pick = Pick.OPEN
    # Requests are obeyed by a change of state; a job that stays where it is keeps them.
    stays = rule.to is facts.state
    asked = stays or rule.keeps_requests
    after = replace(
        facts,
        state=rule.to,
        reason=rule.because or (facts.reason if stays else None),
        cancel_requested=asked and facts.cancel_requested,
        hold_requested=facts.hold_requested if asked else None,
        pick=pick,
    )
    if rule.ask is not None:
        after = replace(after, hold_requested=rule.ask)
    if Instruction.GO_ON in rule.does:
        after = replace(after, hold_requested=None)
    if Instruction.STOP in rule.does:
        after = replace(after, cancel_requested=True)
    return after, rule.does


class Asked(Protocol):
    """A running job, as far as `obey` looks at it: a `Job`, or `JobFacts`."""

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody cancelled it."""

    @property
    def hold_requested(self) -> HoldReason | None:
        """Why it is to be held once its attempt has ended."""

    @property
    def draft(self) -> bool:
        """Whether what it renders is a draft."""


def ended_by(after: Transition) -> Happening:
    """What an attempt's end is to its job, by what becomes of that: `PUBLISHED`, `FAILED`, or else `REQUEUED`."""
    return Happening.PUBLISHED if after.reason is _REVIEW else _ENDED_BY.get(after.state, Happening.REQUEUED)


_ENDED_BY = {_DONE: Happening.PUBLISHED, _FAILED: Happening.FAILED}


def obey(job: Asked, wanted: Transition) -> Transition:
    """What becomes of a job whose attempt has ended, given what it would become if nobody had asked for anything.

    A clip that is there is published although it was to be stopped; a draft waits for its review then, unless it was
    cancelled. One that was to be tried again is held or
    cancelled instead where that was asked meanwhile, and one that failed under a cancel was cancelled. What was decided
    by this may be decided once more: a pause that was taken back in between holds nothing.
    """
    if wanted.state is _GONE or (wanted.state is _DONE and not job.draft):
        return wanted
    facts = JobFacts(
        state=_R, cancel_requested=job.cancel_requested, hold_requested=job.hold_requested, draft=job.draft
    )
    after, _ = step(facts, ended_by(wanted))
    match after.state:
        case JobState.CANCELLED:
            return Transition(state=_GONE)
        case JobState.HELD:
            return replace(wanted, state=_H, reason=HoldReason(str(after.reason)))
        case JobState.QUEUED:
            return replace(wanted, state=_Q, reason=None)
        case _:
            return wanted
