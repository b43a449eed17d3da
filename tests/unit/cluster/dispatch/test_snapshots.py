"""Snapshots that the dispatcher builds: how much of each queue, look by look."""

from __future__ import annotations

import pytest

from cluster.dispatch.interactive import InteractiveClips
from cluster.dispatch.roster import Roster
from cluster.dispatch.snapshots import SnapshotBuilder
from cluster.estimates.memory import MemoryEstimates
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat, CardState, Fleet
from cluster.jobs.model import Job, JobState
from cluster.scheduling.interactive import InteractiveTerms
from cluster.scheduling.tail.planner import Planner
from cluster.scheduling.tail.search import MOST_LISTED
from tests.building import spec

GIB = 2**30


def builder(idle: int, planner: Planner | None = None) -> SnapshotBuilder:
    roster = Roster(lambda: 100.0, 5.0)
    for n in range(idle):
        roster.hear(
            Beat(
                renderer=f"r{n}", card=f"gpu{n}", card_class="c24", kind="NVIDIA L4", total_bytes=24 * GIB,
                usable_bytes=21 * GIB, used_bytes=0, state=CardState.IDLE,
            )
        )  # fmt: skip
    fleet = Fleet(usable_bytes={"c24": 21 * GIB})
    interactive = InteractiveClips(roster, lambda: 100.0, InteractiveTerms())
    return SnapshotBuilder(
        roster, fleet, wall=lambda: 100.0, owners={}, planner=planner, interactive=interactive, executor=None
    )


def lines(queues: int, length: int) -> list[list[Job]]:
    return [
        [
            Job(
                id=f"video_{q}_{n}", owner=f"owner{q}", batch_id=f"batch_{q}", number=n, name="", row={}, created_at=n,
                state=JobState.QUEUED, spec=spec(), needs_bytes=GIB, content_key=f"{q}/{n}",
            )
            for n in range(length)
        ]
        for q in range(queues)
    ]  # fmt: skip


async def look(at: SnapshotBuilder, waiting: list[list[Job]]) -> tuple[int, int]:
    """(heads of each queue, jobs read)."""
    heads = at.heads
    seen = [job for line in waiting for job in line[:heads]]
    at.wants_counts(seen, heads)
    snapshot = await at.build(seen, heads, memory=MemoryEstimates(), blocked=frozenset())
    assert snapshot.shown == heads
    return heads, len(seen)


@pytest.mark.parametrize(("queues", "idle"), [(3, 2), (10, 8), (50, 8)])
async def test_where_very_much_waits_few_of_each_queue_are_read_from_the_second_look_on(queues, idle):
    at = builder(idle, Planner(TimeEstimates(), variants=1))
    waiting = lines(queues, 1000)
    first, *more = [await look(at, waiting) for _ in range(6)]
    assert first == (MOST_LISTED, queues * MOST_LISTED), "it may be few enough to be planned"
    assert all(read <= max(4 * queues, 3 * idle + queues) for _, read in more), more
    # When they are few again all are read, or no plan could be made of them.
    waiting = [line[:3] for line in waiting]
    assert [await look(at, waiting) for _ in range(2)][1] == (MOST_LISTED, 3 * queues)
    at.close()


async def test_a_queue_that_was_too_short_is_shown_longer_until_it_is_long_enough():
    at = builder(100)
    assert (await look(at, lines(50, 1000)))[0] == 200, "as many as there are cards, and again"
    assert (await look(at, lines(50, 1000)))[0] == 4, "of each: there are fifty"
    seen = []
    for _ in range(4):
        at.show_more()
        seen.append((await look(at, lines(50, 1000)))[0])
    assert seen == [16, 64, 200, 200]
    assert (await look(at, lines(50, 1000)))[0] == 4
    at.close()
