"""The overlays of a brand as one transparent picture of a delivered frame: in the safe area, off the product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.clips.inspection.product import Box
from pipeline.delivery.brands import Brand, OverlayKind, OverlayPlace, OverlayStyle, logo_of
from pipeline.delivery.contrast import LEAST_SIGN_CONTRAST, luminance, ratio_of
from pipeline.delivery.profiles import DeliveryProfile
from pipeline.delivery.verdicts import RuleCheck
from pipeline.problems import BadInputError

#: Places that are tried where a brand leaves it open, the first one first.
_CORNERS = (
    OverlayPlace.BOTTOM_LEFT,
    OverlayPlace.BOTTOM_RIGHT,
    OverlayPlace.TOP_LEFT,
    OverlayPlace.TOP_RIGHT,
)
#: Air around letters on a plate, as shares of their height, and between lines.
_PAD_X, _PAD_Y, _LEADING = 0.55, 0.35, 1.25
#: Letters become smaller down to this share of their size before a text is refused.
_SMALLEST = 0.5
#: Level of transparency (of 255) from which a logo is seen.
_SEEN = 128

#: Left, top, right, bottom in pixels.
_Area = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class DrawnOverlay:
    """All overlays of one row for one profile."""

    #: RGBA, of the profile's size; None where nothing is laid over.
    picture: Image.Image | None
    #: What of it is checked on the file.
    checks: tuple[RuleCheck, ...] = ()
    #: What is written, for people.
    texts: tuple[str, ...] = ()


NO_OVERLAY = DrawnOverlay(picture=None)


def draw_overlays(
    brand: Brand,
    texts: Sequence[str],
    profile: DeliveryProfile,
    product: Box,
    frames: Sequence[NDArray[np.uint8]] = (),
) -> DrawnOverlay:
    """The brand's overlays on a frame of `profile`, with these `texts` (`texts_of`).

    `product`: where the product is, as shares of the frame's sides; corners that have least of it are taken, and no
    overlay covers another. `frames`: some of the frames, of any size, on which a logo has to stand out. Raises
    `BadInputError` for a text that does not fit, and for letters that its font has not.
    """
    canvas = Image.new("RGBA", profile.size)
    safe = _safe_area(profile, brand)
    taken: list[_Area] = []
    checks: list[RuleCheck] = []
    drawn: list[str] = []
    pairs = zip(brand.overlays, texts, strict=True)
    wanted = [(style, text) for style, text in pairs if text or style.kind is OverlayKind.LOGO]
    # Those with a place of their own first: the others find another corner.
    for style, text in sorted(wanted, key=lambda one: one[0].place is OverlayPlace.AUTO):
        logo = style.kind is OverlayKind.LOGO
        sign = _logo(brand, style, profile) if logo else _plate(brand, style, text, safe, profile)
        area = _area(sign, style, safe, product, profile, taken)
        if logo and frames:
            check = _stands_out(sign, area, frames, profile)
            if not check.passed and (on_plate := _on_plate(sign, brand, style)) is not None:
                sign = on_plate
                area = _area(sign, style, safe, product, profile, taken)
                check = check.model_copy(update={"passed": True, "found": f"{check.found}, so on a plate"})
            checks.append(check)
        taken.append(area)
        canvas.alpha_composite(sign, area[:2])
        drawn.append(style.kind.value if logo else text)
        checks.append(_within_safe(style, area, safe, _covered(area, product, profile)))
    if not taken:
        return NO_OVERLAY
    return DrawnOverlay(picture=canvas, checks=tuple(checks), texts=tuple(drawn))


def _safe_area(profile: DeliveryProfile, brand: Brand) -> _Area:
    area, margin = profile.safe_area, round(brand.margin * min(profile.size))
    return (
        round(area.left * profile.width) + margin,
        round(area.top * profile.height) + margin,
        profile.width - round(area.right * profile.width) - margin,
        profile.height - round(area.bottom * profile.height) - margin,
    )


def _logo(brand: Brand, style: OverlayStyle, profile: DeliveryProfile) -> Image.Image:
    logo = logo_of(brand)
    width = max(2, round(style.size * min(profile.size)))
    height = max(2, round(logo.height * width / logo.width))
    return logo.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _plate(brand: Brand, style: OverlayStyle, text: str, safe: _Area, profile: DeliveryProfile) -> Image.Image:
    """The text on its plate; letters become smaller where it is too wide."""
    wanted = max(8, round(style.size * min(profile.size)))
    room = safe[2] - safe[0]
    pixels, lines = wanted, 1 if style.kind is OverlayKind.BADGE else style.lines
    while True:
        font = brand.font(style.font, pixels)
        wrapped = _wrapped(text, font, room - 2 * round(_PAD_X * pixels))
        if len(wrapped) <= lines and all(font.getlength(line) + 2 * _PAD_X * pixels <= room for line in wrapped):
            break
        if pixels <= max(8, wanted * _SMALLEST):
            message = f"{profile.name}: {text[:60]!r} does not fit in {lines} lines of {room} pixels"
            raise BadInputError("brand", message, "Shorten the text, or make its overlay smaller.")
        pixels = max(8, round(pixels * 0.9))
    _require_letters(text, font, style.font)
    pad_x, pad_y, step = round(_PAD_X * pixels), round(_PAD_Y * pixels), round(_LEADING * pixels)
    ascent, descent = font.getmetrics()
    width = 2 * pad_x + round(max(font.getlength(line) for line in wrapped))
    height = 2 * pad_y + (len(wrapped) - 1) * step + ascent + descent
    sign = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(sign)
    background, colour = brand.colour(style.background), brand.colour(style.colour)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), round(brand.rounding * pixels), fill=(*background, 255))
    for number, line in enumerate(wrapped):
        pen.text((pad_x, pad_y + number * step), line, font=font, fill=(*colour, 255))
    return sign


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _require_letters(text: str, font: ImageFont.FreeTypeFont, name: str) -> None:
    """Raises `BadInputError` for letters that the font draws as the box that stands for what it has not."""
    missing = bytes(font.getmask("\U0010ffff"))
    lacking = [
        letter for letter in dict.fromkeys(text) if not letter.isspace() and bytes(font.getmask(letter)) == missing
    ]
    if lacking:
        message = f"the font {name!r} has no letters for {' '.join(lacking[:10])} in {text[:60]!r}"
        raise BadInputError("brand", message, "Name a font in the brand file that has them.")


def _on_plate(logo: Image.Image, brand: Brand, style: OverlayStyle) -> Image.Image | None:
    """The logo on the overlay's background colour; None where it does not stand out from that either."""
    colour = brand.colour(style.background)
    if ratio_of(_own_luminance(logo), float(luminance(colour))) < LEAST_SIGN_CONTRAST:
        return None
    pad = round(_PAD_Y * min(logo.size) / 2) + 2
    sign = Image.new("RGBA", (logo.width + 2 * pad, logo.height + 2 * pad))
    corner = round(brand.rounding * min(sign.size) / 2)
    ImageDraw.Draw(sign).rounded_rectangle((0, 0, sign.width - 1, sign.height - 1), corner, fill=(*colour, 255))
    sign.alpha_composite(logo, (pad, pad))
    return sign


