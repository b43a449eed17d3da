"""Why a job is where it is, in words, and the smallest change that would start it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from cluster.estimates.times import TimeEstimates
from cluster.explain.interactive import making_room, room_for, room_words, turn_words
from cluster.explain.look_ahead import left_s
from cluster.explain.model import Known, Remedy, RemedyKind
from cluster.explain.remedies import waiting
from cluster.explain.remedies.search import changes as changes_for
from cluster.explain.trial import Trial, first_needs, start_of, with_job
from cluster.explain.wait_words import WaitWords
from cluster.explain.words import hour_text
from cluster.fleet.cards import Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.fidelity import SHORT
from cluster.jobs.model import HoldReason, Job, JobState, Reason
from cluster.jobs.transitions import Before, JobFacts, Verb, rule_for
from cluster.scheduling.interactive import InteractiveTerms
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Decision, Refuse, Relax, Snapshot, Start, Wait, WaitReason
from pipeline.memory.footprint import leanest
from pipeline.units import format_bytes

__all__ = ["Explanation", "Known", "Remedy", "RemedyKind", "Rules", "explain"]

#: Reasons of queued jobs that are no `WaitReason`.
STARTS_NOW = "starts_now"
LEANER_SOON = "leaner_soon"
ABANDONED = "abandoned"
STORAGE_UNWRITABLE = "storage_unwritable"
CARDS_UNUSABLE = "cards_unusable"
MAKING_ROOM = "making_room"


class Rules(BaseModel):
    """What a farm's configuration says of placement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: None: nothing is said of the cards that it can have.
    fleet: Fleet | None = None
    #: Shares and limits of owners that have any.
    owners: dict[str, OwnerShare] = Field(default_factory=dict)
    #: Whether the dispatcher plans the tails of batches.
    plans: bool = False
    # Left out where it is as everywhere, as versions without it refuse it.
    interactive: InteractiveTerms = Field(
        default=InteractiveTerms(), exclude_if=lambda terms: terms == InteractiveTerms()
    )
    """What interactive clips may take of the farm."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job is in its state, and what would change that."""

    job: str
    state: JobState
    #: For a waiting job the name of a `WaitReason` in lower case, `starts_now`, `leaner_soon`, `abandoned`,
    #: `storage_unwritable`, `cards_unusable` or `making_room`; for a held one a `HoldReason`, for a failed one a
    #: `Reason`; else the state.
    reason: str
    #: In words, with numbers.
    text: str
    #: What would start it, from the cheapest to the dearest: the first is the smallest change.
    changes: tuple[Remedy, ...] = ()


def explain(
    job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates | None = None, known: Known | None = None
) -> Explanation:
    """Why `job` waits, by the placement that decides it; `now` in UTC epoch seconds.

    `snapshot` has the cards, what runs on them, and the jobs that wait, with or without `job`. Every change is tried on
    it: those that are told start the job under `place` (`Remedy.starts`), or at the time they name, as far as
    `estimates` can tell.
    """
    estimates, known = estimates or TimeEstimates(), known or Known()
    match job.state:
        case JobState.QUEUED:
            return _of_queued(job, snapshot, now, estimates, known)
        case JobState.HELD:
            return _of_held(job, snapshot, now, estimates, known)
        case JobState.RUNNING:
            return _of_running(job, snapshot, now, estimates, known)
        case JobState.COMPLETED:
            text = "It has completed: its clip is there." if job.clip_id else "It has completed."
            return Explanation(job=job.id, state=job.state, reason=job.state.value, text=text)
        case _:
            return _of_ended(job)


# -- queued -----------------------------------------------------------------------------------------------------


def _of_queued(job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known) -> Explanation:
    if known.batch is not None and known.batch.abandoned:
        source = known.batch.source
        text = f"Nobody waits for its batch any more, and it is rendered only while somebody does. {_again(source)}"
        return Explanation(job=job.id, state=job.state, reason=ABANDONED, text=text)
    if known.storage_fault:
        text = (
            f"Storage cannot be written, so nothing starts: {known.storage_fault}. The farm tries it again and again, "
            "and goes on by itself once it can be written."
        )
        return Explanation(job=job.id, state=job.state, reason=STORAGE_UNWRITABLE, text=text)
    decision = _decision(job, snapshot, now)
    match decision:
        case Start(card=card):
            text = f"It starts at the dispatcher's next look, on {card.card} ({card.card_class})."
            return Explanation(job=job.id, state=job.state, reason=STARTS_NOW, text=text)
        case Refuse() | Relax():
            return _of_refused(job, snapshot, decision)
        case Wait(reason=reason):
            return _of_waiting(job, snapshot, now, estimates, known, reason)
        case _:
            raise AssertionError(f"placement decided nothing about job {job.id}")


def _again(source: str) -> str:
    return f"Run its command again: `clipmill render {source}`." if source else "Run its command again."


