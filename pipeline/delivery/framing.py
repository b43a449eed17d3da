"""Which part of a clip a delivered frame shows, and what lies beside it: the product is never cut.

A crop of the wanted aspect round the product where one holds it in every frame; else the whole product with the clip's
background continued. Both are one rectangle in the clip's pixels, which may reach beyond the clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.clips.frames import Frames
from pipeline.clips.inspection.background import follows
from pipeline.clips.inspection.product import Box, product_area
from pipeline.clips.stills import Margins, extend
from pipeline.delivery.profiles import BackgroundFill, DeliveryProfile
from pipeline.problems import BadInputError

#: Air that is kept around a product, as a share of its own sides, where there is room; and the least of it, in pixels.
_AIR, _LEAST_AIR_PX = 0.06, 2.0
#: Pixels that rounding may take.
_SLACK_PX = 1e-6
#: Levels (of 255) within which a border follows its curve, and the share of it that has to for it to be continued.
_SMOOTH_LEVELS, _SMOOTH_SHARE = 14, 0.5
#: The share of it that a soft shadow leaves, and the least gap between it and a product that is not touched by it.
_SHADOWED_SHARE, _LEAST_GAP = 0.85, 0.01
#: Longest side of what is blurred, in pixels: it has no detail, and blurring is what takes time.
_BLUR_SIDE = 192
#: Radius of each blur, and over which distance from the clip it comes up, as shares of the frame's longer side.
_BLURS = ((0.012, 0.03), (0.07, 0.16))


@dataclass(frozen=True, kw_only=True)
class ProductTrack:
    """Where a clip shows its product, over all of its frames."""

    #: Box around the product in every frame together, as shares of the frame's sides; all of it where nobody can tell.
    box: Box
    #: Whether the product was found; else `box` is the whole frame, so that nothing is cut.
    found: bool
    #: Whether the left, top, right and bottom side show nothing but smooth background, in every frame.
    plain: tuple[bool, bool, bool, bool]
    #: Share of each side that is smooth background at least, as a product that touches it leaves it.
    smooth: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    @property
    def continuable(self) -> tuple[bool, bool, bool, bool]:
        """At which of the left, top, right and bottom side the background goes on unseen.

        Where it is smooth; and where the product is known to end before it, also beneath a soft shadow.
        """
        gaps = (self.box[0], self.box[1], 1 - self.box[2], 1 - self.box[3])
        left, top, right, bottom = (
            plain or (self.found and gap >= _LEAST_GAP and share >= _SHADOWED_SHARE)
            for plain, gap, share in zip(self.plain, gaps, self.smooth, strict=True)
        )
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """How frames of a clip become frames of another aspect."""

    #: Left, top, right, bottom of what is shown, in the clip's pixels; beyond the clip it is continued.
    left: float
    top: float
    right: float
    bottom: float
    #: What continues the clip; None where the rectangle lies within it.
    background: BackgroundFill | None
    #: Whether a blurred background is the clip mirrored, as nothing smooth goes on beyond it.
    mirrored: bool
    #: Share of the frame that is continued.
    continued: float
    #: Least distance between the product and the edge of the frame, as a share of the frame's shorter side.
    air: float
    #: Where the product is, as shares of the new frame's sides.
    product: Box

    @property
    def width(self) -> float:
        """Width of what is shown, in the clip's pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Height of what is shown, in the clip's pixels."""
        return self.bottom - self.top

    @property
    def words(self) -> str:
        """The plan for people."""
        if self.background is None:
            return "crop round the product"
        kind = "its own" if self.background is BackgroundFill.PLAIN else "a blurred"
        return f"{kind} background over {self.continued:.0%} of the frame"


def track_product(frames: Frames) -> ProductTrack:
    """Where the product is in `frames` (frames, height, width, 3), every one of which is looked at."""
    boxes: list[Box] = []
    plain, smooth = np.ones(4, bool), np.ones(4)
    known = len(frames) > 0
    last: NDArray[np.uint8] | None = None
    for frame in frames:
        if last is not None and np.array_equal(frame, last):
            continue
        last = frame
        area = product_area(Image.fromarray(frame))
        sides, background = area.background.plain, area.background
        plain &= sides
        lines = zip(background.edges, background.curves, strict=True)
        smooth = np.minimum(smooth, [follows(edge, curve, _SMOOTH_LEVELS) for edge, curve in lines])
        # A product that stands on the border hides the background there; three sides tell enough of it.
        known = known and sum(sides) >= 3
        if (box := area.box) is not None:
            boxes.append(box)
    if not known:
        return ProductTrack(box=(0.0, 0.0, 1.0, 1.0), found=False, plain=_four(plain), smooth=_shares(smooth))
    box = union(boxes) if boxes else (0.5, 0.5, 0.5, 0.5)
    return ProductTrack(box=box, found=True, plain=_four(plain), smooth=_shares(smooth))


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around all of `boxes`, of which there is one at least."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def plan_frame(track: ProductTrack, size: tuple[int, int], profile: DeliveryProfile) -> FramePlan:
    """What of frames of `size` (width, height) pixels a frame of the profile's aspect shows.

    Raises `BadInputError`, with the shares, where no crop holds the product and the profile takes no such background,
    or not so much of it.
    """
    width, height = size
    aspect = profile.width / profile.height
    # The largest rectangle of that aspect within the clip.
    crop_w, crop_h = (width, width / aspect) if width / height <= aspect else (height * aspect, height)
    left, top, right, bottom = (share * side for share, side in zip(track.box, (width, height) * 2, strict=True))
    if right - left <= crop_w + 1e-6 and bottom - top <= crop_h + 1e-6 and _fits(track.box, crop_w, crop_h, size):
        middle = safe_middle(profile)
        x = _placed(left, right, crop_w, width, middle[0])
        y = _placed(top, bottom, crop_h, height, middle[1])
        return _plan(track.box, size, (x, y, x + crop_w, y + crop_h), None, mirrored=False)
    box = _with_air((left, top, right, bottom), size)
    rectangle = _around(box, aspect, size, safe_middle(profile), track.continuable)
    reaches = (
        rectangle[0] < -_SLACK_PX,
        rectangle[1] < -_SLACK_PX,
        rectangle[2] > width + _SLACK_PX,
        rectangle[3] > height + _SLACK_PX,
    )
    background = _background(track, profile, reaches, size)
    mirrored = any(share < _SMOOTH_SHARE for share, reached in zip(track.smooth, reaches, strict=True) if reached)
    plan = _plan(track.box, size, rectangle, background, mirrored=mirrored)
    if plan.continued > profile.most_continued + 1e-9:
        wide, high = track.box[2] - track.box[0], track.box[3] - track.box[1]
        wanted, own = _ratio(*profile.size), _ratio(*size)
        raise BadInputError(
            "deliver",
            f"{profile.name}: {wanted} from a clip of {own} without cutting the product leaves {plan.continued:.0%} of "
            f"the frame to its background, more than {profile.most_continued:.0%}: the product takes {wide:.0%} of the "
            f"clip's width and {high:.0%} of its height",
            f"Render it in an aspect nearer to {wanted} (column `aspect`), or leave {profile.name} out.",
        )
    return plan


def reframe(frame: NDArray[np.uint8], plan: FramePlan) -> NDArray[np.uint8]:
    """The frame (height, width, 3) as `plan` shows it, still in the clip's own pixels, with even sides."""
    height, width = frame.shape[:2]
    x0, y0 = round(plan.left), round(plan.top)
    x1, y1 = x0 + _even(plan.width), y0 + _even(plan.height)
    if plan.background is None:
        x0, x1 = _within(x0, x1, width)
        y0, y1 = _within(y0, y1, height)
        return np.ascontiguousarray(frame[y0:y1, x0:x1])
    inner = frame[max(0, y0) : min(height, y1), max(0, x0) : min(width, x1)]
    margins = Margins(left=max(0, -x0), top=max(0, -y0), right=max(0, x1 - width), bottom=max(0, y1 - height))
    picture = Image.fromarray(np.ascontiguousarray(inner))
    if plan.background is BackgroundFill.PLAIN:
        return np.asarray(extend(picture, margins))
    return _over_blurred(picture, margins, mirrored=plan.mirrored)


