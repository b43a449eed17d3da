"""How a clip looks from afar: small grey pictures by which a copy that was encoded again is known.

Four frames, evenly spread, as 16 × 16 grey levels each. Encoders and scalers change the mean of so large a part of a
frame by a level or two of 255; another product, or another move, changes it by far more. No proof: whoever wants to
can make another clip that looks the same from afar.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.frames import Frames
from pipeline.marks.carriers import Carrier, carrier_of, open_carrier
from pipeline.marks.problems import NotMarkableError

#: Root mean square difference, in levels of 255, up to which two clips count as alike.
ALIKE_WITHIN = 6.0

_FRAMES, _SIDE, _BETWEEN = 4, 16, 64
_PATIENCE_S = 600


def likeness_of(frames: Frames) -> str:
    """The likeness of (frames, height, width, 3) uint8, as base64."""
    places = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
    return _text(
        [Image.fromarray(frames[place]).resize((_BETWEEN, _BETWEEN), Image.Resampling.BOX) for place in places]
    )


def likeness_of_file(path: Path) -> str:
    """The likeness of an MP4, or of a picture, whose four frames are one. Raises `NotMarkableError` and `OSError`."""
    with open_carrier(path) as file:
        carrier = carrier_of(file, path.name)
    try:
        if carrier is Carrier.MP4:
            return likeness_of(_decoded(path))
        with Image.open(path, formats=("JPEG", "PNG")) as opened:
            return likeness_of(np.asarray(opened.convert("RGB"))[None])
    except (OSError, SyntaxError, ValueError) as error:
        raise NotMarkableError(f"{path.name} cannot be decoded: {error}", "Fetch or render it again.") from error


def distance(one: str, other: str) -> float | None:
    """Root mean square difference of two likenesses, in levels of 255; None where either is none."""
    a, b = _levels(one), _levels(other)
    return None if a is None or b is None else float(np.sqrt(np.mean((a - b) ** 2)))


def _text(pictures: list[Image.Image]) -> str:
    grey = [picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX) for picture in pictures]
    return base64.b64encode(b"".join(picture.tobytes() for picture in grey)).decode()


def _levels(likeness: str) -> NDArray[np.float64] | None:
    try:
        found = base64.b64decode(likeness, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(found) != _FRAMES * _SIDE**2:
        return None
    return np.frombuffer(found, np.uint8).astype(np.float64)


def _decoded(path: Path) -> Frames:
    """All frames, small."""
    filters = f"scale={_BETWEEN}:{_BETWEEN}:flags=area:in_color_matrix=bt709:in_range=tv:out_range=pc,format=rgb24"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path.absolute()), "-map", "0:v:0"]
    done = subprocess.run(
        [*command, "-fps_mode", "passthrough", "-vf", filters, "-threads", "2", "-f", "rawvideo", "pipe:1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    size = _BETWEEN * _BETWEEN * 3
    whole = len(done.stdout) // size
    if not whole:
        raise ValueError(done.stderr.decode(errors="replace").strip().splitlines()[-1:] or "it has no frame")
    return np.frombuffer(done.stdout[: whole * size], np.uint8).reshape(whole, _BETWEEN, _BETWEEN, 3)
