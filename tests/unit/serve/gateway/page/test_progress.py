"""How long a batch takes from here on, against the forecast of the same rows, and why it waits."""

from __future__ import annotations

from typing import Any

from cluster.explain.reasons import Rules
from cluster.jobs.transitions import Verb
from pipeline.units import GIB
from serve.gateway.page.progress import PLACED, SAMPLED, ProgressReader
from tests.building import beat
from tests.page_store import row
from tests.unit.serve.gateway.page.conftest import client_of


class Seconds:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def beats(it: Any, count: int = 1) -> None:
    it.dispatch.record_cards([beat(f"gpu{n}", kind="NVIDIA L4", usable_bytes=21 * GIB) for n in range(count)])


def test_the_time_left_is_the_forecast_of_the_rows_that_are_left(empty: Any) -> None:
    http = client_of(empty)
    rows = [
        {"number": n, "id": f"A-{n}", "image": "a", "prompt": "pan", "resolution_class": ("256p", "512p")[n % 2]}
        for n in range(1, 31)
    ]
    defaults = {"model": "camera"}
    flat = [{name: value for name, value in one.items() if name != "image"} | {"still": empty.still} for one in rows]
    batch = http.post("/v1/batches", json={"name": "a", "rows": flat, "defaults": defaults}).json()["id"]
    # Nothing renders: nobody knows.
    assert ProgressReader(empty.farm, Rules()).of(empty.farm.batch(batch)).left_s is None
    beats(empty, 3)
    wanted = [{"row": one, "still_size": [160, 120]} for one in rows]
    told = http.post("/v1/forecast", json={"rows": wanted, "defaults": defaults}).json()["finish_seconds"]
    left = ProgressReader(empty.farm, Rules()).of(empty.farm.batch(batch)).left_s
    assert left is not None
    assert left > 1
    # The API rounds to tenths.
    assert abs(left - told) <= 0.06


def test_of_a_large_batch_some_rows_stand_for_all(empty: Any) -> None:
    beats(empty)
    few = empty.batch("few", [row(n, f"A-{n}", empty.still) for n in range(1, SAMPLED + 1)])
    many = empty.batch("many", [row(n, f"B-{n}", empty.still) for n in range(1, 2 * SAMPLED + 1)])
    reader = ProgressReader(empty.farm, Rules())
    one, two = (reader.of(empty.farm.batch(batch)).left_s for batch in (few, many))
    assert one is not None
    assert two is not None
    assert 1.9 < two / one < 2.1
    assert 2 * SAMPLED < PLACED


def test_what_was_found_out_is_kept_for_a_moment_and_time_goes_on(empty: Any) -> None:
    beats(empty)
    clock = Seconds()
    batch = empty.batch("a", [row(n, f"A-{n}", empty.still) for n in range(1, 200)])
    reader = ProgressReader(empty.farm, Rules(), clock)
    first = reader.of(empty.farm.batch(batch)).left_s
    assert first is not None
    clock.now += 2
    later = reader.of(empty.farm.batch(batch)).left_s
    assert later is not None
    assert abs(first - later - 2) < 1e-6
    # Counts that changed are looked at anew.
    empty.complete(empty.jobs(batch)[0])
    empty.farm.batch_store.kept_counts.forget()
    again = reader.of(empty.farm.batch(batch)).left_s
    assert again is not None
    assert again > later


def test_done_is_said_of_what_is_done_only(empty: Any) -> None:
    batch = empty.batch("a", [row(1, "A-1", empty.still), row(2, "A-2", empty.still)])
    beats(empty)
    reader = ProgressReader(empty.farm, Rules())
    job = empty.jobs(batch)[0]
    empty.complete(job)
    half = reader.of(empty.farm.batch(batch))
    assert half.percent == 50
    assert half.why.startswith("It starts at the dispatcher's next look")
    empty.farm.command_batch(batch, Verb.PAUSE)
    assert "paused" in reader.of(empty.farm.batch(batch)).why
    empty.farm.command_batch(batch, Verb.CANCEL)
    done = reader.of(empty.farm.batch(batch))
    assert (done.percent, done.why, done.left_s) == (100, "", None)
