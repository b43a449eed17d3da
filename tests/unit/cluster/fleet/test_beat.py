"""A heartbeat as JSON: the keys that renderers, dispatchers and stores of other versions know."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from cluster.fleet.cards import Beat, CardState
from cluster.store import BatchStore, Database, DispatchStore, schema
from serve.gateway.views import card_view
from tests.building import beat

#: A beat as an earlier version wrote it.
WRITTEN = {
    "renderer": "r1",
    "card": "gpu0",
    "card_class": "c8",
    "kind": "emulated",
    "total_bytes": 8,
    "usable_bytes": 7,
    "used_bytes": 0,
    "foreign_bytes": 1,
    "state": "busy",
    "family": None,
    "steps": {"attempt_1": [3, 8]},
    "holding": "needs 3.0 GiB, 1.0 GiB usable",
}


def test_a_beat_that_was_written_before_is_read():
    read = Beat.model_validate(WRITTEN)
    assert read.waiting_for == "needs 3.0 GiB, 1.0 GiB usable"
    assert (read.state, read.steps) == (CardState.BUSY, {"attempt_1": (3, 8)})
    assert Beat.model_validate({k: v for k, v in WRITTEN.items() if k != "holding"}).waiting_for == ""


def test_what_is_written_has_the_keys_it_always_had():
    assert Beat.model_validate(WRITTEN).model_dump(mode="json") == WRITTEN
    told = beat(waiting_for="is not loaded yet").model_dump(mode="json")
    assert told["holding"] == "is not loaded yet"
    assert "waiting_for" not in told
    assert card_view(beat(waiting_for="is not loaded yet"))["holding"] == "is not loaded yet"


def test_a_copy_is_made_by_the_attribute_s_name():
    assert beat().model_copy(update={"waiting_for": "x"}).model_dump()["holding"] == "x"
    with pytest.raises(ValidationError):
        beat(held="x")


def test_the_store_writes_the_key_and_reads_a_row_of_before(tmp_path):
    database = Database.in_folder(tmp_path)
    database.migrate()
    store = DispatchStore(database)
    store.take_office("d1")
    sent = beat("gpu1", waiting_for="needs 3.0 GiB")
    store.record_cards([sent])
    with database.write() as c:
        (row,) = c.execute(sa.select(schema.cards)).all()
        assert row.beat["holding"] == "needs 3.0 GiB"
        c.execute(sa.insert(schema.cards).values(renderer="r1", beat=WRITTEN, seen_at=row.seen_at))
    assert sorted(BatchStore(database).cards(), key=lambda one: one.card) == [Beat.model_validate(WRITTEN), sent]


def test_a_newer_renderer_s_beat_is_read_and_so_is_one_that_is_stored(tmp_path):
    sent = beat("gpu1", waiting_for="needs 3.0 GiB")
    message = sent.model_dump(mode="json") | {"hologram": {"depth": 3}}
    assert Beat.read(message) == sent
    database = Database.in_folder(tmp_path)
    with database.write() as c:
        c.execute(sa.insert(schema.cards).values(renderer="r1", beat=message, seen_at=database.now(c)))
    assert BatchStore(database).cards() == [sent]


def test_what_came_later_is_written_where_it_says_something():
    """A dispatcher of before refuses keys that it does not know: it should only meet them where there is news."""
    told = Beat.model_validate(WRITTEN | {"fault": "card: it fell off the bus", "capability": [8, 9]})
    assert told.model_dump(mode="json") == WRITTEN | {"fault": "card: it fell off the bus", "capability": [8, 9]}
    assert Beat.model_validate(told.model_dump(mode="json")) == told


def test_what_tells_of_the_process_travels_and_is_left_out_where_it_is_not_known():
    told = beat(boot="b1", pid=7, on_card="attempt_1")
    assert Beat.model_validate(told.model_dump(mode="json")) == told
    assert set(told.model_dump()) - set(beat().model_dump()) == {"boot", "pid", "on_card"}
