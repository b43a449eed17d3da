"""What rows wait for, judged as a farm does when a batch is complete."""

from __future__ import annotations

import random

import pytest

from cluster.jobs.after import judged, problems_of
from cluster.jobs.model import JobState
from cluster.store import BatchStore, Database
from tests.building import bad_draft, draft

ME = "ann"


def test_long_chains_are_told_apart_from_circles():
    chain = {f"j{n}": f"j{n + 1}" for n in range(5000)} | {"j5000": "elsewhere"}
    assert problems_of(chain, {k: k for k in chain}, chain) == {}
    circle = problems_of(chain | {"j5000": "j4998"}, {k: k for k in chain}, chain)
    assert set(circle) == {"j4998", "j4999", "j5000"}


def test_what_never_comes_is_told_of_each_row_that_waits_for_it():
    rows = judged(
        [
            draft(1, after="nothing"),
            draft(2, after="row3"),
            draft(3, after="row2"),
            draft(4, after="row4"),
            bad_draft(5),
            draft(6, after="row5"),
            draft(7, after="row6"),
            draft(8, after="row9"),
            draft(9),
            draft(10, after="video_known"),
        ],
        {"video_known"}.__contains__,
    )
    told = {row.name: row.problems[0].message for row in rows if row.problems and row.name != "row5"}
    assert told == {
        "row1": "there is no row 'nothing' in this batch, and no job of this id",
        "row2": "rows wait for each other: row2 → row3 → row2",
        "row3": "rows wait for each other: row2 → row3 → row2",
        "row4": "rows wait for each other: row4 → row4",
        "row6": "row 'row5', which it waits for, cannot be rendered",
        "row7": "row 'row6', which it waits for, cannot be rendered",
    }
    assert [row.spec is None for row in rows] == [bool(row.problems) for row in rows]


@pytest.mark.parametrize("seed", range(30))
def test_the_rows_that_fail_are_those_that_fail_in_the_store(seed: int) -> None:
    """An independent reference: the store's own word once the batch is sealed."""
    rng = random.Random(seed)
    count = rng.randint(1, 9)
    rows = []
    for number in range(1, count + 1):
        after = rng.choice([None, None, *(f"row{n}" for n in range(1, count + 2))])
        rows.append(bad_draft(number) if rng.random() < 0.15 else draft(number, after=after))
    store = BatchStore(Database("sqlite://"))
    store.database.migrate()
    batch_id, _ = store.open_batch(ME, name="catalog")
    store.add(ME, batch_id, rows)
    store.seal(ME, batch_id)
    failed = {job.name for job in store.jobs(ME, batch_id, state=JobState.FAILED)}
    assert {row.name for row in judged(rows, lambda _job_id: False) if row.problems} == failed
