"""Verbs that a page offers for a batch, a row or a card, as things are: a button that would be refused is not there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from cluster.jobs.commands import CardOrder, CardVerb, for_batch
from cluster.jobs.model import Batch, HoldReason, Job, JobState, Pick
from cluster.jobs.transitions import JobFacts, RefusedError, Verb, rule_for
from pipeline.families import family_named


@dataclass(frozen=True, kw_only=True)
class OfferedVerb:
    """A button, and the request of the API that it sends."""

    label: str
    url: str
    #: What is asked before; empty where it can be undone by another verb.
    confirm: str = ""
    #: A number that is asked for and sent as `priority`, beginning with this; None: nothing is.
    priority: int | None = None
    #: Whether it destroys something, or stops somebody's work.
    grave: bool = False


_LABELS = {
    Verb.APPROVE: "Approve",
    Verb.REJECT: "Reject",
    Verb.REROLL: "Re-roll",
    Verb.RESUME: "Resume",
    Verb.RETRY: "Retry",
    Verb.PAUSE: "Pause",
    Verb.PRIORITIZE: "Priority",
    Verb.CANCEL: "Cancel",
}
#: Offered for rows alone: nobody rejects all drafts at once by a slip.
_BY_ROW = (Verb.REJECT, Verb.REROLL)
_CARD_LABELS = {CardVerb.LOCK: "Lock", CardVerb.DRAIN: "Drain", CardVerb.QUARANTINE: "Quarantine"}
_CARD_CONFIRM = {
    CardVerb.DRAIN: "The clip on the card is stopped after its step and goes on elsewhere. Drain the card?",
    CardVerb.QUARANTINE: "Nothing new starts on the card until it is released. Quarantine it?",
}


def batch_verbs(batch: Batch) -> list[OfferedVerb]:
    """The verbs that a batch as it is would obey."""
    return [_of_batch(batch, verb) for verb in _LABELS if verb not in _BY_ROW and _is_useful(batch, verb)]


def _of_batch(batch: Batch, verb: Verb) -> OfferedVerb:
    waiting = batch.counts.total - batch.counts.final
    rows = "1 row that has" if waiting == 1 else f"{waiting:,} rows that have"
    return OfferedVerb(
        label=_LABELS[verb] if verb is not Verb.RETRY else f"Retry {batch.counts[JobState.FAILED]:,} failed",
        url=f"/v1/batches/{quote(batch.id, safe='')}/{verb.value}",
        confirm=_asked_of_batch(batch, verb, rows),
        priority=0 if verb is Verb.PRIORITIZE else None,
        grave=verb is Verb.CANCEL,
    )


def _asked_of_batch(batch: Batch, verb: Verb, rows: str) -> str:
    drafts = batch.held_by.get(HoldReason.REVIEW, 0)
    if verb is Verb.CANCEL:
        return f"The {rows} not ended will not be rendered. Cancel the batch?"
    if verb is Verb.APPROVE and drafts:
        what = "The draft that waits goes" if drafts == 1 else f"All {drafts:,} drafts that wait go"
        return f"{what} on to the next round, but for those of rows that have several. Approve without a look?"
    return ""


def _is_useful(batch: Batch, verb: Verb) -> bool:
    try:
        for_batch(batch, verb)
    except RefusedError:
        return False
    paused_rows = batch.held_by.get(HoldReason.PAUSED, 0)
    match verb:
        case Verb.RESUME:
            return batch.held is not None or paused_rows > 0
        case Verb.PAUSE:
            return batch.held is None
        case Verb.CANCEL:
            return not batch.done
        case _:
            return True


def job_verbs(job: Job, batch: Batch, *, other_picked: bool = False) -> list[OfferedVerb]:
    """The verbs that a row of `batch` would obey as it is; `other_picked`: another clip of its row was chosen."""
    # Not the row but its batch is held: it is shown so, and queued in truth.
    of_batch = batch.held is not None and job.state is JobState.HELD and job.reason == batch.held
    facts = JobFacts(
        state=JobState.QUEUED if of_batch else job.state,
        reason=None if of_batch else job.reason,
        batch_held=of_batch,
        cancel_requested=job.cancel_requested,
        hold_requested=job.hold_requested,
        renderable=job.spec is not None,
        draft=job.draft,
        has_others=job.row_number is not None,
        pick=job.pick,
        other_picked=other_picked,
    )
    found = []
    rejected = job.pick is Pick.LET_GO and job.state in (JobState.COMPLETED, JobState.CANCELLED) and not other_picked
    for verb, label in _LABELS.items():
        rule = rule_for(facts, verb)
        if rule is None or rule.to is None or rule.keeps:
            continue
        if verb is Verb.REROLL and not (job.spec and family_named(job.spec.family).uses_seed):
            continue
        found.append(
            OfferedVerb(
                label="Take the rejection back" if verb is Verb.RETRY and rejected else label,
                url=f"/v1/jobs/{quote(job.id, safe='')}/{verb.value}",
                confirm="What was rendered of it is lost. Cancel this clip?" if verb is Verb.CANCEL else "",
                priority=job.own_priority if verb is Verb.PRIORITIZE else None,
                grave=verb in (Verb.CANCEL, Verb.REJECT),
            )
        )
    return found


def card_verbs(card: str, order: CardOrder | None) -> list[OfferedVerb]:
    """The verbs for a card, by the order that holds for it."""
    url = f"/v1/cards/{quote(card, safe='')}"
    if order is not None:
        return [OfferedVerb(label="Release", url=f"{url}/{CardVerb.RELEASE.value}")]
    return [
        OfferedVerb(
            label=label,
            url=f"{url}/{verb.value}",
            confirm=_CARD_CONFIRM.get(verb, ""),
            grave=verb is CardVerb.QUARANTINE,
        )
        for verb, label in _CARD_LABELS.items()
    ]
