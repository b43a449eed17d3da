import stat
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from pipeline.encode import (
    EncodeError,
    decode_mp4,
    encode_mp4,
    encode_poster,
    encode_spritesheet,
    frames_sha256,
    probe_mp4,
)


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
    assert (facts.codec, facts.pix_fmt, facts.colour) == ("h264", "yuv420p", "bt709")
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


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    encode_mp4(moving(40), 24, path)
    data = path.read_bytes()
    for broken in (b"", b"not a video at all", data[: len(data) // 2]):
        path.write_bytes(broken)
        with pytest.raises(EncodeError, match=r"read clip\.mp4"):
            decode_mp4(path)


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
