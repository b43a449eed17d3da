"""What batches, jobs, attempts and clips are. How an attempt ends: `cluster.jobs.outcomes`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.clips.clip import ClipSpec
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import ADJUSTED, Note, distinct, notes_from
from pipeline.problems import Problem

#: Attempts a job may cost before it fails for good: a poisoned row must end.
MAX_ATTEMPTS = 3
#: Attempts that ended through no fault of the job (lost node, preemption) before it fails all the same.
MAX_RELEASES = 25


def checkpoints_of(job_id: str) -> str:
    """Storage prefix of everything that attempts of a job put aside."""
    return f"checkpoints/{job_id}"


def checkpoint_key(job_id: str, attempt_id: str, step: int) -> str:
    """Storage key of a checkpoint; named under its attempt, so that a zombie overwrites nothing."""
    return f"{checkpoints_of(job_id)}/{attempt_id}/{step}"


#: Keys of checkpoints, and of what a killed process leaves of one that it was writing to a folder.
CHECKPOINT_KEYS = re.compile(r"checkpoints/[^/]+/[^/]+/([0-9]+|\.[^/]{1,40}\.[0-9a-f]{12}\.part)")

#: Keys of what marking adds to a clip's files, by who marked: beside the files, and gone with them.
MARKS_KEYS = re.compile(r"clips/[^/]+/[^/]+/marks-[0-9a-f]{16}-(video\.mp4|poster\.jpg|spritesheet\.jpg)")


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    HELD = "held"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class HoldReason(StrEnum):
    """Why a job is held, or a whole batch."""

    #: Somebody must approve it first.
    APPROVAL = "approval"
    #: Somebody paused it.
    PAUSED = "paused"
    #: Another job must complete first.
    AFTER = "after"
    #: A draft is there: somebody approves it, rejects it, or asks for another.
    REVIEW = "review"
    #: The batch has used the GPU time or the money it may.
    BUDGET = "budget"
    #: The batch has as many failures as it may.
    FAILURES = "failures"


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    #: The card ran out of memory while rendering.
    OOM = "oom"
    #: The renderer refused before starting: the clip needs a bigger card.
    TOO_BIG = "too_big"
    #: The input or its parameters are at fault; trying again cannot help.
    INVALID = "invalid"
    #: The render raised.
    ERROR = "error"
    #: The renderer died while its node lived.
    CRASHED = "crashed"
    #: Node, dispatcher or connection lost; the lease ran out.
    LOST = "lost"
    #: Told to stop: drain, shutdown, preemption.
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why a job failed."""

    INVALID = "invalid"
    NO_CARD_FITS = "no_card_fits"
    OUT_OF_MEMORY = "out_of_memory"
    ERROR = "error"
    CRASHED = "crashed"
    LOST_TOO_OFTEN = "lost_too_often"
    #: The job it waited for failed or was cancelled.
    AFTER_FAILED = "after_failed"


@dataclass(frozen=True, kw_only=True)
class PlannedRound:
    """One round of a clip that is reviewed before it is made for good: a draft of it, or at last itself."""

    #: `draft`, `quick`, `tune` or `final`.
    name: str
    spec: ClipSpec
    #: What a person should know of the row and its clip in this round.
    noted: tuple[Note, ...] = ()


class Pick(StrEnum):
    """Whether a clip was chosen of those of its row."""

    #: Nobody has said anything of it.
    OPEN = "open"
    #: Approved: of several candidates it is the one that is kept.
    PICKED = "picked"
    #: Rejected, or another candidate was picked.
    LET_GO = "let_go"


