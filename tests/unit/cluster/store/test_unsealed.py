"""Batches that somebody began to hand in and never finished."""

from __future__ import annotations

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.farm import Farm
from cluster.jobs.model import JobState
from cluster.maintenance.audit import check
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from cluster.store.batches import IdempotencyConflictError
from cluster.store.unsealed import UNSEALED_S, expire_unsealed
from tests.building import Clock, still_png

ME = "local"


@pytest.fixture
def clock(database: Database) -> Clock:
    return Clock().set_on(database)


@pytest.fixture
def farm(database: Database, clock: Clock, tmp_path) -> Farm:
    return Farm(BatchStore(database), Storage(tmp_path / "storage"))


class Killed(BaseException):
    """The process ends: nothing of it is cleaned up."""


def rows(farm: Farm, number: int, *, dies_after: int | None = None):
    still = farm.put_still(still_png())
    for n in range(1, number + 1):
        if n - 1 == dies_after:
            raise Killed
        row = Row(number=n, id=f"r{n}", image="a.png", prompt=f"pan {n}")
        yield IncomingRow(position=n, number=n, name=f"r{n}", still=still, row=row)


def hand_in(farm: Farm, number: int, **options):
    given = {"name": "c", "idempotency_key": "k1", "fingerprint": "f"} | {
        key: value for key, value in options.items() if key != "dies_after"
    }
    return farm.submit(rows(farm, number, dies_after=options.get("dies_after")), Defaults(model="camera"), **given)


def broken_off(farm: Farm, **options) -> str:
    """A batch of which 128 rows (two chunks) are in."""
    with pytest.raises(Killed):
        hand_in(farm, 200, dies_after=150, **options)
    return farm.batch_store.batches(ME)[0].id


def test_the_same_key_goes_on_where_it_broke_off(farm):
    batch_id = broken_off(farm)
    before = farm.batch(batch_id)
    assert (before.status, 0 < before.counts.total < 200) == ("validating", True)
    batch = hand_in(farm, 200)
    assert (batch.id, batch.sealed, batch.counts.total) == (batch_id, True, 200)


def test_a_batch_that_nobody_hands_in_any_more_is_closed_and_says_what_to_do(farm, database, clock):
    batch_id = broken_off(farm)
    came = farm.batch(batch_id).counts.total
    clock.now += UNSEALED_S - 10
    assert expire_unsealed(database) == []
    clock.now += 20
    assert [(one.id, one.rows, one.key) for one in expire_unsealed(database)] == [(batch_id, came, "k1")]
    assert expire_unsealed(database) == [], "once"
    batch = farm.batch(batch_id)
    assert (batch.sealed, batch.counts[JobState.FAILED], batch.counts[JobState.QUEUED]) == (True, 1, came)
    (failed,) = farm.batch_store.jobs(ME, batch_id, state=JobState.FAILED)
    assert f"{came} rows came" in failed.problems[0].message
    assert "'k1'" in failed.problems[0].remedy
    farm.batch_store.cancel(ME, batch_id)
    assert farm.batch(batch_id).status == "failed", "and whoever waits for it is told"
    # The key is not burned.
    again = hand_in(farm, 200)
    assert (again.id != batch_id, again.counts.total) == (True, 200)


def test_one_that_rows_still_come_in_of_is_left_alone(farm, database, clock):
    batch_id = broken_off(farm)
    clock.now += UNSEALED_S - 10
    with pytest.raises(Killed):
        hand_in(farm, 300, dies_after=280)
    clock.now += 20
    assert expire_unsealed(database) == []
    assert not farm.batch(batch_id).sealed


def test_a_render_that_was_broken_off_is_left_to_its_next_run(farm, database, clock):
    with pytest.raises(Killed):
        hand_in(farm, 200, dies_after=150, attended=True)
    clock.now += 2 * UNSEALED_S
    assert expire_unsealed(database) == []


def test_the_check_names_it(farm, database, clock):
    batch_id = broken_off(farm)
    assert check(database) == []
    clock.now += UNSEALED_S + 10
    (broken,) = check(database)
    assert (broken.number, [finding.subject for finding in broken.findings]) == (17, [batch_id])
    assert "'k1'" in broken.findings[0].detail
    expire_unsealed(database)
    assert check(database) == []


def test_a_request_that_fails_before_a_row_is_in_burns_no_key(farm, monkeypatch):
    def broken(*_args):
        raise RuntimeError("the store does not take this text")

    with monkeypatch.context() as patched:
        patched.setattr(BatchStore, "add", broken)
        with pytest.raises(RuntimeError):
            hand_in(farm, 3, fingerprint="with a fault")
    assert farm.batch_store.batches(ME) == []
    assert hand_in(farm, 3, fingerprint="mended").counts.total == 3


def test_one_that_fails_later_keeps_its_key_for_the_same_body(farm):
    def raises():
        yield from rows(farm, 150)
        raise RuntimeError("a row that cannot be read")

    with pytest.raises(RuntimeError):
        farm.submit(raises(), Defaults(model="camera"), name="c", idempotency_key="k1", fingerprint="f")
    with pytest.raises(IdempotencyConflictError):
        hand_in(farm, 200, fingerprint="other")
    assert hand_in(farm, 200).counts.total == 200
