"""From frames of a clip to a marketplace's file: one ffmpeg that scales, lays over, repeats and encodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.encode import BT709, TO_YUV, EncodeError, ffmpeg_process, written_beside
from pipeline.clips.frames import Frames
from pipeline.delivery.length import Timeline
from pipeline.delivery.profiles import Audio, DeliveryProfile

#: Constant rate factor of x264, as of the clip itself: what is made of it loses nothing that is seen.
CRF = 17
#: Share of a ceiling that the encoder is given: rates are kept over a second, not a frame.
_BELOW_CEILING = 0.9
#: Samples by which the AAC encoder begins before what it is given.
_AAC_DELAY = 1024
#: Seconds between two frames that stand alone: players jump there, and some marketplaces ask for it.
_KEYFRAME_S = 2
#: Bytes of a decoded clip that are read at most.
MAX_DECODED_BYTES = 4 * 2**30


class ClipUnreadableError(ValueError):
    """The clip that files are to be made of cannot be decoded."""


def decode_clip(path: Path) -> tuple[Frames, float]:
    """(frames, height, width, 3) of a clip as full-range RGB, and its frames a second.

    Raises `ClipUnreadableError` for what is no video, or one too large for memory.
    """
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or 0)
            for frame in container.decode(stream):
                if len(frames) * frame.width * frame.height * 3 > MAX_DECODED_BYTES:
                    raise ClipUnreadableError(f"{path.name} has more than {MAX_DECODED_BYTES >> 30} GiB of frames")
                frames.append(_rgb(frame))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ClipUnreadableError(f"{path.name} is no video that can be read: {error}") from error
    if not frames or fps <= 0:
        raise ClipUnreadableError(f"{path.name} has no frames")
    return np.stack(frames), fps


def encode_delivery(
    frames: Iterable[NDArray[np.uint8]],
    size: tuple[int, int],
    timeline: Timeline,
    profile: DeliveryProfile,
    path: Path,
    *,
    overlay: Image.Image | None = None,
    above_floor: float | None = None,
    threads: int = 2,
) -> None:
    """Write the file of `profile` from `frames` of `size` (width, height), each as often as `timeline` repeats it.

    `overlay`: an RGBA picture of the profile's size that is laid over every frame. `above_floor`: with a constant bit
    rate of so many times the profile's floor, for clips so plain that quality alone stays below it. Colours, rates and
    index are as profiles have them; the same input, threads and ffmpeg give the same bytes. Raises `EncodeError`.
    """
    rate = _by_quality(profile) if above_floor is None else _constant(round(profile.min_bit_rate * above_floor))
    with written_beside(path) as part, _picture(overlay, part) as laid:
        arguments = [*_filters(size, timeline, profile, laid), *_codec(timeline, rate, threads), "-y", str(part)]
        with ffmpeg_process(arguments, f"write {path.name}") as process:
            assert process.stdin is not None
            for frame in frames:
                if frame.shape != (size[1], size[0], 3):
                    raise EncodeError(f"a frame of {frame.shape} among those of {size[0]}×{size[1]}")
                process.stdin.write(np.ascontiguousarray(frame).data)


def video_bit_rate(path: Path) -> float:
    """Bits a second of a file's pictures alone, without those of the container."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [(packet.size, packet.duration or 0) for packet in container.demux(stream) if packet.size]
        ticks = sum(duration for _, duration in packets)
        return sum(size for size, _ in packets) * 8 / float(ticks * (stream.time_base or 1)) if ticks else 0.0


def _by_quality(profile: DeliveryProfile) -> list[str]:
    quality = ["-crf", str(CRF)]
    if profile.max_bit_rate is None:
        return quality
    most = round(profile.max_bit_rate * _BELOW_CEILING)
    return [*quality, "-maxrate", str(most), "-bufsize", str(most)]


def _constant(bit_rate: int) -> list[str]:
    rate, buffer = str(bit_rate), str(bit_rate // 2)
    # Plain pictures cannot use so many bits: the encoder fills up what they leave.
    return ["-b:v", rate, "-minrate", rate, "-maxrate", rate, "-bufsize", buffer, "-x264-params", "nal-hrd=cbr"]


def _filters(size: tuple[int, int], timeline: Timeline, profile: DeliveryProfile, overlay: Path | None) -> list[str]:
    """Inputs, what is done to them, and which of the results are written for how long."""
    given = f"{timeline.fps}/{timeline.repeat}"
    inputs = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", given, "-i", "pipe:0"]
    chain = f"[0:v]scale={profile.width}:{profile.height}:flags=lanczos+accurate_rnd+full_chroma_int,setsar=1"
    if overlay is not None:
        inputs += ["-i", str(overlay)]
        chain += ",format=gbrp[clip];[1:v]format=gbrap[over];[clip][over]overlay=format=gbrp:eof_action=repeat"
    # Repeated once scaled and laid over: what stands three times is made once.
    chain += f",fps={timeline.fps},{TO_YUV}[out]"
    mapped, length = ["-map", "[out]"], ["-frames:v", str(timeline.frames)]
    if profile.audio is Audio.SILENT:
        layout = "stereo" if profile.audio_channels == 2 else "mono"
        # Later by what the encoder begins earlier: else the pictures would wait for it, the first one too long.
        inputs += [
            "-itsoffset",
            f"{_AAC_DELAY / profile.audio_rate:.9f}",
            "-f",
            "lavfi",
            "-i",
            f"anullsrc=r={profile.audio_rate}:cl={layout}",
        ]
        mapped += ["-map", f"{1 if overlay is None else 2}:a", "-c:a", "aac", "-b:a", str(profile.audio_bit_rate)]
        length += ["-t", f"{timeline.seconds:.6f}"]
    return [*inputs, "-filter_complex", chain, *mapped, *length]


def _codec(timeline: Timeline, rate: list[str], threads: int) -> list[str]:
    # Without B-frames the first one is shown at zero, and no edit list is needed, which Reels does not take.
    closed = ["-bf", "0", "-g", str(timeline.fps * _KEYFRAME_S), "-flags:v", "+cgop+bitexact"]
    stable = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]
    muxed = ["-use_editlist", "0", "-movflags", "+faststart+write_colr", "-f", "mp4"]
    return ["-c:v", "libx264", "-preset", "medium", *rate, "-threads", str(threads), *closed, *BT709, *stable, *muxed]


@contextmanager
def _picture(overlay: Image.Image | None, part: Path) -> Iterator[Path | None]:
    """The overlay as a file beside the one that is written, for as long as that takes."""
    if overlay is None:
        yield None
        return
    path = part.with_suffix(".png")
    try:
        overlay.save(path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    # Files of clips say BT.709 with limited range; a decoder that is not told assumes BT.601 for small pictures.
    made = frame.reformat(
        format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU709", src_color_range="MPEG", dst_color_range="JPEG"
    ).to_ndarray()
    return made.astype(np.uint8, copy=False)
