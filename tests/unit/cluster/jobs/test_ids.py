"""Ids: unique, and in the order in which a process made them, also where a millisecond has thousands."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

from cluster.jobs.ids import new_id, new_ids


def test_ids_of_a_process_ascend_and_are_uuids_of_version_7() -> None:
    made = [one for _ in range(3_000) for one in (new_id("evt"), *new_ids("evt", 3))]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"evt_[0-9a-f]{32}", one) for one in made)
    read = [uuid.UUID(one.removeprefix("evt_")) for one in made]
    assert {(one.version, one.variant) for one in read} == {(7, uuid.RFC_4122)}
    assert new_ids("evt", 0) == []


def test_threads_make_no_id_twice() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: new_id("video"), range(4_000)))
    assert len(set(made)) == len(made)
