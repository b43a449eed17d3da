"""Following a batch: its pace in words, its results as they come, and what cannot be run told before anything waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import Row
from cluster.fleet.cards import Fleet
from cluster.jobs.model import JobState
from cluster.store import DispatchStore
from pipeline.problems import BadInputError
from serve.cli import runnable
from serve.cli.common import Exit, local_farm
from serve.cli.failures import FailureNotices
from serve.cli.main import app
from serve.cli.runnable import check_fits, check_runnable
from serve.cli.show import RowPace
from serve.embedded import FarmLock, emulated_classes
from serve.settings import FarmArgs, Settings
from tests.building import PROBLEM, bad_draft, draft, still_png

# -- pace -------------------------------------------------------------------------------------------------------------


def test_the_pace_is_counted_from_the_first_clip_under_way_on():
    now = [0.0]
    pace = RowPace(lambda: now[0])
    assert pace.words(40, 100, running=False) == ("", "")
    now[0] = 100.0
    assert pace.words(40, 100, running=True) == ("", "")
    now[0] = 160.0
    # Two in a minute, and 58 are left.
    assert pace.words(42, 100, running=True) == ("2.0 clips/min", "about 29 min 0 s left")


def test_too_little_to_go_by_is_no_forecast():
    now = [0.0]
    pace = RowPace(lambda: now[0])
    pace.words(0, 10, running=True)
    now[0] = 1.0
    assert pace.words(5, 10, running=True) == ("", "")
    now[0] = 500.0
    assert pace.words(0.1, 10, running=True) == ("", "")


# -- what cannot be run -----------------------------------------------------------------------------------------------


def test_a_model_that_needs_torch_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runnable, "find_spec", lambda name: None)
    settings = Settings(home=tmp_path)
    with pytest.raises(BadInputError, match=r"3 rows ask for i2vgen-xl, which needs torch.*pip install"):
        check_runnable({"camera": 9, "i2vgen-xl": 3}, settings)
    assert check_runnable({"camera": 9}, settings) == []


def test_weights_that_are_not_here_are_a_note_with_a_net_and_a_refusal_without(tmp_path: Path):
    [note] = check_runnable({"i2vgen-xl": 1}, Settings(home=tmp_path))
    assert note.startswith("1 row asks for i2vgen-xl, whose weights are not here: its first clip fetches ")
    with pytest.raises(BadInputError, match=r"the farm is offline.*clipmill models pull i2vgen-xl"):
        check_runnable({"i2vgen-xl": 1}, Settings(home=tmp_path, offline=True))
    assert check_runnable({"i2vgen-xl": 1}, Settings(home=tmp_path, offline=True), {"i2vgen-xl"}) == []


def rows_of(*models: str) -> list[Row]:
    return [
        Row(number=i, id=f"R{i}", image="a.png", prompt="zoom in", model=model) for i, model in enumerate(models, 1)
    ]


def test_rows_that_no_card_can_hold_are_told_before_anything_is_fetched():
    emulated = FarmArgs(card_classes=emulated_classes(["c8", "c24"]), emulate=True).fleet()
    defaults = Defaults(model="camera")
    assert check_fits(rows_of("camera", "i2vgen-xl-tiny"), defaults, emulated) == []
    with pytest.raises(BadInputError, match=r"no card of this farm can hold i2vgen-xl at .* it needs [0-9.]+ GiB"):
        check_fits(rows_of("i2vgen-xl", "i2vgen-xl"), defaults, emulated)
    [note] = check_fits(rows_of("camera", "i2vgen-xl", "svd-xt"), defaults, emulated)
    assert note.startswith("2 rows (R2, R3) will fail: no card of this farm can hold i2vgen-xl")
    # Of cards that are large enough nothing is said.
    assert check_fits(rows_of("i2vgen-xl", "svd-xt"), defaults, Fleet(usable_bytes={"c80": 78 * 2**30})) == []
    # What cannot be resolved is another's to tell.
    assert check_fits(rows_of("nothing-of-the-kind"), defaults, emulated) == []


def test_submit_refuses_what_no_card_of_the_running_farm_can_hold(tmp_path: Path):
    args = FarmArgs(card_classes=emulated_classes(["c8"]), emulate=True)
    lock = FarmLock(tmp_path / "home")
    assert lock.try_acquire()
    try:
        lock.note(default_model="camera", rules=args.rules().model_dump(mode="json"), weights=["i2vgen-xl"])
        (tmp_path / "a.png").write_bytes(still_png())
        (tmp_path / "c.csv").write_text("id,image,prompt\nA,a.png,zoom in\n")
        asked = ["submit", str(tmp_path / "c.csv"), "--home", str(tmp_path / "home")]
        ended = CliRunner().invoke(app, [*asked, "--model", "i2vgen-xl"])
        assert ended.exit_code == Exit.USAGE
        assert "no card of this farm can hold i2vgen-xl" in ended.stderr
        stills = tmp_path / "home" / "storage" / "stills"
        assert not stills.exists()
        assert CliRunner().invoke(app, asked).exit_code == Exit.DONE
    finally:
        lock.release()


# -- a farm that runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path):
    """A home whose farm runs, as far as its lock tells."""
    lock = FarmLock(tmp_path / "home")
    assert lock.try_acquire()
    lock.note(options={"--cards": "c8,c8"})
    yield tmp_path / "home"
    lock.release()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cards", "c24"], "--cards"),
        (["--weights", "/elsewhere"], "--weights"),
        (["--cards", "c8", "--weights", "/elsewhere"], "--cards and --weights"),
    ],
)
def test_options_that_a_running_farm_would_not_obey_are_refused(home: Path, tmp_path: Path, options, named):
    (tmp_path / "mug.png").write_bytes(still_png())
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,image,prompt\nMUG,mug.png,zoom in\n")
    command = ["render", str(catalog), "--home", str(home), "--out", str(tmp_path / "out"), "--model", "camera"]
    ended = CliRunner().invoke(app, [*command, *options])
    assert ended.exit_code == Exit.USAGE
    assert f"would not obey {named}." in ended.stderr
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


# -- rows and results -------------------------------------------------------------------------------------------------


@pytest.fixture
def handed_in(tmp_path: Path):
    """A home with a batch of two rows that wait and one that cannot be rendered."""
    settings = Settings(home=tmp_path / "home")
    farm = local_farm(settings)
    batch_id, _ = farm.batch_store.open_batch("local", name="catalog.csv")
    farm.batch_store.add("local", batch_id, [draft(1, "a"), draft(2, "b"), bad_draft(3)])
    farm.batch_store.seal("local", batch_id)
    return farm, settings.home, batch_id


def test_rows_are_listed_and_chosen_by_state(handed_in):
    _, home, batch_id = handed_in
    command = ["status", batch_id, "--home", str(home)]
    whole = json.loads(CliRunner().invoke(app, [*command, "--rows", "--json"]).stdout)["jobs"]
    assert [job["number"] for job in whole] == [1, 2, 3]
    some = json.loads(CliRunner().invoke(app, [*command, "--state", "failed", "--json"]).stdout)["jobs"]
    assert [(job["number"], job["state"]) for job in some] == [(3, "failed")]
    shown = CliRunner().invoke(app, [*command, "--rows"]).stderr
    assert all(str(job["name"]) in shown for job in whole)
    assert PROBLEM.message in shown
    alone = CliRunner().invoke(app, ["status", "--rows", "--home", str(home)])
    assert (alone.exit_code, "name it" in alone.stderr) == (Exit.USAGE, True)


def test_results_are_written_before_the_batch_has_ended(handed_in, tmp_path: Path):
    _, home, batch_id = handed_in
    out = tmp_path / "out"
    ended = CliRunner().invoke(app, ["results", batch_id[:14], "--home", str(home), "--out", str(out)])
    assert ended.exit_code == Exit.DONE, ended.stderr
    assert "0 of 3 clips are done so far" in ended.stderr
    assert str(out / "index.html") in ended.stderr.replace("\n", "")
    assert (out / "index.html").exists()


def test_a_farm_s_terminal_hears_of_rows_that_fail_and_of_each_once(handed_in):
    farm, _, _ = handed_in
    notices = FailureNotices(farm)
    assert notices.news() == []
    batch_id, _ = farm.batch_store.open_batch("local", name="more.csv")
    farm.batch_store.add("local", batch_id, [bad_draft(1), bad_draft(2)])
    [line] = notices.news()
    assert "more.csv: 2 rows failed, the last" in line
    assert PROBLEM.message in line
    assert f"clipmill status {batch_id}" in line
    assert notices.news() == []
    assert farm.batch(batch_id).counts[JobState.FAILED] == 2


def test_a_farm_s_terminal_hears_that_another_farm_renders(handed_in):
    farm, _, _ = handed_in
    notices = FailureNotices(farm, "ours")
    assert notices.news() == []
    theirs = DispatchStore(farm.batch_store.database)
    theirs.take_office("elsewhere:1", "theirs")
    [line] = notices.news()
    assert "another farm (elsewhere:1) renders" in line
    assert notices.news() == []
    theirs.leave_office()
    [line] = notices.news()
    assert "this one renders now" in line
    DispatchStore(farm.batch_store.database).take_office("here:1", "ours")
    assert notices.news() == []


def test_marks_of_a_check_are_shown_and_not_spelt(tmp_path: Path):
    (tmp_path / "mug.png").write_bytes(still_png())
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,image,prompt\nMUG,mug.png,zoom in\n")
    ended = CliRunner().invoke(app, ["check", str(catalog), "--home", str(tmp_path / "home"), "--model", "camera"])
    assert (ended.exit_code, "✓ 1 of 1 clips can be rendered" in ended.stderr) == (Exit.DONE, True)
