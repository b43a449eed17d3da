"""The table of verbs: every state of a job against every event, without a store and, row by row, within one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch.retry import after_attempt
from cluster.fleet.quarantine import Quarantine
from cluster.jobs.commands import FARM, CardOrder, CardVerb, Used, for_batch, give_order, reached
from cluster.jobs.model import Batch, BatchCounts, HoldReason, Job, JobState, Limits, Outcome, Pick, Reason
from cluster.jobs.outcomes import Crashed, Errored, Lost, Stopped
from cluster.jobs.transitions import (
    RULES,
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
from cluster.store.rows import job_values, objects_value
from cluster.store.schema import batches, clips, jobs
from cluster.store.transitions import PICKED, moves, values_of
from tests.building import FLEET, Clock, draft, ended_with, objects, spec
from tests.unit.cluster.jobs.facts import EVENTS, JOBS, TOLD, told

SHORT = (Happening.MADE_AGAIN, Happening.FELL_SHORT)


def named(facts: JobFacts, event: Event) -> JobFacts:
    """With the reason that only whoever ended the attempt knows."""
    by_itself = event in (Happening.FAILED, Happening.REFUSED) and facts.state is JobState.FAILED
    return replace(facts, reason=Reason.ERROR) if by_itself else facts


def test_there_are_jobs_of_every_state():
    assert {facts.state for facts in JOBS} == set(JobState)
    assert len(JOBS) > 500


@pytest.mark.parametrize("event", EVENTS)
def test_every_job_refuses_or_goes_where_a_job_may_be(event):
    refusals: set[str] = set()
    for facts in JOBS:
        before = told(facts, event)
        try:
            after, _ = step(before, event, "row SKU-1")
        except RefusedError as refused:
            refusals.add(str(refused))
        else:
            assert named(after, event).legal, (before, event, after)
    for refusal in refusals:
        begin = f"cannot {event} row SKU-1: "
        assert refusal.startswith(begin)
        assert len(refusal.removeprefix(begin)) > (20 if event in tuple(Verb) else 5), "what is the matter, what to do"


@pytest.mark.parametrize("event", EVENTS)
def test_what_has_ended_leaves_where_it_is_asked_for_again_only(event):
    # A clip that falls short of what its row asks for is none: nobody outside sees its job completed.
    brings_back = {Verb.RETRY, Verb.REROLL, Happening.CLIP_LOST, *SHORT}
    for facts in (f for f in JOBS if f.state.final):
        try:
            after, does = step(told(facts, event), event)
        except RefusedError:
            continue
        if event is Happening.BEFORE_REVIVED and facts.reason == Reason.AFTER_FAILED:
            continue
        assert after.state is facts.state or event in brings_back, (facts, event, after)
        if event is Verb.RETRY and after.state is not JobState.COMPLETED:
            assert Instruction.FRESH in does


def test_a_cancel_always_ends():
    for facts in (f for f in JOBS if not f.state.final):
        after, does = step(facts, Verb.CANCEL)
        if after.state is JobState.CANCELLED:
            assert (after.cancel_requested, after.hold_requested) == (False, None)
            continue
        assert after.state is JobState.RUNNING
        assert Instruction.STOP in does
        for ending in (Happening.REQUEUED, Happening.FAILED):
            assert step(after, ending)[0].state is JobState.CANCELLED
        # A clip that is there is published all the same; nobody would look at a draft any more.
        ends = JobState.CANCELLED if facts.draft else JobState.COMPLETED
        assert step(after, Happening.PUBLISHED)[0].state is ends


@pytest.mark.parametrize(
    ("stop", "go", "why"), [(Verb.PAUSE, Verb.RESUME, "paused"), (Verb.HOLD, Verb.APPROVE, "approval")]
)
def test_what_was_stopped_and_let_go_is_as_before(stop, go, why):
    for facts in (f for f in JOBS if f.state in (JobState.QUEUED, JobState.RUNNING)):
        if facts.cancel_requested or facts.hold_requested:
            continue
        # A queued job that waits for nothing comes back as it was.
        clean = replace(facts, before=Before.NONE)
        stopped, does = step(clean, stop)
        if facts.state is JobState.RUNNING:
            assert does == (Instruction.PREEMPT,)
            held, _ = step(stopped, Happening.REQUEUED)
            assert (held.state, held.reason) == (JobState.HELD, why)
        else:
            assert (stopped.state, stopped.reason) == (JobState.HELD, why)
        assert step(stopped, go)[0] == clean


def test_a_job_let_go_waits_for_the_one_before_it():
    for verb, why in ((Verb.RESUME, "paused"), (Verb.APPROVE, "approval")):
        facts = JobFacts(state=JobState.HELD, reason=why, before=Before.COMING)
        after, _ = step(facts, verb)
        assert (after.state, after.reason) == (JobState.HELD, HoldReason.AFTER)
        assert step(replace(after, before=Before.DONE), Happening.BEFORE_DONE)[0].state is JobState.QUEUED


@given(st.lists(st.sampled_from(EVENTS), max_size=40), st.sampled_from([f for f in JOBS if f.state is JobState.QUEUED]))
def test_any_story_stays_legal(story, facts):
    ended = False
    for event in story:
        if event in TOLD and facts.before is Before.NONE:
            continue
        was = facts
        facts = told(facts, event)
        try:
            facts, _ = step(facts, event)
        except RefusedError:
            facts = was
            continue
        facts = named(facts, event)
        if event in TOLD and not facts.legal:
            raise AssertionError((was, event, facts))
        if ended and event not in (Verb.RETRY, Verb.REROLL, Happening.CLIP_LOST, Happening.BEFORE_REVIVED, *SHORT):
            assert facts.state.final
        ended = facts.state.final


def test_every_event_has_rules_that_can_all_be_reached():
    for event, rules in RULES.items():
        reachable = set()
        for facts in JOBS:
            facts = told(facts, event)
            for n, rule in enumerate(rules):
                same = rule.state is facts.state and rule.reason in (None, facts.reason)
                if same and (rule.when is None or _holds(rule.when, facts)):
                    reachable.add(n)
                    break
        assert reachable == set(range(len(rules))), (event, [rules[n] for n in set(range(len(rules))) - reachable])


def _holds(guard, facts: JobFacts) -> bool:
    return {
        "has_clip": facts.has_clip and not facts.draft,
        "has_draft": facts.has_clip and facts.draft,
        "draft": facts.draft,
        "cancelled_draft": facts.draft and facts.cancel_requested,
        "undecided": facts.has_others and facts.pick is not Pick.PICKED and not facts.other_picked,
        "picked": facts.has_others and facts.pick is Pick.PICKED,
        "other_picked": facts.other_picked,
        "let_go": facts.has_others and facts.pick is Pick.LET_GO,
        "unrenderable": not facts.renderable,
        "before_coming": facts.before is Before.COMING,
        "before_lost": facts.before is Before.LOST,
        "cancelling": facts.cancel_requested,
        "pausing": facts.hold_requested == "paused",
        "holding": facts.hold_requested == "approval",
        "batch_held": facts.batch_held,
    }[guard.value]


# -- the same in a store ---------------------------------------------------------------------------------------


# Of jobs of one content only one may run: what a claim does is in `tests.unit.cluster.store.test_table`.
@pytest.mark.parametrize("event", [event for event in EVENTS if event is not Happening.STARTED])
def test_a_store_does_to_every_job_what_the_table_says(database, event):
    wanted: dict[str, tuple[object, ...]] = {}
    with database.write() as c:
        for name, held in (("free", None), ("held", "paused")):
            common = {"owner": "ann", "name": name, "source": "", "created_at": 1, "sealed": True}
            c.execute(sa.insert(batches).values(id=name, held=held, **common))
        made = {"owner": "ann", "attempt_id": "a", "objects": objects_value(objects()), "created_at": 1}
        c.execute(sa.insert(clips).values(id="clip", content_key="there", **made))
        rows = [_row(f"first-{state}", n, state=state) for n, state in enumerate(("queued", "completed", "failed"), 1)]
        first = {Before.COMING: "first-queued", Before.DONE: "first-completed", Before.LOST: "first-failed"}
        seen: set[tuple[bool, str | None]] = set()
        for n, facts in enumerate(JOBS, start=100):
            facts = told(facts, event)
            key = f"key{n}"
            if facts.has_clip:
                # Only one job of a content may run.
                if facts.state is JobState.RUNNING:
                    continue
                key = "there"
            rows.append(
                _row(
                    f"job{n}",
                    n,
                    state=facts.state.value,
                    reason=facts.reason,
                    cancel_requested=facts.cancel_requested,
                    hold_requested=facts.hold_requested.value if facts.hold_requested else None,
                    after=first.get(facts.before),
                    content_key=key if facts.renderable else None,
                    batch_id="held" if facts.batch_held else "free",
                    attempts=2,
                    rounds_left=int(facts.draft),
                    row_number=n if facts.has_others else None,
                    picked=PICKED[facts.pick],
                )
            )
            if facts.other_picked:
                batch_id = rows[-1]["batch_id"]
                other = {"state": "completed", "row_number": n, "picked": True, "batch_id": batch_id}
                rows.append(_row(f"other{n}", 100_000 + n, **other))
            wanted[f"job{n}"] = _expected(facts, event)
            seen.add((facts.renderable, facts.reason))
        c.execute(sa.insert(jobs), rows)
        c.execute(sa.update(jobs).where(moves(event), jobs.c.id.like("job%")).values(values_of(event, 9)))
    assert len(wanted) > 400
    columns = (
        *(jobs.c.state, jobs.c.reason, jobs.c.cancel_requested, jobs.c.hold_requested, jobs.c.attempts),
        jobs.c.picked,
    )
    with database.read() as c:
        query = sa.select(jobs.c.id, *columns, jobs.c.updated_at).where(jobs.c.id.like("job%"))
        found = {row[0]: tuple(row[1:]) for row in c.execute(query)}
    differ = {job: (found[job], expected) for job, expected in wanted.items() if found[job] != expected}
    assert not differ, list(differ.items())[:3]


def _row(job_id: str, number: int, *, batch_id: str = "free", content_key: str | None = "k", **changes):
    values = job_values(draft(number), job_id=job_id, owner="ann", batch_id=batch_id, now=5, clip_id=None)
    return values | {"content_key": f"{content_key}-{job_id}" if content_key == "k" else content_key} | changes


def _expected(facts: JobFacts, event: Event) -> tuple[object, ...]:
    try:
        after, does = step(facts, event)
    except RefusedError:
        after, does, changed = facts, (), False
    else:
        rule = rule_for(facts, event)
        changed = rule is not None and not rule.keeps
    asked = after.hold_requested.value if after.hold_requested else None
    reason = str(after.reason) if after.reason else None
    tries = 0 if Instruction.FRESH in does else 2
    return (after.state.value, reason, after.cancel_requested, asked, tries, PICKED[after.pick], 9 if changed else 5)


# -- attempts --------------------------------------------------------------------------------------------------


def job(**changes) -> Job:
    values = {
        "id": "j", "owner": "ann", "batch_id": "b", "number": 1, "name": "SKU-1", "state": JobState.RUNNING, "row": {},
        "created_at": 1, "spec": spec(), "attempts": 0, "releases": 0,
    }  # fmt: skip
    return Job(**(values | changes))


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_an_attempt_that_ends_obeys_what_was_asked_meanwhile(outcome):
    ended = ended_with(outcome, usable_bytes=1)
    plain = after_attempt(job(), ended, FLEET)
    paused = after_attempt(job(hold_requested=HoldReason.PAUSED), ended, FLEET)
    cancelled = after_attempt(job(hold_requested=HoldReason.PAUSED, cancel_requested=True), ended, FLEET)
    assert cancelled.state is JobState.CANCELLED
    if plain.state is JobState.QUEUED:
        assert (paused.state, paused.reason) == (JobState.HELD, HoldReason.PAUSED)
        assert paused.keeps_checkpoint == plain.keeps_checkpoint
        assert paused.costs_attempt == plain.costs_attempt
    else:
        assert paused == plain


def test_a_job_may_be_paused_any_number_of_times():
    ended = Stopped(cause="pause")
    transition = after_attempt(job(releases=24, hold_requested=HoldReason.PAUSED), ended, FLEET)
    assert (transition.state, transition.costs_release) == (JobState.HELD, False)
    # A lost node counts all the same.
    assert after_attempt(job(releases=24), Lost(), FLEET).state is JobState.FAILED


# -- batches ---------------------------------------------------------------------------------------------------


def batch(counts: dict[JobState, int], **changes) -> Batch:
    values = {
        "id": "batch_1", "owner": "ann", "name": "n", "created_at": 1, "sealed": True, "source": "",
        "attended_until": None, "counts": BatchCounts(by_state=counts), "attempts": 0,
    }  # fmt: skip
    return Batch(**(values | changes))


QUEUED = {JobState.QUEUED: 3}
ENDED = {JobState.COMPLETED: 1, JobState.FAILED: 1, JobState.CANCELLED: 1}


def test_pausing_a_batch_is_a_flag_and_touches_no_row():
    order = for_batch(batch(QUEUED), Verb.PAUSE)
    assert (order.held, order.rows) == (HoldReason.PAUSED, False)
    assert for_batch(batch(QUEUED, held=HoldReason.PAUSED), Verb.RESUME).held is None


@pytest.mark.parametrize("verb", [Verb.PAUSE, Verb.RESUME, Verb.HOLD, Verb.APPROVE, Verb.PRIORITIZE])
def test_nothing_is_said_of_a_batch_that_has_ended(verb):
    with pytest.raises(RefusedError, match=r"every row of it has ended"):
        for_batch(batch(ENDED), verb)


def test_a_batch_beyond_its_limit_goes_on_with_a_higher_one_only():
    stopped = batch(QUEUED, held=HoldReason.FAILURES, limits=Limits(failures=2))
    with pytest.raises(RefusedError, match="raise the limit with --max-failures"):
        for_batch(stopped, Verb.RESUME, Used(failures=2))
    assert for_batch(replace(stopped, limits=Limits(failures=3)), Verb.RESUME, Used(failures=2)).held is None
    spent = replace(stopped, held=HoldReason.BUDGET, limits=Limits(gpu_seconds=3600))
    with pytest.raises(RefusedError, match=r"1\.00 GPU hours.*--max-gpu-hours"):
        for_batch(spent, Verb.RESUME, Used(gpu_seconds=3600))
    with pytest.raises(RefusedError, match="stopped by itself"):
        for_batch(spent, Verb.PAUSE)


def test_retry_needs_a_row_to_retry():
    assert for_batch(batch(ENDED), Verb.RETRY).rows
    with pytest.raises(RefusedError, match="with --cancelled"):
        for_batch(batch({JobState.CANCELLED: 2}), Verb.RETRY)
    assert for_batch(batch({JobState.CANCELLED: 2}), Verb.RETRY, cancelled=True).rows


def test_limits_are_reached_not_before():
    limits = Limits(failures=2, gpu_seconds=100, cost=5)
    assert reached(Used(failures=1, gpu_seconds=99.9, cost=4.99), limits) is None
    assert reached(Used(failures=2), limits) is HoldReason.FAILURES
    assert reached(Used(gpu_seconds=100), limits) is HoldReason.BUDGET
    assert reached(Used(cost=5), limits) is HoldReason.BUDGET
    assert reached(Used(failures=10**6, gpu_seconds=1e9, cost=1e9), Limits()) is None


# -- cards -----------------------------------------------------------------------------------------------------


def order(kind: CardVerb, by: str = "ann", until: int | None = None) -> CardOrder:
    return CardOrder(card="gpu0", kind=kind, reason="fan", given_by=by, since=1, until=until)


def test_orders_end_by_themselves_where_they_say_so():
    assert order(CardVerb.LOCK).stands(10**9)
    assert order(CardVerb.LOCK, until=5).stands(4)
    assert not order(CardVerb.LOCK, until=5).stands(5)
    assert [order(kind).clears for kind in (CardVerb.LOCK, CardVerb.DRAIN, CardVerb.QUARANTINE)] == [False, True, False]


def test_the_farm_does_not_overrule_people():
    mine, its = order(CardVerb.DRAIN), order(CardVerb.QUARANTINE, by=FARM, until=9)
    assert give_order("gpu0", mine, its) is mine
    assert give_order("gpu0", its, mine) is mine
    assert give_order("gpu0", None, its) is its
    assert give_order("gpu0", its, None) is None
    with pytest.raises(RefusedError, match="free already"):
        give_order("gpu0", None, None)


CRASHED, FINE = Crashed(detail="Xid 79"), ended_with(Outcome.COMPLETED)


def test_a_card_that_breaks_renderers_is_set_aside():
    clock = Clock(0)
    quarantine = Quarantine(clock, faults=3, within_s=100)
    assert [quarantine.ended("gpu0", job, CRASHED) for job in ("a", "b", "a", "b")] == [None] * 4, "once a job"
    assert quarantine.ended("gpu1", "c", CRASHED) is None
    assert "Xid 79" in quarantine.ended("gpu0", "c", CRASHED)
    assert quarantine.ended("gpu0", "d", CRASHED) is None, "counted from the beginning"


def test_a_card_is_not_set_aside_for_old_faults_other_causes_or_after_a_success():
    clock = Clock(0)
    quarantine = Quarantine(clock, faults=2, within_s=100)
    assert quarantine.ended("gpu0", "a", CRASHED) is None
    clock.now = 101
    assert quarantine.ended("gpu0", "b", CRASHED) is None
    assert quarantine.ended("gpu0", "c", FINE) is None
    assert quarantine.ended("gpu0", "d", CRASHED) is None
    for outcome in (Outcome.OOM, Outcome.TOO_BIG, Outcome.LOST, Outcome.STOPPED, Outcome.INVALID, Outcome.ERROR):
        assert quarantine.ended("gpu0", f"job-{outcome}", ended_with(outcome)) is None
    assert quarantine.ended("gpu0", "e", Errored(sticky=True)) is not None
