"""A card that cannot be used, on the roster: it takes what needs no memory, and nobody counts on it."""

from __future__ import annotations

import pytest

from cluster.dispatch.roster import Roster
from cluster.scheduling.placement import place
from cluster.scheduling.snapshot import Snapshot, Start, Wait, WaitReason
from pipeline.memory.footprint import footprint, leanest
from pipeline.units import GIB
from tests.building import FLEET, Clock, beat, spec
from tests.unit.cluster.scheduling.test_placement import job as a_job

BROKEN = {"usable_bytes": 0, "fault": "card: it fell off the bus. Reset it."}


@pytest.fixture
def roster() -> Roster:
    made = Roster(Clock(), silent_s=5)
    made.hear(beat("broken", **BROKEN))
    made.hear(beat("works"))
    return made


def decided(roster: Roster, *needs: int, **changes):
    jobs = [a_job(number, needs_bytes=count, **changes) for number, count in enumerate(needs, 1)]
    snapshot = Snapshot(waiting=jobs, fleet=FLEET, card_index=roster.card_index)
    found = {}
    for one in place(snapshot, 10**9):
        match one:
            case Start(job=job, card=card):
                found[job.number] = card.card
            case Wait(job=job, reason=reason):
                found[job.number] = reason
    return [found.get(number) for number in range(1, len(needs) + 1)]


def test_it_takes_clips_that_need_no_memory_before_any_other_card(roster):
    assert decided(roster, 0) == ["broken"]
    assert decided(roster, 0, 5 * GIB) == ["broken", "works"]
    roster.drop("renderer-works")
    # However long it waits, a row is given no leaner layout for a broken card's sake.
    clip = spec("i2vgen-xl")
    assert leanest(clip)[1].peak_bytes < footprint(clip).peak_bytes, "there are some"
    assert decided(roster, footprint(clip).peak_bytes, spec=clip) == [WaitReason.NO_CARD_OF_THIS_SIZE]


def test_nobody_counts_on_it(roster):
    assert roster.unavailable() == {"broken"}
    assert not roster.others_open("works"), "the last card that works is not set aside"
    assert roster.others_open("broken")
    roster.hear(beat("broken"))
    assert roster.unavailable() == frozenset()
    assert roster.others_open("works")
