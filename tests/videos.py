"""Videos read back as a player would, by ffmpeg."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from pipeline.clips.frames import Frames

_TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24"


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
    #: Range, and matrix/primaries/transfer where they are not all one: `tv, bt709`, `tv, bt709/unknown/unknown`.
    colour: str
    seconds: float


def probe_mp4(path: Path) -> VideoFacts:
    """Decode all of `path` and say what is in it. Raises `RuntimeError` where it is no video or damaged."""
    out, log = _ffmpeg("info", "-xerror", "-i", path, "-map", "0:v:0", "-f", "null", "-progress", "pipe:1", "-")
    stream = re.search(r"Stream #0:\d.*?: Video: (?P<codec>\w+).*?, (?P<pix>\w+)(?:\((?P<colour>[^)]*)\))?.*", log)
    size = re.search(r", (\d+)x(\d+)", stream[0]) if stream else None
    rate = re.search(r", ([\d.]+)(k?) fps", stream[0]) if stream else None
    counts = re.findall(rb"^frame=\s*(\d+)", out, flags=re.MULTILINE)
    if not (stream and size and rate and counts):
        raise RuntimeError(f"ffmpeg finds no video in {path.name}")
    frames, fps = int(counts[-1]), float(rate[1]) * (1000 if rate[2] else 1)
    colour = ", ".join(p for p in (stream["colour"] or "").split(", ") if p in ("tv", "pc") or "bt" in p or "/" in p)
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
    """All frames of a BT.709 video: (frames, height, width, 3) uint8. Raises `RuntimeError` as `probe_mp4` does."""
    facts = probe_mp4(path)
    to_rgb = ("-map", "0:v:0", "-vf", _TO_RGB, "-f", "rawvideo", "-fps_mode", "passthrough", "pipe:1")
    out, _ = _ffmpeg("error", "-xerror", "-i", path, *to_rgb)
    return np.frombuffer(out, dtype=np.uint8).reshape(-1, facts.height, facts.width, 3)


def _ffmpeg(loglevel: str, *arguments: str | Path) -> tuple[bytes, str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", loglevel, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"ffmpeg ended with {done.returncode}: {log}")
    return done.stdout, log
