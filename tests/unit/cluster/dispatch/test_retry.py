from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.dispatch.retry import after_attempt, no_card_fits, story
from cluster.fleet.cards import Fleet
from cluster.jobs.model import MAX_ATTEMPTS, MAX_RELEASES, Job, JobState, Outcome, Reason
from cluster.jobs.outcomes import Crashed, Ended, Errored, Invalid, OutOfMemory, Overflow, TooBig
from pipeline.units import GIB
from tests.building import FLEET, ended_with, spec

LARGEST = max(FLEET.usable_bytes.values())
MEMORY = (Outcome.OOM, Outcome.TOO_BIG)
LOSSES = (Outcome.LOST, Outcome.STOPPED)

sizes = st.one_of(st.integers(0, 30 * GIB), st.sampled_from([0, 7 * GIB, 7 * GIB + 1, LARGEST - 1, LARGEST]))
overflows = st.builds(
    Overflow,
    stage=st.sampled_from(["encode", "denoise", "decode"]),
    layout=st.sampled_from(["batched", "split"]),
    step=st.integers(0, 50),
    predicted_bytes=sizes,
    measured_bytes=sizes,
    usable_bytes=sizes,
    card=st.sampled_from(["gpu0", "gpu1"]),
)
endings = st.builds(
    ended_with,
    outcome=st.sampled_from(Outcome),
    detail=st.text(max_size=20),
    usable_bytes=sizes,
    predicted_bytes=sizes,
    foreign_bytes=st.just(0) | sizes,
    sticky=st.booleans(),
    overflows=st.lists(overflows, max_size=3).map(tuple),
)


def job(**changes) -> Job:
    values = {
        "id": "video_1",
        "owner": "local",
        "batch_id": "batch_1",
        "number": 1,
        "name": "a",
        "state": JobState.RUNNING,
        "row": {},
        "created_at": 0,
        "spec": spec(),
    }
    return Job(**(values | changes))


jobs = st.builds(
    job,
    needs_bytes=sizes,
    attempts=st.integers(0, MAX_ATTEMPTS - 1),
    releases=st.integers(0, MAX_RELEASES - 1),
    cancel_requested=st.booleans(),
)


def apply(before: Job, ended: Ended, fleet: Fleet = FLEET) -> Job:
    """The job as the store keeps it after the transition."""
    moved = after_attempt(before, ended, fleet)
    return replace(
        before,
        state=moved.state,
        attempts=before.attempts + moved.costs_attempt,
        releases=before.releases + (not moved.costs_attempt),
        needs_bytes=before.needs_bytes if moved.needs_bytes is None else moved.needs_bytes,
    )


@given(st.data(), st.lists(st.integers(1, 40 * GIB), max_size=4))
def test_whatever_happens_a_job_ends(data, sizes_of_fleet):
    fleet = Fleet(usable_bytes={f"k{i}": size for i, size in enumerate(sizes_of_fleet)})
    now, made = job(), 0
    # The worst case for every counter: its last value but one, each time.
    while not now.state.final:
        made += 1
        assert made <= MAX_ATTEMPTS + MAX_RELEASES, "this job would never end"
        now = apply(now, data.draw(endings), fleet)
    assert now.state in (JobState.COMPLETED, JobState.FAILED)


def test_memory_that_shrinks_under_a_running_farm_ends_too():
    """A card that promises 7 GiB and has 3 when the clip arrives, again and again."""
    now = job(needs_bytes=5 * GIB)
    for _ in range(MAX_RELEASES):
        before = now
        now = apply(now, TooBig(usable_bytes=3 * GIB, predicted_bytes=5 * GIB))
        assert now.needs_bytes > before.needs_bytes
        if now.state.final:
            break
    assert now.state is JobState.FAILED
    assert now.needs_bytes < 5 * GIB + 100, "it must not be sent to ever larger cards for another's fault"


