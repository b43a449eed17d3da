"""What the command line decides by itself, before any farm."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.jobs.model import Batch, BatchCounts, JobState
from cluster.results.export import ResultsError
from cluster.results.ownership import NO_INPUTS
from pipeline.problems import BadInputError
from pipeline.units import GIB
from pipeline.weights.weights import WeightsError
from serve.cli import batches as farm_module
from serve.cli import render as render_module
from serve.cli.common import Exit
from serve.cli.entry import main
from serve.cli.main import app
from serve.cli.render import choose_model, farm_args
from serve.cli.results import out_folder
from serve.cli.show import notes_text
from serve.embedded import FarmLock
from serve.renderer.cards import LazyDevice
from serve.settings import Settings
from tests.building import still_png


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def test_ctrl_c_while_the_command_is_still_being_imported_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "serve.cli.main", Slow("serve.cli.main"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.INTERRUPTED


def test_empty_cards_are_refused_not_replaced(settings: Settings) -> None:
    with pytest.raises(typer.Exit) as refused:
        farm_args(settings, "camera", "", None)
    assert refused.value.exit_code == Exit.USAGE


def test_an_empty_variable_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_HOME", "")
    assert Settings().home == Path("~/.clipmill").expanduser()


def test_a_model_that_needs_torch_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_module, "find_spec", lambda _name: None)
    with pytest.raises(BadInputError, match=r"needs torch.*clipmill\[render\]"):
        choose_model("i2vgen-xl-tiny")
    assert choose_model("camera") == ("camera", "asked for")


def test_a_row_that_needs_torch_says_so_where_it_is_not_installed() -> None:
    def open_device():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    with pytest.raises(WeightsError, match="torch") as told:
        LazyDevice(8 * GIB, 7 * GIB, "cpu", open_device).work()
    assert "clipmill[render]" in told.value.remedy


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere but on a read-only disk, which a test cannot mount.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResultsError, match="may not be written"):
        out_folder(tmp_path, None, NO_INPUTS)


def test_notes_are_told_once_with_how_many_rows_have_them_and_which() -> None:
    def job(name: str, **messages: str) -> dict[str, Any]:
        return {"name": name, "noted": [{"code": code, "message": text} for code, text in messages.items()]}

    enlarged = [job(f"SKU-{n}", enlarged=f"{n} times") for n in range(1, 13)]
    assert notes_text([*enlarged, job("a", unused="seed unused"), job("b", unused="seed unused"), job("c")]) == [
        "12 rows (SKU-1, SKU-2 and 10 more): still enlarged, such as: 1 times",
        "2 rows (a, b): seed unused",
    ]
    assert notes_text([job("a", black="all black")]) == ["1 row (a): all black"]


def test_notes_of_a_farm_that_tells_sentences_only() -> None:
    jobs = [
        {"name": "a", "adjusted": ["frames 16 -> 17: why"], "notes": ["reads no prompts"]},
        {"name": "b", "adjusted": [], "notes": []},
        {"name": "c", "adjusted": ["frames 16 -> 17: why"]},
    ]
    assert notes_text(jobs) == ["2 rows (a, c): frames 16 -> 17: why", "1 row (a): reads no prompts"]


def test_check_says_what_is_wrong_and_what_is_assumed_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(still_png(size=(90, 60)))
    (tmp_path / "c.csv").write_text(
        "image,prompt,seconds,resolution,brand,guidance\n"
        "a.png,make it nice,3,1024p,Q,\na.png,pan left,,,Q,\nb.png,pan left,,,Q,31\n"
    )
    home = tmp_path / "home"
    found = CliRunner().invoke(
        app, ["check", str(tmp_path / "c.csv"), "--model", "camera", "--home", str(home), "--json"]
    )
    assert found.exit_code == 1
    told = json.loads(found.stdout)
    assert told["unknown_columns"] == "columns not known, carried along: brand"
    assert [(row["name"], [note["code"] for note in row["noted"]]) for row in told["rows"]] == [
        ("a", ["column_unknown", "no_camera_move", "enlarged"]),
        ("a-2", ["id_made", "enlarged"]),
        ("b", []),
    ]
    assert [problem["field"] for problem in told["rows"][2]["problems"]] == ["guidance"]
    words = CliRunner(env={"COLUMNS": "300"}).invoke(
        app, ["check", str(tmp_path / "c.csv"), "--model", "camera", "--home", str(home)]
    )
    assert "2 of 3 clips can be rendered with camera" in words.output
    assert "note: 2 rows (a, a-2): the still of 90×60 pixels is enlarged" in words.output
    assert "resolution (resolution_class meant?)" in words.output
    assert not (home / "clipmill.db").exists()


def test_submit_hands_on_how_clips_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(still_png())
    (tmp_path / "c.csv").write_text(
        "id,image,prompt,model,frames\na,a.png,pan,i2vgen-xl-tiny,65\nb,a.png,tilt,i2vgen-xl-tiny,16\n"
        f"c,a.png,{'word ' * 80},i2vgen-xl-tiny,16\n"
    )
    settings = Settings(home=tmp_path / "home")
    monkeypatch.setenv("CLIPMILL_HOME", str(settings.home))
    lock = FarmLock(settings.home)
    assert lock.try_acquire()
    try:
        options = ["--sampler", "unipc", "--class", "512p", "--motion-class", "256p", "--strength", "0.25"]
        options += ["--upscale", "frames", "--step-cache", "2"]
        lenient, strict = (
            CliRunner().invoke(app, ["submit", str(tmp_path / "c.csv"), "--json", *options, *more])
            for more in ([], ["--strict", "--key", "other"])
        )
    finally:
        lock.release()
    assert lenient.exit_code == 0, lenient.output
    first, second, third = json.loads(lenient.stdout)["jobs"]
    assert first["adjusted"][0].startswith("frames 65 -> 64")
    assert second["adjusted"] == []
    assert len(second["lossy"]) == 2
    assert "strength 0.25" in second["lossy"][1]
    assert "frames enlarged" in second["lossy"][1]
    assert third["state"] == "queued"
    refused = json.loads(strict.stdout)["jobs"]
    assert [job["state"] for job in refused] == ["failed", "queued", "failed"]
    assert "the prompt is at least 5 tokens longer" in refused[2]["problems"][0]["message"]


def test_the_summary_counts_clips_apart_from_attempts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    batch = Batch(
        id="batch_1",
        owner="local",
        name="c.csv",
        created_at=0,
        sealed=True,
        source="",
        attended_until=None,
        counts=BatchCounts(by_state={JobState.COMPLETED: 10}),
        attempts=12,
    )
    told = {"undelivered": [], "undelivered_text": list, "deliveries": None, "feed_text": list}
    writer = types.SimpleNamespace(written=30, refused={}, **told)
    render_module._summary(batch, 10, [], tmp_path / "index.html", writer)
    assert "10 rendered now · 12 attempts" in capsys.readouterr().err
    render_module._summary(dataclasses.replace(batch, attempts=10), 10, [], tmp_path / "index.html", writer)
    assert "attempts" not in capsys.readouterr().err


def test_a_port_somebody_listens_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        # As Serve's proxy does: two farms would both listen, and requests would go to either.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(typer.Exit) as refused:
            farm_module._require_free("127.0.0.1", port)
    assert refused.value.exit_code == Exit.NO_FARM
    assert f":{port} cannot be had" in capsys.readouterr().err
    farm_module._require_free("127.0.0.1", port)
