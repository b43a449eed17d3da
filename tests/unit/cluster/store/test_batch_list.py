"""The list of batches: what is on it, and what each tells of how it was handed in."""

from __future__ import annotations

from cluster.store import BatchStore, Database
from tests.building import draft

ME = "local"
CATALOG = "/shop/catalog.csv"
GONE, THERE = -1, 60


def hand_in(store: BatchStore, *drafts, **options) -> str:
    batch_id, _ = store.open_batch(ME, name="catalog", **options)
    store.add(ME, batch_id, drafts)
    store.seal(ME, batch_id)
    return batch_id


def listed(store: BatchStore, **options) -> set[str]:
    return {batch.id for batch in store.batches(ME, **options)}


def test_a_run_that_a_later_one_replaced_gives_it_its_place(database: Database):
    store = BatchStore(database)
    first = hand_in(store, draft(1, "a"), source=CATALOG, attended_s=GONE)
    assert listed(store) == {first}
    second = hand_in(store, draft(1, "a"), source=CATALOG, attended_s=THERE)
    assert listed(store) == {second}
    assert listed(store, everything=True) == {first, second}


def test_what_somebody_waits_for_or_nobody_has_to_is_never_left_out(database: Database):
    store = BatchStore(database)
    waited_for = hand_in(store, draft(1, "a"), source=CATALOG, attended_s=THERE)
    detached = hand_in(store, draft(1, "a"), source=CATALOG)
    other = hand_in(store, draft(1, "a"), source="/shop/other.csv", attended_s=GONE)
    unnamed = [hand_in(store, draft(1, "a"), attended_s=GONE) for _ in range(2)]
    latest = hand_in(store, draft(1, "a"), source=CATALOG, attended_s=THERE)
    assert listed(store) == {waited_for, detached, other, latest, *unnamed}


def test_another_owner_s_run_of_the_same_file_replaces_nothing(database: Database):
    store = BatchStore(database)
    mine = hand_in(store, draft(1, "a"), source=CATALOG, attended_s=GONE)
    batch_id, _ = store.open_batch("ann", name="catalog", source=CATALOG, attended_s=THERE)
    store.seal("ann", batch_id)
    assert listed(store) == {mine}


def test_a_batch_without_rows_is_left_out_once_it_is_whole(database: Database):
    store = BatchStore(database)
    begun, _ = store.open_batch(ME, name="catalog")
    assert listed(store) == {begun}
    store.seal(ME, begun)
    assert listed(store) == set()
    assert listed(store, everything=True) == {begun}


def test_a_batch_tells_the_key_that_it_was_handed_in_under(database: Database):
    store = BatchStore(database)
    with_key, without = hand_in(store, idempotency_key="night-7"), hand_in(store)
    assert (store.batch(ME, with_key).key, store.batch(ME, without).key) == ("night-7", None)
