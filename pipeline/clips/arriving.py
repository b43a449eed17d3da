"""A clip's frames encoded and hashed while later ones are still decoded, by a thread and an ffmpeg of their own."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.clips.encode import Mp4Writer, frames_digest, mp4_encoder
from pipeline.clips.frames import Frames


class FrameEncoder:
    """Writes one clip as H.264 while its frames come; a `pipeline.clips.frames.FrameSink`.

    The file and the hash are those of `encode_mp4` and `frames_sha256` of the finished clip. Frames are read from where
    they are made, not copied. Use as a context manager, or call `close`: until then a process may be left.
    """

    def __init__(self, fps: float, path: Path) -> None:
        """`path`: where the file will be, once it is complete."""
        self._fps = fps
        self._path = path
        self._encoding: _Encoding | None = None

    def begin(self, frames: Frames) -> None:
        """Start over, with a clip that is made in `frames`."""
        self.close()
        self._encoding = _Encoding(frames, self._fps, self._path)

    def filled(self, count: int) -> None:
        """The first `count` frames are there. Never waits, and raises nothing: `finish` tells what went wrong."""
        if self._encoding is not None:
            self._encoding.filled(count)

    def finish(self) -> str:
        """Wait until the file is complete: SHA-256 (hex) of the frames, as `frames_sha256` makes it.

        Raises `EncodeError`, `ValueError` for frames that cannot be encoded, and `RuntimeError` where none came, or
        not all of them.
        """
        if self._encoding is None:
            raise RuntimeError(f"no frame of {self._path.name} has come")
        return self._encoding.finish()

    def close(self) -> None:
        """End what is still being encoded, process and file; does nothing where the file is complete."""
        encoding, self._encoding = self._encoding, None
        if encoding is not None:
            encoding.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _AbandonedError(Exception):
    """The frames that are missing will not come."""


class _Encoding:
    """One try at a clip: a thread that follows the frames."""

    def __init__(self, frames: Frames, fps: float, path: Path) -> None:
        self._frames = frames
        self._fps = fps
        self._path = path
        self._digest = frames_digest(frames.shape)
        self._changed = threading.Condition()
        self._there = 0
        self._no_more = False
        self._writer: Mp4Writer | None = None
        self._error: BaseException | None = None
        # A daemon: a renderer that ends in the middle of a clip waits for no ffmpeg.
        self._thread = threading.Thread(target=self._run, name="clipmill-encode", daemon=True)
        self._thread.start()

    def filled(self, count: int) -> None:
        with self._changed:
            self._there = count
            self._changed.notify()

    def finish(self) -> str:
        if self._there < len(self._frames):
            self.close()
            raise RuntimeError(f"{self._there} of {len(self._frames)} frames of {self._path.name} have come")
        self._thread.join()
        if self._error is not None:
            raise self._error
        digest: str = self._digest.hexdigest()
        return digest

    def close(self) -> None:
        with self._changed:
            self._no_more = True
            self._changed.notify()
            writer = self._writer
        if writer is not None:
            # Wherever it is: reading, or writing the file's end, which takes it seconds. Nothing where it has ended.
            writer.abort()
        self._thread.join()

    def _run(self) -> None:
        try:
            height, width = self._frames.shape[1:3]
            with mp4_encoder(width, height, self._fps, self._path) as writer:
                with self._changed:
                    self._writer = writer
                for place, frame in enumerate(self._frames):
                    self._wait_for(place + 1)
                    pixels = np.ascontiguousarray(frame)
                    self._digest.update(pixels.data)
                    writer.write(pixels)
        except _AbandonedError:
            pass
        except BaseException as error:
            self._error = error

    def _wait_for(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._no_more or self._there >= count)
            # Also where the frame is there: nobody waits for the file any more.
            if self._no_more:
                raise _AbandonedError
