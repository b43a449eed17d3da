"""What the demo stills are drawn with: masks, gradients, soft shadows and a studio backdrop on Pillow and numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

#: Drawn this many times larger and scaled down: the edges' smoothing.
SUPERSAMPLE = 2

Floats = NDArray[np.float32]
Point = tuple[float, float]
Colour = str | tuple[int, int, int]
#: (position 0..1, colour) pairs.
Stops = Sequence[tuple[float, Colour]]


def rgb(colour: Colour) -> tuple[int, int, int]:
    """Red, green and blue of `#rrggbb`."""
    if isinstance(colour, tuple):
        return colour
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 24) -> list[Point]:
    """A Catmull-Rom curve through the points (Catmull & Rom, 1974)."""
    count = len(points)
    curve: list[Point] = []
    for i in range(count if closed else count - 1):
        around = [i - 1, i, i + 1, i + 2]
        at = [n % count for n in around] if closed else [min(max(n, 0), count - 1) for n in around]
        p0, p1, p2, p3 = (np.array(points[n]) for n in at)
        for t in np.linspace(0, 1, steps, endpoint=False):
            p = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2)
            p = p + 0.5 * (3 * p1 - p0 - 3 * p2 + p3) * t**3
            curve.append((float(p[0]), float(p[1])))
    return curve if closed else [*curve, points[-1]]


class Canvas:
    """A picture in the making, in units of its final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.image = Image.new("RGB", self.size)
        rows, columns = np.mgrid[0 : self.size[1], 0 : self.size[0]].astype(np.float32)
        self.x: Floats = columns / SUPERSAMPLE
        self.y: Floats = rows / SUPERSAMPLE

    def ramp(self, at: Floats, stops: Stops) -> Image.Image:
        """Colours of `stops` along `at` (0..1), interpolated smoothly."""
        places = [place for place, _ in stops]
        colours = np.array([rgb(colour) for _, colour in stops], dtype=np.float32)
        channels = [np.interp(at, places, colours[:, i]) for i in range(3)]
        return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8), "RGB")

    def linear(self, start: Point, end: Point, stops: Stops) -> Image.Image:
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * dx + (self.y - start[1]) * dy) / (dx * dx + dy * dy)
        return self.ramp(np.clip(along, 0, 1), stops)

    def radial(self, centre: Point, radii: Point, stops: Stops) -> Image.Image:
        away = np.hypot((self.x - centre[0]) / radii[0], (self.y - centre[1]) / radii[1])
        return self.ramp(np.clip(away, 0, 1), stops)

    def across(self, left: float, right: float, stops: Stops) -> Image.Image:
        return self.linear((left, 0), (right, 0), stops)

    def down(self, top: float, bottom: float, stops: Stops) -> Image.Image:
        return self.linear((0, top), (0, bottom), stops)

    def _mask(self, draw: Callable[[ImageDraw.ImageDraw], None], blur: float = 0) -> Image.Image:
        mask = Image.new("L", self.size)
        draw(ImageDraw.Draw(mask))
        return mask.filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLE)) if blur else mask

    def polygon(self, points: Sequence[Point], blur: float = 0) -> Image.Image:
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        return self._mask(lambda pen: pen.polygon(scaled, fill=255), blur)

    def shape(self, points: Sequence[Point], blur: float = 0) -> Image.Image:
        return self.polygon(smooth(points), blur)

    def ellipse(self, centre: Point, radii: Point, blur: float = 0) -> Image.Image:
        (x, y), (a, b) = centre, radii
        box = [v * SUPERSAMPLE for v in (x - a, y - b, x + a, y + b)]
        return self._mask(lambda pen: pen.ellipse(box, fill=255), blur)

    def ring(self, centre: Point, radii: Point, thickness: float, blur: float = 0) -> Image.Image:
        inner = self.ellipse(centre, (radii[0] - thickness, radii[1] - thickness))
        ring = Image.composite(Image.new("L", self.size), self.ellipse(centre, radii), inner)
        return ring.filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLE)) if blur else ring

    def box(self, left: float, top: float, right: float, bottom: float, radius: float, blur: float = 0) -> Image.Image:
        sides = [v * SUPERSAMPLE for v in (left, top, right, bottom)]
        return self._mask(lambda pen: pen.rounded_rectangle(sides, radius * SUPERSAMPLE, fill=255), blur)

    def stroke(self, points: Sequence[Point], thickness: float, blur: float = 0) -> Image.Image:
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        radius = thickness * SUPERSAMPLE / 2

        def draw(pen: ImageDraw.ImageDraw) -> None:
            pen.line(scaled, fill=255, width=round(2 * radius), joint="curve")
            for x, y in scaled:
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)

        return self._mask(draw, blur)

    def fill(self, mask: Image.Image, paint: Image.Image | Colour, opacity: float = 1) -> None:
        if opacity < 1:
            mask = mask.point(lambda v: v * opacity)
        source = paint if isinstance(paint, Image.Image) else Image.new("RGB", self.size, rgb(paint))
        self.image.paste(source, (0, 0), mask)

    def within(self, shape: Image.Image, mask: Image.Image, paint: Colour, opacity: float = 1) -> None:
        """`fill`, but only where `shape` is: shading that cannot leave its object."""
        self.fill(Image.composite(mask, Image.new("L", self.size), shape), paint, opacity)

    def studio(self, wall: Stops, floor: Stops, horizon: float) -> None:
        """A seamless backdrop: wall above, floor below, the bend between them soft."""
        self.image.paste(self.down(0, horizon, wall))
        bend = np.clip((self.y - horizon) / (0.1 * self.height) + 0.5, 0, 1)
        mask = Image.fromarray(np.rint(255 * bend * bend * (3 - 2 * bend)).astype(np.uint8), "L")
        self.fill(mask, self.down(horizon, self.height, floor))

    def glow(self, centre: Point, radii: Point, colour: Colour, opacity: float) -> None:
        away = np.hypot((self.x - centre[0]) / radii[0], (self.y - centre[1]) / radii[1])
        mask = Image.fromarray(np.rint(255 * opacity * np.exp(-2 * away * away)).astype(np.uint8), "L")
        self.fill(mask, colour)

    def ground(self, centre: Point, radii: Point, colour: Colour, opacity: float = 0.5) -> None:
        """Where an object meets the floor: a wide faint shadow and a tight dark one."""
        (x, y), (a, b) = centre, radii
        self.fill(self.ellipse((x + 0.16 * a, y + 0.5 * b), (1.35 * a, 1.5 * b), blur=0.9 * b), colour, opacity * 0.55)
        self.fill(self.ellipse((x, y), (a, 0.62 * b), blur=0.3 * b), colour, opacity)

    def finished(self) -> Image.Image:
        return self.image.resize((self.width, self.height), Image.Resampling.LANCZOS)


def arc(centre: Point, radii: Point, start: float, end: float, count: int = 60) -> list[Point]:
    """Points of an ellipse from `start` to `end` degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, count))
    return [(centre[0] + radii[0] * math.cos(t), centre[1] + radii[1] * math.sin(t)) for t in angles]