def reframed_size(plan: FramePlan) -> tuple[int, int]:
    """(width, height) in pixels of what `reframe` gives."""
    return _even(plan.width), _even(plan.height)


def _background(
    track: ProductTrack, profile: DeliveryProfile, reaches: tuple[bool, bool, bool, bool], size: tuple[int, int]
) -> BackgroundFill:
    smooth = all(goes_on for goes_on, reached in zip(track.continuable, reaches, strict=True) if reached)
    for one in profile.backgrounds:
        if one is not BackgroundFill.PLAIN or smooth:
            return one
    sides = ", ".join(
        name
        for name, goes_on, reached in zip(("left", "top", "right", "bottom"), track.continuable, reaches, strict=True)
        if reached and not goes_on
    )
    taken = " or ".join(profile.backgrounds) or "no"
    what = f"a crop to {_ratio(*profile.size)} of a clip of {_ratio(*size)} would cut the product"
    if not track.found:
        what = f"nobody can tell the product from what is behind it, and a crop to {_ratio(*profile.size)} might cut it"
    more = f", and what is at its {sides} is no smooth background" if sides else ""
    raise BadInputError(
        "deliver",
        f"{profile.name}: {what}, and it takes {taken} background beside it{more}",
        f"Render it in {_ratio(*profile.size)} (column `aspect`), or take a still with a plain background.",
    )


