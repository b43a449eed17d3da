"""`clipmill marks` and `clipmill verify` by a person's hand, with right and wrong input."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.marks.identity import load
from pipeline.marks.mark import mark
from pipeline.marks.marker import Marker
from serve.cli.common import Exit
from serve.cli.main import app
from tests.unit.pipeline.marks.clips import FACTS, flipped, identity, make_files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def clipmill(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_test_certificate_is_set_up_replaced_and_removed(home: Path) -> None:
    shown = clipmill("marks", "show")
    assert (shown.exit_code, "marks setup" in shown.stderr) == (Exit.SOME_FAILED, True)
    made = clipmill("marks", "setup", "--test", "--name", "Night shift")
    assert made.exit_code == Exit.DONE, made.stderr
    assert "test certificate" in made.stderr
    assert stat.S_IMODE((home / "marks" / "key.pem").stat().st_mode) == 0o600
    again = clipmill("marks", "setup", "--test")
    assert (again.exit_code, "--replace" in again.stderr) == (Exit.USAGE, True)
    assert clipmill("marks", "setup", "--test", "--name", "Day shift", "--replace").exit_code == Exit.DONE
    told = json.loads(clipmill("marks", "show", "--json").stdout)["certificate"]
    assert (told["common_name"], told["is_test"], told["timestamp_url"]) == ("Day shift", True, "")
    assert clipmill("marks", "remove").exit_code == Exit.DONE
    assert load(home / "marks") is None
    assert clipmill("marks", "remove").exit_code == Exit.USAGE


def test_ones_own_certificate_is_taken_with_its_key_alone(home: Path, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(identity().chain)
    key.write_bytes(identity().key)
    for words in (
        (),
        ("--test", "--certificate", chain, "--key", key),
        ("--certificate", chain),
        ("--certificate", chain, "--key", chain),
        ("--certificate", tmp_path / "nowhere.pem", "--key", key),
        ("--test", "--timestamp-url", "ftp://example.org"),
    ):
        wrong = clipmill("marks", "setup", *words)
        assert wrong.exit_code == Exit.USAGE, words
        assert "error" in wrong.stderr
        assert load(home / "marks") is None
    made = clipmill("marks", "setup", "--certificate", chain, "--key", key)
    assert made.exit_code == Exit.DONE, made.stderr
    found = load(home / "marks")
    assert found is not None
    assert (found.common_name, found.is_test) == ("Somebody", False)


def test_files_are_judged_one_by_one(home: Path, tmp_path: Path) -> None:
    assert clipmill("marks", "setup", "--test", "--name", "Night shift").exit_code == Exit.DONE
    marker = Marker.of(home / "marks")
    out = tmp_path / "out"
    out.mkdir()
    files = make_files(out)
    for path in files.values():
        mark(path, FACTS, marker)
    whole = clipmill("verify", out)
    assert whole.exit_code == Exit.DONE, whole.stderr
    for words in ("valid", "Night shift", "a certificate of this home", "made by a trained model", FACTS.content_key):
        assert words in whole.stderr
    flipped(files["jpg"], files["jpg"].stat().st_size - 300, out / "bad.jpg")
    (out / "notes.txt").write_text("no picture")
    (out / "broken.mp4").write_bytes(b"no video")
    judged = clipmill("verify", "--json", out, out / "notes.txt", out / "gone.mp4")
    assert judged.exit_code == Exit.SOME_FAILED
    told = json.loads(judged.stdout)
    states = {Path(one["path"]).name: one["state"] for one in told["files"]}
    assert states == {"clip-0.mp4": "valid", "clip-0.jpg": "valid", "clip-0.png": "valid", "bad.jpg": "altered"}
    assert len(told["not_read"]) == 3
    assert clipmill("verify", tmp_path / "home").exit_code == Exit.USAGE
    assert clipmill("verify", files["mp4"], "--against", files["mp4"]).exit_code == Exit.USAGE
    assert clipmill("verify", files["mp4"], "--trust", out / "notes.txt").exit_code == Exit.USAGE


def test_a_stranger_is_not_vouched_for_unless_a_list_does(home: Path, tmp_path: Path) -> None:
    path = mark(make_files(tmp_path)["mp4"], FACTS, Marker(identity(), ""))
    assert "nobody here vouches" in clipmill("verify", path).stderr
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(identity().chain)
    assert "--trust vouches" in clipmill("verify", path, "--trust", anchors).stderr
