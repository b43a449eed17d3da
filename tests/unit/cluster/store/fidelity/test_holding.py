"""Rows that ask for a fidelity: made again within what they allow, the best kept, held where none is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.dispatch.retry import after_attempt
from cluster.jobs.fidelity import AGAIN, SHORT, terms_of
from cluster.jobs.model import HoldReason, Job, JobState, Pick
from cluster.jobs.outcomes import Completed
from cluster.jobs.review import ReviewChange
from cluster.jobs.transitions import Verb
from cluster.maintenance.audit import check
from cluster.store.batches import Terms
from cluster.store.commands import CommandStore
from cluster.store.schema import batches
from cluster.store.webhooks.telling import tell_batch
from pipeline.fidelity.score import FidelityScore
from tests.building import objects
from tests.unit.cluster.store.test_store import FLEET, ME, claim_one, hand_in


def drafted(number: int = 1, prompt: str = "pan left", model: str = "i2vgen-xl-tiny", **asked: Any) -> Any:
    columns = {name: asked.pop(name) for name in ("after", "seed") if name in asked}
    made = Row(number=number, id=f"a-{number}", image="a.png", prompt=prompt, **columns)
    incoming = IncomingRow(position=number, name=made.id, row=made, still="ab" * 32, number=number)
    return draft(incoming, Defaults(model=model, **asked), lambda _still: (900, 900))


class Rendering:
    """A card that renders whatever waits, with scores that are given."""

    def __init__(self, batch_store: Any, dispatch_store: Any) -> None:
        self.batch_store, self.dispatch_store = batch_store, dispatch_store
        self.seeds: list[int] = []

    def render(self, batch_id: str, scores: Sequence[float | None]) -> None:
        left = list(scores)
        while queued := self.batch_store.jobs(ME, batch_id, state=JobState.QUEUED):
            assert left, "no more is rendered than was allowed"
            job = queued[0]
            assert job.spec
            self.seeds.append(job.spec.seed)
            claim = claim_one(self.dispatch_store, job)
            score = left.pop(0)
            measured = None if score is None else FidelityScore(score=score, parts={"colour": score})
            ended = Completed(objects=objects(claim.attempt_id), fidelity=measured)
            job = self.dispatch_store.current_job(claim)
            assert self.dispatch_store.finish(claim, ended, after_attempt(job, ended, FLEET))
        assert not left, "all of it was rendered"


@pytest.fixture
def rendering(batch_store, dispatch_store):
    return Rendering(batch_store, dispatch_store)


def only(batch_store: Any, batch_id: str) -> Job:
    (job,) = batch_store.jobs(ME, batch_id)
    return job


def test_a_clip_that_is_good_enough_is_taken_at_once(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    rendering.render(batch_id, [0.7])
    job = only(batch_store, batch_id)
    assert (job.state, job.fidelity.score, job.reviewed) == (JobState.COMPLETED, 0.7, ())
    assert check(database) == []


def test_another_seed_is_tried_and_the_first_that_is_good_enough_is_kept(batch_store, rendering, database, truth):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    rendering.render(batch_id, [0.4, 0.9])
    job = only(batch_store, batch_id)
    assert (job.state, job.fidelity.score) == (JobState.COMPLETED, 0.9)
    assert len(set(rendering.seeds)) == 2
    assert job.spec.seed == rendering.seeds[1]
    assert [(step.verb, step.seed) for step in job.reviewed] == [(AGAIN, rendering.seeds[0])]
    assert [truth.tally("clips", outcome=outcome) for outcome in ("completed", "short")] == [1, 1]
    # Both were paid for.
    assert batch_store.batch(ME, batch_id).attempts == 2
    assert check(database) == []


@pytest.mark.parametrize(("scores", "best"), [([0.4, 0.6, 0.5], 1), ([0.6, 0.4, 0.5], 0), ([0.1, 0.2, 0.3], 2)])
def test_where_none_is_good_enough_the_best_is_kept_for_somebody_to_look_at(
    batch_store, rendering, database, scores, best
):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    rendering.render(batch_id, scores)
    job = only(batch_store, batch_id)
    assert (job.state, job.reason) == (JobState.HELD, HoldReason.REVIEW)
    assert (job.spec.seed, job.fidelity.score) == (rendering.seeds[best], scores[best])
    (story,) = [note.message for note in job.notes if note.code == SHORT]
    assert "fidelity 0.7 is asked for" in story
    assert all(f"seed {seed}: {score:.2f}" in story for seed, score in zip(rendering.seeds, scores, strict=True))
    assert [one.id for one in batch_store.in_review(ME, batch_id)] == [job.id]
    assert batch_store.batch(ME, batch_id).status == "held"
    assert check(database) == []


def test_an_approval_takes_the_clip_and_nothing_is_held_against_it_again(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rerolls=0))
    rendering.render(batch_id, [0.4])
    job = only(batch_store, batch_id)
    CommandStore(database).job(ME, job.id, Verb.APPROVE)
    taken = only(batch_store, batch_id)
    assert (taken.state, taken.clip_id, taken.spec) == (JobState.COMPLETED, job.clip_id, job.spec)
    # Its files are lost, and it is rendered again as it was.
    batch_store.forget_clips(ME, [job.clip_id])
    rendering.render(batch_id, [0.4])
    assert only(batch_store, batch_id).state is JobState.COMPLETED
    assert check(database) == []


def test_whoever_makes_another_has_the_whole_number_of_tries_again(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rerolls=1))
    rendering.render(batch_id, [0.4, 0.4])
    CommandStore(database).job(ME, only(batch_store, batch_id).id, Verb.REROLL, change=ReviewChange(seed=99))
    rendering.render(batch_id, [0.3, 0.8])
    job = only(batch_store, batch_id)
    assert (job.state, job.fidelity.score) == (JobState.COMPLETED, 0.8)
    assert SHORT not in [note.code for note in job.notes]


def test_a_clip_that_nobody_could_measure_is_held_and_costs_no_other(batch_store, rendering):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    rendering.render(batch_id, [None])
    job = only(batch_store, batch_id)
    assert (job.state, job.reason) == (JobState.HELD, HoldReason.REVIEW)
    assert "could not be measured" in next(note.message for note in job.notes if note.code == SHORT)


def test_a_model_that_leaves_nothing_to_chance_is_not_asked_again(batch_store, rendering):
    batch_id = hand_in(batch_store, drafted(model="camera", min_fidelity=0.7))
    rendering.render(batch_id, [0.4])
    assert only(batch_store, batch_id).state is JobState.HELD


def test_equal_rows_are_made_again_together_and_rows_that_ask_for_less_keep_the_clip(batch_store, rendering, database):
    batch_id = hand_in(
        batch_store,
        drafted(1, min_fidelity=0.7),
        drafted(2, min_fidelity=0.7),
        drafted(3),
        drafted(4, min_fidelity=0.3),
    )
    rendering.render(batch_id, [0.4, 0.9])
    found = {job.number: job for job in batch_store.jobs(ME, batch_id)}
    assert {job.state for job in found.values()} == {JobState.COMPLETED}
    assert [found[n].fidelity.score for n in (1, 2, 3, 4)] == [0.9, 0.9, 0.4, 0.4]
    assert found[1].clip_id == found[2].clip_id != found[3].clip_id
    assert check(database) == []


def test_a_clip_that_was_there_before_is_held_to_it_as_well(batch_store, rendering):
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    assert only(batch_store, batch_id).state is JobState.QUEUED
    rendering.render(batch_id, [0.8])
    # What was made for that is there for whoever asks the same.
    again = only(batch_store, hand_in(batch_store, drafted(min_fidelity=0.7)))
    assert (again.state, again.fidelity.score) == (JobState.COMPLETED, 0.8)


def test_a_row_that_waits_for_it_does_so_until_a_clip_is_taken(batch_store, rendering, database):
    batch_id = hand_in(
        batch_store, drafted(1, min_fidelity=0.7, rerolls=1), drafted(2, prompt="pan right", after="a-1")
    )
    rendering.render(batch_id, [0.4, 0.5])
    first, second = batch_store.jobs(ME, batch_id)
    assert (first.reason, second.reason) == (HoldReason.REVIEW, HoldReason.AFTER)
    CommandStore(database).job(ME, first.id, Verb.APPROVE)
    assert batch_store.jobs(ME, batch_id)[1].state is JobState.QUEUED


def test_the_final_of_an_approved_draft_is_held_to_it_and_stays_picked(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rounds="draft,final"))
    # A draft is looked at anyway.
    rendering.render(batch_id, [0.1])
    job = only(batch_store, batch_id)
    assert (job.state, job.draft) == (JobState.HELD, True)
    CommandStore(database).job(ME, job.id, Verb.APPROVE)
    rendering.render(batch_id, [0.4, 0.9])
    job = only(batch_store, batch_id)
    assert (job.state, job.fidelity.score, job.pick) == (JobState.COMPLETED, 0.9, Pick.PICKED)


def begun(batch_store: Any, dispatch_store: Any, batch_id: str) -> Any:
    return claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])


def ended(dispatch_store: Any, claim: Any, score: float) -> None:
    measured = FidelityScore(score=score, parts={"colour": score})
    completed = Completed(objects=objects(claim.attempt_id), fidelity=measured)
    job = dispatch_store.current_job(claim)
    assert dispatch_store.finish(claim, completed, after_attempt(job, completed, FLEET))


def test_what_is_cancelled_while_its_clip_is_published_is_not_made_again(batch_store, dispatch_store, database):
    batch_id = hand_in(batch_store, drafted(1, min_fidelity=0.7), drafted(2, prompt="pan right", after="a-1"))
    claim = begun(batch_store, dispatch_store, batch_id)
    CommandStore(database).batch(ME, batch_id, Verb.CANCEL)
    ended(dispatch_store, claim, 0.4)
    assert [job.state for job in batch_store.jobs(ME, batch_id)] == [JobState.CANCELLED] * 2
    assert batch_store.batch(ME, batch_id).done
    assert check(database) == []


def test_what_is_cancelled_while_its_clip_is_published_completes_if_that_is_good_enough(
    batch_store, dispatch_store, database
):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    claim = begun(batch_store, dispatch_store, batch_id)
    CommandStore(database).batch(ME, batch_id, Verb.CANCEL)
    ended(dispatch_store, claim, 0.8)
    assert only(batch_store, batch_id).state is JobState.COMPLETED


def test_a_candidate_that_was_passed_over_is_not_made_again(batch_store, dispatch_store, rendering, database):
    first, second = drafted(1, seed=1, min_fidelity=0.7), drafted(2, seed=2, min_fidelity=0.7)
    batch_id = hand_in(batch_store, replace(first, row_number=1), replace(second, row_number=1))
    jobs = batch_store.jobs(ME, batch_id)
    claims = [claim_one(dispatch_store, job) for job in jobs]
    ended(dispatch_store, claims[0], 0.9)
    CommandStore(database).job(ME, jobs[0].id, Verb.APPROVE)
    ended(dispatch_store, claims[1], 0.4)
    found = batch_store.jobs(ME, batch_id)
    assert [(job.state, job.pick) for job in found] == [
        (JobState.COMPLETED, Pick.PICKED),
        (JobState.CANCELLED, Pick.LET_GO),
    ]
    assert batch_store.batch(ME, batch_id).done
    assert check(database) == []


@pytest.mark.parametrize(
    ("verb", "reason"), [(Verb.PAUSE, HoldReason.PAUSED), (Verb.HOLD, HoldReason.APPROVAL)], ids=str
)
def test_what_is_to_wait_while_its_clip_is_published_waits_before_another_is_made(
    batch_store, dispatch_store, database, verb, reason
):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    claim = begun(batch_store, dispatch_store, batch_id)
    CommandStore(database).job(ME, claim.job.id, verb)
    ended(dispatch_store, claim, 0.4)
    job = only(batch_store, batch_id)
    assert (job.state, job.reason, len(job.reviewed)) == (JobState.HELD, reason, 1)
    assert check(database) == []


@pytest.mark.parametrize(
    ("verb", "reason"), [(Verb.PAUSE, HoldReason.PAUSED), (Verb.HOLD, HoldReason.APPROVAL)], ids=str
)
def test_an_equal_rows_clip_that_falls_short_starts_nothing_that_waits_for_somebody(
    batch_store, rendering, database, verb, reason
):
    waiting = hand_in(batch_store, drafted(min_fidelity=0.7))
    CommandStore(database).job(ME, only(batch_store, waiting).id, verb)
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    job = only(batch_store, waiting)
    assert (job.state, job.reason, len(job.reviewed)) == (JobState.HELD, reason, 1)
    assert check(database) == []


def test_an_equal_rows_clip_that_falls_short_starts_nothing_that_waits_for_another_row(
    batch_store, rendering, database
):
    waiting = hand_in(batch_store, drafted(2, prompt="pan right"), drafted(1, min_fidelity=0.7, after="a-2"))
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    second, first = batch_store.jobs(ME, waiting)
    assert (first.state, second.state, second.reason) == (JobState.QUEUED, JobState.HELD, HoldReason.AFTER)
    rendering.render(waiting, [0.9, 0.9])
    assert batch_store.batch(ME, waiting).status == "completed"
    assert check(database) == []


def test_a_clip_that_is_there_and_falls_short_starts_nothing_that_waits_for_an_approval(batch_store, rendering):
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7), terms=Terms(needs_approval=True))
    job = only(batch_store, batch_id)
    assert (job.state, job.reason) == (JobState.HELD, HoldReason.APPROVAL)


def test_a_row_that_comes_after_its_batch_was_cancelled_is_not_made_again(batch_store, rendering, database, truth):
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    batch_id = hand_in(batch_store, seal=False)
    CommandStore(database).batch(ME, batch_id, Verb.CANCEL)
    batch_store.add(ME, batch_id, [drafted(min_fidelity=0.7)])
    assert only(batch_store, batch_id).state is JobState.CANCELLED


def test_who_waits_for_a_row_starts_when_that_has_another_seeds_clip_at_once(batch_store, rendering, database):
    # The clip of the second seed is there.
    rendering.render(hand_in(batch_store, drafted(min_fidelity=0.7)), [0.4, 0.9])
    first_clip = batch_store.jobs(ME, batch_store.batches(ME)[0].id)[0].reviewed[0].clip_id
    batch_store.forget_clips(ME, [first_clip])
    waiting = hand_in(
        batch_store, drafted(3), drafted(1, min_fidelity=0.7), drafted(2, prompt="pan right", after="a-1")
    )
    asking, _after, plain = batch_store.jobs(ME, waiting)
    assert plain.content_key == asking.content_key
    claim = claim_one(rendering.dispatch_store, plain)
    ended(rendering.dispatch_store, claim, 0.4)
    asking, after, plain = batch_store.jobs(ME, waiting)
    assert (plain.state, asking.state, asking.fidelity.score) == (JobState.COMPLETED, JobState.COMPLETED, 0.9)
    assert after.state is JobState.QUEUED


def test_a_rejection_that_is_taken_back_leaves_the_clip_to_be_looked_at(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rerolls=1))
    rendering.render(batch_id, [0.4, 0.3])
    job = only(batch_store, batch_id)
    commands = CommandStore(database)
    commands.job(ME, job.id, Verb.REJECT)
    assert only(batch_store, batch_id).state is JobState.CANCELLED
    commands.job(ME, job.id, Verb.RETRY)
    again = only(batch_store, batch_id)
    assert (again.state, again.reason, again.clip_id) == (JobState.HELD, HoldReason.REVIEW, job.clip_id)
    # With its story, and with nothing more that is made.
    assert [note for note in again.notes if note.code == SHORT] == [note for note in job.notes if note.code == SHORT]
    commands.job(ME, job.id, Verb.REJECT)
    commands.batch(ME, batch_id, Verb.RETRY, cancelled=True)
    assert only(batch_store, batch_id).reason == HoldReason.REVIEW
    assert check(database) == []


def test_a_row_that_failed_is_held_to_it_where_an_equal_rows_clip_is_there_when_it_is_retried(
    batch_store, rendering, database
):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7))
    CommandStore(database).batch(ME, batch_id, Verb.CANCEL)
    rendering.render(hand_in(batch_store, drafted()), [0.4])
    CommandStore(database).batch(ME, batch_id, Verb.RETRY, cancelled=True)
    assert only(batch_store, batch_id).state is JobState.QUEUED
    rendering.render(batch_id, [0.9])
    assert only(batch_store, batch_id).fidelity.score == 0.9


def test_who_rolls_again_to_a_seed_whose_clip_is_there_does_not_take_it_whatever_it_is(
    batch_store, rendering, database
):
    rendering.render(hand_in(batch_store, drafted(seed=99)), [0.2])
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rerolls=1, seed=1))
    rendering.render(batch_id, [0.4, 0.4])
    CommandStore(database).job(ME, only(batch_store, batch_id).id, Verb.REROLL, change=ReviewChange(seed=99))
    assert only(batch_store, batch_id).state is JobState.QUEUED
    rendering.render(batch_id, [0.3])
    job = only(batch_store, batch_id)
    assert (job.reason, job.fidelity.score) == (HoldReason.REVIEW, 0.3)


def test_a_final_whose_clip_is_there_is_held_to_it_when_its_draft_is_approved(batch_store, rendering, database):
    rendering.render(hand_in(batch_store, drafted(seed=5)), [0.4])
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rounds="draft,final", seed=5))
    rendering.render(batch_id, [0.1])
    CommandStore(database).job(ME, only(batch_store, batch_id).id, Verb.APPROVE)
    job = only(batch_store, batch_id)
    assert (job.state, job.pick) == (JobState.QUEUED, Pick.PICKED)
    rendering.render(batch_id, [0.9])
    assert only(batch_store, batch_id).state is JobState.COMPLETED


def test_that_a_clip_waits_is_news_again_once_somebody_had_another_made(batch_store, rendering, database):
    batch_id = hand_in(batch_store, drafted(min_fidelity=0.7, rerolls=0))
    rendering.render(batch_id, [0.4])

    def told() -> bool:
        with database.read() as c:
            return c.scalar(sa.select(batches.c.review_told_at).where(batches.c.id == batch_id)) is not None

    def tell() -> None:
        with database.write() as c:
            tell_batch(database, c, database.now(c), batch_id)

    tell()
    assert told()
    job = only(batch_store, batch_id)
    CommandStore(database).job(ME, job.id, Verb.REROLL, change=ReviewChange(seed=99))
    rendering.render(batch_id, [0.5])
    assert not told()


@pytest.mark.parametrize(
    ("row", "terms"),
    [({}, None), ({"min_fidelity": True}, None), ({"min_fidelity": "0.7"}, None), ({"min_fidelity": 1}, (1.0, 2))],
)
def test_what_a_row_asks_for_is_a_number(row, terms):
    found = terms_of(row)
    assert (found and (found.least, found.rerolls)) == terms