@given(jobs, st.sampled_from(MEMORY), sizes, sizes)
def test_what_was_too_small_is_never_tried_again(before, outcome, usable, predicted):
    assume(not before.cancel_requested)
    moved = after_attempt(before, ended_with(outcome, usable_bytes=usable, predicted_bytes=predicted), FLEET)
    assert moved.needs_bytes > before.needs_bytes
    assert moved.needs_bytes > usable
    assert moved.needs_bytes >= predicted
    if moved.state is JobState.QUEUED:
        assert moved.needs_bytes <= LARGEST
        assert not moved.costs_attempt
    else:
        assert moved.state is JobState.FAILED
        assert moved.reason is (Reason.OUT_OF_MEMORY if outcome is Outcome.OOM else Reason.NO_CARD_FITS)
        assert moved.needs_bytes > LARGEST or before.releases == MAX_RELEASES - 1


def test_out_of_memory_moves_to_the_next_larger_class():
    moved = after_attempt(job(needs_bytes=GIB), OutOfMemory(usable_bytes=7 * GIB), FLEET)
    assert (moved.state, moved.needs_bytes) == (JobState.QUEUED, 7 * GIB + 1)
    assert FLEET.smallest_class_for(moved.needs_bytes) == "c24"
    last = after_attempt(job(needs_bytes=GIB), OutOfMemory(usable_bytes=21 * GIB), FLEET)
    assert (last.state, last.reason) == (JobState.FAILED, Reason.OUT_OF_MEMORY)
    assert "fewer than 8 frames" in last.problem.remedy
    assert "below" not in last.problem.remedy, "there is no class below 256p"
    assert "8 frames" in last.problem.remedy


def overflow(card: str, stage: str = "denoise", step: int = 3, layout: str = "guidance=batched") -> Overflow:
    return Overflow(
        stage=stage,
        layout=layout,
        step=step,
        predicted_bytes=5 * GIB,
        measured_bytes=6 * GIB,
        usable_bytes=7 * GIB,
        card=card,
    )


def test_a_job_that_ran_out_of_memory_everywhere_tells_where_it_was_tried():
    first, second = overflow("gpu0"), overflow("gpu0", layout="guidance=split")
    moved = after_attempt(job(), OutOfMemory(usable_bytes=7 * GIB, overflows=(first, second)), FLEET)
    assert (moved.state, moved.problem) == (JobState.QUEUED, None)
    ended = OutOfMemory(usable_bytes=21 * GIB, detail="full", overflows=(overflow("gpu9", "decode", 8),))
    moved = after_attempt(job(needs_bytes=moved.needs_bytes), ended, FLEET, (first, second))
    assert (moved.state, moved.reason) == (JobState.FAILED, Reason.OUT_OF_MEMORY)
    assert moved.problem.message == (
        "full; tried: denoise at step 3 on gpu0 with guidance=batched (predicted 5.0 GiB, measured 6.0 GiB, "
        "usable 7.0 GiB); denoise at step 3 on gpu0 with guidance=split (predicted 5.0 GiB, measured 6.0 GiB, "
        "usable 7.0 GiB); decode at step 8 on gpu9 with guidance=batched (predicted 5.0 GiB, measured 6.0 GiB, "
        "usable 7.0 GiB)"
    )
    again = story([first, second, first])
    assert again.count("guidance=batched") == 1
    assert "2 times" in again


@given(jobs)
def test_a_card_that_others_filled_is_not_called_too_small(before):
    """The card has 7 GiB, of which others took 4 in the middle of a clip that needs 5."""
    before = replace(before, needs_bytes=2 * GIB, cancel_requested=False)
    ended = OutOfMemory(usable_bytes=3 * GIB, foreign_bytes=4 * GIB, predicted_bytes=5 * GIB, detail="full")
    moved = after_attempt(before, ended, Fleet(usable_bytes={"c8": 7 * GIB}))
    if before.releases + 1 < MAX_RELEASES:
        assert (moved.state, moved.costs_attempt, moved.needs_bytes) == (JobState.QUEUED, False, 5 * GIB)
    else:
        assert moved.state is JobState.FAILED


