"""A clip's stages, run on a device without data: live bytes at the peak, where it is, and operations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.denoising.caches import TensorCache, Tensors
from pipeline.dryrun.device import DryDevice
from pipeline.families import Family, Stage
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.models.build import build
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.precision import widened
from pipeline.models.parts import Halves

_T = TypeVar("_T")

#: Chunks of frames that are decoded; from the third on they are all alike.
_DECODED_CHUNKS = 3

#: Steps that are run: from the second on they are all alike, and what is computed once a clip is there.
_DENOISED_STEPS = 2

#: Switches that say where weights are, put back: what a stage takes besides them is the same.
ALL_THERE = {"evict_encoders": False, "evict_denoiser": False, "stream_weights": False}


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """What one stage took."""

    #: Highest live bytes besides the weights, in tensors on the card.
    peak_bytes: int
    #: Path of the module in which that was.
    where: str
    #: Floating point operations (a multiplication and an addition are two): of the stage, of a later step while
    #: denoising, and of the chunks that were decoded.
    flops: int
    #: Bytes of the largest convolution's input and output.
    convolution_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a clip takes under one layout."""

    layout: Layout
    pixels: int
    frames: int
    stages: Mapping[Stage, StageRun] = field(hash=False)
    #: Time the dry run itself took.
    seconds: float


def clip_of(family: Family, width: int, height: int, frames: int) -> ClipSpec:
    """A clip of one step, everything else as the family has it. Its class is not looked at."""
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="camera slowly panning left",
        resolution_class=ResolutionClass.P512,
        width=width,
        height=height,
        frames=frames,
        fps=8,
        steps=1,
        # Above 1, where there would be no second half.
        guidance=max(family.guidance, 2.0),
        seed=0,
        sampler=family.samplers[0],
    )


