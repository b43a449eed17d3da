"""Where the tiles of a decoded frame lie, and what each counts for at every place: no torch here."""

from __future__ import annotations

import math

from pipeline.families.layouts import Layout


def tile_spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """(first, end) of tiles that cover `length`, all of `side` and evenly spread, neighbours sharing `overlap` or more.

    One span of the whole length where that is no longer than `side`. Raises `ValueError` unless 0 ≤ overlap < side.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"tiles of {side} cannot share {overlap}")
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    return [(first, first + side) for first in (round(place * (length - side) / (count - 1)) for place in range(count))]


def largest_tile(width: int, height: int, layout: Layout, pixels_per_latent: int) -> int:
    """Pixels of the frame that are decoded at once: of a tile, or all of it."""
    side = layout.decode_tile * pixels_per_latent
    return min(width, side or width) * min(height, side or height)


def decoded_pixels(width: int, height: int, layout: Layout, pixels_per_latent: int) -> int:
    """Pixels that are decoded for one frame, those in several tiles counted several times."""
    if not layout.decode_tile:
        return width * height
    decoded = pixels_per_latent**2
    for length in (width // pixels_per_latent, height // pixels_per_latent):
        decoded *= sum(end - first for first, end in tile_spans(length, layout.decode_tile, layout.decode_overlap))
    return decoded


def tile_weights(length: int, side: int, overlap: int, scale: int = 1) -> list[list[float]]:
    """What each span of `tile_spans(length, side, overlap)` counts for at its places, `scale` of them a step.

    They rise linearly from an inner edge over what the tile shares with its neighbour, are never 0, and those of all
    tiles at one place add up to 1.
    """
    spans = [(first * scale, end * scale) for first, end in tile_spans(length, side, overlap)]
    ramps = []
    for number, (first, end) in enumerate(spans):
        before = spans[number - 1][1] - first if number else 0
        after = end - spans[number + 1][0] if number + 1 < len(spans) else 0
        ramps.append(
            [
                min(
                    1.0,
                    (place - first + 0.5) / before if before else 1.0,
                    (end - place - 0.5) / after if after else 1.0,
                )
                for place in range(first, end)
            ]
        )
    totals = [0.0] * (length * scale)
    for (first, _), ramp in zip(spans, ramps, strict=True):
        for place, share in enumerate(ramp, start=first):
            totals[place] += share
    return [
        [share / totals[place] for place, share in enumerate(ramp, start=first)]
        for (first, _), ramp in zip(spans, ramps, strict=True)
    ]
