"""The dispatcher's side of the store: claims, leases and endings, every write fenced by epoch and attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.cards import Beat, Card
from cluster.chunks import chunks
from cluster.ids import new_id
from cluster.jobs import FINAL_STATES, Checkpoint, Ended, Job, JobState, Outcome, Reason, Transition
from cluster.lessons import Lessons
from cluster.store import peaks
from cluster.store.database import Database
from cluster.store.rows import is_attended, job_from, objects_value, select_jobs
from cluster.store.schema import attempts, batches, cards, clips, dispatcher, jobs
from cluster.store.tallies import count
from pipeline.families import FAMILIES
from pipeline.problems import Problem

#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000


class StaleEpochError(RuntimeError):
    """Another dispatcher took office; this one must stop without touching anything."""


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
    resume: Checkpoint | None = None
    done: tuple[Stretch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Answer to `Ledger.renew`."""

    #: Attempts whose lease was renewed.
    live: frozenset[str]
    #: Of these, the ones whose job was cancelled.
    cancelled: frozenset[str]
    #: Keys of checkpoints that no job goes on from any more, newer ones being recorded.
    superseded: tuple[str, ...] = ()


class Ledger:
    """Opened by the one dispatcher in office. All writes raise `StaleEpochError` once another took over."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.epoch = 0

    def take_office(self, holder: str) -> list[Claim]:
        """Become the dispatcher; returns the attempts that were running under earlier ones.

        Whoever held the office before can no longer write.
        """
        with self._db.write() as c:
            now = self._db.now(c)
            insert = self._db.insert(dispatcher).values(id=1, epoch=1, holder=holder, since=now)
            self.epoch = int(
                c.execute(
                    insert.on_conflict_do_update(
                        index_elements=[dispatcher.c.id],
                        set_={"epoch": dispatcher.c.epoch + 1, "holder": holder, "since": now},
                    ).returning(dispatcher.c.epoch)
                ).scalar_one()
            )
            c.execute(sa.delete(cards))
            return self._claims(c, attempts.c.outcome.is_(None))

    def waiting(self, per_kind: int) -> list[Job]:
        """Jobs that may start now: the first `per_kind` of each (family, size) by priority and age.

        Taken by kind, so that a thousand large clips waiting for a large card cannot hide a small one.
        Left out: jobs whose clip another job is rendering, and attended batches nobody waits for.
        """
        with self._db.read() as c:
            now = self._db.now(c)
            rank = (
                sa.func.row_number()
                .over(
                    partition_by=(jobs.c.family, jobs.c.needs_bytes),
                    order_by=(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.number),
                )
                .label("rank")
            )
            ranked = (
                sa.select(jobs.c.id, rank)
                .join(batches, batches.c.id == jobs.c.batch_id)
                .where(jobs.c.state == JobState.QUEUED.value, ~equal_clip_running())
                .where(is_attended(now))
                .subquery()
            )
            first = sa.select(ranked.c.id).where(ranked.c.rank <= per_kind)
            return [job_from(row) for row in c.execute(select_jobs().where(jobs.c.id.in_(first)))]

    def start(self, starts: Sequence[tuple[Job, Card]], lease_s: int) -> list[Claim]:
        """Claim jobs for cards in one transaction; those that are no longer queued are left out."""
        claims: list[Claim] = []
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            for job, card in starts:
                claimed = c.execute(
                    sa.update(jobs)
                    .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED.value, ~equal_clip_running())
                    .values(state=JobState.RUNNING.value, fence=jobs.c.fence + 1, updated_at=now)
                    .returning(jobs.c.fence, jobs.c.family, jobs.c.checkpoint_key, jobs.c.checkpoint_step)
                ).one_or_none()
                if claimed is None:
                    continue
                attempt_id = new_id("attempt")
                resume = None
                if claimed.family in FAMILIES and FAMILIES[claimed.family].resumable:
                    if claimed.checkpoint_key:
                        resume = Checkpoint(claimed.checkpoint_key, claimed.checkpoint_step)
                    elif claimed.fence == 1:
                        resume = self._inherit(c, job)
                done = self._stretches(c, resume) if resume else ()
                resumed_step = resume.step if resume else 0
                c.execute(
                    sa.insert(attempts).values(
                        id=attempt_id,
                        owner=job.owner,
                        job_id=job.id,
                        batch_id=job.batch_id,
                        fence=claimed.fence,
                        epoch=self.epoch,
                        renderer=card.renderer,
                        card=card.card,
                        card_class=card.card_class,
                        outcome=None,
                        started_at=now,
                        lease_until=now + lease_s,
                        ended_at=None,
                        step=resumed_step,
                        steps=job.spec.total_steps if job.spec else 0,
                        predicted_bytes=job.needs_bytes,
                        measured_bytes=0,
                        detail="",
                        resumed_from=done[-1].attempt if done else None,
                        resumed_step=resumed_step,
                    )
                )
                claims.append(
                    Claim(
                        attempt_id=attempt_id,
                        job=job,
                        fence=claimed.fence,
                        renderer=card.renderer,
                        card=card.card,
                        card_class=card.card_class,
                        kind=card.kind,
                        resumed_step=resumed_step,
                        resume=resume,
                        done=done,
                    )
                )
        return claims

    def renew(
        self,
        steps: Mapping[str, tuple[int, int]],
        lease_s: int,
        checkpoints: Mapping[str, Checkpoint] | None = None,
    ) -> Renewal:
        """Extend the leases of attempts that were heard of, and record their last finished step.

        `checkpoints` are the newest of running attempts, heard of or not; those of attempts that ended are void.
        """
        live: set[str] = set()
        superseded: list[str] = []
        with self._db.write() as c:
            self._guard(c)
            until = self._db.now(c) + lease_s
            for attempt_id, (step, of) in steps.items():
                renewed = c.execute(
                    sa.update(attempts)
                    .where(attempts.c.id == attempt_id, attempts.c.outcome.is_(None))
                    .values(lease_until=until, step=step, steps=of)
                )
                if renewed.rowcount:
                    live.add(attempt_id)
            for attempt_id, checkpoint in (checkpoints or {}).items():
                superseded += self._record(c, attempt_id, checkpoint)
            cancelled = c.scalars(
                sa.select(attempts.c.id)
                .join(jobs, jobs.c.id == attempts.c.job_id)
                .where(attempts.c.outcome.is_(None), jobs.c.cancel_requested.is_(True))
            ).all()
        return Renewal(live=frozenset(live), cancelled=frozenset(cancelled), superseded=tuple(superseded))

    def expired(self) -> list[Claim]:
        """Running attempts whose lease ran out."""
        with self._db.read() as c:
            now = self._db.now(c)
            return self._claims(c, sa.and_(attempts.c.outcome.is_(None), attempts.c.lease_until < now))

    def current_job(self, claim: Claim) -> Job:
        """The claim's job as it stands now (it may have been cancelled since)."""
        with self._db.read() as c:
            return job_from(c.execute(select_jobs().where(jobs.c.id == claim.job.id)).one())

    def finish(self, claim: Claim, ended: Ended, transition: Transition) -> bool:
        """End an attempt and move its job, in one transaction. False where the attempt had ended before.

        A completed attempt publishes its clip here, and completes every waiting job of equal content. The job keeps
        its newest checkpoint where the transition says so; whoever ended keeps it as the mark of objects to delete.
        """
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            fenced = c.execute(
                sa.update(attempts)
                .where(attempts.c.id == claim.attempt_id, attempts.c.outcome.is_(None))
                .values(
                    outcome=ended.outcome.value,
                    ended_at=now,
                    detail=_storable(ended.detail)[:2000],
                    measured_bytes=ended.measured_bytes,
                    # None of the steps were another's where the checkpoint was refused.
                    **({} if ended.resumed_step else {"resumed_step": 0, "resumed_from": None}),
                )
                .returning(attempts.c.started_at, attempts.c.lease_until)
            ).one_or_none()
            if fenced is None:
                return False
            job = claim.job
            clip_id = self._publish(c, claim, ended, now) if transition.state is JobState.COMPLETED else None
            values: dict[str, object] = {
                "state": transition.state.value,
                "reason": transition.reason.value if transition.reason else None,
                "updated_at": now,
                "clip_id": clip_id,
            }
            if transition.problem:
                values["problems"] = [transition.problem.model_dump()]
            if transition.needs_bytes is not None:
                values["needs_bytes"] = transition.needs_bytes
            if not transition.state.final and not transition.keeps_checkpoint:
                values |= {"checkpoint_key": None, "checkpoint_step": None}
            elif ended.checkpoint:
                values |= {"checkpoint_key": ended.checkpoint.key, "checkpoint_step": ended.checkpoint.step}
            counted = jobs.c.attempts if transition.costs_attempt else jobs.c.releases
            values[counted.name] = counted + 1
            moved = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, jobs.c.fence == claim.fence, jobs.c.state == JobState.RUNNING.value)
                .values(**values)
            )
            if moved.rowcount != 1:
                # The attempt was live, so its job must be running under its fence: anything else is a broken store.
                raise RuntimeError(f"job {job.id} is not running under fence {claim.fence} of {claim.attempt_id}")
            self._tally(c, claim, ended, transition)
            if job.spec:
                peaks.record(self._db, c, job.spec, claim.kind, ended.peaks)
            self._count(c, "gpu_seconds", claim, card_class=claim.card_class, by=max(0, now - fenced.started_at))
            if ended.outcome is Outcome.LOST and fenced.lease_until < now:
                count(self._db, c, "leases_expired")
            return True

    def lessons(self) -> Lessons:
        """What measured peaks have taught."""
        return peaks.load(self._db)

    def relax(self, job: Job, needs_bytes: int) -> None:
        """Let a waiting job run on smaller cards, in a leaner layout."""
        with self._db.write() as c:
            self._guard(c)
            c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED.value)
                .values(needs_bytes=needs_bytes)
            )

    def refuse(self, job: Job, reason: Reason, problem: Problem) -> bool:
        """Fail a waiting job that no card of this farm can hold."""
        with self._db.write() as c:
            self._guard(c)
            moved = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED.value)
                .values(
                    state=JobState.FAILED.value,
                    reason=reason.value,
                    problems=[problem.model_dump()],
                    updated_at=self._db.now(c),
                )
            )
            if moved.rowcount and job.spec:
                count(
                    self._db,
                    c,
                    "clips",
                    model=job.spec.family,
                    resolution_class=job.spec.resolution_class,
                    outcome="failed",
                )
                count(self._db, c, "admissions", outcome="refused")
            return bool(moved.rowcount)

    def checkpointed(self, limit: int) -> list[str]:
        """Ids of jobs that have ended and whose checkpoints are still in storage."""
        with self._db.read() as c:
            ended = sa.and_(_has_ended(), ~_has_heir())
            return list(c.scalars(sa.select(jobs.c.id).where(ended, _has_checkpoint()).limit(limit)))

    def forget_checkpoints(self, job_ids: Sequence[str]) -> None:
        """The checkpoints of these jobs, where they have ended, are gone from storage."""
        with self._db.write() as c:
            self._guard(c)
            for some in chunks(job_ids, _MANY):
                c.execute(
                    sa.update(jobs)
                    .where(jobs.c.id.in_(some), _has_ended())
                    .values(checkpoint_key=None, checkpoint_step=None)
                )

    def ended_among(self, job_ids: Iterable[str]) -> set[str]:
        """Which of these jobs have ended. A job this store does not know is not among them: it may be another's."""
        with self._db.read() as c:
            return {
                job_id
                for some in chunks(job_ids, _MANY)
                for job_id in c.scalars(sa.select(jobs.c.id).where(jobs.c.id.in_(some), _has_ended(), ~_has_heir()))
            }

    def record_cards(self, beats: Iterable[Beat]) -> None:
        """Write the roster for those who ask; renderers left out keep their last time and fade."""
        with self._db.write() as c:
            self._guard(c)
            now = self._db.now(c)
            for beat in beats:
                insert = self._db.insert(cards).values(
                    renderer=beat.renderer, beat=beat.model_dump(mode="json"), seen_at=now
                )
                c.execute(
                    insert.on_conflict_do_update(
                        index_elements=[cards.c.renderer],
                        set_={"beat": insert.excluded.beat, "seen_at": insert.excluded.seen_at},
                    )
                )

    # -- within a transaction -------------------------------------------------------------------------------

    def _guard(self, c: Connection) -> None:
        # An UPDATE, not a SELECT: on PostgreSQL it takes the row's lock, so two dispatchers are put in order.
        held = c.execute(
            sa.update(dispatcher).where(dispatcher.c.id == 1, dispatcher.c.epoch == self.epoch).values(epoch=self.epoch)
        )
        if not held.rowcount:
            raise StaleEpochError(f"epoch {self.epoch} has ended: another dispatcher took over")

    def _claims(self, c: Connection, where: sa.ColumnElement[bool]) -> list[Claim]:
        rows = c.execute(
            sa.select(
                attempts.c.id, attempts.c.job_id, attempts.c.fence, attempts.c.renderer, attempts.c.card,
                attempts.c.card_class, attempts.c.resumed_step,
            ).where(where)
        ).all()  # fmt: skip
        found = {
            row.id: job_from(row) for row in c.execute(select_jobs().where(jobs.c.id.in_([row.job_id for row in rows])))
        }
        return [
            Claim(
                attempt_id=row.id,
                job=found[row.job_id],
                fence=row.fence,
                renderer=row.renderer,
                card=row.card,
                card_class=row.card_class,
                resumed_step=row.resumed_step,
            )
            for row in rows
        ]

    def _record(self, c: Connection, attempt_id: str, checkpoint: Checkpoint) -> list[str]:
        # Writers come one after the other: what is read here stays true until this commits.
        row = c.execute(
            sa.select(jobs.c.id, jobs.c.checkpoint_key)
            .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence))
            .where(attempts.c.id == attempt_id, attempts.c.outcome.is_(None))
        ).one_or_none()
        if row is None or row.checkpoint_key == checkpoint.key:
            return []
        c.execute(
            sa.update(jobs)
            .where(jobs.c.id == row.id)
            .values(checkpoint_key=checkpoint.key, checkpoint_step=checkpoint.step)
        )
        return [row.checkpoint_key] if row.checkpoint_key else []

    def _inherit(self, c: Connection, job: Job) -> Checkpoint | None:
        """The newest checkpoint of an equal clip that an earlier job left half way; the job's own from here on."""
        left = c.execute(
            sa.select(jobs.c.checkpoint_key, jobs.c.checkpoint_step)
            .where(
                jobs.c.owner == job.owner,
                jobs.c.content_key == job.content_key,
                jobs.c.id != job.id,
                # A failed job's checkpoint may be what it failed of.
                jobs.c.state.in_([JobState.QUEUED.value, JobState.HELD.value, JobState.CANCELLED.value]),
                _has_checkpoint(),
            )
            .order_by(jobs.c.checkpoint_step.desc())
            .limit(1)
        ).one_or_none()
        if left is None:
            return None
        c.execute(
            sa.update(jobs)
            .where(jobs.c.id == job.id)
            .values(checkpoint_key=left.checkpoint_key, checkpoint_step=left.checkpoint_step)
        )
        return Checkpoint(left.checkpoint_key, left.checkpoint_step)

    def _stretches(self, c: Connection, resume: Checkpoint) -> tuple[Stretch, ...]:
        # By the job that the checkpoint lies under: it may be an earlier one of equal content.
        job_id = resume.key.split("/")[1]
        made = {row.id: row for row in c.execute(sa.select(attempts).where(attempts.c.job_id == job_id))}
        found: list[Stretch] = []
        by: str | None = resume.key.split("/")[-2]
        step = resume.step
        while by is not None and (row := made.pop(by, None)) is not None:
            found.append(Stretch(step=step, attempt=by, card=row.card, card_class=row.card_class))
            by, step = row.resumed_from, row.resumed_step
        return tuple(reversed(found))

    def _publish(self, c: Connection, claim: Claim, ended: Ended, now: int) -> str:
        assert ended.objects is not None
        clip_id = new_id("clip")
        c.execute(
            sa.insert(clips).values(
                id=clip_id,
                owner=claim.job.owner,
                content_key=claim.job.content_key,
                attempt_id=claim.attempt_id,
                objects=objects_value(ended.objects),
                created_at=now,
            )
        )
        shared = c.execute(
            sa.update(jobs)
            .where(
                jobs.c.owner == claim.job.owner,
                jobs.c.content_key == claim.job.content_key,
                jobs.c.state.in_([JobState.QUEUED.value, JobState.HELD.value]),
            )
            .values(state=JobState.COMPLETED.value, reason=None, clip_id=clip_id, updated_at=now)
        )
        if shared.rowcount:
            self._count(c, "clips", claim, outcome="shared", by=shared.rowcount)
        return clip_id

    def _tally(self, c: Connection, claim: Claim, ended: Ended, transition: Transition) -> None:
        self._count(c, "attempts", claim, card_class=claim.card_class, outcome=ended.outcome)
        if ended.outcome is Outcome.OOM:
            self._count(c, "oom", claim, card_class=claim.card_class, outcome=ended.stage)
        admitted = "too_big" if ended.outcome is Outcome.TOO_BIG else "admitted"
        count(self._db, c, "admissions", card_class=claim.card_class, outcome=admitted)
        if ended.outcome is Outcome.STOPPED and not transition.state.final:
            # A cancelled job is no preemption.
            count(self._db, c, "preemptions", outcome=ended.cause or "drain")
        if transition.state.final:
            self._count(c, "clips", claim, outcome=transition.state)

    def _count(
        self, c: Connection, name: str, claim: Claim, *, card_class: str = "", outcome: str = "", by: float = 1
    ) -> None:
        spec = claim.job.spec
        count(
            self._db,
            c,
            name,
            model=spec.family if spec else "",
            resolution_class=spec.resolution_class if spec else "",
            card_class=card_class,
            outcome=outcome,
            by=by,
        )


def _has_ended() -> sa.ColumnElement[bool]:
    return jobs.c.state.in_([state.value for state in FINAL_STATES])


def _has_heir() -> sa.Exists:
    """Of a row of `jobs`: whether a job of equal content of its owner may go on from its checkpoint."""
    heir = jobs.alias("heir")
    return sa.exists().where(
        heir.c.owner == jobs.c.owner,
        heir.c.content_key == jobs.c.content_key,
        heir.c.id != jobs.c.id,
        heir.c.state.not_in([state.value for state in FINAL_STATES]),
    )


def _has_checkpoint() -> sa.ColumnElement[bool]:
    return jobs.c.checkpoint_key.is_not(None)


def equal_clip_running() -> sa.Exists:
    """Of a row of `jobs`: whether a job of equal content of its owner is being rendered."""
    running = jobs.alias("running")
    return sa.exists().where(
        running.c.owner == jobs.c.owner,
        running.c.content_key == jobs.c.content_key,
        running.c.state == JobState.RUNNING.value,
    )


def _storable(text: str) -> str:
    """`text` without what one store or the other refuses: PostgreSQL takes no NUL, neither takes half a surrogate."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