@dataclass(frozen=True, kw_only=True)
class ReviewStep:
    """What somebody decided of a clip in review."""

    #: `approve`, `reject` or `reroll`.
    verb: str
    #: Name of the round that it was in; empty where it has one only.
    round: str
    #: What was looked at: the clip's id (None: there was none), and its seed.
    clip_id: str | None
    seed: int
    #: UTC epoch seconds.
    at: int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checked manifest row, ready to become a job: either a spec and a still, or the problems that forbid it."""

    number: int
    name: str
    #: What the person wrote: image, prompt and unknown columns, for results and provenance.
    row: dict[str, Any]
    still: str | None = None
    spec: ClipSpec | None = None
    content_key: str | None = None
    #: Peak bytes in the fastest layout: the dispatcher lowers it where that fits no card of its fleet.
    needs_bytes: int = 0
    priority: int = 0
    problems: tuple[Problem, ...] = ()
    #: UTC epoch seconds; it does not start before.
    not_before: int | None = None
    #: Name of the row of its batch, or id of the job, that must complete first.
    after: str | None = None
    #: The rounds that its clip goes through, the first of which is `spec`; (): it has one only.
    rounds: tuple[PlannedRound, ...] = ()
    #: Number of the manifest's row, where that asks for several clips; None: this is its only one.
    row_number: int | None = None


#: What tells one queue from another: a queue is one owner's waiting jobs of one kind and priority. Columns of a job in
#: the store; `Job.queue` is their values.
QUEUE_BY = ("owner", "family", "resolution_class", "needs_bytes", "priority")

#: Added to the priority of an interactive job: the store has no other mark of one, so that queues and indexes tell
#: interactive jobs apart as they are, and a version that knows none starts them first. Far above what people may give.
INTERACTIVE_PRIORITY = 1_000_000
#: Priorities from here on are those of interactive jobs.
INTERACTIVE_FROM = INTERACTIVE_PRIORITY // 2


def stored_priority(priority: int, *, interactive: bool) -> int:
    """The priority that the store keeps for a job whose owner gave it `priority`."""
    return priority + INTERACTIVE_PRIORITY if interactive else priority


@dataclass(frozen=True)
class StoredCheckpoint:
    """A clip between two steps, in storage under `key`; `step` steps are done."""

    key: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row (times a candidate) of a batch."""

    id: str
    owner: str
    batch_id: str
    number: int
    name: str
    state: JobState
    row: dict[str, Any]
    created_at: int
    updated_at: int = 0
    still: str | None = None
    spec: ClipSpec | None = None
    content_key: str | None = None
    #: A card must have at least this many usable bytes: the prediction, raised by what went wrong before.
    needs_bytes: int = 0
    #: The priority as the store keeps it (`stored_priority`); what its owner gave it is `own_priority`.
    priority: int = 0
    reason: str | None = None
    problems: tuple[Problem, ...] = ()
    #: Attempts that count towards `MAX_ATTEMPTS`.
    attempts: int = 0
    #: Attempts that ended through no fault of the job.
    releases: int = 0
    cancel_requested: bool = False
    #: Why a running job is held once its attempt has saved a checkpoint and stopped.
    hold_requested: HoldReason | None = None
    #: UTC epoch seconds; it does not start before.
    not_before: int | None = None
    #: Id of the job that must complete first; until its batch is sealed, what the manifest calls it.
    after: str | None = None
    clip_id: str | None = None
    #: Last finished step of the newest attempt (of a waiting job: the step it will go on from), and steps in all.
    step: int = 0
    steps: int = 0
    #: Where its next attempt goes on; None: it begins anew.
    checkpoint: StoredCheckpoint | None = None
    #: The rounds that its clip goes through, and how many are to come after this one. (): it has one only.
    rounds: tuple[PlannedRound, ...] = ()
    rounds_left: int = 0
    #: Number of the manifest's row, where that asks for several clips; None: this is its only one.
    row_number: int | None = None
    pick: Pick = Pick.OPEN
    #: What was decided of it in review, oldest first.
    reviewed: tuple[ReviewStep, ...] = ()
    #: What was judged of its finished clip. Known to those who read for people only.
    clip_notes: tuple[Note, ...] = field(default=(), compare=False)
    #: How true its finished clip is to still and prompt; None: not measured. Known to those who read for people only.
    fidelity: FidelityScore | None = field(default=None, compare=False)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was assumed, dropped, cut, rounded or judged of the row and its clip, nothing twice."""
        of_row = notes_from(self.row.get("noted"))
        if not of_row:
            # A version before typed notes wrote their sentences only.
            kinds = (("row" + ADJUSTED, "adjusted"), ("note", "notes"))
            of_row = tuple(Note(code=code, message=text) for code, name in kinds for text in self.row.get(name) or ())
        seen = {note.code for note in of_row}
        return distinct([*of_row, *(note for note in self.clip_notes if note.code not in seen)])

    @property
    def draft(self) -> bool:
        """Whether what it renders now is a draft, which somebody looks at before the next round."""
        return self.rounds_left > 0

    @property
    def round(self) -> str:
        """Name of the round that it is in; empty where it has one only."""
        return self.rounds[-1 - self.rounds_left].name if self.rounds else ""

    @property
    def interactive(self) -> bool:
        """Whether somebody waits for it: it may go before batches, and have one of their clips make room."""
        return self.priority >= INTERACTIVE_FROM

    @property
    def own_priority(self) -> int:
        """The priority that its owner gave it."""
        return self.priority - INTERACTIVE_PRIORITY if self.interactive else self.priority

    @property
    def queue(self) -> tuple[object, ...]:
        """Which queue it waits in: the values of `QUEUE_BY`."""
        spec = self.spec
        return self.owner, spec and spec.family, spec and spec.resolution_class, self.needs_bytes, self.priority


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Storage keys of a published clip. Immutable; named under the attempt that made them."""

    video: str
    poster: str
    spritesheet: str
    provenance: str
    video_bytes: int
    frames_sha256: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A finished clip, apart from the jobs that asked for it."""

    id: str
    owner: str
    content_key: str
    attempt_id: str
    objects: Objects
    created_at: int
    #: When the clip's objects were deleted, being old; UTC epoch seconds.
    expired_at: int | None = None
    #: What was judged of it when it was rendered.
    notes: tuple[Note, ...] = ()
    #: How true it is to its still and prompt; None where that was not measured.
    fidelity: FidelityScore | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One lease of one job by one renderer; `fence` grows with every attempt of the job."""

    id: str
    job_id: str
    owner: str
    fence: int
    renderer: str
    card: str
    card_class: str
    outcome: Outcome | None = None
    started_at: int = 0
    ended_at: int | None = None
    measured_bytes: int = 0
    detail: str = ""
    #: Last finished step and steps in all.
    step: int = 0
    steps: int = 0
    #: The step it went on from, out of the checkpoint of the attempt `resumed_from`; 0 and None: from the beginning.
    resumed_step: int = 0
    resumed_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """How many jobs of a batch are in each state."""

    by_state: dict[JobState, int] = field(default_factory=dict)

    def __getitem__(self, state: JobState) -> int:
        return self.by_state.get(state, 0)

    @property
    def total(self) -> int:
        """All jobs."""
        return sum(self.by_state.values())

    @property
    def final(self) -> int:
        """Jobs that have ended one way or another."""
        return sum(count for state, count in self.by_state.items() if state.final)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a batch stops by itself: what is queued is held then, what runs is finished. None: nowhere."""

    #: Rows that failed while being rendered.
    failures: int | None = None
    gpu_seconds: float | None = None
    #: In the unit of the table of rates.
    cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One manifest handed in by one owner."""

    id: str
    owner: str
    name: str
    created_at: int
    #: All rows are in; before that the batch is still validating.
    sealed: bool
    #: Where the manifest came from, for people and for recognising the same command run again.
    source: str
    #: Not None: rendered only while somebody waits for it, until this time.
    attended_until: int | None
    counts: BatchCounts
    #: Attempts made for this batch's own jobs; a row that shares a clip made none.
    attempts: int
    #: Attended, and nobody waits for it any more: nothing is rendered until the same command runs again.
    abandoned: bool = False
    #: Why nothing of it starts: `paused`, `failures` or `budget`. Its queued jobs count as held.
    held: HoldReason | None = None
    #: Held jobs by reason.
    held_by: dict[HoldReason, int] = field(default_factory=dict)
    #: Rows wait for an approval, all but the first `proof`.
    needs_approval: bool = False
    proof: int = 0
    limits: Limits = Limits()
    comment: str = ""
    #: The idempotency key that it was handed in under.
    key: str | None = None
    #: Where its events are sent, besides its owner's webhooks.
    webhook_url: str | None = None
    #: Cancelled rows that a review let go: rejected drafts, and candidates of which another was picked.
    let_go: int = 0

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return self.sealed and self.counts.final == self.counts.total

    @property
    def status(self) -> str:
        """`validating`, `running`, `paused`, `held`, `stopped`, `completed`, `failed`, `cancelled`.

        Stopped: abandoned. Held: it reached a limit, or whatever is left of it waits for an approval or is paused row
        by row. Failed: some rows failed. Cancelled: some rows were, besides what a review let go.
        """
        if not self.done and self.abandoned:
            return "stopped"
        if not self.sealed:
            return "validating"
        if not self.done:
            if self.held:
                return "paused" if self.held is HoldReason.PAUSED else "held"
            return "running" if self.counts[JobState.QUEUED] + self.counts[JobState.RUNNING] else "held"
        if self.counts[JobState.FAILED]:
            return "failed"
        return "cancelled" if self.counts[JobState.CANCELLED] > self.let_go else "completed"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps of a clip that an earlier attempt did: all up to `step`, from where the stretch before ended."""

    step: int
    attempt: str
    card: str
    card_class: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A running attempt: the lease of one job by one renderer."""

    attempt_id: str
    job: Job
    fence: int
    renderer: str
    card: str
    card_class: str
    #: Card kind. Known to whoever claimed only.
    kind: str = field(default="", compare=False)
    #: The step it goes on from; 0: it begins anew.
    resumed_step: int = 0
    #: The checkpoint to go on from, and who did the steps up to it, oldest first. Known to whoever claimed only.
    resume: StoredCheckpoint | None = None
    done: tuple[Stretch, ...] = ()
