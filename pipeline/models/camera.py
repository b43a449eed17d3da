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

from pipeline.clips.clip import ClipSpec, Fit
from pipeline.clips.frames import Frames, FrameSink
from pipeline.clips.inspection.product import product_box
from pipeline.clips.prompts import CameraMove, Motion, read_motion
from pipeline.clips.stills import Margins, extend, plain_sides, resize
from pipeline.families.layouts import Layout
from pipeline.models.model import OnStep

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
#: Most by which the picture is shown smaller to keep the product in view, where its background goes on unseen.
_MAX_PULLBACK = 1.2
#: Share of a picture that its product is taken to fill where its background does not show it: what shops ask for.
_ASSUMED_FILL = 0.87
#: Air around the product, as a share of the clip's sides.
_AIR = 0.01
#: Moves that are shortened by less than this share are not worth a word.
_UNSEEN_SHARE = 0.02


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

    def __init__(self) -> None:
        #: The clip that was rendered last, and how much of its moves it has.
        self._last: tuple[ClipSpec, float] | None = None

    def render(
        self,
        still: Image.Image,
        spec: ClipSpec,
        layout: Layout,
        on_step: OnStep,
        resume: bytes | None = None,
        sink: FrameSink | None = None,
    ) -> Frames:
        """Render one clip: (frames, height, width, 3) uint8. A step is a frame. Raises what `on_step` and `sink` raise.

        It gives no snapshots, so `resume` is never one of its own.
        """
        path, canvas, origin, density = _plan(still.convert("RGB"), spec, read_motion(spec.prompt))
        self._last = spec, path.share
        frames = np.empty((spec.frames, spec.height, spec.width, 3), dtype=np.uint8)
        if sink is not None:
            sink.begin(frames)
        # Clip pixels -> centred clip coordinates -> (view) plane -> canvas pixels.
        centre = np.array([[1, 0, -spec.width / 2], [0, 1, -spec.height / 2], [0, 0, 1]])
        to_canvas = np.array([[density[0], 0, origin[0]], [0, density[1], origin[1]], [0, 0, 1]])
        for i, view in enumerate(path.views):
            warp = to_canvas @ view @ centre
            coefficients = tuple((warp / warp[2, 2]).ravel()[:8])
            frame = canvas.transform(
                spec.size, Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BILINEAR
            )
            frames[i] = np.asarray(frame)
            if sink is not None:
                sink.filled(i + 1)
            on_step(i + 1, spec.frames, None)
        return frames

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """The moves read from the prompt, or the one assumed in their place.

        Right after the clip was rendered also the share of them that there was room for, where it is not all.
        """
        motion = read_motion(spec.prompt)
        share = self._last[1] if self._last is not None and self._last[0] == spec else 1.0
        shortened = {"move_share": round(share, 2)} if share < 1 - _UNSEEN_SHARE else {}
        return shortened | {
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
        """Nothing: the camera keeps nothing between clips."""


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


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Where the camera goes in a clip."""

    #: Homographies (frames, 3, 3), as `view_of` makes them.
    views: _Array
    #: Length of the moves as a share of what was asked for.
    share: float


def _plan(
    still: Image.Image, spec: ClipSpec, motion: Motion
) -> tuple[CameraPath, Image.Image, tuple[float, float], tuple[float, float]]:
    """The path, the canvas, where the plane's origin lies on it in pixels, and its pixels per unit."""
    placed = _placed(still, spec)
    limits = _limits(still, spec, placed)
    box = product_box(still)
    path = path_within(
        motion,
        progress(spec.frames, motion.loop),
        spec.size,
        limits,
        product=_product(box, spec, placed),
        # Nobody steps back for the sake of a product that is only assumed.
        pullback=1.0 if box is None else _MAX_PULLBACK,
    )
    wanted = max(1.0, min(still.width / placed.width, still.height / placed.height))
    density = min(wanted, _magnification(path.views))
    return path, *_canvas(still, placed, limits, _seen(path.views, spec.size), density)


def _product(box: tuple[float, float, float, float] | None, spec: ClipSpec, placed: Rect) -> Rect:
    """What every view is to show whole: the product with some air, as far as the camera at rest shows it.

    `box` is what `product_box` found; where that is nothing, or cut by the fit already, the middle is taken for it.
    """
    half_x, half_y = spec.width / 2, spec.height / 2
    seen_x, seen_y = min(half_x, placed.width / 2), min(half_y, placed.height / 2)
    left, right = -_ASSUMED_FILL * seen_x, _ASSUMED_FILL * seen_x
    top, bottom = -_ASSUMED_FILL * seen_y, _ASSUMED_FILL * seen_y
    if box is not None:
        across = placed.left + box[0] * placed.width, placed.left + box[2] * placed.width
        down = placed.top + box[1] * placed.height, placed.top + box[3] * placed.height
        if -half_x <= across[0] and across[1] <= half_x:
            left, right = across
        if -half_y <= down[0] and down[1] <= half_y:
            top, bottom = down
    air_x, air_y = _AIR * spec.width, _AIR * spec.height
    return Rect(
        left=max(-half_x, left - air_x),
        top=max(-half_y, top - air_y),
        right=min(half_x, right + air_x),
        bottom=min(half_y, bottom + air_y),
    )


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


def path_within(
    motion: Motion,
    steps: _Array,
    size: tuple[int, int],
    limits: Rect,
    *,
    product: Rect | None = None,
    pullback: float = _MAX_PULLBACK,
) -> CameraPath:
    """The path at `steps`: no view of it reaches beyond `limits`, and every view shows all of `product`.

    One enlargement for the whole clip brings the ends of the picture out of view, and one reduction, where its
    background goes on, keeps the product in view. Where that would take more than `_MAX_OVERFRAME` or `pullback`, or
    both, the move is shortened instead. `product` is to lie within the camera's view at rest.
    """
    share = 1.0
    while True:
        views = np.stack([view_of(pose_at(motion, float(t), motion.speed.amplitude * share), *size) for t in steps])
        most = _MAX_OVERFRAME if product is None else min(_MAX_OVERFRAME, _largest_scale(views, size, product))
        if (most >= 1 / pullback - 1e-9 and _inside(_enlarged(views, most), size, limits)) or not share:
            break
        share = share * 0.9 if share > 1e-3 else 0.0
    if most >= 1 and _inside(views, size, limits):
        return CameraPath(views=views, share=share)
    low, high = min(1.0, most), most
    if not _inside(_enlarged(views, low), size, limits):
        for _ in range(24):
            middle = (low + high) / 2
            if _inside(_enlarged(views, middle), size, limits):
                high = middle
            else:
                low = middle
    return CameraPath(views=_enlarged(views, high), share=share)


def _largest_scale(views: _Array, size: tuple[int, int], product: Rect) -> float:
    """By how much all views may be enlarged before one of them cuts the product. Lines stay lines: corners decide."""
    x, y = (product.left, product.right), (product.top, product.bottom)
    corners = np.array([(a, b, 1.0) for a in x for b in y]).T
    points = np.linalg.inv(views) @ corners
    points = np.abs(points[:, :2] / points[:, 2:])
    across, down = points.max(axis=(0, 2))
    return float(min(size[0] / 2 / max(across, 1e-9), size[1] / 2 / max(down, 1e-9)))


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
