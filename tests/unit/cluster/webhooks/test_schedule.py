"""What an answer means for a message, and when it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.webhooks.model import DeliveryState
from cluster.webhooks.schedule import JITTER, SCHEDULE_S, Answered, judge

ATTEMPTS = len(SCHEDULE_S)


def test_the_schedule_is_that_of_the_scheme() -> None:
    minute, hour = 60, 3600
    assert SCHEDULE_S[:4] == (0, 5, 5 * minute, 30 * minute)
    assert SCHEDULE_S[4:] == tuple(h * hour for h in (2, 5, 10, 14, 20, 24))


@given(st.integers(200, 299), st.integers(1, 50))
def test_every_2xx_is_success(status: int, attempts: int) -> None:
    assert judge(Answered(status=status), attempts, lambda: 0.5).state is DeliveryState.DELIVERED


@given(
    st.one_of(st.none(), st.integers(100, 199), st.integers(300, 409), st.integers(411, 599)),
    st.integers(1, ATTEMPTS - 1),
    st.floats(0, 1),
    st.floats(0, 1e9),
)
def test_all_else_is_tried_again_no_sooner_than_the_schedule_and_not_much_later(
    status: int | None, attempts: int, drawn: float, asked_s: float
) -> None:
    verdict = judge(Answered(status=status, error="no", retry_after_s=asked_s), attempts, lambda: drawn)
    assert verdict.state is DeliveryState.PENDING
    least, most = SCHEDULE_S[attempts], SCHEDULE_S[attempts] * (1 + JITTER)
    asked = min(asked_s, SCHEDULE_S[-1])
    assert max(least, round(asked)) <= verdict.pause_s <= max(most, asked) + 0.5
    assert verdict.error


@pytest.mark.parametrize("status", [500, None, 302])
def test_the_last_attempt_is_the_last(status: int | None) -> None:
    verdict = judge(Answered(status=status, error="no"), ATTEMPTS, lambda: 0)
    assert (verdict.state, verdict.exhausted, verdict.gone) == (DeliveryState.FAILED, True, False)


def test_a_receiver_that_is_gone_is_not_asked_again() -> None:
    verdict = judge(Answered(status=410), 1, lambda: 0)
    assert (verdict.state, verdict.gone) == (DeliveryState.FAILED, True)


def test_a_test_is_tried_once_and_disables_nothing() -> None:
    verdict = judge(Answered(status=500), 1, lambda: 0, once=True)
    assert (verdict.state, verdict.exhausted, verdict.gone) == (DeliveryState.FAILED, False, False)
