"""A finished file judged against its profile: by what its container and its pictures say, not by how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.inspection.framing import bars
from pipeline.clips.review import review
from pipeline.delivery.boxes import has_edit_list, index_first
from pipeline.delivery.framing import FramePlan
from pipeline.delivery.profiles import Audio, DeliveryProfile
from pipeline.delivery.verdicts import RuleCheck
from pipeline.units import format_bytes

#: Frames that are looked at for bars, evenly spread; bars are there all the time.
_LOOKED_AT = 7
#: Longest side at which frames are looked at.
_LOOK_SIDE = 480
#: A rate is kept to this part: 23.976 is written as 24000/1001.
_RATE_SLACK = 0.0005
#: What rounding to whole pixels may take, as a share of the shorter side.
_PIXEL_SHARE = 0.004
#: Sound may be so many seconds longer or shorter than the pictures: a packet of AAC is 21 ms.
_AUDIO_SLACK_S = 0.1


@dataclass
class _Seen:
    """What reading a whole file shows."""

    width: int = 0
    height: int = 0
    square_pixels: bool = True
    codec: str = ""
    pixels: str = ""
    colours: tuple[str, str, str, str] = ("", "", "", "")
    #: Presentation times in ticks of `base`, in the order of the file, and bytes of the packets.
    times: list[int] = field(default_factory=list)
    base: Fraction = Fraction(1)
    video_bytes: int = 0
    decoded: int = 0
    interlaced: bool = False
    video_streams: int = 0
    others: int = 0
    audio_codec: str = ""
    audio_rate: int = 0
    audio_channels: int = 0
    audio_seconds: float = 0.0
    looks: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def steps(self) -> set[int]:
        """Distances of neighbouring frames, in ticks."""
        ordered = sorted(self.times)
        return {after - before for before, after in pairwise(ordered)}

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        ordered = sorted(self.times)
        span = (ordered[-1] - ordered[0]) * self.base if len(ordered) > 1 else Fraction(0)
        return float((len(ordered) - 1) / span) if span else 0.0

    @property
    def seconds(self) -> float:
        """Length of the pictures in seconds, the last one's included."""
        return len(self.times) / self.fps if self.fps else 0.0


def judge_file(path: Path, profile: DeliveryProfile) -> list[RuleCheck]:
    """Every rule of `profile` on the file at `path`, in a fixed order. A file that is no video breaks `container`."""
    try:
        seen = _read(path)
        first, edits = index_first(path), has_edit_list(path)
    except (av.FFmpegError, ValueError, OSError, IndexError) as error:
        return [_check("container", False, f"no video that can be read ({error})", "MP4")]
    size = path.stat().st_size
    return [
        _check("container", seen.video_streams == 1 and not seen.others, _streams(seen), "MP4 with one video"),
        _check("codec", seen.codec == "h264" and not seen.interlaced, _codec(seen), "h264, progressive"),
        _check("pixels", seen.pixels == "yuv420p", seen.pixels, "yuv420p"),
        _check(
            "size",
            (seen.width, seen.height) == profile.size and seen.square_pixels,
            f"{seen.width}×{seen.height}{'' if seen.square_pixels else ', pixels not square'}",
            f"{profile.width}×{profile.height}, square pixels",
        ),
        _check("whole", seen.decoded == len(seen.times) > 0, f"{seen.decoded} of {len(seen.times)} frames", "all"),
        _check("constant_rate", len(seen.steps) <= 1, f"{len(seen.steps)} distances of frames", "one"),
        _check(
            "rate",
            profile.min_fps * (1 - _RATE_SLACK) <= seen.fps <= profile.max_fps * (1 + _RATE_SLACK),
            f"{seen.fps:.3f} frames a second",
            f"{profile.min_fps:g} to {profile.max_fps:g}",
        ),
        _check(
            "seconds",
            profile.min_seconds - 1e-6 <= seen.seconds <= profile.max_seconds + 1e-6,
            f"{seen.seconds:.3f} s",
            f"{profile.min_seconds:g} to {profile.max_seconds:g} s",
        ),
        _bit_rate(seen, profile),
        _check("bytes", size <= profile.max_bytes, format_bytes(size), f"up to {format_bytes(profile.max_bytes)}"),
        _check("colours", seen.colours == ("bt709", "bt709", "bt709", "tv"), " ".join(seen.colours), "bt709, limited"),
        _check("index_first", first, "in front" if first else "at the end", "in front (faststart)"),
        _check("edit_list", not edits, "there" if edits else "none", "none"),
        _audio(seen, profile),
        _bars(seen.looks),
        _picture(seen.looks),
    ]


def product_check(plan: FramePlan) -> RuleCheck:
    """Whether the crop holds the product, as it is in all frames of the clip, as far as the clip itself shows it."""
    whole = plan.air >= -_PIXEL_SHARE
    found = f"{max(0.0, plan.air):.1%} of the shorter side from the edge"
    return _check("product", whole, found, "whole in every frame")