def _area(
    sign: Image.Image,
    style: OverlayStyle,
    safe: _Area,
    product: Box,
    profile: DeliveryProfile,
    taken: Sequence[_Area],
) -> _Area:
    """Where the sign stands. Raises `BadInputError` where there is no room for it."""
    at = _place(sign.size, style.place, safe, product, profile, taken)
    if at is None:
        raise BadInputError(
            "brand",
            f"{profile.name}: no room for a {style.kind} of {sign.width}×{sign.height} pixels in the safe area of "
            f"{safe[2] - safe[0]}×{safe[3] - safe[1]} beside {len(taken)} others",
            "Make it smaller, or leave an overlay out.",
        )
    return at[0], at[1], at[0] + sign.width, at[1] + sign.height


def _place(
    size: tuple[int, int],
    place: OverlayPlace,
    safe: _Area,
    product: Box,
    profile: DeliveryProfile,
    taken: Sequence[_Area],
) -> tuple[int, int] | None:
    """Where the sign stands: as the brand says, else in the corner with least of the product; None: nowhere."""
    if size[0] > safe[2] - safe[0] or size[1] > safe[3] - safe[1]:
        return None
    places = _CORNERS if place is OverlayPlace.AUTO else (place,)
    free = []
    for number, one in enumerate(places):
        at = _at(size, one, safe, taken)
        if at is not None:
            area = (at[0], at[1], at[0] + size[0], at[1] + size[1])
            free.append((_covered(area, product, profile), number, at))
    return min(free)[2] if free else None


