"""From frames to the files people get: H.264 in MP4, a poster, a spritesheet, a hash."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.frames import Frames
from pipeline.clips.icc import SRGB, profile_of

#: Constant rate factor of x264: visually lossless for product pictures at a few hundred kilobytes a second.
CRF = 17
_PRESET = "medium"
_SHEET_FRAMES, _SHEET_COLUMNS, _SHEET_SIDE = 12, 4, 160
_LAST_LINES = 5

#: BT.709 in limited range: for the encoder, and as the end of a chain of filters over frames of full-range RGB.
# Said three times, because each version of ffmpeg drops another one: from 7.1 on the encoder's options give way to what
# the frames say, and frames that come in raw say nothing. `write_colr` is the default of some versions only.
BT709 = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv")
TO_YUV = (
    "scale=in_range=pc:out_color_matrix=bt709:out_range=tv:flags=lanczos+accurate_rnd+full_chroma_int,format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)

#: Signals that ask a process to end, unlike those by which the kernel ends one for what it did.
_ASKED_TO_END = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class EncodeError(RuntimeError):
    """A file could not be written; the message says which, why, and what to do."""


class EncoderEndedError(EncodeError):
    """Somebody told ffmpeg to end: the machine is shut down, or the farm. Nothing is wrong with the clip."""


def encode_mp4(frames: Frames, fps: float, path: Path, *, threads: int = 2) -> None:
    """Write `frames` (frames, height, width, 3) as H.264 4:2:0, BT.709 limited range, index first (faststart).

    The same frames, rate, thread count and ffmpeg give the same bytes. The file appears under `path` only when it
    is complete and on disk. Raises `EncodeError`: no ffmpeg, disk full, folder not writable. Raises `ValueError` for
    another shape, or sides that are odd.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (frames, height, width, 3) uint8, not {frames.shape} {frames.dtype}")
    with mp4_encoder(frames.shape[2], frames.shape[1], fps, path, threads=threads) as encoder:
        for frame in frames:
            encoder.write(frame)


