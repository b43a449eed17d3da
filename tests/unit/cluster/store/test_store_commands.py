"""Verbs, dependencies and limits on both stores, read back by plain queries."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.jobs.commands import FARM, CardVerb
from cluster.jobs.model import HoldReason, JobState, Limits, Outcome, Reason, StoredCheckpoint, stored_priority
from cluster.jobs.outcomes import Ended, Lost, OutOfMemory, Stopped
from cluster.jobs.transitions import RefusedError, Verb
from cluster.store import BatchStore, DispatchStore
from cluster.store.batches import Terms
from cluster.store.budgets import Meter
from cluster.store.commands import CommandStore
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError, NoSuchJobError
from cluster.store.schema import jobs
from tests.building import FLEET, bad_draft, card, claim_one, completed, draft, ended_with, spec

ME = "ann"


@pytest.fixture
def verbs(database) -> CommandStore:
    return CommandStore(database)


def hand_in(batch_store: BatchStore, *drafts, seal: bool = True, owner: str = ME, **options) -> str:
    batch_id, _ = batch_store.open_batch(owner, name="catalog", **options)
    batch_store.add(owner, batch_id, drafts)
    if seal:
        batch_store.seal(owner, batch_id)
    return batch_id


def by_name(batch_store: BatchStore, batch_id: str) -> dict[str, str]:
    return {
        job.name: f"{job.state.value}({job.reason})" if job.reason else job.state.value
        for job in batch_store.jobs(ME, batch_id)
    }


def id_of(batch_store: BatchStore, batch_id: str, name: str) -> str:
    (job,) = batch_store.jobs(ME, batch_id, name=name)
    return job.id


def end(dispatch_store: DispatchStore, claim, ended: Ended) -> None:
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def render(
    batch_store: BatchStore,
    dispatch_store: DispatchStore,
    batch_id: str,
    name: str,
    outcome: Outcome = Outcome.COMPLETED,
) -> None:
    (job,) = batch_store.jobs(ME, batch_id, name=name)
    while True:
        claim = claim_one(dispatch_store, job)
        end(dispatch_store, claim, completed(claim) if outcome is Outcome.COMPLETED else ended_with(outcome))
        (job,) = batch_store.jobs(ME, batch_id, name=name)
        if job.state is not JobState.QUEUED:
            return


def offered(dispatch_store: DispatchStore) -> list[str]:
    return sorted(job.name for job in dispatch_store.waiting(100))


# -- pause and resume ------------------------------------------------------------------------------------------


def test_pausing_a_batch_writes_one_row_however_many_it_has(batch_store, dispatch_store, verbs, truth):
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 301)))
    before = truth.rows(sa.select(jobs).order_by(jobs.c.id))
    verbs.batch(ME, batch_id, Verb.PAUSE)
    assert truth.rows(sa.select(jobs).order_by(jobs.c.id)) == before
    assert dispatch_store.waiting(1000) == []
    batch = batch_store.batch(ME, batch_id)
    assert (batch.status, batch.counts[JobState.HELD], batch.held_by) == ("paused", 300, {HoldReason.PAUSED: 300})
    assert by_name(batch_store, batch_id)["row7"] == "held(paused)"
    assert len(batch_store.jobs(ME, batch_id, state=JobState.HELD)) == 300
    assert batch_store.jobs(ME, batch_id, state=JobState.QUEUED) == []
    verbs.batch(ME, batch_id, Verb.RESUME)
    assert len(dispatch_store.waiting(1000)) == 300
    assert batch_store.batch(ME, batch_id).status == "running"


def test_a_job_whose_batch_is_paused_between_offer_and_claim_is_not_started(batch_store, dispatch_store, verbs, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    waiting = dispatch_store.waiting(10)
    verbs.batch(ME, batch_id, Verb.PAUSE)
    assert dispatch_store.start([(job, card(f"gpu{n}")) for n, job in enumerate(waiting)], 10) == []
    assert truth.attempts() == []


def test_running_clips_of_a_paused_batch_are_asked_to_leave_and_wait_with_their_checkpoint(
    batch_store, dispatch_store, verbs, truth
):
    batch_id = hand_in(batch_store, draft(1, spec=spec("i2vgen-xl-tiny", steps=50)))
    claim = claim_one(dispatch_store, dispatch_store.waiting(1)[0])
    assert dispatch_store.renew({claim.attempt_id: (3, 50)}, 10).preempted == {}
    verbs.batch(ME, batch_id, Verb.PAUSE)
    assert dispatch_store.renew({claim.attempt_id: (4, 50)}, 10).preempted == {claim.attempt_id: "pause"}
    end(dispatch_store, claim, Stopped(cause="pause", checkpoint=StoredCheckpoint("c/5", 5)))
    assert by_name(batch_store, batch_id) == {"row1": "held(paused)"}
    (job,) = batch_store.jobs(ME, batch_id)
    assert (job.step, job.attempts, job.releases) == (5, 0, 0)
    assert truth.tally("preemptions", outcome="pause") == 1
    verbs.batch(ME, batch_id, Verb.RESUME)
    assert claim_one(dispatch_store, dispatch_store.waiting(1)[0]).resumed_step == 5


def test_one_job_is_paused_while_the_others_go_on(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2), draft(3))
    first, second, _ = batch_store.jobs(ME, batch_id)
    claim = claim_one(dispatch_store, first)
    for job in (first, second):
        verbs.job(ME, job.id, Verb.PAUSE)
        verbs.job(ME, job.id, Verb.PAUSE)
    assert by_name(batch_store, batch_id) == {"row1": "running", "row2": "held(paused)", "row3": "queued"}
    assert dispatch_store.renew({claim.attempt_id: (0, 1)}, 10).preempted == {claim.attempt_id: "pause"}
    assert offered(dispatch_store) == ["row3"]
    end(dispatch_store, claim, Stopped(cause="pause"))
    assert by_name(batch_store, batch_id)["row1"] == "held(paused)"
    assert batch_store.job(ME, first.id).hold_requested is None
    verbs.job(ME, first.id, Verb.RESUME)
    assert offered(dispatch_store) == ["row1", "row3"]
    verbs.batch(ME, batch_id, Verb.RESUME)
    assert offered(dispatch_store) == ["row1", "row2", "row3"]


def test_a_pause_that_is_taken_back_in_time_leaves_the_clip_alone(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1))
    (job,) = batch_store.jobs(ME, batch_id)
    claim = claim_one(dispatch_store, job)
    verbs.job(ME, job.id, Verb.PAUSE)
    verbs.job(ME, job.id, Verb.RESUME)
    assert dispatch_store.renew({claim.attempt_id: (0, 1)}, 10).preempted == {}


def test_a_paused_queue_is_still_paused_after_everything_is_restarted(database, batch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2, not_before=5))
    verbs.batch(ME, batch_id, Verb.PAUSE)
    database.close()
    again = DispatchStore(database)
    again.take_office("next")
    assert again.waiting(10) == []
    assert BatchStore(database).batch(ME, batch_id).status == "paused"


def test_verbs_are_the_owner_s_only(batch_store, verbs, truth):
    batch_id = hand_in(batch_store, draft(1))
    (job,) = batch_store.jobs(ME, batch_id)
    before = truth.everything()
    for verb in Verb:
        with pytest.raises(NoSuchBatchError):
            verbs.batch("bob", batch_id, verb)
        with pytest.raises(NoSuchJobError):
            verbs.job("bob", job.id, verb)
    with pytest.raises(NoSuchJobError):
        batch_store.job("bob", job.id)
    assert truth.everything() == before


def test_a_refused_verb_changes_nothing(batch_store, dispatch_store, verbs, truth):
    batch_id = hand_in(batch_store, draft(1))
    render(batch_store, dispatch_store, batch_id, "row1")
    (job,) = batch_store.jobs(ME, batch_id)
    before = truth.everything()
    for verb in (Verb.PAUSE, Verb.RESUME, Verb.HOLD, Verb.APPROVE, Verb.RETRY, Verb.CANCEL, Verb.PRIORITIZE):
        with pytest.raises(RefusedError, match=f"cannot {verb} row1"):
            verbs.job(ME, job.id, verb)
    assert truth.everything() == before


def test_priority_changes_who_is_first(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2), draft(3))
    verbs.job(ME, id_of(batch_store, batch_id, "row3"), Verb.PRIORITIZE, priority=5)
    assert {job.name: job.priority for job in dispatch_store.waiting(10)} == {"row1": 0, "row2": 0, "row3": 5}
    verbs.batch(ME, batch_id, Verb.PRIORITIZE, priority=-2)
    assert {job.priority for job in dispatch_store.waiting(10)} == {-2}


def test_what_is_interactive_stays_so_whatever_its_priority(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2, priority=stored_priority(0, interactive=True)))
    verbs.batch(ME, batch_id, Verb.PRIORITIZE, priority=-1000)
    found = {job.name: (job.interactive, job.own_priority) for job in dispatch_store.waiting(10)}
    assert found == {"row1": (False, -1000), "row2": (True, -1000)}


def test_a_cancel_and_a_claim_at_once_leave_nothing_running_for_ever(database, batch_store, dispatch_store, verbs):
    """Whichever comes first: the job is cancelled, or runs with a request to stop."""
    for turn in range(10):
        batch_id = hand_in(batch_store, *(draft(n, f"{turn}-{n}") for n in range(1, 9)))
        waiting = [job for job in dispatch_store.waiting(100) if job.batch_id == batch_id]
        barrier = threading.Barrier(2)

        def cancel(batch_id: str = batch_id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            CommandStore(database).batch(ME, batch_id, Verb.CANCEL)

        thread = threading.Thread(target=cancel)
        thread.start()
        barrier.wait()
        claims = [c for n, job in enumerate(waiting) for c in dispatch_store.start([(job, card(f"gpu{n}"))], 10)]
        thread.join()
        found = {job.id: job for job in batch_store.jobs(ME, batch_id)}
        asked = dispatch_store.renew({}, 10).cancelled
        assert asked == {claim.attempt_id for claim in claims}
        for claim in claims:
            assert found.pop(claim.job.id).state is JobState.RUNNING
            end(dispatch_store, claim, Stopped())
        assert {job.state for job in found.values()} <= {JobState.CANCELLED}
        assert batch_store.batch(ME, batch_id).status == "cancelled"


# -- batches of more rows than one transaction takes ---------------------------------------------------------------


class InPieces(CommandStore):
    """Moves two rows at a time, and lets others do something before each piece."""

    def __init__(self, database, between=lambda: None) -> None:
        super().__init__(database)
        self.rows_at_once = 2
        self.between = between
        self.pieces = 0

    def _move_each_piece(self, *args):
        self.between()
        return super()._move_each_piece(*args)

    def _move_some(self, *args):
        self.pieces += 1
        return super()._move_some(*args)


def mixed(batch_store: BatchStore, dispatch_store: DispatchStore, mark: str) -> str:
    """Rows in many states: completed, failed, invalid, running, waiting, and one that waits for another."""
    rows = [draft(n, f"{mark}{n}") for n in range(1, 8)]
    batch_id = hand_in(batch_store, *rows, bad_draft(8), draft(9, f"{mark}9", after="row7"))
    render(batch_store, dispatch_store, batch_id, "row1")
    render(batch_store, dispatch_store, batch_id, "row2", Outcome.CRASHED)
    render(batch_store, dispatch_store, batch_id, "row5", Outcome.CRASHED)
    claim_one(dispatch_store, batch_store.jobs(ME, batch_id, name="row3")[0])
    return batch_id


@pytest.mark.parametrize(
    "said",
    [
        [(Verb.CANCEL, {})],
        [(Verb.RETRY, {})],
        [(Verb.CANCEL, {}), (Verb.RETRY, {"cancelled": True})],
        [(Verb.PRIORITIZE, {"priority": 7})],
        [(Verb.HOLD, {}), (Verb.APPROVE, {})],
        [(Verb.HOLD, {})],
    ],
)
def test_a_large_batch_ends_up_as_a_small_one_does(database, batch_store, dispatch_store, verbs, truth, said):
    whole, pieces = mixed(batch_store, dispatch_store, "whole"), mixed(batch_store, dispatch_store, "pieces")
    begun = truth.tally("clips", outcome="cancelled")
    for verb, options in said:
        verbs.batch(ME, whole, verb, **options)
    at_once = truth.tally("clips", outcome="cancelled") - begun
    in_pieces = InPieces(database)
    for verb, options in said:
        in_pieces.batch(ME, pieces, verb, **options)
    assert in_pieces.pieces >= 5, "two rows at a time"
    assert by_name(batch_store, pieces) == by_name(batch_store, whole)
    assert truth.tally("clips", outcome="cancelled") - begun == 2 * at_once
    asked = sa.select(jobs.c.name, jobs.c.priority, jobs.c.cancel_requested, jobs.c.hold_requested).order_by(
        jobs.c.name
    )
    with database.read() as c:
        told = [c.execute(asked.where(jobs.c.batch_id == batch_id)).all() for batch_id in (whole, pieces)]
    assert told[0] == told[1]
    assert batch_store.batch(ME, pieces).held == batch_store.batch(ME, whole).held


def test_nothing_of_a_large_batch_starts_while_it_is_cancelled(database, batch_store, dispatch_store):
    batch_id = hand_in(batch_store, *(draft(n, f"x{n}") for n in range(1, 8)))
    running = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[6])
    other = hand_in(batch_store, draft(1, "other"))
    seen = []

    def look() -> None:
        seen.append([job.batch_id for job in dispatch_store.waiting(100)])
        assert dispatch_store.renew({}, 10).cancelled == {running.attempt_id}, "what runs is told first"

    InPieces(database, look).batch(ME, batch_id, Verb.CANCEL)
    assert seen == [[other]], "and others wait for none of it"
    assert set(by_name(batch_store, batch_id).values()) == {"cancelled", "running"}
    assert batch_store.batch(ME, batch_id).held is None


def test_a_cancel_that_was_broken_off_is_said_again(database, batch_store, dispatch_store, truth):
    batch_id = hand_in(batch_store, *(draft(n, f"x{n}") for n in range(1, 8)))

    class Breaks(InPieces):
        def _move_some(self, *args):
            if self.pieces == 3:
                raise OSError("the process is gone")
            return super()._move_some(*args)

    with pytest.raises(OSError, match="gone"):
        Breaks(database).batch(ME, batch_id, Verb.CANCEL)
    assert 0 < list(by_name(batch_store, batch_id).values()).count("cancelled") < 7
    assert dispatch_store.waiting(100) == [], "nothing of it starts"
    InPieces(database).batch(ME, batch_id, Verb.CANCEL)
    assert set(by_name(batch_store, batch_id).values()) == {"cancelled"}
    assert truth.tally("clips", outcome="cancelled") == 7
    assert batch_store.batch(ME, batch_id).done


# -- retry -----------------------------------------------------------------------------------------------------


def test_retry_counts_from_zero_and_renders_what_failed_only(batch_store, dispatch_store, verbs, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2), bad_draft(3))
    render(batch_store, dispatch_store, batch_id, "row1")
    render(batch_store, dispatch_store, batch_id, "row2", Outcome.CRASHED)
    failed = truth.tally("clips", outcome="failed")
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert by_name(batch_store, batch_id) == {"row1": "completed", "row2": "queued", "row3": "failed(invalid)"}
    job = batch_store.jobs(ME, batch_id)[1]
    assert (job.attempts, job.releases, job.problems) == (0, 0, ())
    assert truth.tally("clips", outcome="failed") == failed == 1, "a counter never falls"
    with pytest.raises(RefusedError, match="row is at fault"):
        verbs.job(ME, batch_store.jobs(ME, batch_id)[2].id, Verb.RETRY)
    render(batch_store, dispatch_store, batch_id, "row2")
    assert by_name(batch_store, batch_id)["row2"] == "completed"


def test_retry_takes_cancelled_rows_where_that_is_said(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    render(batch_store, dispatch_store, batch_id, "row1", Outcome.CRASHED)
    verbs.batch(ME, batch_id, Verb.CANCEL)
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert by_name(batch_store, batch_id) == {"row1": "queued", "row2": "cancelled"}
    verbs.batch(ME, batch_id, Verb.RETRY, cancelled=True)
    assert by_name(batch_store, batch_id) == {"row1": "queued", "row2": "queued"}


def test_a_cancelled_clip_that_is_retried_runs_to_its_end(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    verbs.batch(ME, batch_id, Verb.CANCEL)
    end(dispatch_store, claim, Stopped())
    verbs.batch(ME, batch_id, Verb.RETRY, cancelled=True)
    again = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    assert dispatch_store.renew({again.attempt_id: (0, 1)}, 10).cancelled == frozenset()


@pytest.mark.parametrize(("outcome", "kept"), [(Outcome.LOST, True), (Outcome.CRASHED, False), (Outcome.ERROR, False)])
def test_retry_keeps_a_checkpoint_that_is_not_suspect(batch_store, dispatch_store, verbs, outcome, kept):
    batch_id = hand_in(batch_store, draft(1, spec=spec("i2vgen-xl-tiny", steps=50)))
    for turn in range(25):
        job = batch_store.jobs(ME, batch_id)[0]
        if job.state is JobState.FAILED:
            break
        claim = claim_one(dispatch_store, job)
        mine = StoredCheckpoint(f"checkpoints/{job.id}/{claim.attempt_id}/{turn}", 7)
        end(dispatch_store, claim, ended_with(outcome, checkpoint=mine))
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert (batch_store.jobs(ME, batch_id)[0].checkpoint is not None) is kept


def test_a_need_that_a_failure_raised_is_predicted_anew(batch_store, dispatch_store, verbs):
    clip = spec("i2vgen-xl", resolution_class="512p", width=512, height=512, frames=16, steps=50)
    from pipeline.memory.footprint import footprint

    predicted = footprint(clip).peak_bytes
    batch_id = hand_in(batch_store, draft(1, spec=clip, needs_bytes=predicted))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    end(dispatch_store, claim, OutOfMemory(usable_bytes=FLEET.largest_bytes, predicted_bytes=10**12))
    assert batch_store.jobs(ME, batch_id)[0].needs_bytes >= 10**12
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert batch_store.jobs(ME, batch_id)[0].needs_bytes == predicted


def test_a_row_whose_clip_exists_meanwhile_has_it_on_retry(batch_store, dispatch_store, verbs, truth):
    first = hand_in(batch_store, draft(1, "same"))
    render(batch_store, dispatch_store, first, "row1", Outcome.CRASHED)
    second = hand_in(batch_store, draft(1, "same"))
    render(batch_store, dispatch_store, second, "row1")
    verbs.batch(ME, first, Verb.RETRY)
    (job,) = batch_store.jobs(ME, first)
    assert (job.state, job.clip_id) == (JobState.COMPLETED, batch_store.jobs(ME, second)[0].clip_id)
    assert truth.tally("clips", outcome="shared") == 1


# -- approval --------------------------------------------------------------------------------------------------


def test_rows_behind_the_proof_wait_for_an_approval(batch_store, dispatch_store, verbs):
    batch_id = hand_in(
        batch_store, *(draft(n) for n in range(1, 5)), seal=False, terms=Terms(needs_approval=True, proof=2)
    )
    assert offered(dispatch_store) == ["row1", "row2"]
    with pytest.raises(RefusedError, match="clipmill approve"):
        verbs.job(ME, id_of(batch_store, batch_id, "row3"), Verb.RESUME)
    verbs.job(ME, id_of(batch_store, batch_id, "row3"), Verb.APPROVE)
    assert offered(dispatch_store) == ["row1", "row2", "row3"]
    verbs.batch(ME, batch_id, Verb.APPROVE)
    # Approved is the batch, with what comes after.
    batch_store.add(ME, batch_id, [draft(5)])
    batch_store.seal(ME, batch_id)
    assert offered(dispatch_store) == ["row1", "row2", "row3", "row4", "row5"]
    with pytest.raises(RefusedError, match="nothing of it waits"):
        verbs.batch(ME, batch_id, Verb.APPROVE)


def test_a_held_batch_says_so(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), terms=Terms(needs_approval=True))
    batch = batch_store.batch(ME, batch_id)
    assert (batch.status, batch.held_by) == ("held", {HoldReason.APPROVAL: 1})
    verbs.batch(ME, batch_id, Verb.CANCEL)
    assert batch_store.batch(ME, batch_id).status == "cancelled"


def test_hold_reaches_running_and_queued_rows(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    verbs.batch(ME, batch_id, Verb.HOLD)
    assert dispatch_store.renew({claim.attempt_id: (0, 1)}, 10).preempted == {claim.attempt_id: "hold"}
    end(dispatch_store, claim, Stopped(cause="hold"))
    assert by_name(batch_store, batch_id) == {"row1": "held(approval)", "row2": "held(approval)"}


# -- when ------------------------------------------------------------------------------------------------------


def test_a_row_starts_no_sooner_than_its_time(batch_store, dispatch_store, clock):
    hand_in(batch_store, draft(1, not_before=int(clock.now) + 60), draft(2, not_before=int(clock.now)), draft(3))
    assert offered(dispatch_store) == ["row2", "row3"]
    clock.now += 59
    assert offered(dispatch_store) == ["row2", "row3"]
    clock.now += 1
    assert offered(dispatch_store) == ["row1", "row2", "row3"]


def test_a_row_waits_for_the_one_it_names_wherever_that_stands(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1, after="row3"), draft(2, after="row1"), draft(3))
    assert by_name(batch_store, batch_id) == {"row1": "held(after)", "row2": "held(after)", "row3": "queued"}
    render(batch_store, dispatch_store, batch_id, "row3")
    assert by_name(batch_store, batch_id) == {"row1": "queued", "row2": "held(after)", "row3": "completed"}
    render(batch_store, dispatch_store, batch_id, "row1")
    assert by_name(batch_store, batch_id)["row2"] == "queued"
    assert id_of(batch_store, batch_id, "row3") == batch_store.jobs(ME, batch_id)[0].after


def test_a_row_may_wait_for_a_job_of_another_batch_but_not_of_another_owner(batch_store, dispatch_store, verbs):
    first = hand_in(batch_store, draft(1))
    (job,) = batch_store.jobs(ME, first)
    batch_id = hand_in(batch_store, draft(1, "other", after=job.id))
    foreign = hand_in(batch_store, draft(1, after=job.id), owner="bob")
    assert batch_store.jobs("bob", foreign)[0].problems[0].field == "after"
    assert by_name(batch_store, batch_id) == {"row1": "held(after)"}
    render(batch_store, dispatch_store, first, "row1")
    assert by_name(batch_store, batch_id) == {"row1": "queued"}


def test_a_row_whose_forerunner_is_done_waits_for_nothing(batch_store, dispatch_store):
    first = hand_in(batch_store, draft(1, "same"))
    render(batch_store, dispatch_store, first, "row1")
    batch_id = hand_in(batch_store, draft(1, "same"), draft(2, after="row1"))
    assert by_name(batch_store, batch_id) == {"row1": "completed", "row2": "queued"}


def test_what_waits_for_a_failure_fails_and_lives_again_with_it(batch_store, dispatch_store, verbs, truth):
    batch_id = hand_in(batch_store, draft(1), draft(2, after="row1"), draft(3, after="row2"), draft(4))
    render(batch_store, dispatch_store, batch_id, "row1", Outcome.CRASHED)
    lost = {"row2": "failed(after_failed)", "row3": "failed(after_failed)"}
    assert by_name(batch_store, batch_id) == {"row1": "failed(crashed)", **lost, "row4": "queued"}
    assert truth.tally("clips", outcome="failed") == 3
    second = batch_store.jobs(ME, batch_id)[1]
    assert "'row1'" in second.problems[0].message
    with pytest.raises(RefusedError, match="retry that one"):
        verbs.job(ME, second.id, Verb.RETRY)
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert by_name(batch_store, batch_id) == {
        "row1": "queued", "row2": "held(after)", "row3": "held(after)", "row4": "queued",
    }  # fmt: skip
    assert batch_store.jobs(ME, batch_id)[1].problems == ()
    for name in ("row1", "row2", "row3"):
        render(batch_store, dispatch_store, batch_id, name)
    assert by_name(batch_store, batch_id)["row3"] == "completed"


def test_cancelling_or_refusing_the_forerunner_is_passed_on(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2, after="row1"), draft(3), draft(4, after="row3"))
    first, _, third, _ = batch_store.jobs(ME, batch_id)
    verbs.job(ME, first.id, Verb.CANCEL)
    assert dispatch_store.refuse(third, Reason.NO_CARD_FITS, bad_draft(1).problems[0])
    assert by_name(batch_store, batch_id) == {
        "row1": "cancelled", "row2": "failed(after_failed)",
        "row3": "failed(no_card_fits)", "row4": "failed(after_failed)",
    }  # fmt: skip
    verbs.job(ME, first.id, Verb.RETRY)
    assert by_name(batch_store, batch_id)["row2"] == "held(after)"


def test_an_equal_clip_completes_the_forerunner_too(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, draft(1, "same"), draft(2, "same"), draft(3, after="row2"))
    render(batch_store, dispatch_store, batch_id, "row1")
    assert by_name(batch_store, batch_id) == {"row1": "completed", "row2": "completed", "row3": "queued"}


def test_a_paused_row_does_not_miss_the_end_of_its_forerunner(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2, after="row1"), draft(3, after="row1"))
    for name in ("row2", "row3"):
        verbs.job(ME, id_of(batch_store, batch_id, name), Verb.PAUSE)
    verbs.job(ME, id_of(batch_store, batch_id, "row3"), Verb.RESUME)
    assert by_name(batch_store, batch_id)["row3"] == "held(after)"
    render(batch_store, dispatch_store, batch_id, "row1")
    assert by_name(batch_store, batch_id) == {"row1": "completed", "row2": "held(paused)", "row3": "queued"}
    verbs.job(ME, id_of(batch_store, batch_id, "row2"), Verb.RESUME)
    assert by_name(batch_store, batch_id)["row2"] == "queued"


def test_circles_and_unknown_names_are_problems_of_their_rows(batch_store, dispatch_store, truth):
    batch_id = hand_in(
        batch_store,
        draft(1, after="row2"),
        draft(2, after="row1"),
        draft(3, after="row3"),
        draft(4, after="nothing"),
        draft(5, after="row4"),
        draft(6),
        draft(7, after="row1"),
        bad_draft(8),
        draft(9, after="row8"),
    )
    assert by_name(batch_store, batch_id) == {
        "row1": "failed(invalid)", "row2": "failed(invalid)", "row3": "failed(invalid)", "row4": "failed(invalid)",
        "row5": "failed(after_failed)", "row6": "queued", "row7": "failed(after_failed)", "row8": "failed(invalid)",
        "row9": "failed(after_failed)",
    }  # fmt: skip
    found = {job.name: job.problems[0].message for job in batch_store.jobs(ME, batch_id) if job.problems}
    assert found["row1"] == "rows wait for each other: row1 → row2 → row1"
    assert found["row3"] == "rows wait for each other: row3 → row3"
    assert "'nothing'" in found["row4"]
    assert truth.tally("clips", outcome="invalid") == 5
    assert truth.tally("clips", outcome="failed") == 3


def test_a_release_that_was_missed_is_made_up_for(batch_store, dispatch_store, verbs, database, clock):
    batch_id = hand_in(batch_store, draft(1), draft(2, after="row1"))
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.name == "row1").values(state="completed"))
    assert by_name(batch_store, batch_id)["row2"] == "held(after)"
    verbs.enforce()
    assert by_name(batch_store, batch_id)["row2"] == "queued"


# -- limits ----------------------------------------------------------------------------------------------------


def test_a_batch_stops_at_its_failures_and_finishes_what_runs(batch_store, dispatch_store, verbs):
    terms = Terms(limits=Limits(failures=2))
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 6)), bad_draft(6), terms=terms)
    render(batch_store, dispatch_store, batch_id, "row1", Outcome.CRASHED)
    running = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[2])
    assert verbs.enforce().stopped == {}
    render(batch_store, dispatch_store, batch_id, "row2", Outcome.ERROR)
    assert verbs.enforce().stopped == {batch_id: HoldReason.FAILURES}
    assert verbs.enforce().stopped == {}, "once"
    assert dispatch_store.waiting(10) == []
    assert dispatch_store.renew({running.attempt_id: (0, 1)}, 10).preempted == {}, "what runs is finished"
    end(dispatch_store, running, completed(running))
    batch = batch_store.batch(ME, batch_id)
    assert (batch.status, batch.held_by) == ("held", {HoldReason.FAILURES: 2})
    with pytest.raises(RefusedError, match="2 of its rows have failed and 2 may"):
        verbs.batch(ME, batch_id, Verb.RESUME)
    with pytest.raises(RefusedError):
        verbs.batch(ME, batch_id, Verb.RESUME, limits=Limits(failures=1))
    assert batch_store.batch(ME, batch_id).limits == Limits(failures=2), "a refused verb sets no limit"
    verbs.batch(ME, batch_id, Verb.RESUME, limits=Limits(failures=3))
    assert offered(dispatch_store) == ["row4", "row5"]


def test_a_batch_whose_failures_are_put_back_goes_on(batch_store, dispatch_store, verbs):
    batch_id = hand_in(batch_store, draft(1), draft(2), terms=Terms(limits=Limits(failures=1)))
    render(batch_store, dispatch_store, batch_id, "row1", Outcome.CRASHED)
    verbs.enforce()
    verbs.batch(ME, batch_id, Verb.RETRY)
    verbs.batch(ME, batch_id, Verb.RESUME)
    assert offered(dispatch_store) == ["row1", "row2"]


def test_gpu_time_is_counted_over_all_attempts_running_ones_too(batch_store, dispatch_store, verbs, clock):
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 6)), terms=Terms(limits=Limits(gpu_seconds=100)))
    other = hand_in(batch_store, draft(1, "other"), terms=Terms(limits=Limits(gpu_seconds=1000)))
    first = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    clock.now += 40
    end(dispatch_store, first, Lost())
    # Long after, so that the first attempt is added up already.
    clock.now += 1000
    assert verbs.enforce().stopped == {}
    second = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[1])
    clock.now += 59
    assert verbs.enforce().stopped == {}
    clock.now += 1
    assert verbs.enforce().stopped == {batch_id: HoldReason.BUDGET}
    assert batch_store.batch(ME, other).held is None
    end(dispatch_store, second, completed(second))
    with pytest.raises(RefusedError, match=r"0\.03 GPU hours"):
        verbs.batch(ME, batch_id, Verb.RESUME)
    verbs.batch(ME, batch_id, Verb.RESUME, limits=Limits(gpu_seconds=101))
    assert batch_store.batch(ME, batch_id).status == "running"


def test_money_is_counted_by_card_kind(batch_store, dispatch_store, verbs, clock):
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 5)), terms=Terms(limits=Limits(cost=1.5)))
    prices = {"cheap": 0.5, "dear": 4.0}
    # 0.125, 1.125, then 1.458 and, a minute later, 1.525.
    for name, kind, seconds in (("row1", "cheap", 900), ("row2", "dear", 900), ("row3", "dear", 300)):
        (job,) = batch_store.jobs(ME, batch_id, name=name)
        (claim,) = dispatch_store.start([(job, card("gpu0").model_copy(update={"kind": kind}))], 10)
        clock.now += seconds
        assert verbs.enforce(prices.__getitem__).stopped == {}
        if name != "row3":
            end(dispatch_store, claim, completed(claim))
    clock.now += 60
    assert verbs.enforce(prices.__getitem__).stopped == {batch_id: HoldReason.BUDGET}


def test_what_was_settled_is_not_counted_twice(batch_store, dispatch_store, database, clock, truth):
    meter = Meter()
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 30)), terms=Terms(limits=Limits(gpu_seconds=10**9)))
    for job in batch_store.jobs(ME, batch_id)[:25]:
        claim = claim_one(dispatch_store, job)
        clock.now += 17
        end(dispatch_store, claim, completed(claim))
        with database.read() as c:
            used = meter.used(c, batch_id, int(clock.now), lambda _kind: 1.0)
        by_hand = sum(a.ended_at - a.started_at for a in truth.attempts())
        assert used.gpu_seconds == by_hand


def test_looking_costs_no_write_where_nothing_has_changed(batch_store, verbs, truth, database):
    hand_in(batch_store, draft(1), terms=Terms(limits=Limits(failures=1)))
    verbs.enforce()
    before = truth.everything()
    writes = []
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda *a: writes.append(a[2]) if "UPDATE" in a[2] else None
    )
    verbs.enforce()
    assert writes == []
    assert truth.everything() == before


# -- cards -----------------------------------------------------------------------------------------------------


def test_orders_stand_until_they_end_or_are_released(verbs, clock):
    verbs.order("gpu0", CardVerb.LOCK, reason="fan", by="ann")
    verbs.order("gpu1", CardVerb.DRAIN, by="ann", for_s=60)
    verbs.order("gpu2", CardVerb.QUARANTINE, by=FARM, reason="Xid", for_s=30)
    seen = verbs.enforce()
    assert seen.closed == {"gpu0", "gpu1", "gpu2"}
    assert seen.clearing == {"gpu1"}
    assert seen.orders["gpu0"].reason == "fan"
    # A farm's own quarantine neither replaces nor shortens what a person said.
    verbs.order("gpu0", CardVerb.QUARANTINE, by=FARM, for_s=1)
    clock.now += 30
    assert verbs.enforce().closed == {"gpu0", "gpu1"}
    clock.now += 30
    assert verbs.enforce().closed == {"gpu0"}
    verbs.order("gpu0", CardVerb.RELEASE)
    assert verbs.enforce().closed == frozenset()
    with pytest.raises(RefusedError, match="free already"):
        verbs.order("gpu0", CardVerb.RELEASE)


# -- ids -------------------------------------------------------------------------------------------------------


def test_ids_may_be_abbreviated_where_no_other_begins_so(batch_store):
    first, second = hand_in(batch_store, draft(1)), hand_in(batch_store, draft(1))
    (job,) = batch_store.jobs(ME, first)
    assert batch_store.find(ME, first) == first
    assert batch_store.find(ME, job.id) == job.id
    differs = next(n for n in range(len(first)) if first[n] != second[n])
    assert batch_store.find(ME, first[: differs + 1]) == first
    assert batch_store.find(ME, job.id[:-1]) == job.id
    assert batch_store.find(ME, job.id.removeprefix("video_")) == job.id
    with pytest.raises(AmbiguousIdError, match=r"^2 ids begin with .* write more of it; `clipmill status`"):
        batch_store.find(ME, first[:differs])
    for short in ("b", "batc", "batch", "batch_"):
        with pytest.raises(AmbiguousIdError, match=f"^2 ids begin with '{short}'"):
            batch_store.find(ME, short)
    for short in ("v", "vid", "video", "video_"):
        with pytest.raises(AmbiguousIdError):
            batch_store.find(ME, short)
    for unknown in ("batch_zz", "zz", "%", "batch_%", "video_", ""):
        with pytest.raises((NoSuchBatchError, NoSuchJobError, AmbiguousIdError)):
            batch_store.find(ME, unknown)
    with pytest.raises(NoSuchBatchError):
        batch_store.find("bob", first)


def test_changes_are_told_in_their_order_and_pages_lose_none(batch_store, dispatch_store, verbs, clock):
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 8)))
    began = int(clock.now)
    clock.now += 1
    verbs.batch(ME, batch_id, Verb.PRIORITIZE, priority=1)
    assert [job.number for job in batch_store.changed(ME, batch_id, began + 1, 100)] == list(range(1, 8))
    # A page that is full up has all of its last second.
    assert len(batch_store.changed(ME, batch_id, began, 3)) == 7
    clock.now += 1
    verbs.job(ME, id_of(batch_store, batch_id, "row5"), Verb.PRIORITIZE, priority=2)
    assert [job.number for job in batch_store.changed(ME, batch_id, began + 2, 100)] == [5]