def _plan(
    box: Box,
    size: tuple[int, int],
    rectangle: tuple[float, float, float, float],
    background: BackgroundFill | None,
    *,
    mirrored: bool,
) -> FramePlan:
    left, top, right, bottom = rectangle
    wide, high = right - left, bottom - top
    inside = max(0.0, min(right, size[0]) - max(left, 0)) * max(0.0, min(bottom, size[1]) - max(top, 0))
    product = (
        (box[0] * size[0] - left) / wide,
        (box[1] * size[1] - top) / high,
        (box[2] * size[0] - left) / wide,
        (box[3] * size[1] - top) / high,
    )
    shorter = min(wide, high)
    air = min(product[0] * wide, product[1] * high, (1 - product[2]) * wide, (1 - product[3]) * high) / shorter
    return FramePlan(
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        background=background,
        mirrored=mirrored,
        continued=max(0.0, 1 - inside / (wide * high)),
        air=air,
        product=product,
    )


def _fits(box: Box, crop_w: float, crop_h: float, size: tuple[int, int]) -> bool:
    """Whether a crop leaves the product a little air, on those sides on which the clip itself has some."""
    for low, high, crop, side in ((box[0], box[2], crop_w, size[0]), (box[1], box[3], crop_h, size[1])):
        if crop >= side - 1e-6:
            continue  # that side is not cropped
        extent = (high - low) * side
        if extent + 2 * max(_LEAST_AIR_PX, _AIR * extent / 2) > crop:
            return False
    return True


