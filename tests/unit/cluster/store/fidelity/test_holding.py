"""Rows that ask for a fidelity: made again within what they allow, the best kept, held where none is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

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
from cluster.store.commands import CommandStore
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


@pytest.mark.parametrize(
    ("row", "terms"),
    [({}, None), ({"min_fidelity": True}, None), ({"min_fidelity": "0.7"}, None), ({"min_fidelity": 1}, (1.0, 2))],
)
def test_what_a_row_asks_for_is_a_number(row, terms):
    found = terms_of(row)
    assert (found and (found.least, found.rerolls)) == terms
