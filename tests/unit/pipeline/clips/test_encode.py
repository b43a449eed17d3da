import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.clips.encode import (
    EncodeError,
    EncoderEndedError,
    encode_mp4,
    encode_poster,
    encode_spritesheet,
    frames_sha256,
    mp4_encoder,
)
from tests.videos import decode_mp4, probe_mp4


def moving(frames: int = 10, height: int = 64, width: int = 96) -> np.ndarray:
    """A soft coloured blob that wanders over a gradient."""
    y, x = np.mgrid[0:height, 0:width]
    out = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        blob = np.exp(-((x - 20 - 5 * i) ** 2 + (y - 30) ** 2) / 200)
        out[i] = np.stack([60 + 180 * blob, 80 + x, 200 - 2 * y], axis=2)
    return out


def test_a_clip_survives_the_way_through_the_file(tmp_path: Path) -> None:
    frames, path = moving(), tmp_path / "clip.mp4"
    encode_mp4(frames, 24, path)
    facts = probe_mp4(path)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (96, 64, 10, 24)
    assert (facts.codec, facts.pix_fmt, facts.colour) == ("h264", "yuv420p", "tv, bt709")
    assert facts.seconds == pytest.approx(10 / 24)
    back = decode_mp4(path)
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 2


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (0, 0, 0), (255, 255, 255)])
def test_pixels_follow_bt709_limited_range(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Luma against ITU-R BT.709 by hand, read raw: a conversion by BT.601 would be off by up to 30 levels."""
    path = tmp_path / "flat.mp4"
    encode_mp4(np.full((2, 32, 32, 3), colour, np.uint8), 8, path)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "yuv420p",
        "-",
    ]
    raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    red, green, blue = (c / 255 for c in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert raw[:1024].mean() == pytest.approx(16 + 219 * luma, abs=1.5)
    assert raw[1024:1280].mean() == pytest.approx(128 + 224 * (blue - luma) / 1.8556, abs=1.5)


needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe here: apt install ffmpeg")
PATCHES = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (20, 90, 60), (255, 255, 255), (0, 0, 0),
                    (128, 128, 128)], np.uint8)  # fmt: skip


@needs_ffprobe
def test_stream_and_container_say_bt709_and_limited_range(tmp_path: Path) -> None:
    """By ffprobe, of another version than the ffmpeg that wrote: first of the whole file, then of the bare stream."""
    said = {"color_range": "tv", "color_space": "bt709", "color_transfer": "bt709", "color_primaries": "bt709"}
    encode_mp4(moving(), 24, tmp_path / "clip.mp4")
    take_out = ["-v", "error", "-i", str(tmp_path / "clip.mp4"), "-c", "copy", str(tmp_path / "bare.h264")]
    subprocess.run([shutil.which("ffmpeg") or "", *take_out], check=True)
    for name in ("clip.mp4", "bare.h264"):
        command = [shutil.which("ffprobe") or "", "-v", "error", "-show_streams", "-of", "json", str(tmp_path / name)]
        (stream,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        assert {key: stream.get(key) for key in said} == said, name
    # ISO/IEC 14496-12, 12.1.5: primaries, transfer and matrix 1 (BT.709), no full range.
    assert b"colrnclx" + bytes((0, 1, 0, 1, 0, 1, 0)) in (tmp_path / "clip.mp4").read_bytes()


@needs_ffprobe
def test_another_decoder_that_goes_by_the_tags_shows_the_same_colours(tmp_path: Path) -> None:
    frames = PATCHES.reshape(1, 2, 4, 3).repeat(2, 0).repeat(32, 1).repeat(32, 2)
    encode_mp4(frames, 8, tmp_path / "clip.mp4")
    to_rgb = ["-vf", "scale=flags=accurate_rnd+full_chroma_int,format=rgb24", "-f", "rawvideo", "-"]
    command = [shutil.which("ffmpeg") or "", "-v", "error", "-i", str(tmp_path / "clip.mp4"), *to_rgb]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    middles = shown.reshape(frames.shape)[:, 16::32, 16::32].astype(int)
    assert np.abs(middles - frames[:, 16::32, 16::32]).max() <= 3


@pytest.mark.parametrize("write", [encode_poster, encode_spritesheet])
def test_pictures_say_that_they_are_srgb(tmp_path: Path, write: Callable[[np.ndarray, Path], None]) -> None:
    for name in ("a.jpg", "b.jpg"):
        write(moving(), tmp_path / name)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    with Image.open(tmp_path / "a.jpg") as picture:
        said = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        by_tag = ImageCms.profileToProfile(picture.convert("RGB"), said, ImageCms.createProfile("sRGB"))
        assert by_tag is not None
        assert np.abs(np.asarray(by_tag, int) - np.asarray(picture, int)).max() <= 1


def test_the_index_comes_first(tmp_path: Path) -> None:
    encode_mp4(moving(), 24, tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_equal_frames_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode_mp4(moving(), 24, tmp_path / name, threads=2)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_odd_rates_and_non_contiguous_frames(tmp_path: Path, threads: int) -> None:
    frames = moving()[::-1, :, ::-1]
    encode_mp4(frames, 29.97, tmp_path / "clip.mp4", threads=threads)
    assert probe_mp4(tmp_path / "clip.mp4").fps == pytest.approx(29.97)
    assert np.abs(decode_mp4(tmp_path / "clip.mp4").astype(int) - frames).mean() < 2


def test_shapes_that_cannot_be_encoded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sides, not 95×64"):
        encode_mp4(moving(width=95), 24, tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="uint8"):
        encode_mp4(moving().astype(np.float32), 24, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_failing_ffmpeg_leaves_the_old_file_and_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "clip.mp4").write_bytes(b"before")
    body = (
        "import sys\nopen(sys.argv[-1], 'wb').write(b'half')\nsys.stdin.buffer.read(100)\n"
        "print('av_interleaved_write_frame(): No space left on device', file=sys.stderr)\nsys.exit(228)"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "ffmpeg", body))
    with pytest.raises(EncodeError, match=r"clip\.mp4.*228.*No space left.*Free some space"):
        encode_mp4(moving(60), 24, out / "clip.mp4")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"clip.mp4": b"before"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ffmpeg_that_is_told_to_end_is_told_from_one_that_fails(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two ask whoever runs, for a reason of its own; the kernel ends by the third what takes all memory."""
    pid = tmp_path / "pid"
    body = (
        f"import os, sys\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        f"os.execv({imageio_ffmpeg.get_ffmpeg_exe()!r}, sys.argv)"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "ffmpeg", body))
    frames = moving(2)

    def encode() -> None:
        with mp4_encoder(frames.shape[2], frames.shape[1], 24, tmp_path / "clip.mp4") as encoder:
            # ffmpeg has its own handlers in place once it has read of its input more than a pipe holds.
            for _ in range(1 + 4 * 65536 // frames[0].nbytes):
                encoder.write(frames[0])
            os.kill(int(pid.read_text()), number)

    with pytest.raises(EncodeError, match=r"clip\.mp4") as raised:
        encode()
    assert isinstance(raised.value, EncoderEndedError) == (number is not signal.SIGKILL)
    assert not (tmp_path / "clip.mp4").exists()


def test_a_missing_ffmpeg_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere" / "ffmpeg"))
    with pytest.raises(EncodeError, match="IMAGEIO_FFMPEG_EXE"):
        encode_mp4(moving(), 24, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match=r"clip\.mp4"):
        encode_mp4(moving(), 24, tmp_path / "nowhere" / "clip.mp4")
    with pytest.raises(EncodeError, match=r"poster\.jpg"):
        encode_poster(moving(), tmp_path / "nowhere" / "poster.jpg")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, target: Path, **options: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(EncodeError, match="No space left"):
        encode_poster(moving(), tmp_path / "poster.jpg")
    assert list(tmp_path.iterdir()) == []


def test_the_poster_is_a_typical_frame_not_a_flash(tmp_path: Path) -> None:
    frames = moving(11)
    frames[5] = 255
    encode_poster(frames, tmp_path / "poster.jpg")
    with Image.open(tmp_path / "poster.jpg") as poster:
        assert poster.format == "JPEG"
        shown = np.asarray(poster, int)
    distances = [np.abs(shown - frame).mean() for frame in frames]
    assert int(np.argmin(distances)) in (3, 4, 6, 7)
    assert min(distances) < 4


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (3, (3, 1)), (5, (4, 2)), (12, (4, 3)), (90, (4, 3))])
def test_the_spritesheet_shows_up_to_twelve_frames_in_order(tmp_path: Path, count: int, grid: tuple[int, int]) -> None:
    levels = np.linspace(20, 240, count).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, 80, 320, 3)).astype(np.uint8)
    encode_spritesheet(frames, tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (160 * grid[0], 40 * grid[1])
        cells = [sheet.getpixel((160 * (i % 4) + 80, 40 * (i // 4) + 20))[0] for i in range(min(12, count))]
    assert cells[0] == pytest.approx(levels[0], abs=2)
    assert cells[-1] == pytest.approx(levels[-1], abs=2)
    assert cells == sorted(cells)


def test_the_hash_is_of_shape_and_pixels() -> None:
    frames = moving()
    assert frames_sha256(frames) == frames_sha256(frames.copy(order="F"))
    touched = frames.copy()
    touched[3, 4, 5, 1] ^= 1
    assert frames_sha256(touched) != frames_sha256(frames)
    assert frames_sha256(frames.reshape(5, 128, 96, 3)) != frames_sha256(frames)
