"""Counts of large batches are kept for a moment: never an end seen late, and nothing counted in between."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.storage import Storage
from cluster.store import BatchStore, lookup
from serve.cli.failures import FailureNotices
from tests.building import FLEET, Clock, bad_draft, card, completed, draft

ME = "local"


@pytest.fixture
def moments(monkeypatch, batch_store) -> Clock:
    """The clock that kept counts go by; batches of three rows and more count as large, and are kept for a second."""
    moments = Clock(0.0)
    monkeypatch.setattr(lookup, "KEPT_ROWS", 3)
    monkeypatch.setattr(lookup, "KEPT_S_A_ROW", 1.0)
    monkeypatch.setattr(lookup, "KEPT_S", 1.0)
    batch_store.kept_counts = lookup.KeptCounts(moments)
    return moments


def hand_in(batch_store: BatchStore, *drafts) -> str:
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, drafts)
    batch_store.seal(ME, batch_id)
    return batch_id


@pytest.mark.parametrize("seed", range(4))
def test_an_end_is_seen_at_once_and_counts_within_a_second(seed, batch_store, dispatch_store, database, moments):
    rng = random.Random(seed)
    fresh = BatchStore(database)
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 9)))
    running: list = []
    for _ in range(60):
        what = rng.choice(["start", "complete", "cancel", "retry", "wait", "look", "look"])
        if what == "start" and (waiting := dispatch_store.waiting(10)):
            running += dispatch_store.start([(rng.choice(waiting), card(f"gpu{len(running)}"))], 10)
        elif what == "complete" and running:
            claim = running.pop(rng.randrange(len(running)))
            ended = completed(claim)
            dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
        elif what in ("cancel", "retry"):
            job = rng.choice(fresh.jobs(ME, batch_id))
            try:
                Farm(fresh, Storage("/nowhere")).command_job(job.id, Verb(what))
            except ValueError:
                continue
        elif what == "wait":
            moments.now += rng.choice([0.4, 1.1])
        shown, true = batch_store.batch(ME, batch_id), BatchStore(database).batch(ME, batch_id)
        assert shown.status == true.status
        assert shown.done == true.done
        assert {s for s in JobState if shown.counts[s]} == {s for s in JobState if true.counts[s]}
        assert shown.counts.total == true.counts.total
        moments.now += 1.01
        assert batch_store.batch(ME, batch_id) == BatchStore(database).batch(ME, batch_id)


def test_looks_in_between_count_nothing(batch_store, database, moments):
    large = hand_in(batch_store, *(draft(n) for n in range(1, 9)))
    small = hand_in(batch_store, draft(1, "a"))
    asked: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def counts_of(batch_id: str) -> int:
        asked.clear()
        batch_store.batch(ME, batch_id)
        return sum("GROUP BY" in statement for statement in asked)

    assert [counts_of(large) for _ in range(4)] == [1, 0, 0, 0]
    moments.now += 1.01
    assert [counts_of(large), counts_of(large)] == [1, 0]
    batch_store.kept_counts.forget()
    assert counts_of(large) == 1
    assert [counts_of(small) for _ in range(3)] == [1, 1, 1], "a small one is counted at every look"


def test_whoever_commands_sees_what_they_did(batch_store, moments, tmp_path):
    farm = Farm(batch_store, Storage(tmp_path))
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 9)))
    assert farm.batch(batch_id).counts[JobState.QUEUED] == 8
    first, second, *_ = farm.jobs(batch_id)
    farm.command_job(first.id, Verb.CANCEL)
    assert farm.batch(batch_id).counts[JobState.CANCELLED] == 1
    farm.command_job(second.id, Verb.CANCEL)
    assert farm.batch(batch_id).counts[JobState.CANCELLED] == 2
    assert farm.command_batch(batch_id, Verb.CANCEL).done


def test_batches_are_looked_through_only_where_a_row_has_failed(batch_store, database, moments, tmp_path):
    farm = Farm(batch_store, Storage(tmp_path))
    hand_in(batch_store, *(draft(n) for n in range(1, 9)))
    notices = FailureNotices(farm)
    asked: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert notices.news() == []
    assert not any("FROM jobs" in statement for statement in asked)
    failed = hand_in(batch_store, bad_draft(1), draft(2, "z"), draft(3, "y"))
    (line,) = notices.news()
    assert failed in line
    # One more of a batch that is kept, within its moment.
    batch_store.add(ME, failed, [bad_draft(4)])
    (line,) = notices.news()
    assert "2 rows failed" in line
    assert notices.news() == []
