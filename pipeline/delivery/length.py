"""Which frame of a clip stands when in its file: how long, at which constant rate, and so that no jump is seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.clips.frames import Frames
from pipeline.delivery.profiles import DeliveryProfile, Lengthening
from pipeline.problems import BadInputError

#: A clip is played up to so much faster or slower, where each of its frames then stands equally long: film shown on
#: television has been for decades (25 for 24 frames a second: 4 %), and nobody sees it.
MOST_SPEED_CHANGE = 0.07
#: A clip ends as it begins where the step from its last frame to its first is at most so many of its own steps.
_SEAM_STEPS = 1.6
#: Mean difference (levels of 255) that is no motion.
_STILL_LEVELS = 0.05
#: Share of a clip's frames that are faded into its beginning, and the least number.
_FADED_SHARE, _LEAST_FADED = 0.25, 2
#: Side in pixels at which frames are compared.
_COMPARED_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What is shown when."""

    #: For each frame of the clip that is shown: the frame, another one mixed into it, and the other one's share.
    order: tuple[tuple[int, int, float], ...]
    #: How often each of them is shown.
    repeat: int
    #: Frames a second of the file.
    fps: int
    #: How it became longer; None where it did not.
    lengthening: Lengthening | None
    #: Speed of playback; 1 is the clip's own.
    speed: float
    #: Whether the end leads to the beginning.
    seamless: bool

    @property
    def frames(self) -> int:
        """Frames of the file."""
        return len(self.order) * self.repeat

    @property
    def seconds(self) -> float:
        """Length of the file in seconds."""
        return self.frames / self.fps

    @property
    def words(self) -> str:
        """The timeline for people."""
        how = f", by {self.lengthening}" if self.lengthening else ""
        speed = f", played at {self.speed:.1%} of its speed" if abs(self.speed - 1) > 0.001 else ""
        return f"{self.seconds:.2f} s at {self.fps} frames a second{how}{speed}"


def ends_as_it_begins(frames: Frames) -> bool:
    """Whether the step from the last of `frames` (frames, height, width, 3) to the first is one like the others."""
    if len(frames) < 3:
        return len(frames) < 2
    stride = max(1, min(frames.shape[1:3]) // _COMPARED_SIDE)
    small = frames[:, ::stride, ::stride].astype(np.int16)
    steps = [float(np.abs(one - other).mean()) for one, other in zip(small[1:], small[:-1], strict=True)]
    seam = float(np.abs(small[0] - small[-1]).mean())
    # The turning points of a camera that eases in and out are slow: a step like the fastest ones is none that is seen.
    return seam <= max(_SEAM_STEPS * float(np.percentile(steps, 90)), _STILL_LEVELS)


def plan_time(
    count: int, fps: float, profile: DeliveryProfile, *, seamless: bool, wish: Lengthening = Lengthening.AUTO
) -> Timeline:
    """When the frames of a clip of `count` frames, `fps` a second, stand in a file of `profile`.

    `seamless`: it ends as it begins (`ends_as_it_begins`). `wish`: how it is lengthened where it has to be, over what
    the profile says. Raises `BadInputError`, with the seconds, where it cannot be as long, or as short, as wanted.
    """
    rate, repeat = _rate(fps, profile)
    own_fps = rate / repeat
    steps: tuple[tuple[int, int, float], ...] = tuple((index, index, 0.0) for index in range(count))
    speed = own_fps / fps
    if abs(speed - 1) > MOST_SPEED_CHANGE:
        # No rate that it takes is a multiple of the clip's: neighbours are mixed.
        steps, own_fps, repeat, speed = _mixed(count, fps, rate), float(rate), 1, 1.0
    lengthening = None
    needed = math.ceil(profile.min_seconds * own_fps - 1e-9)
    if len(steps) < needed or (profile.loops and not seamless):
        lengthening = _chosen(wish if wish is not Lengthening.AUTO else profile.lengthening, seamless, len(steps))
        period = _period(steps, lengthening)
        if len(steps) >= needed and len(period) / own_fps > profile.max_seconds:
            lengthening = None  # only wanted
        else:
            steps, seamless = period * max(1, math.ceil(needed / len(period))), True
    made = Timeline(order=steps, repeat=repeat, fps=rate, lengthening=lengthening, speed=speed, seamless=seamless)
    if made.seconds > profile.max_seconds + 1e-9:
        wanted = f"{profile.min_seconds:g} to {profile.max_seconds:g} s"
        raise BadInputError(
            "deliver",
            f"{profile.name}: the clip of {count / fps:.2f} s makes {made.seconds:.2f} s, and it takes {wanted}",
            "Ask for fewer frames or seconds in the row.",
        )
    return made


def shown(frames: Frames, timeline: Timeline) -> Iterator[NDArray[np.uint8]]:
    """The frames of the timeline one by one, each once where the file repeats it."""
    for index, other, share in timeline.order:
        if share <= 0 or index == other:
            yield frames[index]
        else:
            mixed = frames[index] * np.float32(1 - share) + frames[other] * np.float32(share)
            yield np.rint(mixed).astype(np.uint8)


def _rate(fps: float, profile: DeliveryProfile) -> tuple[int, int]:
    """(rate, how often each frame is shown): the one with the smallest change of speed, of equal ones the first."""
    found = min(
        (
            (abs(rate / repeat / fps - 1), place, rate, repeat)
            for place, rate in enumerate(profile.rates)
            for repeat in {max(1, math.floor(rate / fps)), math.ceil(rate / fps)}
        ),
        key=lambda one: (round(one[0], 6), one[1], one[3]),
    )
    return found[2], found[3]


def _mixed(count: int, fps: float, rate: int) -> tuple[tuple[int, int, float], ...]:
    total = max(1, round(count * rate / fps))
    found = []
    for place in range(total):
        at = min(place * fps / rate, count - 1)
        index = int(at)
        share = round(at - index, 4)
        found.append((index, min(index + 1, count - 1), share))
    return tuple(found)


def _chosen(wish: Lengthening, seamless: bool, count: int) -> Lengthening:
    if wish is Lengthening.AUTO or (wish is Lengthening.CROSS_FADE and count < 2 * _LEAST_FADED):
        return Lengthening.LOOP if seamless else Lengthening.PING_PONG
    # A jump that nobody asked for is none that is delivered.
    return Lengthening.PING_PONG if wish is Lengthening.LOOP and not seamless else wish


def _period(steps: tuple[tuple[int, int, float], ...], how: Lengthening) -> tuple[tuple[int, int, float], ...]:
    """The steps of one pass, after the last of which the first may follow."""
    match how:
        case Lengthening.PING_PONG:
            # Neither turning point stands twice.
            return steps + steps[-2:0:-1]
        case Lengthening.CROSS_FADE:
            count = len(steps)
            faded = max(_LEAST_FADED, round(count * _FADED_SHARE))
            kept = count - faded
            faded = min(faded, kept)
            # The beginning comes up out of the end, which follows on what was shown last.
            begin = tuple(
                (steps[kept + place][0], steps[place][0], round((place + 1) / (faded + 1), 4)) for place in range(faded)
            )
            return begin + steps[faded:kept]
        case _:
            return steps
