"""`camera`: real camera moves over a flat picture, by numpy and Pillow alone.

The still hangs as a plane before a pinhole camera. Every frame is the homography of that plane seen from the
camera's pose (Hartley & Zisserman, Multiple View Geometry, 2nd ed., section 8.1), warped once from a canvas that is
rendered as sharply as the closest view needs.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from pipeline.clip import ClipSpec, Fit
from pipeline.layouts import Layout
from pipeline.models.model import Frames, OnStep
from pipeline.prompts import CameraMove, Motion, read_motion
from pipeline.stills import Margins, extend, plain_sides, resize

_Array = NDArray[np.float64]

#: Distance of the resting camera in clip widths or heights, whichever is longer: a 35 mm lens' angle, about 35°.
_DISTANCE = 1.6
#: Ratio of the picture's size at the two ends of a zoom.
_ZOOM = 1.22
#: Way of a pan or tilt, as a share of the clip's width or height.
_TRAVEL = 0.16
#: Arc of an orbit, in radians, half of it to either side.
_ARC = math.radians(26)
#: Share of its distance that a dolly travels, and the height (as an angle) from which it sinks to the product's level.
_APPROACH, _SINK = 0.17, math.radians(4)
#: Angle of a roll.
_ROLL = math.radians(9)
#: Pixels around the views that the resampling kernels may touch.
_GUARD = 3
#: How many times finer the canvas is than its content, a side. Bilinear samples of a canvas this fine move evenly and
#: stay sharp; Pillow's bicubic kernel (a = -1) has no linear precision, so slow moves would pulse at every pixel.
_OVERSAMPLING = 2.5
#: Most by which the picture is enlarged to keep its ends out of view; further moves are shortened.
_MAX_OVERFRAME = 1.6


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the camera is, as offsets from rest. Lengths are in clip widths (x) and heights (y)."""

    zoom: float = 1.0
    #: Distance as a share of the distance at rest.
    distance: float = 1.0
    x: float = 0.0
    y: float = 0.0
    #: Angles in radians: around the picture's vertical axis (positive: camera to the right), above its level, and
    #: around the line of sight (positive: camera turned clockwise).
    orbit: float = 0.0
    rise: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rect:
    """In clip pixels, the clip's centre being the origin."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Length from left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Length from top to bottom."""
        return self.bottom - self.top


class CameraModel:
    """Implements `pipeline.models.model.Model` without weights, on the CPU; `layout` and seed change nothing."""

    def render(
        self, still: Image.Image, spec: ClipSpec, layout: Layout, on_step: OnStep, resume: bytes | None = None
    ) -> Frames:
        """Render one clip: (frames, height, width, 3) uint8. A step is a frame. Raises `Stopped` if `on_step` does.

        It gives no snapshots, so `resume` is never one of its own.
        """
        views, canvas, origin, density = _plan(still.convert("RGB"), spec, read_motion(spec.prompt))
        frames = np.empty((spec.frames, spec.height, spec.width, 3), dtype=np.uint8)
        # Clip pixels -> centred clip coordinates -> (view) plane -> canvas pixels.
        centre = np.array([[1, 0, -spec.width / 2], [0, 1, -spec.height / 2], [0, 0, 1]])
        to_canvas = np.array([[density[0], 0, origin[0]], [0, density[1], origin[1]], [0, 0, 1]])
        for i, view in enumerate(views):
            warp = to_canvas @ view @ centre
            coefficients = tuple((warp / warp[2, 2]).ravel()[:8])
            frame = canvas.transform(
                spec.size, Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BILINEAR
            )
            frames[i] = np.asarray(frame)
            on_step(i + 1, spec.frames, None)
        return frames

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """The moves read from the prompt, or the one assumed in their place."""
        motion = read_motion(spec.prompt)
        return {
            "motion": str(motion),
            "moves": [str(move) for move in motion.moves],
            "speed": str(motion.speed),
            "loop": motion.loop,
            "assumed": motion.assumed,
            "cancelled": [str(move) for move in motion.cancelled],
        }

    def describe(self) -> dict[str, Any]:
        """Libraries that decide the pixels."""
        return {
            "model": "camera",
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        }

    def unload(self) -> None:
        """Nothing is held between clips."""


# ------------------------------------------------------------------------------------------------- the path


def progress(frames: int, loop: bool) -> _Array:
    """How far along its path the camera is at each frame, 0 to 1, easing in and out (half a cosine).

    A loop goes out and back so that the frame after the last is the first. With an odd count of frames the turning
    point falls between two frames; a quarter frame of phase keeps them from being the same.
    """
    i = np.arange(frames, dtype=np.float64)
    out_and_back = 2 * math.pi * (i + (0.25 if frames % 2 else 0.0)) / frames
    phase = out_and_back if loop else math.pi * i / max(1, frames - 1)
    eased: _Array = (1 - np.cos(phase)) / 2
    return eased


