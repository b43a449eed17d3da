"""Which camera move a clip shows, by how its still moves through it, against the one that its prompt asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.clips.prompts import CameraMove, read_motion
from pipeline.fidelity.tracking import Homography, Track
from pipeline.lint.reading import read_parts

#: What a whole move is, in the measure of each: shares of the frame's side that the picture travels, the logarithm of
#: its enlargement, radians it turns, and the logarithm of how much more one half of it is enlarged than the other.
_TRAVEL, _ZOOM, _ROLL, _ORBIT = 0.16, math.log(1.22), math.radians(9), 0.14
#: Points beside the middle at which enlargements are compared, as a share of the frame's sides.
_ASIDE = 0.25
#: Share of the frames in which the still was found, for its move to be told.
_LEAST_FOUND = 0.5
#: How far a clip has to move for a move of it to be seen, in whole moves.
SEEN = 0.1

#: How far off each is, by the bounds of `FidelityPart.MOTION`: a missing move spoils a clip less than its opposite.
_MISSING, _UNASKED, _OTHER, _OPPOSITE = 0.12, 0.12, 0.14, 0.16

_M = CameraMove


@dataclass(frozen=True, kw_only=True)
class SeenMotion:
    """How far the camera went in a clip, by axis, in whole moves of a usual speed; its sign tells the direction."""

    #: To the left, up, in, and counterclockwise, and around the product to the right.
    pan_left: float = 0.0
    tilt_up: float = 0.0
    zoom_in: float = 0.0
    roll_counterclockwise: float = 0.0
    orbit_right: float = 0.0

    def of(self, move: CameraMove) -> float:
        """How far it made `move`; negative where it made the opposite."""
        axis, sign = _AXES[move]
        return sign * float(getattr(self, axis))

    @property
    def strongest(self) -> tuple[CameraMove, float]:
        """The move that it made most of, and how far."""
        return max(((move, self.of(move)) for move in _SIMPLE), key=lambda one: one[1])


_AXES: Mapping[CameraMove, tuple[str, int]] = {
    _M.PAN_LEFT: ("pan_left", 1),
    _M.PAN_RIGHT: ("pan_left", -1),
    _M.TILT_UP: ("tilt_up", 1),
    _M.TILT_DOWN: ("tilt_up", -1),
    _M.ZOOM_IN: ("zoom_in", 1),
    _M.ZOOM_OUT: ("zoom_in", -1),
    _M.DOLLY_IN: ("zoom_in", 1),
    _M.DOLLY_OUT: ("zoom_in", -1),
    _M.ROLL_CLOCKWISE: ("roll_counterclockwise", -1),
    _M.ROLL_COUNTERCLOCKWISE: ("roll_counterclockwise", 1),
    _M.ORBIT_RIGHT: ("orbit_right", 1),
    _M.ORBIT_LEFT: ("orbit_right", -1),
}
#: Moves by which a clip is described: a lens and wheels look alike, and an orbit is a guess.
_SIMPLE = (
    *(_M.PAN_LEFT, _M.PAN_RIGHT, _M.TILT_UP, _M.TILT_DOWN, _M.ZOOM_IN, _M.ZOOM_OUT),
    *(_M.ROLL_CLOCKWISE, _M.ROLL_COUNTERCLOCKWISE),
)
_ORBITS = frozenset((_M.ORBIT_LEFT, _M.ORBIT_RIGHT))


@dataclass(frozen=True, kw_only=True)
class MotionVerdict:
    """What a clip's camera did of what was asked for."""

    #: `motion_opposite`, `motion_other`, `motion_missing`, `motion_unasked`; empty where it did what was asked.
    code: str
    #: How far it is off: 0 is as asked, and from 0.1 on it is told.
    off: float
    words: str = ""


#: A camera that does as it was told.
AS_ASKED = MotionVerdict(code="", off=0.0)


