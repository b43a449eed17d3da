"""Predicted against allocated and reserved memory, stage by stage, within budgets that stand for smaller cards.

The allocator is held to what a card of so many GiB would leave it, CUDA's context counted apart, and a clip is planned
and escalated as a renderer does it. Each stage starts with nothing cached and no workspace kept: what is reserved is
the stage's own. Of decoding three chunks are run, from the third on they are all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from gpu_parts.bench import SPEED_SHAPES, Bench, ignore_step, off_card, shape_name
from gpu_parts.cases import Case
from pipeline.clips.clip import ClipSpec
from pipeline.clips.stills import fit_still
from pipeline.devices.emulated import EmulatedDevice
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.memory.admission import margin
from pipeline.memory.footprint import cuda_model, cuda_share, footprint, leaner, plan, weights_on_card
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.stages.residency import leaving_nothing
from pipeline.units import GIB

_T = TypeVar("_T")

#: Family, (width, height, frames), budgets in GiB with the seconds each takes, and the one that an aim is read from.
GRID: tuple[tuple[str, tuple[int, int, int], dict[int, float], tuple[int, ...]], ...] = (
    ("i2vgen-xl", (1024, 1024, 16), {8: 14, 12: 8, 16: 6, 24: 5, 40: 5, 80: 5}, (8, 24)),
    ("svd-xt", SPEED_SHAPES["svd-xt"], {8: 14, 12: 10, 16: 8, 24: 6, 80: 6}, (12,)),
    ("wan2.2-5b", SPEED_SHAPES["wan2.2-5b"], {16: 40, 24: 30, 40: 20, 80: 15}, (16, 40)),
    ("i2vgen-xl", (512, 512, 16), {8: 6, 24: 4}, ()),
)
#: Seconds to build a family's networks, put down to its first case.
_BUILDING_S = {"i2vgen-xl": 8.0, "svd-xt": 8.0, "wan2.2-5b": 25.0}


class Meter(Protocol):
    """Peaks of what the process has of a card."""

    def begin(self) -> None:
        """Give back what is cached and kept, and forget the peaks."""
        ...

    def peaks(self) -> tuple[int, int]:
        """Highest bytes allocated, and reserved by the allocator, since `begin`."""
        ...


class CudaMeter:
    """Peaks by torch's caching allocator."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def begin(self) -> None:
        """Give back cached blocks and cuBLAS' workspaces, and forget the peaks."""
        self._bench.settle()
        torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> tuple[int, int]:
        """Highest bytes allocated and reserved."""
        self._bench.wait()
        return int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved())


