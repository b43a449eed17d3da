"""A clip's frames out of its file, for those who measure it by hand."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from pipeline.clips.frames import Frames
from pipeline.problems import BadInputError

#: Longest side, in pixels, at which frames are read, and the most of them.
_SIDE, _MOST_FRAMES = 512, 2400
_SCALED = (
    f"scale='min({_SIDE},iw)':'min({_SIDE},ih)':force_original_aspect_ratio=decrease:force_divisible_by=2"
    ":flags=area:in_color_matrix=bt709:in_range=tv:out_range=pc"
)


# It warns of frames that are made smaller, which is what is asked of it.
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)


def frames_of_file(path: Path) -> Frames:
    """All frames of the video at `path`, no larger than measuring takes: (frames, height, width, 3).

    Raises `BadInputError` for what is no video that can be read, or too long a one.
    """
    if not path.is_file():
        raise BadInputError("clip", f"{path} is no file", "Name a video, such as an MP4 of OUT.")
    frames: list[np.ndarray] = []
    options: dict[str, Any] = {
        "input_params": ["-nostdin", "-v", "info"],
        "output_params": ["-fps_mode", "passthrough", "-vf", _SCALED],
    }
    try:
        with closing(imageio_ffmpeg.read_frames(str(path.absolute()), **options)) as reading:
            width, height = next(reading)["size"]
            for data in reading:
                frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
                if len(frames) > _MOST_FRAMES:
                    raise BadInputError(
                        "clip", f"{path.name} has more than {_MOST_FRAMES} frames", "Cut out the part that matters."
                    )
    except (OSError, RuntimeError, ValueError, KeyError, StopIteration) as error:
        last = str(error).strip().splitlines()[-1:] or ["nothing is said of why"]
        raise BadInputError("clip", f"{path.name} cannot be decoded: {last[0]}", "Name a video that plays.") from error
    if not frames:
        raise BadInputError("clip", f"{path.name} has no frame", "Name a video that plays.")
    return np.stack(frames)
