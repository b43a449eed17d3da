"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from cluster.manifest import read_manifest
from cluster.times import parse_time
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
