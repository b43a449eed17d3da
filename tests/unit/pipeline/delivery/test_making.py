"""A clip to a file, judged by us, by Debian's ffprobe and by the pixels; and files that break one rule each."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from pipeline.clips.encode import encode_mp4
from pipeline.clips.inspection.product import product_area
from pipeline.delivery.boxes import has_edit_list, index_first
from pipeline.delivery.encoding import decode_clip, video_bit_rate
from pipeline.delivery.judging import judge_file
from pipeline.delivery.making import Master, make_file, read_master
from pipeline.delivery.profiles import Audio, DeliveryProfile, Lengthening
from pipeline.problems import BadInputError
from tests.unit.pipeline.delivery.clips import product_clip, profile

needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe here")


def probed(path: Path) -> dict[str, object]:
    """What ffprobe, another build of another ffmpeg, says of a file."""
    words = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-show_packets", "-of", "json", str(path)]
    found: dict[str, object] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return found


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Master:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode_mp4(product_clip(box=(60, 40, 100, 125), frames=12, drift=(12, 0)), 24, path)
    return read_master(path)


RULES: list[dict[str, object]] = [
    {},
    {"width": 108, "height": 192, "audio": Audio.SILENT, "loops": True},
    {"width": 120, "height": 120, "rates": (25,), "min_bit_rate": 900_000, "max_bit_rate": 2_000_000},
]


@needs_ffprobe
@pytest.mark.parametrize("rules", RULES, ids=["wide", "tall with sound", "square with a floor"])
def test_a_file_is_what_its_profile_says_by_another_reader(
    master: Master, rules: dict[str, object], tmp_path: Path
) -> None:
    wanted = profile(**rules)
    path = tmp_path / "made.mp4"
    verdict = make_file(master, wanted, path)
    assert verdict.passed, verdict.broken
    found = probed(path)
    streams: list[dict[str, object]] = found["streams"]  # type: ignore[assignment]
    video = next(one for one in streams if one["codec_type"] == "video")
    assert (video["codec_name"], video["pix_fmt"], video["width"], video["height"]) == (
        "h264",
        "yuv420p",
        wanted.width,
        wanted.height,
    )
    assert video["sample_aspect_ratio"] == "1:1"
    colours = [video[f"color_{one}"] for one in ("range", "space", "transfer", "primaries")]
    assert colours == ["tv", "bt709", "bt709", "bt709"]
    assert video["r_frame_rate"] == video["avg_frame_rate"] == f"{wanted.rates[0]}/1"
    packets = [one for one in found["packets"] if one["codec_type"] == "video"]  # type: ignore[attr-defined]
    times = sorted(int(one["pts"]) for one in packets)
    assert times[0] == 0
    assert len(set(np.diff(times))) == 1
    seconds = Fraction(len(packets), wanted.rates[0])
    assert wanted.min_seconds <= seconds <= wanted.max_seconds
    rate = sum(int(one["size"]) for one in packets) * 8 / float(seconds)
    assert rate >= wanted.min_bit_rate
    assert rate == pytest.approx(video_bit_rate(path), rel=0.01)
    sound = [one for one in streams if one["codec_type"] == "audio"]
    assert len(sound) == len(streams) - 1 == (wanted.audio is Audio.SILENT)
    if sound:
        assert (sound[0]["codec_name"], sound[0]["sample_rate"], sound[0]["channels"]) == ("aac", "48000", 2)


def test_pixels_no_bars_the_product_whole_and_no_jump(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    assert make_file(master, profile(), path).passed
    frames, fps = decode_clip(path)
    assert fps == 24
    assert frames.shape[1:] == (108, 192, 3)
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() <= steps.max() * 1.2
    for frame in frames[::4]:
        box = product_area(Image.fromarray(frame)).box
        assert box is not None
        assert min(box[0], box[1], 1 - box[2], 1 - box[3]) > 0.01
        # Nor is it distorted: 40 by 85 pixels, whatever the scale.
        assert (box[2] - box[0]) * 192 / ((box[3] - box[1]) * 108) == pytest.approx(40 / 85, abs=0.04)
        assert np.abs(frame[:, :4].astype(int) - (214, 216, 220)).max() <= 6


def test_the_same_clip_and_profile_are_the_same_bytes(master: Master, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_file(master, profile(audio=Audio.SILENT), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_cannot_be_met_is_refused_in_words_and_leaves_no_file(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    verdict = make_file(master, profile(width=192, height=64, most_continued=0.2), path)
    assert not verdict.passed
    assert verdict.problem is not None
    assert "20%" in verdict.problem.message
    assert not path.exists()


def test_a_file_that_breaks_a_rule_is_not_delivered_and_names_it(master: Master, tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    verdict = make_file(master, profile(max_bytes=2_000), path)
    assert verdict.broken == ["bytes"]
    assert verdict.problem is not None
    assert "bytes: " in verdict.problem.message
    assert not path.exists()


def test_a_clip_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no film" * 100)
    with pytest.raises(BadInputError, match="no video"):
        read_master(tmp_path / "clip.mp4")


def ffmpeg(*words: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *words], check=True, capture_output=True)


FAULTS: dict[str, tuple[list[str], set[str]]] = {
    "size": (["-vf", "scale=190:108,setsar=1"], {"size"}),
    "square": (["-vf", "setsar=4/3"], {"size"}),
    "rate": (["-vf", "setpts=2*PTS", "-r", "12"], {"rate"}),
    "variable": (["-vf", "select='not(eq(mod(n\\,5)\\,3))'", "-fps_mode", "vfr"], {"constant_rate", "rate"}),
    "short": (["-frames:v", "20"], {"seconds"}),
    "long": (["-vf", "loop=9:24", "-frames:v", "120"], {"seconds"}),
    "pixels": (["-pix_fmt", "yuv444p"], {"pixels"}),
    "codec": (["-c:v", "mpeg4"], {"codec"}),
    "colours": (["-color_primaries", "bt470bg", "-vf", "setparams=color_primaries=bt470bg"], {"colours"}),
    "end": (["-movflags", "-faststart"], {"index_first"}),
    "sound": (["-f", "lavfi", "-i", "anullsrc", "-shortest", "-c:a", "aac"], {"audio"}),
    "bars": (["-vf", "scale=120:108,pad=192:108:36:0:black,setsar=1"], {"bars"}),
    "letterbox": (["-vf", "scale=192:76,pad=192:108:0:16:black,setsar=1"], {"bars"}),
    "black": (["-vf", "drawbox=t=fill:c=black"], {"picture"}),
}


@pytest.fixture(scope="module")
def good(master: Master, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    assert make_file(master, profile(), path).passed
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_by_its_own_rule(good: Path, fault: str, tmp_path: Path) -> None:
    words, broken = FAULTS[fault]
    path = tmp_path / "bad.mp4"
    base = ["-c:v", "libx264", "-bf", "0", "-crf", "17", "-use_editlist", "0"]
    flags = [] if fault == "end" else ["-movflags", "+faststart+write_colr"]
    inputs = words[:4] if fault == "sound" else []
    ffmpeg("-i", str(good), *inputs, *base, *words[len(inputs) :], *flags, str(path))
    found = {check.rule for check in judge_file(path, profile()) if not check.passed}
    assert broken <= found, [str(one) for one in judge_file(path, profile())]
    # mpeg4 has no colours of its own, nor a variable rate one length; and sound without an edit list delays a picture.
    assert found <= broken | {"colours", "seconds", "rate", "constant_rate"}


def test_bit_rates_beyond_floor_and_ceiling_are_told(good: Path) -> None:
    rate = round(video_bit_rate(good))
    for rules in ({"min_bit_rate": rate + 1000, "max_bit_rate": rate * 3}, {"max_bit_rate": rate - 1000}):
        assert [one.rule for one in judge_file(good, profile(**rules)) if not one.passed] == ["bit_rate"]


def test_a_file_cut_short_or_of_anything_else_is_no_video(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    for data in (b"", b"text", good.read_bytes()[:500], struct.pack(">I4s", 8, b"moov") * 3):
        path.write_bytes(data)
        assert [one.rule for one in judge_file(path, profile()) if not one.passed] == ["container"]
    path.write_bytes(good.read_bytes()[: good.stat().st_size * 2 // 3])
    assert "whole" in {one.rule for one in judge_file(path, profile()) if not one.passed} or "container"


def test_boxes_are_read_as_they_stand(good: Path, tmp_path: Path) -> None:
    assert index_first(good)
    assert not has_edit_list(good)
    other = tmp_path / "other.mp4"
    ffmpeg("-i", str(good), "-c:v", "libx264", "-bf", "2", str(other))
    assert not index_first(other)
    assert has_edit_list(other)


def test_a_clip_is_decoded_as_it_was_encoded(tmp_path: Path) -> None:
    clip = product_clip(frames=4)
    encode_mp4(clip, 24, tmp_path / "clip.mp4")
    frames, fps = decode_clip(tmp_path / "clip.mp4")
    assert fps == 24
    assert np.abs(frames[:, :30].astype(int) - clip[:, :30]).max() <= 3
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(frames) == container.streams.video[0].frames


def test_every_way_to_lengthen_gives_a_file_that_passes(master: Master, tmp_path: Path) -> None:
    for how in Lengthening:
        wanted: DeliveryProfile = profile()
        verdict = make_file(master, wanted, tmp_path / "made.mp4", lengthening=how)
        assert verdict.passed, verdict.broken
        assert verdict.facts["seamless"] is True