def seen_motion(track: Track, size: tuple[int, int]) -> SeenMotion | None:
    """How the camera went from the first frame to the furthest one; None where the still was not found often enough.

    `size`: (width, height) of the pictures that were tracked. In a loop the furthest frame is where it turns back.
    """
    there = np.flatnonzero(track.found)
    if track.share < _LEAST_FOUND or len(there) < 2:
        return None
    first = track.views[there[0]]
    width, height = size
    corners = np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], np.float64)
    moved = track.views[there] @ np.linalg.inv(first) @ corners
    away = np.linalg.norm(moved[:, :2] / moved[:, 2:] - corners[:2], axis=1).mean(axis=1)
    return _parts(track.views[there[int(np.argmax(away))]] @ np.linalg.inv(first), size)


def judge_motion(prompt: str, seen: SeenMotion, *, flat: bool, room: float = 1.0) -> MotionVerdict:
    """Whether the camera did what an English prompt asks for.

    `flat`: the clip is a camera's way over a flat picture, where an orbit can be told by how lines converge; `room`:
    the share of its move that there was room for. A prompt that asks for no move and for no static camera is content
    with any.
    """
    asked, static = _asked(prompt, flat=flat)
    found, how_far = seen.strongest
    if not asked:
        if static and how_far > 2 * SEEN:
            words = f"the prompt asks for a camera that stands still, and it makes {_share(how_far)} of a {found}"
            return MotionVerdict(code="motion_unasked", off=_UNASKED, words=words)
        return AS_ASKED
    judged = [move for move in asked if flat or move not in _ORBITS]
    if not judged:
        return AS_ASKED
    worst = min(judged, key=seen.of)
    if seen.of(worst) < -SEEN * room:
        words = f"the prompt asks for {_named(worst)}, and the camera does the opposite"
        return MotionVerdict(code="motion_opposite", off=max(_OPPOSITE, -seen.of(worst) / room), words=words)
    if max(seen.of(move) for move in judged) >= SEEN * room or room < 0.5 or _ORBITS & set(asked):
        # A slow orbit shows little but a narrower product.
        return AS_ASKED
    first = _named(judged[0])
    if how_far > 3 * SEEN:
        words = f"the prompt asks for {first}, and the camera makes {_named(found)}"
        return MotionVerdict(code="motion_other", off=_OTHER, words=words)
    if how_far < SEEN:
        return MotionVerdict(
            code="motion_missing", off=_MISSING, words=f"the prompt asks for {first}, and nothing moves so"
        )
    return AS_ASKED


def _asked(prompt: str, *, flat: bool) -> tuple[list[CameraMove], bool]:
    """(the moves that are asked for, whether none is to be made), as whatever renders the prompt reads it."""
    if flat:
        moves = list(read_motion(prompt).moves)
        return moves, not moves
    parts = read_parts(prompt)
    return [move for move in parts.moves if move not in parts.cancelled], parts.static


def _parts(view: Homography, size: tuple[int, int]) -> SeenMotion:
    """The homography from the first frame's pixels to another's, by axes, at the middle of the frame."""
    width, height = size
    middle = np.array([width / 2, height / 2])
    at, slope = _at(view, middle)
    aside = np.array([_ASIDE * width, 0.0])
    sides = [math.log(_enlarged(_at(view, middle + sign * aside)[1])) for sign in (1, -1)]
    return SeenMotion(
        # The picture moves right while the camera pans left.
        pan_left=float((at - middle)[0] / width / _TRAVEL),
        tilt_up=float((at - middle)[1] / height / _TRAVEL),
        zoom_in=math.log(_enlarged(slope)) / _ZOOM,
        # And turns clockwise, on a screen whose y points down, while the camera turns against the clock.
        roll_counterclockwise=math.atan2(slope[1, 0] - slope[0, 1], slope[0, 0] + slope[1, 1]) / _ROLL,
        orbit_right=(sides[0] - sides[1]) / _ORBIT,
    )


def _at(view: Homography, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where a point goes, the derivative (2, 2) there)."""
    x, y, w = view @ np.array([*point, 1.0])
    place = np.array([x / w, y / w])
    slope = (view[:2, :2] - place[:, None] * view[2, :2][None]) / w
    return place, slope


def _enlarged(slope: np.ndarray) -> float:
    return math.sqrt(max(1e-6, abs(float(np.linalg.det(slope)))))


def _named(move: CameraMove) -> str:
    return f"{'an' if str(move)[0] in 'aeiou' else 'a'} {move}"


def _share(moves: float) -> str:
    return f"{moves:.0%}"