def _read(path: Path) -> _Seen:
    seen = _Seen()
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        seen.video_streams = len(container.streams.video)
        audio = container.streams.audio[0] if container.streams.audio else None
        seen.others = len(container.streams) - seen.video_streams - (1 if audio else 0)
        context = video.codec_context
        seen.width, seen.height = context.width, context.height
        aspect = video.sample_aspect_ratio
        seen.square_pixels = aspect in (None, 0, 1)
        seen.codec, seen.pixels = context.name, str(context.pix_fmt)
        seen.base = video.time_base or Fraction(1)
        seen.colours = (
            _name(ColorPrimaries, context.color_primaries),
            _name(ColorTrc, context.color_trc),
            _name(Colorspace, context.colorspace),
            "tv" if context.color_range == ColorRange.MPEG else "pc",
        )
        if audio is not None:
            seen.audio_codec = audio.codec_context.name
            seen.audio_rate, seen.audio_channels = audio.codec_context.sample_rate, audio.codec_context.channels
        _packets(container, video, audio, seen)
    return seen


def _packets(
    container: av.container.InputContainer, video: av.VideoStream, audio: av.AudioStream | None, seen: _Seen
) -> None:
    total = video.frames or 1
    wanted = {round(place) for place in np.linspace(0, total - 1, min(_LOOKED_AT, total))}
    for packet in container.demux([video] if audio is None else [video, audio]):
        if audio is not None and packet.stream.index == audio.index:
            seen.audio_seconds += float((packet.duration or 0) * (audio.time_base or 0))
            continue
        if packet.size and packet.pts is not None:
            seen.times.append(packet.pts)
            seen.video_bytes += packet.size
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            seen.interlaced = seen.interlaced or bool(frame.interlaced_frame)
            if seen.decoded in wanted:
                scale = min(1.0, _LOOK_SIDE / max(frame.width, frame.height))
                width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
                look = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                seen.looks.append(look.astype(np.uint8, copy=False))
            seen.decoded += 1


def _name(kind: type[ColorPrimaries] | type[ColorTrc] | type[Colorspace], value: int) -> str:
    try:
        name = kind(value).name.lower()
    except ValueError:
        return str(value)
    return "bt709" if name == "itu709" else name


def _streams(seen: _Seen) -> str:
    return f"{seen.video_streams} video{f', {seen.others} others' if seen.others else ''}"


def _codec(seen: _Seen) -> str:
    return f"{seen.codec}{', interlaced' if seen.interlaced else ''}"


def _bit_rate(seen: _Seen, profile: DeliveryProfile) -> RuleCheck:
    rate = seen.video_bytes * 8 / seen.seconds if seen.seconds else 0.0
    most = profile.max_bit_rate
    least = f"{profile.min_bit_rate / 1e6:g}" if profile.min_bit_rate else "0"
    return _check(
        "bit_rate",
        profile.min_bit_rate <= rate and (most is None or rate <= most),
        f"{rate / 1e6:.2f} Mb/s",
        f"{least} Mb/s or more" if most is None else f"{least} to {most / 1e6:g} Mb/s",
    )


def _audio(seen: _Seen, profile: DeliveryProfile) -> RuleCheck:
    if profile.audio is Audio.NONE:
        return _check("audio", not seen.audio_codec, seen.audio_codec or "none", "none")
    wanted = f"aac, {profile.audio_rate} Hz, {profile.audio_channels} channels, as long as the pictures"
    if not seen.audio_codec:
        return _check("audio", False, "none", wanted)
    kept = (seen.audio_codec, seen.audio_rate, seen.audio_channels) == (
        "aac",
        profile.audio_rate,
        profile.audio_channels,
    )
    long = abs(seen.audio_seconds - seen.seconds) <= _AUDIO_SLACK_S
    found = f"{seen.audio_codec}, {seen.audio_rate} Hz, {seen.audio_channels} channels, {seen.audio_seconds:.2f} s"
    return _check("audio", kept and long, found, wanted)


def _bars(looks: list[NDArray[np.uint8]]) -> RuleCheck:
    """Bars of one colour that are seen in most of the frames; a single one may show what looks like them."""
    found = [one for one in (bars(Image.fromarray(look)) for look in looks) if one]
    there = len(found) * 2 > len(looks)
    words = "none"
    if there:
        sides = {name for one in found for name in ("left", "top", "right", "bottom") if getattr(one, name)}
        words = f"at the {', '.join(name for name in ('left', 'top', 'right', 'bottom') if name in sides)}"
    return _check("bars", not there, words, "none on any side")


def _picture(looks: list[NDArray[np.uint8]]) -> RuleCheck:
    faults = [note.message for note in review(np.stack(looks)) if note.code != "no_motion"] if looks else ["no frames"]
    return _check("picture", not faults, "; ".join(faults) or "seen", "neither black nor of one colour")


def _check(rule: str, passed: bool, found: str, wanted: str) -> RuleCheck:
    return RuleCheck(rule=rule, passed=bool(passed), found=found, wanted=wanted)
