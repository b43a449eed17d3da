"""One table says what becomes of a job: each event, made to happen through a store, does what `step` says.

Jobs of every combination of facts are put into both stores by plain SQL, and read back by plain SQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import Claim, HoldReason, Job, JobState, Pick, Reason
from cluster.jobs.outcomes import Completed, Invalid, Lost
from cluster.jobs.review import ReviewChange, renewed
from cluster.jobs.transitions import (
    Before,
    Event,
    Happening,
    Instruction,
    JobFacts,
    RefusedError,
    Verb,
    rule_for,
    step,
)
from cluster.maintenance.audit import check
from cluster.store import BatchStore, Completion, Database, DispatchStore
from cluster.store.bulk import among
from cluster.store.commands import CommandStore
from cluster.store.rows import job_values, objects_value
from cluster.store.schema import attempts, batches, clips, jobs
from cluster.store.transitions import PICKED, moves, values_of
from pipeline.clips.clip import ClipSpec
from tests.building import FLEET, PROBLEM, Clock, card, draft, objects, spec
from tests.unit.cluster.jobs.facts import EVENTS, JOBS, TOLD, told

ME = "ann"
#: Of every job before the event: attempts that counted, and those that did not.
TRIES = 2
MADE_AT, NOW = 5, 1_000_000


@dataclass(frozen=True)
class Case:
    """One job, as it is put into the store."""

    id: str
    number: int
    facts: JobFacts


class Farm:
    """A store with one job of every combination that the event may meet."""

    def __init__(self, database: Database, event: Event, cases: Sequence[Case]) -> None:
        self.database, self.event, self.cases = database, event, cases
        Clock(NOW).set_on(database)
        if database.is_sqlite:
            # Power cuts are not played here, and a flush a commit is most of the time.
            database.engine.dispose()
            sa.event.listen(database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        self.batch_store, self.commands = BatchStore(database), CommandStore(database)
        self.dispatch_store = DispatchStore(database)
        self.dispatch_store.take_office("first")
        with database.write() as c:
            for name, held in (("free", None), ("held", "paused"), ("others", None)):
                values = {"id": name, "owner": ME, "name": name, "source": "", "created_at": MADE_AT, "held": held}
                c.execute(sa.insert(batches).values(**values, sealed=event is not Happening.BEFORE_UNKNOWN))
            if there := [clip for case in cases if self._clip_there(case) for clip in self._clips(case)]:
                c.execute(sa.insert(clips), there)
            c.execute(sa.insert(jobs), [*self._firsts(), *map(self._row, cases), *self._others()])
            c.execute(sa.insert(attempts), [self._attempt(case.id, case.facts.state) for case in cases])

    @staticmethod
    def clip_id(case: Case) -> str:
        return f"clip-{case.id}"

    @staticmethod
    def content(case: Case) -> str:
        return f"content-{case.id}"

    @staticmethod
    def _clip_there(case: Case) -> bool:
        return case.facts.has_clip or shows_clip(case.facts)

    def _clips(self, case: Case) -> list[dict[str, Any]]:
        made = {"owner": ME, "attempt_id": f"attempt-{case.id}", "objects": objects_value(objects()), "created_at": 1}
        gone = None if case.facts.has_clip else MADE_AT
        clip = {"id": self.clip_id(case), "content_key": self.content(case), "expired_at": gone, **made}
        if self.event is not Verb.REROLL or not case.facts.has_clip:
            return [clip]
        # What another seed makes of it is there already.
        job = replace(_named(case.id), still="ab" * 32, spec=_seeded(case.number))
        again = renewed(job, Verb.REROLL, ReviewChange())
        assert again is not None
        return [clip, clip | {"id": f"again-{case.id}", "content_key": again.content_key}]

    def _others(self) -> list[dict[str, Any]]:
        """Of each job that is one of several clips of its row another one, which has completed."""
        return [
            self.row(
                f"other-{case.id}",
                100_000 + case.number,
                "held" if case.facts.batch_held else "free",
                state=JobState.COMPLETED.value,
                row_number=case.number,
                picked=case.facts.other_picked or None,
            )
            for case in self.cases
            if case.facts.has_others
        ]

    def _firsts(self) -> list[dict[str, Any]]:
        states = {"coming": JobState.QUEUED, "done": JobState.COMPLETED, "lost": JobState.FAILED}
        if self.event in TOLD:
            # All that wait do so for one: it does next what the event tells of it.
            first = JobState.FAILED if self.event is Happening.BEFORE_REVIVED else JobState.RUNNING
            states = {TOLD[self.event].value: first}
        return [
            self.row(f"first-{name}", n, "others", state=state.value, fence=1, reason=_why(state))
            for n, (name, state) in enumerate(states.items(), start=1)
        ]

    def _row(self, case: Case) -> dict[str, Any]:
        facts = case.facts
        after = None if facts.before is Before.NONE else f"first-{facts.before}"
        if self.event is Happening.BEFORE_UNKNOWN and after:
            after = "nobody"
        return self.row(
            case.id,
            case.number,
            "held" if facts.batch_held else "free",
            state=facts.state.value,
            reason=facts.reason,
            cancel_requested=facts.cancel_requested,
            hold_requested=facts.hold_requested.value if facts.hold_requested else None,
            after=after,
            content_key=self.content(case) if facts.renderable else None,
            clip_id=self.clip_id(case) if shows_clip(facts) else None,
            rounds_left=int(facts.draft),
            row_number=case.number if facts.has_others else None,
            picked=PICKED[facts.pick],
            spec=_seeded(case.number).model_dump(mode="json"),
            problems=[PROBLEM.model_dump()] if facts.state is JobState.FAILED else [],
            attempts=TRIES,
            releases=TRIES,
            fence=1,
        )

    @staticmethod
    def row(job_id: str, number: int, batch_id: str, **changes: Any) -> dict[str, Any]:
        values = job_values(draft(number), job_id=job_id, owner=ME, batch_id=batch_id, now=MADE_AT, clip_id=None)
        return values | {"content_key": f"content-{job_id}"} | changes

    @staticmethod
    def _attempt(job_id: str, state: JobState) -> dict[str, Any]:
        live = state is JobState.RUNNING
        return {
            "id": f"attempt-{job_id}", "owner": ME, "job_id": job_id, "batch_id": "free", "fence": 1, "epoch": 1,
            "renderer": "r", "card": "gpu0", "card_class": "c8", "started_at": MADE_AT, "lease_until": NOW + 9,
            "outcome": None if live else "lost", "ended_at": None if live else MADE_AT, "step": 0, "steps": 1,
            "predicted_bytes": 0, "measured_bytes": 0, "detail": "", "kind": "", "resumed_step": 0,
        }  # fmt: skip

    # -- what makes the events happen ---------------------------------------------------------------------------

    def jobs(self) -> dict[str, Job]:
        """The jobs of all cases, as the dispatcher reads them."""
        claims = [Claim(job=_named(case.id), **_LEASE) for case in self.cases]
        return {job.id: job for job in self.dispatch_store.current_jobs(claims)}

    def end(self, job_id: str, job: Job, ended: Any) -> Completion:
        claim = Claim(attempt_id=f"attempt-{job_id}", job=job, fence=1, renderer="r", card="gpu0", card_class="c8")
        return Completion(claim=claim, ended=ended, transition=after_attempt(job, ended, FLEET))

    def finish_first(self, ended: Any) -> None:
        """End the attempt of the job that all others wait for."""
        (job_id,) = (row["id"] for row in self._firsts())
        with self.database.write() as c:
            c.execute(sa.insert(attempts), [self._attempt(job_id, JobState.RUNNING)])
        (job,) = self.dispatch_store.current_jobs([Claim(job=_named(job_id), **_LEASE)])
        assert self.dispatch_store.finish_many([self.end(job_id, job, ended)]) == [True]

    def publish_equals(self, cases: Iterable[Case]) -> None:
        """Let jobs of the same content complete."""
        equals = {f"equal-{case.id}": self.content(case) for case in cases if case.facts.renderable}
        with self.database.write() as c:
            rows = [
                self.row(job_id, n, "others", state="running", content_key=key, fence=1)
                for n, (job_id, key) in enumerate(equals.items(), start=10)
            ]
            c.execute(sa.insert(jobs), rows)
            c.execute(sa.insert(attempts), [self._attempt(job_id, JobState.RUNNING) for job_id in equals])
        found = self.dispatch_store.current_jobs([Claim(job=_named(job_id), **_LEASE) for job_id in equals])
        ends = [self.end(job.id, job, Completed(objects=objects(job.id))) for job in found]
        assert all(self.dispatch_store.finish_many(ends))

    # -- what came of it ----------------------------------------------------------------------------------------

    def differing(self, expected: Callable[[JobFacts], tuple[object, ...]]) -> list[tuple[JobFacts, object, object]]:
        """Jobs that are not as expected: what they were, what they are, what they should be."""
        columns = (
            "state, reason, cancel_requested, hold_requested, attempts, releases, clip_id, problems, updated_at, picked"
        )
        query = sa.text(f"SELECT id, {columns} FROM jobs")
        with self.database.engine.connect() as c:
            rows = {row.id: row for row in c.execute(query)}
        found = []
        for case in self.cases:
            row = rows[case.id]
            now = (row.state, row.reason, bool(row.cancel_requested), row.hold_requested, row.attempts, row.releases)
            picked = None if row.picked is None else bool(row.picked)
            facts = (bool(row.clip_id), row.problems not in ("[]", []), row.updated_at, picked)
            wanted = expected(case.facts)
            if (*now, *facts) != wanted:
                found.append((case.facts, (*now, *facts), wanted))
        return found


_LEASE: dict[str, Any] = {"attempt_id": "", "fence": 1, "renderer": "r", "card": "gpu0", "card_class": "c8"}


def _named(job_id: str) -> Job:
    return Job(id=job_id, owner=ME, batch_id="free", number=0, name="", state=JobState.QUEUED, row={}, created_at=0)


def _seeded(number: int) -> ClipSpec:
    """A clip that another seed makes another of."""
    return spec("i2vgen-xl-tiny", sampler="ddim", seed=number)


def shows_clip(facts: JobFacts) -> bool:
    """Whether a job has a clip, finished or a draft that is looked at."""
    return facts.state is JobState.COMPLETED or (facts.state is JobState.HELD and facts.reason == HoldReason.REVIEW)


def _why(state: JobState) -> str | None:
    return Reason.ERROR.value if state is JobState.FAILED else None


def cases_of(event: Event) -> list[Case]:
    """One job of every combination at the moment of the event."""
    met = (facts for facts in JOBS if _can_meet(facts, event))
    known = dict.fromkeys(facts if event is Happening.PASSED_OVER else told(facts, event) for facts in met)
    return [Case(f"job{n}", n, facts) for n, facts in enumerate(known, start=100)]


def _can_meet(facts: JobFacts, event: Event) -> bool:
    if event in (Happening.BEFORE_UNKNOWN, *TOLD):
        return facts.before is not Before.NONE
    if event is Happening.PASSED_OVER:
        return facts.has_others and not facts.other_picked and facts.pick is not Pick.PICKED
    # What has no content is never published, by itself or by an equal.
    return facts.renderable or event is not Happening.PUBLISHED


def make_happen(farm: Farm, event: Event) -> None:
    """Let the event happen to every job, by what people, dispatchers and renderers call."""
    dispatch_store, cases = farm.dispatch_store, farm.cases
    running = [case for case in cases if case.facts.state is JobState.RUNNING]
    found = farm.jobs()
    match event:
        case Verb():
            for case in cases:
                try:
                    farm.commands.job(ME, case.id, event, priority=3)
                except RefusedError:
                    with pytest.raises(RefusedError):
                        step(case.facts, event)
                else:
                    step(case.facts, event)
        case Happening.PASSED_OVER:
            for case in cases:
                farm.commands.job(ME, f"other-{case.id}", Verb.APPROVE)
        case Happening.STARTED:
            dispatch_store.start([(found[case.id], card(case.id)) for case in cases], 10)
        case Happening.PUBLISHED:
            ended = [farm.end(case.id, found[case.id], Completed(objects=objects(case.id))) for case in running]
            assert all(dispatch_store.finish_many(ended))
            farm.publish_equals(case for case in cases if case not in running)
        case Happening.REQUEUED | Happening.FAILED:
            how = Lost() if event is Happening.REQUEUED else Invalid(detail="no picture", problem=PROBLEM)
            written = dispatch_store.finish_many([farm.end(case.id, found[case.id], how) for case in cases])
            assert [case for case, was in zip(cases, written, strict=True) if was] == running
        case Happening.REFUSED:
            for case in cases:
                dispatch_store.refuse(found[case.id], Reason.NO_CARD_FITS, PROBLEM)
        case Happening.MADE_AGAIN | Happening.FELL_SHORT:
            # What falls short is looked at by ids (`cluster.store.fidelity.holding`), within another transaction.
            with farm.database.write() as c:
                mine = among(jobs.c.id, [case.id for case in cases])
                c.execute(sa.update(jobs).where(mine, moves(event)).values(values_of(event, NOW)))
        case Happening.CLIP_LOST:
            farm.batch_store.forget_clips(ME, [farm.clip_id(case) for case in cases])
        case Happening.BEFORE_DONE:
            farm.finish_first(Completed(objects=objects()))
        case Happening.BEFORE_LOST:
            farm.finish_first(Invalid(detail="no picture"))
        case Happening.BEFORE_REVIVED:
            farm.commands.job(ME, "first-coming", Verb.RETRY)
        case Happening.BEFORE_UNKNOWN:
            for batch_id in ("free", "held"):
                farm.batch_store.seal(ME, batch_id)


#: Of a failed job, what only whoever let it fail knows.
REASON_OF = {Happening.FAILED: Reason.INVALID, Happening.REFUSED: Reason.NO_CARD_FITS}
#: Endings of an attempt count it, one way or the other.
COUNTED = {
    Happening.PUBLISHED: (TRIES + 1, TRIES),
    Happening.FAILED: (TRIES + 1, TRIES),
    Happening.REQUEUED: (TRIES, TRIES + 1),
}


def wanted(facts: JobFacts, event: Event, *, attempt_ends: bool = True) -> tuple[object, ...]:
    """What the table says a row holds afterwards; `attempt_ends`: where its attempt ends, that is counted."""
    try:
        after, does = step(facts, event)
    except RefusedError:
        after, does, changed = facts, (), False
    else:
        rule = rule_for(facts, event)
        changed = rule is not None and not rule.keeps
    reason = after.reason
    if changed and after.state is JobState.FAILED and reason is None:
        reason = REASON_OF[event]  # type: ignore[index]
    tries = (TRIES, TRIES)
    if Instruction.FRESH in does:
        tries = (0, 0)
    elif after.state is JobState.CANCELLED and event in COUNTED and changed and attempt_ends:
        tries = COUNTED[Happening.REQUEUED]
    elif changed and facts.state is JobState.RUNNING and attempt_ends:
        tries = COUNTED.get(event, tries)  # type: ignore[call-overload]
    return (
        after.state.value,
        str(reason) if reason else None,
        after.cancel_requested,
        after.hold_requested.value if after.hold_requested else None,
        *tries,
        # A clip is what completed jobs have and those in review, and a problem what failed ones.
        shows_clip(after),
        after.state is JobState.FAILED,
        NOW if changed else MADE_AT,
        PICKED[after.pick],
    )


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_does_to_every_job_what_the_table_says(database, event):
    # The rules of every combination are in `tests.unit.cluster.jobs.test_transitions`: here they are met by all that
    # people, dispatchers and renderers call, which takes minutes for each of them (`make slow`). What PostgreSQL may do
    # otherwise is in a statement's words, and they are the same for every job.
    each = 1 if "CLIPMILL_SLOW_TESTS" in os.environ or len(cases_of(event)) < 300 else 3
    cases = cases_of(event)[:: each if database.is_sqlite else 3 * each]
    farm = Farm(database, event, cases)
    assert len(farm.cases) > 20
    make_happen(farm, event)
    differ = farm.differing(lambda facts: wanted(facts, event))
    assert not differ, (len(differ), differ[:5])


@pytest.mark.parametrize(
    ("before", "meanwhile", "end", "state"),
    [
        ((), (Verb.CANCEL,), Lost(), ("cancelled", None)),
        ((), (Verb.PAUSE,), Lost(), ("held", "paused")),
        ((Verb.PAUSE,), (Verb.RESUME,), Lost(), ("queued", None)),
        ((Verb.PAUSE,), (Verb.HOLD,), Lost(), ("held", "approval")),
        ((Verb.PAUSE,), (Verb.CANCEL,), Lost(), ("cancelled", None)),
        ((), (Verb.CANCEL,), Invalid(detail="no picture"), ("cancelled", None)),
        ((Verb.HOLD,), (Verb.CANCEL,), Completed(objects=objects()), ("completed", None)),
    ],
)
def test_what_is_said_while_an_end_is_thought_out_is_obeyed(database, truth, before, meanwhile, end, state):
    """Whoever decides what follows an attempt has read the job earlier: the table is asked again as it is written."""
    farm = Farm(database, Happening.REQUEUED, [Case("job", 100, JobFacts(state=JobState.RUNNING))])
    for verb in before:
        farm.commands.job(ME, "job", verb)
    decided = farm.end("job", farm.jobs()["job"], end)
    for verb in meanwhile:
        farm.commands.job(ME, "job", verb)
    assert farm.dispatch_store.finish_many([decided]) == [True]
    row = truth.job("job")
    assert (row.state, row.reason, row.cancel_requested, row.hold_requested) == (*state, False, None)
    assert truth.tally("clips", outcome="cancelled") == (state[0] == "cancelled")


def _break(database: Database, event: Happening) -> None:
    """What somebody's hand in the tables leaves behind, that a repair mends by this event."""
    match event:
        case Happening.REQUEUED:
            statement = sa.delete(attempts)
        case Happening.CLIP_LOST:
            statement = (
                sa.update(jobs).where(~jobs.c.id.like("other-%"), jobs.c.clip_id.is_not(None)).values(clip_id=None)
            )
        case _:
            # A clip is there, and its job waits: nothing more need be broken.
            return
    with database.write() as c:
        c.execute(statement)


