"""Which stages' networks are on the card, and how: whole, or streamed through it module by module."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.devices.pinning import HostPinning
from pipeline.devices.protocol import Device
from pipeline.devices.transfer import PlacedWeights, tensors_of
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.models.hooks.streaming import StreamedWeights
from pipeline.models.parts import Parts


class Residency:
    """Places the networks of one model on its card and displaces them, stage by stage, as a clip's layout says.

    A stage's networks are on the host until it is first needed, and stay where they are between clips. The host keeps
    its tensors meanwhile, so that displacing copies nothing; those of stages that a layout streams or evicts are in
    pinned memory from then on:

    1. `lay_out`, before a clip: weights that its layout streams or evicts leave the card.
    2. `encoders`, around whatever is encoded, and `ready`, before denoising and decoding: the stage's networks are
       placed, those that the layout evicts are displaced.
    3. `unload`, after the last clip.

    Moving weights changes no bit of them, but for a decoder that a layout wants in half precision: it is rounded on the
    card, placed anew, and encodes stills as it is. One thread at a time.
    """

    def __init__(self, parts: Parts, device: Device, half: torch.dtype) -> None:
        """`parts`: networks on the host, every one of them a single stage's; `half`: what decoders are rounded to."""
        self._parts = parts
        self._device = device
        self._half = half
        self._pinning = HostPinning(device.torch_device)
        self._placed: dict[Stage, list[PlacedWeights | StreamedWeights]] = {}
        #: Whether the decoder that is on the card was rounded to half precision.
        self._halved = False
        self._evicting = False
        self._streaming = False
        #: Stages whose networks leave the card and come back.
        self._moving: frozenset[Stage] = frozenset()
        #: What is being done: tells where memory ran out.
        self.stage = Stage.ENCODE

    @property
    def placed_bytes(self) -> int:
        """Bytes of the networks that are on the card whole; streamed ones take none between evaluations."""
        return sum(
            tensor.nbytes
            for stage, placed in self._placed.items()
            if not any(isinstance(weights, StreamedWeights) for weights in placed)
            for network in self._parts.of(stage)
            for tensor in tensors_of(network)
        )

    def lay_out(self, layout: Layout) -> None:
        """Before a clip: what `layout` says of where weights lie between evaluations."""
        self.stage = Stage.ENCODE
        self._evicting = layout.evict_encoders
        self._moving = _moving(layout)
        if self._streaming != layout.stream_weights:
            for stage in (Stage.ENCODE, Stage.DENOISE):
                self.displace(stage)
            self._streaming = layout.stream_weights
        if layout.evict_encoders:
            # A clip that goes on, or finds all in the cache, never asks for them.
            self.displace(Stage.ENCODE)

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Inside, the encoders and the VAE are on the card. Raises `torch.OutOfMemoryError` where they do not fit."""
        self.stage = Stage.ENCODE
        if self._evicting:
            # What the encoders need may be all there is: the denoiser must not be beside them.
            self.displace(Stage.DENOISE)
        self.place(Stage.ENCODE)
        self.place(Stage.DECODE)
        yield

    def ready(self, stage: Stage, layout: Layout) -> None:
        """Before denoising or decoding: the stage's networks are on the card and what `layout` evicts is not.

        Raises `torch.OutOfMemoryError` where they do not fit.
        """
        self.stage = stage
        if layout.evict_encoders:
            self.displace(Stage.ENCODE)
        if stage is Stage.DECODE and layout.evict_denoiser:
            self.displace(Stage.DENOISE)
        self.place(stage, half=stage is Stage.DECODE and layout.decode_half)

    def is_placed(self, stage: Stage) -> bool:
        """Whether the networks of `stage` are on the card, whole or streamed."""
        return stage in self._placed

    def place(self, stage: Stage, *, half: bool = False) -> None:
        """Put the networks of `stage` on the card, streamed where the layout says so; nothing if they are there.

        `half`: rounded to half precision, of the decoder alone. Raises `torch.OutOfMemoryError` where they do not fit;
        none of them is on the card then.
        """
        if stage is Stage.DECODE and half != self._halved:
            self.displace(stage)
            self._halved = half
        if stage in self._placed:
            return
        # Weights stay for long: in a cached block that was some activation's, they would keep all of it from others.
        self._device.free_cached()
        streams = self._streaming and stage is not Stage.DECODE
        placed: list[PlacedWeights | StreamedWeights] = []
        try:
            for network in self._parts.of(stage):
                if stage in self._moving:
                    self._pinning.pin(tensors_of(network))
                if streams:
                    placed.append(StreamedWeights(network, self._device.torch_device))
                else:
                    placed.append(PlacedWeights(network, self._device, self._half if half else None))
        except BaseException:
            self._end(placed)
            raise
        self._placed[stage] = placed

    def displace(self, stage: Stage) -> None:
        """Take the networks of `stage` off the card, the host's own tensors in their place; or do nothing."""
        if stage in self._placed:
            self._end(self._placed.pop(stage))

    def _end(self, placed: list[PlacedWeights | StreamedWeights]) -> None:
        for weights in placed:
            weights.end()
        self._device.free_cached()

    def unload(self) -> None:
        """Free the weights wherever they lie; there is nothing to place afterwards."""
        for placed in self._placed.values():
            for weights in placed:
                weights.end()
        self._placed.clear()
        for network in self._parts.networks:
            # Frees the storages now, whoever else still refers to the module.
            network.to("meta")
        self._parts = Parts(stages={})
        self._device.free_cached()
        self._pinning.free_cached()


def _moving(layout: Layout) -> frozenset[Stage]:
    moves = {
        Stage.ENCODE: layout.stream_weights or layout.evict_encoders,
        # Encoders that are evicted take its place while they work.
        Stage.DENOISE: layout.stream_weights or layout.evict_encoders or layout.evict_denoiser,
        # Rounded for each decode, and back as it is for the next still.
        Stage.DECODE: layout.decode_half,
    }
    return frozenset(stage for stage, moved in moves.items() if moved)


@contextmanager
def leaving_nothing(device: Device) -> Iterator[None]:
    """Inside, an error takes no activations along: whoever handles it finds the card as it was before the clip."""
    try:
        yield
    except BaseException as error:
        # Whoever handles the error holds its traceback, whose frames hold activations: release them here.
        clear_frames(error)
        if isinstance(error, torch.OutOfMemoryError):
            device.free_cached()
        raise


def clear_frames(error: BaseException | None) -> None:
    """Drop the locals of every finished frame that `error`, its cause and its context hold."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