def _with_air(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """`box` with air around it, as far as the clip reaches."""
    left, top, right, bottom = box
    x, y = (max(_LEAST_AIR_PX, _AIR * extent) for extent in (right - left, bottom - top))
    return max(0.0, left - x), max(0.0, top - y), min(float(size[0]), right + x), min(float(size[1]), bottom + y)


def _around(
    box: tuple[float, float, float, float],
    aspect: float,
    size: tuple[int, int],
    middle: tuple[float, float],
    continuable: tuple[bool, bool, bool, bool],
) -> tuple[float, float, float, float]:
    """The rectangle of that aspect round the box that needs least of what is not in the clip.

    The box's middle comes to `middle`, as shares of the rectangle's sides, as far as that costs no background. Where
    the background goes on at one of two sides alone, that is where it is continued.
    """
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    if wide / high < aspect:
        wide = high * aspect
    else:
        high = wide / aspect
    x = _held((left + right) / 2 - wide * middle[0], left, right, wide)
    y = _held((top + bottom) / 2 - high * middle[1], top, bottom, high)
    x = _ended(x, wide, size[0], continuable[0], continuable[2])
    y = _ended(y, high, size[1], continuable[1], continuable[3])
    return x, y, x + wide, y + high


def safe_middle(profile: DeliveryProfile) -> tuple[float, float]:
    """The middle of what the marketplace's own signs leave free, as shares of the frame's sides."""
    area = profile.safe_area
    return (1 + area.left - area.right) / 2, (1 + area.top - area.bottom) / 2


def _placed(low: float, high: float, crop: float, side: float, middle: float) -> float:
    """Where a crop begins that has low to high around its `middle`, as far as the side reaches."""
    begin = _held((low + high) / 2 - crop * middle, low, high, crop)
    return min(max(begin, 0.0), side - crop)


def _held(begin: float, low: float, high: float, length: float) -> float:
    """Where a stretch of `length` begins, moved to hold low to high with what air there is on the nearer side."""
    air = min((length - (high - low)) / 2, _AIR * (high - low))
    return min(max(begin, high + air - length), low - air)


def _ended(begin: float, length: float, side: float, before: bool, after: bool) -> float:
    """Where a stretch begins that lies within the side where it can, else the side within it.

    `before` and `after`: whether there may be something beyond either end of the side; a stretch that is longer than it
    ends where it does, if there may be at one of them alone.
    """
    if length <= side:
        return min(max(begin, 0.0), side - length)
    if before != after:
        return side - length if before else 0.0
    return min(max(begin, side - length), 0.0)


def _over_blurred(picture: Image.Image, margins: Margins, *, mirrored: bool) -> NDArray[np.uint8]:
    """The picture continued outward, and the more blurred the further from it: there is no line where it ends.

    `mirrored`: by itself; else by what is smooth of its border, so that a product which touches that is not repeated.
    """
    padding = ((margins.top, margins.bottom), (margins.left, margins.right), (0, 0))
    pixels = np.asarray(picture)
    continued = np.pad(pixels, padding, mode="symmetric") if mirrored else np.asarray(extend(picture, margins))
    height, width = continued.shape[:2]
    scale = min(1.0, _BLUR_SIDE / max(width, height))
    small = max(2, round(width * scale)), max(2, round(height * scale))
    reduced = Image.fromarray(continued).resize(small, Image.Resampling.BOX)
    distance = _distance(picture.size, margins) / max(width, height)
    made = continued.astype(np.float32)
    for radius, reach in _BLURS:
        blurred = reduced.filter(ImageFilter.GaussianBlur(radius * _BLUR_SIDE))
        share = np.clip(distance / reach, 0, 1)
        # Smooth at both ends (smoothstep), so that the eye finds no beginning.
        share = (share * share * (3 - 2 * share))[..., None]
        enlarged = np.asarray(blurred.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        made += share * (enlarged - made)
    return np.rint(np.clip(made, 0, 255)).astype(np.uint8)


def _distance(size: tuple[int, int], margins: Margins) -> NDArray[np.float32]:
    """(height, width): how many pixels lie between a pixel and the picture within its margins; 0 in it."""
    across, down = (
        np.concatenate([np.arange(before, 0, -1), np.zeros(side), np.arange(1, after + 1)]).astype(np.float32)
        for before, side, after in ((margins.left, size[0], margins.right), (margins.top, size[1], margins.bottom))
    )
    found: NDArray[np.float32] = np.maximum(across[None, :], down[:, None])
    return found


def _even(length: float) -> int:
    return max(2, round(length / 2) * 2)


def _within(low: int, high: int, side: int) -> tuple[int, int]:
    """The stretch moved, and cut where it is longer, to lie within the side."""
    length = min(high - low, side - side % 2)
    low = min(max(0, low), side - length)
    return low, low + length


def _four(values: NDArray[np.bool_]) -> tuple[bool, bool, bool, bool]:
    left, top, right, bottom = (bool(value) for value in values)
    return left, top, right, bottom


def _shares(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


def _ratio(width: int, height: int) -> str:
    """An aspect for people: 16:9, 1:1, else as a number."""
    divisor = math.gcd(width, height)
    if max(width, height) // divisor <= 21:
        return f"{width // divisor}:{height // divisor}"
    return f"{width / height:.2f}:1" if width >= height else f"1:{height / width:.2f}"
