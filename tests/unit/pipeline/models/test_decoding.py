"""Decoded chunks on their way to frames: rounded as one would by hand, and told apart where they are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.clips.frames import Frames
from pipeline.devices.emulated import EmulatedDevice
from pipeline.families.layouts import RESIDENT
from pipeline.models.errors import NotFiniteError
from pipeline.models.model import RenderStopped
from pipeline.models.stages.decoding import decode_once
from pipeline.models.stages.residency import leaving_nothing


class Chunks:
    """A decoder that gives what it was given."""

    def __init__(self, chunks: list[torch.Tensor]) -> None:
        self.chunks = chunks
        self.family: Any = SimpleNamespace(name="chunks", pixels_per_latent=2, frames_per_latent=1)
        self.latents = torch.empty(1, 4, sum(map(len, chunks)), 2, 3)
        self.parts: Any = SimpleNamespace(of=lambda _stage: [SimpleNamespace(dtype=torch.float32)])

    def decode_chunks(self, _latents: torch.Tensor, _layout: Any) -> Iterator[torch.Tensor]:
        yield from (chunk.clone() for chunk in self.chunks)


def chunks_of(*counts: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 3, 4, 6, generator=source) * 0.8).to(dtype) for count in counts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_frames_of_all_chunks_in_order_rounded_to_eight_bits(dtype: torch.dtype) -> None:
    chunks = chunks_of(1, 4, 3, dtype=dtype)
    model: Any = Chunks(chunks)
    frames = decode_once(model, model.latents, RESIDENT)
    values = torch.cat(chunks).float().numpy().transpose(0, 2, 3, 1)
    expected = np.rint(np.clip(values * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255))
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_frame_that_is_not_finite_is_named(bad: float) -> None:
    chunks = chunks_of(2, 4)
    chunks[1][2, 1, 3, 3] = bad
    chunks[1][3, 0, 0, 0] = bad
    model: Any = Chunks(chunks)
    with pytest.raises(NotFiniteError, match="frame 4 on"):
        decode_once(model, model.latents, RESIDENT)


def test_frames_are_no_memory_of_the_card() -> None:
    card = EmulatedDevice(2**20)
    model: Any = Chunks(chunks_of(4))
    with card.work():
        frames = decode_once(model, model.latents, RESIDENT)
    assert frames.shape == (4, 4, 6, 3)
    assert card.used_bytes() == 0


class Heard:
    """What a sink was told, with copies of the frames that were there."""

    def __init__(self, stop_at: int = -1) -> None:
        self.begun: list[Frames] = []
        self.filled_to: list[int] = []
        self.copies: list[Frames] = []
        self.stop_at = stop_at

    def begin(self, frames: Frames) -> None:
        self.begun.append(frames)

    def filled(self, count: int) -> None:
        self.filled_to.append(count)
        self.copies.append(self.begun[-1][:count].copy())
        if count == self.stop_at:
            raise RenderStopped


def test_whoever_takes_the_frames_is_told_chunk_by_chunk() -> None:
    model: Any = Chunks(chunks_of(1, 4, 3))
    heard = Heard()
    frames = decode_once(model, model.latents, RESIDENT, heard)
    assert len(heard.begun) == 1
    assert heard.begun[0] is frames
    assert heard.filled_to == [1, 5, 8]
    for copy in heard.copies:
        assert np.array_equal(copy, frames[: len(copy)]), "what was told stays as it is"


def test_no_frame_of_a_chunk_that_is_not_finite_is_handed_on() -> None:
    chunks = chunks_of(2, 4, 1)
    chunks[1][3, 0, 0, 0] = float("nan")
    model: Any = Chunks(chunks)
    heard = Heard()
    with pytest.raises(NotFiniteError, match="frame 5 on"):
        decode_once(model, model.latents, RESIDENT, heard)
    assert heard.filled_to == [2]


def test_a_sink_that_ends_the_clip_leaves_nothing_on_the_card() -> None:
    card = EmulatedDevice(2**20)
    model: Any = Chunks(chunks_of(2, 4, 1))
    with card.work(), pytest.raises(RenderStopped), leaving_nothing(card):
        decode_once(model, model.latents, RESIDENT, Heard(stop_at=6))
    assert card.used_bytes() == 0


def test_fewer_frames_than_latents_say_are_an_error() -> None:
    model: Any = Chunks(chunks_of(2, 2))
    model.chunks.pop()
    with pytest.raises(RuntimeError, match="2 frames were decoded of 4"):
        decode_once(model, model.latents, RESIDENT)
