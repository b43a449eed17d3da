"""The still found again in frames, against homographies that Pillow warped it by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.clips.stills import open_still
from pipeline.fidelity.tracking import laid_back, track

EXAMPLES = Path(__file__).parents[4] / "examples" / "catalog"
SIDE, MARGIN = 200, 60
EVERYWHERE = np.ones((SIDE, SIDE), bool)


def grey(name: str) -> np.ndarray:
    path = next(path for path in EXAMPLES.iterdir() if path.stem == name)
    return np.asarray(open_still(path.read_bytes()).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def seen_by(picture: np.ndarray, view: np.ndarray) -> np.ndarray:
    """`picture` under a homography, by Pillow, which takes the way back, from pixel middles of its own."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    # What lies beside the picture goes on as its ends do, as backgrounds of clips do.
    wide = np.pad(picture, MARGIN, mode="edge")
    beside = np.array([[1, 0, MARGIN], [0, 1, MARGIN], [0, 0, 1]])
    back = beside @ half @ np.linalg.inv(view) @ np.linalg.inv(half)
    coefficients = tuple((back / back[2, 2]).ravel()[:8])
    moved = Image.fromarray(wide).transform(
        (SIDE, SIDE), Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BICUBIC
    )
    return np.asarray(moved)


def view_of(scale: float, turn: float, x: float, y: float, tilt: float = 0.0) -> np.ndarray:
    middle = np.array([[1, 0, -SIDE / 2], [0, 1, -SIDE / 2], [0, 0, 1]])
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return np.linalg.inv(middle) @ np.array([[cos, -sin, x], [sin, cos, y], [tilt, 0, 1]]) @ middle


def corners(view: np.ndarray) -> np.ndarray:
    """Where points around the middle go, whose product is there."""
    points = np.array([[60, 140, 140, 60], [60, 60, 140, 140], [1, 1, 1, 1]], float)
    x, y, w = view @ points
    return np.stack([x / w, y / w])


@pytest.mark.parametrize(
    "view",
    [
        view_of(1.0, 0.0, 0.0, 0.0),
        view_of(1.25, 0.0, 0.0, 0.0),
        view_of(0.85, 0.0, 6.0, -4.0),
        view_of(1.0, 0.15, 0.0, 0.0),
        view_of(1.0, 0.0, -22.0, 9.0),
        view_of(1.05, -0.05, 5.0, 5.0, tilt=4e-4),
    ],
    ids=["still", "closer", "away", "turned", "aside", "slanted"],
)
@pytest.mark.parametrize("name", ["sneaker", "backpack"])
def test_a_view_is_found_to_a_pixel(name: str, view: np.ndarray) -> None:
    picture = grey(name)
    frame = seen_by(picture, view)
    found = track(picture, frame[None], EVERYWHERE, np.zeros(1, bool))
    assert found.found.all()
    assert np.abs(corners(found.views[0]) - corners(view)).max() < 1.0
    laid, shown = laid_back(frame[None, :, :, None].repeat(3, axis=3), found)
    inside = shown[0].copy()
    inside[:3] = inside[-3:] = inside[:, :3] = inside[:, -3:] = False
    off = np.abs(laid[0, :, :, 0].astype(int) - picture)[inside]
    assert float(np.median(off)) <= 3


def test_noise_and_another_picture_are_not_the_still() -> None:
    picture = grey("sneaker")
    noise = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    frames = np.stack([picture, noise, grey("headphones"), picture])
    found = track(picture, frames, EVERYWHERE, np.zeros(4, bool))
    assert found.found.tolist() == [True, False, False, True]
    # Frames that are known to be black are not looked at, whatever they show.
    assert not track(picture, frames, EVERYWHERE, np.ones(4, bool)).found.any()


def test_a_picture_without_structure_cannot_be_followed() -> None:
    flat = np.full((SIDE, SIDE), 200, np.uint8)
    found = track(flat, flat[None], EVERYWHERE, np.zeros(1, bool))
    assert not found.followed
    assert not found.found.any()
