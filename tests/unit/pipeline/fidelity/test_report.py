"""What a published clip says of its fidelity, in its provenance and notes, and a clip measured by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.fidelity.files import frames_of_file
from pipeline.problems import BadInputError
from pipeline.render import write_clip
from serve.cli.common import Exit
from serve.cli.main import app
from tests.building import spec as spec_of
from tests.fidelity.spoilt import GoodClip, good_clip, recoloured
from tests.unit.pipeline.fidelity.test_found import clips


@pytest.fixture(scope="module")
def clip() -> GoodClip:
    return good_clip("one", clips()[6].still, 1, side=256, frames=12)


def published(clip: GoodClip, frames: np.ndarray, folder: Path) -> Any:
    folder.mkdir()
    return write_clip(frames, clip.spec, folder, {"model": {"move_share": clip.room}}, (), None, clip.still)


def test_a_good_clip_has_its_score_and_a_bad_one_its_notes(clip: GoodClip, tmp_path: Path) -> None:
    import random

    good = published(clip, clip.frames, tmp_path / "good")
    spoilt = recoloured(clip, 2, random.Random(1), ())
    assert spoilt is not None
    bad = published(clip, spoilt, tmp_path / "bad")
    assert good.notes == ()
    assert good.fidelity.score > 0.5 > bad.fidelity.score
    assert "colour_drift" in {note.code for note in bad.notes}
    told = json.loads(bad.provenance.read_text())["fidelity"]
    assert told["score"] == bad.fidelity.score
    assert told["parts"]["colour"]["score"] == bad.fidelity.parts["colour"]
    assert "colour_drift" in told["reasons"]
    assert told["product"]["by"] in ("background", "grabcut", "unknown")


def test_a_small_networks_clip_says_that_it_was_not_measured_and_why(clip: GoodClip, tmp_path: Path) -> None:
    spec = spec_of("i2vgen-xl-tiny", frames=4, width=64, height=64, steps=2)
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    files = write_clip(frames, spec, tmp_path, {}, (), None, clip.still)
    assert files.fidelity is None
    assert files.notes == ()
    assert "noise" in json.loads(files.provenance.read_text())["fidelity"]["not_measured"]


def test_frames_of_a_file_are_those_that_were_encoded(clip: GoodClip, tmp_path: Path) -> None:
    files = published(clip, clip.frames, tmp_path / "clip")
    read = frames_of_file(files.video)
    assert read.shape == clip.frames.shape
    assert float(np.abs(read.astype(int) - clip.frames).mean()) < 4


def test_a_clip_is_measured_by_hand(clip: GoodClip, tmp_path: Path) -> None:
    files = published(clip, clip.frames, tmp_path / "clip")
    still, other = tmp_path / "still.png", tmp_path / "other.png"
    clip.still.save(still)
    clips()[2].still.save(other)
    # As OUT has it: the provenance lies beside the clip, and says what was asked for.
    files.provenance.rename(files.video.with_suffix(".json"))

    def measured(*words: object) -> Any:
        return CliRunner().invoke(app, ["fidelity", *(str(word) for word in words)])

    good = measured(files.video, still, "--json")
    assert good.exit_code == Exit.DONE, good.output
    told = json.loads(good.stdout)
    assert told["prompt"] == clip.spec.prompt
    assert told["notes"] == []
    assert told["parts"]["motion"]["score"] == 1
    assert measured(files.video, still).exit_code == Exit.DONE
    opposite = measured(files.video, still, "--prompt", clip.opposite.format(speed="slowly"), "--json")
    assert opposite.exit_code == Exit.SOME_FAILED
    assert "motion_opposite" in json.loads(opposite.stdout)["reasons"]
    assert measured(files.video, other).exit_code == Exit.SOME_FAILED
    assert measured(tmp_path / "none.mp4", still).exit_code == Exit.USAGE
    text = tmp_path / "clip.txt"
    text.write_text("no film")
    assert measured(text, still).exit_code == Exit.USAGE


def test_a_file_that_is_no_video_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no film")
    with pytest.raises(BadInputError, match=r"clip\.mp4"):
        frames_of_file(path)
