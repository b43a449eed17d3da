"""Times as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from cluster.catalog.manifest import read_manifest
from cluster.catalog.times import parse_time, read_duration, read_time
from pipeline.problems import BadInputError

NOW = datetime(2026, 11, 21, 14, 30, tzinfo=timezone(timedelta(hours=1)))


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("22:00", at(2026, 11, 21, 21)),
        ("14:31", at(2026, 11, 21, 13, 31)),
        ("14:30", at(2026, 11, 22, 13, 30)),
        ("9:05", at(2026, 11, 22, 8, 5)),
        ("2026-12-01T00:00", at(2026, 11, 30, 23)),
        ("2026-12-01", at(2026, 11, 30, 23)),
        ("2026-12-01T00:00Z", at(2026, 12, 1)),
        ("2026-12-01T00:00-05:00", at(2026, 12, 1, 5)),
    ],
)
def test_a_time_is_local_unless_it_says_otherwise(text, seconds):
    assert parse_time("not_before", text, NOW) == seconds


def test_the_next_three_o_clock_is_a_wall_clock_s_where_clocks_change():
    # In the night to 29 March 2026 clocks in Berlin go from 2 to 3.
    now = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert parse_time("t", "11:00", now) == at(2026, 3, 29, 9)


@pytest.mark.parametrize("text", ["", "tea", "25:00", "22:60", "22", "99999-01-01", "1900-01-01"])
def test_what_is_no_time_is_refused_with_what_to_write(text):
    with pytest.raises(BadInputError) as refused:
        parse_time("not_before", text, NOW)
    assert refused.value.problem.field == "not_before"
    assert refused.value.problem.remedy


def test_a_manifest_says_when(tmp_path):
    (tmp_path / "c.csv").write_text("image,prompt,not_before\na.png,x,2026-12-01T00:00Z\nb.png,x,\nc.png,x,tea time\n")
    manifest = read_manifest(tmp_path / "c.csv")
    assert [row.not_before for row in manifest.good] == [at(2026, 12, 1), None]
    assert [problem.field for problem in manifest.bad[0].problems] == ["not_before"]


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's clocks are Berlin's."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        # One of the two would be an hour off with the offset of the day on which the test runs.
        ("2027-06-01T08:00", at(2027, 6, 1, 6)),
        ("2027-12-01T08:00", at(2027, 12, 1, 7)),
        ("2027-06-01", at(2027, 5, 31, 22)),
        ("2027-06-01T08:00+05:00", at(2027, 6, 1, 3)),
    ],
)
def test_a_local_time_has_the_offset_of_its_own_date(text, seconds):
    assert read_time("not_before", text) == (seconds, None)


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("now", [None, NOW.astimezone(ZoneInfo("Europe/Berlin"))])
@pytest.mark.parametrize(
    ("text", "seconds", "said"),
    [
        ("2027-03-28T02:30", at(2027, 3, 28, 1, 30), "that hour is left out; taken as 2027-03-28T03:30+02:00"),
        ("2027-10-31T02:30", at(2027, 10, 31, 1, 30), "that hour is struck twice; taken as 2027-10-31T02:30+01:00"),
    ],
)
def test_an_hour_that_clocks_leave_out_or_strike_twice_is_the_later_one_and_said(text, seconds, said, now):
    found, note = read_time("not_before", text, now)
    assert found == seconds
    assert note is not None
    assert said in note.message
    assert note.code == "time_read"


def test_a_clock_time_in_an_hour_that_is_struck_twice():
    # In the night to 31 October 2027 clocks in Berlin strike two twice.
    zone = ZoneInfo("Europe/Berlin")
    before = datetime(2027, 10, 30, 12, tzinfo=zone)
    assert read_time("t", "02:30", before)[0] == at(2027, 10, 31, 1, 30)
    between = datetime(2027, 10, 31, 2, 45, tzinfo=zone)
    assert read_time("t", "02:30", between)[0] == at(2027, 10, 31, 1, 30)
    assert read_time("t", "22:00:05", before)[0] == at(2027, 10, 30, 20, 0) + 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60), ("90 s", 90), ("2 min", 120), ("2m", 120), ("1 h 30 min", 5400), ("1.5h", 5400), ("1,5 h", 5400),
        (" 3 Minutes ", 180), ("0.5", 0.5), ("24 h", 86400),
    ],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert read_duration("within", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "1:30", "soon", "2 days", "25 h", "5 min 3 h", "1h30", "2 min 5", "1e3", "9" * 400]
)
def test_what_is_no_duration_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_duration("within", text)
    assert (caught.value.problem.field, "2 min" in caught.value.problem.remedy) == ("within", True)
