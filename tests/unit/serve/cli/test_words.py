"""What commands say of rows, cards and ids, on a store without a farm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.farm import Farm
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError
from serve.cli.common import local_farm
from serve.cli.main import app
from serve.cli.show import card_state_text, rows_table, waits_text, zoned_text
from serve.settings import Settings
from tests.building import still_png

#: 1 June 2030, 06:00 UTC.
THEN = 1_906_524_000


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return local_farm(Settings(home=tmp_path / "home"))


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def hand_in(farm: Farm, folder: Path, text: str) -> str:
    (folder / "a.png").write_bytes(still_png())
    (folder / "c.csv").write_text(text)
    manifest = read_manifest(folder / "c.csv")
    return farm.submit(gather(manifest, farm.put_still), Defaults(model="camera"), name="c.csv").id


def run(farm_home: Path, *words: str) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [*words, "--home", str(farm_home)])


def test_a_beginning_that_says_too_little_is_told_from_one_that_nothing_has(farm: Farm, tmp_path: Path) -> None:
    with pytest.raises(NoSuchBatchError):
        farm.batch_store.find("local", "batch_")
    first = hand_in(farm, tmp_path, "id,image,prompt\nA,a.png,pan left\n")
    for short in ("batch_", "batch", first[:8]):
        with pytest.raises(AmbiguousIdError, match="4 or more characters"):
            farm.batch_store.find("local", short)
    second = hand_in(farm, tmp_path, "id,image,prompt\nA,a.png,tilt up\n")
    for short in ("batch_", "batch"):
        with pytest.raises(AmbiguousIdError) as told:
            farm.batch_store.find("local", short)
        assert first in str(told.value)
        assert second in str(told.value)
    assert farm.batch_store.find("local", first) == first
    found = run(tmp_path / "home", "status", "batch_")
    assert found.exit_code == 2
    assert "2 ids begin with 'batch_'" in found.output


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"state": "idle"}, "idle"),
        ({"state": "idle", "order": {"kind": "drain"}}, "idle, drained"),
        ({"state": "rendering", "order": {"kind": "lock"}, "fault": ""}, "rendering, locked"),
        ({"state": "idle", "order": {"kind": "quarantine"}, "fault": "lost"}, "idle, quarantined, no GPU"),
    ],
)
def test_the_state_of_a_card_says_that_it_takes_nothing(facts: dict[str, Any], words: str) -> None:
    assert card_state_text({"order": None, **facts}) == words


@pytest.mark.usefixtures("berlin")
def test_an_embargo_is_shown_before_and_after_handing_in(farm: Farm, tmp_path: Path) -> None:
    text = "id,image,prompt,not_before,after\nA,a.png,pan left,2030-06-01T08:00,\nB,a.png,tilt up,,A\n"
    batch_id = hand_in(farm, tmp_path, text)
    home = tmp_path / "home"
    checked = run(home, "check", str(tmp_path / "c.csv"), "--model", "camera")
    assert "starts: 1 row (A): not before 2030-06-01 08:00+02:00" in checked.output
    assert "starts: 1 row (B): after A" in checked.output
    told = json.loads(run(home, "check", str(tmp_path / "c.csv"), "--model", "camera", "--json").stdout)["rows"]
    assert [(row["not_before"], row["after"]) for row in told] == [(THEN, None), (None, "A")]
    rows = run(home, "status", batch_id, "--rows").output
    assert "not before 2030-06-01 08:00+02:00" in rows
    assert "after A" in rows


def test_times_that_are_over_or_beyond_any_calendar_are_told_as_such() -> None:
    row = {"name": "A", "not_before": 1_000_000_000, "after": None}
    (line,) = waits_text([row])
    assert line.endswith("which is over")
    assert "1970 (UTC)" in zoned_text(2**40 - 1)
    many = [row | {"not_before": THEN + 60 * number} for number in range(14)]
    assert len(waits_text(many)) == 11
    done = {"state": "completed", "reason": None, "not_before": 2**33, "after": None, "row": {}, "problems": []}
    shown = {"number": 1, "name": "A", "step": 0, "steps": 0, "model": None, "size": None, "attempts": 0}
    assert rows_table([done | shown]).columns[-1]._cells[0].plain == ""


def test_rows_that_somebody_waits_for_are_told_until_they_have_ended() -> None:
    row = {"number": 1, "name": "A", "reason": None, "step": 0, "steps": 0, "model": None, "size": None, "attempts": 0}
    rest = {"row": {}, "problems": [], "interactive": True}
    rows = [row | rest | {"state": state} for state in ("queued", "running", "completed")]
    rows.append(rows[0] | {"interactive": False})
    # A farm of before says nothing of it.
    rows.append({name: value for name, value in rows[0].items() if name != "interactive"})
    told = [cell.plain for cell in rows_table(rows).columns[-1]._cells]
    assert told == ["interactive", "interactive", "", "", ""]


def test_a_retry_says_which_rows_no_retry_helps(farm: Farm, tmp_path: Path) -> None:
    text = "id,image,prompt,after\nA,a.png,pan left,\nB,missing.png,pan left,\nC,a.png,tilt up,B\n"
    batch_id = hand_in(farm, tmp_path, text)
    home = tmp_path / "home"
    found = run(home, "retry", batch_id)
    assert found.exit_code == 1
    assert "1 row (B) not put back: the row or its picture is at fault" in found.output
    assert "1 row (C) not put back: the row it waits for has failed" in found.output
    told = run(home, "retry", batch_id, "--json")
    assert told.exit_code == 1
    names = {job.id: job.name for job in farm.jobs(batch_id)}
    assert [names[job_id] for job_id in json.loads(told.stdout)["not_retried"]] == ["B", "C"]