def _at(size: tuple[int, int], place: OverlayPlace, safe: _Area, taken: Sequence[_Area]) -> tuple[int, int] | None:
    """The place in that corner; beyond what stands there already, towards the middle."""
    name = place.value
    if name.endswith("left"):
        x = safe[0]
    elif name.endswith("right"):
        x = safe[2] - size[0]
    else:
        x = (safe[0] + safe[2] - size[0]) // 2
    down = name.startswith("top")
    y = safe[1] if down else safe[3] - size[1]
    for _ in range(len(taken) + 1):
        there = [other for other in taken if _overlap((x, y, x + size[0], y + size[1]), other)]
        if not there:
            return (x, y) if safe[1] <= y <= safe[3] - size[1] else None
        gap = max(2, size[1] // 4)
        y = max(other[3] for other in there) + gap if down else min(other[1] for other in there) - gap - size[1]
    return None


def _overlap(one: _Area, other: _Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _covered(area: _Area, product: Box, profile: DeliveryProfile) -> float:
    """Share of the overlay behind which the product's box is."""
    left, right = max(area[0], product[0] * profile.width), min(area[2], product[2] * profile.width)
    top, bottom = max(area[1], product[1] * profile.height), min(area[3], product[3] * profile.height)
    inside = max(0.0, right - left) * max(0.0, bottom - top)
    return inside / ((area[2] - area[0]) * (area[3] - area[1]))


def _within_safe(style: OverlayStyle, area: _Area, safe: _Area, covered: float) -> RuleCheck:
    inside = safe[0] <= area[0] and safe[1] <= area[1] and area[2] <= safe[2] and area[3] <= safe[3]
    found = f"{style.kind} at {area[0]},{area[1]} of {area[2] - area[0]}×{area[3] - area[1]} pixels"
    more = f", {covered:.0%} of it over the product's box" if covered > 0.005 else ""
    return RuleCheck(rule="safe_area", passed=inside, found=found + more, wanted=f"within {safe}")


def _stands_out(
    sign: Image.Image, area: _Area, frames: Sequence[NDArray[np.uint8]], profile: DeliveryProfile
) -> RuleCheck:
    """The least contrast between what is seen of a logo and what is behind it, over the frames."""
    own = _own_luminance(sign)
    found = []
    for frame in frames:
        height, width = frame.shape[:2]
        x, y = width / profile.width, height / profile.height
        behind = frame[
            int(area[1] * y) : max(int(area[1] * y) + 1, int(area[3] * y)),
            int(area[0] * x) : max(int(area[0] * x) + 1, int(area[2] * x)),
        ]
        found.append(ratio_of(own, float(np.median(luminance(behind)))))
    least = min(found)
    wanted = f"{LEAST_SIGN_CONTRAST:g} or more (WCAG 2.2, 1.4.11)"
    return RuleCheck(
        rule="logo_contrast", passed=least >= LEAST_SIGN_CONTRAST, found=f"contrast {least:.1f}", wanted=wanted
    )


def _own_luminance(sign: Image.Image) -> float:
    """The luminance of most of what is seen of a sign."""
    pixels = np.asarray(sign)
    seen = pixels[..., 3] >= _SEEN
    return float(np.median(luminance(pixels[..., :3][seen]))) if seen.any() else 0.0
