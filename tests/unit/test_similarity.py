"""The benchmarks' measures of likeness, on clips whose likeness is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.similarity import motion_correlation, psnr


def moving(width: int = 32, height: int = 24, frames: int = 9, speed: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """A bright bar that travels across, once over the clip at speed 1."""
    x = (np.arange(width) + 0.5) / width
    t = np.linspace(0, 1, frames)
    bar = np.exp(-(((x[None] - (t[:, None] * speed + phase)) / 0.1) ** 2))
    return np.repeat((bar * 255).astype(np.uint8)[:, None, :, None], height, axis=1).repeat(3, axis=3)


def test_psnr_of_a_known_error() -> None:
    clip = np.full((2, 4, 4, 3), 100, dtype=np.uint8)
    assert psnr(clip, clip) == math.inf
    assert psnr(clip, clip + np.uint8(10)) == pytest.approx(20 * math.log10(25.5))
    with pytest.raises(ValueError, match="pixel by pixel"):
        psnr(clip, clip[:1])


def test_the_same_motion_at_another_size_and_frame_count_correlates() -> None:
    assert motion_correlation(moving(), moving()) == pytest.approx(1)
    assert motion_correlation(moving(), moving(96, 72, 25)) > 0.95


def test_other_motion_does_not() -> None:
    forwards, backwards = moving(), moving()[::-1]
    assert motion_correlation(forwards, backwards) < 0.2
    noise = np.random.default_rng(0).integers(0, 256, forwards.shape, dtype=np.uint8)
    assert abs(motion_correlation(forwards, noise)) < 0.1


def test_brighter_pictures_with_the_same_motion_correlate_all_the_same() -> None:
    assert motion_correlation(moving() // 2, moving() // 2 + np.uint8(100)) > 0.99


def test_stillness_correlates_with_nothing() -> None:
    assert motion_correlation(moving(), np.zeros_like(moving())) == 0
