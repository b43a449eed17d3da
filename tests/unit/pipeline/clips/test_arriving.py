"""Frames encoded while later ones come: the file and the hash of the whole clip, and nothing left where it ends early.

Threads meet at named pipes and joins; nothing sleeps.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.clips.arriving import FrameEncoder
from pipeline.clips.encode import EncodeError, encode_mp4
from pipeline.clips.frames import Frames

PATIENCE_S = 30


def children() -> set[int]:
    """Processes of this one that are there, those that open pictures for other tests among them."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before
    assert not [thread for thread in threading.enumerate() if thread.name == "clipmill-encode"]


def moving(count: int = 12, seed: int = 0, height: int = 64, width: int = 96) -> Frames:
    """Soft stripes that wander, with some grain."""
    grain = np.random.default_rng(seed).integers(0, 30, (count, height, width, 3))
    wave = 100 + 60 * np.sin((np.arange(width) + 4 * np.arange(count)[:, None]) / 9)
    return (wave[:, None, :, None] + grain).astype(np.uint8)


def fed(encoder: FrameEncoder, frames: Frames, chunks: list[int]) -> Frames:
    """What a decoder does: an empty array that it fills in chunks of so many frames."""
    made = np.zeros_like(frames)
    encoder.begin(made)
    done = 0
    for count in chunks:
        made[done : done + count] = frames[done : done + count]
        done += count
        encoder.filled(done)
    return made


def by_hand(frames: Frames) -> str:
    return hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("chunks", [[12], [1, 4, 4, 3], [1] * 12], ids=str)
@pytest.mark.parametrize("fps", [24, 29.97])
def test_the_file_and_the_hash_are_those_of_the_whole_clip(tmp_path: Path, chunks: list[int], fps: float) -> None:
    frames = moving()
    encode_mp4(frames, fps, tmp_path / "whole.mp4")
    with FrameEncoder(fps, tmp_path / "clip.mp4") as encoder:
        fed(encoder, frames, chunks)
        assert encoder.finish() == by_hand(frames)
        assert encoder.finish() == by_hand(frames), "it can be asked again"
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_frames_are_encoded_before_the_last_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ffmpeg that tells of each frame by a named pipe: the test goes on only when it has read it."""
    os.mkfifo(tmp_path / "read")
    body = (
        "import sys\n"
        f"told = open({str(tmp_path / 'read')!r}, 'wb', buffering=0)\n"
        "size = 64 * 96 * 3\n"
        "with open(sys.argv[-1], 'wb') as out:\n"
        "    while len(frame := sys.stdin.buffer.read(size)) == size:\n"
        "        out.write(frame)\n"
        "        told.write(frame[:1])\n"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "ffmpeg", body))
    frames = moving(4)
    made = np.zeros_like(frames)
    with FrameEncoder(24, tmp_path / "clip.mp4") as encoder:
        encoder.begin(made)
        with (tmp_path / "read").open("rb", buffering=0) as told:
            for place, frame in enumerate(frames):
                made[place] = frame
                encoder.filled(place + 1)
                assert told.read(1) == frame.tobytes()[:1]
                assert not (tmp_path / "clip.mp4").exists()
        encoder.finish()
    assert (tmp_path / "clip.mp4").read_bytes() == frames.tobytes()


@pytest.mark.parametrize("come", [0, 1, 7, 12])
def test_closed_early_it_leaves_neither_process_nor_file(tmp_path: Path, come: int) -> None:
    frames = moving()
    encoder = FrameEncoder(24, tmp_path / "clip.mp4")
    fed(encoder, frames, [come])
    encoder.close()
    encoder.close()
    # Where all had come it may have been quicker.
    assert [path.name for path in tmp_path.iterdir()] in ([], ["clip.mp4"] if come == 12 else [])
    with pytest.raises(RuntimeError, match="no frame"):
        encoder.finish()


def test_a_second_try_makes_the_first_void(tmp_path: Path) -> None:
    """Its shape is another one, so that nothing of the first can be in the file."""
    second = moving(9, seed=1, height=32)
    encode_mp4(second, 24, tmp_path / "whole.mp4")
    with FrameEncoder(24, tmp_path / "clip.mp4") as encoder:
        fed(encoder, moving(), [5])
        fed(encoder, second, [1, 8])
        assert encoder.finish() == by_hand(second)
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_clip_that_is_not_all_there_has_no_file(tmp_path: Path) -> None:
    with FrameEncoder(24, tmp_path / "clip.mp4") as encoder:
        fed(encoder, moving(), [5])
        with pytest.raises(RuntimeError, match=r"5 of 12 frames of clip\.mp4"):
            encoder.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_went_wrong_is_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "import sys\nopen(sys.argv[-1], 'wb').write(b'half')\nsys.stdin.buffer.read(100)\n"
        "print('av_interleaved_write_frame(): No space left on device', file=sys.stderr)\nsys.exit(228)"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "ffmpeg", body))
    (tmp_path / "out").mkdir()
    with FrameEncoder(24, tmp_path / "out" / "clip.mp4") as encoder:
        fed(encoder, moving(), [6, 6])
        with pytest.raises(EncodeError, match=r"clip\.mp4.*228.*No space left.*Free some space"):
            encoder.finish()
        fed(encoder, moving(width=95), [12])
        with pytest.raises(ValueError, match="even sides, not 95×64"):
            encoder.finish()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("come", [3, 12])
def test_an_ffmpeg_that_hangs_does_not_hang_whoever_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, come: int
) -> None:
    """One that reads a frame and no more, and never ends: in the middle of a clip, and when all of it has come."""
    os.mkfifo(tmp_path / "read")
    body = (
        "import signal, sys\n"
        "sys.stdin.buffer.read(100)\n"
        f"open({str(tmp_path / 'read')!r}, 'wb').write(b'.')\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "ffmpeg", body))
    before = children()
    encoder = FrameEncoder(24, tmp_path / "clip.mp4")
    fed(encoder, moving(height=640, width=960), [come])
    assert (tmp_path / "read").read_bytes() == b"."
    closing = threading.Thread(target=encoder.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    ended = not closing.is_alive()
    for pid in children() - before:
        # Else the test itself would not end where it fails. Others open pictures, and are waited for by nobody.
        psutil.Process(pid).kill()
    assert ended
    assert not (tmp_path / "clip.mp4").exists()
