"""What `check` and `forecast` tell of a catalog before it is handed in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from serve.cli import forecast as forecast_module
from serve.cli.common import local_farm
from serve.cli.main import app
from serve.embedded import FarmLock
from serve.settings import Settings
from tests.building import still_png

FLEET = Path(__file__).parents[4] / "examples" / "fleet.yaml"


def catalog(folder: Path, *lines: str) -> Path:
    (folder / "a.png").write_bytes(still_png())
    path = folder / "c.csv"
    path.write_text("\n".join(["id,image,prompt,after", *lines, ""]))
    return path


def test_check_says_what_rows_wait_for_in_vain(tmp_path: Path) -> None:
    path = catalog(tmp_path, "A,a.png,zoom in,ZZZ", "B,a.png,pan left,C", "C,a.png,tilt up,B", "D,a.png,zoom in,A")
    home = tmp_path / "home"
    found = CliRunner().invoke(app, ["check", str(path), "--model", "camera", "--home", str(home), "--json"])
    assert found.exit_code == 1
    told = {row["name"]: row["problems"] for row in json.loads(found.stdout)["rows"]}
    assert {name: problems[0]["field"] for name, problems in told.items()} == dict.fromkeys("ABCD", "after")
    assert "no row 'ZZZ'" in told["A"][0]["message"]
    assert "B → C → B" in told["B"][0]["message"]
    assert not (home / "clipmill.db").exists()


def test_check_says_which_stills_will_give_bad_clips(tmp_path: Path) -> None:
    path = catalog(tmp_path, "A,a.png,zoom in,", "B,b.png,pan left,", "C,b.png,tilt up,")
    Image.new("RGB", (600, 600), "white").save(tmp_path / "b.png")
    found = CliRunner().invoke(app, ["check", str(path), "--model", "camera", "--home", str(tmp_path), "--json"])
    assert found.exit_code == 0
    told = {row["name"]: [note["code"] for note in row["noted"]] for row in json.loads(found.stdout)["rows"]}
    assert {name for name, codes in told.items() if "still_uniform" in codes} == {"B", "C"}


@pytest.mark.parametrize("strict", [False, True])
def test_check_says_what_of_a_prompt_will_be_cut(tmp_path: Path, strict: bool) -> None:
    words = " ".join(f"w{n}" for n in range(80))
    path = catalog(tmp_path, f"A,a.png,{words},", "B,a.png,pan left,")
    asked = ["check", str(path), "--model", "i2vgen-xl", "--home", str(tmp_path / "home"), "--json"]
    found = CliRunner().invoke(app, [*asked, *(["--strict"] if strict else [])])
    rows = {row["name"]: row for row in json.loads(found.stdout)["rows"]}
    kept = [problem["field"] for problem in rows["A"]["problems"]]
    assert (found.exit_code, kept) == ((1, ["prompt"]) if strict else (0, []))
    assert ("prompt_cut" in [note["code"] for note in rows["A"]["noted"]]) is not strict
    assert rows["B"]["problems"] == []


def test_a_row_may_wait_for_a_job_that_the_home_has(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    farm = local_farm(settings)
    first = read_manifest(catalog(tmp_path, "A,a.png,zoom in,"))
    batch = farm.submit(gather(first, farm.put_still), Defaults(model="camera"), name="c")
    (job,) = farm.jobs(batch.id)
    path = catalog(tmp_path, f"B,a.png,pan left,{job.id}", "C,a.png,pan left,video_none")
    found = CliRunner().invoke(app, ["check", str(path), "--model", "camera", "--home", str(settings.home), "--json"])
    told = {row["name"]: len(row["problems"]) for row in json.loads(found.stdout)["rows"]}
    assert told == {"B": 0, "C": 1}


def test_a_forecast_counts_no_row_that_waits_in_vain(tmp_path: Path) -> None:
    path = catalog(tmp_path, "A,a.png,zoom in,ZZZ", "B,a.png,pan left,")
    asked = ["forecast", str(path), "--model", "camera", "--fleet", str(FLEET), "--home", str(tmp_path / "home")]
    found = CliRunner().invoke(app, [*asked, "--json"])
    assert found.exit_code == 1, found.output
    told = json.loads(found.stdout)
    assert [row["fits"] for row in told["rows"]] == [False, True]
    assert "no row 'ZZZ'" in told["rows"][0]["why_not"]


def test_a_forecast_takes_the_model_that_the_farm_would_take_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = catalog(tmp_path, "A,a.png,zoom in,")
    home = tmp_path / "home"
    asked = ["forecast", str(path), "--home", str(home)]

    def model_of(*more: str) -> str:
        found = CliRunner().invoke(app, [*asked, *more, "--json"])
        assert found.exit_code == 0, found.output
        return str(json.loads(found.stdout)["default_model"])

    # Cards of another place, and no farm here that says otherwise: what a farm takes by default.
    assert model_of("--fleet", str(FLEET)) == "i2vgen-xl"
    monkeypatch.setattr(forecast_module, "choose_model", lambda asked: ("camera", f"{asked}: no GPU was found"))
    assert model_of("--fleet", str(FLEET), "--model", "auto") == "camera"
    assert model_of("--fleet", str(FLEET), "--model", "wan2.2-5b") == "wan2.2-5b"
    lock = FarmLock(home)
    assert lock.try_acquire()
    try:
        lock.note(default_model="svd-xt")
        assert model_of("--fleet", str(FLEET)) == "svd-xt"
        words = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*asked, "--fleet", str(FLEET)]).output
    finally:
        lock.release()
    assert "model of rows that name none: svd-xt (the default of the farm that runs here)" in words