def _decision(job: Job, snapshot: Snapshot, now: float) -> Decision | None:
    decisions = place(with_job(snapshot, job), now)
    about = [one for one in decisions if isinstance(one, Start | Wait | Refuse | Relax) and one.job.id == job.id]
    return about[0] if about else None


def _of_refused(job: Job, snapshot: Snapshot, decision: Refuse | Relax) -> Explanation:
    needs, largest = format_bytes(job.needs_bytes), format_bytes(snapshot.fleet.largest_bytes)
    lean = first_needs(job.spec, snapshot.fleet.largest_bytes) if job.spec else None
    if isinstance(decision, Relax) or (lean is not None and lean < job.needs_bytes):
        text = f"No card of this farm holds its fastest layout ({needs}): the dispatcher's next look gives it a leaner"
        return Explanation(job=job.id, state=job.state, reason=LEANER_SOON, text=f"{text} one.")
    least = format_bytes(leanest(job.spec)[1].peak_bytes) if job.spec else needs
    text = (
        f"The dispatcher's next look refuses it: even in the leanest layout it needs {least}, and the largest card "
        f"this farm can have holds {largest}. Hand it in with fewer frames or in a smaller class."
    )
    return Explanation(job=job.id, state=job.state, reason=Reason.NO_CARD_FITS.value, text=text)


def _of_waiting(
    job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known, reason: WaitReason
) -> Explanation:
    trial = Trial(job, snapshot, now, estimates, known)
    changes: tuple[Remedy | None, ...]
    if not trial.cards:
        # What a farm that does not run would need is known once it does.
        changes = ()
    elif reason is WaitReason.EQUAL_CLIP_RUNNING:
        changes = (waiting.for_equal_clip(trial),)
    elif reason is WaitReason.PLANNED_LATER:
        changes = (waiting.for_plan(trial, snapshot.plan),)
    elif reason is WaitReason.NOT_BEFORE:
        # Nothing else starts it before its time.
        changes = (waiting.until_it_starts(trial) or waiting.for_its_time(trial),)
    else:
        changes = tuple(changes_for(trial))
    if job.interactive and (room := room_for(job, place(with_job(snapshot, job), now, reasons=False))) is not None:
        return Explanation(job=job.id, state=job.state, reason=MAKING_ROOM, text=making_room(room, known.interactive))
    words = WaitWords(trial)
    unusable = words.unusable() if reason is WaitReason.NO_CARD_OF_THIS_SIZE else ""
    return Explanation(
        job=job.id,
        state=job.state,
        reason=CARDS_UNUSABLE if unusable else reason.name.lower(),
        text=" ".join(
            filter(
                None,
                [
                    unusable or words.of(reason),
                    turn_words(job, snapshot, known.interactive),
                    room_words(job, known.attempt),
                ],
            )
        ),
        changes=tuple(filter(None, changes)),
    )


# -- held -------------------------------------------------------------------------------------------------------


def _of_held(job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known) -> Explanation:
    if job.reason == HoldReason.REVIEW:
        return _of_review(job)
    batch = known.batch
    of_batch = batch is not None and batch.held is not None and job.reason == batch.held
    what = job.batch_id if of_batch else job.id
    text, changes = "", []
    free = replace(job, state=JobState.QUEUED, reason=None)
    starts = start_of(free, with_job(snapshot, free), now) is not None
    abandoned = batch is not None and batch.abandoned

    def change(kind: RemedyKind, words: str, command: str = "") -> Remedy:
        return Remedy(kind=kind, text=words, command=command, starts=starts and not abandoned)

    match job.reason:
        case HoldReason.APPROVAL:
            text = "It waits for somebody's approval."
            changes = [change(RemedyKind.APPROVE, "approve it", f"clipmill approve {what}")]
        case HoldReason.PAUSED:
            text = "Its batch is paused." if of_batch else "Somebody paused it."
            words = "resume its batch" if of_batch else "resume it"
            changes = [change(RemedyKind.RESUME, words, f"clipmill resume {what}")]
        case HoldReason.FAILURES:
            most = batch.limits.failures if batch else None
            limit = f" ({most})" if most is not None else ""
            text = f"As many rows of its batch have failed as may{limit}."
            command = f"clipmill resume {job.batch_id} --max-failures {(most or 0) + 10}"
            words = "raise the limit and resume the batch, or put its failed rows back by `clipmill retry`"
            changes = [change(RemedyKind.RESUME, words, command)]
        case HoldReason.BUDGET:
            text, command = _of_budget(job, known)
            changes = [change(RemedyKind.RESUME, "raise the limit and resume the batch", command)]
        case HoldReason.AFTER:
            text, changes = _of_after(job, now, known)
        case _:
            text = f"It is held ({job.reason})."
    if changes and not starts and job.reason != HoldReason.AFTER:
        then = _of_queued(free, snapshot, now, estimates, known)
        text += f" After that: {then.text[0].lower()}{then.text[1:]}"
        changes += then.changes
    return Explanation(job=job.id, state=job.state, reason=str(job.reason or "held"), text=text, changes=tuple(changes))