def test_leaner_layouts_that_a_leaking_process_left_untried_are_tried_in_a_fresh_one():
    ended = OutOfMemory(usable_bytes=21 * GIB, sticky=True)
    now = job(needs_bytes=GIB)
    for attempts in range(1, MAX_ATTEMPTS):
        now = apply(now, ended)
        assert (now.state, now.attempts, now.needs_bytes) == (JobState.QUEUED, attempts, GIB)
    assert apply(now, ended).state is JobState.FAILED


def test_a_broken_process_costs_one_attempt_and_no_progress():
    moved = after_attempt(job(), Errored(sticky=True, detail="illegal address"), FLEET)
    assert (moved.state, moved.costs_attempt, moved.keeps_checkpoint) == (JobState.QUEUED, True, True)
    assert moved.needs_bytes is None, "it is no matter of size"


@given(jobs, endings)
def test_cancelled_wins_over_all_but_completed(before, ended):
    before = replace(before, cancel_requested=True)
    moved = after_attempt(before, ended, FLEET)
    assert moved.state is (JobState.COMPLETED if ended.outcome is Outcome.COMPLETED else JobState.CANCELLED)


@given(jobs, st.sampled_from(LOSSES))
def test_losses_cost_no_attempt_up_to_the_cap(before, outcome):
    assume(not before.cancel_requested)
    moved = after_attempt(before, ended_with(outcome), FLEET)
    assert not moved.costs_attempt
    assert moved.needs_bytes is None
    if before.releases < MAX_RELEASES - 1:
        assert moved.state is JobState.QUEUED
    else:
        assert (moved.state, moved.reason) == (JobState.FAILED, Reason.LOST_TOO_OFTEN)


def test_faults_are_tried_three_times_and_then_tell_the_story():
    now = job()
    for left in (2, 1):
        now = apply(now, Crashed(detail="signal 11"))
        assert (now.state, now.attempts) == (JobState.QUEUED, 3 - left)
    moved = after_attempt(now, Crashed(detail="signal 11"), FLEET)
    assert (moved.state, moved.reason, moved.costs_attempt) == (JobState.FAILED, Reason.CRASHED, True)
    assert "signal 11" in moved.problem.message
    assert after_attempt(now, Errored(), FLEET).reason is Reason.ERROR


@given(jobs)
def test_invalid_input_is_never_tried_again(before):
    assume(not before.cancel_requested)
    moved = after_attempt(before, Invalid(detail="no picture"), FLEET)
    assert (moved.state, moved.reason) == (JobState.FAILED, Reason.INVALID)
    assert "no picture" in moved.problem.message


@given(jobs, endings)
def test_every_failure_says_what_to_do(before, ended):
    moved = after_attempt(before, ended, FLEET)
    if moved.state is JobState.FAILED:
        assert moved.reason is not None
        assert moved.problem is not None
        assert moved.problem.remedy


def test_what_fits_nowhere_is_told_in_numbers():
    problem = no_card_fits(spec(width=1024, height=640, frames=32), 30 * GIB, FLEET)
    for number in ("1024×640", "32 frames", "30.0 GiB", "21.0 GiB"):
        assert number in problem.message
    assert "0 MiB" in no_card_fits(spec(), 1, Fleet(usable_bytes={})).message


def test_a_checkpoint_is_not_to_blame_for_what_failed_after_the_last_step():
    """An ffmpeg that somebody killed: the clip was denoised from its first step once more."""
    failed = Errored(detail="ffmpeg ended with -9", resumed_step=32)
    assert not after_attempt(job(), failed, FLEET).keeps_checkpoint
    assert after_attempt(job(), replace(failed, denoised=True), FLEET).keeps_checkpoint


@given(jobs, endings, st.integers(0, 50))
def test_only_a_waiting_job_keeps_its_checkpoint_and_no_suspect_one(before, ended, resumed_step):
    moved = after_attempt(before, replace(ended, resumed_step=resumed_step), FLEET)
    suspect = resumed_step > 0 and ended.outcome in (Outcome.ERROR, Outcome.CRASHED)
    assert moved.keeps_checkpoint == (moved.state is JobState.QUEUED and not suspect)
    assert replace(moved, keeps_checkpoint=False) == replace(
        after_attempt(before, ended, FLEET), keeps_checkpoint=False
    ), "a checkpoint decides nothing else"
