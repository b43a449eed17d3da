"""What the parts share: the card, networks built once, clips to measure, clocks that wait for the card."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpu_parts.cases import DeadCardError
from pipeline.clips.clip import ClipSpec
from pipeline.denoising.caches import TensorCache
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.devices.protocol import Device
from pipeline.dryrun.run import clip_of
from pipeline.families import FAMILIES, Family, Stage
from pipeline.models.build import build
from pipeline.models.diffusion import DiffusionModel
from pipeline.units import GIB

#: Families that are measured.
MEASURED = ("i2vgen-xl", "svd-xt", "wan2.2-5b")
#: (width, height, frames) at which each family's speed is measured.
SPEED_SHAPES = {"i2vgen-xl": (512, 512, 16), "svd-xt": (1024, 576, 25), "wan2.2-5b": (1280, 704, 121)}
#: What stands for every shape where only the script is tried: frames of the form 4n+1, sides that all families take.
TINY_SHAPE = (64, 64, 9)


def ignore_step(_done: int, _total: int, _snapshot: object) -> None:
    """Progress nobody reads."""


class Bench:
    """One card (or, `tiny`, the host with the small networks) and the models that were built for it.

    Models stay for the whole run, on the host while another is used, so that none is built twice.
    """

    def __init__(self, *, tiny: bool, device: Device | None = None) -> None:
        """`device`: the card, by default the first CUDA card, or the host for the small networks."""
        self.tiny = tiny
        self.device: Device = device or (HostDevice() if tiny else _cuda())
        #: Whether it is a CUDA card, or passes for one.
        self.cuda = not isinstance(self.device, EmulatedDevice)
        self._models: dict[str, DiffusionModel] = {}
        self._contexts: dict[str, int] = {}

    @property
    def torch_device(self) -> str:
        """Torch's name of the card."""
        return self.device.torch_device

    def family(self, name: str) -> Family:
        """The family called `name`, or the small one that stands for it."""
        return FAMILIES[f"{name}-tiny" if self.tiny else name]

    def dtype(self, name: str) -> torch.dtype:
        """What the networks of `name` compute in."""
        dtype: torch.dtype = torch.float32 if self.tiny else getattr(torch, self.family(name).half)
        return dtype

    def clip(self, name: str, shape: tuple[int, int, int], steps: int) -> ClipSpec:
        """A clip of (width, height, frames), everything else as the family has it."""
        width, height, frames = TINY_SHAPE if self.tiny else shape
        return clip_of(self.family(name), width, height, frames).model_copy(update={"steps": steps})

    def still(self) -> Image.Image:
        """A picture of noise, the same each time."""
        values = np.random.default_rng(0).integers(0, 256, (72, 128, 3), dtype=np.uint8)
        return Image.fromarray(values).resize((1280, 720))

    def model(self, name: str) -> DiffusionModel:
        """The model of `name` with nothing on the card, all others being off it; built when first asked for."""
        for other in self._models.values():
            off_card(other)
        if name not in self._models:
            model = build(self.family(name), self.device, self.dtype(name))
            # Built on the card itself: off it once, so that each layout puts on what it needs.
            for stage in Stage:
                model.residency.place(stage)
                model.residency.displace(stage)
            self._models[name] = model
            self.settle()
        model = self._models[name]
        # Without what an earlier clip encoded: encoding is measured too.
        model.conditioning.cache = TensorCache()
        return model

    def emulated(self, name: str) -> DiffusionModel:
        """A model of `name` on an emulated card of 80 nominal GiB, which `foreign_bytes` makes smaller."""
        key = f"{name}, emulated"
        if key not in self._models:
            card = EmulatedDevice(emulated_bytes(80 * GIB))
            self._models[key] = build(self.family(name), card, self.dtype(name))
        model = self._models[key]
        model.conditioning.cache = TensorCache()
        return model

    def context_bytes(self, name: str, measure: Callable[[], int]) -> int:
        """What `measure` found of the family `name`, once."""
        if name not in self._contexts:
            self._contexts[name] = measure()
        return self._contexts[name]

    def settle(self) -> None:
        """Drop what nobody uses, and give what is cached back to the card."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            # They are cut from the allocator's memory, 8 to 32 MiB a handle and stream, and stay for ever otherwise.
            clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
            if clear is not None:
                clear()
        self.device.free_cached()

    def recover(self, error: BaseException) -> None:
        """After a case that failed: forget models, which may be half placed, and try the card.

        Raises `DeadCardError` where it computes nothing any more.
        """
        from serve.renderer.faults import is_out_of_memory, is_sticky

        if self.cuda and is_sticky(error, self.device):
            raise DeadCardError(
                f"after {type(error).__name__} the card computes nothing any more: the rest was not run"
            )
        if not is_out_of_memory(error, self.device):
            for model in self._models.values():
                model.unload()
            self._models.clear()
        if self.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
        self.settle()

    def seconds(self, work: Callable[[], object], *, runs: int = 3, warm: int = 1) -> float:
        """Median time of `work`, the card waited for, after `warm` runs that do not count."""
        for _ in range(warm):
            work()
        times = []
        for _ in range(runs):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def wait(self) -> None:
        """Wait until the card has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()


def off_card(model: DiffusionModel) -> None:
    """Take all networks of `model` off the card."""
    for stage in Stage:
        model.residency.displace(stage)


def on_card(model: DiffusionModel) -> None:
    """Put all networks of `model` on the card."""
    for stage in Stage:
        model.residency.place(stage)


def _cuda() -> Device:
    from pipeline.devices.cuda import CudaDevice

    return CudaDevice(0)


def shape_name(spec: ClipSpec) -> str:
    """`1280x704x121`."""
    return f"{spec.width}x{spec.height}x{spec.frames}"


def difference(ours: Any, theirs: Any) -> dict[str, Any]:
    """How two arrays of 8-bit frames differ."""
    apart = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    return {
        "equal": bool(not apart.any()),
        "largest_difference_of_255": int(apart.max()),
        "share_of_values_that_differ": float((apart > 0).mean()),
    }
