"""What a review leaves behind is removed; what another row still shows never is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.model import HoldReason, JobState
from cluster.jobs.review import ReviewChange
from cluster.jobs.transitions import Verb
from cluster.maintenance.audit import check
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from tests.page_store import OWNER, page_farm
from tests.reviewing import hand_in, named, render

ROW = "SKU-001"
LATER_S = 3 * 86_400


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Any]:
    with page_farm(tmp_path, films=False) as found:
        yield found


def sweep(it: Any) -> None:
    Sweeper(it.database, it.farm.storage, Keep(), clock=lambda: time.time() + LATER_S).run()


def has_its_file(it: Any, batch_id: str) -> bool:
    """Whether the clip that the row shows is there, and said to be."""
    job = named(it, batch_id, ROW)
    clip = it.farm.batch_store.clips(OWNER, [job.clip_id])[job.clip_id]
    return clip.expired_at is None and bool(it.farm.storage.exists(clip.objects.video))


@pytest.mark.parametrize("ends", ["sweep", "delete"])
def test_a_row_keeps_the_clip_that_another_made_before_it_was_made_again(it: Any, ends: str) -> None:
    made = hand_in(it, 1, name="A")
    render(it, made.id)
    shares = hand_in(it, 1, name="B")
    assert named(it, shares.id, ROW).state is JobState.COMPLETED
    it.farm.command_job(named(it, made.id, ROW).id, Verb.REROLL)
    render(it, made.id)
    if ends == "sweep":
        sweep(it)
        assert has_its_file(it, made.id)
    else:
        it.farm.delete_batch(made.id)
    assert has_its_file(it, shares.id)
    assert check(it.database) == []


def test_a_draft_stays_for_whoever_has_not_decided(it: Any) -> None:
    first, second = (hand_in(it, 1, name=name, rounds="draft,final") for name in "AB")
    render(it, first.id)
    it.farm.command_job(named(it, first.id, ROW).id, Verb.APPROVE)
    render(it, first.id)
    sweep(it)
    waits = named(it, second.id, ROW)
    assert (waits.state, waits.reason) == (JobState.HELD, HoldReason.REVIEW)
    assert has_its_file(it, second.id)


def test_a_draft_may_be_taken_back(it: Any) -> None:
    batch = hand_in(it, 1, name="A", rounds="draft,final")
    [first] = render(it, batch.id)
    it.farm.command_job(first.id, Verb.REROLL)
    render(it, batch.id)
    sweep(it)
    it.farm.command_job(first.id, Verb.REROLL, change=ReviewChange(seed=first.spec.seed))
    back = named(it, batch.id, ROW)
    assert (back.state, back.spec.seed) == (JobState.HELD, first.spec.seed)
    assert has_its_file(it, batch.id)


def test_with_its_batch_all_drafts_of_a_row_go(it: Any) -> None:
    batch = hand_in(it, 1, name="A", rounds="draft,final")
    [draft] = render(it, batch.id)
    it.farm.command_job(draft.id, Verb.APPROVE)
    render(it, batch.id)
    it.farm.delete_batch(batch.id)
    assert [entry.key for entry in it.farm.storage.entries("clips")] == []


def test_a_review_that_let_some_go_has_completed(it: Any) -> None:
    batch = hand_in(it, 2, name="A", rounds="draft,final")
    first, second = render(it, batch.id)
    it.farm.command_job(first.id, Verb.APPROVE)
    it.farm.command_job(second.id, Verb.REJECT)
    render(it, batch.id)
    assert it.farm.batch(batch.id).status == "completed"
    it.farm.command_job(first.id, Verb.REROLL)
    it.farm.command_job(first.id, Verb.CANCEL)
    assert it.farm.batch(batch.id).status == "cancelled"
