"""Small clips whose product and motion are known, for tests of deliveries."""

from __future__ import annotations

from datetime import date

import numpy as np

from pipeline.clips.frames import Frames
from pipeline.delivery.profiles import Audio, DeliveryProfile

GREY, RED = (214, 216, 220), (170, 30, 40)


def product_clip(
    size: tuple[int, int] = (160, 160),
    box: tuple[int, int, int, int] = (60, 50, 100, 120),
    *,
    frames: int = 8,
    drift: tuple[int, int] = (0, 0),
    background: tuple[int, int, int] = GREY,
) -> Frames:
    """A block with stripes on a plain background that moves by `drift` (x, y) pixels from first to last frame."""
    width, height = size
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = background
    left, top, right, bottom = box
    for number, frame in enumerate(clip):
        share = number / max(1, frames - 1)
        x, y = round(drift[0] * share), round(drift[1] * share)
        frame[top + y : bottom + y, left + x : right + x] = RED
        frame[top + y : bottom + y : 8, left + x : right + x] = (250, 240, 90)
        frame[top + y + 6 : top + y + 10, left + x + 4 + number : left + x + 12 + number] = (20, 40, 160)
    return clip


def busy_clip(size: tuple[int, int] = (160, 160), frames: int = 4) -> Frames:
    """Noise to the borders: nobody can tell a product there."""
    random = np.random.default_rng(1)
    blocks = random.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    one = blocks.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(one, number, axis=1) for number in range(frames)])


def profile(**rules: object) -> DeliveryProfile:
    """A small profile of 16:9, to be encoded in little time."""
    said: dict[str, object] = {
        "name": "small",
        "title": "Small",
        "source": "the test",
        "checked": date(2026, 11, 29),
        "width": 192,
        "height": 108,
        "min_seconds": 1,
        "max_seconds": 4,
        "rates": (24, 30),
        "min_fps": 23.976,
        "max_fps": 30,
        "max_bytes": 1_000_000,
        "audio": Audio.NONE,
    }
    return DeliveryProfile.model_validate(said | rules)
