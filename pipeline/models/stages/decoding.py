"""The last stage: latents to frames, chunk by chunk, and once more in float32 where half precision overflows."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clips.frames import Frames, FrameSink
from pipeline.families import Family, Stage
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import retry_layout
from pipeline.models.errors import BlackOutputError, NotFiniteError
from pipeline.models.hooks.precision import widened
from pipeline.models.networks import DiffusionNetworks


def decode(model: DiffusionNetworks, latents: torch.Tensor, layout: Layout, sink: FrameSink | None = None) -> Frames:
    """(frames, height, width, 3) uint8 of (1, channels, frames, height, width) latents; `sink` is told as they come.

    Half precision overflows in some decoders, so a result that is not finite, or all black, is decoded once more
    in float32, laid out by `pipeline.memory.footprint.retry_layout` so that it takes no more memory; but not where the
    layout chose half precision, which only families do whose half has the range of float32. Raises
    `NotFiniteError` or `BlackOutputError` where that does not help, and what `sink` raises.
    """
    model.residency.ready(Stage.DECODE, layout)
    networks = model.parts.of(Stage.DECODE)
    half = any(network.dtype in (torch.float16, torch.bfloat16) for network in networks)
    if half and not layout.decode_half:
        try:
            return decode_once(model, latents, layout, sink)
        except (NotFiniteError, BlackOutputError):
            pass  # outside the handler, so that the failed attempt's tensors are gone
        retry = _retry_layout(model.family, latents, layout)
        model.residency.ready(Stage.DECODE, retry)
        with widened(networks):
            return decode_once(model, latents, retry, sink)
    return decode_once(model, latents, layout, sink)


def decode_once(
    model: DiffusionNetworks, latents: torch.Tensor, layout: Layout, sink: FrameSink | None = None
) -> Frames:
    """Frames of `latents` in the precision that the decoder has, its networks being on the card already.

    Shapes as in `decode`. Raises `NotFiniteError` for NaN or infinity, `BlackOutputError` for black frames only.
    """
    (width, height), count = _pixels(model.family, latents)
    # One array, filled chunk by chunk: chunks put together in the end would be the clip twice.
    landing = _Landing(np.empty((count, height, width, 3), dtype=np.uint8), sink, _decoder_dtype(model))
    for decoded in model.decode_chunks(latents, layout):
        chunk = _LeavingChunk(decoded)
        del decoded
        # A card works on the next chunk while this one is copied, hashed and encoded; without one, it is there.
        landing.take(chunk, behind=1 if chunk.is_queued else 0)
        del chunk
    return landing.finish()


class _Landing:
    """A clip's chunks as they reach the host, in order."""

    def __init__(self, frames: Frames, sink: FrameSink | None, dtype: str) -> None:
        """`frames`: where they go; `dtype`: what the decoder computes in."""
        self._frames, self._sink, self._dtype = frames, sink, dtype
        self._leaving: deque[_LeavingChunk] = deque()
        self._done = 0
        if sink is not None:
            sink.begin(frames)

    def take(self, chunk: _LeavingChunk, behind: int) -> None:
        """The next chunk is on its way: wait for all but the last `behind`. Raises `NotFiniteError`."""
        self._leaving.append(chunk)
        del chunk
        self._land(behind)

    def finish(self) -> Frames:
        """All frames, once they are there. Raises `NotFiniteError`, `BlackOutputError`."""
        self._land(0)
        if self._done != len(self._frames):
            raise RuntimeError(f"{self._done} frames were decoded of {len(self._frames)}")
        if not self._frames.any():
            raise BlackOutputError(self._dtype)
        return self._frames

    def _land(self, behind: int) -> None:
        while len(self._leaving) > behind:
            finite, pixels = self._leaving.popleft().arrived()
            if not all(finite):
                raise NotFiniteError("decode", self._done + finite.index(False), self._dtype)
            self._frames[self._done : self._done + len(finite)] = pixels
            self._done += len(finite)
            if self._sink is not None:
                self._sink.filled(self._done)


class _LeavingChunk:
    """A decoded chunk on its way off the card, as eight bits. The card is waited for in `arrived`, once a chunk."""

    def __init__(self, decoded: torch.Tensor) -> None:
        """`decoded`: (frames, 3, height, width) in -1…1; may be overwritten."""
        finite, pixels = _eight_bits(decoded)
        self._copied: torch.cuda.Event | None = None
        self._finite, self._pixels = finite, pixels
        if pixels.is_cuda and (hosts := _pinned(finite, pixels)):
            for host, card in zip(hosts, (finite, pixels), strict=True):
                host.copy_(card, non_blocking=True)
            self._finite, self._pixels = hosts
            self._copied = torch.cuda.current_stream(pixels.device).record_event()

    @property
    def is_queued(self) -> bool:
        """Whether it comes by itself while the card goes on."""
        return self._copied is not None

    def arrived(self) -> tuple[list[bool], NDArray[np.uint8]]:
        """Which frames are finite, and (frames, height, width, 3); to be copied, as it may be the card's own memory."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._finite.cpu().tolist(), self._pixels.cpu().numpy()


def _pinned(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Host memory for copies of them that a card writes by itself; none where it cannot be had."""
    try:
        return [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    except RuntimeError:
        return []


def _eight_bits(decoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames are finite, and (frames, height, width, 3) uint8, of (frames, 3, height, width) in -1…1."""
    count, channels, height, width = decoded.shape
    finite = torch.empty(count, dtype=torch.bool, device=decoded.device)
    pixels = torch.empty(count, height, width, channels, dtype=torch.uint8, device=decoded.device)
    # One at a time: beside a frame that was blended from tiles, float copies of a whole chunk would be the peak.
    for place, frame in enumerate(decoded):
        finite[place] = torch.isfinite(frame).all()
        pixels[place] = frame.float().mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().permute(1, 2, 0)
    return finite, pixels


def _decoder_dtype(model: DiffusionNetworks) -> str:
    return str(model.parts.of(Stage.DECODE)[0].dtype).removeprefix("torch.")


def _retry_layout(family: Family, latents: torch.Tensor, layout: Layout) -> Layout:
    size, frames = _pixels(family, latents)
    return retry_layout(family, size, frames, layout)


def _pixels(family: Family, latents: torch.Tensor) -> tuple[tuple[int, int], int]:
    """((width, height), frames) of a clip of these latents."""
    frames, height, width = latents.shape[2:]
    side = family.pixels_per_latent
    return (width * side, height * side), (frames - 1) * family.frames_per_latent + 1
