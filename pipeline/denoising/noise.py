"""Noise by counter: every frame's noise is addressed, never drawn in turn.

A generator that is drawn from in turn has a state, and what a clip gets depends on everything drawn before.
Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a function of a key and a
counter instead: frame f of seed s is the same in a clip of 8 frames and of 32, on any card, after any resume.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Noise = NDArray[np.float32]


def noise(seed: int, purpose: str, frame: int, step: int, shape: tuple[int, ...]) -> Noise:
    """Standard normal float32 of `shape`, the same for the same arguments wherever it is asked for.

    `purpose` keeps uses apart (`latents`, `variance`…): other purposes of one seed are independent streams.
    `frame` and `step` are the two high words of Philox's 256-bit counter, so 2^128 blocks lie between neighbours
    and streams cannot overlap.

    Raises `ValueError` for a negative frame or step.
    """
    if frame < 0 or step < 0:
        raise ValueError(f"noise is addressed by frame and step from 0 on, not frame={frame} step={step}")
    digest = hashlib.sha256(f"{seed}\0{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    counter = np.array([0, 0, frame, step], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return generator.standard_normal(shape, dtype=np.float32)


def clip_noise(seed: int, purpose: str, frames: int, frame_shape: tuple[int, ...], step: int = 0) -> Noise:
    """(frames, *frame_shape) float32: `noise` of every frame of a clip."""
    return np.stack([noise(seed, purpose, frame, step, frame_shape) for frame in range(frames)])
