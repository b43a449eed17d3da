"""The index of cards, kept up to date one change at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.card_index import CardIndex
from cluster.jobs.model import Job, JobState
from tests.building import card


def job(owner: str, content: str) -> Job:
    return Job(
        id=f"video_{owner}{content}", owner=owner, batch_id="batch_1", number=1, name="", row={}, created_at=0,
        state=JobState.RUNNING, content_key=content,
    )  # fmt: skip


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.sampled_from([4, 8]), st.booleans()),
        st.tuples(st.just("drop"), st.sampled_from("abc")),
        st.tuples(st.just("lock"), st.frozensets(st.sampled_from("abc"))),
        st.tuples(st.just("began"), st.sampled_from(["ann", "bob"]), st.sampled_from("xy")),
    ),
    max_size=12,
)


def change(index: CardIndex, what: str, *how) -> None:
    match what:
        case "put":
            name, usable, idle = how
            index.put(card(name, usable, idle=idle))
        case "drop":
            index.drop(card(how[0]).renderer)
        case "lock":
            index.lock(how[0])
        case _:
            index.began(job(*how))


def seen(index: CardIndex):
    sizes = [(of.largest, of.of_classes) for of in (index.all, index.usable)]
    return index.cards, index.idle, index.locked, index.running_contents, index.running_of_owner, sizes


@given(CHANGES, CHANGES)
def test_a_copy_goes_its_own_way(before, after):
    index = CardIndex()
    for one in before:
        change(index, *one)
    copy, untouched = index.copy(), CardIndex()
    for one in before:
        change(untouched, *one)
    for one in after:
        change(index, *one)
    assert seen(copy) == seen(untouched)


def test_what_runs_counts_until_all_of_it_has_ended():
    index = CardIndex(jobs=[job("ann", "x"), job("ann", "x")])
    index.ended(job("ann", "x"))
    assert index.running_contents["ann", "x"] == index.running_of_owner["ann"] == 1
    index.ended(job("ann", "x"))
    assert ("ann", "x") not in index.running_contents


def test_a_card_out_of_use_is_there_and_not_usable():
    index = CardIndex([card("large", 8), card("small", 4)], locked=frozenset({"large"}))
    (kind,) = index.all.largest
    assert (index.all.fits({kind: 8}), index.usable.fits({kind: 8}), index.usable.fits({kind: 4})) == (
        True,
        False,
        True,
    )
    index.lock(frozenset())
    assert index.usable.fits({kind: 8})