class Mp4Writer:
    """An ffmpeg that takes a clip's frames; see `mp4_encoder`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def write(self, frame: NDArray[np.uint8]) -> None:
        """The next frame, (height, width, 3). Waits where ffmpeg does not keep up; raises `BrokenPipeError`."""
        assert self._process.stdin is not None
        self._process.stdin.write(np.ascontiguousarray(frame).data)

    def abort(self) -> None:
        """End ffmpeg at once, from any thread: whoever writes, or waits for the file, gets an error."""
        self._process.kill()


@contextmanager
def mp4_encoder(width: int, height: int, fps: float, path: Path, *, threads: int = 2) -> Iterator[Mp4Writer]:
    """Inside, what is yielded takes a clip's frames, one after the other; see `encode_mp4`.

    On leaving, the file is complete and takes the place of `path`; left by an exception, ffmpeg is ended, and there is
    no file. Raises `EncodeError`, and `ValueError` for sides that are odd.
    """
    if width % 2 or height % 2:
        raise ValueError(f"H.264 4:2:0 needs even sides, not {width}×{height}")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]
    codec = ["-c:v", "libx264", "-preset", _PRESET, "-crf", str(CRF), "-threads", str(threads), *BT709]
    # Nothing of the machine or the moment in the file: equal clips are equal files.
    stable = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    with written_beside(path) as part:
        target = ["-movflags", "+faststart+write_colr", "-f", "mp4", "-y", str(part)]
        with ffmpeg_process([*source, "-vf", TO_YUV, *codec, *stable, *target], f"write {path.name}") as process:
            yield Mp4Writer(process)


def encode_poster(frames: Frames, path: Path) -> None:
    """Write the clip's most typical frame as JPEG at full size.

    That is the frame nearest to the mean of all (the medoid, on thumbnails): it shows the product as most of the clip
    does, and a flash, a fade or a move's far end is never chosen. Raises `EncodeError` where it cannot be written.
    """
    # Seen from afar, so that noise does not decide.
    step = max(1, min(frames.shape[1:3]) // 64)
    small = frames[:, ::step, ::step]
    mean = np.zeros(small.shape[1:], np.float32)
    # Frame by frame: of all of them at once, in floats, there would be more than of the clip.
    for frame in small:
        mean += frame
    mean /= len(small)
    distance = [float(np.abs(frame - mean).mean()) for frame in small]
    _jpeg(Image.fromarray(frames[int(np.argmin(distance))]), path, quality=90)


def encode_spritesheet(frames: Frames, path: Path) -> None:
    """Write up to 12 frames, evenly spread from first to last, as a JPEG grid of 4 columns in reading order.

    Each is at most 160 pixels a side. Raises `EncodeError` where it cannot be written.
    """
    count = min(_SHEET_FRAMES, len(frames))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    height, width = frames.shape[1:3]
    scale = min(1.0, _SHEET_SIDE / max(width, height))
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(_SHEET_COLUMNS, count)
    sheet = Image.new("RGB", (columns * cell_w, math.ceil(count / columns) * cell_h), "white")
    for place, index in enumerate(chosen):
        cell = Image.fromarray(frames[index]).resize((cell_w, cell_h), Image.Resampling.LANCZOS)
        sheet.paste(cell, (place % columns * cell_w, place // columns * cell_h))
    _jpeg(sheet, path, quality=80)


def frames_sha256(frames: Frames) -> str:
    """SHA-256 (hex) of the shape and the pixels: equal for equal clips, whatever encoded them."""
    digest = frames_digest(frames.shape)
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    found: str = digest.hexdigest()
    return found


def frames_digest(shape: tuple[int, ...]) -> Any:
    """A hash of `hashlib` for frames of this `shape`: given one after the other, it becomes `frames_sha256`."""
    return hashlib.sha256(repr(tuple(shape)).encode())


def _jpeg(image: Image.Image, path: Path, *, quality: int) -> None:
    with written_beside(path) as part:
        try:
            profile = profile_of(SRGB)  # stills are converted to sRGB, and so are the frames
            image.save(part, format="JPEG", quality=quality, optimize=True, icc_profile=profile)
        except OSError as error:
            raise EncodeError(
                f"cannot write {path.name}: {error}. Free some space or choose another folder."
            ) from error


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; on leaving it is flushed to disk and takes `path`'s place, or is gone."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise EncodeError(f"cannot write {path}: {error}. Free some space or choose another folder.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def ffmpeg_process(arguments: list[str], what: str) -> Iterator[subprocess.Popen[bytes]]:
    """Inside, ffmpeg runs and reads its `stdin`; on leaving, it comes to its end, or is killed by an error.

    Raises `EncodeError`, which begins with "cannot `what`", and `EncoderEndedError` where a signal asked ffmpeg to end.
    """
    try:
        process = subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-loglevel", "error", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except (OSError, RuntimeError) as error:
        raise EncodeError(
            f"cannot {what}: no ffmpeg to run ({error}). Install imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE."
        ) from error
    assert process.stdin is not None
    assert process.stderr is not None
    log = _Drain(process.stderr)
    try:
        # ffmpeg closing its end early is an error that its exit code and log explain better.
        with suppress(BrokenPipeError), process.stdin:
            yield process
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        text = log.join().decode(errors="replace")
    # Asked to end, ffmpeg does so in order, without a word: 255, which with words is "operation not permitted".
    if -code in _ASKED_TO_END or (code == 255 and not text.strip()):
        raise EncoderEndedError(f"cannot {what}: ffmpeg was told to end ({code}). It is tried again.")
    if code != 0:
        last = " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:] if line.strip())
        remedy = "Free some space or choose another folder." if "No space left" in text else "See ffmpeg's words above."
        raise EncodeError(f"cannot {what}: ffmpeg ended with {code}: {last or 'no message'}. {remedy}")


class _Drain:
    """Reads one pipe of a process to its end in a thread, so that it never fills up."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._data = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            self._data = self._pipe.read()

    def join(self) -> bytes:
        self._thread.join()
        return self._data