def _of_review(job: Job) -> Explanation:
    if not job.draft:
        return _of_fidelity(job)
    following = job.rounds[-job.rounds_left].name if job.rounds and job.rounds_left else "next"
    text = f"Its draft (round {job.round or 'draft'}) is there, and somebody has to look at it: "
    text += f"approved it goes on to round {following}, rejected it ends, and a re-roll makes another draft."
    words = ("approve it", f"clipmill approve {job.id}")
    change = Remedy(kind=RemedyKind.APPROVE, text=words[0], command=words[1], starts=False)
    return Explanation(job=job.id, state=job.state, reason=HoldReason.REVIEW.value, text=text, changes=(change,))


def _of_fidelity(job: Job) -> Explanation:
    """Why a job waits whose best clip is less true to its still than its row asks for."""
    story = next(
        (note.message for note in job.notes if note.code == SHORT), "its clip fell short of what its row asks for"
    )
    text = f"Its best clip is there, and somebody has to look at it: {story}."
    words = ("approve it", f"clipmill approve {job.id}")
    change = Remedy(kind=RemedyKind.APPROVE, text=words[0], command=words[1], starts=False)
    return Explanation(job=job.id, state=job.state, reason=HoldReason.REVIEW.value, text=text, changes=(change,))


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


def _of_after(job: Job, now: float, known: Known) -> tuple[str, list[Remedy]]:
    first = known.after
    if first is None:
        return f"It waits for {job.after}, which is not known yet: its batch is still being handed in.", []
    text = f"It starts once {first.name} ({first.id}) has completed, which is {first.state}"
    match first.state:
        case JobState.HELD if first.reason == HoldReason.APPROVAL:
            command, kind = f"clipmill approve {first.id}", RemedyKind.APPROVE
        case JobState.HELD if first.reason != HoldReason.AFTER:
            what = first.id
            command, kind = f"clipmill resume {what}", RemedyKind.RESUME
        case _:
            more = f"`clipmill why {first.id}` tells more of that one"
            return f"{text}. {more}.", [Remedy(kind=RemedyKind.WAIT, text=f"wait for {first.name}", starts=False)]
    words = f"{'approve' if kind is RemedyKind.APPROVE else 'resume'} {first.name} first"
    return f"{text} ({first.reason}).", [Remedy(kind=kind, text=words, command=command, starts=False)]


# -- running and ended ------------------------------------------------------------------------------------------


def _of_running(job: Job, snapshot: Snapshot, now: float, estimates: TimeEstimates, known: Known) -> Explanation:
    cards = {card.card: card for card in snapshot.cards}
    one = next((running for running in snapshot.running if running.job.id == job.id), None)
    name = one.card if one is not None else (known.attempt.card if known.attempt else "a card")
    card = cards.get(name)
    text = f"It is being rendered on {name}"
    text += f" ({card.card_class}, {card.kind})" if card is not None else ""
    if known.attempt is not None:
        text += f" since {hour_text(known.attempt.started_at, now)}"
    steps = job.steps or (job.spec.total_steps if job.spec else 0)
    text += f", step {one.step if one is not None else job.step} of {steps}" if steps else ""
    if one is not None and (seconds := left_s(one, card, estimates)) < math.inf:
        text += f"; it is expected to end at about {hour_text(now + seconds, now)}"
    text += "."
    if known.beat is not None and known.beat.waiting_for:
        text += f" It has not begun: it {known.beat.waiting_for}."
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


def why_failed(reason: str | None) -> str:
    """Why a job failed, in a few words without a full stop."""
    return next((text for known, text in _FAILED.items() if known == reason), "It failed")


def _of_ended(job: Job) -> Explanation:
    if job.state is JobState.CANCELLED:
        change = Remedy(kind=RemedyKind.RETRY, text="put it back", command=f"clipmill retry {job.id}", starts=False)
        text, reason = "It was cancelled.", job.state.value
        return Explanation(job=job.id, state=job.state, reason=reason, text=text, changes=(change,))
    text = why_failed(job.reason) + (f", after {job.attempts} attempts" if job.attempts > 1 else "")
    for problem in job.problems:
        text += f". {problem.field}: {problem.message.rstrip('.')}. {problem.remedy.rstrip('.')}"
    before = Before.LOST if job.reason == Reason.AFTER_FAILED else Before.NONE
    facts = JobFacts(state=job.state, reason=job.reason, renderable=job.spec is not None, before=before)
    rule = rule_for(facts, Verb.RETRY)
    if rule is None or rule.to is None:
        refusal = f" {rule.refusal[0].upper()}{rule.refusal[1:]}." if rule else ""
        return Explanation(job=job.id, state=job.state, reason=str(job.reason), text=f"{text}.{refusal}")
    change = Remedy(
        kind=RemedyKind.RETRY, text="put it back into the queue", command=f"clipmill retry {job.id}", starts=False
    )
    return Explanation(job=job.id, state=job.state, reason=str(job.reason), text=f"{text}.", changes=(change,))