class DryModel:
    """A family's engine around networks without weights."""

    def __init__(self, family: Family, dtype: torch.dtype | None = None) -> None:
        """`dtype`: what the networks compute in; the family's half precision if left out."""
        self.family = family
        self.device = DryDevice()
        self.engine: DiffusionModel = build(family, self.device, dtype, _NoCache())
        parts = self.engine.parts
        self.device.name({name: getattr(parts, name) for name in parts.stages})
        #: Bytes of the networks of each stage, on the card.
        self.weights: Mapping[Stage, int] = {stage: self._placed(stage) for stage in Stage}
        #: Bytes of the decoder's networks in half precision.
        self.half_weights = self._halved()

    def latents_bytes(self, width: int, height: int, frames: int) -> int:
        """Bytes of a clip's latents."""
        return 4 * math.prod(self.engine.latent_shape(clip_of(self.family, width, height, frames)))

    @property
    def dtype(self) -> str:
        """What the denoiser computes in, such as `float16`."""
        return str(self.engine.dtype).removeprefix("torch.")

    def run(
        self,
        width: int,
        height: int,
        frames: int,
        layout: Layout = RESIDENT,
        stages: frozenset[Stage] = frozenset(Stage),
    ) -> DryRun:
        """Run the clip's stages. Those left out of `stages` are run only where a later one needs what they make.

        Where weights lie is no matter here: what a stage takes besides them does not depend on it.
        Raises whatever the networks raise for sizes they cannot take.
        """
        started = time.perf_counter()
        spec = clip_of(self.family, width, height, frames)
        layout = layout.model_copy(update=ALL_THERE)
        found: dict[Stage, StageRun] = {}
        with self.device.work(), torch.no_grad():
            if stages & {Stage.ENCODE, Stage.DENOISE}:
                picture = Image.new("RGB", spec.size)
                halves, found[Stage.ENCODE] = self._measured(lambda: self.engine.condition(picture, spec))
                if Stage.DENOISE in stages:
                    found[Stage.DENOISE] = self._denoised(halves, spec, layout)
                del halves
            if Stage.DECODE in stages:
                self.engine.residency.place(Stage.DECODE, half=layout.decode_half)
                # Whole, as they are there meanwhile; a part of them is decoded.
                latents = torch.empty(1, *self.engine.latent_shape(spec), device=self.device.torch_device)
                part = latents[:, :, : self._decoded(layout)]
                _, found[Stage.DECODE] = self._measured(
                    lambda: self.engine.decode(part, layout), half=layout.decode_half
                )
                del latents, part
                self.engine.residency.place(Stage.DECODE)
        return DryRun(
            layout=layout,
            pixels=width * height,
            frames=frames,
            stages={stage: found[stage] for stage in Stage if stage in stages},
            seconds=time.perf_counter() - started,
        )

    def _denoised(self, halves: Halves, spec: ClipSpec, layout: Layout) -> StageRun:
        steps = spec.model_copy(update={"steps": _DENOISED_STEPS})
        flops: list[int] = []

        def after_step(_done: int, _total: int, _snapshot: object) -> None:
            flops.append(self.device.flops)

        _, found = self._measured(lambda: self.engine.denoise(halves, steps, layout, after_step))
        return replace(found, flops=flops[-1] - flops[-2])

    @property
    def half_decoder(self) -> bool:
        """Whether the decoder computes in half precision, so that it may overflow and decode again in float32."""
        return any(network.dtype != torch.float32 for network in self.engine.parts.of(Stage.DECODE))

    def decoded_frames(self, layout: Layout, frames: int) -> int:
        """Frames of the clip that `run` decodes."""
        latents = min(self._decoded(layout), (frames - 1) // self.family.frames_per_latent + 1)
        return (latents - 1) * self.family.frames_per_latent + 1

    def decode_single(self, width: int, height: int, frames: int, layout: Layout) -> StageRun:
        """Decoding by networks widened to float32, besides the weights in half precision and in float32."""
        networks = self.engine.parts.of(Stage.DECODE)
        with self.device.work(), torch.no_grad():
            shape = self.engine.latent_shape(clip_of(self.family, width, height, frames))
            latents = torch.empty(1, *shape, device=self.device.torch_device)
            part = latents[:, :, : self._decoded(layout)]
            with widened(networks):
                _, found = self._measured(lambda: self.engine.decode(part, layout))
        return replace(found, peak_bytes=found.peak_bytes - self.weights[Stage.DECODE])

    def reencode(self, width: int, height: int, frames: int) -> StageRun:
        """Encoding a clip's frames, as after enlarging them."""
        with self.device.work(), torch.no_grad():
            _, found = self._measured(
                lambda: self.engine.encode_frames(
                    torch.empty(1, 3, frames, height, width, device=self.device.torch_device)
                )
            )
        return found

    def _decoded(self, layout: Layout) -> int:
        """Latent frames of the chunks that are run."""
        return _DECODED_CHUNKS * max(1, layout.decode_frames // self.family.frames_per_latent)

    def _placed(self, stage: Stage) -> int:
        before = self.device.used_bytes()
        self.engine.residency.place(stage)
        return self.device.used_bytes() - before

    def _halved(self) -> int:
        """Bytes of the decoder in half precision; it is back as it was afterwards."""
        others = self.device.used_bytes() - self.weights[Stage.DECODE]
        self.engine.residency.place(Stage.DECODE, half=True)
        found = self.device.used_bytes() - others
        self.engine.residency.place(Stage.DECODE)
        return found

    def _measured(self, work: Callable[[], _T], *, half: bool = False) -> tuple[_T, StageRun]:
        self.device.reset_peak()
        result = work()
        less = self.weights[Stage.DECODE] - self.half_weights if half else 0
        peak = self.device.peak_bytes() - sum(self.weights.values()) + less
        return result, StageRun(
            peak_bytes=peak,
            where=self.device.where,
            flops=self.device.flops,
            convolution_bytes=self.device.convolution_bytes,
        )


class _NoCache(TensorCache):
    """Makes everything anew, and hands it back through the host as the real one does."""

    def fetch(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        return {name: tensor.cpu() for name, tensor in make().items()}