def pose_at(motion: Motion, t: float, amplitude: float) -> Pose:
    """The camera at progress `t` (0 to 1) of all moves together, each `amplitude` times its usual length.

    Zooms start or end at the whole picture; pans, tilts, orbits and rolls pass it halfway. A dolly comes closer
    (which on a flat picture is a zoom that quickens) and meanwhile sinks to the product's level, so lines converge.
    """
    pose = Pose()
    half = t - 0.5
    for move in motion.moves:
        match move:
            case CameraMove.ZOOM_IN:
                pose = replace(pose, zoom=pose.zoom * _ZOOM ** (amplitude * t))
            case CameraMove.ZOOM_OUT:
                pose = replace(pose, zoom=pose.zoom * _ZOOM ** (amplitude * (1 - t)))
            case CameraMove.DOLLY_IN:
                pose = replace(pose, distance=1 - _APPROACH * amplitude * t, rise=_SINK * amplitude * (1 - t))
            case CameraMove.DOLLY_OUT:
                pose = replace(pose, distance=1 - _APPROACH * amplitude * (1 - t), rise=_SINK * amplitude * t)
            case CameraMove.PAN_LEFT:
                pose = replace(pose, x=-_TRAVEL * amplitude * half)
            case CameraMove.PAN_RIGHT:
                pose = replace(pose, x=_TRAVEL * amplitude * half)
            case CameraMove.TILT_UP:
                pose = replace(pose, y=-_TRAVEL * amplitude * half)
            case CameraMove.TILT_DOWN:
                pose = replace(pose, y=_TRAVEL * amplitude * half)
            case CameraMove.ORBIT_LEFT:
                pose = replace(pose, orbit=-_ARC * amplitude * half)
            case CameraMove.ORBIT_RIGHT:
                pose = replace(pose, orbit=_ARC * amplitude * half)
            case CameraMove.ROLL_CLOCKWISE:
                pose = replace(pose, roll=_ROLL * amplitude * half)
            case CameraMove.ROLL_COUNTERCLOCKWISE:
                pose = replace(pose, roll=-_ROLL * amplitude * half)
    return pose


def view_of(pose: Pose, width: int, height: int) -> _Array:
    """The homography (3, 3) from clip coordinates to the picture's plane, both in clip pixels about the centre.

    x points right, y down, z into the picture. The camera looks at the point (x, y) of the plane from its distance;
    a ray through image point u has the direction Rᵀ K⁻¹ u and is cut with the plane z = 0.
    """
    rest = _DISTANCE * max(width, height)
    distance = rest * pose.distance
    target = np.array([pose.x * width, pose.y * height, 0.0])
    forward = np.array(
        [
            -math.sin(pose.orbit) * math.cos(pose.rise),
            math.sin(pose.rise),
            math.cos(pose.orbit) * math.cos(pose.rise),
        ]
    )
    eye = target - distance * forward
    level = np.array([math.cos(pose.orbit), 0.0, math.sin(pose.orbit)])
    down = np.cross(forward, level)
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    right, down = cos * level + sin * down, cos * down - sin * level
    focal = rest * pose.zoom
    # Rows are the x, y, z of a ray's direction as functions of (u, v, 1).
    ray_x, ray_y, ray_z = np.stack([right / focal, down / focal, forward], axis=1)
    return np.stack([eye[0] * ray_z - eye[2] * ray_x, eye[1] * ray_z - eye[2] * ray_y, ray_z])


# ------------------------------------------------------------------------------------- keeping within the picture


def _plan(
    still: Image.Image, spec: ClipSpec, motion: Motion
) -> tuple[_Array, Image.Image, tuple[float, float], tuple[float, float]]:
    """Views (frames, 3, 3), the canvas, where the plane's origin lies on it in pixels, and its pixels per unit."""
    placed = _placed(still, spec)
    limits = _limits(still, spec, placed)
    views = views_within(motion, progress(spec.frames, motion.loop), spec.size, limits)
    wanted = max(1.0, min(still.width / placed.width, still.height / placed.height))
    density = min(wanted, _magnification(views))
    return views, *_canvas(still, placed, limits, _seen(views, spec.size), density)


def _placed(still: Image.Image, spec: ClipSpec) -> Rect:
    """Where the still lies on the plane under the spec's fit."""
    across, down = spec.width / still.width, spec.height / still.height
    match spec.fit:
        case Fit.CONTAIN:
            across = down = min(across, down)
        case Fit.COVER:
            across = down = max(across, down)
        case Fit.STRETCH:
            pass
    x, y = still.width * across / 2, still.height * down / 2
    return Rect(left=-x, top=-y, right=x, bottom=y)


def _limits(still: Image.Image, spec: ClipSpec, placed: Rect) -> Rect:
    """How far a view may reach: to the picture's end, or without end where its background goes on unseen.

    The latter under `Fit.CONTAIN` on sides that are padded anyway or show nothing but background, so that a product
    is not cut for a picture's sake.
    """
    if spec.fit is not Fit.CONTAIN:
        return placed
    plain = plain_sides(still)
    free_x, free_y = placed.width < spec.width - 0.5, placed.height < spec.height - 0.5
    return Rect(
        left=-math.inf if free_x or plain.left else placed.left,
        top=-math.inf if free_y or plain.top else placed.top,
        right=math.inf if free_x or plain.right else placed.right,
        bottom=math.inf if free_y or plain.bottom else placed.bottom,
    )


