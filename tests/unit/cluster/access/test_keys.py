"""Texts of keys, what scopes have within them, and how long whoever is over a quota has to wait."""

from __future__ import annotations

import datetime
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access.keys import AccessKey, KeyState, check_owner, digest_of, new_key_text, read_key_text
from cluster.access.quotas import OwnerQuota, OwnerUse, QuotaExceededError, check_quota, first_day_of_month
from cluster.access.scopes import USUAL_SCOPES, Scope, expanded, scopes_from
from pipeline.problems import BadInputError

LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def number_of(text: str) -> int:
    """The number that letters and digits stand for, by the positions of the alphabet."""
    found = 0
    for letter in text:
        found = found * 62 + LETTERS.index(letter)
    return found


def test_a_key_is_recognised_by_its_prefix_and_its_checksum():
    text = new_key_text().text
    found = re.fullmatch(r"(clipmill_[a-z2-7]{12}_([0-9A-Za-z]{43}))([0-9A-Za-z]{6})", text)
    assert found
    assert number_of(found[3]) == zlib.crc32(found[1].encode())
    assert number_of(found[2]) < 2**256


def test_keys_differ_in_all_of_their_secret():
    secrets = [number_of(new_key_text().text[22:65]) for _ in range(200)]
    # Every bit is now and then set, and now and then not.
    ones = [sum(secret >> bit & 1 for secret in secrets) for bit in range(256)]
    assert min(ones) > 50
    assert max(ones) < 150


def test_a_key_is_read_back_and_its_text_is_shown_nowhere():
    made = new_key_text()
    read = read_key_text(made.text)
    assert read == made
    assert read.digest == digest_of(made.text)
    assert made.text[22:] not in repr(made)
    assert made.text not in f"{made!r} {made!s}"


@given(st.data())
def test_a_mistyped_key_is_none(data):
    text = new_key_text().text
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(LETTERS).filter(lambda one: one != text[at]))
    assert read_key_text(text[:at] + letter + text[at + 1 :]) is None
    assert read_key_text(text[:at] + text[at + 1 :]) is None


@pytest.mark.parametrize("text", ["", "clipmill_", "Bearer x", "sk-abc", "\0", "clipmill_" + "é" * 62])
def test_anything_else_is_no_key(text):
    assert read_key_text(text) is None


def test_a_key_ends_when_it_says_and_a_revoked_one_for_good():
    key = AccessKey(id="key_a", owner="a", name="", scopes=USUAL_SCOPES, created_at=0, expires_at=100)
    assert [key.state(now) for now in (99, 100)] == [KeyState.ACTIVE, KeyState.EXPIRED]
    revoked = AccessKey(id="key_a", owner="a", name="", scopes=USUAL_SCOPES, created_at=0, revoked_at=5, expires_at=9)
    assert {revoked.state(now) for now in (4, 6, 10)} == {KeyState.REVOKED}


def test_what_scopes_have_within_them():
    assert expanded({Scope.OPERATE}) == {Scope.OPERATE, Scope.SUBMIT, Scope.READ}
    assert expanded({Scope.ADMIN}) == set(Scope)
    for scope in (Scope.READ, Scope.SUBMIT, Scope.METRICS):
        assert expanded({scope}) == {scope}


def test_scopes_by_their_names():
    assert scopes_from(["read,metrics", "submit"]) == {Scope.READ, Scope.METRICS, Scope.SUBMIT}
    assert scopes_from([]) == USUAL_SCOPES
    with pytest.raises(BadInputError, match="no scope"):
        scopes_from(["root"])


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "a" * 65, "-a", "a\n"])
def test_names_that_no_owner_can_have(name):
    with pytest.raises(BadInputError):
        check_owner(name)
    assert check_owner("team-shoes@shop.example") == "team-shoes@shop.example"


# -- quotas -------------------------------------------------------------------------------------------------------

NOON = int(datetime.datetime(2028, 2, 29, 12, tzinfo=datetime.UTC).timestamp())


def refusal(quota: OwnerQuota, use: OwnerUse, adding: int = 1, now: int = NOON) -> QuotaExceededError | None:
    try:
        check_quota("team", quota, use, adding, now)
    except QuotaExceededError as error:
        return error
    return None


@given(most=st.integers(0, 20), waiting=st.integers(0, 30), adding=st.integers(1, 30))
def test_rows_may_wait_up_to_the_quota_and_no_more(most, waiting, adding):
    refused = refusal(OwnerQuota(queued_jobs=most), OwnerUse(queued_jobs=waiting), adding)
    assert (refused is None) == (waiting + adding <= most)


def test_who_used_up_a_day_comes_back_at_midnight_and_who_used_up_a_month_on_its_first():
    day = refusal(OwnerQuota(gpu_seconds_day=10), OwnerUse(gpu_seconds_day=10))
    assert day is not None
    assert day.headers == {"Retry-After": str(12 * 3600)}
    assert day.problem.field == "gpu_seconds_day"
    month = refusal(OwnerQuota(cost_month=1), OwnerUse(cost_month=1.5))
    assert month is not None
    back = datetime.datetime.fromtimestamp(NOON + month.retry_s, datetime.UTC)
    assert (back.month, back.day, back.hour, back.minute) == (3, 1, 0, 0)
    assert "clipmill keys quota team" in month.problem.remedy
    assert refusal(OwnerQuota(gpu_seconds_day=10, cost_month=1), OwnerUse(gpu_seconds_day=9.9, cost_month=0.9)) is None


@given(st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2100, 1, 1)))
def test_the_wait_ends_with_the_month_whatever_the_month(when):
    now = int(when.replace(tzinfo=datetime.UTC).timestamp())
    refused = refusal(OwnerQuota(cost_month=0), OwnerUse(), now=now)
    assert refused is not None
    back = datetime.datetime.fromtimestamp(now + refused.retry_s, datetime.UTC)
    assert (back.day, back.hour, back.minute, back.second) == (1, 0, 0, 0)
    assert (back.year * 12 + back.month) - (when.year * 12 + when.month) == 1
    first = datetime.date(1970, 1, 1) + datetime.timedelta(days=first_day_of_month(now))
    assert (first.year, first.month, first.day) == (when.year, when.month, 1)