class EmulatedMeter:
    """Peaks of an emulated card, which reserves what it allocates."""

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device

    def begin(self) -> None:
        """Forget the peak."""
        self._device.reset_peak()

    def peaks(self) -> tuple[int, int]:
        """Highest bytes allocated, twice."""
        return self._device.peak_bytes(), self._device.peak_bytes()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A share of the card at hand that stands for a whole card."""

    total_bytes: int
    #: What CUDA has of the card besides the allocator, kernels loaded.
    context_bytes: int
    usable_bytes: int

    def promised(self, predicted: int) -> int:
        """Bytes that a stage predicted at `predicted` may take of the card, everything counted."""
        if not self.context_bytes:
            return predicted + self.total_bytes // 20
        return predicted + cuda_share(predicted) + margin(self.total_bytes)


@dataclass(frozen=True, kw_only=True)
class StageTaken:
    """One stage of one clip, in bytes."""

    predicted: int
    allocated: int
    reserved: int
    #: Allocated beyond the tensors that are predicted: libraries' workspaces, and what the tables do not know.
    workspace: int
    #: Predicted besides weights, which are known exactly: errors hide behind them.
    predicted_activations: int
    #: Reserved and CUDA's context.
    taken: int
    #: What a card must have for it by prediction, CUDA's share and the margin included.
    promised: int

    @property
    def error(self) -> float:
        """Allocated over predicted, less one."""
        return self.allocated / self.predicted - 1


def cases(bench: Bench) -> list[Case]:
    """A case a family, shape and budget, budgets in order."""
    found, built = [], set()
    for name, shape, budgets, aimed in GRID:
        for gib in sorted(budgets) if bench.cuda else sorted(budgets)[::3]:
            cost = budgets[gib] + (0.0 if name in built else _BUILDING_S[name])
            built.add(name)
            found.append(
                Case(
                    part="grid",
                    name=f"{name} {'x'.join(map(str, shape))} in {gib} GiB",
                    cost_s=cost,
                    work=partial(measure, bench, name, shape, gib),
                    rank=0 if gib in aimed else 2,
                    show=told,
                )
            )
    return found


def measure(bench: Bench, name: str, shape: tuple[int, int, int], gib: int) -> dict[str, Any]:
    """One clip of two steps in a card of `gib` GiB."""
    spec = bench.clip(name, shape, 2)
    if not bench.cuda:
        model = bench.emulated(name)
        card = model.device
        assert isinstance(card, EmulatedDevice)
        card.foreign_bytes = card.total_bytes - emulated_bytes(gib * GIB)
        budget = Budget(total_bytes=emulated_bytes(gib * GIB), context_bytes=0, usable_bytes=card.usable_bytes())
        return escalated(model, spec, budget, EmulatedMeter(card), bench.still())
    model = bench.model(name)
    # Clips of one family load the same kernels.
    context = bench.context_bytes(name, lambda: context_bytes(bench, model, spec))
    total = gib * GIB
    usable = max(0, total - max(context, cuda_model().context_bytes) - margin(total))
    with held_to(total - context):
        budget = Budget(total_bytes=total, context_bytes=context, usable_bytes=usable)
        return escalated(model, spec, budget, CudaMeter(bench), bench.still()) | {"context_bytes": context}


@contextmanager
def held_to(count: int) -> Iterator[None]:
    """Inside, the allocator may have `count` bytes; afterwards the whole card."""
    total = torch.cuda.mem_get_info(0)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, count / total), 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def context_bytes(bench: Bench, model: DiffusionModel, spec: ClipSpec) -> int:
    """What this process has of the card besides the allocator's, the kernels of such clips loaded; or others have.

    Use a card on which nobody else works: what they have would be counted.
    """
    side = max(64, model.family.stride)
    small = spec.model_copy(update={"width": side, "height": side, "frames": min(spec.frames, 9), "steps": 1})
    stages_of(model, small, model.family.layouts[0], CudaMeter(bench), bench.still())
    off_card(model)
    bench.settle()
    free, total = torch.cuda.mem_get_info(0)
    return int(total - free - torch.cuda.memory_reserved(0))


def escalated(model: DiffusionModel, spec: ClipSpec, budget: Budget, meter: Meter, still: Any) -> dict[str, Any]:
    """A clip planned for `budget` and laid out leaner after each out-of-memory, as a renderer does it."""
    from serve.renderer.faults import is_out_of_memory

    figures: dict[str, Any] = {"clip": shape_name(spec), "admitted": False, "done": False, "ooms": 0}
    planned = plan(spec, budget.usable_bytes)
    if planned is None:
        return figures
    layout: Layout | None = planned[0]
    failed = Stage.ENCODE
    began = time.perf_counter()
    while layout is not None:
        figures |= {"admitted": True, "layout": str(layout)}
        found: dict[Stage, tuple[int, int]] = {}
        try:
            with leaving_nothing(model.device):
                found = stages_of(model, spec, layout, meter, still)
        except Exception as error:
            if not is_out_of_memory(error, model.device):
                raise
            failed = model.stage
        if found:
            figures["done"] = True
            break
        figures["ooms"] += 1
        off_card(model)
        layout = leaner(layout, failed, model.family)
    figures["seconds"] = round(time.perf_counter() - began, 2)
    if figures["done"]:
        assert layout is not None
        taken = taken_of(spec, layout, budget, found)
        figures["stages"] = {stage: asdict(each) | {"error": round(each.error, 4)} for stage, each in taken.items()}
    off_card(model)
    return figures


def told(figures: dict[str, Any]) -> list[str]:
    """A cell in a few lines."""
    if not figures["admitted"]:
        return ["not admitted"]
    done = f"{figures['seconds']} s" if figures["done"] else "OUT OF MEMORY"
    lines = [f"{figures['clip']}: {done}, {figures['ooms']} out-of-memory on the way, {figures['layout']}"]
    for stage, taken in figures.get("stages", {}).items():
        lines.append(
            f"{stage}: predicted {taken['predicted'] / GIB:.2f} GiB, allocated {100 * taken['error']:+.1f} % of it, "
            f"reserved {taken['reserved'] / GIB:.2f}, of the card {taken['taken'] / GIB:.2f} of "
            f"{taken['promised'] / GIB:.2f} promised"
        )
    return lines


def taken_of(
    spec: ClipSpec, layout: Layout, budget: Budget, found: dict[Stage, tuple[int, int]]
) -> dict[str, StageTaken]:
    """Each stage's peaks (allocated, reserved) beside what was predicted of it."""
    whole = footprint(spec, layout)
    # A footprint that counts workspaces tells the tensors apart.
    tensors: dict[str, int] = dict(getattr(whole, "tensors", whole.stages))
    predicted, weights = whole.stages, weights_on_card(family_named(spec.family), layout).stages
    return {
        str(stage): StageTaken(
            predicted=predicted[stage],
            allocated=allocated,
            reserved=reserved,
            workspace=allocated - tensors[stage],
            predicted_activations=tensors[stage] - weights[stage],
            taken=reserved + budget.context_bytes,
            promised=budget.promised(predicted[stage]),
        )
        for stage, (allocated, reserved) in found.items()
    }


def stages_of(
    model: DiffusionModel, spec: ClipSpec, layout: Layout, meter: Meter, still: Any
) -> dict[Stage, tuple[int, int]]:
    """Highest bytes (allocated, reserved) in each stage of one clip. Raises whatever a stage raises."""
    found: dict[Stage, tuple[int, int]] = {}

    def measured(stage: Stage, work: Callable[[], _T]) -> _T:
        meter.begin()
        result = work()
        found[stage] = meter.peaks()
        return result

    with model.device.work(), torch.no_grad():
        model.residency.lay_out(layout)
        # As the footprint counts it: the denoiser is there while a later clip is encoded, unless it is evicted.
        if not layout.evict_encoders:
            model.residency.place(Stage.DENOISE)
        picture = fit_still(still, spec.size, spec.fit)
        # In a list, so that the next stage can be without them.
        halves = [measured(Stage.ENCODE, lambda: model.condition(picture, spec))]
        latents = measured(Stage.DENOISE, lambda: model.denoise(halves.pop(), spec, layout, ignore_step))
        # Random networks do not end at anything that a decoder has seen.
        latents.normal_()
        together = max(1, layout.decode_frames // model.family.frames_per_latent)
        measured(Stage.DECODE, lambda: model.decode(latents[:, :, : 3 * together], layout))
    return found