@pytest.mark.parametrize("event", [Happening.REQUEUED, Happening.CLIP_LOST, Happening.PUBLISHED])
def test_a_repair_goes_by_the_table(database, event):
    # What else is broken in such a job is mended by another event: a completed one without content, a clip that is
    # there, a job before it that has no clip.
    whole = {Happening.CLIP_LOST: JobState.RUNNING, Happening.REQUEUED: JobState.COMPLETED}
    cases = [
        case
        for case in cases_of(event)
        if case.facts.before is Before.NONE
        and case.facts.state is not whole.get(event, JobState.RUNNING)
        and case.facts.has_clip == (event is Happening.PUBLISHED)
        and not (event is Happening.REQUEUED and shows_clip(case.facts))
    ]
    farm = Farm(database, event, cases)
    _break(database, event)
    check(database, repair=True)
    assert len(cases) > 30
    differ = farm.differing(lambda facts: wanted(facts, event, attempt_ends=False))
    assert not differ, (len(differ), differ[:5])


@pytest.mark.parametrize(("cancelled", "rows_at_once"), [(False, 100_000), (True, 100_000), (True, 30)])
def test_a_batch_is_put_back_by_the_table_but_for_what_was_passed_over(database, cancelled, rows_at_once):
    """Beside `step`: what a retry of each job alone makes of it, unless another clip of its row was picked."""
    every = cases_of(Verb.RETRY)
    cases = [case for case in every if case.facts.has_others or case.number % 7 == 0]
    farm = Farm(database, Verb.RETRY, cases)
    farm.commands.rows_at_once = rows_at_once
    for batch_id in ("free", "held"):
        farm.commands.batch(ME, batch_id, Verb.RETRY, cancelled=cancelled)

    def expected(facts: JobFacts) -> tuple[object, ...]:
        meant = cancelled or facts.state is JobState.FAILED
        return as_it_was(facts) if facts.other_picked or not meant else wanted(facts, Verb.RETRY)

    assert sum(case.facts.other_picked and case.facts.state is JobState.CANCELLED for case in cases) > 3
    assert len(cases) > 100
    differ = farm.differing(expected)
    assert not differ, (len(differ), differ[:5])


def as_it_was(facts: JobFacts) -> tuple[object, ...]:
    """What a row holds that nothing has touched."""
    return (
        facts.state.value,
        str(facts.reason) if facts.reason else None,
        facts.cancel_requested,
        facts.hold_requested.value if facts.hold_requested else None,
        TRIES,
        TRIES,
        shows_clip(facts),
        facts.state is JobState.FAILED,
        MADE_AT,
        PICKED[facts.pick],
    )
