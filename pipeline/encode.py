"""From frames to the files people get: H.264 in MP4, a poster, a spritesheet, a hash."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: (frames, height, width, 3) uint8 RGB.
Frames = NDArray[np.uint8]

#: Constant rate factor of x264: visually lossless for product pictures at a few hundred kilobytes a second.
CRF = 17
_PRESET = "medium"
_SHEET_FRAMES, _SHEET_COLUMNS, _SHEET_SIDE = 12, 4, 160
_LAST_LINES = 5

_BT709 = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv")
_TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=lanczos+accurate_rnd+full_chroma_int,format=yuv420p"
_TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24"


class EncodeError(RuntimeError):
    """A file could not be written or read; the message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a decoder finds in a video file."""

    width: int
    height: int
    #: Frames that were decoded, not what the header claims.
    frames: int
    fps: float
    codec: str
    pix_fmt: str
    #: Colour matrix, such as `bt709`; empty where the file does not say.
    colour: str
    seconds: float


# ---------------------------------------------------------------------------------------------- writing


def encode_mp4(frames: Frames, fps: float, path: Path, *, threads: int = 2) -> None:
    """Write `frames` (frames, height, width, 3) as H.264 4:2:0, BT.709 limited range, index first (faststart).

    The same frames, rate, thread count and ffmpeg give the same bytes. The file appears under `path` only when it
    is complete and on disk. Raises `EncodeError`: no ffmpeg, disk full, folder not writable. Raises `ValueError` for
    another shape, or sides that are odd.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (frames, height, width, 3) uint8, not {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    if width % 2 or height % 2:
        raise ValueError(f"H.264 4:2:0 needs even sides, not {width}×{height}")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]
    codec = ["-c:v", "libx264", "-preset", _PRESET, "-crf", str(CRF), "-threads", str(threads), *_BT709]
    # Nothing of the machine or the moment in the file: equal clips are equal files.
    stable = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    with _beside(path) as part:
        target = ["-movflags", "+faststart", "-f", "mp4", "-y", str(part)]
        _ffmpeg([*source, "-vf", _TO_YUV, *codec, *stable, *target], f"write {path.name}", feed=frames)


def encode_poster(frames: Frames, path: Path) -> None:
    """Write the clip's most typical frame as JPEG at full size.

    That is the frame nearest to the mean of all (the medoid, on thumbnails): it shows the product as most of the clip
    does, and a flash, a fade or a move's far end is never chosen. Raises `EncodeError` where it cannot be written.
    """
    # Seen from afar, so that noise does not decide.
    step = max(1, min(frames.shape[1:3]) // 64)
    small = frames[:, ::step, ::step].astype(np.float32)
    distance = np.abs(small - small.mean(axis=0)).mean(axis=(1, 2, 3))
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
    digest = hashlib.sha256(repr(tuple(frames.shape)).encode())
    for frame in frames:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def _jpeg(image: Image.Image, path: Path, *, quality: int) -> None:
    with _beside(path) as part:
        try:
            image.save(part, format="JPEG", quality=quality, optimize=True)
        except OSError as error:
            raise EncodeError(
                f"cannot write {path.name}: {error}. Free some space or choose another folder."
            ) from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
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


# ---------------------------------------------------------------------------------------------- reading


def probe_mp4(path: Path) -> VideoFacts:
    """Decode all of `path` and say what is in it. Raises `EncodeError` where it is no video or damaged."""
    command = ["-xerror", "-i", str(path), "-map", "0:v:0", "-f", "null", "-progress", "pipe:1", "-"]
    out, log = _ffmpeg(command, f"read {path.name}", loglevel="info")
    stream = re.search(r"Stream #0:\d.*?: Video: (?P<codec>\w+).*?, (?P<pix>\w+)(?:\((?P<colour>[^)]*)\))?.*", log)
    size = re.search(r", (\d+)x(\d+)", stream[0]) if stream else None
    rate = re.search(r", ([\d.]+)(k?) fps", stream[0]) if stream else None
    counts = re.findall(rb"^frame=\s*(\d+)", out, flags=re.MULTILINE)
    if not (stream and size and rate and counts):
        raise EncodeError(f"cannot read {path.name}: ffmpeg finds no video in it. Render the clip again.")
    frames, fps = int(counts[-1]), float(rate[1]) * (1000 if rate[2] else 1)
    colour = next((part for part in re.split(r"[,/ ]+", stream["colour"] or "") if part.startswith("bt")), "")
    return VideoFacts(
        width=int(size[1]),
        height=int(size[2]),
        frames=frames,
        fps=fps,
        codec=stream["codec"],
        pix_fmt=stream["pix"],
        colour=colour,
        seconds=frames / fps,
    )


def decode_mp4(path: Path) -> Frames:
    """All frames of a video written by `encode_mp4`: (frames, height, width, 3) uint8. Raises `EncodeError`."""
    facts = probe_mp4(path)
    command = [
        "-xerror",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-vf",
        _TO_RGB,
        "-f",
        "rawvideo",
        "-fps_mode",
        "passthrough",
    ]
    out, _ = _ffmpeg([*command, "pipe:1"], f"read {path.name}")
    return np.frombuffer(out, dtype=np.uint8).reshape(-1, facts.height, facts.width, 3)


# ---------------------------------------------------------------------------------------------- ffmpeg


def _ffmpeg(
    arguments: list[str], what: str, *, feed: Frames | None = None, loglevel: str = "error"
) -> tuple[bytes, str]:
    """Run ffmpeg to its end; `feed` goes in frame by frame. Returns (stdout, log)."""
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        process = subprocess.Popen(
            [program, "-hide_banner", "-nostdin" if feed is None else "-nostats", "-loglevel", loglevel, *arguments],
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except (OSError, RuntimeError) as error:
        raise EncodeError(
            f"cannot {what}: no ffmpeg to run ({error}). Install imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE."
        ) from error
    out, log = _Drain(process.stdout), _Drain(process.stderr)
    try:
        if process.stdin is not None and feed is not None:
            # ffmpeg closing its end early is an error that its exit code and log explain better.
            with suppress(BrokenPipeError), process.stdin as pipe:
                for frame in feed:
                    pipe.write(np.ascontiguousarray(frame).data)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        text = log.join().decode(errors="replace")
        data = out.join()
    if code != 0:
        last = " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:] if line.strip())
        remedy = "Free some space or choose another folder." if "No space left" in text else "See ffmpeg's words above."
        raise EncodeError(f"cannot {what}: ffmpeg ended with {code}: {last or 'no message'}. {remedy}")
    return data, text


class _Drain:
    """Reads one pipe of a process to its end in a thread, so that it never fills up."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._data = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        if self._pipe is not None:
            with self._pipe:
                self._data = self._pipe.read()

    def join(self) -> bytes:
        self._thread.join()
        return self._data
