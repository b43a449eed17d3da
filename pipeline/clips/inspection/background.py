"""What lies behind a product: a smooth surface, told by what the four borders of its picture show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

#: Levels (of 255) within which a border's colours follow its curve, and the share of them that has to: it is plain.
_PLAIN_LEVELS, _PLAIN_SHARE = 8, 0.98


@dataclass(frozen=True, kw_only=True)
class Background:
    """The background that the borders of a picture tell: a curve along each, and a surface between them."""

    #: Border colours of the left, top, right and bottom side, each (length, 3), and the curves through them.
    edges: tuple[Pixels, Pixels, Pixels, Pixels]
    curves: tuple[Pixels, Pixels, Pixels, Pixels]

    @property
    def plain(self) -> tuple[bool, bool, bool, bool]:
        """Which of the left, top, right and bottom side show nothing but background."""
        left, top, right, bottom = (
            follows(edge, curve, _PLAIN_LEVELS) >= _PLAIN_SHARE
            for edge, curve in zip(self.edges, self.curves, strict=True)
        )
        return left, top, right, bottom

    def surface(self) -> Pixels:
        """The background everywhere, (height, width, 3): the Coons patch (Coons, 1967) between the four curves."""
        left, top, right, bottom = self.curves
        u = np.linspace(0, 1, len(top), dtype=np.float32)[None, :, None]
        v = np.linspace(0, 1, len(left), dtype=np.float32)[:, None, None]
        sides = (1 - u) * left[:, None] + u * right[:, None] + (1 - v) * top[None] + v * bottom[None]
        corners = (1 - v) * ((1 - u) * top[0] + u * top[-1]) + v * ((1 - u) * bottom[0] + u * bottom[-1])
        patch: Pixels = (sides - corners).astype(np.float32)
        return patch


def background_of(pixels: Pixels) -> Background:
    """The background of a picture of (height, width, 3) levels from 0 to 255."""
    edges = borders(pixels)
    left, top, right, bottom = (border_curve(edge) for edge in edges)
    return Background(edges=edges, curves=(left, top, right, bottom))


def borders(pixels: Pixels) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """The border colours of the left, top, right and bottom side, each (length, 3), noise averaged inward."""
    depth = max(1, min(4, *(side // 16 for side in pixels.shape[:2])))
    return (
        pixels[:, :depth].mean(axis=1),
        pixels[:depth].mean(axis=0),
        pixels[:, -depth:].mean(axis=1),
        pixels[-depth:].mean(axis=0),
    )


def border_curve(edge: Pixels) -> Pixels:
    """The background along an edge: a polynomial of degree 5 fitted by iteratively reweighted least squares.

    Weights are Tukey's biweight (Beaton & Tukey, 1974) on the distance from the median first, from the curve after.
    Where less than half of the edge follows the curve there is no background to speak of: the median it is.
    """
    length = len(edge)
    median = np.broadcast_to(np.median(edge, axis=0), edge.shape).astype(np.float32)
    if length < 8:
        return median
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, length), 5)
    curve, reach = median, 48.0
    for _ in range(8):
        distance = largest(np.abs(edge - curve)) / reach
        weight = np.where(distance < 1, (1 - distance**2) ** 2, 0.0)
        if np.count_nonzero(weight) < length / 2:
            return median
        root = np.sqrt(weight)[:, None]
        curve = (basis @ np.linalg.lstsq(basis * root, edge * root, rcond=None)[0]).astype(np.float32)
        reach = max(20.0, reach * 0.75)
    # A polynomial may swing wide where a product hides the background: stay within the colours that are there.
    inside = largest(np.abs(edge - curve)) < reach
    if np.count_nonzero(inside) < length / 2:
        return median
    bounded: Pixels = np.clip(curve, edge[inside].min(axis=0), edge[inside].max(axis=0))
    return bounded


def largest(values: Pixels) -> Pixels:
    """The largest of three channels, (…, 3) to (…); numpy takes ten times as long to reduce so short an axis."""
    found: Pixels = np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])
    return found


def follows(edge: Pixels, curve: Pixels, levels: float) -> float:
    """Share of an edge that lies within so many levels (of 255) of its curve."""
    return float(np.mean(largest(np.abs(edge - curve)) <= levels))
