"""Noise by counter: addressed, not drawn in turn."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.denoising.noise import clip_noise, noise

SHAPE = (4, 8, 8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), frames=st.integers(1, 12), more=st.integers(1, 12), step=st.integers(0, 99))
def test_a_frame_is_the_same_in_a_longer_clip(seed: int, frames: int, more: int, step: int) -> None:
    short = clip_noise(seed, "latents", frames, SHAPE, step)
    long = clip_noise(seed, "latents", frames + more, SHAPE, step)
    assert short.dtype == np.float32
    assert np.array_equal(long[:frames], short)


def test_it_is_numpys_philox_advanced_to_the_frame_and_step() -> None:
    """The stream is one Philox stream; `advance` is numpy's own way to a place in it."""
    key = np.frombuffer(hashlib.sha256(b"7\0latents").digest()[:16], dtype="<u8")
    bits = np.random.Philox(key=key)
    bits.advance(5 * 2**128 + 3 * 2**192)
    expected = np.random.Generator(bits).standard_normal(SHAPE, dtype=np.float32)
    assert np.array_equal(noise(7, "latents", 5, 3, SHAPE), expected)


def test_every_part_of_the_address_matters() -> None:
    addresses = [(1, "a", 0, 0), (2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 1), (11, "a", 0, 0)]
    drawn = np.stack([noise(*address, (4096,)) for address in addresses])
    correlation = np.corrcoef(drawn) - np.eye(len(addresses))
    # 4096 independent pairs correlate with standard deviation 1/64; five of those.
    assert np.abs(correlation).max() < 5 / 64


def test_it_is_standard_normal() -> None:
    """Kolmogorov-Smirnov distance to the normal distribution at significance 1e-6, on 2^18 values."""
    values = np.sort(clip_noise(3, "latents", 16, (16384,)).ravel().astype(np.float64))
    from math import erf, sqrt

    cumulative = np.array([0.5 * (1 + erf(v / sqrt(2))) for v in values[::64]])
    empirical = np.arange(0, len(values), 64) / len(values)
    assert np.abs(cumulative - empirical).max() < sqrt(-0.5 * np.log(1e-6 / 2)) / sqrt(len(values))


def test_global_states_are_neither_read_nor_moved() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = noise(1, "a", 0, 0, SHAPE)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert np.array_equal(noise(1, "a", 0, 0, SHAPE), first)


def test_a_negative_address_is_refused() -> None:
    with pytest.raises(ValueError, match="frame=-1"):
        noise(1, "a", -1, 0, SHAPE)