def views_within(motion: Motion, steps: _Array, size: tuple[int, int], limits: Rect) -> _Array:
    """The views (frames, 3, 3) at `steps`, none of which reaches beyond `limits`.

    One enlargement for the whole clip brings the ends of the picture out of view; where that would take more than
    `_MAX_OVERFRAME`, the move is shortened instead.
    """
    amplitude = motion.speed.amplitude
    while True:
        views = np.stack([view_of(pose_at(motion, float(t), amplitude), *size) for t in steps])
        if _inside(_enlarged(views, _MAX_OVERFRAME), size, limits):
            break
        amplitude = amplitude * 0.85 if amplitude > 1e-3 else 0.0
    low, high = 1.0, _MAX_OVERFRAME
    if _inside(views, size, limits):
        return views
    for _ in range(24):
        middle = (low + high) / 2
        if _inside(_enlarged(views, middle), size, limits):
            high = middle
        else:
            low = middle
    return _enlarged(views, high)


def _enlarged(views: _Array, scale: float) -> _Array:
    return views @ np.diag([1 / scale, 1 / scale, 1])


def _seen(views: _Array, size: tuple[int, int]) -> Rect:
    """The part of the plane that the views cover together. Homographies keep lines: the corners decide."""
    x, y = size[0] / 2, size[1] / 2
    corners = np.array([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    points = views @ corners
    points = points[:, :2] / points[:, 2:]
    left, top = points.min(axis=(0, 2))
    right, bottom = points.max(axis=(0, 2))
    return Rect(left=float(left), top=float(top), right=float(right), bottom=float(bottom))


def _inside(views: _Array, size: tuple[int, int], limits: Rect) -> bool:
    seen, slack = _seen(views, size), 1e-6
    return (
        seen.left >= limits.left - slack
        and seen.top >= limits.top - slack
        and seen.right <= limits.right + slack
        and seen.bottom <= limits.bottom + slack
    )


def _magnification(views: _Array) -> float:
    """The largest magnification of the picture at the centre of any view: the Jacobian's inverse square root."""
    return float(np.max(1 / np.sqrt(np.abs(np.linalg.det(views) / views[:, 2, 2] ** 3))))


def _canvas(
    still: Image.Image, placed: Rect, limits: Rect, seen: Rect, density: float
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    """The part of the plane that is seen, with the background continued, its origin and its pixels per unit.

    The content has `density` pixels a unit, no more than the closest view can show, so that sampling it never
    aliases; the canvas is that, enlarged smoothly by `_OVERSAMPLING`.
    """
    # Only the rows and columns of the still that are seen: under COVER most of a long banner never is.
    across, down = still.width / placed.width, still.height / placed.height
    x0 = max(0, math.floor((seen.left - placed.left) * across) - _GUARD)
    y0 = max(0, math.floor((seen.top - placed.top) * down) - _GUARD)
    x1 = min(still.width, math.ceil((seen.right - placed.left) * across) + _GUARD)
    y1 = min(still.height, math.ceil((seen.bottom - placed.top) * down) + _GUARD)
    width, height = (max(1, round((x1 - x0) / across * density)), max(1, round((y1 - y0) / down * density)))
    picture = resize(still, (width, height), (x0, y0, x1, y1))
    kept = Rect(
        left=placed.left + x0 / across,
        top=placed.top + y0 / down,
        right=placed.left + x1 / across,
        bottom=placed.top + y1 / down,
    )
    scale_x, scale_y = width / kept.width, height / kept.height
    # On sides with a limit only the kernel's reach lies outside: repeat the last pixels there.
    held = Margins(
        left=0 if math.isinf(limits.left) else _GUARD,
        top=0 if math.isinf(limits.top) else _GUARD,
        right=0 if math.isinf(limits.right) else _GUARD,
        bottom=0 if math.isinf(limits.bottom) else _GUARD,
    )
    free = Margins(
        left=0 if held.left else _beyond((kept.left - seen.left) * scale_x),
        top=0 if held.top else _beyond((kept.top - seen.top) * scale_y),
        right=0 if held.right else _beyond((seen.right - kept.right) * scale_x),
        bottom=0 if held.bottom else _beyond((seen.bottom - kept.bottom) * scale_y),
    )
    pixels = np.asarray(extend(picture, free))
    padding = ((held.top, held.bottom), (held.left, held.right), (0, 0))
    content = Image.fromarray(np.pad(pixels, padding, mode="edge"))
    canvas = resize(content, (round(content.width * _OVERSAMPLING), round(content.height * _OVERSAMPLING)))
    fine_x, fine_y = canvas.width / content.width, canvas.height / content.height
    origin_x = (free.left + held.left - kept.left * scale_x) * fine_x
    origin_y = (free.top + held.top - kept.top * scale_y) * fine_y
    return canvas, (origin_x, origin_y), (scale_x * fine_x, scale_y * fine_y)


def _beyond(length_px: float) -> int:
    return max(0, math.ceil(length_px)) + _GUARD
