"""Who may take the office of dispatcher: of one's own farm at once, of another only when it left or fell silent."""

from __future__ import annotations

import pytest

from cluster.store import DispatchStore, OfficeTakenError, StaleEpochError
from cluster.store.office import OFFICE_S, read_office


@pytest.fixture
def first(database, clock):
    """In office, of the farm `one`."""
    first = DispatchStore(database)
    first.take_office("first", "one")
    return first


def silent_s(database):
    with database.read() as c:
        return read_office(database, c).silent_s


def test_one_of_the_same_farm_takes_over_at_once(first, database):
    successor = DispatchStore(database)
    successor.take_office("second", "one")
    assert successor.epoch == first.epoch + 1
    with pytest.raises(StaleEpochError):
        first.renew({}, 10)


def test_one_of_another_farm_is_refused_and_changes_nothing_while_the_first_writes(first, database, clock):
    other = DispatchStore(database)
    for _ in range(3 * OFFICE_S):
        clock.now += 1
        first.renew({}, 10)
        with pytest.raises(OfficeTakenError, match="first of farm one is in office"):
            other.take_office("other", "two")
    clock.now += OFFICE_S - 1
    with pytest.raises(OfficeTakenError):
        other.take_office("other", "two")
    assert silent_s(database) == OFFICE_S - 1
    first.renew({}, 10)


def test_one_of_another_farm_takes_over_when_the_first_is_silent(first, database, clock):
    other = DispatchStore(database)
    clock.now += OFFICE_S
    other.take_office("other", "two")
    with pytest.raises(StaleEpochError):
        first.renew({}, 10)
    with pytest.raises(OfficeTakenError, match="other of farm two"):
        first.take_office("first", "one")


def test_one_of_another_farm_takes_over_at_once_when_the_first_left(first, database):
    first.leave_office()
    with database.read() as c:
        assert read_office(database, c) is None
    DispatchStore(database).take_office("other", "two")
    # Whoever leaves twice, or late, takes nothing from its successor.
    first.leave_office()
    with pytest.raises(OfficeTakenError):
        DispatchStore(database).take_office("first", "one")


def test_a_clock_that_was_set_back_keeps_nobody_out(first, database, clock):
    clock.now -= 3600
    DispatchStore(database).take_office("other", "two")
